"""Where a sampler stops between noise and data: times that fall from `start` to `end`."""

import numpy as np

from ..core import checks
from .schedules import AbstractSchedule, Times


def uniform_time(schedule: AbstractSchedule, num_steps: int) -> Times:
    """`num_steps + 1` equally spaced times."""
    checks.count("num_steps", num_steps)
    return np.linspace(schedule.start, schedule.end, num_steps + 1)


def uniform_log_snr(schedule: AbstractSchedule, num_steps: int) -> Times:
    """`num_steps + 1` times equally spaced in $\\lambda_t = \\log(\\alpha_t/\\sigma_t)$."""
    checks.count("num_steps", num_steps)
    first, last = schedule.log_snr(np.array([schedule.start, schedule.end]))
    return _with_exact_ends(schedule, schedule.time_at(np.linspace(first, last, num_steps + 1)))


def karras(schedule: AbstractSchedule, num_steps: int, rho: float = 7.0) -> Times:
    """`num_steps + 1` times whose $\\rho$-th roots of $\\sigma_t/\\alpha_t$ are equally spaced.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """
    checks.count("num_steps", num_steps)
    checks.positive("rho", rho)
    first, last = np.exp(-schedule.log_snr(np.array([schedule.start, schedule.end])) / rho)
    noise = np.linspace(first, last, num_steps + 1) ** rho
    return _with_exact_ends(schedule, schedule.time_at(-np.log(noise)))


def _with_exact_ends(schedule, times):
    times[0], times[-1] = schedule.start, schedule.end
    return times
