"""Attention by polynomial features and the gradients of its adapters."""

import jax.numpy as jnp
import numpy as np

from ... import linalg
from ..shapes.function import AbstractFunctionCase

N, DIM, RANK, DEGREE = 5, 2, 1, 12


def _softmax(S):
    S = np.exp(S)
    return S / S.sum(1, keepdims=True)


class LowRankAttentionCase(AbstractFunctionCase):
    """Attention of two queries."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        shapes = (2, DIM), (N, DIM), (N, 3)
        return tuple(jnp.asarray(0.2 * rng.normal(size=shape), dtype) for shape in shapes)

    def call(self, *arguments):
        Q, K, V = arguments
        return linalg.low_rank_attention(Q, K, V, 8)

    def reference(self, *arguments):
        Q, K, V = (np.asarray(a, np.float64) for a in arguments)
        return _softmax(Q @ K.T) @ V


class AdapterLossCase(AbstractFunctionCase):
    """The loss of a layer with all three matrices adapted, as a function of adapters and data."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        shapes = [(RANK, DIM), (DIM, RANK)] * 3 + [(N, DIM), (N, DIM)]
        return tuple(jnp.asarray(0.4 * rng.normal(size=shape), dtype) for shape in shapes)

    def _loss(self, arguments):
        *adapters, X, Y = arguments
        base = 0.3 * jnp.eye(DIM, dtype=X.dtype)
        pairs = zip(adapters[::2], adapters[1::2], strict=True)
        query, key, value = (linalg.LowRankAdapter(base, A, B, 0.5) for A, B in pairs)
        # Of so high a degree that the polynomial is the exponential.
        return linalg.lora_attention_loss(linalg.AdaptedAttention(query, key, value), X, Y, DEGREE)

    def call(self, *arguments):
        return self._loss(arguments)

    def reference(self, *arguments):
        *adapters, X, Y = (np.asarray(a, np.float64) for a in arguments)
        pairs = zip(adapters[::2], adapters[1::2], strict=True)
        query, key, value = (0.3 * np.eye(DIM) + 0.5 / RANK * B @ A for A, B in pairs)
        C = _softmax(X @ query @ key.T @ X.T) @ X @ value - Y
        return 0.5 * np.sum(C**2)
