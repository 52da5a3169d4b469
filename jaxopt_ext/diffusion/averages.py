r"""Averages of weights that training does not see.

An average has `init(params)` and `update(average, params, step)`, where `step` counts from 1 and is
that of the parameters: `training.GradientStep` takes one or several. Arrays that do not change,
frozen frequencies say, stay as they are, bit for bit.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks

WIDEST = 1 / math.sqrt(12)
"""Relative width of the plain mean, which no power exceeds."""


class AbstractAverage(eqx.Module):
    r"""$\hat\theta_t = \hat\theta_{t-1} + w_t (\theta_t - \hat\theta_{t-1})$ from
    $\hat\theta_1 = \theta_1$ on."""

    @abc.abstractmethod
    def weight(self, step: Int[Array, ""], dtype: Any) -> Float[Array, ""]:
        """$w_t$, the weight of the newest parameters after the first."""

    def init(self, params: PyTree) -> PyTree:
        """The average before the first step, of which nothing is left after it."""
        return params

    def update(self, average: PyTree, params: PyTree, step: Int[Array, ""]) -> PyTree:
        """The average after a step; what is no floating-point array is that of `params`."""
        step = jnp.asarray(step)
        new, rest = eqx.partition(params, eqx.is_inexact_array)
        old = eqx.filter(average, eqx.is_inexact_array)

        def towards(a, b):
            # Of a difference of zero nothing is rounded; where all weight is new, neither.
            moved = a + self.weight(step, b.real.dtype) * (b - a)
            return jnp.where(step == 1, b, moved)

        return eqx.combine(jax.tree.map(towards, old, new), rest)


class ExponentialAverage(AbstractAverage):
    r"""$w_t = 1 - \beta$.

    With a `warmup` $r$ the half-life is at most $r t$: early parameters, which are far off, are
    forgotten in time.

    **Arguments:**

    - `decay`: $\beta$ in $(0, 1)$.
    - `warmup`: $r$, positive, or `None`; 0.09 is that of EDM.

    **Raises:** `ValueError` for a decay or a ratio out of range.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    decay: float = eqx.field(static=True, default=0.999)
    warmup: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        checks.interval("decay", self.decay, 0, 1, open_low=True, open_high=True)
        if self.warmup is not None:
            checks.positive("warmup", self.warmup)

    def weight(self, step, dtype):
        half_life = math.log(2) / -math.log(self.decay)
        t = step.astype(dtype)
        lives = 1 / half_life
        if self.warmup is not None:
            lives = 1 / jnp.minimum(jnp.asarray(half_life, dtype), self.warmup * t)
        return -jnp.expm1(-math.log(2) * jnp.asarray(lives, dtype))


class PowerFunctionAverage(AbstractAverage):
    r"""$w_t = 1 - (1 - 1/t)^{\gamma + 1}$: the weight of $\theta_\tau$ in $\hat\theta_t$ is
    proportional to $\tau^\gamma$, so its width is a fixed part of the training's length,

    $$\sigma_{rel} = \sqrt{\frac{\gamma + 1}{(\gamma + 2)^2 (\gamma + 3)}}.$$

    Two of these, of widths 0.05 and 0.10, kept at a few times, give all others: see
    `posthoc_average`.

    **Arguments:**

    - `sigma_rel`: $\sigma_{rel}$ in $(0, 0.2886)$.

    **Raises:** `ValueError` for a width that no positive power has.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    sigma_rel: float = eqx.field(static=True, default=0.10)

    def __check_init__(self):
        power_exponent(self.sigma_rel)

    def weight(self, step, dtype):
        power = jnp.asarray(power_exponent(self.sigma_rel) + 1, dtype)
        return -jnp.expm1(power * jnp.log1p(-1 / step.astype(dtype)))


def power_exponent(sigma_rel: float) -> float:
    r"""The power $\gamma > 0$ of a `PowerFunctionAverage` of this relative width: the largest root
    of $\gamma^3 + 7\gamma^2 + (16 - r)\gamma + 12 - r$, $r = \sigma_{rel}^{-2}$.

    **Raises:** `ValueError` outside of $(0, 12^{-1/2})$.
    """
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(f"sigma_rel must be in (0, {WIDEST:.4f}), got {sigma_rel}")
    ratio = float(sigma_rel) ** -2
    roots = np.roots([1, 7, 16 - ratio, 12 - ratio])
    return float(np.max(roots.real))


def power_width(gamma: float) -> float:
    r"""The relative width $\sigma_{rel}$ of the power $\gamma$.

    **Raises:** `ValueError` unless $\gamma > -1$.
    """
    if not gamma > -1:
        raise ValueError(f"gamma must be above -1, got {gamma}")
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
