"""Jacobians and what is made of their rows."""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt

from ..shapes.function import AbstractFunctionCase


class AggregatorCase(AbstractFunctionCase):
    """An aggregator on a Jacobian of four rows, of which two conflict.

    **Arguments:**

    - `rule`: the aggregator.
    - `expected`: weights from a Jacobian in double precision, by plain `numpy`; `None` if it draws.
    """

    rule: Any
    expected: Callable[[np.ndarray], np.ndarray] = eqx.field(static=True)

    def draw(self, seed: int, dtype: Any):
        J = np.random.default_rng(seed).normal(size=(3, 5))
        J[1] -= 0.5 * J[0]
        return (jnp.asarray(J, dtype),)

    def call(self, *arguments):
        (J,) = arguments
        return self.rule(J, jax.random.key(0))

    def reference(self, *arguments):
        J = np.asarray(arguments[0], np.float64)
        return self.expected(J) @ J


def _least(G, u):
    """The least of v'Gv over v >= u, among those on all faces."""
    m, best = len(u), u
    for size in range(1, m + 1):
        for free in map(list, itertools.combinations(range(m), size)):
            rest = [i for i in range(m) if i not in free]
            v = u.copy()
            v[free] = np.linalg.solve(G[np.ix_(free, free)], -G[np.ix_(free, rest)] @ u[rest])
            if np.all(v >= u - 1e-12) and v @ G @ v < best @ G @ best:
                best = v
    return best


def _regularized(J):
    G = J @ J.T
    return G / np.trace(G) + 1e-4 * np.eye(len(G))


def upgrad(J: np.ndarray) -> np.ndarray:
    """Weights of `UPGrad`."""
    return np.sum([_least(_regularized(J), u) for u in np.eye(len(J)) / len(J)], axis=0)


def dual_projection(J: np.ndarray) -> np.ndarray:
    """Weights of `DualProj`."""
    return _least(_regularized(J), np.full(len(J), 1 / len(J)))


class TrainingCase(AbstractFunctionCase):
    """The aggregated gradient of a linear model's losses, or their Gram matrix, in parts."""

    whole: bool = eqx.field(static=True)

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        parts = rng.normal(size=2), rng.normal(size=(5, 2)), rng.normal(size=5)
        return tuple(jnp.asarray(a, dtype) for a in parts)

    def call(self, *arguments):
        params, *batch = arguments
        loss = lambda w, sample: 0.5 * (sample[0] @ w - sample[1]) ** 2
        if not self.whole:
            return jxt.multiobjective.gramian(loss, params, tuple(batch), chunk=2)
        rule = jxt.multiobjective.Mean()
        return jxt.multiobjective.aggregated_grad(loss, params, tuple(batch), rule, chunk=2)

    def reference(self, *arguments):
        w, X, y = (np.asarray(a, np.float64) for a in arguments)
        J = (X @ w - y)[:, None] * X
        return np.mean(J, axis=0) if self.whole else J @ J.T
