"""Heun's method on the probability-flow equation."""

from .denoiser import combine
from .sampler import AbstractSampler, ends


class Heun(AbstractSampler):
    """The trapezoidal rule in the variables where the equation has no linear part.

    With $y = x/\\alpha$ and $\\rho = \\sigma/\\alpha$ it reads $dy/d\\rho = \\hat\\epsilon$, and

    $$y' = y + (\\rho_t - \\rho_s)\\hat\\epsilon_s, \\qquad
    y_t = y + \\tfrac12 (\\rho_t - \\rho_s)(\\hat\\epsilon_s + \\hat\\epsilon_{t}(y')).$$

    Second order, two evaluations a step; a first step alone is `DDIM()`.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    def evaluations(self, num_steps):
        return 2 * num_steps

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        ratio = there.alpha / here.alpha
        return here, there, ratio, there.sigma - here.sigma * ratio

    def step(self, model, x, memory, row, key):
        here, there, keep, move = row
        first = model.noise(x, here)
        guess = combine((keep, x), (move, first))
        second = model.noise(guess, there)
        return combine((keep, x), (0.5 * move, first), (0.5 * move, second)), memory
