"""Grids of times that the samplers of a claim choose from."""

import functools

import numpy as np

from jaxopt_ext import diffusion


def powers(schedule, num_steps, power):
    """Powers of equally spaced numbers."""
    first, last = schedule.start ** (1 / power), schedule.end ** (1 / power)
    times = np.linspace(first, last, num_steps + 1) ** power
    times[0], times[-1] = schedule.start, schedule.end
    return times


POWERS = (0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
GRIDS = {
    **{f"power {p:g}": functools.partial(powers, power=p) for p in POWERS},
    "log snr": diffusion.uniform_log_snr,
    **{f"rho {rho:g}": functools.partial(diffusion.karras, rho=rho) for rho in (3.0, 7.0)},
}
