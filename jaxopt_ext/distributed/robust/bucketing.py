"""Bucketing."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core import checks
from .aggregator import AbstractAggregator


class Bucketing(AbstractAggregator):
    """Means of random buckets of $s$ rows, and then another rule on the $\\lceil m/s \\rceil$
    means; the last bucket may be smaller.

    Good rows that differ become more alike; each bad row spoils one bucket at most.

    **Arguments:**

    - `bucket_size`: $s$; static.
    - `rule`: an aggregator for the means.

    **Raises:** `ValueError` from `aggregate` without a key, or if the rule raises.

    **Reference:** Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing, 2022, arXiv:2006.09365.
    """

    bucket_size: int = eqx.field(static=True)
    rule: AbstractAggregator

    def __check_init__(self):
        checks.count("bucket_size", self.bucket_size)
        checks.instance("rule", self.rule, AbstractAggregator, "CoordinateMedian()")

    def combine(self, x, state, pivot, key, mask):
        if key is None:
            raise ValueError("Bucketing draws its buckets and needs a key")
        m, d = x.shape
        buckets = math.ceil(m / self.bucket_size)
        shuffle, later = jax.random.split(key)
        order = jax.random.permutation(shuffle, m)
        missing = buckets * self.bucket_size - m
        there = jnp.pad(mask[order], (0, missing)).reshape(buckets, self.bucket_size, 1)
        x = jnp.pad(x[order], ((0, missing), (0, 0))).reshape(buckets, self.bucket_size, d)
        count = jnp.sum(there, axis=1)
        means = jnp.sum(jnp.where(there, x, 0), axis=1) / count.astype(x.dtype)
        return self.rule.combine(means, state, pivot, later, count[:, 0] > 0)

    def tolerates(self, m):
        return self.rule.tolerates(math.ceil(m / self.bucket_size))

    def check(self, m):
        self.rule.check(math.ceil(m / self.bucket_size))
