"""Rows of the samplers."""

import jaxopt_ext as jxt

from .shapes import SamplerRow

SAMPLERS: tuple[SamplerRow, ...] = (
    SamplerRow(
        "DDIM",
        "diffusion.DDIM",
        "Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, arXiv:2010.02502",
        lambda: jxt.diffusion.DDIM(),
        claim="diffusion/ddim",
        order=1,
    ),
    SamplerRow(
        "Ancestral sampling (DDPM)",
        "diffusion.DDIM",
        "Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239",
        lambda: jxt.diffusion.DDIM(eta=1.0),
        claim="diffusion/ddim",
    ),
    SamplerRow(
        "Heun",
        "diffusion.Heun",
        "Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based Generative "
        "Models, 2022, arXiv:2206.00364",
        lambda: jxt.diffusion.Heun(),
        claim="diffusion/heun",
        order=2,
    ),
)
