"""Heun's method on the probability-flow equation."""

from .exponential import AbstractForm, NoiseForm
from .runge_kutta import AbstractRungeKutta, Tableau


class Heun(AbstractRungeKutta):
    """The trapezoidal rule in the variables where the equation has no linear part.

    With $y = x/\\alpha$ and $\\rho = \\sigma/\\alpha$ it reads $dy/d\\rho = \\hat\\epsilon$, and

    $$y' = y + (\\rho_t - \\rho_s)\\hat\\epsilon_s, \\qquad
    y_t = y + \\tfrac12 (\\rho_t - \\rho_s)(\\hat\\epsilon_s + \\hat\\epsilon_{t}(y')).$$

    Second order, two evaluations a step; a first step alone is `DDIM()`.

    **Arguments:**

    - `form`: `NoiseForm()`, or `DataForm()` for the same rule in $x/\\sigma$, $\\alpha/\\sigma$ and
      the predicted data.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    form: AbstractForm = NoiseForm()

    @property
    def tableau(self):
        return Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
