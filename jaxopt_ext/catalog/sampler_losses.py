"""Rows of losses through samplers."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import diffusion, training
from ..core.distances import RBF
from .rows import Row, TrainingRow

SIZE, BATCH = 2, 8
_TIMES = (3.0, 1.0, 0.3, 0.1)


class _Line(eqx.Module):
    """A denoiser's network of two arrays."""

    weight: Float[Array, "n n"]
    shift: Float[Array, " n"]

    def __call__(self, x, node):
        return jnp.tanh(x @ self.weight.T) + self.shift * node.sigma


def _start(dtype):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return diffusion.Denoiser(_Line(draw(SIZE, SIZE) / 2, draw(SIZE)), diffusion.Data())


def _samples(num_steps, dtype):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(num_steps, BATCH, SIZE)), dtype)


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
        batches=_samples,
    ),
    TrainingRow(
        "Regularizer of error propagation",
        "diffusion.PropagationLoss",
        "Li, van der Schaar, On Error Propagation of Diffusion Models, 2024, arXiv:2308.05021",
        lambda: _step(_propagation(0.2)),
        claim="diffusion/error_propagation",
        system=("S164",),
        start=_start,
        batches=_samples,
        plain=lambda: (_step(_propagation(0.0)), _step(_denoising())),
    ),
)
