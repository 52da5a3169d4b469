"""The flag aggregator."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...core import checks, loops
from .aggregator import AbstractAggregator
from .rows import finite_rows, ravel_rows, row_norms

HIGHEST = jax.lax.Precision.HIGHEST


class Flag(AbstractAggregator):
    """The mean of the rows, projected on a subspace that most of them lie close to.

    The quality of a row $g_i$ in a subspace with orthonormal basis $Y$ of $q$ columns is
    $v_i = \\|Y'g_i\\|^2/\\|g_i\\|^2$, and $v_{ij}$ that of $g_i - g_j$. The basis minimizes

    $$\\sum_i (1 - v_i)^\\beta + \\frac{\\lambda}{m(m-1)} \\sum_{i \\ne j} (1 - v_{ij})^\\beta$$

    by reweighted singular vectors: column $u$ of unit length is multiplied with
    $(1 - \\|Y'u\\|^2 + \\epsilon)^{(\\beta - 1)/2}$, $\\epsilon = 10^{-7}$, and $Y$ becomes the $q$
    left singular vectors of largest singular value, starting from those of the rows alone. The best
    $Y$ is kept, and the result is $\\frac1m \\sum_i Y Y' g_i$. Everything is computed from products
    of the columns, never from a matrix $d \\times d$.

    Rows that are zero, absent or not finite take no part in the choice of the subspace; the latter
    two not in the mean either. Large rows outside of the subspace shrink, but do not vanish, and a
    subspace of more dimensions than the good rows need has room for bad ones, at their full length:
    bound rows first, use a small `q`, or train with `RobustSGD` and `normalized`, which gives no
    row more than the length one.

    **Arguments:**

    - `q`: dimension of the subspace; $\\lceil (m + 1)/2 \\rceil$ if `None`, and from $m$ on the
      mean of all rows; static. It has room for as many bad rows as it exceeds the rank of the good
      ones: choose it small where these are nearly parallel.
    - `lam`: $\\lambda \\ge 0$; static, since 0 leaves out the pairs.
    - `iters`: how often columns are reweighted; static.
    - `beta_shape`: $\\beta \\in (0, 1]$; 1 is the subspace of the singular vectors; static.
    - `random_start`: whether the first weights come from a random subspace, as in the authors'
      code, rather than from the singular vectors of the rows; it needs a key; static.
    - `normalized`: whether to project unit rows and to divide by $q$ instead of $m$; static.

    **Reference:** Almasi, Mishra, Vamanan, Ravi, Flag Aggregator: Scalable Distributed Training
    under Failures and Augmented Losses using Convex Optimization, 2024, arXiv:2302.05865.
    """

    q: int | None = eqx.field(static=True, default=None)
    lam: float = eqx.field(static=True, default=0.0)
    iters: int = eqx.field(static=True, default=5)
    beta_shape: float = eqx.field(static=True, default=0.5)
    normalized: bool = eqx.field(static=True, default=False)
    random_start: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.q is not None:
            checks.count("q", self.q)
        checks.nonnegative("lam", self.lam)
        checks.finite("lam", self.lam)
        checks.count("iters", self.iters, 1 if self.random_start else 0)
        checks.interval("beta_shape", self.beta_shape, 0, 1, open_low=True)

    def combine(self, x, state, pivot, key, mask):
        fit = self._fit(x, key)
        norms = row_norms(fit.clean)
        size = self._size(len(x))
        weight = jnp.where(norms > 0, 1, 0).astype(norms.dtype) / size if self.normalized else norms
        if not self.normalized:
            weight = weight / jnp.sum(fit.there).astype(norms.dtype)
        # The columns times these coefficients are Y Y' of the weighted sum of unit rows.
        inner = _dot(fit.gram[:, : len(x)], weight)
        coefficients = _dot(fit.basis, _dot(fit.basis.T, inner))
        result = _dot(coefficients, fit.columns)
        return jnp.where(jnp.any(fit.there), result, jnp.nan).astype(x.dtype)

    def qualities(self, rows, key=None):
        """$v_i$ of each row in the fitted subspace, $(m,)$; 0 for a row that takes no part."""
        x = ravel_rows(rows)[0]
        self.check(len(x))
        fit = self._fit(x, key)
        return _quality(fit.gram, fit.basis)[: len(x)]

    def tolerates(self, m):
        return 0

    def _size(self, m):
        return math.ceil((m + 1) / 2) if self.q is None else self.q

    def _fit(self, x, key):
        m = len(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # eigenvalues need that much
        there = finite_rows(x)
        clean = jnp.where(there[:, None], x, 0)
        columns = _unit(clean)
        prior = jnp.ones(m, x.dtype)
        if self.lam > 0 and m > 1:
            i, j = np.triu_indices(m, 1)
            both = (there[i] & there[j])[:, None]
            columns = jnp.concatenate([columns, _unit(jnp.where(both, clean[i] - clean[j], 0))])
            # An unordered pair stands for two.
            n = jnp.sum(there).astype(x.dtype)
            pair = 2 * self.lam / jnp.maximum(n * (n - 1), 1)
            prior = jnp.concatenate([prior, jnp.broadcast_to(pair, len(i))])
        gram = _dot(columns, columns.T)
        q = min(self._size(m), len(columns))
        # A column that takes no part is zero.
        inside = jnp.diagonal(gram) > 0.5

        def objective(basis):
            rest = jnp.clip(1 - _quality(gram, basis), 0, 1)
            return jnp.sum(jnp.where(inside, prior * rest**self.beta_shape, 0))

        def reweighted(quality):
            rest = jnp.clip(1 - quality, 0, 1)
            weight = jnp.sqrt(prior) * (rest + 1e-7) ** ((self.beta_shape - 1) / 2)
            return _basis(gram, weight, q)

        def step(_, carry):
            basis, best, value = carry
            basis = reweighted(_quality(gram, basis))
            new = objective(basis)
            better = new < value
            return basis, jnp.where(better, basis, best), jnp.where(better, new, value)

        iters = self.iters
        if self.random_start:
            if key is None:
                raise ValueError("Flag draws its first subspace and needs a key")
            first = reweighted(_random_quality(columns, min(q, x.shape[1]), key))
            iters -= 1
        else:
            first = _basis(gram, jnp.asarray(np.arange(len(columns)) < m, x.dtype), q)
        start = (first, first, objective(first))
        basis = loops.fori_loop(0, iters, step, start)[1]
        return _Fit(there, clean, columns, gram, basis)


class _Fit(eqx.Module):
    there: jax.Array
    clean: jax.Array
    columns: jax.Array
    """Of unit length, as rows."""
    gram: jax.Array
    basis: jax.Array
    """Coefficients of an orthonormal basis in the columns."""


def _dot(a, b):
    return jnp.matmul(a, b, precision=HIGHEST)


def _unit(x):
    norm = row_norms(x)[:, None]
    return x / jnp.where(norm > 0, norm, 1)


def _quality(gram, basis):
    return jnp.clip(jnp.sum(_dot(basis.T, gram) ** 2, axis=0), 0, 1)


def _random_quality(columns, q, key):
    """Of the columns in a subspace drawn uniformly."""
    normal = jax.random.normal(key, (columns.shape[1], q), columns.dtype)
    return jnp.sum(_dot(columns, jnp.linalg.qr(normal)[0]) ** 2, axis=1)


def _basis(gram, weight, q):
    """Coefficients of the `q` leading left singular vectors of the weighted columns."""
    values, vectors = jnp.linalg.eigh(weight[:, None] * gram * weight)
    values, vectors = values[-q:], vectors[:, -q:]
    # Directions that rounding made up are none.
    floor = len(gram) * jnp.finfo(gram.dtype).eps * values[-1]
    scale = jnp.where(values > floor, 1 / jnp.sqrt(jnp.where(values > floor, values, 1)), 0)
    return weight[:, None] * vectors * scale
