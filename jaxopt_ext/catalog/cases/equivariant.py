"""Equivariant layers against their matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...linalg import equivariant
from ..shapes.function import AbstractFunctionCase
from .mixture import typed

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
        return typed(_drawn(jax.random.key(seed)), dtype)

    def call(self, *arguments):
        return [layer(x) for layer, x in zip(*arguments, strict=True)]

    def reference(self, *arguments):
        return [_dense(*pair) for pair in zip(*arguments, strict=True)]


@jax.jit
def _drawn(key):
    keys = jax.random.split(key, 2 * len(SETTINGS))
    layers, points = [], []
    for (group, n, k, l), one, other in zip(SETTINGS, keys[::2], keys[1::2], strict=True):
        layer = equivariant.EquivariantLinear(n, k, l, 2, 1, group, key=one)
        layers.append(layer)
        points.append(jax.random.normal(other, (2, *[n] * k)))
    # A bias of zeros would hide what it is multiplied with.
    filled = jax.tree.map(lambda a: a + 0.1 * jnp.arange(a.size).reshape(a.shape), layers)
    return filled, points


def _dense(layer, x):
    n, l = layer.n, layer.diagrams[0].l
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    y = np.zeros((layer.weights.shape[1], n**l))
    for diagram, weight in zip(layer.diagrams, np.asarray(layer.weights, float), strict=True):
        y += weight @ x @ equivariant.spanning_matrix(diagram, n, layer.group).T
    for diagram, weight in zip(layer.biases, np.asarray(layer.bias, float), strict=True):
        y += weight[:, None] * equivariant.spanning_matrix(diagram, n, layer.group).ravel()
    return y.reshape(-1, *[n] * l)
