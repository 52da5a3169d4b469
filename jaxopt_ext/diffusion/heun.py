"""Heun's method on the probability-flow equation."""

from .denoiser import combine
from .sampler import AbstractSampler


class Heun(AbstractSampler):
    """The trapezoidal rule in the variables where the equation has no linear part.

    With $y = x/\\alpha$ and $\\rho = \\sigma/\\alpha$ it reads $dy/d\\rho = \\hat\\epsilon$, and

    $$y' = y + (\\rho_t - \\rho_s)\\hat\\epsilon_s, \\qquad
    y_t = y + \\tfrac12 (\\rho_t - \\rho_s)(\\hat\\epsilon_s + \\hat\\epsilon_{t}(y')).$$

    Second order, two evaluations a step; a first step alone is `DDIM()`.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    @property
    def evaluations_per_step(self):
        return 2

    def coefficients(self, here, there):
        ratio = there.alpha / here.alpha
        return ratio, there.sigma - here.sigma * ratio

    def step(self, model, x, here, there, coefficients, key):
        keep, move = coefficients
        first = model.noise(x, here)
        guess = combine((keep, x), (move, first))
        second = model.noise(guess, there)
        return combine((keep, x), (0.5 * move, first), (0.5 * move, second))
