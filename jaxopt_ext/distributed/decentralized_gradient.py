"""Decentralized gradient descent."""

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from ..core import checks
from .algorithm import AbstractGradientAlgorithm, Loss


class _PlainState(eqx.Module):
    params: PyTree[Array]


class DecentralizedGradient(AbstractGradientAlgorithm):
    """Decentralized gradient descent, $x \\leftarrow W x - \\alpha \\nabla f(x)$.

    With a constant step size it stops at a distance of order $\\alpha$ from the optimum: the
    baseline of the exact methods.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha > 0$.

    **Reference:** Nedić, Ozdaglar, Distributed Subgradient Methods for Multi-Agent Optimization,
    2009.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def init(self, params, batch, network, key):
        return _PlainState(params)

    def round(self, state, batch, network, key):
        gradient = self.gradients(state.params, batch)
        return _PlainState(self.descend(network.mix(state.params), gradient))
