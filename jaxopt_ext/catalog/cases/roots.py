"""Roots of positive definite matrices, each by each method."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..shapes.function import AbstractFunctionCase


class RootCase(AbstractFunctionCase):
    """The same function by several methods, accurate enough for the suite, on one matrix.

    **Arguments:**

    - `function`: `(A, method, backward) -> root or roots`.
    - `powers`: exponents of what it returns.
    - `choices`: methods with their derivatives.
    """

    function: Callable[..., Any] = eqx.field(static=True)
    powers: tuple[float, ...] = eqx.field(static=True)
    choices: tuple[tuple[Any, Any], ...] = eqx.field(static=True)

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        vectors = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        return (jnp.asarray((vectors * [0.9, 1, 1.1]) @ vectors.T, dtype),)

    def call(self, *arguments):
        (A,) = arguments
        return [self.function(A, *choice) for choice in self.choices]

    def reference(self, *arguments):
        A = np.asarray(arguments[0], np.float64)
        values, vectors = np.linalg.eigh((A + A.T) / 2)
        roots = [(vectors * values**power) @ vectors.T for power in self.powers]
        return [roots] * len(self.choices)
