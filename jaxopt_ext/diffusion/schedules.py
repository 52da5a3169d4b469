"""Noise schedules: how much of the data and how much noise there is at each time.

A noisy point is $x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$. Given numpy arrays or numbers,
schedules answer on the host in double precision, whatever the type of the samples: near the data
the coefficients of samplers are differences of nearly equal numbers. Given arrays of JAX, inside
`jit` too, they answer in the type of those; so a program can draw levels and choose its steps.
"""

import abc
from types import ModuleType
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import checks
from ..core.constants import HostArray

Times = Float[np.ndarray, "*n"] | Float[Array, "*n"]
Coefficients = Float[Array, "*n"] | Float[np.ndarray, "*n"]


class Node(NamedTuple):
    """A time with its two coefficients; what models are called with besides the sample."""

    t: Coefficients
    alpha: Coefficients
    sigma: Coefficients


def numbers(t) -> tuple[ModuleType, Times]:
    """The array library for `t`, and `t` as an array of it: numpy in double precision for the host,
    `jax.numpy` for what is already there."""
    if isinstance(t, jax.Array):
        return jnp, t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)
    return np, np.asarray(t, np.float64)


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
        xp, t = numbers(t)
        return xp.exp(self.log_alpha(t))

    def log_snr(self, t: Times) -> Times:
        """$\\lambda_t = \\log(\\alpha_t / \\sigma_t)$, half the logarithm of the signal-to-noise
        ratio; falls with time."""
        xp, t = numbers(t)
        return self.log_alpha(t) - xp.log(self.sigma(t))

    def nodes(self, t: Times) -> Node:
        """The coefficients at these times."""
        _, t = numbers(t)
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
        _, t = numbers(t)
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def sigma(self, t):
        xp, t = numbers(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    def time_at(self, log_snr):
        # log alpha = -log(1 + exp(-2 lambda)) / 2 is a quadratic in t.
        xp, log_snr = numbers(log_snr)
        rest = xp.logaddexp(0, -2 * log_snr)
        slope = self.beta_max - self.beta_min
        return 2 * rest / (self.beta_min + xp.sqrt(self.beta_min**2 + 2 * slope * rest))


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
        xp, t = numbers(t)
        angle = lambda t: 0.5 * np.pi * (t + self.shift) / (1 + self.shift)
        return xp.log(xp.cos(angle(t))) - float(np.log(np.cos(angle(0.0))))

    def sigma(self, t):
        xp, t = numbers(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    def time_at(self, log_snr):
        xp, log_snr = numbers(log_snr)
        log_alpha = -0.5 * xp.logaddexp(0, -2 * log_snr)
        origin = 0.5 * np.pi * self.shift / (1 + self.shift)
        angle = xp.arccos(xp.exp(log_alpha) * float(np.cos(origin)))
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
        xp, t = numbers(t)
        return xp.zeros_like(t)

    def sigma(self, t):
        return numbers(t)[1]

    def time_at(self, log_snr):
        xp, log_snr = numbers(log_snr)
        return xp.exp(-log_snr)


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
        xp, t = numbers(t)
        return xp.log1p(-t)

    def sigma(self, t):
        return numbers(t)[1]

    def time_at(self, log_snr):
        xp, log_snr = numbers(log_snr)
        return 1 / (1 + xp.exp(log_snr))


class DiscreteSchedule(AbstractSchedule):
    """A chain of N steps, $\\alpha_i^2 = \\prod_{j \\le i} (1 - \\beta_j)$, variance preserving.

    Step i = 0, ..., N - 1 has the time $(i + 1)/N$; in between, $\\log\\alpha$ is linear in time,
    from 0 at time 0.

    **Arguments:**

    - `betas`: $\\beta_i \\in (0, 1)$, shape `(N,)`; see `linear_betas` and `cosine_betas`.
    - `start`, `end`: times at which sampling begins and stops; those of the last and the first step
      if left out.

    **Raises:** `ValueError` if `betas` is no vector of numbers between 0 and 1.

    **Reference:** Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020,
    arXiv:2006.11239.
    """

    _log_alphas: HostArray = eqx.field(static=True)
    start: float
    end: float

    def __init__(self, betas, start: float = 1.0, end: float | None = None):
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or not betas.size or not np.all((betas > 0) & (betas < 1)):
            raise ValueError(f"betas must be a vector of numbers in (0, 1), got {betas}")
        self._log_alphas = HostArray(np.append(0.0, 0.5 * np.cumsum(np.log1p(-betas))))
        self.start = start
        self.end = 1 / betas.size if end is None else end

    def __check_init__(self):
        if self.start > 1:
            raise ValueError(f"start must be at most 1, got {self.start}")

    @property
    def log_alphas(self) -> Float[np.ndarray, " N+1"]:
        """$\\log \\alpha$ at the times."""
        return self._log_alphas.value

    @property
    def times(self) -> Float[np.ndarray, " N+1"]:
        """The times $0, 1/N, \\dots, 1$."""
        return np.linspace(0.0, 1.0, len(self.log_alphas))

    def log_alpha(self, t):
        xp, t = numbers(t)
        return xp.interp(t, self.times, self.log_alphas)

    def sigma(self, t):
        xp, t = numbers(t)
        return xp.sqrt(-xp.expm1(2 * self.log_alpha(t)))

    def time_at(self, log_snr):
        xp, log_snr = numbers(log_snr)
        log_alpha = -0.5 * xp.logaddexp(0, -2 * log_snr)
        return xp.interp(-log_alpha, -self.log_alphas, self.times)


def linear_betas(
    num_steps: int = 1000, first: float = 1e-4, last: float = 0.02, power: float = 1.0
) -> Float[np.ndarray, " N"]:
    """`num_steps` rates whose roots of order `power` are equally spaced; 2 is "scaled linear".

    **Reference:** Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020,
    arXiv:2006.11239.
    """
    checks.count("num_steps", num_steps)
    checks.positive("power", power)
    if not 0 < first <= last < 1:
        raise ValueError(f"need 0 < first <= last < 1, got {first, last}")
    return np.linspace(first ** (1 / power), last ** (1 / power), num_steps) ** power


def cosine_betas(
    num_steps: int = 1000, shift: float = 0.008, largest: float = 0.999
) -> Float[np.ndarray, " N"]:
    """`num_steps` rates that follow a squared cosine, cut off at `largest`.

    **Reference:** Nichol, Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021,
    arXiv:2102.09672.
    """
    checks.count("num_steps", num_steps)
    checks.positive("shift", shift)
    checks.interval("largest", largest, 0.0, 1.0, open_low=True, open_high=True)
    t = np.linspace(0.0, 1.0, num_steps + 1)
    signal = np.cos(0.5 * np.pi * (t + shift) / (1 + shift)) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], largest)
