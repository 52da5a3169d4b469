"""Averages of nearest neighbours."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import checks
from .aggregator import AbstractAggregator, require
from .rows import distances, finite_rows, mean_of, pairwise, ranks


class NNA(AbstractAggregator):
    """Nearest-neighbour averaging: the mean of the $m - f$ rows nearest to the pivot, of equals the
    first.

    The pivot is the row of the node that aggregates, itself one of the rows; so it counts. Of rows
    that are absent, none counts: of $n \\le m$ that are there, the $n - f$ nearest are averaged.

    **Arguments:**

    - `f`: the number of bad rows, of which $m > 2f$ are needed; static.

    **Raises:** `ValueError` from `aggregate` if $m \\le 2f$, or without a pivot.

    **Reference:** Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative
    Learning with Linear Gradient Overhead, 2023, arXiv:2210.00253.
    """

    f: int = eqx.field(static=True)

    def __check_init__(self):
        checks.count("f", self.f, 0)

    def combine(self, x, state, pivot, key, mask):
        if pivot is None:
            raise ValueError("NNA needs a pivot, the row of the node that aggregates")
        kept = ranks(distances(x, pivot)) < jnp.sum(mask) - self.f
        return mean_of(x, kept)

    def tolerates(self, m):
        return self.f

    def check(self, m):
        require(m > 2 * self.f, self, "m > 2 f", m)


class NNM(AbstractAggregator):
    """Nearest-neighbour mixing: each row is replaced by the mean of the $m - f$ rows nearest to it,
    itself included, and then another rule is applied.

    **Arguments:**

    - `f`: the number of bad rows, of which $m > 2f$ are needed; static.
    - `rule`: an aggregator.

    **Raises:** `ValueError` from `aggregate` if $m \\le 2f$, or if the rule raises.

    **Reference:** Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, Fixing by Mixing: A
    Recipe for Optimal Byzantine ML under Heterogeneity, 2023, arXiv:2302.01772.
    """

    f: int = eqx.field(static=True)
    rule: AbstractAggregator

    def __check_init__(self):
        checks.count("f", self.f, 0)
        checks.instance("rule", self.rule, AbstractAggregator, "CoordinateMedian()")

    def combine(self, x, state, pivot, key, mask):
        kept = jax.vmap(ranks)(pairwise(x)) < jnp.sum(mask) - self.f
        finite = finite_rows(x)
        clean = jnp.where(finite[:, None], x, 0)
        total = jnp.matmul(kept.astype(x.dtype), clean, precision=jax.lax.Precision.HIGHEST)
        mixed = total / jnp.sum(kept, axis=1, keepdims=True).astype(x.dtype)
        whole = finite & ~jnp.any(kept & ~finite, axis=1)
        mixed = jnp.where(whole[:, None], mixed, jnp.nan)
        return self.rule.combine(mixed, state, pivot, key, mask)

    def tolerates(self, m):
        return min(self.f, self.rule.tolerates(m))

    def check(self, m):
        require(m > 2 * self.f, self, "m > 2 f", m)
        self.rule.check(m)
