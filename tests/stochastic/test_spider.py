"""Normalized descent by numpy loops and closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.stochastic import (
    SPIDER,
    ClippedSGD,
    Last,
    NormalizedGradientDescent,
    NormalizedSGD,
    chi2_dro,
    generalized_smooth_step,
    phase_retrieval,
)

M, D = 30, 4
RNG = np.random.default_rng(1)
A = RNG.normal(size=(M, D))
Z = RNG.normal(size=D)
Y = (A @ Z) ** 2
START = jnp.asarray(Z + 0.8 * RNG.normal(size=D))


def full(z):
    p = A @ z
    return 2 * A.T @ (p * (p**2 - Y)) / M


def retrieval(sampling=None, dtype=None):
    made = phase_retrieval(A, Y)
    cast = lambda a: jnp.asarray(a, dtype)
    sampling = made.sampling if sampling is None else sampling
    return jxt.FiniteSum(made.loss, data=jax.tree.map(cast, made.data), sampling=sampling)


@eqx.filter_jit
def _full_value(problem, x):
    return problem.full_value(x)


def path(problem, solver, start=START):
    """All iterates."""
    solution = jxt.solve(problem, solver, start, trace=lambda problem, x, state: x)
    return np.concatenate([np.asarray(start)[None], np.asarray(solution.trace)])


def test_steps_by_numpy():
    found = path(
        retrieval(), NormalizedGradientDescent(0.01, 0.6, output=Last(), tol=0.0, max_steps=20)
    )
    z = np.asarray(START)
    for x in found:
        np.testing.assert_allclose(x, z, rtol=1e-9)
        g = full(z)
        z = z - 0.01 * g / np.linalg.norm(g) ** 0.6
    clipped = path(retrieval(jxt.WithoutReplacement()), ClippedSGD(0.01, 0.02, M, max_steps=20))
    z = np.asarray(START)
    for x in clipped:
        np.testing.assert_allclose(x, z, rtol=1e-9)
        g = full(z)
        z = z - min(0.01, 0.02 / np.linalg.norm(g)) * g


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "solver",
    [
        SPIDER(0.01, 6, M, max_steps=25),
        NormalizedSGD(0.01, 0.0, M, max_steps=25),
        NormalizedGradientDescent(0.01, 1.0, tol=0.0, max_steps=25),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_with_all_samples_it_is_normalized_gradient_descent(solver):
    z = np.asarray(START)
    for x in path(retrieval(jxt.WithoutReplacement()), solver):
        np.testing.assert_allclose(x, z, rtol=0, atol=1e-9)
        g = full(z)
        z = z - 0.01 * g / np.linalg.norm(g)


def lengths(points):
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


@pytest.mark.always(1)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_lengths_of_steps(dtype, rtol):
    solver = SPIDER(0.02, 5, 3, max_steps=15)
    spider = path(retrieval(dtype=dtype), solver, np.asarray(START, dtype))
    assert spider.dtype == dtype
    np.testing.assert_allclose(lengths(spider), 0.02, rtol=rtol)


@pytest.mark.slow
def test_lengths_are_powers_of_gradients():
    points = path(retrieval(), NormalizedGradientDescent(0.01, 0.25, tol=0.0, max_steps=15))
    wanted = [0.01 * np.linalg.norm(full(x)) ** 0.75 for x in points[:-1]]
    np.testing.assert_allclose(lengths(points), wanted, rtol=1e-6)


def test_the_least_gradient_is_returned_and_known():
    solver = NormalizedGradientDescent(0.05, 1.0, tol=0.0, max_steps=60)
    found = jxt.solve(retrieval(), solver, START, trace=lambda problem, x, state: x)
    assert found.status == jxt.Status.step_limit
    sizes = [
        np.linalg.norm(full(x)) for x in np.concatenate([np.asarray(START)[None], found.trace])
    ]
    np.testing.assert_allclose(found.residual, min(sizes), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(full(np.asarray(found.value))), min(sizes), rtol=1e-9)


def test_a_finite_sum_is_solved_where_the_lengths_fall():
    """Converged only where a full gradient says so."""
    lengths = lambda k: 0.2 * 0.97**k
    found = jxt.solve(retrieval(), SPIDER(lengths, tol=1e-6, max_steps=2000), START)
    assert found.status == jxt.Status.converged
    assert int(found.steps) % 6 == 0  # where the big batches are, of a root of 30 samples
    assert np.linalg.norm(full(np.asarray(found.value))) <= 1e-6
    np.testing.assert_allclose(np.abs(found.value), np.abs(Z), atol=1e-6)
    assert int(found.state.samples) == M + int(found.steps) // 6 * (M + 5 * 12)


def test_nothing_moves_at_a_stationary_point():
    flat = jxt.solve(retrieval(), SPIDER(0.1, 3, 2, max_steps=4), jnp.zeros(D))
    np.testing.assert_array_equal(flat.value, 0)
    assert flat.status == jxt.Status.converged


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SPIDER, NormalizedGradientDescent, ClippedSGD])
def test_overflow_is_reported(kind):
    far = jnp.full(D, 1e12, jnp.float32)
    found = jxt.solve(retrieval(dtype=jnp.float32), kind(0.1), far)
    assert found.status == jxt.Status.nonfinite


@pytest.mark.slow
def test_an_expectation():
    """A quadratic around random centres, with mean zero."""
    fit = lambda x, c: 0.5 * jnp.sum((x - c) ** 2)
    draw = lambda key, b: jax.random.normal(key, (b, 2))
    problem = jxt.Expectation(fit, sampler=draw)
    solver = SPIDER(0.02, 10, 4, 400, output=Last(), max_steps=300)
    found = jxt.solve(problem, solver, jnp.full(2, 2.0))
    assert found.status == jxt.Status.step_limit
    assert np.linalg.norm(found.value) < 0.2
    assert int(found.state.samples) == 400 * 31 + 270 * 8


def test_robust_regression_by_numpy():
    X, y = RNG.normal(size=(9, D)), RNG.normal(size=9)
    w, eta = RNG.normal(size=D), 0.3
    fit = 0.5 * (y - X @ w) ** 2 + 0.1 * np.sum(np.log(1 + np.abs(w)))
    t = (fit - eta) / 0.05
    wanted = np.mean(0.05 * (0.25 * np.maximum(t + 2, 0) ** 2 - 1)) + eta
    point = (jnp.asarray(w), jnp.asarray(eta))
    np.testing.assert_allclose(_full_value(chi2_dro(X, y, 0.05), point), wanted, rtol=1e-12)
    value = np.mean((Y - (A @ np.asarray(START)) ** 2) ** 2) / 2
    np.testing.assert_allclose(_full_value(retrieval(), START), value, rtol=1e-12)


def test_steps_of_the_theory():
    # At alpha = 0: K0 = 2 L0, K1 = K2 = L1.
    np.testing.assert_allclose(
        generalized_smooth_step(3.0, 2.0, 0.0, 0.5, 0.01), 0.1 / (12 * (6 + 2 + 4) + 1)
    )
    # At a half: 2^(1/2), 3^(1/2), L1^2 and 1/2.
    r, s = 2**0.5, 3**0.5
    K = 3 * (r + 1) + 2 * r * s + 2 * 4 * r * s * 0.5
    np.testing.assert_allclose(
        generalized_smooth_step(3.0, 2.0, 0.5, 1.0, 0.01), 0.01 / (12 * K + 1)
    )
    np.testing.assert_allclose(generalized_smooth_step(3.0, 2.0, 1.0, 1.0, 0.01), 0.01 / 28)


def test_bad_input():
    for bad in (
        lambda: NormalizedGradientDescent(0.1, 1.5),
        lambda: NormalizedGradientDescent(-0.1),
        lambda: SPIDER(0.1, 0),
        lambda: SPIDER(0.1, 3, 0),
        lambda: ClippedSGD(0.1, 0.0),
        lambda: NormalizedSGD(0.1, 1.0),
        lambda: generalized_smooth_step(1.0, 1.0, 0.5, 0.3, 0.1),
        lambda: phase_retrieval(A, Y[1:]),
        lambda: chi2_dro(A, Y, 0.0),
    ):
        with pytest.raises(ValueError, match="must"):
            bad()
    lasso = jxt.FiniteSum(lambda x, a: (a @ x) ** 2, jnp.asarray(A), prox.L1(1.0))
    with pytest.raises(TypeError, match="nonsmooth"):
        jxt.solve(lasso, SPIDER(0.1), START)
    draw = lambda key, b: jax.random.normal(key, (b, 2))
    unknown = jxt.Expectation(lambda x, c: jnp.sum((x - c) ** 2), sampler=draw)
    with pytest.raises(ValueError, match="period="):
        jxt.solve(unknown, SPIDER(0.1), jnp.zeros(2))
    with pytest.raises(TypeError, match="Last"):
        SPIDER(0.1, output="last")  # pyright: ignore[reportArgumentType]
