"""The block-sparse product against BCOO and dense products."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from benchmarks.timing import race
from jaxopt_ext_kernels import BCSR, bcsr_matmul

TITLE = "2048 x 2048 in blocks of 32 x 32 times 2048 x 128, float32, by share of blocks kept"


def run() -> list[dict]:
    table = []
    rng = np.random.default_rng(0)
    dense = jnp.asarray(rng.normal(size=(2048, 128)), jnp.float32)
    for share in (0.01, 0.05, 0.2):
        mask = np.kron(rng.random((64, 64)) < share, np.ones((32, 32)))
        matrix = (mask * rng.normal(size=mask.shape)).astype(np.float32)
        ours, coo = BCSR.from_dense(matrix, (32, 32)), sparse.BCOO.fromdense(matrix)
        blocks = sparse.BCSR.fromdense(matrix)
        full = jnp.asarray(matrix)
        product = jax.jit(lambda a, b: a @ b)
        kernel = jax.jit(bcsr_matmul)
        candidates = {
            "ours": lambda: kernel(ours, dense),  # noqa: B023
            "BCOO": lambda: product(coo, dense),  # noqa: B023
            "jax BCSR": lambda: product(blocks, dense),  # noqa: B023
            "dense": lambda: product(full, dense),  # noqa: B023
        }
        for timing in race(candidates, reference="ours", rounds=3):
            gap = float(jnp.max(jnp.abs(candidates[timing.name]() - full @ dense)))
            table.append(
                {
                    "share": share,
                    "who": timing.name,
                    "ms": 1e3 * timing.seconds,
                    "ratio": timing.ratio,
                    "error": gap,
                }
            )
    return table
