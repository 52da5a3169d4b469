"""DPM-Solver: exponential integrators in the predicted noise."""

import itertools
from collections.abc import Callable

import numpy as np

from ..core import checks
from . import grids
from .exponential import NoiseForm
from .sampler import check_times
from .schedules import AbstractSchedule, Times
from .stepping import AbstractExponentialSampler, AbstractStepping, SingleStep, check_order


class DPMSolver(AbstractExponentialSampler):
    """Solves the probability-flow equation in the predicted noise, expanded in
    $\\lambda = \\log(\\alpha/\\sigma)$,

    $$x_t = \\tfrac{\\alpha_t}{\\alpha_s} x_s
    - \\alpha_t \\int_{\\lambda_s}^{\\lambda_t} e^{-\\lambda} \\hat\\epsilon(x_\\lambda)
    \\, d\\lambda, \\qquad \\text{order 1:}\\quad
    x_t = \\tfrac{\\alpha_t}{\\alpha_s} x_s - \\sigma_t (e^h - 1) \\hat\\epsilon(x_s, s).$$

    The integral of the exponential is exact; orders 1, 2 and 3, by stages or by steps before. Order
    1 is `DDIM()`. Steps are meant to be equal in $\\lambda$: `uniform_log_snr`.

    Few evaluations: with about ten, single steps are not better than DDIM unless the output is
    smooth; `MultiStep` takes more, shorter steps for them. Under strong guidance see `DPMSolverPP`.

    **Arguments:**

    - `steps`: `SingleStep(order)`, with order evaluations a step, or `MultiStep(order)`, with one.

    **Raises:** `TypeError` if `steps` is neither.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: A Fast ODE Solver for Diffusion
    Probabilistic Model Sampling in Around 10 Steps, 2022, arXiv:2206.00927.
    """

    steps: AbstractStepping = SingleStep(3)

    @property
    def form(self):
        return NoiseForm()


def dpm_solver_fast(
    schedule: AbstractSchedule,
    calls: int,
    *,
    order: int = 3,
    taylor: bool = False,
    grid: Callable[[AbstractSchedule, int], Times] | None = None,
) -> tuple[DPMSolver, Times]:
    """Single steps of DPM-Solver that use `calls` evaluations, and their times.

    As many steps of the `order` as fit, with lower orders at the end: for order 3 and K calls the
    orders are 3, ..., 3, then 2, 1 if K mod 3 = 0, then 1 if it is 1, then 2 if it is 2.

    ```python
    sampler, times = dpm_solver_fast(schedule, 20)
    sample(model, sampler, schedule, times, x)
    ```

    **Arguments:**

    - `schedule`: the schedule.
    - `calls`: K.
    - `order`: 1, 2 or 3.
    - `taylor`: as in `SingleStep`.
    - `grid`: a function of `diffusion.grids` whose K steps are grouped: inner points stand where
      the grid has them. If left out, steps are equal in $\\lambda$ and inner points too.

    **Returns:** a `DPMSolver` and the times, as many as it has steps and one. `DPMSolverPP` takes
    its `steps` just so.

    **Raises:** `ValueError` if `order` or `calls` leave their ranges.

    **Reference:** Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: A Fast ODE Solver for Diffusion
    Probabilistic Model Sampling in Around 10 Steps, 2022, arXiv:2206.00927.
    """
    checks.count("calls", calls)
    check_order(order)
    whole, rest = divmod(calls, order)
    orders = (order,) * whole + (rest,) * (rest > 0)
    if order == 3 and rest == 0:
        orders = (*orders[:-1], 2, 1)
    if grid is None:
        return DPMSolver(SingleStep(orders, None, taylor)), grids.uniform_log_snr(
            schedule, len(orders)
        )
    every = check_times(schedule, grid(schedule, calls))
    log_snr = schedule.log_snr(every)
    bounds = np.cumsum([0, *orders])
    places = []
    for first, last in itertools.pairwise(bounds):
        inner = log_snr[first + 1 : last] - log_snr[first]
        places.append(tuple((inner / (log_snr[last] - log_snr[first])).tolist()))
    return DPMSolver(SingleStep(orders, tuple(places), taylor)), every[bounds]
