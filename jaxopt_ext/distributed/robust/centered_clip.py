"""Centered clipping."""

import equinox as eqx
import jax.numpy as jnp

from ...core import Scalar, checks, loops
from .aggregator import AbstractAggregator
from .rows import finite_rows, row_norms, row_sum


class CenteredClip(AbstractAggregator):
    """The mean of the rows, each drawn to within $\\tau$ of the last result: repeatedly

    $$v \\leftarrow v + \\frac1m \\sum_i (x_i - v) \\min(1, \\tau / \\|x_i - v\\|).$$

    It starts from `state`, the result of the round before, or at zero. No bad row moves it by more
    than $\\tau/m$ a step. A row that is absent or not finite contributes nothing, but still counts
    in $m$. All rows are averaged, so that a network can do it without gathering them.

    **Arguments:**

    - `tau`: $\\tau > 0$, in the units of the rows: a little above the spread of the good ones;
      infinity gives the mean.
    - `iterations`: how often; static.

    **Raises:** `ValueError` if $\\tau \\le 0$.

    **Reference:** Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization,
    2021, arXiv:2012.10333.
    """

    tau: Scalar = eqx.field(converter=checks.scalar)
    iterations: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.interval("tau", self.tau, 0, jnp.inf, open_low=True)
        checks.count("iterations", self.iterations)

    def combine(self, x, state, pivot, key, mask):
        return self._iterate(x, state, lambda rows: row_sum(jnp.ones(len(x)), rows) / len(x))

    def combine_over(self, network, x, state, pivot, key, mask):
        return self._iterate(x, state, lambda rows: network.mean(rows)[0])

    def _iterate(self, x, state, mean):
        tau = self.tau.astype(x.dtype)
        there = finite_rows(x)[:, None]

        def step(_, v):
            gap = jnp.where(there, x - v, 0)
            norm = row_norms(gap)[:, None]
            # Multiplying by tau / norm, which may vanish, would lose a direction.
            clipped = jnp.where(norm <= tau, gap, gap / jnp.where(norm > 0, norm, 1) * tau)
            return v + mean(clipped)

        start = jnp.zeros_like(x[0]) if state is None else state.astype(x.dtype)
        if self.iterations == 1:  # nothing is fused with what stands in a loop
            return step(0, start)
        return loops.fori_loop(0, self.iterations, step, start)

    @property
    def exchanges(self):
        return self.iterations

    def tolerates(self, m):
        return (m - 1) // 2
