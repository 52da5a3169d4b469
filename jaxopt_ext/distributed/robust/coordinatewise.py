"""Rules that sort each coordinate apart."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ...core import checks
from .aggregator import AbstractAggregator, require

NETWORK = 32
"""Up to so many rows are sorted by a network."""


def ascending(x):
    """Each coordinate sorted; NaN, and so rows that are absent, counts as largest.

    Few rows go through a sorting network, layers of minima and maxima of whole rows; a sort of each
    coordinate apart is twenty times slower.
    """
    x = jnp.where(jnp.isnan(x), jnp.inf, x)
    if len(x) > NETWORK:
        return jnp.sort(x, axis=0)
    for layer in layers(len(x)):
        partner, role = np.arange(len(x)), np.zeros((len(x), 1), int)
        for i, j in layer:
            partner[[i, j]], role[i], role[j] = (j, i), -1, 1
        other = x[partner]
        x = jnp.where(role < 0, jnp.minimum(x, other), jnp.where(role, jnp.maximum(x, other), x))
    return x


def layers(n: int) -> list[list[tuple[int, int]]]:
    """The pairs of `comparators` in groups that touch no place twice, as few as their order
    allows."""
    free, found = [0] * n, []
    for i, j in comparators(n):
        level = max(free[i], free[j])
        found += [[] for _ in range(level + 1 - len(found))]
        found[level].append((i, j))
        free[i] = free[j] = level + 1
    return found


def comparators(n: int) -> list[tuple[int, int]]:
    """Batcher's network of merge exchanges: pairs of places to be put in order, one by one."""
    pairs = []
    top = 1 << max((n - 1).bit_length() - 1, 0)
    p = top if n > 1 else 0
    while p:
        q, rest, gap = top, 0, p
        while True:
            pairs += [(i, i + gap) for i in range(n - gap) if i & p == rest]
            if q == p:
                break
            gap, q, rest = q - p, q // 2, p
        p //= 2
    return pairs


def median(x, mask):
    """The median of each coordinate, of an even number the mean of the two in the middle."""
    values, n = ascending(x), jnp.sum(mask)
    low, high = (jnp.take(values, jnp.maximum(i, 0), axis=0) for i in ((n - 1) // 2, n // 2))
    return low / 2 + high / 2


class CoordinateMedian(AbstractAggregator):
    """The median of each coordinate; of an even number of rows the mean of the two in the middle.

    It withstands any $f < m/2$ rows, NaN and infinities included, but is biased where rows are
    skewed.

    **Reference:** Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates, 2018, arXiv:1803.01498.
    """

    def combine(self, x, state, pivot, key, mask):
        return median(x, mask)

    def tolerates(self, m):
        return (m - 1) // 2


class TrimmedMean(AbstractAggregator):
    """The mean of each coordinate without its $f$ largest and $f$ smallest values.

    **Arguments:**

    - `f`: the number of bad rows, of which $m > 2f$ are needed; static.

    **Raises:** `ValueError` from `aggregate` if $m \\le 2f$.

    **Reference:** Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates, 2018, arXiv:1803.01498.
    """

    f: int = eqx.field(static=True)

    def __check_init__(self):
        checks.count("f", self.f, 0)

    def combine(self, x, state, pivot, key, mask):
        n = jnp.sum(mask)
        place = jnp.arange(len(x))
        kept = (place >= self.f) & (place < n - self.f)
        total = jnp.sum(jnp.where(kept[:, None], ascending(x), 0), axis=0)
        return total / jnp.sum(kept).astype(x.dtype)

    def tolerates(self, m):
        return self.f

    def check(self, m):
        require(m > 2 * self.f, self, "m > 2 f", m)
