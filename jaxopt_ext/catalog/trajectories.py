"""Rows of models of trajectories."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import diffusion, training
from .rows import Row, SamplerRow, TrainingRow

_CTM = (
    "Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon, Consistency Trajectory Models: "
    "Learning Probability Flow ODE Trajectory of Diffusion, 2024, arXiv:2310.02279"
)
SIZE, BATCH = 2, 6
_TIMES = (3.0, 1.0, 0.3, 0.1)


class _Line(eqx.Module):
    """A network of two levels and two arrays."""

    weight: Float[Array, "n n"]
    shift: Float[Array, " n"]

    def __call__(self, x, node, target):
        return jnp.tanh(self.weight @ x) + self.shift * (node.sigma + target.sigma)


def _start(dtype):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return diffusion.TrajectoryModel(_Line(draw(SIZE, SIZE) / 2, draw(SIZE)), diffusion.Data())


def _samples(num_steps, dtype):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(num_steps, BATCH, SIZE)), dtype)


def _loss():
    schedule = diffusion.VarianceExploding(start=3.0, end=0.1)
    return diffusion.CTMLoss(
        schedule,
        np.array(_TIMES),
        solver=diffusion.Heun(),
        denoising=diffusion.denoising_term(schedule, 0.5),
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
        batches=_samples,
    ),
    SamplerRow(
        "Gamma-sampling of consistency trajectory models",
        "diffusion.GammaSampler",
        _CTM,
        lambda: diffusion.GammaSampler(),
        claim="diffusion/consistency_trajectory",
        system=("S138",),
        order=1,
    ),
)
