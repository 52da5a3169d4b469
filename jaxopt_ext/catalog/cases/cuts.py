"""Cuts of graphs, where the largest is known."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...minimize import textbook
from ..shapes.function import AbstractFunctionCase

SIZE = 6


class LargestCutCase(AbstractFunctionCase):
    """A cut of a small graph, of which the best of many roundings is the largest.

    **Arguments:**

    - `relaxation`: what solves the relaxation.
    """

    relaxation: Any

    def draw(self, seed, dtype):
        edges = np.triu(np.random.default_rng(seed).random((SIZE, SIZE)), 1)
        return (jnp.asarray(edges + edges.T, dtype),)

    def call(self, *arguments):
        (weights,) = arguments
        return textbook.max_cut(weights, jax.random.key(0), 200, self.relaxation).value

    def reference(self, *arguments):
        weights = np.asarray(arguments[0], np.float64)
        signs = np.array(list(itertools.product([-1, 1], repeat=SIZE)))
        return np.max([(weights * (1 - np.outer(x, x))).sum() / 4 for x in signs])
