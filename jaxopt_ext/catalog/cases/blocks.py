"""Epochs of training by blocks, sample by sample and in `numpy`."""

import jax.numpy as jnp
import numpy as np

from ... import training
from ..shapes.function import AbstractFunctionCase

WIDTHS, N = (3, 4, 2), 5
GAMMA, RHO, ALPHA = 0.7, 1.3, 0.9


class BlockEpochCase(AbstractFunctionCase):
    """One epoch for a network with a hidden layer, from any blocks."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        array = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
        pairs = list(zip(WIDTHS[1:], WIDTHS[:-1], strict=True))
        weights = tuple(array(*pair) for pair in pairs)
        biases, outputs, inputs = (
            tuple(array(*lead, width) for width in WIDTHS[1:]) for lead in ((), (N,), (N,))
        )
        return weights, biases, outputs, inputs, array(N, WIDTHS[0]), array(N, WIDTHS[-1])

    def call(self, *arguments):
        weights, biases, outputs, inputs, X, Y = arguments
        model = training.BlockCoordinateTraining(WIDTHS, gamma=GAMMA, rho=RHO, alpha=ALPHA)
        steps = tuple(jnp.ones(2, X.dtype) for _ in WIDTHS[1:])
        state = model.epoch(training.BlockState(weights, biases, outputs, inputs, steps), X, Y)
        return state.weights, state.biases, state.outputs, state.inputs

    def reference(self, *arguments):
        *blocks, X, Y = [
            [np.array(a, np.float64) for a in part] if isinstance(part, tuple) else np.asarray(part)
            for part in arguments
        ]
        (W1, W2), (b1, b2), (V1, V2), (U1, U2) = blocks
        for s in range(N):
            V2[s] = (Y[s] + GAMMA * U2[s] + ALPHA * V2[s]) / (1 + GAMMA + ALPHA)
            U2[s] = (GAMMA * V2[s] + RHO * (W2 @ V1[s] + b2)) / (GAMMA + RHO)
        W2, b2 = _regression(W2, b2, U2, V1)
        for s in range(N):
            system = RHO * W2.T @ W2 + GAMMA * np.eye(WIDTHS[1])
            hidden = RHO * W2.T @ (U2[s] - b2) + GAMMA * np.maximum(U1[s], 0)
            V1[s] = np.linalg.solve(system, hidden)
            wanted = W1 @ X[s] + b1
            for j, v in enumerate(V1[s]):
                U1[s, j] = _least(v, wanted[j], U1[s, j])
        W1, b1 = _regression(W1, b1, U1, X)
        return (W1, W2), (b1, b2), (V1, V2), (U1, U2)


def _regression(W, b, U, V):
    """Weights row by row, then biases."""
    system = ALPHA * np.eye(V.shape[1]) + RHO * sum(np.outer(v, v) for v in V)
    W = np.stack(
        [
            np.linalg.solve(
                system, ALPHA * w + RHO * sum(u * v for u, v in zip(us, V, strict=True))
            )
            for w, us in zip(W, (U - b).T, strict=True)
        ]
    )
    gap = sum(u - W @ v for u, v in zip(U, V, strict=True))
    return W, (ALPHA * b + RHO * gap) / (RHO * len(V) + ALPHA)


def _least(v, wanted, old):
    """Both quadratics of a ReLU, and the kink."""

    def value(u):
        fit = GAMMA * (max(u, 0) - v) ** 2
        return fit + RHO * (u - wanted) ** 2 + ALPHA * (u - old) ** 2

    pulled = RHO * wanted + ALPHA * old
    above, below = (GAMMA * v + pulled) / (GAMMA + RHO + ALPHA), pulled / (RHO + ALPHA)
    return min((max(above, 0.0), min(below, 0.0), 0.0), key=value)
