"""Averaging of the closest subset, by brute force."""

import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ...core import checks
from ...core.rows import average
from .aggregator import AbstractAggregator, require
from .rows import pairwise

LARGEST = 15


class MinimumVariance(AbstractAggregator):
    """The mean of the $m - f$ rows of least variance, of all subsets of that size the first.

    It looks at all $\\binom{m}{f}$ of them, and so is a yardstick for other rules, for $m \\le 15$.
    An absent row counts among the $f$.

    **Arguments:**

    - `f`: the number of bad rows, of which $m > 2f$ are needed; static.

    **Raises:** `ValueError` from `aggregate` if $m \\le 2f$ or $m > 15$.

    **Reference:** El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning
    in Byzantium, 2018, arXiv:1802.07927.
    """

    f: int = eqx.field(static=True)

    def __check_init__(self):
        checks.count("f", self.f, 0)

    def combine(self, x, state, pivot, key, mask):
        m = len(x)
        subsets = np.array(list(itertools.combinations(range(m), m - self.f)))
        near = pairwise(x)
        # In units in which the squares of the good rows cannot overflow.
        unit = jnp.min(jnp.sort(near, axis=1)[:, m - self.f - 1])
        unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
        squares = (near / unit) ** 2
        score = jnp.sum(squares[subsets[:, :, None], subsets[:, None, :]], axis=(1, 2))
        best = jnp.asarray(subsets)[jnp.argmin(score)]
        return average(x[best])

    def tolerates(self, m):
        return self.f

    def check(self, m):
        require(m > 2 * self.f, self, "m > 2 f", m)
        require(m <= LARGEST, self, f"m <= {LARGEST}", m)
