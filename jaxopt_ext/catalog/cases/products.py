"""Products of the kernels' package as functions."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..shapes.function import AbstractFunctionCase


class FaultTolerantCase(AbstractFunctionCase):
    """A product of odd sizes, two of whose workers failed, other ones for each seed.

    **Arguments:**

    - `code`: Strassen's and Winograd's products and a second copy of Strassen's last one, 15 nodes.
    """

    code: eqx.Module

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        A, B = (jnp.asarray(rng.normal(size=s), dtype) for s in ((3, 5), (5, 4)))
        alive = np.ones(15, bool)
        # Not Strassen's third and Winograd's fifth, the pair that cannot fail together.
        alive[rng.choice([0, 1, 3, 4, 5, 6, 8, 9], 2, replace=False)] = False
        return A, B, jnp.asarray(alive)

    def call(self, *arguments):
        return self.code(*arguments)  # pyright: ignore[reportCallIssue]

    def reference(self, *arguments):
        A, B, _ = (np.asarray(x, np.float64) for x in arguments)
        return A @ B, True
