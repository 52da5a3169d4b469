"""Predictions of a small network with less noise, constant and by step."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...diffusion import Data, Denoiser, EpsilonScaled, Node, linear_scale
from ..shapes.function import AbstractFunctionCase

_TIMES = np.array([1.0, 0.7, 0.4, 0.1])
_ALPHA, _SIGMA = np.array(0.8), np.array(0.6)


class EpsilonScalingCase(AbstractFunctionCase):
    """Noise and data of two steps of a run, and under one divisor."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        numbers = rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), 0.1 * rng.random(), 1.02
        return tuple(jnp.asarray(a, dtype) for a in numbers)

    def call(self, *arguments):
        x, matrix, slope, intercept = arguments
        model = Denoiser(lambda x, node: jnp.tanh(x @ matrix), Data())
        by_step = EpsilonScaled(model, linear_scale(slope, intercept, _TIMES))
        nodes = [Node(t, _ALPHA, _SIGMA) for t in _TIMES[1:3]]
        pairs = [(by_step, node) for node in nodes] + [(EpsilonScaled(model, intercept), nodes[0])]
        return [(model.noise(x, node), model.data(x, node)) for model, node in pairs]

    def reference(self, *arguments):
        x, matrix, slope, intercept = (np.asarray(a, np.float64) for a in arguments)
        noise = (x - _ALPHA * np.tanh(x @ matrix)) / _SIGMA
        scaled = [noise / divisor for divisor in (slope + intercept, intercept, intercept)]
        return [(e, (x - _SIGMA * e) / _ALPHA) for e in scaled]
