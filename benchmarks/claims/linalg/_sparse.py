"""Sparse updates and the dense update that ours is compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_ext import linalg
from jaxopt_ext_kernels import CSR


def orthonormal(rng, n, k):
    """Columns that are orthonormal; copies of a block where they are long."""
    copies = max(n // 10_000, 1)
    block, _ = np.linalg.qr(rng.normal(size=(n // copies, k)))
    return np.tile(block, (copies, 1)) / np.sqrt(copies)


def start(rng, n, k, capacity):
    """A decomposition of a matrix of 100 rows and n columns, with room for more rows."""
    u = np.zeros((capacity, k))
    u[:100] = orthonormal(rng, 100, k)
    count = lambda a: jnp.asarray(a, jnp.int32)
    return linalg.TruncatedSVD(
        jnp.asarray(u),
        jnp.eye(k),
        jnp.arange(k, 0.0, -1) + 1,
        jnp.asarray(orthonormal(rng, n, k)),
        jnp.eye(k),
        count(100),
        count(n),
    )


def rows(rng, s, n, each):
    """Rows with so many entries each."""
    columns = np.concatenate([np.unique(rng.integers(0, n, 2 * each))[:each] for _ in range(s)])
    values = rng.normal(size=s * each)
    return CSR.from_coo(values, np.repeat(np.arange(s), each), columns, (s, n))


@jax.jit
def zha_simon(u, s, v, E):
    """Rows added by a dense QR of what is outside of the span; `u` grows by them."""
    k = len(s)
    C = v.T @ E.T
    Q, R = jnp.linalg.qr(E.T - v @ C)
    middle = jnp.block([[jnp.diag(s), jnp.zeros((k, len(E)))], [C.T, R.T]])
    F, t, Gt = jnp.linalg.svd(middle)
    G = Gt[:k].T
    return jnp.concatenate([u @ F[:k, :k], F[k:, :k]]), t[:k], v @ G[:k] + Q @ G[k:]
