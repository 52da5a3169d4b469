"""Rows of derivatives of samples, and of samplers of inverse problems."""

import numpy as np

import jaxopt_ext as jxt

from .cases.adjoint import AdjointCase
from .shapes import FunctionRow, Row, SamplerRow

# One of two coordinates is seen; the suite's batch counts as one sample.
_MASK = np.array([True, False])
_POSTERIOR = {
    "law": "it samples given a measurement, and no posterior exactly",
    "pytree": "the measurement of the example is of arrays",
}


def _psld():
    autoencoder = jxt.diffusion.Autoencoder(lambda x: x / 2, lambda z: 2 * z + z**2 / 8)
    seen = jxt.diffusion.Inpainting(_MASK)
    return jxt.diffusion.PSLD(seen, np.zeros(2), autoencoder, batch_ndim=0)


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
    SamplerRow(
        "Euler",
        "diffusion.Euler",
        "Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, arXiv:2010.02502",
        lambda: jxt.diffusion.Euler(),
        claim="diffusion/adjoint",
        order=1,
        relative=True,
    ),
    SamplerRow(
        "Midpoint",
        "diffusion.Midpoint",
        "Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, 1993",
        lambda: jxt.diffusion.Midpoint(),
        order=2,
        relative=True,
    ),
    SamplerRow(
        "RePaint",
        "diffusion.RePaint",
        "Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, RePaint: Inpainting using Denoising "
        "Diffusion Probabilistic Models, 2022, arXiv:2201.09865",
        lambda: jxt.diffusion.RePaint(
            jxt.diffusion.Inpainting(_MASK), np.zeros(2), repeats=3, batch_ndim=0
        ),
        claim="diffusion/mcg",
        opt_outs=_POSTERIOR,
        relative=True,
    ),
    SamplerRow(
        "Projected data (null-space model)",
        "diffusion.DataProjection",
        "Wang, Yu, Zhang, Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, "
        "2023, arXiv:2212.00490",
        lambda: jxt.diffusion.DataProjection(
            jxt.diffusion.Inpainting(_MASK), np.zeros(2), batch_ndim=0
        ),
        claim="diffusion/mcg",
        opt_outs=_POSTERIOR,
        relative=True,
    ),
    SamplerRow(
        "Manifold constrained gradients (MCG)",
        "diffusion.MCG",
        "Chung, Sim, Ryu, Ye, Improving Diffusion Models for Inverse Problems using Manifold "
        "Constraints, 2022, arXiv:2206.00941",
        lambda: jxt.diffusion.MCG(jxt.diffusion.Inpainting(_MASK), np.zeros(2), batch_ndim=0),
        claim="diffusion/mcg",
        system=("S154",),
        opt_outs=_POSTERIOR,
    ),
    SamplerRow(
        "Posterior sampling with latent diffusion (PSLD)",
        "diffusion.PSLD",
        "Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai, Solving Linear Inverse Problems "
        "Provably via Posterior Sampling with Latent Diffusion Models, 2023, arXiv:2307.00619",
        _psld,
        claim="diffusion/psld",
        system=("S120",),
        opt_outs=_POSTERIOR,
    ),
)
