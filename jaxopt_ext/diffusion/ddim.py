"""DDIM, and the ancestral sampler at the other end of its noise."""

import numpy as np

from ..core import checks
from .denoiser import combine
from .sampler import AbstractSampler, ends, gaussian
from .schedules import Coefficients, Node


def posterior_deviation(here: Node, there: Node) -> Coefficients:
    """$\\sigma_t \\sqrt{1 - e^{-2h}}$, the noise that ancestral sampling draws in a step."""
    # exp(-2h); 1 less it is the share of the noise that is new since the step's end
    decay = (here.alpha / here.sigma * there.sigma / there.alpha) ** 2
    return there.sigma * np.sqrt(1 - decay)


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
    def stochastic(self):
        return self.eta > 0

    @property
    def reaches_zero(self):
        return True

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        ratio = there.alpha / here.alpha
        fresh = self.eta * posterior_deviation(here, there)
        kept = np.sqrt(there.sigma**2 - fresh**2)
        return here, ratio, kept - here.sigma * ratio, fresh

    def step(self, model, x, memory, row, key):
        node, keep, noise, fresh = row
        terms = [(keep, x), (noise, model.noise(x, node))]
        if self.stochastic:
            terms.append((fresh, gaussian(x, key)))
        return combine(*terms), memory
