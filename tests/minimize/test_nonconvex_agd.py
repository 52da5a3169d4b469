"""Accelerated gradient steps for folded concave penalties against a loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import jaxopt_ext as jxt
from jaxopt_ext import objectives, prox
from jaxopt_ext.minimize import (
    HarmonicAveraging,
    NonconvexAGD,
    OptimalAveraging,
    SpeedRestart,
    marginal_slopes,
    sparse_path,
)

RNG = np.random.default_rng(5)
N, D = 40, 8
X = RNG.normal(size=(N, D)) + 0.7 * RNG.normal(size=(N, 1))
X = (X - X.mean(axis=0)) / X.std(axis=0)
Y = X @ np.array([2.0, -1.5, 0, 0, 1, 0, 0, 0]) + 0.3 * RNG.normal(size=N)
Y -= Y.mean()
LOSS = objectives.SquaredLoss(X, Y)
LARGEST = np.linalg.norm(X, 2) ** 2 / N
LAM = 0.2


def soft(x, amount):
    return np.sign(x) * np.maximum(np.abs(x) - amount, 0)


def concave(x, lam, a):
    """The derivative of SCAD without that of its norm."""
    size = np.abs(x)
    middle = (lam - size) / (a - 1)
    return np.sign(x) * np.where(size <= lam, 0, np.where(size <= a * lam, middle, -lam))


def reference(steps, optimal, patience, lam=LAM, a=3.7):
    beta = 0.99 / max(LARGEST, 1 / (a - 1))
    x = b = middle = np.zeros(D)
    speed, slower, since, found, restarts, k = np.inf, False, 0, [], 0, 0
    for i in range(steps):
        if i == 0 or (patience and slower and since >= patience):
            restarts += i > 0
            alpha, k, since = 1.0, 0, 0
        elif optimal:
            alpha = 2 / (1 + np.sqrt(1 + 4 / alpha**2))
        else:
            alpha = 2 / (k + 2)
        k, since = k + 1, since + 1
        long = beta / alpha if optimal else k * beta / 2
        y = (1 - alpha) * x + alpha * b
        g = X.T @ (X @ y - Y) / N + concave(y, lam, a)
        b, x = soft(b - long * g, long * lam), soft(y - beta * g, beta * lam)
        last, speed = speed, np.linalg.norm(y - middle)
        slower, middle = speed < last and i > 0, y
        found.append(x)
    return found, restarts


@pytest.mark.always(2)
@pytest.mark.parametrize(("optimal", "patience"), [(True, 3), (False, 0), (True, 0), (False, 3)])
def test_steps_against_numpy(optimal, patience):
    wanted, restarts = reference(25, optimal, patience)
    assert (restarts > 0) == (patience > 0)
    solver = NonconvexAGD(
        OptimalAveraging() if optimal else HarmonicAveraging(),
        SpeedRestart(patience) if patience else None,
        lipschitz=LARGEST,
        tol=0.0,
        max_steps=25,
    )
    problem = jxt.Composite(LOSS, prox.SCAD(LAM))
    found = jxt.solve(problem, solver, jnp.zeros(D), trace=lambda p, x, s: x).trace
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("penalty", [prox.SCAD(0.5, 3.7), prox.MCP(0.5, 2.5)])
def test_the_split_is_that_of_the_penalty(penalty):
    x = np.concatenate([RNG.uniform(-3, 3, 50), [1e3, -1e3, 0.0]])
    rest = lambda x: penalty(x) - penalty.l1_part()(x)

    @jax.jit
    def parts(x):
        bends = jax.vmap(jax.grad(lambda t: penalty.concave_gradient(t[None])[0]))(x)
        return penalty.concave_gradient(x), jax.grad(rest)(x), bends, penalty.concavity()

    found, wanted, bends, concavity = map(np.asarray, parts(x))
    np.testing.assert_allclose(found[:50], wanted[:50], atol=1e-12)
    np.testing.assert_allclose(found[50:], [-0.5, 0.5, 0], atol=1e-12)
    np.testing.assert_allclose(np.max(-bends[:50]), concavity, rtol=1e-9)


def test_stationary_points_and_limits():
    """A KKT point of each penalty; the lasso in the limit, and nothing where all is penalized."""
    for penalty in (prox.SCAD(LAM), prox.MCP(LAM)):
        solution = jxt.solve(jxt.Composite(LOSS, penalty), NonconvexAGD(tol=1e-9), jnp.zeros(D))
        assert solution.status == jxt.Status.converged
        x = np.asarray(solution.value)
        slope = X.T @ (X @ x - Y) / N
        np.testing.assert_allclose(-slope[x == 0], np.clip(-slope[x == 0], -LAM, LAM))
        bend = np.sign(x) * LAM + np.asarray(penalty.concave_gradient(solution.value))
        np.testing.assert_allclose((slope + bend)[x != 0], 0, atol=1e-8)
        assert set(np.flatnonzero(x)) >= {0, 1, 4}
    wide = jxt.Composite(LOSS, prox.SCAD(LAM, 1e6))
    found = jxt.solve(wide, NonconvexAGD(tol=1e-9), jnp.zeros(D)).value
    lasso = Lasso(alpha=LAM, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(X, Y).coef_
    np.testing.assert_allclose(found, lasso, atol=1e-5)


def test_an_intercept_is_not_penalized_and_a_logistic_step_size_is_found():
    """With the greatest penalty that matters only the intercept is left, the log odds."""
    labels = (Y > 0.4) * 1.0
    matrix = np.column_stack([np.ones(N), X])
    most = np.max(np.abs(X.T @ (labels - labels.mean())) / N)
    loss = objectives.LogisticLoss(matrix, labels)
    weights = jnp.concatenate([jnp.zeros(1), jnp.ones(D)])
    for smooth in (loss, lambda w: loss(w)):
        problem = jxt.Composite(smooth, prox.MCP(1.001 * most * weights))
        solution = jxt.solve(problem, NonconvexAGD(tol=1e-8), jnp.zeros(D + 1))
        assert solution.status == jxt.Status.converged
        odds = np.log(labels.mean() / (1 - labels.mean()))
        np.testing.assert_allclose(solution.value, [odds, *[0] * D], atol=1e-6)


def test_a_path_with_screening_is_that_without():
    weights = np.max(np.abs(X.T @ Y)) / N * np.geomspace(1.0, 0.05, 8)
    solver = NonconvexAGD(tol=1e-9)
    paths = [sparse_path(LOSS, prox.SCAD(1.0), weights, solver, screen=s) for s in (True, False)]
    np.testing.assert_allclose(paths[0].coefficients, paths[1].coefficients, atol=1e-6)
    assert np.all(paths[0].converged)
    np.testing.assert_allclose(paths[0].coefficients[0], 0, atol=1e-6)
    assert np.sum(paths[0].kept) < np.sum(paths[1].kept) == 8 * D
    assert np.all(np.asarray(paths[1].solves) == 1)


def test_marginal_slopes():
    matrix = np.column_stack([X[:, :2], np.zeros(N)])
    wanted = [np.polyfit(X[:, 0], Y + 3, 1)[0], np.polyfit(X[:, 1], Y + 3, 1)[0], 0]
    np.testing.assert_allclose(marginal_slopes(matrix, jnp.asarray(Y + 3)), wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: NonconvexAGD(0.5), TypeError),
        (lambda: NonconvexAGD(restart=3), TypeError),
        (lambda: NonconvexAGD(lipschitz=0.0), ValueError),
        (lambda: SpeedRestart(0), ValueError),
        (lambda: sparse_path(LOSS, prox.SCAD(1.0), [0.1, 0.2]), ValueError),
        (lambda: sparse_path(LOSS, prox.SCAD(1.0), 0.1), ValueError),
        (lambda: sparse_path(LOSS, prox.L0(1.0), [0.1]), TypeError),
        (
            lambda: jxt.solve(jxt.Composite(LOSS, prox.L0(1.0)), NonconvexAGD(), jnp.zeros(D)),
            TypeError,
        ),
    ],
)
def test_bad_settings_raise(make, error):
    with pytest.raises(error, match="got"):
        make()
