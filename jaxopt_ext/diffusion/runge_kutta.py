"""Explicit Runge-Kutta methods in the variables where the equation has no linear part."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from .exponential import AbstractForm, NoiseForm, SinglestepRow, log_snr, phi, singlestep
from .sampler import AbstractSampler, ends
from .schedules import AbstractSchedule, Node


class Tableau(NamedTuple):
    """The numbers of an explicit Runge-Kutta method of p stages.

    **Attributes:**

    - `places`: $c_i$, where in the step the stages are; the first is 0.
    - `stages`: $a_{ij}$, the i-th row with the i weights of the stages before.
    - `weights`: $b_i$.
    """

    places: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


class AbstractRungeKutta(AbstractSampler):
    """$dy/d\\rho = f$ by an explicit Runge-Kutta method.

    In `NoiseForm()` $y = x/\\alpha$, $\\rho = \\sigma/\\alpha$ and f is the predicted noise; in
    `DataForm()` $y = x/\\sigma$, $\\rho = \\alpha/\\sigma$ and f is the predicted data. Stages are
    at $\\rho_s + c_i (\\rho_t - \\rho_s)$.
    """

    form: eqx.AbstractVar[AbstractForm]

    def __check_init__(self):
        if not isinstance(self.form, AbstractForm):
            raise TypeError(f"form must be NoiseForm() or DataForm(), got {self.form!r}")

    @property
    @abc.abstractmethod
    def tableau(self) -> Tableau:
        """The numbers of the method."""

    def evaluations(self, num_steps):
        return num_steps * len(self.tableau.weights)

    def plan(self, schedule, times):
        return stages(self.tableau, self.form, schedule, *ends(schedule, times))

    def step(self, model, x, memory, row, key):
        return singlestep(self.form, model, x, row), memory


def stages(
    tableau: Tableau, form: AbstractForm, schedule: AbstractSchedule, here: Node, there: Node
) -> SinglestepRow:
    """Rows of steps from `here` to `there`, either of which may be the noisier one."""
    p = len(tableau.weights)
    _, _, whole = form.linear(here, there)
    # rho_t/rho_s - 1 = expm1(-z), so that fractions of the way in rho are fractions of it
    z = np.stack([-np.log1p(c * np.expm1(-whole)) for c in tableau.places], -1)
    z[..., np.asarray(tableau.places) == 1] = whole[..., None]
    start = log_snr(here)[..., None]
    h = (log_snr(there) - log_snr(here))[..., None]
    nodes = schedule.nodes(schedule.time_at(start + z / whole[..., None] * h))
    places = np.asarray(tableau.places)
    # Stages at the ends are the ends' nodes themselves, not those that rounding leads to.
    for place, end in ((0, here), (1, there)):
        at = lambda a, b, place=place: np.where(places == place, np.asarray(b)[..., None], a)
        nodes = Node(*map(at, nodes, end))
    points = [Node(*(a[..., i] for a in nodes)) for i in range(1, p)] + [there]
    rows = [*tableau.stages[1:], tableau.weights]
    keep, weights = [], []
    for point, row, c in zip(points, rows, [*tableau.places[1:], 1.0], strict=True):
        kept, scale, z = form.linear(here, point)
        padded = np.pad(np.asarray(row, np.float64), (0, p - len(row)))
        keep.append(kept)
        # scale * phi is the whole way in rho to this stage
        weights.append((scale * phi(1, z) / c)[..., None] * padded)
    numbers: Any = np.stack(keep, -1), np.stack(weights, -2), np.full(np.shape(whole), p)
    return SinglestepRow(nodes, *numbers)


class Euler(AbstractRungeKutta):
    """Euler's method, $y_t = y_s + (\\rho_t - \\rho_s) f_s$; in the noise, and in the data, it is
    `DDIM()`. First order, one evaluation a step.

    **Arguments:**

    - `form`: `NoiseForm()` or `DataForm()`.

    **Reference:** Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, arXiv:2010.02502.
    """

    form: AbstractForm = NoiseForm()

    @property
    def tableau(self):
        return Tableau((0.0,), ((),), (1.0,))


class Midpoint(AbstractRungeKutta):
    """The midpoint rule, $y_t = y_s + (\\rho_t - \\rho_s) f(y_s + \\tfrac12(\\rho_t - \\rho_s)
    f_s)$. Second order, two evaluations a step.

    **Arguments:**

    - `form`: `NoiseForm()` or `DataForm()`.

    **Reference:** Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, 1993.
    """

    form: AbstractForm = NoiseForm()

    @property
    def tableau(self):
        return Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0))


class RK4(AbstractRungeKutta):
    """The classical Runge-Kutta method. Fourth order, four evaluations a step.

    **Arguments:**

    - `form`: `NoiseForm()` or `DataForm()`.

    **Reference:** Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, 1993.
    """

    form: AbstractForm = NoiseForm()

    @property
    def tableau(self):
        rows = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
        return Tableau((0.0, 0.5, 0.5, 1.0), rows, (1 / 6, 1 / 3, 1 / 3, 1 / 6))
