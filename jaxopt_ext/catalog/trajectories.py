"""Rows of models of trajectories."""

import numpy as np
import optax

from .. import diffusion, training
from .cases.small_denoiser import line, samples
from .shapes import Row, SamplerRow, TrainingRow

_CTM = (
    "Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon, Consistency Trajectory Models: "
    "Learning Probability Flow ODE Trajectory of Diffusion, 2024, arXiv:2310.02279"
)
_TIMES = (3.0, 1.0, 0.3, 0.1)


def _start(dtype):
    return diffusion.TrajectoryModel(line(2, dtype), diffusion.Data())


def _loss():
    schedule = diffusion.VarianceExploding(start=3.0, end=0.1)
    return diffusion.CTMLoss(
        schedule,
        np.array(_TIMES),
        solver=diffusion.Heun(),
        spans=diffusion.UniformSpans(1),
        targets=diffusion.LastTarget(),
        denoising=diffusion.DenoisingLoss(diffusion.LogNormal(), diffusion.EDMWeighting(0.5)),
        denoising_weight=diffusion.AdaptiveWeight(lambda model: model.network.shift),
    )


def _step():
    return training.GradientStep(_loss(), optax.adam(0.1), diffusion.ExponentialAverage(0.9))


TRAJECTORIES: tuple[Row, ...] = (
    TrainingRow(
        "Consistency trajectory models (CTM)",
        "diffusion.CTMLoss",
        _CTM,
        _step,
        claim="diffusion/consistency_trajectory",
        system=("S138",),
        start=_start,
        batches=samples(6, 2),
    ),
    SamplerRow(
        "Gamma-sampling of consistency trajectory models",
        "diffusion.GammaSampler",
        _CTM,
        lambda: diffusion.GammaSampler(),
        claim="diffusion/consistency_trajectory",
        system=("S138",),
        order=1,
        counts=(40, 80),
    ),
)
