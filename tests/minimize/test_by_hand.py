"""Iterations against loops in numpy, so that every rule and constant in them counts."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import minimize, objectives, prox

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(20, 6)), RNG.normal(size=20)
LAM = 0.05


def soft(x, amount):
    return np.sign(x) * np.maximum(np.abs(x) - amount, 0)


def slope(w):
    return X.T @ (X @ w - Y) / 20


class Growing(minimize.AbstractStepSize):
    """Each step a fixed factor times the last."""

    factor: float

    def first(self):
        return jnp.asarray(0.02)

    def take(self, fun, y, value, gradient, prox, step):
        step = self.factor * step
        return prox(y - step * gradient, step), step


@pytest.mark.parametrize("factor", [1.3, 0.8])
@pytest.mark.parametrize("restart", [True, False])
def test_fista_with_steps_that_change(factor, restart):
    start = 3 * np.ones(6)
    x, y, t, last, path, restarts = start, start, 1.0, 0.02, [], 0
    for _ in range(14):
        step = factor * last
        new = soft(y - step * slope(y), step * LAM)
        t_new = 0.5 * (1 + np.sqrt(1 + 4 * t**2 * (last / step if t > 1 else 1.0)))
        momentum = (t - 1) / t_new
        if restart and (y - new) @ (new - x) > 0:
            momentum, t_new, restarts = 0.0, 1.0, restarts + 1
        x, y, t, last = new, new + momentum * (new - x), t_new, step
        path.append(x)
    assert (restarts > 0) == (restart and factor > 1)
    problem = jxt.Composite(objectives.SquaredLoss(X, Y), prox.L1(LAM))
    solver = minimize.FISTA(Growing(factor), restart=restart, tol=0.0, max_steps=14)
    trace = lambda problem, x, state: x
    found = jxt.solve(problem, solver, jnp.asarray(start), trace=trace).trace
    np.testing.assert_allclose(found, path, atol=1e-10)


def test_divergences():
    x, y = RNG.uniform(0.1, 2, 7), RNG.uniform(0.1, 2, 7)
    x[0] = 0.0
    kullback = np.sum(np.where(x > 0, x * np.log(np.where(x > 0, x, 1) / y), 0) - x + y)
    cut = lambda v: (jnp.asarray(v[:2]), {"rest": jnp.asarray(v[2:])})
    for geometry in (minimize.EntropicSimplex(), minimize.EntropicOrthant()):
        np.testing.assert_allclose(geometry.divergence(cut(x), cut(y)), kullback, rtol=1e-12)
    euclidean = minimize.Euclidean().divergence(cut(x), cut(y))
    np.testing.assert_allclose(euclidean, 0.5 * np.sum((x - y) ** 2), rtol=1e-12)


def test_mirror_descent_searches_by_halving():
    """f = 40 sum x^2 is not smooth at the first step size, and is at a later one."""
    f = lambda x: 40 * np.sum(x**2)
    x, t, path = np.array([0.7, 0.2, 0.1]), 1.0, []
    kullback = lambda a, b: np.sum(a * np.log(a / b) - a + b)
    for _ in range(6):
        g, t = 80 * x, 1.2 * t
        while True:
            new = x * np.exp(-t * (g - g.min()))
            new /= new.sum()
            if f(new) <= f(x) + g @ (new - x) + kullback(new, x) / t + 1e-12:
                break
            t /= 2
        x = new
        path.append(x)
    problem = jxt.Constrained(lambda x: 40 * jnp.sum(x**2), prox.Simplex())
    solver = minimize.MirrorDescent(tol=0.0, max_steps=6)
    start = jnp.array([0.7, 0.2, 0.1])
    found = jxt.solve(problem, solver, start, trace=lambda problem, x, state: x).trace
    np.testing.assert_allclose(found, path, atol=1e-10)


def test_step_sizes_stop_growing():
    problem = jxt.Constrained(lambda x: jnp.sum((x - 1 / 3) ** 2), prox.Simplex())
    solver = minimize.MirrorDescent(growth=10.0, tol=0.0, max_steps=400)
    solution = jxt.solve(problem, solver, jnp.ones(3) / 3)
    np.testing.assert_allclose(solution.value, 1 / 3)
    assert np.isfinite(solution.state.step_size)
