"""Networks of denoisers that are trained in their own way."""

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .. import diffusion, training
from .cases.small_denoiser import normal, samples
from .shapes import Row, TrainingRow

_EARLY_EXIT = (
    "Moon, Choi, Yun, Yoon, Lee, Cho, Lee, A Simple Early Exiting Framework for Accelerated "
    "Sampling in Diffusion Models, 2024, arXiv:2408.05927"
)
SIZE, DEPTH = 3, 2


class _Layer(eqx.Module):
    weight: Float[Array, "n n"]

    def __call__(self, hidden, condition):
        return hidden + jnp.tanh(self.weight @ hidden + condition)


class _Stack(diffusion.AbstractNetwork):
    """A network of two layers and an array for its level."""

    blocks: tuple[_Layer, ...]
    level: Float[Array, " n"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def stem(self, x, node, label=None):
        del label
        return x, self.level * node.sigma

    def head(self, hidden, condition):
        return hidden - condition


def _start(dtype):
    draw = normal(dtype)
    blocks = tuple(_Layer(draw(SIZE, SIZE) / 2) for _ in range(DEPTH))
    network = _Stack(shape=(SIZE,), blocks=blocks, level=draw(SIZE))
    exits = diffusion.ExitSchedule((2, 1))
    return diffusion.Denoiser(diffusion.EarlyExit(network, exits, diffusion.KarrasTime()))


def _early_exit():
    loss = diffusion.DenoisingLoss(diffusion.LogNormal(), diffusion.EDMWeighting(1.0))
    return training.GradientStep(diffusion.EarlyExitLoss(loss), optax.sgd(0.1))


DENOISER_NETWORKS: tuple[Row, ...] = (
    TrainingRow(
        "Early exit (adaptive score estimation)",
        "diffusion.EarlyExitLoss",
        _EARLY_EXIT,
        _early_exit,
        claim="diffusion/early_exit",
        system=("S140",),
        start=_start,
        batches=samples(16, SIZE),
    ),
)
