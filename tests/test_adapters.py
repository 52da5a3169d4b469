"""Solvers of optax and optimistix, passed as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import jaxopt_ext as jxt

A = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
SHIFT = jnp.array([1.0, -2.0, 0.5])


def bowl(theta):
    return jxt.Smooth(lambda x: jnp.sum(jnp.cosh(x - theta)))


@pytest.mark.parametrize(
    "solver",
    [optax.adam(0.1), optax.lbfgs(), optx.BFGS(rtol=1e-8, atol=1e-8)],
    ids=["adam", "lbfgs", "BFGS"],
)
def test_minimizes_and_differentiates(solver):
    value = lambda theta: jxt.solve(bowl(theta), solver, jnp.zeros(3)).value
    np.testing.assert_allclose(value(SHIFT), SHIFT, atol=1e-4)
    np.testing.assert_allclose(jax.jacrev(value)(SHIFT), jnp.eye(3), atol=1e-4)


@pytest.mark.parametrize(
    ("problem", "solver"),
    [
        (
            lambda t: jxt.RootFinding(lambda x: x + 0.1 * x**3 - t),
            optx.Newton(rtol=1e-8, atol=1e-8),
        ),
        (
            lambda t: jxt.FixedPoint(lambda x: t - 0.1 * x**3),
            optx.FixedPointIteration(rtol=1e-10, atol=1e-10),
        ),
        (
            lambda t: jxt.LeastSquares(lambda x: A @ (x + 0.1 * x**3 - t)),
            optx.LevenbergMarquardt(rtol=1e-10, atol=1e-10),
        ),
    ],
    ids=["Newton", "FixedPointIteration", "LevenbergMarquardt"],
)
def test_optimistix_kinds(problem, solver):
    theta = 0.3 * SHIFT
    solution = jxt.solve(problem(theta), solver, jnp.zeros(3))
    assert solution.status == jxt.Status.converged
    x = np.asarray(solution.value)
    np.testing.assert_allclose(x + 0.1 * x**3, theta, atol=1e-7)
    jacobian = jax.jacrev(lambda t: jxt.solve(problem(t), solver, jnp.zeros(3)).value)(theta)
    np.testing.assert_allclose(jacobian, np.diag(1 / (1 + 0.3 * x**2)), atol=1e-6)


def test_wrong_kind_is_refused():
    with pytest.raises(TypeError, match="Newton cannot solve a Smooth"):
        jxt.solve(bowl(SHIFT), optx.Newton(rtol=1e-6, atol=1e-6), jnp.zeros(3))
    with pytest.raises(TypeError, match="expected a solver"):
        jxt.solve(bowl(SHIFT), "adam", jnp.zeros(3))
