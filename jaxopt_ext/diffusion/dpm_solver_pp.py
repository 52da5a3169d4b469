"""DPM-Solver++: exponential integrators in the predicted data, and with noise."""

import numpy as np

from . import exponential
from .denoiser import combine
from .exponential import AbstractForm, DataForm
from .sampler import AbstractSampler, ends, gaussian
from .stepping import AbstractExponentialSampler, AbstractStepping, MultiStep


class DPMSolverPP(AbstractExponentialSampler):
    """Solves the probability-flow equation in the predicted data, expanded in
    $\\lambda = \\log(\\alpha/\\sigma)$,

    $$x_t = \\tfrac{\\sigma_t}{\\sigma_s} x_s
    + \\sigma_t \\int_{\\lambda_s}^{\\lambda_t} e^{\\lambda} \\hat x_0(x_\\lambda)\\, d\\lambda,
    \\qquad \\text{order 2, multistep:}\\quad
    x_t = \\tfrac{\\sigma_t}{\\sigma_s} x_s + \\alpha_t (1 - e^{-h})
    \\big(m_0 + \\tfrac{1}{2 r_0} (m_0 - m_1)\\big),$$

    $m_0, m_1$ the data predicted at the step's beginning and the one before. Order 1 is `DDIM()`.

    Made for strong guidance, under which orders 2 and 3 in the predicted noise are unstable;
    predicted data can be kept in their range, see `Guided` and `Thresholded`.

    **Arguments:**

    - `steps`: `MultiStep(order)`, with one evaluation a step, or `SingleStep(order)`, with order of
      them.

    **Raises:** `TypeError` if `steps` is neither.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: Fast Solver for Guided Sampling of
    Diffusion Probabilistic Models, 2022, arXiv:2211.01095.
    """

    steps: AbstractStepping = MultiStep(2)

    @property
    def form(self):
        return DataForm()


class _NoisyDataForm(AbstractForm):
    """The predicted data in the reverse equation with noise: as without, over twice the h."""

    def evaluate(self, model, x, node):
        return model.data(x, node)

    def linear(self, here, there):
        h = exponential.gap(here, there)
        decay = here.alpha / here.sigma * (there.sigma / there.alpha)  # exp(-h)
        return there.sigma / here.sigma * decay, 2 * there.alpha * h, -2 * h

    def constant(self, here, there):
        decay = here.alpha / here.sigma * (there.sigma / there.alpha)
        return there.sigma / here.sigma * decay, there.alpha * (1 - decay**2)

    def variables(self, node):
        return node.sigma**2 / node.alpha, (node.alpha / node.sigma) ** 2


class SDEDPMSolverPP(AbstractSampler):
    """DPM-Solver++ for the reverse equation with noise,

    $$x_t = \\tfrac{\\sigma_t}{\\sigma_s} e^{-h} x_s + \\alpha_t (1 - e^{-2h}) D
    + \\sigma_t \\sqrt{1 - e^{-2h}}\\, z, \\qquad z \\sim N(0, I),$$

    with D = $m_0$ for order 1 and $m_0 + (m_0 - m_1)/(2 r_0)$ for order 2, as in `DPMSolverPP`.
    Order 1 is the ancestral sampler `DDIM(1.0)`.

    **Arguments:**

    - `steps`: `MultiStep(order)`.

    **Raises:** `TypeError` if `steps` is no `MultiStep`.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: Fast Solver for Guided Sampling of
    Diffusion Probabilistic Models, 2022, arXiv:2211.01095.
    """

    steps: MultiStep = MultiStep(2)

    def __check_init__(self):
        if not isinstance(self.steps, MultiStep):
            raise TypeError(f"steps must be a MultiStep, got {self.steps!r}")

    @property
    def stochastic(self):
        return True

    @property
    def reaches_zero(self):
        return True

    def evaluations(self, num_steps):
        return self.steps.evaluations(num_steps)

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        decay = here.alpha / here.sigma * (there.sigma / there.alpha)
        fresh = there.sigma * np.sqrt(1 - decay**2)
        return self.steps.plan(_NoisyDataForm(), schedule, times), fresh

    def start(self, model, x, node):
        return self.steps.start(x)

    def step(self, model, x, memory, row, key):
        row, fresh = row
        moved, memory = self.steps.step(_NoisyDataForm(), model, x, memory, row)
        return combine((1.0, moved), (fresh, gaussian(x, key))), memory
