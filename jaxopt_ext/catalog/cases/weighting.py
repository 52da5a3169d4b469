"""Weightings of levels of noise."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..shapes.function import AbstractFunctionCase


class WeightingCase(AbstractFunctionCase):
    """A weighting made of one number, at levels drawn around zero.

    **Arguments:**

    - `make`: from the number to the weighting.
    - `plain`: the same as a function of the signal-to-noise ratio and the number.
    """

    make: Callable = eqx.field(static=True)
    plain: Callable = eqx.field(static=True)

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.normal(size=7), dtype), jnp.asarray(2 + rng.uniform(), dtype)

    def call(self, log_snr, number):
        return self.make(number)(log_snr)

    def reference(self, log_snr, number):
        return np.array([self.plain(np.exp(2 * float(x)), float(number)) for x in log_snr])
