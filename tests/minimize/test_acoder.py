"""A-CODER against loops in numpy, its theorem, and other solvers' answers."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import minimize, objectives, prox
from jaxopt_ext.core.finite_sum import AbstractSampling

RNG = np.random.default_rng(3)
X, Y, LAM = RNG.normal(size=(20, 7)), RNG.normal(size=20), 0.05
L = np.linalg.norm(X, 2) ** 2 / 20
PROBLEM = jxt.Composite(objectives.SquaredLoss(X, Y), prox.L1(LAM))
START = np.linspace(1.0, -2.0, 7)


def slope(w):
    return X.T @ (X @ w - Y) / 20


def value(w, gamma):
    """With the ridge `gamma`."""
    fit = np.sum((X @ w - Y) ** 2) / 40
    return fit + LAM * np.sum(np.abs(w)) + gamma / 2 * np.sum(w**2)


def soft(x, amount):
    return np.sign(x) * np.maximum(np.abs(x) - amount, 0)


@functools.cache
def solution(gamma):
    """By proximal gradient steps."""
    x = np.zeros(7)
    for _ in range(3000):
        x = soft(x - slope(x) / L, LAM / L) / (1 + gamma / L)
    np.testing.assert_allclose(soft(x - slope(x) / L, LAM / L) / (1 + gamma / L), x, atol=1e-14)
    return x


def by_hand(blocks, gamma, steps):
    """The recursion, written with explicit weights. `gamma` adds a ridge to g."""
    x0, y, v, z = START.copy(), START.copy(), START.copy(), np.zeros(7)
    x, p, a, total, path = START.copy(), slope(START), 0.0, 0.0, []
    for _ in range(steps):
        a_prev, before, x_prev, p_prev = a, total, x, p.copy()
        r = 0.4 * (1 + gamma * before) / L
        a = (r + np.sqrt(r**2 + 4 * r * before)) / 2
        total = before + a
        x = (before * y + a * v) / total
        w = x.copy()
        for block in reversed(blocks):
            p[block] = slope(w)[block]
            q = p[block] + (a_prev / a) * (slope(x_prev) - p_prev)[block]
            z[block] += a * q
            shrunk = soft((x0 - z)[block], total * LAM)
            v[block] = shrunk / (1 + total * gamma)
            y[block] = (before * y[block] + a * v[block]) / total
            w[block] = y[block]
        path.append((y.copy(), total))
    return path


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("blocks", "parts", "gamma"),
    [
        (3, [slice(0, 3), slice(3, 6), slice(6, 7)], 0.3),
        (None, [slice(j, j + 1) for j in range(7)], 0.0),
        (1, [slice(0, 7)], 0.0),
    ],
)
def test_equals_the_recursion_and_keeps_the_theorem(blocks, parts, gamma):
    path = by_hand(parts, gamma, 25)
    nonsmooth = prox.ElasticNet(LAM, gamma)
    problem = jxt.Composite(PROBLEM.smooth, nonsmooth)
    solver = minimize.ACODER(L, gamma, blocks, tol=0.0, max_steps=25)
    found = jxt.solve(problem, solver, jnp.asarray(START), trace=lambda problem, x, state: x).trace
    np.testing.assert_allclose(found, [y for y, _ in path], atol=1e-11)
    best = solution(gamma)
    distance = np.sum((best - START) ** 2)
    for y, total in path:
        gap = value(y, gamma) - value(best, gamma)
        assert gap <= distance / (2 * total) + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [minimize.ACODER(blocks=None, restart=True), minimize.ACODER(100.0, 0.0, 2, restart=True)],
)
def test_converges_without_a_bound_and_with_a_loose_one(solver):
    found = jxt.solve(PROBLEM, solver, jnp.asarray(START))
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(found.value, solution(0.0), atol=1e-4)


def vr_by_hand(blocks, K, epochs):
    """The epochs with the full batch, so without noise."""
    x0, total = START.copy(), 1 / (4 * L)
    z, a = K * total * slope(x0), total
    v = soft(x0 - total * slope(x0), total * LAM)
    tilde = v.copy()
    x_prev, y_prev, path = v, v, []
    for _ in range(epochs):
        before, last = total, a
        a = np.sqrt(K * before / (8 * L))
        total, mean, mu = before + a, np.zeros(7), slope(tilde)
        for k in range(1, K + 1):
            x = (before * tilde + a * v) / total
            w, w_prev, v = x.copy(), x_prev.copy(), v.copy()
            for block in reversed(blocks):
                q = slope(w) - slope(tilde) + mu
                q = q + (last / a) * (slope(x_prev) - slope(w_prev))
                z[block] += a * q[block]
                v[block] = soft(x0 - z / K, (before + a * k / K) * LAM)[block]
                w[block] = ((before * tilde + a * v) / total)[block]
                w_prev[block] = y_prev[block]
            x_prev, y_prev, last, mean = x, w, a, mean + w / K
        tilde = mean
        path.append(tilde)
    return path


class All(AbstractSampling):
    """All rows, whatever the key."""

    def __call__(self, key, n, b):
        return jnp.arange(n)


def fit(w, row):
    return 0.5 * (row[0] @ w - row[1]) ** 2


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("blocks", "parts"), [(3, [slice(0, 3), slice(3, 6), slice(6, 7)]), (1, [slice(0, 7)])]
)
def test_variance_reduction_equals_the_recursion_without_noise(blocks, parts):
    problem = jxt.FiniteSum(fit, (jnp.asarray(X), jnp.asarray(Y)), prox.L1(LAM), sampling=All())
    solver = minimize.VRACODER(5, 20, L, 0.0, blocks, tol=0.0, max_steps=6)
    found = jxt.solve(problem, solver, jnp.asarray(START), trace=lambda problem, x, state: x).trace
    np.testing.assert_allclose(found, vr_by_hand(parts, 5, 6), atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [3, 1])
def test_variance_reduction_reaches_the_solution(blocks):
    problem = jxt.FiniteSum(fit, (jnp.asarray(X), jnp.asarray(Y)), prox.L1(LAM))
    solver = minimize.VRACODER(40, blocks=blocks, restart=True, tol=1e-6)
    found = jxt.solve(problem, solver, jnp.asarray(START))
    assert found.status == jxt.Status.converged, (found.status, found.residual)
    np.testing.assert_allclose(found.value, solution(0.0), atol=1e-5)


def test_bad_input_raises():
    with pytest.raises(ValueError, match="lipschitz"):
        minimize.ACODER(-1.0)
    with pytest.raises(ValueError, match="at most the 7"):
        jxt.solve(PROBLEM, minimize.ACODER(blocks=8), jnp.zeros(7))
    with pytest.raises(ValueError, match="inner_steps"):
        minimize.VRACODER(0)
    problem = jxt.Composite(PROBLEM.smooth, prox.L2(1.0))
    with pytest.raises(TypeError, match="separable"):
        jxt.solve(problem, minimize.ACODER(blocks=None), jnp.zeros(7))
