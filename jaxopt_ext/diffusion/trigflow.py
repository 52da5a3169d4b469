r"""TrigFlow, and denoisers seen that way: noisy points are on a circle through data and noise, $x_t
= \cos t\, x_0 + \sin t\, z$ with $z \sim N(0, s_d^2 I)$."""

import math

import equinox as eqx
import jax.numpy as jnp

from ..core import checks
from .denoiser import AbstractDenoiser, AbstractPrediction, Denoiser, Preconditioned, combine
from .objectives import data_slope, target
from .schedules import AbstractSchedule, Node, numbers


class TrigFlow(AbstractSchedule):
    r"""$\alpha_t = \cos t$, $\sigma_t = s_d \sin t$, $t \in [0, \pi/2]$; a level $\rho =
    \sigma/\alpha$ of any other schedule is at $t = \arctan(\rho/s_d)$.

    **Arguments:**

    - `sigma_data`: $s_d$, the root mean square of the data.
    - `start`, `end`: times at which sampling begins and stops; those of the levels 80 and 0.002 if
      not given.

    **Raises:** `ValueError` unless `sigma_data` is positive and $0 < end < start < \pi/2$.

    **Reference:** Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2025, arXiv:2410.11081.
    """

    sigma_data: float
    start: float
    end: float

    def __init__(
        self, sigma_data: float = 0.5, start: float | None = None, end: float | None = None
    ):
        checks.positive("sigma_data", sigma_data)
        self.sigma_data = sigma_data
        self.start = math.atan(80 / sigma_data) if start is None else start
        self.end = math.atan(2e-3 / sigma_data) if end is None else end

    def __check_init__(self):
        if self.start >= math.pi / 2:
            raise ValueError(f"start must be below pi/2, got {self.start}")

    def log_alpha(self, t):
        xp, t = numbers(t)
        return xp.log(xp.cos(t))

    def sigma(self, t):
        xp, t = numbers(t)
        return self.sigma_data * xp.sin(t)

    def time_at(self, log_snr):
        xp, log_snr = numbers(log_snr)
        return xp.arctan(xp.exp(-log_snr) / self.sigma_data)


def _circle(node, sigma_data):
    """Time, cosine and sine of a level, and what scales a sample to the circle."""
    noise = jnp.asarray(node.sigma) / sigma_data
    scale = 1 / jnp.hypot(jnp.asarray(node.alpha), noise)
    return jnp.arctan2(noise, node.alpha), node.alpha * scale, noise * scale, scale


class TrigVelocity(AbstractPrediction):
    r"""The network F predicts the slope of the circle, $s_d F(x_t/s_d, t) = \cos t\, z - \sin t\,
    x_0$, so

    $$x_0 = \cos t\, x_t - s_d \sin t\, F(x_t/s_d, t).$$

    F gets the node of `TrigFlow`, whatever the schedule: with $\rho = \sigma/\alpha$, $t =
    \arctan(\rho/s_d)$ and $x_t = \cos t\, x/\alpha$. It is minus that of `Preconditioned`, in the
    same input.

    Trained by `DenoisingLoss(LogNormal(-1.0, 1.4), EDMWeighting(sigma_data))`, the loss is the
    plain squared error of F.

    **Arguments:**

    - `sigma_data`: $s_d$, the root mean square of the data.

    **Raises:** `ValueError` if it is not positive.

    **Reference:** Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2025, arXiv:2410.11081.
    """

    sigma_data: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        checks.positive("sigma_data", self.sigma_data)

    def inputs(self, x, node):
        t, cos, sin, scale = _circle(node, self.sigma_data)
        seen = combine((scale / self.sigma_data, x))
        return seen, Node(t, cos, self.sigma_data * sin)

    def data(self, output, x, node):
        _, cos, sin, scale = _circle(node, self.sigma_data)
        return combine((cos * scale, x), (-self.sigma_data * sin, output))

    def noise(self, output, x, node):
        _, cos, sin, scale = _circle(node, self.sigma_data)
        return combine((sin * scale / self.sigma_data, x), (cos, output))


@target.register
def _(predicts: TrigVelocity, data, noise, node):
    _, cos, sin, _ = _circle(node, predicts.sigma_data)
    return combine((cos, noise), (-sin / predicts.sigma_data, data))


@data_slope.register
def _(predicts: TrigVelocity, node):
    _, _, sin, _ = _circle(node, predicts.sigma_data)
    return -predicts.sigma_data * sin


class TrigNetwork(eqx.Module):
    """A denoiser of another schedule as the network of a `TrigVelocity`.

    **Arguments:**

    - `denoiser`: the denoiser.
    - `schedule`: the one it was trained with.
    - `sigma_data`: $s_d$.
    """

    denoiser: AbstractDenoiser
    schedule: AbstractSchedule
    sigma_data: float = eqx.field(static=True)

    def __call__(self, x, node):
        log_snr = jnp.log(jnp.asarray(node.alpha)) - jnp.log(jnp.asarray(node.sigma))
        there = self.schedule.nodes(self.schedule.time_at(log_snr))
        _, cos, sin, scale = _circle(there, self.sigma_data)
        moved = combine((self.sigma_data / scale, x))
        model = self.denoiser
        # Near the data the slope is not to be had from the data: they differ by sin t times it.
        if isinstance(model, Denoiser) and _same_circle(model.predicts, self.sigma_data):
            output = model.network(*model.predicts.inputs(moved, there))
            return combine((-1 if isinstance(model.predicts, Preconditioned) else 1, output))
        noise, data = model.noise(moved, there), model.data(moved, there)
        return combine((cos, noise), (-sin / self.sigma_data, data))


def _same_circle(predicts, sigma_data):
    known = isinstance(predicts, (Preconditioned, TrigVelocity))
    return known and predicts.sigma_data == sigma_data


def trigflow_teacher(
    denoiser: AbstractDenoiser, schedule: AbstractSchedule, sigma_data: float
) -> Denoiser:
    r"""The same denoiser as one of `TrigVelocity(sigma_data)`: its data at a level are the same,

    $$F(x_t/s_d, t) = \frac{\cos t\, x_t - \hat x_0}{s_d \sin t}.$$

    Where the network is a `Preconditioned` of this $s_d$, F is minus its output; else it is made of
    predicted noise and data, which near the data is as accurate as the noise is.

    **Arguments:**

    - `denoiser`: for one sample or for batches, whatever it predicts.
    - `schedule`: the one it was trained with.
    - `sigma_data`: $s_d$.

    **Raises:** `TypeError` if `denoiser` is none; `ValueError` if `sigma_data` is not positive.

    **Reference:** Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency
    Models, 2025, arXiv:2410.11081.
    """
    checks.instance("denoiser", denoiser, AbstractDenoiser, "Denoiser(network)")
    checks.instance("schedule", schedule, AbstractSchedule, "VarianceExploding()")
    network = TrigNetwork(denoiser, schedule, sigma_data)
    return Denoiser(network, TrigVelocity(sigma_data))
