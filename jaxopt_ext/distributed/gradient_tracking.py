"""Gradient tracking."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from ..core import checks
from .algorithm import AbstractGradientAlgorithm, Loss, model_bits
from .network import Channel


class _State(eqx.Module):
    params: PyTree[Array]
    tracker: PyTree[Array]
    gradient: PyTree[Array]


def _two_values(params, network):
    """Parameters and tracker travel."""
    return 2 * network.max_degree * model_bits(params)


def _track(tracker, new, old):
    return jax.tree.map(lambda y, g, h: y + g - h, tracker, new, old)


class GradientTracking(AbstractGradientAlgorithm):
    """DIGing: each node tracks the average gradient, so a constant step size reaches the exact
    optimum at a linear rate,

    $$x \\leftarrow W x - \\alpha y, \\qquad
      y \\leftarrow W y + \\nabla f(x^+) - \\nabla f(x), \\qquad y_0 = \\nabla f(x_0).$$

    Two values travel along each edge in a round. Batches must be the same in each round for the
    exact limit.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha > 0$.
    - `channel`: what links do to messages, see `Network.mix`; `None` if nothing. The tracker adds
      up all noise: `VRADGT` does not.

    **Reference:** Nedić, Olshevsky, Shi, Achieving Geometric Convergence for Distributed
    Optimization over Time-Varying Graphs, 2017, arXiv:1607.03218.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    channel: Channel | None = None

    def init(self, params, batch, network, key):
        gradient = self.gradients(params, batch)
        return _State(params, gradient, gradient)

    def round(self, state, batch, network, key):
        values = state.params, state.tracker
        params, tracker = network.mix(values, channel=self.channel, key=key)
        params = self.descend(params, state.tracker)
        gradient = self.gradients(params, batch)
        tracker = _track(tracker, gradient, state.gradient)
        return _State(params, tracker, gradient)

    def bits_per_round(self, params, network):
        return _two_values(params, network)


class AdaptThenCombineTracking(AbstractGradientAlgorithm):
    """Gradient tracking that mixes after the step,

    $$x \\leftarrow W (x - \\alpha y), \\qquad
      y \\leftarrow W (y + \\nabla f(x^+) - \\nabla f(x)).$$

    It bears larger step sizes than `GradientTracking`.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha > 0$.

    **Reference:** Xu, Zhu, Soh, Xie, Augmented Distributed Gradient Methods for Multi-Agent
    Optimization under Uncoordinated Constant Stepsizes, 2015.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def init(self, params, batch, network, key):
        gradient = self.gradients(params, batch)
        return _State(params, gradient, gradient)

    def round(self, state, batch, network, key):
        params = network.mix(self.descend(state.params, state.tracker))
        gradient = self.gradients(params, batch)
        tracker = network.mix(_track(state.tracker, gradient, state.gradient))
        return _State(params, tracker, gradient)

    def bits_per_round(self, params, network):
        return _two_values(params, network)
