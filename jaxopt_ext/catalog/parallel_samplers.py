"""Rows of samplers with provable rates, samplers in parallel, and models scaled in sampling."""

import jaxopt_ext as jxt

from .cases.epsilon_scaling import EpsilonScalingCase
from .cases.parallel_sampling import ParallelSamplingCase
from .shapes import FunctionRow, Row, SamplerRow

_ACCELERATED = (
    "Li, Huang, Efimov, Wei, Chi, Chen, Accelerating Convergence of Score-Based Diffusion Models, "
    "Provably, 2024, arXiv:2403.03852"
)
_SCORE_STEP = "steps from score to sample are exact for no constant prediction"

PARALLEL_SAMPLERS: tuple[Row, ...] = (
    SamplerRow(
        "Accelerated DDIM",
        "diffusion.AcceleratedDDIM",
        _ACCELERATED,
        lambda: jxt.diffusion.AcceleratedDDIM(),
        claim="diffusion/accelerated",
        system=("S083",),
        order=2,
        grid="karras",
        opt_outs={"constant": _SCORE_STEP},
    ),
    SamplerRow(
        "Accelerated DDPM",
        "diffusion.AcceleratedDDPM",
        _ACCELERATED,
        lambda: jxt.diffusion.AcceleratedDDPM(),
        claim="diffusion/accelerated",
        system=("S083",),
    ),
    SamplerRow(
        "Plain score-based DDIM",
        "diffusion.PlainScoreDDIM",
        _ACCELERATED,
        lambda: jxt.diffusion.PlainScoreDDIM(),
        claim="diffusion/accelerated",
        order=1,
        opt_outs={
            "constant": _SCORE_STEP,
            "law": "of first order with a large constant: its covariance is 5 % off with the "
            "suite's steps",
        },
        relative=True,
    ),
    SamplerRow(
        "Plain score-based DDPM",
        "diffusion.PlainScoreDDPM",
        _ACCELERATED,
        lambda: jxt.diffusion.PlainScoreDDPM(),
        claim="diffusion/accelerated",
        relative=True,
    ),
    FunctionRow(
        "ParaDiGMS",
        "diffusion.sample_parallel",
        "Shih, Belkhale, Ermon, Sadigh, Anari, Parallel Sampling of Diffusion Models, 2023, "
        "arXiv:2305.16317",
        ParallelSamplingCase,
        claim="diffusion/paradigms",
        system=("S131",),
        opt_outs={
            "gradient": "the number of rounds is found in the run, which reverse mode cannot pass; "
            "sample has the derivative"
        },
    ),
    FunctionRow(
        "Epsilon scaling",
        "diffusion.EpsilonScaled",
        "Ning, Li, Su, Salah, Ertugrul, Elucidating the Exposure Bias in Diffusion Models, 2024, "
        "arXiv:2308.15321",
        EpsilonScalingCase,
        claim="diffusion/epsilon_scaling",
        system=("S097",),
    ),
)
