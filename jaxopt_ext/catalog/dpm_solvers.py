"""Rows of the DPM-Solver family."""

import jaxopt_ext as jxt

from .rows import SamplerRow

_DPM_SOLVER = (
    "Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model "
    "Sampling in Around 10 Steps, 2022, arXiv:2206.00927"
)
DPM_SOLVERS: tuple[SamplerRow, ...] = (
    SamplerRow(
        "DPM-Solver",
        "diffusion.DPMSolver",
        _DPM_SOLVER,
        lambda: jxt.diffusion.DPMSolver(),
        claim="diffusion/dpm_solver",
        system=("S155",),
        order=3,
    ),
)
