"""Derivatives of solutions against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot import usual_program

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import FISTA, FixedStep, ProximalGradient

RNG = np.random.default_rng(0)
A = jnp.asarray(RNG.normal(size=(20, 5)))
B = A @ jnp.array([1.0, -2.0, 0.0, 0.5, 0.0]) + 0.1 * jnp.asarray(RNG.normal(size=20))
SOLVER = FISTA(tol=1e-12, max_steps=20_000)


def ridge(theta, data=B, **options):
    def objective(w):
        return 0.5 * jnp.sum((A @ w - data) ** 2) + 0.5 * jnp.sum(theta * w**2)

    return jxt.solve(jxt.Smooth(objective), SOLVER, jnp.zeros(5), **options).value


def ridge_exact(theta, data=B):
    return jnp.linalg.solve(A.T @ A + jnp.diag(theta), A.T @ data)


THETA = jnp.linspace(0.5, 1.5, 5)


def test_first_derivatives_in_every_mode():
    @jax.jit
    def slopes(theta, data):
        both = lambda solve: jax.jacrev(solve, argnums=(0, 1))(theta, data)
        return both(ridge), jax.jacfwd(ridge)(theta), both(ridge_exact)

    (reverse, data), forward, (exact, exact_data) = slopes(THETA, B)
    np.testing.assert_allclose(reverse, exact, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(forward, exact, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(data, exact_data, atol=1e-9)


@pytest.mark.always(2)
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives(outer, inner):
    score = lambda solve: lambda theta: jnp.sum(jnp.sin(solve(theta)))
    both = lambda theta: (
        outer(inner(score(ridge)))(theta),
        jax.hessian(score(ridge_exact))(theta),
    )
    np.testing.assert_allclose(*jax.jit(both)(THETA), atol=1e-7)


def test_vmap_of_grad():
    thetas = THETA * jnp.array([[0.5], [1.0], [3.0]])
    score = lambda solve: lambda theta: jnp.sum(jnp.sin(solve(theta)))
    both = lambda theta: (jax.grad(score(ridge))(theta), jax.grad(score(ridge_exact))(theta))
    np.testing.assert_allclose(*jax.jit(jax.vmap(both))(thetas), atol=1e-8)


def test_unrolled_and_one_step():
    unrolling = lambda t: ridge(t, adjoint=jxt.UnrolledAdjoint())
    both = lambda t: (jax.jacrev(unrolling)(t), jax.jacrev(ridge_exact)(t), ridge_exact(t))
    unrolled, exact, solution = jax.jit(both)(THETA)
    np.testing.assert_allclose(unrolled, exact, atol=1e-6)

    # One gradient step of size 1/L: the derivative is (1/L) dg, whatever the history.
    step = 1 / float(np.linalg.eigvalsh(A.T @ A)[-1] + 1.5)

    def one_step(theta):
        def objective(w):
            return 0.5 * jnp.sum((A @ w - B) ** 2) + 0.5 * jnp.sum(theta * w**2)

        solver = ProximalGradient(step_size=FixedStep(step), tol=1e-12, max_steps=20_000)
        adjoint = jxt.OneStepAdjoint()
        return jxt.solve(jxt.Smooth(objective), solver, jnp.zeros(5), adjoint=adjoint).value

    for found in jax.jit(lambda t: (jax.jacrev(one_step)(t), jax.jacfwd(one_step)(t)))(THETA):
        np.testing.assert_allclose(found, -step * np.diag(solution), atol=1e-8)


def lasso(lam, data=B, matrix=A):
    problem = jxt.Composite(jxt.objectives.SquaredLoss(matrix, data), prox.L1(lam))
    return jxt.solve(problem, SOLVER, jnp.zeros(matrix.shape[1])).value


def test_inactive_coordinates_have_zero_derivative_and_active_ones_the_right_one():
    lam = jnp.asarray(0.1)

    @jax.jit
    def all_of(lam, data):
        slopes = jax.jacrev(lasso, argnums=(0, 1))(lam, data)
        return lasso(lam, data), *slopes, jax.jacfwd(lasso)(lam, data)

    w, reverse, in_data, forward = map(np.asarray, all_of(lam, B))
    active = np.flatnonzero(w)
    assert 0 < len(active) < 5
    sub = np.asarray(A)[:, active]
    expected = np.zeros(5)
    expected[active] = -20 * np.linalg.solve(sub.T @ sub, np.sign(w[active]))
    np.testing.assert_allclose(reverse, expected, atol=1e-8)
    np.testing.assert_allclose(forward, expected, atol=1e-8)
    jacobian = np.zeros((5, 20))
    jacobian[active] = np.linalg.solve(sub.T @ sub, sub.T)
    np.testing.assert_allclose(in_data, jacobian, atol=1e-8)


@pytest.mark.always(1)
@pytest.mark.parametrize("dense_size", [256, 0])
def test_rank_deficient_data_gets_a_least_squares_answer(dense_size):
    matrix = jnp.concatenate([A, A[:, :2]], axis=1)
    linear_solver = jxt.LeastSquaresFallback(dense_size=dense_size)

    def solved(data):
        objective = lambda w: 0.5 * jnp.sum((matrix @ w - data) ** 2)
        adjoint = jxt.ImplicitAdjoint(linear_solver)
        return jxt.solve(jxt.Smooth(objective), SOLVER, jnp.zeros(7), adjoint=adjoint).value

    jacobians = jax.jit(lambda data: (jax.jacrev(solved)(data), jax.jacfwd(solved)(data)))(B)
    inverse = np.linalg.pinv(matrix)
    for jacobian in jacobians:
        assert np.all(np.isfinite(jacobian))
        np.testing.assert_allclose(np.asarray(matrix) @ jacobian, matrix @ inverse, atol=1e-6)
    if dense_size:
        np.testing.assert_allclose(jacobians[0], inverse, atol=1e-6)


def test_matrix_free_equals_dense():
    free = jxt.ImplicitAdjoint(jxt.LeastSquaresFallback(dense_size=0))
    both = lambda t: (jax.jacrev(lambda t: ridge(t, adjoint=free))(t), jax.jacrev(ridge_exact)(t))
    np.testing.assert_allclose(*jax.jit(both)(THETA), rtol=1e-6, atol=1e-8)


def test_constraint_matrices_and_bounds():
    from jaxopt_ext.splitting import OSQP

    rng = np.random.default_rng(3)
    root = rng.normal(size=(4, 4))
    P, q = jnp.asarray(root @ root.T + np.eye(4)), jnp.asarray(rng.normal(size=4))
    C = jnp.asarray(rng.normal(size=(6, 4)))
    l, u = -0.3 * jnp.ones(6), jnp.asarray([0.1, 0.3, 0.2, jnp.inf, 0.4, 0.2])
    # Symmetric parametrization, since only symmetric matrices are programs.
    inputs = {"P": P, "q": q, "C": C, "l": l, "u": u}

    @jax.jit
    @jax.value_and_grad
    def score(inputs):
        S = 0.5 * (inputs["P"] + inputs["P"].T)
        problem = jxt.QuadraticProgram(S, inputs["q"], inputs["C"], inputs["l"], inputs["u"])
        value = jxt.solve(problem, OSQP(tol=1e-10, max_steps=2000)).value
        return jnp.sum(jnp.sin(1 + jnp.arange(4)) * value.primal)

    found = score(inputs)[1]
    for name, array in inputs.items():
        direction, finite = rng.normal(size=array.shape), np.isfinite(array)
        moved = lambda s, n=name, a=array, d=direction, f=finite: score(
            {**inputs, n: np.where(f, a + s * np.where(f, d, 0), a)}
        )[0]
        difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
        slope = np.sum(np.where(finite, found[name] * direction, 0))
        np.testing.assert_allclose(slope, difference, rtol=1e-4, atol=1e-6, err_msg=name)


def test_nan_gives_no_silent_number():
    nan = jnp.full(5, jnp.nan)
    value, tangent = jax.jvp(ridge, (nan,), (jnp.ones(5),))
    assert np.all(np.isnan(value))
    assert np.all(np.isnan(tangent))
    assert np.all(np.isnan(jax.grad(lambda t: jnp.sum(ridge(t)))(nan)))
    loud = jxt.ImplicitAdjoint(throw=True)
    with pytest.raises(Exception, match="linear solve"):
        jax.block_until_ready(jax.grad(lambda t: jnp.sum(ridge(t, adjoint=loud)))(nan))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    data = jnp.asarray(RNG.normal(size=(100, 1000)))

    def temporaries(max_steps, adjoint):
        solver = ProximalGradient(step_size=FixedStep(1e-4), tol=0.0, max_steps=max_steps)

        def score(theta):
            problem = jxt.Smooth(lambda w: jnp.sum((data @ w) ** 2 + jnp.cosh(theta @ w)))
            return jnp.sum(jxt.solve(problem, solver, jnp.zeros(1000), adjoint=adjoint).value)

        program = usual_program(jax.grad(score), jnp.ones(1000))
        return program.memory_analysis().temp_size_in_bytes

    implicit = jxt.ImplicitAdjoint()
    assert temporaries(10_000, implicit) == temporaries(10, implicit)
    unrolled = jxt.UnrolledAdjoint()
    many = temporaries(10_000, unrolled)
    assert many > 1.5 * temporaries(10, unrolled)
    assert many < 8 * data.nbytes  # iterates are kept, and no copies of the data


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "solver",
    [
        jxt.fixed_point.Picard(tol=1e-10),
        jxt.fixed_point.Halpern(tol=1e-3),
        jxt.fixed_point.Anderson(tol=1e-10),
    ],
    ids=lambda s: type(s).__name__,
)
def test_one_step_of_a_fixed_point_method_is_one_step_of_its_map(solver):
    """The derivative of T(x, theta) in theta at the solution, never zero in silence."""
    theta = jnp.array([0.3, -0.2])

    def solved(theta):
        problem = jxt.FixedPoint(lambda x: 0.5 * jnp.tanh(x) + jnp.sin(theta))
        return jxt.solve(problem, solver, jnp.zeros(2), adjoint=jxt.OneStepAdjoint()).value

    expected = np.diag(np.cos(theta))
    for found in jax.jit(lambda t: (jax.jacrev(solved)(t), jax.jacfwd(solved)(t)))(theta):
        np.testing.assert_allclose(found, expected, atol=1e-12)
