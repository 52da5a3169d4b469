"""Consistency models."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import diffusion, training
from .rows import Row, TrainingRow

SIZE, BATCH = 3, 4


class _Network(eqx.Module):
    """A network of two arrays that looks at the time."""

    weight: Float[Array, "n n"]
    shift: Float[Array, " n"]

    def __call__(self, x, node):
        return jnp.tanh(self.weight @ x) + self.shift * node.t


def _start(dtype):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    model = diffusion.ConsistencyModel(_Network(draw(SIZE, SIZE) / 2, draw(SIZE)))
    return diffusion.WeightedConsistency(model, frequencies=2, dtype=dtype)


def _samples(num_steps, dtype):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(num_steps, BATCH, SIZE)), dtype)


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
        batches=_samples,
    ),
)
