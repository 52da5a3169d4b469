"""Hypergradients against closed forms in numpy, and against derivatives of solves."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jaxopt_ext as jxt
from jaxopt_ext import bilevel, prox

RNG = np.random.default_rng(3)
N, M = 6, 4


def _positive(rng, n, low, high):
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return q @ np.diag(np.linspace(low, high, n)) @ q.T


A, D = _positive(RNG, M, 1, 2), _positive(RNG, N, 0.1, 1)
B, C = RNG.normal(size=(N, M)), RNG.normal(size=N)
X = RNG.normal(size=N)
REDUCED = B @ np.linalg.inv(A) @ B.T + D
ANSWER = np.linalg.solve(A, B.T @ X)


def _quadratic(c: Any = C, dtype=jnp.float64):
    a, b, d = (jnp.asarray(m, dtype) for m in (A, B, D))
    upper = lambda x, y: 0.5 * (y @ a @ y + (x - c) @ d @ (x - c))
    return jxt.Bilevel(upper, lambda x, y: 0.5 * y @ a @ y - x @ b @ y)


@functools.cache
def _found():
    problem = _quadratic()

    @jax.jit
    def run(x, y):
        ways = {
            "exact": bilevel.hypergradient(problem, x, y),
            "CG": bilevel.hypergradient(
                problem, x, y, linear_solver=lx.CG(1e-13, 1e-13), v0=jnp.ones(M)
            ),
            "neumann": bilevel.neumann(problem, x, y, num_terms=400, step_size=0.5),
            "unrolled": bilevel.unrolled(problem, x, jnp.zeros(M), num_steps=100, step_size=0.5),
        }
        through = lambda x: problem.upper(
            x, jxt.solve(jxt.Smooth(lambda y: problem.lower(x, y)), SOLVER, y).value
        )
        return ways, jax.grad(through)(x), problem.residual(jxt.core.BilevelPoint(x, y, y))

    return run(X, ANSWER)


SOLVER = jxt.minimize.FISTA(tol=1e-12)


def test_every_way_is_the_closed_form_on_a_quadratic():
    ways, through, residual = _found()
    wanted = REDUCED @ X - D @ C
    for name, found in ways.items():
        np.testing.assert_allclose(found.gradient, wanted, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(found.lower_error, 0, atol=1e-10)
        np.testing.assert_allclose(found.lower, ANSWER, atol=1e-10)
    np.testing.assert_allclose(ways["neumann"].multiplier, ways["CG"].multiplier, atol=1e-6)
    np.testing.assert_allclose(through, wanted, atol=1e-9)
    # With v = A^{-1} A y = y the residual is the hypergradient, and zeros.
    np.testing.assert_allclose(residual.upper, wanted, atol=1e-12)
    np.testing.assert_allclose(residual.lower, 0, atol=1e-12)
    np.testing.assert_allclose(residual.multiplier, 0, atol=1e-12)


def test_off_the_lower_solution_the_error_shows():
    y = ANSWER + 0.1
    found = jax.jit(lambda y: bilevel.hypergradient(_quadratic(), jnp.asarray(X), y))(y)
    np.testing.assert_allclose(found.lower_error, np.linalg.norm(A @ y - B.T @ X), rtol=1e-12)
    np.testing.assert_allclose(found.gradient, D @ (X - C) + B @ y, atol=1e-10)


def test_products_on_trees_and_their_signs():
    a, b = jnp.asarray(A), jnp.asarray(B)
    join = lambda t: jnp.concatenate([t["p"], t["q"]])
    lower = lambda x, y: 0.5 * join(y) @ a @ join(y) - jnp.concatenate(x) @ b @ join(y)
    problem = jxt.Bilevel(lambda x, y: jnp.sum(join(y)), lower)
    v = RNG.normal(size=M)
    x, y = (X[:2], X[2:]), {"p": ANSWER[:1], "q": ANSWER[1:]}
    tree_v = {"p": jnp.asarray(v[:1]), "q": jnp.asarray(v[1:])}
    found = bilevel.cross(problem, x, y, tree_v)
    np.testing.assert_allclose(np.concatenate(found), -B @ v, atol=1e-12)
    np.testing.assert_allclose(join(bilevel.hessian(problem, x, y, tree_v)), A @ v, atol=1e-12)


def test_ridge_with_a_logarithmic_penalty():
    from sklearn.datasets import load_diabetes

    bunch: Any = load_diabetes()
    data, target = bunch.data, bunch.target
    target = (target - target.mean()) / target.std()
    X1, y1, X2, y2 = data[:300] * 10, target[:300], data[300:] * 10, target[300:]
    lam = -1.3
    lower = lambda x, w: 0.5 * jnp.sum((X1 @ w - y1) ** 2) + 0.5 * jnp.exp(x) * w @ w
    problem = jxt.Bilevel(lambda x, w: 0.5 * jnp.mean((X2 @ w - y2) ** 2), lower)
    H = X1.T @ X1 + np.exp(lam) * np.eye(10)
    w = np.linalg.solve(H, X1.T @ y1)
    slope = X2.T @ (X2 @ w - y2) / len(y2)
    wanted = slope @ np.linalg.solve(H, -np.exp(lam) * w)
    found = jax.jit(lambda x, w: bilevel.hypergradient(problem, x, w))(lam, w)
    np.testing.assert_allclose(found.gradient, wanted, rtol=1e-9)


def test_a_lower_set():
    """Nonnegative answers: where one is held, it does not move."""
    problem = jxt.Bilevel(_quadratic().upper, _quadratic().lower, None, prox.NonNegative())

    def answer(x):
        y = np.zeros(M)
        for _ in range(400):
            y = np.maximum(y - 0.5 * (A @ y - B.T @ x), 0)
        return y

    value = lambda x: 0.5 * (answer(x) @ A @ answer(x) + (x - C) @ D @ (x - C))
    assert 0 < np.sum(answer(X) == 0) < M
    direction = RNG.normal(size=N)
    wanted = (value(X + 1e-5 * direction) - value(X - 1e-5 * direction)) / 2e-5

    @jax.jit
    def run(x, y):
        steps = bilevel.unrolled(problem, x, jnp.zeros(M), num_steps=200, step_size=0.5)
        return bilevel.hypergradient(problem, x, y).gradient, steps.gradient

    found, by_steps = run(X, answer(X))
    np.testing.assert_allclose(found @ direction, wanted, rtol=1e-6)
    np.testing.assert_allclose(by_steps @ direction, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="without a set"):
        bilevel.neumann(problem, X, answer(X), num_terms=3, step_size=0.1)


def _noisy():
    """Levels that are means over factors."""
    exact = _quadratic()
    upper = lambda x, y, s: exact.upper(x, y) * s[0] + s[1] * jnp.sum(y)
    lower = lambda x, y, s: exact.lower(x, y) * s[0] + s[1] * jnp.sum(x) * jnp.sum(y)
    data = (np.array([0.5, 1.5, 1.0]), np.array([1.0, -1.0, 0.0]))
    return jxt.StochasticBilevel(upper, lower, data, data)


def test_random_series_are_unbiased_for_the_deterministic_one():
    problem, terms, step = _noisy(), 6, 0.3
    total, power = np.zeros(M), A @ ANSWER
    for _ in range(terms):
        total, power = total + step * power, power - step * A @ power
    wanted = D @ (X - C) + B @ total
    y = jnp.asarray(ANSWER)

    @jax.jit
    @jax.vmap
    def draw(key):
        options = {"num_terms": terms, "step_size": step}
        one = bilevel.truncated_neumann(_quadratic(), X, y, key, **options)
        two = bilevel.truncated_neumann(problem, X, y, key, batch=1, **options)
        three = bilevel.neumann(problem, X, y, key=key, batch=2, **options)
        return one.gradient, two.gradient, three.gradient

    full = bilevel.neumann(problem, X, y, num_terms=terms, step_size=step).gradient
    np.testing.assert_allclose(full, wanted, atol=1e-10)
    for found in draw(jax.random.split(jax.random.key(0), 2000)):
        error = np.std(found, axis=0) / np.sqrt(len(found))
        assert np.max(error) > 1e-3
        assert np.max(np.abs(np.mean(found, axis=0) - wanted) / error) < 5


def test_a_nan_hessian_shows():
    problem = jxt.Bilevel(
        lambda x, y: jnp.sum(y) + jnp.sum(x), lambda x, y: jnp.nan * jnp.sum(y**2) + x @ y
    )

    @jax.jit
    def run(x):
        one = lambda solver: bilevel.hypergradient(problem, x, x, linear_solver=solver)
        return [one(solver) for solver in (None, lx.CG(1e-6, 1e-6))]

    for found in run(jnp.ones(2)):
        assert not np.any(np.isfinite(found.gradient))


def test_single_precision_is_kept_and_near():
    args = (jnp.asarray(X, jnp.float32), jnp.asarray(ANSWER, jnp.float32))
    problem = _quadratic(jnp.asarray(C, jnp.float32), jnp.float32)

    @jax.jit
    def run(*args):
        return (
            bilevel.hypergradient(problem, *args),
            bilevel.neumann(problem, *args, num_terms=50, step_size=0.5),
            bilevel.unrolled(problem, *args, num_steps=50, step_size=0.5),
        )

    found = run(*args)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    for one in found:
        np.testing.assert_allclose(one.gradient, REDUCED @ X - D @ C, rtol=1e-4, atol=1e-4)


def test_it_can_be_differentiated_and_runs_on_each_device():
    """$B (tA)^{-1} 1$ in $t$, and each device's own $t$."""

    def gradient(t):
        lower = lambda x, y: 0.5 * t * y @ jnp.asarray(A) @ y - x @ jnp.asarray(B) @ y
        problem = jxt.Bilevel(lambda x, y: jnp.sum(y), lower)
        return bilevel.hypergradient(problem, jnp.asarray(X), jnp.asarray(ANSWER)).gradient

    wanted = B @ np.linalg.solve(A, np.ones(M))
    scales = jnp.asarray([1.0, 2.0])

    def slopes(t):
        lower = lambda x, y: 0.5 * t * y @ jnp.asarray(A) @ y - x @ jnp.asarray(B) @ y
        problem = jxt.Bilevel(lambda x, y: jnp.sum(y), lower)
        args = (problem, jnp.asarray(X), jnp.asarray(ANSWER))
        series = bilevel.neumann(*args, num_terms=80, step_size=0.4)
        steps = bilevel.unrolled(*args, num_steps=80, step_size=0.4)
        one = bilevel.truncated_neumann(*args, jax.random.key(0), num_terms=1, step_size=0.4)
        return gradient(t), jax.jacrev(gradient)(t), series.gradient, steps.gradient, one.gradient

    spread = jax.shard_map(
        lambda t: jax.tree.map(lambda a: a[None], slopes(t[0])),
        mesh=jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,)),
        in_specs=P("i"),
        out_specs=P("i"),
    )
    for t, value, slope, series, steps, one in zip(scales, *jax.jit(spread)(scales), strict=True):
        np.testing.assert_allclose(value, wanted / t, atol=1e-10)
        np.testing.assert_allclose(slope, -wanted / t**2, atol=1e-10)
        np.testing.assert_allclose(series, wanted / t, atol=1e-10)
        np.testing.assert_allclose(steps, wanted / t, atol=1e-10)
        np.testing.assert_allclose(one, 0.4 * B @ np.ones(M), atol=1e-10)


def test_averaged_levels():
    mixed = bilevel.averaged(_quadratic(), 0.25)
    x, y = jnp.asarray(X), jnp.asarray(ANSWER)
    wanted = 0.25 * mixed.upper(x, y) + 0.75 * _quadratic().lower(x, y)
    np.testing.assert_allclose(mixed.lower(x, y), wanted)


def test_bad_input():
    problem, x, y = _quadratic(), jnp.ones(N), jnp.ones(M)
    with pytest.raises(TypeError, match="problem"):
        bilevel.cross(jxt.Smooth(jnp.sum), x, y, y)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="v0"):
        bilevel.hypergradient(problem, x, y, v0=jnp.ones(M + 1))
    with pytest.raises(ValueError, match="num_terms"):
        bilevel.neumann(problem, x, y, num_terms=0, step_size=0.1)
    with pytest.raises(ValueError, match="step_size"):
        bilevel.unrolled(problem, x, y, num_steps=3, step_size=-1.0)
    with pytest.raises(ValueError, match="num_steps"):
        bilevel.unrolled(problem, x, y, num_steps=-1, step_size=1.0)
    with pytest.raises(ValueError, match="key"):
        bilevel.neumann(_noisy(), x, y, num_terms=3, step_size=0.1, batch=2)
    with pytest.raises(ValueError, match="weight"):
        bilevel.averaged(problem, 1.5)
