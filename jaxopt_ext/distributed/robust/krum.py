"""Krum and multi-Krum."""

import equinox as eqx
import jax.numpy as jnp

from ...core import checks
from .aggregator import AbstractAggregator, require
from .rows import finite_rows, mean_of, pairwise, ranks


class Krum(AbstractAggregator):
    """The mean of the $q$ rows that lie closest to their neighbours.

    The score of a row is the sum of its $m - f - 2$ smallest squared distances to others; the rows
    of least score are kept, of equals the first.

    **Arguments:**

    - `f`: the number of bad rows, of which $m \\ge 2f + 3$ are needed; static.
    - `q`: how many rows are kept: 1 is Krum, up to $m - f$ multi-Krum; static.

    **Raises:** `ValueError` from `aggregate` if $m < 2f + 3$ or $q > m - f$.

    **Reference:** Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries:
    Byzantine Tolerant Gradient Descent, 2017, arXiv:1703.02757.
    """

    f: int = eqx.field(static=True)
    q: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.count("f", self.f, 0)
        checks.count("q", self.q)

    def combine(self, x, state, pivot, key, mask):
        m = len(x)
        near = jnp.where(jnp.eye(m, dtype=bool), jnp.inf, pairwise(x))
        near = jnp.sort(near, axis=1)
        used = jnp.arange(m) < jnp.sum(mask) - self.f - 2
        # In units of the row that is closest to its neighbours its squares cannot overflow.
        unit = jnp.min(jnp.max(jnp.where(used, near, 0), axis=1))
        unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
        score = jnp.sum(jnp.where(used, (near / unit) ** 2, 0), axis=1)
        score = jnp.where(finite_rows(x) & jnp.any(used), score, jnp.inf)
        kept = ranks(score) < self.q
        enough = jnp.sum(mask) >= jnp.maximum(2 * self.f + 3, self.q + self.f)
        return jnp.where(enough, mean_of(x, kept), jnp.nan)

    def tolerates(self, m):
        return self.f

    def check(self, m):
        require(m >= 2 * self.f + 3, self, "m >= 2 f + 3", m)
        require(self.q <= m - self.f, self, "q <= m - f", m)
