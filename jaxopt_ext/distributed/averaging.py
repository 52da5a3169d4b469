"""Averages over the rounds of a run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ..core import checks
from .algorithm import AbstractNetworkAlgorithm


class _State(eqx.Module):
    params: PyTree[Array]
    inner: Any
    count: Int[Array, " local"]


class RunningAverage(AbstractNetworkAlgorithm):
    """Another algorithm, with each node's mean over the rounds in the place of its parameters,

    $$\\bar x_r = \\bar x_{r-1} + \\frac{1}{r - r_0} (x_r - \\bar x_{r-1}), \\qquad r > r_0,$$

    which leaves less of the noise of minibatches than the last round does.

    **Arguments:**

    - `algorithm`: what runs; it does not see the mean.
    - `burn_in`: $r_0$, rounds before the mean begins; until then it is the last round's.

    **Reference:** Polyak, Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
    """

    algorithm: AbstractNetworkAlgorithm
    burn_in: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        checks.instance("algorithm", self.algorithm, AbstractNetworkAlgorithm, "EXTRA(loss, 0.1)")
        checks.count("burn_in", self.burn_in, minimum=0)

    def init(self, params, batch, network, key):
        inner = self.algorithm.init(params, batch, network, key)
        return _State(inner.params, inner, jnp.zeros_like(network.index(), jnp.int32))

    def round(self, state, batch, network, key):
        inner = self.algorithm.round(state.inner, batch, network, key)
        count = state.count + 1
        terms = jnp.maximum(count[0] - self.burn_in, 1)
        params = jax.tree.map(
            lambda a, x: a + (x - a) / terms.astype(x.real.dtype), state.params, inner.params
        )
        return _State(params, inner, count)

    def bits_per_round(self, params, network):
        return self.algorithm.bits_per_round(params, network)
