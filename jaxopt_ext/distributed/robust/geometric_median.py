"""The geometric median."""

import equinox as eqx
import jax.numpy as jnp

from ...core import Scalar, checks, loops, scalar_field
from .aggregator import AbstractAggregator
from .coordinatewise import median
from .rows import distances, weighted_sum


class GeometricMedian(AbstractAggregator):
    """The point of least sum of distances to the rows, by smoothed Weiszfeld steps,

    $$z \\leftarrow \\frac{\\sum_i w_i x_i}{\\sum_i w_i}, \\qquad
      w_i = \\frac{1}{\\max(\\nu, \\|x_i - z\\|)}.$$

    It starts from the median of each coordinate: from the mean, which one row moves anywhere, a few
    steps do not come back. Rows that are not finite count as absent.

    **Arguments:**

    - `num_steps`: static.
    - `smoothing`: $\\nu > 0$.

    **Reference:** Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning, 2022,
    arXiv:1912.13445.
    """

    num_steps: int = eqx.field(static=True, default=8)
    smoothing: Scalar = scalar_field(1e-6)

    def __check_init__(self):
        checks.count("num_steps", self.num_steps)
        checks.positive("smoothing", self.smoothing)

    def combine(self, x, state, pivot, key, mask):
        def step(_, z):
            weight = 1 / jnp.maximum(self.smoothing.astype(x.dtype), distances(x, z))
            return weighted_sum(weight / jnp.sum(weight), x)

        return loops.fori_loop(0, self.num_steps, step, median(x, mask))

    def tolerates(self, m):
        return (m - 1) // 2
