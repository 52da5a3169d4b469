"""The barrier method against HiGHS, its formula and its theorem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext.minimize import LongStep, PredictorCorrector, ShortStep, textbook as tb


def _program(seed, n, rows):
    """Zero is in the interior, and the minimum exists."""
    rng = np.random.default_rng(seed)
    A, upper = rng.normal(size=(rows, n)), 1 + rng.uniform(size=rows)
    c = -A.T @ rng.uniform(size=rows)
    return c, A, upper


def _linear(c, A, upper):
    return jxt.LinearProgram(c, A, jnp.full(len(upper), -jnp.inf), upper)


def _look(problem, x, state):
    return state.decrement, problem.c @ x.primal


def _follows(n, rows, tol, path=None, **options):
    c, A, upper = _program(7, n, rows)
    best = scipy.optimize.linprog(c, A, upper, bounds=(None, None)).fun
    method = tb.BarrierMethod(path or ShortStep(), tol=tol, **options)
    start = jxt.PrimalDual(jnp.zeros(n), jnp.zeros(rows))
    found = jxt.solve(_linear(c, A, upper), method, start, trace=_look)
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(c @ found.value.primal, best, atol=tol, rtol=1e-9)
    return method, found, best


def _keeps_the_formula(n, rows, tol, max_steps, excess):
    """That is of the gap; the residual may take some steps more."""
    method, found, best = _follows(n, rows, tol, max_steps=max_steps)
    steps, factor = int(found.steps), 1 + 1 / (13 * rows**0.5)
    decrements, values = (np.asarray(a)[:steps] for a in found.trace)
    first = int(np.argmax(decrements <= 0.25))
    assert np.max(decrements[first:]) <= 0.25
    formula = np.log(rows / (tol * 1e-3)) / np.log(factor)
    assert -2 < steps - first - formula < excess * formula
    # Nor is it above what the theorem says, from the first point near the path.
    counts = np.arange(steps - first)
    bound = method.guarantee(counts, tb.Constants(barrier=float(rows)))
    assert np.all(values[first:] - best <= bound)
    return steps


def test_short_steps_are_as_many_as_the_formula_says():
    _keeps_the_formula(3, 8, 1e-3, 800, 0.1)


@pytest.mark.slow
def test_short_steps_of_a_larger_program():
    steps = _keeps_the_formula(20, 90, 1e-8, 5000, 0.02)
    _, found, _ = _follows(20, 90, 1e-8, LongStep(neighborhood=1e-3), max_steps=500)
    assert found.steps < steps / 10


@pytest.mark.parametrize("approach", [tb.DampedApproach(), tb.ReversedPath()])
def test_equations_that_the_start_violates(approach):
    """One row is an equation, one free, one has two bounds."""
    rng = np.random.default_rng(3)
    A = np.concatenate([rng.normal(size=(4, 4)), np.eye(4)])
    c, lower, upper = rng.normal(size=4), np.full(8, -1.0), np.full(8, 2.0)
    lower[0] = upper[0] = 0.5
    lower[1], upper[1] = -np.inf, np.inf
    method = tb.BarrierMethod(LongStep(), approach, tol=1e-7, max_steps=500)
    start = jxt.PrimalDual(jnp.full(4, 0.1), jnp.zeros(8))
    found = jxt.solve(jxt.LinearProgram(c, A, lower, upper), method, start)
    assert found.status == jxt.Status.converged
    rows = scipy.optimize.LinearConstraint(A, lower, upper)
    wanted = scipy.optimize.milp(c, constraints=rows, bounds=(-np.inf, np.inf))
    np.testing.assert_allclose(c @ found.value.primal, wanted.fun, atol=1e-7)
    np.testing.assert_allclose(A[0] @ found.value.primal, 0.5, atol=1e-10)
    if isinstance(approach, tb.ReversedPath):
        assert found.state.pull == 0


def test_what_it_cannot_start_from():
    c, A, upper = _program(1, 3, 8)
    A[:, 0] = np.abs(A[:, 0])
    method = tb.BarrierMethod(LongStep(), max_steps=200)
    solve = jax.jit(lambda c, start: jxt.solve(_linear(c, A, upper), method, start))
    far = np.linalg.lstsq(A, upper, rcond=None)[0] * 100
    out = solve(c, jxt.PrimalDual(far, jnp.zeros(8)))
    assert out.status == jxt.Status.breakdown
    np.testing.assert_array_equal(out.value.primal, far)
    start = jxt.PrimalDual(jnp.zeros(3), jnp.zeros(8))
    assert solve(np.array([1.0, np.nan, 0.0]), start).status == jxt.Status.nonfinite
    # Nowhere does the objective end, and nothing is said to be solved.
    assert solve(np.array([1.0, 0.0, 0.0]), start).status != jxt.Status.converged
    with pytest.raises(TypeError, match="ShortStep"):
        tb.BarrierMethod(PredictorCorrector())
    with pytest.raises(ValueError, match="weight"):
        tb.BarrierMethod(weight=0.0)
    with pytest.raises(TypeError, match="ShortStep"):
        tb.BarrierMethod(LongStep()).guarantee(1, tb.Constants(barrier=8.0))
