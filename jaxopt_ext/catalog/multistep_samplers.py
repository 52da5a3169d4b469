"""Rows of the samplers that remember outputs or points of the steps before."""

import jaxopt_ext as jxt

from .shapes import SamplerRow

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
        "Fourth-order numerical method (FON)",
        "diffusion.FON",
        _PNDM,
        lambda: jxt.diffusion.FON(),
        claim="diffusion/pndm",
        order=4,
        grid="uniform_time",
        opt_outs={"constant": "classical rules on dx/dt are exact for no constant prediction"},
        relative=True,
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
    SamplerRow(
        "BDIA",
        "diffusion.BDIA",
        "Zhang, Lewis, Kleijn, Exact Diffusion Inversion via Bi-directional Integration "
        "Approximation, 2024, arXiv:2307.10829",
        lambda: jxt.diffusion.BDIA(),
        claim="diffusion/bdia",
        system=("S076",),
        order=1,
        grid="uniform_time",
    ),
    SamplerRow(
        "EDICT",
        "diffusion.EDICT",
        "Wallace, Gokul, Naik, EDICT: Exact Diffusion Inversion via Coupled Transformations, 2023, "
        "arXiv:2211.12446",
        lambda: jxt.diffusion.EDICT(),
        claim="diffusion/bdia",
        system=("S076",),
        order=1,
        grid="uniform_time",
        counts=(160, 320, 640),
    ),
)
