"""Samples of a network of one layer."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...diffusion import Denoiser
from ..shapes.function import AbstractFunctionCase


class AbstractSmallSampling(AbstractFunctionCase):
    """Four starts of three numbers, and a network that predicts the noise."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        matrix = rng.normal(size=(3, 3)) / 2
        return jnp.asarray(rng.normal(size=(4, 3)), dtype), jnp.asarray(matrix, dtype)

    def model(self, matrix) -> Denoiser:
        return Denoiser(lambda x, node: jnp.tanh(x @ matrix) * node.sigma)
