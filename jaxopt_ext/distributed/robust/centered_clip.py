"""Centered clipping."""

import equinox as eqx
import jax.numpy as jnp

from ...core import Scalar, checks, loops
from .aggregator import AbstractAggregator
from .rows import finite_rows, row_norms, row_sum, squared_distances, sums_in_range


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
        def move(v, tau):
            squares = squared_distances(x, v)
            weight = jnp.minimum(1, tau / jnp.sqrt(squares))
            safe = sums_in_range(squares, x.shape[1]) & (weight >= jnp.finfo(x.dtype).tiny)
            total = loops.cond(
                jnp.all(safe),
                lambda: row_sum(weight, x - v),
                lambda: row_sum(jnp.ones(len(x)), _clipped(x, v, tau)),
            )
            return total / len(x)

        return self._iterate(x, state, move)

    def combine_over(self, network, x, state, pivot, key, mask):
        return self._iterate(x, state, lambda v, tau: network.mean(_clipped(x, v, tau))[0])

    def _iterate(self, x, state, move):
        step = lambda _, v: v + move(v, self.tau.astype(x.dtype))
        start = jnp.zeros_like(x[0]) if state is None else state.astype(x.dtype)
        if self.iterations == 1:  # nothing is fused with what stands in a loop
            return step(0, start)
        return loops.fori_loop(0, self.iterations, step, start)

    @property
    def exchanges(self):
        return self.iterations

    def tolerates(self, m):
        return (m - 1) // 2


def _clipped(x, v, tau):
    """The differences to $v$, each drawn to within $\\tau$ of zero."""
    gap = jnp.where(finite_rows(x)[:, None], x - v, 0)
    norm = row_norms(gap)[:, None]
    # Multiplying by tau / norm, which may vanish, would lose a direction.
    return jnp.where(norm <= tau, gap, gap / jnp.where(norm > 0, norm, 1) * tau)
