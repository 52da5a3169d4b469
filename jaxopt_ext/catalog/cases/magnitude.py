"""Layers and averages of EDM2."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import diffusion
from ..shapes.function import AbstractFunctionCase


class MPLinearCase(AbstractFunctionCase):
    """A linear layer with its weights, a vector and a gain drawn."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        arrays = rng.normal(size=(3, 5)), rng.normal(size=5), 1 + rng.uniform()
        return tuple(jnp.asarray(a, dtype) for a in arrays)

    def call(self, weight, x, gain):
        layer = diffusion.MPLinear(5, 3, key=jax.random.key(0), dtype=weight.dtype)
        return eqx.tree_at(lambda layer: layer.weight, layer, weight)(x, gain)

    def reference(self, weight, x, gain):
        w, x = np.asarray(weight, np.float64), np.asarray(x, np.float64)
        w = w / (1e-4 + np.sqrt(np.mean(w**2, axis=1, keepdims=True)))
        return float(gain) / np.sqrt(5) * w @ x


class PosthocCase(AbstractFunctionCase):
    """An average of weights from stored ones, with whole powers: profiles are polynomials."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        return tuple(jnp.asarray(rng.normal(size=(2, 3)), dtype) for _ in range(2))

    def call(self, first, second):
        widths = tuple(map(diffusion.power_width, (9, 5)))
        return diffusion.posthoc_average(
            (first, second), (20, 40), widths, 40, diffusion.power_width(7)
        )

    def reference(self, first, second):
        def profile(t, power):
            return t, np.polynomial.Polynomial([0] * power + [(power + 1) / t ** (power + 1)])

        def product(one, other):
            whole = (one[1] * other[1]).integ()
            return whole(min(one[0], other[0])) - whole(0)

        stored = [profile(t, power) for power in (9, 5) for t in (20.0, 40.0)]
        matrix = np.array([[product(a, b) for b in stored] for a in stored])
        x = np.linalg.solve(matrix, [product(a, profile(40.0, 7)) for a in stored])
        return x / np.sum(x) @ np.concatenate([np.asarray(a, float) for a in (first, second)])
