"""Linearized primal-dual methods, against loops in numpy, their guarantees and cvxpy."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.games import (
    AcceleratedLinearizedPrimalDual,
    InexactAcceleratedPrimalDual,
    LinearizedPrimalDual,
    LipschitzConstants,
    penalty_problem,
)

KINDS = (LinearizedPrimalDual, AcceleratedLinearizedPrimalDual, InexactAcceleratedPrimalDual)


def _walk(problem, method, start):
    return jxt.solve(problem, method, start, trace=lambda problem, z, state: state.point).trace


def _draw(seed, n, m):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n)) / n**0.5
    return root @ root.T, rng.normal(size=n), rng.normal(size=(m, n)), rng.normal(size=m)


def _by_hand(kind, smooth, phi_x, phi_y, prox_f, prox_h, mu, constants, x, y, K):
    """The points and the means, with the inner steps written out."""
    L_s, L_xx, L_xy = constants
    C = {
        LinearizedPrimalDual: K * (L_s + L_xx),
        AcceleratedLinearizedPrimalDual: 2 * L_s + K * L_xx,
        InexactAcceleratedPrimalDual: 2 * L_s,
    }[kind] + 3 * L_xy**2 / mu
    past, mean, out = (x, y), x.copy(), []
    for k in range(1, K + 1):
        theta, beta, sigma, tau = (k - 1) / k, (k + 1) / 2, 3 / (mu * k), k / C
        s = (1 + theta) * phi_y(x, y) - theta * phi_y(*past)
        past = x, y
        y = prox_h(y + sigma * s, sigma)
        look = x if kind is LinearizedPrimalDual else (1 - 1 / beta) * mean + x / beta
        if kind is InexactAcceleratedPrimalDual:
            large, small = 1 / tau + L_xx, 1 / tau
            root = np.sqrt(large / small)
            z = before = x
            for _ in range(int(np.ceil(root * np.log(k + 1)))):
                v = z + (root - 1) / (root + 1) * (z - before)
                slope = smooth(look) + phi_x(v, y) + (v - x) / tau
                before, z = z, prox_f(v - slope / large)
            x = z
        else:
            x = prox_f(x - tau * (smooth(look) + phi_x(x, y)))
        mean = (1 - 1 / beta) * mean + x / beta
        out.append(np.concatenate([x, y]))
    return np.stack(out), mean


@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_plain_loop(kind):
    """With a coupling that bends in x, on a box."""
    P, q, A, b = _draw(0, 4, 3)
    constants = LipschitzConstants(1.7, 2.5, 3.1)
    objective = lambda x, y: y @ (jnp.asarray(A) @ x + 0.2 * jnp.sum(x**2) - jnp.asarray(b))
    smooth = lambda x: 0.5 * x @ jnp.asarray(P) @ x + jnp.asarray(q) @ x
    problem = jxt.MinMax(objective, prox.Box(-0.5, 0.5), prox.L2Squared(0.8), smooth)
    start = jxt.PrimalDual(jnp.full(4, 0.1), jnp.full(3, 0.2))
    method = kind(0.8, *constants, tol=0.0, max_steps=20)
    wanted, mean = _by_hand(
        kind,
        lambda x: P @ x + q,
        lambda x, y: A.T @ y + 0.4 * np.sum(y) * x,
        lambda x, y: A @ x + 0.2 * np.sum(x**2) - b,
        lambda x: np.clip(x, -0.5, 0.5),
        lambda y, t: y / (1 + 0.8 * t),
        0.8,
        constants,
        np.full(4, 0.1),
        np.full(3, 0.2),
        20,
    )
    found = _walk(problem, method, start)
    np.testing.assert_allclose(np.concatenate(found, axis=1), wanted, atol=1e-11)
    value = jxt.solve(problem, method, start).value
    np.testing.assert_allclose(value.primal, mean, atol=1e-11)


def test_a_bilinear_game_is_that_of_chambolle_and_pock():
    """Their extrapolation is of the point; it is the same where the coupling is bilinear."""
    _, _, A, b = _draw(1, 5, 3)
    problem = jxt.MinMax(
        lambda x, y: y @ (jnp.asarray(A) @ x - jnp.asarray(b)), None, prox.L2Squared(0.5)
    )
    start = jxt.PrimalDual(jnp.ones(5), jnp.zeros(3))
    constants = LipschitzConstants(0.0, 0.0, np.linalg.norm(A, 2))
    method = AcceleratedLinearizedPrimalDual(0.5, *constants, tol=0.0, max_steps=200)
    found = _walk(problem, method, start)
    C = 3 * constants.coupling**2 / 0.5
    x = before = np.ones(5)
    y, out = np.zeros(3), []
    for k in range(1, 201):
        theta, sigma, tau = (k - 1) / k, 3 / (0.5 * k), k / C
        ahead = x + theta * (x - before)
        y = (y + sigma * (A @ ahead - b)) / (1 + 0.5 * sigma)
        before, x = x, x - tau * A.T @ y
        out.append(np.concatenate([x, y]))
    np.testing.assert_allclose(np.concatenate(found, axis=1), np.stack(out), atol=1e-10)


def _penalized(seed, n, m, spectrum, rho, radius):
    """A quadratic with a wide spectrum on a ball, under penalized inequalities; the least value."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
    P = turn @ np.diag(spectrum) @ turn.T
    q = rng.normal(size=n)
    A, b = rng.normal(size=(m, n)) / n**0.5, rng.normal(size=m) - 1
    problem = penalty_problem(
        lambda x: 0.5 * x @ jnp.asarray(P) @ x + jnp.asarray(q) @ x,
        lambda x: jnp.asarray(A) @ x - jnp.asarray(b),
        rho,
        prox.L2Ball(radius),
    )
    x = cp.Variable(n)
    value = 0.5 * cp.sum_squares(np.diag(np.sqrt(spectrum)) @ turn.T @ x) + q @ x
    value = value + rho / 2 * cp.sum_squares(cp.pos(A @ x - b))
    wanted = cp.Problem(cp.Minimize(value), [cp.norm(x) <= radius])
    wanted.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)

    def gap(x):
        over = np.maximum(A @ x - b, 0)
        return 0.5 * x @ P @ x + q @ x + rho / 2 * np.sum(over**2) - wanted.value

    constants = LipschitzConstants(np.max(spectrum), 0.0, np.linalg.norm(A, 2))
    return problem, gap, constants, x.value


@pytest.mark.slow
def test_rates_are_those_of_the_theorems():
    problem, gap, constants, best = _penalized(0, 60, 20, np.logspace(-4, 3, 60), 2.0, 5.0)
    start = jxt.PrimalDual(jnp.zeros(60), jnp.zeros(20))
    counts = np.array([100, 400, 1600])

    def gaps(kind):
        methods = [kind(0.5, *constants, tol=0.0, max_steps=int(k)) for k in counts]
        values = [jxt.solve(problem, method, start).value.primal for method in methods]
        return methods, np.array([gap(np.asarray(x)) for x in values])

    slope = lambda g: np.polyfit(np.log(counts), np.log(g), 1)[0]
    methods, fast = gaps(AcceleratedLinearizedPrimalDual)
    # The dual that answers a primal point is within the bound too: its part is small.
    radius = np.linalg.norm(best)
    bounds = [m.guarantee(k, constants, radius, 10.0) for m, k in zip(methods, counts, strict=True)]
    assert np.all(fast <= np.array(bounds))
    assert -2.3 < slope(fast) < -1.8
    _, slow = gaps(LinearizedPrimalDual)
    assert slope(slow) > -1.1
    assert np.all(slow[1:] > 20 * fast[1:])


def test_the_derivative_is_that_of_the_penalized_minimum():
    P, q, A, b = _draw(3, 4, 3)
    P = P + 0.5 * np.eye(4)

    def minimum(shift, method):
        problem = penalty_problem(
            lambda x: 0.5 * x @ P @ x + q @ x, lambda x: A @ x - shift, 2.0, prox.Box(-1.0, 1.0)
        )
        start = jxt.PrimalDual(jnp.zeros(4), jnp.zeros(3))
        return jnp.sum(jnp.sin(jxt.solve(problem, method, start).value.primal))

    method = InexactAcceleratedPrimalDual(0.5, tol=1e-5, max_steps=100_000)
    found = jax.jit(jax.grad(minimum))(jnp.asarray(b), method)

    def value(shift):
        x = cp.Variable(4)
        over = cp.sum_squares(cp.pos(A @ x - shift))
        cost = 0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x + over
        options = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
        cp.Problem(cp.Minimize(cost), [cp.abs(x) <= 1]).solve(solver=cp.CLARABEL, **options)
        return np.sum(np.sin(x.value))

    h = 1e-3
    wanted = [(value(b + h * e) - value(b - h * e)) / (2 * h) for e in np.eye(3)]
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_single_precision_and_constants_that_are_found():
    P, q, A, b = (a.astype(np.float32) for a in _draw(5, 4, 3))
    problem = penalty_problem(
        lambda x: 0.5 * x @ P @ x + q @ x, lambda x: A @ x - b, np.float32(2), prox.Box(-1.0, 1.0)
    )
    start = jxt.PrimalDual(jnp.zeros(4, jnp.float32), jnp.zeros(3, jnp.float32))
    found = jxt.solve(problem, AcceleratedLinearizedPrimalDual(0.5, tol=1e-3), start)
    assert found.status == jxt.Status.converged
    assert found.value.primal.dtype == found.value.dual.dtype == jnp.float32
    L_s, L_xx, L_xy = found.state.constants
    np.testing.assert_allclose(L_s, np.linalg.norm(P, 2), rtol=0.05)
    np.testing.assert_allclose(L_xy, np.linalg.norm(A, 2), rtol=0.05)
    assert L_xx < 1e-6


def test_bad_input_raises():
    with pytest.raises(ValueError, match="strong_concavity"):
        LinearizedPrimalDual(0.0)
    with pytest.raises(ValueError, match="lipschitz_primal"):
        AcceleratedLinearizedPrimalDual(1.0, lipschitz_primal=-1.0)
    with pytest.raises(ValueError, match="penalty"):
        penalty_problem(jnp.sum, lambda x: x, 0.0)
