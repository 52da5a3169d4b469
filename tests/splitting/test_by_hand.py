"""Iterations against loops in numpy, so that every rule and constant in them counts."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import objectives, prox, splitting
from jaxopt_ext.splitting.ruiz import ruiz_scaling

RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(30, 8)) * np.logspace(0, 1.5, 8), RNG.normal(size=30)
LAM = 1.5


def soft(x, amount):
    return np.sign(x) * np.maximum(np.abs(x) - amount, 0)


class Cost(prox.AbstractFunction):
    """c'x on the orthant."""

    c: jnp.ndarray
    convex = True

    def __call__(self, x):
        return jnp.vdot(self.c, x) + prox.NonNegative()(x)

    def prox(self, x, step=1.0):
        return jnp.maximum(x - step * self.c, 0)


def primal_dual_numpy(A, b, c, step_size, num_steps, adaptive):
    """Restarts as in the paper on linear programs, weight smoothed in logarithms by a half."""
    (m, n), weight, last, history = A.shape, 1.0, np.inf, []
    x, y, total_x, total_y, count = np.zeros(n), np.zeros(m), 0.0, 0.0, 0
    anchor, anchor_error, restarts = (x, y), np.inf, 0

    def residual(x, y):
        primal = x - np.maximum(x - A.T @ y - c, 0)
        return np.sqrt(np.sum(primal**2) + np.sum((A @ x - b) ** 2))

    for k in range(num_steps):
        tau, sigma = step_size / weight, step_size * weight
        new = np.maximum(x - tau * (A.T @ y + c), 0)
        y = y + sigma * (A @ (2 * new - x) - b)
        x = new
        total_x, total_y, count = total_x + x, total_y + y, count + 1
        mean = total_x / count, total_y / count
        error, mean_error = residual(x, y), residual(*mean)
        best = min(error, mean_error)
        candidate = mean if mean_error < error else (x, y)
        sufficient = best <= 0.2 * anchor_error
        necessary = best <= 0.8 * anchor_error and best > last
        long = count >= 0.36 * (k + 1) and count > 20
        if k > 0 and (sufficient or necessary or long):
            moved = [np.linalg.norm(a - b) for a, b in zip(candidate, anchor, strict=True)]
            if adaptive and min(moved) > 0:
                weight = np.sqrt(moved[1] / moved[0] * weight)
            (x, y), anchor, anchor_error = candidate, candidate, best
            total_x, total_y, count, restarts = 0.0, 0.0, 0, restarts + 1
        elif k == 0:
            anchor_error = error
        last = best
        history.append(np.concatenate([x, y]))
    return np.array(history), restarts


@pytest.mark.always(1)
@pytest.mark.parametrize("adaptive", [True, False])
def test_primal_dual_restarts(adaptive):
    A = RNG.uniform(size=(6, 10))
    b, c = A @ RNG.uniform(size=10), RNG.uniform(size=10)
    step = 0.9 / np.linalg.norm(A, 2)
    solver = splitting.PrimalDualHybridGradient(step, adaptive=adaptive, tol=0.0, max_steps=250)
    path = jxt.solve(
        jxt.Saddle(Cost(jnp.asarray(c)), prox.Box(b, b), jnp.asarray(A)),
        solver,
        jnp.zeros(10),
        trace=lambda problem, x, state: jnp.concatenate([x.primal, x.dual]),
    ).trace
    wanted, restarts = primal_dual_numpy(A, b, c, step, 250, adaptive)
    assert restarts > 3
    np.testing.assert_allclose(path, wanted, atol=1e-7)


def test_admm_balances_its_penalty():
    """Each third step, for the first thirty."""
    rho, z, y, penalties, path = 1e-4, np.zeros(8), np.zeros(8), [], []
    for k in range(1, 41):
        x = np.linalg.solve(X.T @ X + rho * np.eye(8), X.T @ Y + rho * z - y)
        old, z = z, soft(1.6 * x - 0.6 * z + y / rho, LAM / rho)
        y = y + rho * (1.6 * x - 0.6 * old - z)
        primal, dual = np.linalg.norm(x - z), rho * np.linalg.norm(z - old)
        if k % 3 == 0 and k <= 30:
            rho *= 2.0 if primal > 4 * dual else 0.5 if dual > 4 * primal else 1.0
        penalties.append(rho)
        path.append(z)
    solver = splitting.ADMM(
        1e-4,
        1.6,
        splitting.QuadraticUpdate(),
        balance=4.0,
        balance_every=3,
        balance_until=30,
        tol=0.0,
        max_steps=40,
    )
    problem = jxt.Splitting(lambda x: 0.5 * jnp.sum((X @ x - Y) ** 2), prox.L1(LAM))
    trace = lambda problem, x, state: (x.z, state.penalty)
    found = jxt.solve(problem, solver, jnp.zeros(8), trace=trace).trace
    np.testing.assert_allclose(found[1], penalties)
    assert len(set(penalties)) > 5
    np.testing.assert_allclose(found[0], path, atol=1e-8)


def spectral_numpy(moved, slope):
    """The curvature along a move, or None where the two are hardly correlated."""
    product = moved @ slope
    if product <= 0.2 * np.linalg.norm(moved) * np.linalg.norm(slope):
        return None
    steepest, least = slope @ slope / product, product / (moved @ moved)
    return least if 2 * least > steepest else steepest - least / 2


@pytest.mark.always(1)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_admm_takes_its_penalty_from_the_curvatures(scale):
    """Each third step, for the first thirty. In large units nothing moves at first."""
    rho, z, y, penalties, path, last = 1e-2, np.zeros(8), np.zeros(8), [], [], None
    for k in range(1, 41):
        gram = scale * X.T @ X
        x = np.linalg.solve(gram + rho * np.eye(8), scale * X.T @ Y + rho * z - y)
        old, z = z, soft(1.6 * x - 0.6 * z + y / rho, scale * LAM / rho)
        hat, y = y + rho * (x - old), y + rho * (1.6 * x - 0.6 * old - z)
        missing = (old - z) - (1 - 1.6) * (x - old)
        primal, dual = np.linalg.norm(x - z), rho * np.linalg.norm(missing)
        if k == 1 or (k % 3 == 0 and k <= 30):
            if last is not None:
                of_f = spectral_numpy(x - last[0], last[1] - hat)
                of_g = spectral_numpy(last[2] - z, last[3] - y)
                found = [c for c in (of_f, of_g) if c is not None]
                factor = 2.0 if primal > 10 * dual else 0.5 if dual > 10 * primal else 1.0
                factor = np.exp(np.mean(np.log(found))) / rho if found else factor
                rho *= 2.0 ** np.round(np.log2(np.clip(factor, 1 / 64, 64)))
            last = x, hat, z, y
        penalties.append(rho)
        path.append(z)
    solver = splitting.ADMM(
        1e-2,
        1.6,
        splitting.QuadraticUpdate(),
        balance=splitting.SpectralBalance(largest=64.0),
        balance_every=3,
        balance_until=30,
        tol=0.0,
        max_steps=40,
    )
    fit = lambda x: 0.5 * scale * jnp.sum((X @ x - Y) ** 2)
    problem = jxt.Splitting(fit, prox.L1(scale * LAM))
    trace = lambda problem, x, state: (x.z, state.penalty)
    found = jxt.solve(problem, solver, jnp.zeros(8), trace=trace).trace
    np.testing.assert_allclose(found[1], penalties)
    assert len(set(penalties)) > 3
    np.testing.assert_allclose(found[0], path, atol=1e-8)


def test_douglas_rachford_on_least_squares():
    t, relaxation, n = 0.7, 1.3, len(Y)
    u, path = np.ones(8), []
    prox_f = lambda v: np.linalg.solve(np.eye(8) + t / n * X.T @ X, v + t / n * X.T @ Y)
    for _ in range(10):
        p = prox_f(u)
        u = u + relaxation * (soft(2 * p - u, t * 0.1) - p)
        p = prox_f(u)
        path.append(soft(2 * p - u, t * 0.1))
    problem = jxt.Composite(objectives.SquaredLoss(X, Y), prox.L1(0.1))
    solver = splitting.DouglasRachford(t, relaxation, tol=0.0, max_steps=10)
    trace = lambda problem, x, state: x
    found = jxt.solve(problem, solver, jnp.ones(8), trace=trace).trace
    np.testing.assert_allclose(found, path, atol=1e-10)


def program(seed, n=6, m=9):
    rng = np.random.default_rng(seed)
    root, A = rng.normal(size=(n, n - 1)), rng.normal(size=(m, n)) * np.logspace(-2, 2, n)
    middle = A @ rng.normal(size=n)
    return root @ root.T, 100 * rng.normal(size=n), A, middle - 1, middle + rng.uniform(0, 2, m)


@pytest.mark.slow
def test_osqp_error_is_the_residual_relative_to_its_parts_and_the_gap():
    P, q, A, l, u = program(0)
    problem, trace = jxt.QuadraticProgram(P, q, A, l, u), lambda problem, x, state: (*x, state)
    solver = splitting.OSQP(tol=0.0, max_steps=5, polish=False)
    xs, ys, states = jxt.solve(problem, solver, None, trace=trace).trace
    for x, y, error in zip(np.asarray(xs), np.asarray(ys), np.asarray(states.error), strict=True):
        z = np.clip(A @ x + y, l, u)
        primal = np.abs(A @ x - z) / (1 + np.abs(A) @ np.abs(x) + np.abs(z))
        slopes = [P @ x, q, A.T @ y]
        sizes = np.abs(P) @ np.abs(x) + np.abs(q) + np.abs(A).T @ np.abs(y)
        dual = np.abs(sum(slopes)) / (1 + sizes)
        parts = [x @ P @ x, q @ x, np.maximum(y * l, y * u).sum()]
        gap = abs(sum(parts)) / (1 + np.max(np.abs(parts)))
        np.testing.assert_allclose(error, max(primal.max(), dual.max(), gap), rtol=1e-9)
        point = jxt.PrimalDual(jnp.asarray(x), jnp.asarray(y))
        np.testing.assert_allclose(solver.gap(problem, point, states), gap, rtol=1e-9)


@pytest.mark.always(1)
@pytest.mark.parametrize("scale", [1.0, 1e6, 0.0])
def test_ruiz_sweeps(scale):
    """With an objective of any size, also none; a variable of no curvature does not count."""
    P, q, A, l, u = program(1)
    P[0] = P[:, 0] = 0
    P, q = scale * P, scale * q
    D, E, cost = np.ones(6), np.ones(9), 1.0
    factor = lambda v: np.where(v > 0, 1 / np.sqrt(np.clip(v, 1e-4, 1e4)), 1)
    for _ in range(4):
        scaled_P, scaled_A = cost * D[:, None] * P * D, E[:, None] * A * D
        columns = np.maximum(np.abs(scaled_P).max(0), np.abs(scaled_A).max(0))
        D, E = D * factor(columns), E * factor(np.abs(scaled_A).max(1))
        scaled_P = cost * D[:, None] * P * D
        size = max(np.abs(scaled_P).max(0).sum() / 5, np.abs(cost * D * q).max())
        cost *= 1 / np.clip(size, 1e-4, 1e4) if size > 0 else 1.0
    found = ruiz_scaling(jxt.QuadraticProgram(P, q, A, l, u), 4)
    np.testing.assert_allclose(found.D, D, rtol=1e-9)
    np.testing.assert_allclose(found.E, E, rtol=1e-9)
    np.testing.assert_allclose(found.c, cost, rtol=1e-9)
