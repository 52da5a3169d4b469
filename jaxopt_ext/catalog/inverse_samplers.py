"""Rows of derivatives of samples, and of samplers of inverse problems."""

import jaxopt_ext as jxt

from .cases.adjoint import AdjointCase
from .rows import FunctionRow, Row, SamplerRow

INVERSE_SAMPLERS: tuple[Row, ...] = (
    FunctionRow(
        "AdjointDPM",
        "diffusion.sample_adjoint",
        "Pan, Liew, Tan, Feng, Yan, AdjointDPM: Adjoint Sensitivity Method for Gradient "
        "Backpropagation of Diffusion Probabilistic Models, 2024, arXiv:2307.10711",
        AdjointCase,
        claim="diffusion/adjoint",
        system=("S051",),
    ),
    SamplerRow(
        "Classical Runge-Kutta",
        "diffusion.RK4",
        "Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, 1993",
        lambda: jxt.diffusion.RK4(),
        claim="diffusion/adjoint",
        order=4,
    ),
)
