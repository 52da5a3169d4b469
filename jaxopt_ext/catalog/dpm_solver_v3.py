"""Rows of DPM-Solver-v3."""

import numpy as np

import jaxopt_ext as jxt

from .shapes import SamplerRow


def _sampler():
    """With made-up statistics, the same for all coordinates."""
    levels = np.linspace(-8.0, 8.0, 201)
    signal = 1 / (1 + np.exp(-2 * levels))
    wave = signal * np.sin(levels)
    statistics = jxt.diffusion.ModelStatistics(
        1 - signal + 0.2 * wave, 0.3 * wave, 0 * wave, levels
    )
    return jxt.diffusion.DPMSolverV3(statistics, order=2)


DPM_SOLVER_V3: tuple[SamplerRow, ...] = (
    SamplerRow(
        "DPM-Solver-v3",
        "diffusion.DPMSolverV3",
        "Zheng, Lu, Chen, Zhu, DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model "
        "Statistics, 2023, arXiv:2310.13268",
        _sampler,
        claim="diffusion/dpm_solver_v3",
        system=("S179",),
        order=2,
        opt_outs={
            "constant": "a constant prediction is integrated exactly by the statistics of data or "
            "noise prediction only; the unit tests compare those with UniP"
        },
    ),
)
