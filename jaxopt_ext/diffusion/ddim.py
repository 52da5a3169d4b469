"""DDIM, and the ancestral sampler at the other end of its noise."""

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from .denoiser import combine
from .sampler import AbstractSampler


class DDIM(AbstractSampler):
    """Denoising diffusion implicit models,

    $$x_t = \\alpha_t \\hat x_0 + \\sqrt{\\sigma_t^2 - v^2}\\, \\hat\\epsilon + v z, \\qquad
    v = \\eta\\, \\sigma_t \\sqrt{1 - e^{-2h}}, \\quad h = \\lambda_t - \\lambda_s.$$

    With $\\eta = 0$ it is the first-order solver of the probability-flow equation, exact for a
    constant noise prediction. With $\\eta = 1$ it is the ancestral sampler of DDPM, for any
    schedule.

    **Arguments:**

    - `eta`: $\\eta \\in [0, 1]$, how much of the noise is drawn anew.

    **Raises:** `ValueError` if `eta` lies outside [0, 1].

    **Reference:** Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, arXiv:2010.02502.
    """

    eta: float = 0.0

    def __check_init__(self):
        checks.interval("eta", self.eta, 0.0, 1.0)

    @property
    def evaluations_per_step(self):
        return 1

    @property
    def stochastic(self):
        return self.eta > 0

    def coefficients(self, here, there):
        ratio = there.alpha / here.alpha
        # 1 - exp(-2h), which is small for short steps
        gain = np.log(there.alpha / there.sigma) - np.log(here.alpha / here.sigma)
        fresh = self.eta * there.sigma * np.sqrt(-np.expm1(-2 * gain))
        kept = np.sqrt(there.sigma**2 - fresh**2)
        return ratio, kept - here.sigma * ratio, fresh

    def step(self, model, x, here, there, coefficients, key):
        keep, noise, fresh = coefficients
        terms = [(keep, x), (noise, model.noise(x, here))]
        if self.stochastic:
            leaves, treedef = jax.tree.flatten(x)
            keys = jax.random.split(key, len(leaves))
            draw = [
                jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)
            ]
            terms.append((fresh, treedef.unflatten([jnp.asarray(d) for d in draw])))
        return combine(*terms)
