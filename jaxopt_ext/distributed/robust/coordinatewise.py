"""Rules that sort each coordinate apart."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...core import checks
from .aggregator import AbstractAggregator, require
from .rows import row_sum

NETWORK = 32
"""Up to so many rows are sorted by a network."""


def ascending(x: Float[Array, "m d"]) -> list[Float[Array, " d"]] | Float[Array, "m d"]:
    """The rows, each coordinate sorted; NaN, and so rows that are absent, counts as largest.

    Few rows go through a sorting network, minima and maxima of whole rows, all of which a compiler
    puts into one loop over the coordinates; a sort of each coordinate apart is a hundred times
    slower. They are a list, for rows stacked would break that loop.
    """
    x = jnp.where(jnp.isnan(x), jnp.inf, x)
    if len(x) > NETWORK:
        return jnp.sort(x, axis=0)
    rows = list(x)
    for i, j in comparators(len(rows)):
        rows[i], rows[j] = jnp.minimum(rows[i], rows[j]), jnp.maximum(rows[i], rows[j])
    return rows


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


def sum_of(rows, chosen: Bool[Array, " m"]) -> Float[Array, " d"]:
    """The sum of the chosen ones of `ascending` rows; the others may hold anything."""
    if isinstance(rows, list):
        none = jnp.zeros_like(rows[0])
        return sum((jnp.where(k, row, 0) for k, row in zip(chosen, rows, strict=True)), none)
    return row_sum(chosen, jnp.where(chosen[:, None], rows, 0))


def median(x, mask):
    """The median of each coordinate, of an even number the mean of the two in the middle."""
    rows, n, place = ascending(x), jnp.sum(mask), jnp.arange(len(x))
    low, high = (sum_of(rows, place == jnp.maximum(i, 0)) for i in ((n - 1) // 2, n // 2))
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
        return sum_of(ascending(x), kept) / jnp.sum(kept).astype(x.dtype)

    def tolerates(self, m):
        return self.f

    def check(self, m):
        require(m > 2 * self.f, self, "m > 2 f", m)
