"""Solvers of optax and optimistix, passed as they are."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest

import jaxopt_ext as jxt
from jaxopt_ext.adapters import Optimistix

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


BISECTION = optx.Bisection(rtol=1e-9, atol=1e-9)


def bisect(theta, lower, upper, x0=0.5, solver=BISECTION, sign=1.0):
    """The root of x³ = theta in a bracket."""
    solver = Optimistix(solver, options={"lower": lower, "upper": upper})
    return jxt.solve(jxt.RootFinding(lambda x: sign * (x**3 - theta)), solver, jnp.asarray(x0))


def test_bisection_of_a_batch_of_brackets():
    # A root inside, at the lower end, at the upper end, in neither, and a start far outside.
    theta = jnp.array([2.0, 0.0, 1.0, 30.0, 2.0])
    lower = jnp.array([-1.0, 0.0, -1.0, 0.2, 1.0])
    upper = jnp.array([3.0, 1.0, 1.0, 3.0, 2.0])
    start = jnp.array([0.5, 0.5, 0.0, 0.5, 70.0])
    for sign in (1.0, -1.0):
        batch = lambda *args, sign=sign: jax.vmap(lambda *a: bisect(*a, sign=sign))(*args)
        solution = batch(theta, lower, upper, start)
        converged = np.asarray(solution.status == jxt.Status.converged)
        np.testing.assert_array_equal(converged, [True, True, True, False, True])
        assert bool((solution.status == jxt.Status.step_limit)[3])
        np.testing.assert_allclose(solution.value[converged], np.cbrt(theta)[converged], atol=1e-8)
    slope = jax.grad(lambda t: bisect(t, 0.0, 3.0).value)(2.0)
    np.testing.assert_allclose(slope, 2 ** (-2 / 3) / 3, rtol=1e-7)


def test_bisection_keeps_float32_and_does_not_retrace(trace_count):
    one, three, two = jnp.float32(1), jnp.asarray(3.0), jnp.float32(2)
    solution = bisect(one, -two, three, jnp.float32(0), optx.Bisection(1e-6, 1e-6))
    assert solution.value.dtype == jnp.float32
    np.testing.assert_allclose(solution.value, 1, atol=1e-5)
    theta = jnp.array([2.0, 2.5])
    first, second = theta
    bisect(first, 0.0, 3.0)
    with trace_count() as traces:
        bisect(second, -1.0, 4.0)
    assert traces.count == 0


def test_expanding_bisection_ends_where_there_is_no_root():
    expanding = optx.Bisection(1e-9, 1e-9, expand_if_necessary=True)
    np.testing.assert_allclose(bisect(30.0, 0.0, 1.0, 0.5, expanding).value, np.cbrt(30))
    solver = Optimistix(expanding, options={"lower": 0.0, "upper": 1.0})
    for sign in (1.0, -1.0):
        rootless = jxt.RootFinding(lambda x, sign=sign: sign * (x**2 + 1))
        assert jxt.solve(rootless, solver, 0.0).status != jxt.Status.converged


def test_bisection_of_a_fixed_point():
    solver = Optimistix(BISECTION, options={"lower": 0.0, "upper": 1.0})
    fixed = jxt.solve(jxt.FixedPoint(jnp.cos), solver, 0.5)
    assert fixed.status == jxt.Status.converged
    np.testing.assert_allclose(fixed.value, 0.7390851332151607, atol=1e-8)


def test_brackets_that_cannot_be():
    root = jxt.RootFinding(lambda x: x)
    with pytest.raises(ValueError, match=r'Optimistix\(Bisection\(...\), options=\{"lower"'):
        jxt.solve(root, BISECTION, 0.0)
    with pytest.raises(ValueError, match="GoldenSearch needs a bracket"):
        jxt.solve(jxt.Smooth(lambda x: x**2), optx.GoldenSearch(1e-6, 1e-6), 0.0)
    for upper in (-1.0, jnp.nan):
        with pytest.raises(ValueError, match="lower must not be above upper"):
            Optimistix(BISECTION, options={"lower": 0.0, "upper": upper})
    with pytest.raises(ValueError, match=r"one unknown.*got shapes \(2,\)"):
        bisect(1.0, 0.0, 2.0, jnp.zeros(2))
    with pytest.raises(ValueError, match="inner_steps"):
        Optimistix(BISECTION, 0, options={"lower": 0.0, "upper": 1.0})


def test_golden_section_of_a_bracket_away_from_zero():
    solver = Optimistix(
        optx.GoldenSearch(rtol=1e-9, atol=1e-9), options={"lower": 2.0, "upper": 4.0}, tol=1e-3
    )
    solution = jxt.solve(jxt.Smooth(lambda x: jnp.cosh(x - 2.5)), solver, 0.0)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value, 2.5, atol=1e-3)


def test_bounds_and_tags_over_a_pytree():
    """A root with negative and one with positive entries: the bounds choose."""

    def root(theta, lower, upper):
        residual = lambda x: {"a": x["a"] ** 2 - theta, "b": x["b"] - x["a"][0]}
        bounds = {"lower": {"a": lower, "b": jnp.asarray(-9.0)}, "upper": {"a": upper, "b": 9.0}}
        solver = Optimistix(optx.Newton(rtol=1e-10, atol=1e-10), options=bounds)
        return jxt.solve(jxt.RootFinding(residual), solver, {"a": jnp.ones(2), "b": 0.0})

    theta = jnp.array([4.0, 9.0])
    negative = root(theta, jnp.full(2, -9.0), jnp.full(2, -0.1))
    assert negative.status == jxt.Status.converged
    np.testing.assert_allclose(negative.value["a"], [-2, -3], atol=1e-8)
    np.testing.assert_allclose(negative.value["b"], -2, atol=1e-8)
    slope = jax.jacrev(lambda t: root(t, jnp.full(2, -9.0), jnp.full(2, -0.1)).value["b"])(theta)
    np.testing.assert_allclose(slope, [-0.25, 0], atol=1e-7)

    # The tag must reach the linear solver, which refuses an operator without it.
    diagonal = Optimistix(
        optx.Newton(rtol=1e-10, atol=1e-10, linear_solver=lx.Diagonal()), tags={lx.diagonal_tag}
    )
    solution = jxt.solve(jxt.RootFinding(lambda x: x**2 - theta), diagonal, jnp.ones(2))
    np.testing.assert_allclose(solution.value, [2, 3], atol=1e-8)
