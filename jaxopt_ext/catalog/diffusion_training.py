"""What trains denoisers."""

import optax

from .. import diffusion, training
from .cases.magnitude import MPLinearCase, PosthocCase
from .cases.small_denoiser import line, samples
from .cases.weighting import WeightingCase
from .shapes import FunctionRow, Row, TrainingRow

_MIN_SNR = (
    "Hang, Gu, Li, Bao, Chen, Hu, Geng, Guo, Efficient Diffusion Training via Min-SNR Weighting "
    "Strategy, 2023, arXiv:2303.09556"
)
_EDM2 = (
    "Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the Training "
    "Dynamics of Diffusion Models, 2024, arXiv:2312.02696"
)
_SAMPLES = samples(4, 3)


def _start(dtype):
    return diffusion.Denoiser(line(3, dtype), diffusion.Velocity())


def _loss():
    levels = diffusion.UniformTime(diffusion.VariancePreserving())
    return diffusion.DenoisingLoss(levels, diffusion.MinSNR())


def _step(loss):
    averages = diffusion.PowerFunctionAverage(0.1), diffusion.ExponentialAverage(0.9, 0.09)
    return training.GradientStep(loss, optax.adam(0.1), averages)


DIFFUSION_TRAINING: tuple[Row, ...] = (
    FunctionRow(
        "Min-SNR weighting",
        "diffusion.MinSNR",
        _MIN_SNR,
        lambda: WeightingCase(diffusion.MinSNR, min),
        claim="diffusion/min_snr",
        system=("S113",),
    ),
    TrainingRow(
        "Pareto weights of time steps (UGD)",
        "diffusion.UnifiedGradientWeights",
        _MIN_SNR,
        lambda: _step(diffusion.UnifiedGradientWeights(_loss(), 3, diffusion.ExactWeights(0.1))),
        claim="diffusion/min_snr",
        system=("S113",),
        start=_start,
        batches=_SAMPLES,
    ),
    TrainingRow(
        "Training of denoisers, with averages and snapshots",
        "diffusion.DenoisingLoss",
        "Kingma, Salimans, Poole, Ho, Variational Diffusion Models, 2021, arXiv:2107.00630",
        lambda: training.Snapshots(_step(_loss()), every=2, count=3),
        start=_start,
        batches=_SAMPLES,
    ),
    FunctionRow(
        "Magnitude-preserving layers (EDM2)",
        "diffusion.MPLinear",
        _EDM2,
        MPLinearCase,
        claim="diffusion/edm2",
        system=("S009",),
    ),
    FunctionRow(
        "Post-hoc averages of weights (EDM2)",
        "diffusion.posthoc_average",
        _EDM2,
        PosthocCase,
        claim="diffusion/edm2",
        system=("S009",),
        host="the small system of equations is solved in double precision on the host",
        opt_outs={"gradient": "it combines numbers on the host"},
    ),
)
