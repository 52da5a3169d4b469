"""Consistency models."""

import optax

from .. import diffusion, training
from .cases.small_denoiser import line, samples
from .shapes import Row, TrainingRow


def _start(dtype):
    model = diffusion.ConsistencyModel(line(3, dtype, diffusion.networks.time))
    return diffusion.WeightedConsistency(model, frequencies=2, dtype=dtype)


def _step():
    loss = diffusion.ContinuousConsistencyLoss(warmup_steps=4)
    return training.GradientStep(loss, optax.adam(0.1), diffusion.PowerFunctionAverage(0.1))


CONSISTENCY: tuple[Row, ...] = (
    TrainingRow(
        "Continuous-time consistency models (sCM)",
        "diffusion.ContinuousConsistencyLoss",
        "Lu, Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, 2025, "
        "arXiv:2410.11081",
        _step,
        claim="diffusion/continuous_consistency",
        system=("S142",),
        start=_start,
        batches=samples(4, 3),
    ),
)
