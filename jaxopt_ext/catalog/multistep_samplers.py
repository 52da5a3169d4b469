"""Rows of the samplers that remember outputs or points of the steps before."""

import jaxopt_ext as jxt

from .rows import SamplerRow

_PNDM = (
    "Liu, Ren, Lin, Zhao, Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022, "
    "arXiv:2202.09778"
)

MULTISTEP_SAMPLERS: tuple[SamplerRow, ...] = (
    SamplerRow(
        "F-PNDM",
        "diffusion.PNDM",
        _PNDM,
        lambda: jxt.diffusion.PNDM(),
        claim="diffusion/pndm",
        system=("S053",),
        order=2,
        grid="uniform_time",
    ),
    SamplerRow(
        "S-PNDM",
        "diffusion.PNDM",
        _PNDM,
        lambda: jxt.diffusion.PNDM(2, jxt.diffusion.ImprovedEuler()),
        claim="diffusion/pndm",
        system=("S053",),
        order=2,
        grid="uniform_time",
        counts=(160, 320, 640),
    ),
    SamplerRow(
        "Gradient estimation",
        "diffusion.GradientEstimation",
        "Permenter, Yuan, Interpreting and Improving Diffusion Models from an Optimization "
        "Perspective, 2024, arXiv:2306.04848",
        lambda: jxt.diffusion.GradientEstimation(),
        claim="diffusion/gradient_estimation",
        system=("S139",),
        order=1,
    ),
)
