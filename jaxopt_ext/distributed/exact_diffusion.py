"""Exact diffusion."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from ..core import checks
from .algorithm import AbstractGradientAlgorithm, Loss


class _DiffusionState(eqx.Module):
    params: PyTree[Array]
    previous: PyTree[Array]


class ExactDiffusion(AbstractGradientAlgorithm):
    """Exact diffusion, which adapts, corrects and combines,

    $$\\psi^+ = x - \\alpha \\nabla f(x), \\qquad \\phi = \\psi^+ + x - \\psi, \\qquad
      x \\leftarrow \\tfrac12 (I + W) \\phi, \\qquad \\psi_0 = x_0 .$$

    One value travels along each edge in a round; it is stable for larger step sizes than `EXTRA`.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha > 0$.

    **Reference:** Yuan, Ying, Zhao, Sayed, Exact Diffusion for Distributed Optimization and
    Learning, 2019, arXiv:1702.05122.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def init(self, params, batch, network, key):
        return _DiffusionState(params, params)

    def round(self, state, batch, network, key):
        adapted = self.descend(state.params, self.gradients(state.params, batch))
        corrected = jax.tree.map(lambda a, x, p: a + x - p, adapted, state.params, state.previous)
        mixed = network.mix(corrected)
        params = jax.tree.map(lambda a, b: 0.5 * (a + b), corrected, mixed)
        return _DiffusionState(params, adapted)
