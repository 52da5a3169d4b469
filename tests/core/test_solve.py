"""The one loop: status, traces, resumption, compilation, progress."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import FISTA, FixedStep, ProximalGradient

RNG = np.random.default_rng(0)
A = jnp.asarray(RNG.normal(size=(20, 5)))
B = A @ jnp.ones(5) + 1.0


def ridge(theta, data=B):
    return jxt.Smooth(lambda w: 0.5 * jnp.mean((A @ w - data) ** 2) + 0.5 * theta * jnp.vdot(w, w))


def closed_form(theta):
    return np.linalg.solve(A.T @ A / 20 + float(theta) * np.eye(5), A.T @ B / 20)


def lasso(lam):
    return jxt.Composite(jxt.objectives.SquaredLoss(A, B), prox.L1(lam))


def test_solution_fields():
    solution = jxt.solve(ridge(0.1), FISTA(tol=1e-10), jnp.zeros(5))
    assert solution.status == jxt.Status.converged
    assert 0 < int(solution.steps) < 5000
    assert 0 <= float(solution.residual) <= 1e-10
    np.testing.assert_allclose(solution.value, closed_form(0.1), atol=1e-9)


def test_step_limit_and_throw():
    solution = jxt.solve(ridge(0.1), FISTA(tol=1e-12, max_steps=3), jnp.zeros(5))
    assert solution.status == jxt.Status.step_limit
    assert int(solution.steps) == 3
    with pytest.raises(Exception, match="step limit"):
        jxt.solve(ridge(0.1), FISTA(tol=1e-12, max_steps=3), jnp.zeros(5), throw=True)


def test_divergence_ends_early():
    solver = ProximalGradient(step_size=FixedStep(1e3), max_steps=100_000)
    solution = jxt.solve(ridge(0.1), solver, jnp.ones(5))
    assert solution.status == jxt.Status.nonfinite
    assert int(solution.steps) < 1000


@pytest.mark.always(1)
@pytest.mark.parametrize("where", ["data", "start", "parameter"])
def test_nan_is_reported(where):
    bad = jnp.nan
    data = B.at[2].set(bad) if where == "data" else B
    start = jnp.zeros(5).at[1].set(bad) if where == "start" else jnp.zeros(5)
    theta = jnp.asarray(bad) if where == "parameter" else 0.1
    solution = jxt.solve(ridge(theta, data), FISTA(), start)
    assert solution.status == jxt.Status.nonfinite


TRACED = []


def test_new_closures_with_new_numbers_do_not_retrace(trace_count):
    def problem(theta, data):
        def objective(w):
            TRACED.append(0)
            return 0.5 * jnp.mean((A @ w - data) ** 2) + 0.5 * theta * jnp.vdot(w, w)

        return jxt.Smooth(objective)

    first = jxt.solve(problem(jnp.asarray(0.1), B), FISTA(tol=1e-9), jnp.zeros(5))
    count = len(TRACED)
    data, start, solver = B + 0, jnp.ones(5), FISTA(tol=1e-10)
    with trace_count() as traces:
        second = jxt.solve(problem(jnp.asarray(0.3), data), solver, start)
    assert count > 0
    assert len(TRACED) == count
    assert traces.count == 0
    np.testing.assert_allclose(first.value, closed_form(0.1), atol=1e-7)
    np.testing.assert_allclose(second.value, closed_form(0.3), atol=1e-8)


SHIFT = jnp.asarray(1.0)


def _shifted(w):
    return w - SHIFT


@pytest.mark.always(1)
@pytest.mark.parametrize("through", ["the function", "a function it calls"])
def test_a_rebound_global_is_seen(monkeypatch, through):
    def solved():
        if through == "the function":
            problem = jxt.Smooth(lambda w: jnp.sum((w - SHIFT) ** 2))
        else:
            problem = jxt.Smooth(lambda w: jnp.sum(_shifted(w) ** 2))
        return jxt.solve(problem, FISTA(tol=1e-10), jnp.zeros(2)).value

    np.testing.assert_allclose(solved(), 1, atol=1e-8)
    monkeypatch.setitem(globals(), "SHIFT", jnp.asarray(3.0))
    np.testing.assert_allclose(solved(), 3, atol=1e-8)


@pytest.mark.slow
def test_functions_of_every_kind_are_taken():
    class Holder:
        def __init__(self, data):
            self.data = data

        def __call__(self, w):
            return jnp.sum((w - self.data) ** 2)

        def method(self, w):
            return self(w)

    def with_default(w, data=B[:5]):
        return jnp.sum((w - data) ** 2)

    import functools

    partial = functools.partial(lambda data, w: jnp.sum((w - data) ** 2), B[:5])
    holder = Holder(B[:5])
    kinds = [with_default, partial, holder, holder.method, jax.jit(lambda w: with_default(w))]
    for fun in kinds:
        value = jxt.solve(jxt.Smooth(fun), FISTA(tol=1e-10), jnp.zeros(5)).value
        np.testing.assert_allclose(value, B[:5], atol=1e-8)
    for make in (
        lambda d: functools.partial(lambda data, w: jnp.sum((w - data) ** 2), d),
        lambda d: jax.jit(lambda w: jnp.sum((w - d) ** 2)),
        lambda d: lambda w, data=d: jnp.sum((w - data) ** 2),
    ):
        value = lambda d: jxt.solve(jxt.Smooth(make(d)), FISTA(tol=1e-10), jnp.zeros(5)).value  # noqa: B023
        np.testing.assert_allclose(jax.jacrev(value)(B[:5]), np.eye(5), atol=1e-8)


def test_recursive_functions_survive_hoisting():
    def power(w, k):
        return w if k == 0 else w * power(w, k - 1)

    value = jxt.solve(jxt.Smooth(lambda w: jnp.sum(power(w - 1, 1))), FISTA(), jnp.zeros(2)).value
    np.testing.assert_allclose(value, 1, atol=1e-5)


def test_trace_records_each_step_and_repeats_the_last():
    solver = FISTA(tol=1e-8, max_steps=200)
    solution = jxt.solve(lasso(0.1), solver, jnp.zeros(5), trace=True)
    plain = jxt.solve(lasso(0.1), solver, jnp.zeros(5))
    steps = int(solution.steps)
    assert steps == int(plain.steps) < 200
    np.testing.assert_array_equal(solution.value, plain.value)
    assert solution.trace.shape == (200,)
    assert np.all(solution.trace[: steps - 1] > 1e-8)
    np.testing.assert_array_equal(solution.trace[steps - 1 :], plain.residual)
    objective = lambda problem, x, state: problem.objective(x)
    values = jxt.solve(lasso(0.1), solver, jnp.zeros(5), trace=objective).trace
    np.testing.assert_allclose(values[-1], lasso(0.1).objective(plain.value), rtol=1e-12)
    assert values[0] > values[-1]


def test_resumed_is_bitwise_the_same(tmp_path):
    part = FISTA(tol=1e-14, max_steps=10)
    first = jxt.solve(lasso(0.1), part, jnp.zeros(5))
    jxt.checkpoint.save(tmp_path / "solution", first)
    first = jxt.checkpoint.load(tmp_path / "solution", first)
    second = jxt.solve(lasso(0.1), part, first.value, state=first.state)
    whole = jxt.solve(lasso(0.1), FISTA(tol=1e-14, max_steps=20), jnp.zeros(5))
    np.testing.assert_array_equal(second.value, whole.value)


def test_progress_changes_nothing_and_warns_inside_transformations():
    plain = jxt.solve(lasso(0.1), FISTA(tol=1e-9), jnp.zeros(5))
    shown = jxt.solve(lasso(0.1), FISTA(tol=1e-9), jnp.zeros(5), progress=True)
    np.testing.assert_array_equal(plain.value, shown.value)
    assert int(plain.steps) == int(shown.steps)
    with pytest.warns(UserWarning, match="no progress bar"):
        jax.jit(lambda lam: jxt.solve(lasso(lam), FISTA(), jnp.zeros(5), progress=True).value)(0.1)


@pytest.mark.slow
def test_complex_variables():
    target = jnp.array([1 + 2j, -0.3j, 0.1 + 0j])
    weight = jnp.asarray(0.5)

    def solved(target, weight):
        problem = jxt.Composite(lambda z: 0.5 * jnp.sum(jnp.abs(z - target) ** 2), prox.L1(weight))
        return jxt.solve(problem, FISTA(tol=1e-12), jnp.zeros(3, complex)).value

    value = solved(target, weight)
    size = np.abs(target)
    np.testing.assert_allclose(value, target * np.maximum(1 - 0.5 / size, 0), atol=1e-10)
    loss = lambda target, weight: jnp.sum(jnp.abs(solved(target, weight)) ** 2)
    slope = jax.grad(loss, argnums=1)(target, weight)
    # d/dw of (|t| - w)^2 over the coordinates that are not zero
    np.testing.assert_allclose(slope, -2 * (size[0] - 0.5), rtol=1e-8)


def test_single_precision_stays_single():
    problem = jxt.Composite(
        jxt.objectives.SquaredLoss(A.astype(jnp.float32), B.astype(jnp.float32)), prox.L1(0.1)
    )
    solution = jxt.solve(problem, FISTA(tol=1e-5), jnp.zeros(5, jnp.float32))
    assert solution.status == jxt.Status.converged
    floats = [x for x in jax.tree.leaves(solution) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
