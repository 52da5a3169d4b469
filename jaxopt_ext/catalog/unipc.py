"""Rows of UniPC and of the framework of which it is one decision."""

import jaxopt_ext as jxt

from .shapes import SamplerRow

_UNIPC = (
    "Zhao, Bai, Rao, Zhou, Lu, UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of "
    "Diffusion Models, 2023, arXiv:2302.04867"
)
UNIPC: tuple[SamplerRow, ...] = (
    SamplerRow(
        "UniPC",
        "diffusion.UniPC",
        _UNIPC,
        lambda: jxt.diffusion.UniPC(2, lower_order_final=0),
        claim="diffusion/unipc",
        system=("S099",),
        order=3,
        counts=(40, 80),
    ),
    SamplerRow(
        "UniP, the predictor of UniPC",
        "diffusion.UniP",
        _UNIPC,
        lambda: jxt.diffusion.UniP(2, jxt.diffusion.BH1(), lower_order_final=0),
        claim="diffusion/unipc",
        system=("S099",),
        order=2,
        counts=(40, 80),
    ),
    SamplerRow(
        "UniC, a corrector for any sampler",
        "diffusion.UniC",
        _UNIPC,
        lambda: jxt.diffusion.UniC(1, jxt.diffusion.DDIM(), lower_order_final=0),
        claim="diffusion/unipc",
        system=("S099",),
        order=2,
        counts=(40, 80),
    ),
    SamplerRow(
        "USF, a unified sampling framework",
        "diffusion.USFSampler",
        "Liu, Ning, Lin, Yang, Wang, A Unified Sampling Framework for Solver Searching of "
        "Diffusion Probabilistic Models, 2023, arXiv:2312.07243",
        lambda: jxt.diffusion.USFSampler(
            jxt.diffusion.Step(2, corrector=jxt.diffusion.PseudoCorrector())
        ),
        claim="diffusion/usf",
        system=("S166",),
        order=3,
        counts=(80, 160),
    ),
)
