"""A small flow and its derivatives, by loops."""

import itertools

import jax.numpy as jnp
import numpy as np

from ... import diffusion
from ..shapes.function import AbstractFunctionCase

TIMES = np.geomspace(2.0, 0.2, 41)


class AdjointCase(AbstractFunctionCase):
    """Three samples of a network of one layer, where the level of noise is the time."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.normal(size=(3, 2)), dtype), jnp.asarray(rng.normal(size=2), dtype)

    def call(self, *arguments):
        x, theta = arguments
        model = diffusion.Denoiser(lambda x, node: jnp.tanh(theta * x + node.sigma))
        schedule = diffusion.VarianceExploding(start=2.0, end=0.2)
        return diffusion.sample_adjoint(model, diffusion.RK4(), schedule, TIMES, x).value

    def reference(self, *arguments):
        y, theta = (np.asarray(a, np.float64) for a in arguments)
        slope = lambda t, y: np.tanh(theta * y + t)
        for s, t in itertools.pairwise(TIMES):
            h = t - s
            k1 = slope(s, y)
            k2 = slope(s + h / 2, y + h / 2 * k1)
            k3 = slope(s + h / 2, y + h / 2 * k2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(t, y + h * k3))
        return y
