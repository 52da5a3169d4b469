"""Noise schedules: how much of the data and how much noise there is at each time.

A noisy point is $x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$. Schedules live on the host, in numpy
and double precision, whatever the type of the samples: near the data the coefficients of samplers
are differences of nearly equal numbers.
"""

import abc
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ..core import checks

Times = Float[np.ndarray, " n"]
Coefficients = Float[Array, "*n"] | Float[np.ndarray, "*n"]


class Node(NamedTuple):
    """A time with its two coefficients; what models are called with besides the sample."""

    t: Coefficients
    alpha: Coefficients
    sigma: Coefficients


class AbstractSchedule(eqx.Module):
    """The coefficients as functions of time, which runs from `end`, near the data, to `start`."""

    start: eqx.AbstractVar[float]
    end: eqx.AbstractVar[float]

    def __check_init__(self):
        checks.finite("start and end", (self.start, self.end))
        if not 0 < self.end < self.start:
            raise ValueError(f"need 0 < end < start, got end={self.end} and start={self.start}")

    @abc.abstractmethod
    def log_alpha(self, t: Times) -> Times:
        """$\\log \\alpha_t$."""

    @abc.abstractmethod
    def sigma(self, t: Times) -> Times:
        """$\\sigma_t$."""

    @abc.abstractmethod
    def time_at(self, log_snr: Times) -> Times:
        """Inverse of `log_snr`."""

    def alpha(self, t: Times) -> Times:
        """$\\alpha_t$."""
        return np.exp(self.log_alpha(t))

    def log_snr(self, t: Times) -> Times:
        """$\\lambda_t = \\log(\\alpha_t / \\sigma_t)$, half the logarithm of the signal-to-noise
        ratio; falls with time."""
        return self.log_alpha(t) - np.log(self.sigma(t))

    def nodes(self, t: Times) -> Node:
        """The coefficients at these times."""
        t = np.asarray(t, np.float64)
        return Node(t, self.alpha(t), self.sigma(t))


class VariancePreserving(AbstractSchedule):
    """$\\alpha_t^2 + \\sigma_t^2 = 1$ with a rate of noise that grows linearly in time,

    $$\\log \\alpha_t = -\\tfrac14 (\\beta_1 - \\beta_0) t^2 - \\tfrac12 \\beta_0 t.$$

    **Arguments:**

    - `beta_min`, `beta_max`: $\\beta_0 < \\beta_1$, the rates at times 0 and 1.
    - `start`, `end`: times at which sampling begins and stops.

    **Reference:** Song et al., Score-Based Generative Modeling through Stochastic Differential
    Equations, 2021, arXiv:2011.13456.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    start: float = 1.0
    end: float = 1e-3

    def __check_init__(self):
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"need 0 < beta_min < beta_max, got {self.beta_min, self.beta_max}")

    def log_alpha(self, t):
        t = np.asarray(t, np.float64)
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def sigma(self, t):
        return np.sqrt(-np.expm1(2 * self.log_alpha(t)))

    def time_at(self, log_snr):
        # log alpha = -log(1 + exp(-2 lambda)) / 2 is a quadratic in t.
        rest = np.logaddexp(0, -2 * np.asarray(log_snr, np.float64))
        slope = self.beta_max - self.beta_min
        return 2 * rest / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * slope * rest))


class Cosine(AbstractSchedule):
    """$\\alpha_t = \\cos\\big(\\tfrac\\pi2 \\tfrac{t + s}{1 + s}\\big)$ over its value at 0,
    variance preserving.

    **Arguments:**

    - `shift`: $s$.
    - `start`, `end`: times at which sampling begins and stops; `start` below 1, where there is no
      signal left.

    **Reference:** Nichol, Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021,
    arXiv:2102.09672.
    """

    shift: float = 0.008
    start: float = 0.9946
    end: float = 1e-3

    def __check_init__(self):
        checks.positive("shift", self.shift)
        if self.start >= 1:
            raise ValueError(f"start must be below 1, got {self.start}")

    def log_alpha(self, t):
        angle = lambda t: 0.5 * np.pi * (np.asarray(t, np.float64) + self.shift) / (1 + self.shift)
        return np.log(np.cos(angle(t))) - np.log(np.cos(angle(0.0)))

    def sigma(self, t):
        return np.sqrt(-np.expm1(2 * self.log_alpha(t)))

    def time_at(self, log_snr):
        log_alpha = -0.5 * np.logaddexp(0, -2 * np.asarray(log_snr, np.float64))
        origin = 0.5 * np.pi * self.shift / (1 + self.shift)
        angle = np.arccos(np.exp(log_alpha) * np.cos(origin))
        return angle * (1 + self.shift) * 2 / np.pi - self.shift


class VarianceExploding(AbstractSchedule):
    """$\\alpha_t = 1$, $\\sigma_t = t$: time is the level of noise.

    **Arguments:**

    - `start`, `end`: the largest and the smallest level.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    start: float = 80.0
    end: float = 2e-3

    def log_alpha(self, t):
        return np.zeros_like(np.asarray(t, np.float64))

    def sigma(self, t):
        return np.asarray(t, np.float64)

    def time_at(self, log_snr):
        return np.exp(-np.asarray(log_snr, np.float64))


class RectifiedFlow(AbstractSchedule):
    """$\\alpha_t = 1 - t$, $\\sigma_t = t$: straight lines from data to noise.

    **Arguments:**

    - `start`, `end`: times at which sampling begins and stops; `start` below 1.

    **Reference:** Liu, Gong, Liu, Flow Straight and Fast, 2023, arXiv:2209.03003.
    """

    start: float = 0.999
    end: float = 1e-3

    def __check_init__(self):
        if self.start >= 1:
            raise ValueError(f"start must be below 1, got {self.start}")

    def log_alpha(self, t):
        return np.log1p(-np.asarray(t, np.float64))

    def sigma(self, t):
        return np.asarray(t, np.float64)

    def time_at(self, log_snr):
        return 1 / (1 + np.exp(np.asarray(log_snr, np.float64)))
