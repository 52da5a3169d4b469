"""Estimates of products that are exact, because rows of a level are all equal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...linalg import mlmc
from ..shapes.function import AbstractFunctionCase

LEVELS, ALLOCATION = (2, 5, 9), (2, 1, 3)


class ProductCase(AbstractFunctionCase):
    """A multilevel estimate for one key: whatever is drawn, levels of equal rows give the product
    itself, if each counts for as many rows as its block has."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        sizes = np.diff((0, *LEVELS))
        return tuple(
            jnp.asarray(np.repeat(rng.normal(size=(3, width)), sizes, axis=0), dtype)
            for width in (2, 3)
        )

    def call(self, *arguments):
        A, B = arguments
        product = mlmc.MultilevelProduct(LEVELS)
        return product.estimate(jax.random.key(0), A, B, ALLOCATION).value

    def reference(self, *arguments):
        A, B = (np.asarray(x, np.float64) for x in arguments)
        return A.T @ B
