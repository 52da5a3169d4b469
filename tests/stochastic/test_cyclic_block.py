"""Cyclic block descent by triangular solves, numpy loops and other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import Cyclic, Random, Shuffled
from jaxopt_ext.stochastic import (
    Backward,
    CyclicProximal,
    RandomIterate,
    VarianceReducedCyclic,
    cyclic_step,
    mahalanobis_constant,
    quadratic_constants,
)

RNG = np.random.default_rng(3)
N, D = 12, 5
A, B = RNG.normal(size=(N, D)), RNG.normal(size=N)
DATA = (jnp.asarray(A), jnp.asarray(B))
KEY = jax.random.key(1)
ROOT = RNG.normal(size=(D, D))
H = ROOT + ROOT.T
X = RNG.normal(size=D)


def path(problem, solver, start, key=KEY):
    """All iterates."""
    found = jxt.solve(problem, solver, start, key=key, trace=lambda problem, x, state: x)
    join = lambda a, b: np.concatenate([np.asarray(a)[None], np.asarray(b)])
    return jax.tree.map(join, start, found.trace), found


SWEPT = jxt.Smooth(lambda x: 0.5 * x @ jnp.asarray(H) @ x)


def test_a_cycle_is_a_sweep_of_gauss_seidel():
    problem, eta, identity = SWEPT, 0.1, np.eye(D)
    upper, lower = np.triu(H), np.tril(H, -1)
    forward, _ = path(problem, CyclicProximal(eta, max_steps=3), jnp.asarray(X))
    x = X
    for found in forward:
        np.testing.assert_allclose(found, x, atol=1e-12)
        x = scipy.linalg.solve_triangular(
            identity + eta * lower, (identity - eta * upper) @ x, lower=True
        )


@pytest.mark.slow
def test_a_cycle_the_other_way_is_the_other_sweep():
    eta, identity = 0.1, np.eye(D)
    solver = CyclicProximal(eta, order=Backward(), max_steps=3)
    backward, _ = path(SWEPT, solver, jnp.asarray(X))
    x = np.linalg.solve(identity + eta * np.triu(H, 1), (identity - eta * np.tril(H)) @ X)
    np.testing.assert_allclose(backward[1], x, atol=1e-12)


def test_constants_and_the_step_that_never_rises():
    roots = RNG.normal(size=(50, 7, 7))
    matrices = roots + np.swapaxes(roots, 1, 2)

    @jax.jit
    @jax.vmap
    def run(H):
        Q = quadratic_constants(H, 3)
        step = cyclic_step(jnp.linalg.norm(H, 2), Q, 3)
        problem = jxt.Smooth(lambda x: 0.5 * x @ H @ x)
        solver = CyclicProximal(step, 3, tol=0.0, max_steps=6)
        values = lambda problem, x, state: problem.fun(x)
        found = jxt.solve(problem, solver, jnp.ones(7), trace=values).trace
        return (
            jnp.concatenate([problem.fun(jnp.ones(7))[None], found]),
            step,
            mahalanobis_constant(Q, 3),
        )

    values, steps, constants = map(np.asarray, run(jnp.asarray(matrices)))
    assert np.all(np.diff(values, axis=1) < 0)
    cuts = [slice(0, 3), slice(3, 6), slice(6, 7)]
    for H, step, constant in zip(matrices[:5], steps, constants, strict=False):
        behind, before = np.zeros((7, 7)), np.zeros((7, 7))
        for cut in cuts:
            Q = H[cut].T @ H[cut]
            behind[cut.start :, cut.start :] += Q[cut.start :, cut.start :]
            before[: cut.start, : cut.start] += Q[: cut.start, : cut.start]
        np.testing.assert_allclose(constant, np.sqrt(2 * np.linalg.norm(behind, 2)))
        bound = np.linalg.norm(H, 2) / 2 + np.sqrt(np.linalg.norm(before, 2))
        np.testing.assert_allclose(step, 1 / bound)


def loss(x, row):
    return 0.5 * (row[0] @ x - row[1]) ** 2 + jnp.cos(x[0])


def slope(x, rows):
    return A[rows].T @ (A[rows] @ x - B[rows]) / len(rows) - np.eye(D)[0] * np.sin(x[0])


@pytest.mark.parametrize("batch", [pytest.param(None, marks=pytest.mark.slow), 6])
def test_variance_reduction_by_numpy(batch):
    """With the same coins and batches; two blocks, the second shorter."""
    problem = jxt.FiniteSum(loss, data=DATA, nonsmooth=prox.L1(0.1))
    solver = VarianceReducedCyclic(0.1, batch, 3, 0.4, blocks=2, max_steps=12)
    found, solution = path(problem, solver, jnp.asarray(X))
    soft = lambda z: np.sign(z) * np.maximum(np.abs(z) - 0.01, 0)
    cuts = [slice(0, 3), slice(3, 5)]
    x, previous, estimate, samples, tails = X, X, np.zeros(D), 0, 0

    @jax.jit
    def drawn(key):
        """Coins, and the rows for each of their sides."""

        def once(key, _):
            coin, draw, _, key = jax.random.split(key, 4)
            sides = problem.draw(draw, batch or N), problem.draw(draw, 3)
            return key, (jax.random.bernoulli(coin, 0.4), *sides)

        return jax.lax.scan(once, key, length=12)[1]

    coins, large, small = map(np.asarray, drawn(KEY))
    for k in range(12):
        np.testing.assert_allclose(found[k], x, rtol=1e-9, atol=1e-11)
        heads = k == 0 or coins[k]
        rows = large[k] if heads else small[k]
        rows = np.arange(N) if heads and batch is None else rows
        samples += len(rows) * (1 if heads else 2)
        tails += not heads
        new, old = x.copy(), previous.copy()
        for cut in cuts:
            if heads:
                estimate[cut] = slope(new, rows)[cut]
            else:
                estimate[cut] += slope(new, rows)[cut] - slope(old, rows)[cut]
            new[cut] = soft(new[cut] - 0.1 * estimate[cut])
            old[cut] = x[cut]
        previous, x = x, new
    assert 3 < tails < 11
    assert int(solution.state.samples) == samples


def tree_problem(sampling=None):
    def of_tree(x, row):
        return loss(jnp.concatenate([x["a"], x["b"]["c"], x["b"]["d"]]), row)

    parts = prox.Separable({"a": prox.L2(0.2), "b": prox.L1(0.1)})
    sampling = jxt.WithReplacement() if sampling is None else sampling
    return jxt.FiniteSum(of_tree, data=DATA, nonsmooth=parts, sampling=sampling)


START = {"a": jnp.asarray(X[:2]), "b": {"c": jnp.asarray(X[2:4]), "d": jnp.asarray(X[4:])}}


@pytest.mark.slow
def test_with_all_samples_it_is_the_deterministic_method():
    """Blocks by paths, and by default the children of the top level."""
    problem = tree_problem(jxt.WithoutReplacement())
    for blocks in (None, ("a", "b/d", "b/c")):
        wanted, _ = path(problem, CyclicProximal(0.05, blocks, max_steps=8), START)
        solver = VarianceReducedCyclic(0.05, None, N, 0.3, blocks, max_steps=8)
        found, _ = path(problem, solver, START)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, wanted)


@pytest.mark.slow
def test_every_order_reaches_the_solution():
    """That of the proximal gradient method on all blocks at once."""
    problem = tree_problem()
    stationary = lambda x: jxt.tree.norm(problem.residual(x))
    for order in (Cyclic(), Backward(), Shuffled(), Random()):
        found = jxt.solve(problem, CyclicProximal(0.1, order=order, tol=1e-9), START, key=KEY)
        assert found.status == jxt.Status.converged
        assert stationary(found.value) <= 1e-9
    solver = VarianceReducedCyclic(0.1, order=Backward(), tol=1e-9, max_steps=5000)
    found = jxt.solve(problem, solver, START)
    assert found.status == jxt.Status.converged
    assert stationary(found.value) <= 1e-9
    picked = VarianceReducedCyclic(0.1, output=RandomIterate(), max_steps=20)
    found = jxt.solve(problem, picked, START, key=KEY)
    assert found.status == jxt.Status.step_limit
    assert np.isinf(found.residual)


@pytest.mark.slow
def test_an_expectation():
    fit = lambda x, c: 0.5 * jnp.sum((x - c) ** 2)
    problem = jxt.Expectation(fit, sampler=lambda key, b: jax.random.normal(key, (b, 3)))
    solver = VarianceReducedCyclic(0.1, 400, max_steps=200)
    found = jxt.solve(problem, solver, jnp.full(3, 2.0))
    assert np.linalg.norm(found.value) < 0.3
    for bad in (VarianceReducedCyclic(0.1), VarianceReducedCyclic(0.1, None, 4)):
        with pytest.raises(ValueError, match="give"):
            jxt.solve(problem, bad, jnp.zeros(3))


@pytest.mark.slow
def test_one_block_takes_what_is_not_separable():
    problem = jxt.FiniteSum(loss, data=DATA, nonsmooth=prox.L2(0.1))
    found = jxt.solve(problem, CyclicProximal(0.1, 1), jnp.asarray(X))
    assert found.status == jxt.Status.converged


def test_bad_input():
    lasso = jxt.FiniteSum(loss, data=DATA, nonsmooth=prox.L2(0.1))
    start = jnp.asarray(X)
    for solver in (CyclicProximal(0.1), VarianceReducedCyclic(0.1)):
        with pytest.raises(TypeError, match="separable"):
            jxt.solve(lasso, solver, start)
    whole = jxt.FiniteSum(tree_problem().loss, data=DATA, nonsmooth=prox.Simplex(1.0))
    with pytest.raises(TypeError, match="separable"):
        jxt.solve(whole, CyclicProximal(0.1, (("a", "b/c"), "b/d")), START)
    for blocks in (("a", "b/c"), ("a", "b", "b/d"), ("a", "b", "e")):
        with pytest.raises(ValueError, match="once"):
            jxt.solve(tree_problem(), CyclicProximal(0.1, blocks), START)
    with pytest.raises(ValueError, match="at most"):
        jxt.solve(lasso, CyclicProximal(0.1, 6), start)
    with pytest.raises(TypeError, match="paths"):
        jxt.solve(tree_problem(), CyclicProximal(0.1, 2), START)
    with pytest.raises(TypeError, match="number"):
        jxt.solve(lasso, CyclicProximal(0.1, ("a",)), start)
    with pytest.raises(TypeError, match="stays"):
        VarianceReducedCyclic(0.1, order=Shuffled())
    for bad in (
        lambda: CyclicProximal(-1.0),
        lambda: VarianceReducedCyclic(0.1, 0),
        lambda: VarianceReducedCyclic(0.1, probability=0.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            bad()


@pytest.mark.slow
def test_sparse_logistic_regression_equals_other_solvers():
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    smooth = jxt.objectives.LogisticLoss(jnp.asarray(X), jnp.asarray(y * 1.0))
    problem = jxt.Composite(smooth, prox.L1(0.1))
    zero = jnp.zeros(X.shape[1])
    found = jxt.solve(problem, CyclicProximal(2.0, 6, tol=1e-8, max_steps=20_000), zero)
    assert found.status == jxt.Status.converged
    fista = jxt.solve(problem, jxt.minimize.FISTA(tol=1e-10, max_steps=20_000), zero).value
    np.testing.assert_allclose(found.value, fista, atol=1e-6)
    model = LogisticRegression(
        l1_ratio=1.0,
        C=1 / (0.1 * len(y)),
        solver="saga",
        fit_intercept=False,
        tol=1e-10,
        max_iter=10**5,
    )
    np.testing.assert_allclose(found.value, model.fit(X, y).coef_[0], atol=1e-6)
