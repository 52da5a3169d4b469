"""What each iteration promises beyond the contract of solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import fixed_point, objectives, prox, splitting

RNG = np.random.default_rng(0)
ROTATION = jnp.array([[0.0, -1.0], [1.0, 0.0]])


def slow_map(n=20, radius=0.995):
    q = np.linalg.qr(RNG.normal(size=(n, n)))[0]
    m, c = jnp.asarray(q * np.linspace(0, radius, n) @ q.T), jnp.asarray(RNG.normal(size=n))
    return jxt.FixedPoint(lambda x: m @ x + c), np.linalg.solve(np.eye(n) - m, c)


def test_a_rotation_defeats_picard_only():
    problem = jxt.FixedPoint(lambda x: ROTATION @ x)
    start = jnp.ones(2)
    assert jxt.solve(problem, fixed_point.Picard(), start).status == jxt.Status.step_limit
    for solver in (fixed_point.KrasnoselskiiMann(), fixed_point.Halpern(), fixed_point.Anderson()):
        np.testing.assert_allclose(jxt.solve(problem, solver, start).value, 0, atol=1e-4)


def test_averaging_by_hand():
    problem = jxt.FixedPoint(lambda x: ROTATION @ x)
    solver = fixed_point.KrasnoselskiiMann(averaging=0.3, max_steps=3)
    step = 0.7 * np.eye(2) + 0.3 * np.asarray(ROTATION)
    expected = step @ step @ step @ np.ones(2)
    np.testing.assert_allclose(jxt.solve(problem, solver, jnp.ones(2)).value, expected)


def test_halpern_by_hand_and_its_rate():
    problem = jxt.FixedPoint(lambda x: ROTATION @ x)
    x = anchor = np.array([1.0, 2.0])
    for k in range(5):
        x = anchor / (k + 2) + (1 - 1 / (k + 2)) * np.asarray(ROTATION) @ x
    solver = fixed_point.Halpern(max_steps=6, tol=0.0)
    np.testing.assert_allclose(jxt.solve(problem, solver, jnp.asarray(anchor)).value, x)
    problem, solution = slow_map()
    residuals = jxt.solve(
        problem, fixed_point.Halpern(max_steps=300, tol=0.0), jnp.zeros(20), trace=True
    ).trace
    bound = 2 * np.linalg.norm(solution) / (np.arange(300) + 1)
    assert np.all(residuals <= bound)


def anderson_numpy(fun, x, history, steps):
    """Type-II Anderson by least squares on differences."""
    points, residuals = [], []
    for _ in range(steps):
        points.append(x)
        residuals.append(fun(x) - x)
        X, R = np.stack(points[-history:]), np.stack(residuals[-history:])
        if len(R) == 1:
            x = X[0] + R[0]
            continue
        gamma = np.linalg.lstsq((R[1:] - R[:-1]).T, R[-1], rcond=None)[0]
        x = X[-1] + R[-1] - gamma @ ((X[1:] - X[:-1]) + (R[1:] - R[:-1]))
    return x


@pytest.mark.parametrize("history", [1, 2, 4])
def test_anderson_equals_the_difference_form(history):
    problem, _ = slow_map(6, 0.9)
    solver = fixed_point.Anderson(
        history=history, regularization=0.0, safeguard=np.inf, max_steps=7, tol=0.0
    )
    found = jxt.solve(problem, solver, jnp.zeros(6)).value
    wanted = anderson_numpy(
        lambda x: np.asarray(problem.fun(jnp.asarray(x))), np.zeros(6), history, 6
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_anderson_is_far_faster_on_a_slow_map(dtype):
    problem, solution = slow_map()
    problem = jax.tree.map(lambda x: x.astype(dtype), jxt.hoist(problem))
    tol = 1e-4 if dtype == jnp.float32 else 1e-8
    start = jnp.zeros(20, dtype)
    fast = jxt.solve(problem, fixed_point.Anderson(history=10, tol=tol, max_steps=5000), start)
    slow = jxt.solve(problem, fixed_point.Picard(tol=tol, max_steps=20_000), start)
    assert fast.status == slow.status == jxt.Status.converged
    assert 5 * int(fast.steps) < int(slow.steps)
    np.testing.assert_allclose(fast.value, solution, atol=200 * tol * np.linalg.norm(solution))


def test_safeguard_survives_a_map_that_misleads_extrapolation():
    # |x| has its kink at the fixed point of a nonexpansive map.
    problem = jxt.FixedPoint(lambda x: x - 0.9 * jnp.clip(x, -1, 1) * jnp.array([1.0, 1e-3]))
    solver = fixed_point.Anderson(tol=1e-8, max_steps=20_000, safeguard=2.0)
    solution = jxt.solve(problem, solver, jnp.array([50.0, -3.0]))
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value, 0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_the_safeguard_is_relative_to_the_first_residual(scale):
    """Half of it is asked for; until then steps are averaged, whatever the units."""
    problem = jxt.FixedPoint(lambda x: -0.2 * x)
    path = lambda safeguard: jxt.solve(
        problem,
        fixed_point.Anderson(safeguard=safeguard, tol=0.0, max_steps=3),
        jnp.array([scale]),
        trace=lambda problem, x, state: x,
    ).trace[:, 0]
    np.testing.assert_allclose(path(0.5)[:2], [scale, 0.4 * scale])
    np.testing.assert_allclose(path(2.0)[:2], [scale, -0.2 * scale], rtol=1e-4)


def test_the_safeguard_tightens_with_each_accelerated_step():
    problem = jxt.FixedPoint(lambda x: ROTATION @ x)  # residuals never shrink
    solver = fixed_point.Anderson(history=1, safeguard=2.0, tol=0.0, max_steps=3)
    start = jnp.array([1.0, 0.0])
    path = jxt.solve(problem, solver, start, trace=lambda problem, x, state: x).trace
    accelerated = ROTATION @ start
    averaged = 0.5 * (accelerated + ROTATION @ accelerated)
    np.testing.assert_allclose(path, [start, accelerated, averaged], atol=1e-12)


def test_splitting_operators_are_accelerated_by_wrapping():
    X, y = RNG.normal(size=(30, 8)), RNG.normal(size=30)
    problem = jxt.Composite(objectives.SquaredLoss(X, y), prox.L1(0.05))
    method = splitting.DouglasRachford(tol=1e-10, max_steps=20_000)
    direct = jxt.solve(problem, method, jnp.zeros(8))
    start = method.start(problem, jnp.zeros(8))
    wrapped = fixed_point.fixed_point_of(problem, method, start)
    fast = jxt.solve(wrapped, fixed_point.Anderson(tol=1e-10, max_steps=20_000), start)
    np.testing.assert_allclose(method.read(problem, fast.value), direct.value, atol=1e-8)
    assert int(fast.steps) < int(direct.steps)
