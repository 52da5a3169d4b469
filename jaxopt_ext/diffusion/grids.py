"""Where a sampler stops between noise and data: times that fall from `start` to `end`."""

import numpy as np

from ..core import checks
from .schedules import AbstractSchedule, DiscreteSchedule, Times


def uniform_time(schedule: AbstractSchedule, num_steps: int) -> Times:
    """`num_steps + 1` equally spaced times."""
    checks.count("num_steps", num_steps)
    return np.linspace(schedule.start, schedule.end, num_steps + 1)


def quadratic_time(schedule: AbstractSchedule, num_steps: int) -> Times:
    """`num_steps + 1` times whose square roots are equally spaced.

    **Reference:** Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, arXiv:2010.02502.
    """
    checks.count("num_steps", num_steps)
    times = np.linspace(schedule.start**0.5, schedule.end**0.5, num_steps + 1) ** 2
    return _with_exact_ends(schedule, times)


def leading(schedule: DiscreteSchedule, num_steps: int, offset: int = 0) -> Times:
    """Every k-th step of a chain from its first, k = N // num_steps, largest first, and the end.

    With N = 1000, 10 steps and no offset the steps are 900, 800, ..., 0, and sampling ends at the
    schedule's `end`, or at no noise where that is step 0 itself.

    **Reference:** Lin, Liu, Li, Yang, Common Diffusion Noise Schedules and Sample Steps are
    Flawed, 2024, arXiv:2305.08891, which names the spacings.
    """
    total = _chain(schedule, num_steps)
    return _in_chain(schedule, np.arange(num_steps)[::-1] * (total // num_steps) + offset)


def trailing(schedule: DiscreteSchedule, num_steps: int) -> Times:
    """Every k-th step of a chain down from its last, k = N / num_steps, and the end.

    **Reference:** Lin, Liu, Li, Yang, Common Diffusion Noise Schedules and Sample Steps are
    Flawed, 2024, arXiv:2305.08891.
    """
    total = _chain(schedule, num_steps)
    return _in_chain(schedule, np.round(np.arange(num_steps, 0, -1) * total / num_steps) - 1)


def linspaced(schedule: DiscreteSchedule, num_steps: int) -> Times:
    """Steps of a chain equally spaced from its last to its first, rounded, and the end.

    **Reference:** Lin, Liu, Li, Yang, Common Diffusion Noise Schedules and Sample Steps are
    Flawed, 2024, arXiv:2305.08891.
    """
    total = _chain(schedule, num_steps)
    return _in_chain(schedule, np.round(np.linspace(total - 1, 0, num_steps)))


def _chain(schedule, num_steps):
    if not isinstance(schedule, DiscreteSchedule):
        raise TypeError(f"needs a DiscreteSchedule, got {type(schedule).__name__}")
    checks.count("num_steps", num_steps)
    total = len(schedule.log_alphas) - 1
    if num_steps > total:
        raise ValueError(f"num_steps must be at most {total}, the chain's, got {num_steps}")
    return total


def _in_chain(schedule, steps):
    times = schedule.times[np.asarray(steps, int) + 1]
    return np.append(times, schedule.end if times[-1] > schedule.end else 0.0)


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


def log_linear(
    schedule: AbstractSchedule,
    num_steps: int,
    start: float | None = None,
    end: float | None = None,
    *,
    to_zero: bool = True,
) -> Times:
    """`num_steps + 1` times whose levels $\\rho = \\sigma/\\alpha$ fall by the same factor, but for
    the last, which is without noise.

    For samplers with `reaches_zero`; the model is never called at the last time.

    **Arguments:**

    - `schedule`: the noise schedule.
    - `num_steps`: how many steps, that to no noise included.
    - `start`, `end`: the largest and the smallest positive level; those of the schedule if left
      out.
    - `to_zero`: whether to end without noise; if not, all steps fall by the same factor.

    **Raises:** `ValueError` unless `start > end > 0` and both lie within the schedule's levels.

    **Reference:** Permenter, Yuan, Interpreting and Improving Diffusion Models from an Optimization
    Perspective, 2024, arXiv:2306.04848.
    """
    checks.count("num_steps", num_steps)
    largest, smallest = np.exp(-schedule.log_snr(np.array([schedule.start, schedule.end])))
    first, last = largest if start is None else start, smallest if end is None else end
    slack = 1 + 1e-9
    if not smallest <= last * slack or not last < first <= largest * slack:
        raise ValueError(
            f"need {smallest} <= end < start <= {largest}, got end={last} and start={first}"
        )
    levels = np.exp(np.linspace(np.log(first), np.log(last), num_steps + (not to_zero)))
    times = np.clip(schedule.time_at(-np.log(levels)), schedule.end, schedule.start)
    return np.append(times, 0.0) if to_zero else times


def _with_exact_ends(schedule, times):
    times[0], times[-1] = schedule.start, schedule.end
    return times
