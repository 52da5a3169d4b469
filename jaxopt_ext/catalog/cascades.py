"""Rows of cascades of denoisers."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import diffusion, training
from .cases.small_denoiser import normal, samples
from .shapes import Row, TrainingRow

SIZE = 3


class _Line(diffusion.AbstractNetwork):
    """A network of two arrays."""

    weight: Float[Array, "n n"]
    shift: Float[Array, " n"]
    shape: tuple[int, ...] = eqx.field(static=True)
    blocks: tuple[Any, ...] = ()

    def stem(self, x, node, label=None):
        del label
        return jnp.tanh(self.weight @ x.reshape(-1)) + self.shift * node.sigma, None

    def head(self, hidden, condition):
        del condition
        return hidden.reshape(self.shape)


def _start(dtype):
    draw = normal(dtype)
    line = lambda *shape: _Line(
        weight=draw(n := int(np.prod(shape)), n) / 2, shift=draw(n), shape=shape
    )
    noise = diffusion.Denoiser(line(SIZE))
    return diffusion.CascadedDenoiser(noise_model=noise, clean_network=line(2, SIZE))  # pyright: ignore[reportCallIssue]


def _step(*weight):
    levels = diffusion.UniformTime(diffusion.VariancePreserving())
    metric = (diffusion.PerceptualDistance(jnp.tanh), *weight) if weight else ()
    return training.GradientStep(diffusion.CascadedLoss(levels, *metric), optax.adam(0.1))


CASCADES: tuple[Row, ...] = (
    TrainingRow(
        "Cascaded diffusion with a metric (Cas-DM)",
        "diffusion.CascadedLoss",
        "An, Yang, Wang, Li, Liu, Wang, Luo, Bring Metric Functions into Diffusion Models, 2024, "
        "arXiv:2401.02414",
        lambda: _step(0.1),
        claim="diffusion/cascaded",
        system=("S136",),
        start=_start,
        batches=samples(4, SIZE),
        plain=lambda: (_step(0.0), _step()),
    ),
)
