"""Samples of a small network, by rounds over a window of steps."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...diffusion import DDIM, Denoiser, VariancePreserving, sample_parallel, uniform_time
from ..shapes.function import AbstractFunctionCase

_STEPS = 10


class ParallelSamplingCase(AbstractFunctionCase):
    """Settled rounds of DDIM, against the steps one after the other."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        matrix = rng.normal(size=(3, 3)) / 2
        return jnp.asarray(rng.normal(size=(4, 3)), dtype), jnp.asarray(matrix, dtype)

    def call(self, *arguments):
        x, matrix = arguments
        model = Denoiser(lambda x, node: jnp.tanh(x @ matrix) * node.sigma)
        schedule = VariancePreserving(end=0.01)
        times = uniform_time(schedule, _STEPS)
        return sample_parallel(model, DDIM(), schedule, times, x, 6, tol=0.0).value

    def reference(self, *arguments):
        x, matrix = (np.asarray(a, np.float64) for a in arguments)
        t = np.linspace(1.0, 0.01, _STEPS + 1)
        alpha = np.exp(-0.25 * 19.9 * t**2 - 0.05 * t)
        sigma = np.sqrt(1 - alpha**2)
        for j in range(_STEPS):
            noise = np.tanh(x @ matrix) * sigma[j]
            data = (x - sigma[j] * noise) / alpha[j]
            x = alpha[j + 1] * data + sigma[j + 1] * noise
        return x
