"""Estimators by numpy, by what they must be without noise, and by their means over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.core import minibatches
from jaxopt_ext.stochastic import (
    Average,
    Last,
    LeastGradient,
    RandomIterate,
    StochasticGradient,
    estimators,
)

N, D = 12, 3
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(N, D)), RNG.normal(size=N)
POINTS = jnp.asarray(RNG.normal(size=(7, D)))
KEY = jax.random.key(4)


def loss(x, row):
    a, b = row
    return 0.5 * (a @ x - b) ** 2 + 0.1 * jnp.sum(jnp.cos(x))


def full(x):
    return A.T @ (A @ x - B) / N - 0.1 * np.sin(x)


def problem(sampling=None, **options):
    sampling = jxt.WithReplacement() if sampling is None else sampling
    return jxt.FiniteSum(loss, (jnp.asarray(A), jnp.asarray(B)), sampling=sampling, **options)


def along(estimator, oracle, key=KEY, points=POINTS):
    """The estimates at a sequence of points, and samples and exactness there."""
    first, key = jax.random.split(key)
    estimate = estimator.init(oracle, points[0], first)
    show = lambda e: (e.gradient, e.samples, e.exact)

    def advance(carry, x):
        estimate, before, key = carry
        draw, key = jax.random.split(key)
        estimate = estimator.update(oracle, x, before, estimate, draw)
        return (estimate, x, key), show(estimate)

    _, rest = jax.lax.scan(advance, (estimate, points[0], key), points[1:])
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), show(estimate), rest)


ALL = {
    "full": estimators.FullGradient(),
    "minibatch": estimators.Minibatch(N),
    "momentum": estimators.Momentum(0.0, N),
    "SVRG": estimators.SVRG(3, N),
    "SPIDER": estimators.SPIDER(3, N),
    "PAGE": estimators.PAGE(0.4, N),
    "STORM": estimators.STORM(0.3, N),
}


def test_with_all_samples_each_is_the_full_gradient():
    oracle = problem(jxt.WithoutReplacement())
    run = jax.jit(lambda: {name: along(e, oracle)[0] for name, e in ALL.items()})
    wanted = np.stack([full(np.asarray(x)) for x in POINTS])
    for name, found in run().items():
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10, err_msg=name)


def test_samples_and_resets():
    run = jax.jit(lambda: [along(e, problem()) for e in (SPIDER, SVRG, STORM)])
    SPIDER, SVRG, STORM = (
        estimators.SPIDER(3, 2),
        estimators.SVRG(None, 4),
        estimators.STORM(0.5, 2),
    )
    spider, svrg, storm = run()
    np.testing.assert_array_equal(spider[1], np.cumsum([12, 4, 4, 12, 4, 4, 12]))
    np.testing.assert_array_equal(spider[2], [True, False, False, True, False, False, True])
    np.testing.assert_array_equal(svrg[1], np.cumsum([12, 8, 8, 12, 8, 8, 12]))
    np.testing.assert_array_equal(storm[1], np.cumsum([2, 4, 4, 4, 4, 4, 4]))
    for found, exact in ((spider, [0, 3, 6]), (svrg, [0, 3, 6])):
        for i in exact:
            np.testing.assert_allclose(found[0][i], full(np.asarray(POINTS[i])), atol=1e-12)


def test_a_difference_is_unbiased_and_takes_one_batch_at_both_points():
    """Two batches would have a variance that does not fall with the distance."""
    oracle = problem()
    x, before = POINTS[1], POINTS[0]
    near = before + 1e-4 * (x - before)

    @jax.jit
    @jax.vmap
    def draw(key):
        old = estimators.SPIDER(5, 1).init(oracle, before, key)
        moved = lambda e, x: e.update(oracle, x, before, old, key).gradient
        spider = estimators.SPIDER(5, 1)
        storm = estimators.STORM(0.5, 1)
        return moved(spider, x), moved(spider, near), moved(storm, x)

    far, close, storm = (np.asarray(v) for v in draw(jax.random.split(KEY, 2000)))
    true = full(np.asarray(before))
    score = lambda v, mean: np.abs(v.mean(0) - mean) / (v.std(0) / np.sqrt(len(v)))
    assert score(far, full(np.asarray(x))).max() < 5
    assert score(storm, full(np.asarray(x))).max() < 5
    assert np.abs(close - true).max() < 1e-2 < np.abs(far - true).max()


def test_the_coin_of_page():
    def one(key):
        samples = along(estimators.PAGE(None, 4), problem(), key)[1]
        return jnp.diff(samples)

    drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 400)))
    assert set(np.unique(drawn)) == {8, 12}
    assert abs(np.mean(drawn == 12) - 4 / 16) < 5 * np.sqrt(0.25 * 0.75 / drawn.size)


def test_sizes_that_a_problem_does_not_give():
    unknown = jxt.Expectation(
        loss, sampler=lambda key, b: (jax.random.normal(key, (b, D)), jnp.ones(b))
    )
    for estimator in (estimators.SPIDER(3), estimators.SPIDER(None, 3), estimators.PAGE(0.5)):
        with pytest.raises(ValueError, match="give"):
            estimator.init(unknown, POINTS[0], KEY)
    with pytest.raises(ValueError, match="period="):
        estimators.SVRG().init(unknown, POINTS[0], KEY)
    with pytest.raises(ValueError, match="mean"):
        estimators.SPIDER(2, 2).init(unknown, POINTS[0], KEY)
    found = estimators.SPIDER(2, 2, 6).init(unknown, POINTS[0], KEY)
    assert int(found.samples) == 6
    assert not bool(found.exact)
    assert (
        int(estimators.SPIDER().init(minibatches(jxt.Smooth(jnp.sum)), POINTS[0], KEY).samples) == 1
    )
    for bad in (
        lambda: estimators.Minibatch(0),
        lambda: estimators.SPIDER(0),
        lambda: estimators.PAGE(0.0),
        lambda: estimators.STORM(1.5),
        lambda: estimators.Momentum(1.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            bad()


def test_which_iterate_is_returned():
    """Of gradient descent on a quadratic, whose iterates are known."""
    quadratic = jxt.Smooth(lambda x: 0.5 * jnp.sum(x**2))
    iterates = 0.5 ** np.arange(9)

    def solve(output, key=None, **options):
        solver = StochasticGradient(0.5, estimators.FullGradient(), output, max_steps=8, **options)
        return jxt.solve(quadratic, solver, jnp.ones(1), key=key)

    assert float(solve(Last()).value[0]) == iterates[-1]
    assert float(solve(LeastGradient()).value[0]) == iterates[-1]
    np.testing.assert_allclose(solve(Average()).value, [iterates[:8].mean()], rtol=1e-12)
    weights = np.arange(1, 9) ** 2
    wanted = np.average(iterates[:8], weights=weights)
    np.testing.assert_allclose(solve(Average(2.0)).value, [wanted], rtol=1e-12)
    assert np.isinf(solve(Average()).residual)
    one = lambda key: solve(RandomIterate(), key)
    picked = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    index = np.rint(-np.log2(np.asarray(picked.value)[:, 0])).astype(int)
    counts = np.bincount(index, minlength=9)
    assert counts[8] == 0  # the last is where no step was taken from
    assert np.sum((counts[:8] - 500) ** 2 / 500) < 24.3  # chi squared, 7 degrees, 0.1 %
    np.testing.assert_allclose(picked.residual, picked.value[:, 0])
    done = solve(RandomIterate(), tol=0.1)
    assert done.status == jxt.Status.converged
    assert float(done.residual) == float(done.value[0]) == iterates[4]


def test_variance_reduction_reaches_a_lasso_solution():
    """The point that proximal gradient descent reaches, and SGD does not."""
    lasso = problem(nonsmooth=prox.L1(0.05))

    def run(estimator, tol):
        solver = StochasticGradient(0.1, estimator, tol=tol, max_steps=3000)
        return jxt.solve(lasso, solver, jnp.zeros(D))

    exact = run(estimators.FullGradient(), 1e-12)
    assert exact.status == jxt.Status.converged
    x = np.asarray(exact.value)
    step = x - 0.1 * full(x)
    np.testing.assert_allclose(x, np.sign(step) * np.maximum(np.abs(step) - 0.005, 0), atol=1e-10)
    for estimator in (estimators.SVRG(6, 2), estimators.SPIDER(4, 4), estimators.PAGE(None, 4)):
        found = run(estimator, 1e-9)
        assert found.status == jxt.Status.converged
        np.testing.assert_allclose(found.value, x, atol=1e-7)
    plain = run(estimators.Minibatch(2), 1e-9)
    assert plain.status == jxt.Status.step_limit
    assert np.abs(np.asarray(plain.value) - x).max() > 1e-3
    assert int(plain.state.samples) == 2 * 3001
