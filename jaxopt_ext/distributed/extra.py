"""EXTRA."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import checks
from .algorithm import AbstractGradientAlgorithm, Loss


class _CorrectedState(eqx.Module):
    params: PyTree[Array]
    previous: PyTree[Array]
    gradient: PyTree[Array]
    steps: Array


class EXTRA(AbstractGradientAlgorithm):
    """EXTRA, the exact first-order algorithm,

    $$x_1 = W x_0 - \\alpha \\nabla f(x_0), \\qquad
      x_{k+1} = x_k + W x_k - \\tfrac12 (x_{k-1} + W x_{k-1})
        - \\alpha (\\nabla f(x_k) - \\nabla f(x_{k-1})).$$

    One value travels along each edge in a round.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha > 0$.

    **Reference:** Shi, Ling, Wu, Yin, EXTRA: An Exact First-Order Algorithm for Decentralized
    Consensus Optimization, 2015, arXiv:1404.6264.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def init(self, params, batch, network, key):
        zero = jax.tree.map(jnp.zeros_like, params)
        steps = jnp.zeros(jax.tree.leaves(params)[0].shape[0], jnp.int32)
        return _CorrectedState(params, zero, zero, steps)

    def round(self, state, batch, network, key):
        # `previous` holds (x + W x) / 2 of the last round, so one mixing is enough. In the first
        # round there is none, and x_0 itself is what the correction lacks.
        first = (state.steps == 0)[0]
        mixed = network.mix(state.params)
        gradient = self.gradients(state.params, batch)
        half = jax.tree.map(lambda a, b: 0.5 * (a + b), state.params, mixed)
        base = jax.tree.map(
            lambda x, w, p: w + jnp.where(first, 0, x - p), state.params, mixed, state.previous
        )
        change = jax.tree.map(jnp.subtract, gradient, state.gradient)
        return _CorrectedState(self.descend(base, change), half, gradient, state.steps + 1)
