"""Bilevel problems: what they take, and minibatches against numpy."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox

RNG = np.random.default_rng(0)
FIT = lambda x, y, s: 0.5 * (s[0] @ y - s[1]) ** 2
PULL = lambda x, y, s: 0.5 * (s[0] @ y - s[1]) ** 2 * jnp.exp(x[0]) + 0.5 * jnp.exp(x[1]) * y @ y
DATA = (RNG.normal(size=(7, 3)), RNG.normal(size=7))
MORE = (RNG.normal(size=(11, 3)), RNG.normal(size=11))


def _residual(x, y, v, rows, more):
    """Written out."""
    (A, a), (B, b) = ([part[i] for part in data] for data, i in ((DATA, rows), (MORE, more)))
    fit, size = np.exp(x[0]), np.exp(x[1])
    H = fit * B.T @ B / len(b) + size * np.eye(3)
    slope = B.T @ (B @ y - b) / len(b)
    own = -np.array([fit * slope @ v, size * y @ v])
    return own, fit * slope + size * y, H @ v - A.T @ (A @ y - a) / len(a)


def test_residuals_of_all_and_of_some_samples():
    x, y, v = RNG.normal(size=2), RNG.normal(size=3), RNG.normal(size=3)
    problem = jxt.StochasticBilevel(FIT, PULL, DATA, MORE, chunk=4)
    point = jxt.BilevelPoint(*map(jnp.asarray, (x, y, v)))
    some, others = jnp.array([1, 5, 5]), jnp.array([0, 3])

    @jax.jit
    def run(point):
        return problem.residual(point), problem.minibatch(some, others).residual(point)

    every = np.arange(7), np.arange(11)
    for found, parts in zip(run(point), (every, (some, others)), strict=True):
        for a, b in zip(found, _residual(x, y, v, *parts), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_draws():
    problem = jxt.StochasticBilevel(FIT, PULL, DATA, MORE, sampling=jxt.WithoutReplacement())
    drawn = problem.draw_upper(jax.random.key(0), 7), problem.draw_lower(jax.random.key(0), 11)
    assert [sorted(np.asarray(i)) for i in drawn] == [list(range(7)), list(range(11))]
    with pytest.raises(ValueError, match="8 of 7"):
        problem.draw_upper(jax.random.key(0), 8)
    with pytest.raises(ValueError, match="b must"):
        problem.draw_lower(jax.random.key(0), 0)


def test_an_upper_set_holds_the_upper_residual():
    problem = jxt.Bilevel(
        lambda x, y: jnp.sum((y - 2) ** 2), lambda x, y: 0.5 * jnp.sum((y - x) ** 2), prox.Box(0, 1)
    )
    corner = jxt.BilevelPoint(jnp.ones(2), jnp.ones(2), -2 * jnp.ones(2))
    np.testing.assert_allclose(jnp.concatenate(problem.residual(corner)), 0, atol=1e-12)


def test_points():
    problem = jxt.Bilevel(lambda x, y: jnp.sum(x) + jnp.sum(y), lambda x, y: jnp.sum(y**2))
    pair = jnp.ones(2), jnp.ones(3)
    started = problem.start(pair)
    assert isinstance(started, jxt.BilevelPoint)
    np.testing.assert_array_equal(started.multiplier, 0)
    assert problem.start(started) is started
    cases = [
        (jnp.ones(2), TypeError, "BilevelPoint"),
        ((jnp.ones(2), jnp.ones(3), jnp.ones(3)), TypeError, "BilevelPoint"),
        (jxt.BilevelPoint(jnp.ones(2), jnp.ones(3), jnp.ones(2)), ValueError, "multiplier"),
        (jxt.BilevelPoint(jnp.ones(2) * 1j, jnp.ones(3), jnp.ones(3)), TypeError, "complex"),
    ]
    for start, error, match in cases:
        with pytest.raises(error, match=match):
            problem.check(problem.start(start))
    with pytest.raises(ValueError, match="lower must return a scalar"):
        jxt.Bilevel(problem.upper, lambda x, y: y).check(started)
    with pytest.raises(TypeError, match="upper_set"):
        jxt.Bilevel(problem.upper, problem.lower, upper_set=3)
    with pytest.raises(TypeError, match="upper must be"):
        jxt.Bilevel(3, problem.lower)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="lower_data"):
        jxt.StochasticBilevel(FIT, PULL, DATA, (jnp.ones((0, 3)), jnp.ones(0)))
    with pytest.raises(ValueError, match="upper_data"):
        jxt.StochasticBilevel(FIT, PULL, (jnp.ones((2, 3)), jnp.ones(3)), DATA)


def test_points_with_functions_in_them():
    class Line(eqx.Module):
        w: jax.Array
        act: Callable = jnp.tanh

        def __call__(self, z):
            return self.act(self.w * z)

    fit = lambda x, line: (line(jnp.asarray(2.0)) - 0.3) ** 2 + jnp.sum(x**2)
    problem = jxt.Bilevel(fit, lambda x, line: 0.5 * (line.w - x) ** 2)
    line = Line(jnp.asarray(0.5))
    with pytest.raises(TypeError, match="starts from BilevelPoint"):
        problem.restrict((None, eqx.filter(line, eqx.is_array, inverse=True)))
    start = jxt.BilevelPoint(jnp.asarray(0.1), line, eqx.filter(line, eqx.is_inexact_array))
    solution = jxt.solve(
        problem, jxt.adapters.as_solver(jxt.bilevel.BAMM(tol=0.0, max_steps=1)), start
    )
    assert solution.value.lower.act is jnp.tanh
