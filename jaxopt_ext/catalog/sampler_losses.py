"""Rows of losses through samplers."""

import numpy as np
import optax

from .. import diffusion, training
from ..core.distances import RBF
from .cases.small_denoiser import line, samples
from .shapes import Row, TrainingRow

_TIMES = (3.0, 1.0, 0.3, 0.1)
_SAMPLES = samples(8, 2)


def _start(dtype):
    return diffusion.Denoiser(line(2, dtype), diffusion.Data())


def _schedule():
    return diffusion.VarianceExploding(start=3.0, end=0.1)


def _denoising():
    return diffusion.DenoisingLoss(diffusion.UniformTime(_schedule()), diffusion.MinSNR())


def _propagation(weight):
    return diffusion.PropagationLoss(
        _denoising(), diffusion.DDIM(1.0), _schedule(), np.array(_TIMES), 2, weight, 0.1, RBF(0.5)
    )


def _step(loss):
    return training.GradientStep(loss, optax.adam(0.1))


SAMPLER_LOSSES: tuple[Row, ...] = (
    TrainingRow(
        "MMD finetuning of few-step samplers",
        "diffusion.MMDLoss",
        "Aiello, Valsesia, Magli, Fast Inference in Denoising Diffusion Models via MMD Finetuning, "
        "2024, arXiv:2301.07969",
        lambda: _step(diffusion.MMDLoss(diffusion.DDIM(), _schedule(), np.array(_TIMES), RBF(0.5))),
        claim="diffusion/mmd_finetune",
        system=("S159",),
        start=_start,
        batches=_SAMPLES,
    ),
    TrainingRow(
        "Regularizer of error propagation",
        "diffusion.PropagationLoss",
        "Li, van der Schaar, On Error Propagation of Diffusion Models, 2024, arXiv:2308.05021",
        lambda: _step(_propagation(0.2)),
        claim="diffusion/error_propagation",
        system=("S164",),
        start=_start,
        batches=_SAMPLES,
        plain=lambda: (_step(_propagation(0.0)), _step(_denoising())),
    ),
)
