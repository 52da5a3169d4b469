"""Relaxed solves of small systems, and the laws of the policies that choose a relaxation."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.optimize

from ... import linalg
from ..shapes.function import AbstractFunctionCase

SIZE, ROUNDS, GRID, RIDGE = 4, 12, (1.0, 1.3, 1.6), 0.1


class RelaxedSolveCase(AbstractFunctionCase):
    """$A^{-1} b$ for a positive definite matrix.

    **Arguments:**

    - `solver`: `SOR` or `SSORCG`.
    """

    solver: Any = eqx.field(static=True)

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(SIZE, SIZE))
        matrix = root @ root.T + SIZE * np.eye(SIZE)
        return jnp.asarray(matrix, dtype), jnp.asarray(rng.normal(size=SIZE), dtype)

    def call(self, *arguments):
        matrix, vector = arguments
        operator = lx.MatrixLinearOperator(matrix, lx.symmetric_tag)
        rtol = 1e-13 if vector.dtype == jnp.float64 else 1e-6
        return lx.linear_solve(operator, vector, self.solver(1.1, rtol), throw=False).value

    def reference(self, *arguments):
        matrix, vector = (np.asarray(a, np.float64) for a in arguments)
        if self.solver is linalg.SSORCG:  # sees a symmetric derivative only
            matrix = (matrix + matrix.T) / 2
        return np.linalg.solve(matrix, vector)


class SequenceCase(AbstractFunctionCase):
    """Solutions of three shifted systems, whatever relaxations were drawn."""

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        shifts, vectors = rng.uniform(0.5, 1, 3), rng.normal(size=(3, SIZE))
        return jnp.asarray(shifts, dtype), jnp.asarray(vectors, dtype)

    def call(self, *arguments):
        shifts, vectors = arguments
        policy = linalg.TsallisINF(jnp.asarray(GRID, shifts.dtype))
        rtol = 1e-13 if shifts.dtype == jnp.float64 else 1e-6
        system = lambda shift: lx.MatrixLinearOperator(_laplacian(SIZE, shift))
        return linalg.solve_sequence(
            system, shifts, vectors, policy, jax.random.key(0), solver=linalg.SOR(rtol=rtol)
        ).values

    def reference(self, *arguments):
        shifts, vectors = (np.asarray(a, np.float64) for a in arguments)
        base = 2 * np.eye(SIZE) - np.eye(SIZE, k=1) - np.eye(SIZE, k=-1)
        pairs = zip(shifts, vectors, strict=True)
        return np.stack([np.linalg.solve(base + c * np.eye(SIZE), b) for c, b in pairs])


def _laplacian(size, shift):
    ones = jnp.ones(size - 1, shift.dtype)
    return (2 + shift) * jnp.eye(size, dtype=shift.dtype) - jnp.diag(ones, 1) - jnp.diag(ones, -1)


class PolicyCase(AbstractFunctionCase):
    """The law of a policy's next action after given actions and their costs.

    **Arguments:**

    - `policy`: `"chebyshev"`, or `"binned"` for Tsallis-INF in two bins.
    """

    policy: str = eqx.field(static=True)

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        actions = jnp.asarray(rng.integers(0, len(GRID), ROUNDS), jnp.int32)
        costs = rng.integers(2, 30, ROUNDS)
        contexts = rng.uniform(-1, 1, ROUNDS + 1)
        return actions, jnp.asarray(costs, dtype), jnp.asarray(contexts, dtype)

    def call(self, *arguments):
        actions, costs, contexts = arguments
        grid = jnp.asarray(GRID, costs.dtype)
        policy: Any
        if self.policy == "chebyshev":
            policy = linalg.ChebCB(grid, degree=2, sweeps=200, ridge=RIDGE)
        else:
            policy = linalg.Binned(linalg.TsallisINF(grid), num_bins=2)

        def round(state, given):
            action, cost, context = given
            # What is drawn is replaced by what is given, with the probability that it had.
            p = policy.probabilities(state, context)
            _, state = policy.select(state, context, jax.random.key(0))
            state = _with_probability(state, p[action])
            if self.policy == "chebyshev":
                scale = policy._scale(state)[0]
                predicted = state.theta[action] @ policy.features(context) / scale
                state = eqx.tree_at(lambda s: s.predicted, state, predicted)
            return policy.update(state, action, cost), p

        state, before = jax.lax.scan(round, policy.init(), (actions, costs, contexts[:-1]))
        return before, policy.probabilities(state, contexts[-1])

    def reference(self, *arguments):
        actions, costs, contexts = (np.asarray(a, np.float64) for a in arguments)
        if self.policy == "chebyshev":
            law: Any = _Chebyshev(len(GRID), 3)
        else:
            law = _Bins([_Tsallis(len(GRID)) for _ in range(2)])
        before = []
        for action, cost, context in zip(actions.astype(int), costs, contexts[:-1], strict=True):
            before.append(law.probabilities(context))
            law.update(action, cost, context)
        return np.stack(before), law.probabilities(contexts[-1])


def _with_probability(state, p):
    if hasattr(state, "bin"):
        chosen = state.states.chosen.at[state.bin].set(p)
        return eqx.tree_at(lambda s: s.states.chosen, state, chosen)
    return state


class _Tsallis:
    def __init__(self, d):
        self.sums, self.costs, self.d = np.zeros(d), [], d

    def probabilities(self, context):
        eta = 2 / math.sqrt(len(self.costs) + 1)
        mean = (np.mean(self.costs) if self.costs else 0) or 1.0
        law = lambda x: 4 * (eta * (self.sums / mean - x)) ** -2.0
        low = self.sums.min() / mean - 2 * math.sqrt(self.d) / eta
        high = self.sums.min() / mean - 2 / eta
        x = scipy.optimize.brentq(lambda x: law(x).sum() - 1, low - 1e-9, high + 1e-9, xtol=1e-15)
        return law(x) / law(x).sum()

    def update(self, action, cost, context):
        self.sums[action] += (cost - 1) / self.probabilities(context)[action]
        self.costs.append(cost - 1)


class _Bins:
    def __init__(self, laws):
        self.laws = laws

    def _one(self, context):
        return self.laws[int(context >= 0)]

    def probabilities(self, context):
        return self._one(context).probabilities(context)

    def update(self, action, cost, context):
        self._one(context).update(action, cost, context)


class _Chebyshev:
    def __init__(self, d, m):
        self.d, self.m, self.history = d, m, []
        self.theta, self.scale, self.eta = np.zeros((d, m)), 1.0, 0.0

    def _features(self, context):
        return np.array([np.polynomial.Chebyshev.basis(j)(context) for j in range(self.m)])

    def probabilities(self, context):
        predicted = self.theta @ self._features(context)
        best = int(np.argmin(predicted))
        p = 1 / (self.d + self.eta * (predicted - predicted[best]))
        p[best] = 0
        p[best] = 1 - p.sum()
        return p

    def update(self, action, cost, context):
        features = self._features(context)
        self.history.append((action, cost, features, self.theta[action] @ features))
        costs = np.array([h[1] for h in self.history])
        spread, t = costs.max() - costs.min(), len(costs)
        N = 2 + 4 * spread / costs.max() * (1 + math.log(self.m))
        self.scale = costs.max() * N
        bound = np.append(1 / N, 2 * spread / self.scale / np.arange(1, self.m))
        if spread == 0:
            bound[1:] = 1e-300
        for a in range(self.d):
            rows = [h for h in self.history if h[0] == a]
            X = np.array([h[2] for h in rows] + list(math.sqrt(RIDGE) * np.eye(self.m)))
            y = np.array([(h[1] - 1) / self.scale for h in rows] + self.m * [0.0])
            fit = scipy.optimize.lsq_linear(X, y, (-bound, bound), method="bvls", tol=1e-15)
            self.theta[a] = fit.x
        errors = [(h[3] - (h[1] - 1) / self.scale) ** 2 for h in self.history]
        alpha = (math.pi + 2 / math.pi * math.log(2 * self.m + 1)) * spread
        alpha /= 2 * self.scale * (self.m + 1)
        self.eta = 2 * t * math.sqrt(self.d * t / (sum(errors) + 2 * alpha**2 * t))
