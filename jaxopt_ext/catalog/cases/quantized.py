"""Quantizers and what they are trained with, in loops of `numpy`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..shapes.function import AbstractFunctionCase


class QuantizeCase(AbstractFunctionCase):
    """A quantizer of a matrix, four bits.

    **Arguments:**

    - `make`: `(x, alpha, bits) -> quantized`.
    """

    make: Callable[..., Any] = eqx.field(static=True)

    def draw(self, seed: int, dtype: Any):
        x = np.random.default_rng(seed).normal(size=(4, 5))
        return jnp.asarray(x, dtype), jnp.asarray(1.3, dtype)

    def call(self, *arguments):
        return self.make(*arguments, 4)

    def reference(self, *arguments):
        x, alpha = (np.asarray(a, np.float64) for a in arguments)
        return _nearest(x, alpha, 7)


def _nearest(x, alpha, q):
    levels = alpha * np.arange(-q, q + 1) / q
    return levels[np.argmin(np.abs(x[..., None] - levels), axis=-1)]


class QuantizedConvolutionCase(AbstractFunctionCase):
    """A quantized convolution as a function of its parameters and of images.

    **Arguments:**

    - `make`: `(weight, bias, alpha, bits) -> layer`.
    """

    make: Callable[..., Any] = eqx.field(static=True)

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        shapes = (3, 2, 3, 3), (3,), (2, 2, 4, 4)
        w, b, x = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
        return w, b, jnp.asarray(1.3, dtype), x

    def call(self, *arguments):
        *parameters, x = arguments
        return self.make(*parameters, 4)(x)

    def reference(self, *arguments):
        w, b, alpha, x = (np.asarray(a, np.float64) for a in arguments)
        w = _nearest(w, np.abs(w).max() + 1e-8, 7)
        x = np.pad(_nearest(x, alpha, 7), ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        return np.einsum("bcijkl,ockl->boij", windows, w) + b[:, None, None]


class AttentionCase(AbstractFunctionCase):
    """The transfer from a fixed teacher, of other channels.

    **Arguments:**

    - `make`: `(student, teacher) -> loss`.
    """

    make: Callable[..., Any] = eqx.field(static=True)

    def _teacher(self):
        return np.random.default_rng(7).normal(size=(2, 4, 3, 5))

    def draw(self, seed: int, dtype: Any):
        # Not along the directions of the suite: the scale of features does not matter.
        rng = np.random.default_rng((seed, 1))
        return (jnp.asarray(rng.normal(size=(2, 3, 3, 5)), dtype),)

    def call(self, *arguments):
        (student,) = arguments
        return self.make(student, jnp.asarray(self._teacher(), student.dtype))

    def reference(self, *arguments):
        maps = []
        for features in (np.asarray(arguments[0], np.float64), self._teacher()):
            energy = [np.mean(sample**2, axis=0) for sample in features]
            maps.append(np.array([e / np.linalg.norm(e) for e in energy]))
        return np.mean((maps[0] - maps[1]) ** 2)
