"""Guidance by the gradient of what the denoised estimate would be measured as."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import checks, tree
from .consistency import AbstractConsistency, Projection
from .ddim import DDIM
from .denoiser import Sample, combine
from .measurement import AbstractMeasurement, Measured
from .posterior import AbstractGuidedSampler, descent, noised
from .sampler import AbstractSampler


class MCG(AbstractGuidedSampler):
    r"""Manifold constrained gradients. A step from s to t is one of the sampler, $x'$, then

    $$x_t = C\big(x' - w\, \nabla_{x_s} \|W(y - H \hat x_0(x_s))\|,\; y_t\big), \qquad
    y_t = \alpha_t y + \sigma_t H z,$$

    with the gradient through the network, W the measurement's `weigh`, and C the consistency:
    for `Projection()`, $C(x, y_t) = (I - H^+ H) x + H^+ y_t$. For data on a subspace with an exact
    denoiser the gradient lies in the subspace, so that the correction does not leave the manifold
    of noisy data, which projections alone do.

    In inpainting and tomography a weight about 1 is the authors' choice, in colorization 0.1;
    tomography has `Kaczmarz()`. With weight 0 it is the projected sampler of score-based models;
    with `Unconstrained()` it is diffusion posterior sampling. It is no exact sampler of the
    posterior, and pulls past it for large weights. The norm is each sample's own.

    The network's derivative is one pass back at a time: a network too large for that checkpoints
    its blocks itself.

    **Arguments:**

    - `measurement`: H, of one sample.
    - `y`: what was measured, of one sample, or with the leading axes of x.
    - `sampler`: whose steps are guided; it must evaluate the model where its steps begin.
    - `weight`: $w \ge 0$.
    - `squared`: the gradient of the square of the norm instead, as in the paper's text; the norm is
      that of the authors' program. Where it is zero, so is its gradient.
    - `consistency`: `Projection()`, `Transpose()`, `Kaczmarz()` or `Unconstrained()`.
    - `batch_ndim`: how many leading axes of x count samples.

    **Raises:** `ValueError` if `weight` is negative; `TypeError` for objects of other kinds.

    **Reference:** Chung, Sim, Ryu, Ye, Improving Diffusion Models for Inverse Problems using
    Manifold Constraints, 2022, arXiv:2206.00941; Song et al., Score-Based Generative Modeling
    through Stochastic Differential Equations, 2021, arXiv:2011.13456 (weight 0); Chung, Kim,
    McCann, Klasky, Ye, Diffusion Posterior Sampling for General Noisy Inverse Problems, 2023,
    arXiv:2209.14687 (`Unconstrained()`).
    """

    measurement: AbstractMeasurement
    y: Measured
    sampler: AbstractSampler = DDIM(eta=1.0)
    weight: Float[Array, ""] | float = eqx.field(converter=checks.scalar, default=1.0)
    squared: bool = eqx.field(static=True, default=False)
    consistency: AbstractConsistency = Projection()
    batch_ndim: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.nonnegative("weight", self.weight)
        checks.instance("consistency", self.consistency, AbstractConsistency, "Projection()")

    @property
    def stochastic(self):
        return self.sampler.stochastic or self.consistency.looks

    def guide(self, model, x, here, there, advance, key):
        def miss(data):
            return jnp.sum(self.each(lambda m, y: self._distance(m, y))(data, self.y))

        step, measured = jax.random.split(key)
        new, memory, slope = descent(model, x, here, miss, advance, step)
        agree = lambda x, slope, y, key: self._agree(x, slope, y, there, key)
        return self.each(agree)(new, slope, self.y, self.keys(measured)), memory

    def _distance(self, data: Sample, y: Measured) -> Array:
        gap = combine((1, y), (-1, self.measurement.forward(data)))
        length = tree.norm(self.measurement.weigh(gap))
        return length**2 if self.squared else length

    def _agree(self, x, slope, y, there, key):
        slope = self.consistency.free(self.measurement, slope)
        x = combine((1, x), (-self.weight, slope))
        if self.consistency.looks:
            y = noised(self.measurement, x, y, there, key)
        return self.consistency.impose(self.measurement, x, y, there)
