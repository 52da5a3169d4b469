"""Lipschitz constants of networks so narrow that they have a formula."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...minimize import (
    Affine,
    GroupSort,
    Implicit,
    InteriorPoint,
    Residual,
    SlopeRestricted,
    lipschitz_bound,
)
from ..shapes.function import AbstractFunctionCase


class LipschitzCase(AbstractFunctionCase):
    """Layers of each kind one behind the other, of one neuron each: the constant is the product of
    theirs."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        first, last = rng.normal(size=(1, 3)), rng.normal(size=(2, 1))
        numbers = rng.uniform(0.3, 0.7, 6)
        return tuple(jnp.asarray(a, dtype) for a in (first, last, numbers))

    def call(self, *arguments):
        first, last, numbers = arguments
        h, g, w, a, b, c = (x[None, None] for x in numbers)
        activation = SlopeRestricted(-0.5, 1.0)
        layers = [
            Affine(first),
            GroupSort(2),
            Residual(h, g, w, activation),
            Implicit(a, b, c, activation),
            Affine(last),
        ]
        tol = 1e-11 if first.dtype == jnp.float64 else 1e-5
        return lipschitz_bound(layers, solver=InteriorPoint(tol=tol, max_steps=40)).bound

    def reference(self, *arguments):
        first, last, (h, g, w, a, b, c) = (np.asarray(x, np.float64) for x in arguments)
        middle = (h + g * w) * c * b / (1 - a)
        return np.linalg.norm(first) * middle * np.linalg.norm(last)
