"""Metrics: nearest ones, relaxed clusterings, learned ones."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.optimize

import jaxopt_ext as jxt

from ..shapes.function import AbstractFunctionCase

NODES = 5


def _settings(dtype):
    tol = 1e-12 if dtype == jnp.float64 else 1e-6
    return jxt.minimize.ProjectAndForget(capacity=32, sweeps=100, tol=tol, max_steps=2000)


def _symmetric(matrix, dtype):
    upper = np.triu(matrix, 1)
    return jnp.asarray(upper + upper.T, dtype)


def _triangles(n):
    """All triangle inequalities over the pairs of nodes, as rows of a matrix."""
    number = {pair: k for k, pair in enumerate(itertools.combinations(range(n), 2))}
    rows = []
    for triple in itertools.combinations(range(n), 3):
        sides = [number[pair] for pair in itertools.combinations(triple, 2)]
        for side in sides:
            row = np.zeros(len(number))
            row[sides] = -1
            row[side] = 1
            rows.append(row)
    return np.array(rows)


def _nearest(center, weights, G, h):
    """The point with the least weighted distance to a center among those with $Gx \\le h$, by
    nonnegative least squares (Lawson, Hanson, Solving Least Squares Problems, 1974, chapter 23)."""
    root = np.sqrt(weights)
    rows, sides = -G / root, G @ center - h
    system = np.concatenate([rows.T, sides[None]])
    wanted = np.zeros(len(system))
    wanted[-1] = 1
    dual, _ = scipy.optimize.nnls(system, wanted)
    gap = system @ dual - wanted
    return center - gap[:-1] / gap[-1] / root


class NearestMetricCase(AbstractFunctionCase):
    """Weighted metric nearness."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        draw = lambda low, high: rng.uniform(low, high, (NODES, NODES))
        return _symmetric(draw(0.1, 1), dtype), _symmetric(draw(0.5, 2), dtype)

    def call(self, *arguments):
        distances, weights = arguments
        solver = _settings(distances.dtype)
        return jxt.minimize.metric_nearness(distances, weights, solver=solver).distances

    def reference(self, *arguments):
        pairs = np.triu_indices(NODES, 1)
        given, weights = (np.asarray(a, np.float64)[pairs] for a in arguments)
        rows = _triangles(NODES)
        found = np.zeros((NODES, NODES))
        found[pairs] = _nearest(given, weights, rows, np.zeros(len(rows)))
        return found + found.T


class ClusteringCase(AbstractFunctionCase):
    """A complete signed graph, with much curvature so that it takes few rounds."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        size = (NODES, NODES)
        return (_symmetric(rng.choice([-1, 1], size) * rng.uniform(0.5, 2, size), dtype),)

    def call(self, *arguments):
        (similarity,) = arguments
        solver = _settings(similarity.dtype)
        return jxt.minimize.correlation_clustering(similarity, 1.0, solver=solver).distances

    def reference(self, *arguments):
        signed = np.asarray(arguments[0], np.float64)[np.triu_indices(NODES, 1)]
        given, weights, size = 1.0 * (signed < 0), np.abs(signed), len(signed)
        eye, none = np.eye(size), np.zeros((size, size))
        rows = _triangles(NODES)
        G = np.block([[eye, -eye], [-eye, -eye], [-eye, none], [eye, none]])
        G = np.concatenate([np.pad(rows, ((0, 0), (0, size))), G])
        h = np.concatenate([np.zeros(len(rows)), given, -given, 0 * given, 1 + 0 * given])
        center = np.concatenate([given, -np.ones(size)])
        return _nearest(center, np.concatenate([weights, weights]), G, h)[:size]


class LearnedMetricCase(AbstractFunctionCase):
    """A few pairs of points in the plane."""

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.normal(size=(8, 2)), dtype), jnp.asarray([0.4, 3.0], dtype)

    def call(self, *arguments):
        points, (upper, lower) = arguments
        near, far = np.array([[0, 1], [2, 3], [4, 5]]), np.array([[0, 6], [1, 7]])
        solver = _settings(points.dtype)
        return jxt.minimize.itml(points, near, far, upper, lower, 0.5, solver=solver).matrix

    def reference(self, *arguments):
        """Newton's method on the multipliers of an active set, for each until one is right."""
        points, (upper, lower) = (np.asarray(a, np.float64) for a in arguments)
        v = points[[0, 2, 4, 0, 1]] - points[[1, 3, 5, 6, 7]]
        sign, goal, gamma = np.array([1, 1, 1, -1, -1.0]), np.array([upper] * 3 + [lower] * 2), 0.5

        def at(z):
            matrix = np.linalg.inv(np.eye(2) + np.einsum("k,ki,kj->ij", sign * z, v, v))
            slack = gamma / (gamma / goal - sign * z)
            return matrix, slack, sign * (np.einsum("ki,ij,kj->k", v, matrix, v) - slack)

        for active in itertools.chain(*(itertools.combinations(range(5), k) for k in range(6))):
            held, z = list(active), np.zeros(5)
            for _ in range(60):
                matrix, slack, gap = at(z)
                if not held or np.max(np.abs(gap[held])) <= 1e-14:
                    break
                cross = np.einsum("ki,ij,lj->kl", v, matrix, v)
                slope = np.outer(sign, sign) * cross**2 + np.diag(slack**2 / gamma)
                move = np.linalg.solve(slope[np.ix_(held, held)], gap[held])
                part, fixed = 1.0, (goal, gamma, sign, v, z, held)
                while part > 1e-3 and not _inside(*fixed, move * part):
                    part *= 0.5
                z[held] += part * move
            matrix, slack, gap = at(z)
            if np.all(z >= -1e-13) and np.all(gap <= 1e-11):
                return matrix
        raise ValueError("no active set is right")


def _inside(goal, gamma, sign, v, z, held, move):
    z = z.copy()
    z[held] += move
    matrix = np.eye(2) + np.einsum("k,ki,kj->ij", sign * z, v, v)
    return np.linalg.eigvalsh(matrix)[0] > 0 and np.all(gamma / goal - sign * z > 0)
