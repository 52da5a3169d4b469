"""Blocks that are differential equations in depth."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ... import diffusion
from ..shapes.function import AbstractFunctionCase


class _Field(eqx.Module):
    weights: Array

    def __call__(self, state, tau, condition):
        return jnp.tanh(self.weights @ jnp.concatenate(state)) + tau * condition


class _Start(eqx.Module):
    weights: Array

    def __call__(self, hidden):
        return jnp.tanh(self.weights @ hidden)


class SecondOrderCase(AbstractFunctionCase):
    """A small block with its weights, a hidden value and a condition drawn."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        shapes = (3, 6), (3, 3), (3,), (3,), ()
        return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

    def call(self, weights, first, hidden, condition, raw):
        block = diffusion.SecondOrderBlock(_Field(weights), _Start(first))
        block = eqx.tree_at(lambda b: b.raw_duration, block, raw)
        return block(hidden, condition)

    def reference(self, weights, first, hidden, condition, raw):
        weights, first, h, c = (
            np.asarray(a, np.float64) for a in (weights, first, hidden, condition)
        )
        duration = np.log1p(np.exp(float(raw)))
        v = np.tanh(first @ h)
        slope = lambda h, v, t: (v, np.tanh(weights @ np.concatenate([h, v])) + t * c)
        d, t = duration / 2, 0.0
        for _ in range(2):
            a1, b1 = slope(h, v, t)
            a2, b2 = slope(h + d / 2 * a1, v + d / 2 * b1, t + d / 2)
            a3, b3 = slope(h + d / 2 * a2, v + d / 2 * b2, t + d / 2)
            a4, b4 = slope(h + d * a3, v + d * b3, t + d)
            h = h + d / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
            v = v + d / 6 * (b1 + 2 * b2 + 2 * b3 + b4)
            t += d
        return h
