"""Equivariant layers against their matrices."""

from typing import Any

import jax
import numpy as np

from ...linalg import equivariant
from ..shapes.function import AbstractFunctionCase
from .draws import draws

SETTINGS = (
    (equivariant.Orthogonal(), 3, 2, 2),
    (equivariant.SpecialOrthogonal(), 2, 2, 2),
    (equivariant.Symplectic(), 2, 2, 2),
    (equivariant.Symmetric(), 3, 2, 1),
)
"""Group, dimension, orders of input and output."""


class EquivariantCase(AbstractFunctionCase):
    """A layer of each group with two channels in and one out, on tensors of random entries."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        layers, points = [], []
        for group, n, k, l in SETTINGS:
            make = lambda settings=(n, k, l, 2, 1, group): equivariant.EquivariantLinear(
                *settings, key=jax.random.key(0)
            )
            layers.append(draws(make, rng, dtype))
            points.append(jax.device_put(rng.normal(size=(2, *[n] * k)).astype(dtype)))
        return layers, points

    def call(self, *arguments):
        return [layer(x) for layer, x in zip(*arguments, strict=True)]

    def reference(self, *arguments):
        return [_dense(*pair) for pair in zip(*arguments, strict=True)]


def _dense(layer, x):
    n, l = layer.n, layer.diagrams[0].l
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    y = np.zeros((layer.weights.shape[1], n**l))
    for diagram, weight in zip(layer.diagrams, np.asarray(layer.weights, float), strict=True):
        y += weight @ x @ equivariant.spanning_matrix(diagram, n, layer.group).T
    for diagram, weight in zip(layer.biases, np.asarray(layer.bias, float), strict=True):
        y += weight[:, None] * equivariant.spanning_matrix(diagram, n, layer.group).ravel()
    return y.reshape(-1, *[n] * l)
