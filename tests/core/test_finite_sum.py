"""Finite sums and expectations: what is drawn, what is summed, and derivatives in the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from newton import Newton

import jaxopt_ext as jxt
from jaxopt_ext import prox

RNG = np.random.default_rng(3)
N, D = 23, 4
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
GROUP = RNG.integers(0, 3, N)
W = RNG.normal(size=D)


def loss(w, sample):
    x, y, group = sample
    return 0.5 * (x @ w - y) ** 2 * (1 + group) + jnp.log1p(jnp.exp(x @ w))


def by_hand(w, rows=slice(None)):
    """Losses and gradients, one a row."""
    z = X[rows] @ w
    weight = 1 + GROUP[rows]
    slope = (z - Y[rows]) * weight + 1 / (1 + np.exp(-z))
    return 0.5 * (z - Y[rows]) ** 2 * weight + np.log1p(np.exp(z)), slope[:, None] * X[rows]


def problem(**options):
    return jxt.FiniteSum(loss, (jnp.asarray(X), jnp.asarray(Y), jnp.asarray(GROUP)), **options)


@pytest.mark.always(2)
@pytest.mark.parametrize("chunk", [None, 5, 1, N, 100])
def test_full_sums_in_chunks(chunk):
    p = problem(chunk=chunk)
    losses, gradients = by_hand(W)
    value, gradient = jax.jit(lambda w: (p.full_value(w), p.full_gradient(w)))(W)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(gradient, gradients.mean(0), rtol=1e-12)


def test_batches_are_rows():
    p = problem()
    batch = p.draw(jax.random.key(0), 9)
    assert batch.shape == (9,)
    losses, gradients = by_hand(W, np.asarray(batch))

    @jax.jit
    def of(batch):
        single = jax.vmap(lambda i: p.gradient(W, i[None]))(jnp.arange(N)).mean(0)
        sampled = [f(W, batch) for f in (p.losses, p.value, p.gradient, p.gradients)]
        return sampled, single, p.full_gradient(W)

    sampled, single, full = of(batch)
    wanted = losses, losses.mean(), gradients.mean(0), gradients
    for found, by_rows in zip(sampled, wanted, strict=True):
        np.testing.assert_allclose(found, by_rows, rtol=1e-12)
    np.testing.assert_allclose(single, full, rtol=1e-12, atol=1e-12)


@pytest.mark.always(1)
@pytest.mark.parametrize("sampling", [jxt.WithReplacement(), jxt.WithoutReplacement()])
def test_draws_are_unbiased(sampling):
    p = problem(sampling=sampling)
    keys = jax.random.split(jax.random.key(1), 2000)
    batches = jax.jit(jax.vmap(lambda key: p.draw(key, 5)))(keys)
    drawn = np.asarray(jax.jit(jax.vmap(lambda b: p.gradient(jnp.asarray(W), b)))(batches))
    wanted = by_hand(W)[1].mean(0)
    z = (drawn.mean(0) - wanted) / (drawn.std(0) / np.sqrt(len(drawn)))
    assert np.max(np.abs(z)) < 5
    repeats = np.mean([len(set(b)) < 5 for b in np.asarray(batches)])
    # The birthday problem: with replacement two of five of 23 coincide with probability 0.37.
    assert repeats == 0 if isinstance(sampling, jxt.WithoutReplacement) else 0.3 < repeats < 0.45


@pytest.mark.slow
def test_memory_is_that_of_a_few_chunks():
    """The gradient of 100,000 rows of 50, which are 40 MB, a thousand rows at a time."""

    def gradient(x, y, w):
        fit = lambda w, s: 0.5 * (s[0] @ w - s[1]) ** 2
        return jxt.FiniteSum(fit, (x, y), chunk=1000).full_gradient(w)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float64) for s in ((100_000, 50), (100_000,), (50,))]
    compiled = jax.jit(gradient).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * 1000 * 51 * 8


def test_derivative_of_a_ridge_solution_in_its_data():
    """Against central differences of the normal equations, chunk by chunk."""

    def solved(y):
        fit = lambda w, s: 0.5 * (s[0] @ w - s[1]) ** 2
        p = jxt.FiniteSum(fit, (jnp.asarray(X), y), prox.L2Squared(0.3), chunk=5)
        return jxt.solve(p, Newton(), jnp.zeros(D)).value

    closed = lambda y: np.linalg.solve(X.T @ X / N + 0.3 * np.eye(D), X.T @ y / N)
    value, jacobian = jax.jit(lambda y: (solved(y), jax.jacrev(solved)(y)))(jnp.asarray(Y))
    np.testing.assert_allclose(value, closed(Y), rtol=1e-9)
    step = 1e-5
    wanted = [(closed(Y + step * e) - closed(Y - step * e)) / (2 * step) for e in np.eye(N)]
    np.testing.assert_allclose(jacobian, np.transpose(wanted), atol=1e-8)


def test_the_l1_part_counts():
    p = problem(nonsmooth=prox.L1(0.2))
    gradient = by_hand(W)[1].mean(0)
    moved = W - gradient
    wanted = W - np.sign(moved) * np.maximum(np.abs(moved) - 0.2, 0)
    np.testing.assert_allclose(p.residual(jnp.asarray(W)), wanted, rtol=1e-12)
    value = by_hand(W)[0].mean() + 0.2 * np.abs(W).sum()
    np.testing.assert_allclose(p.objective(jnp.asarray(W)), value, rtol=1e-12)


def test_an_expectation():
    sampler = lambda key, b: jax.random.normal(key, (b, D))
    fit = lambda w, s: 0.5 * jnp.sum((w - s) ** 2)
    known = jxt.Expectation(fit, sampler, prox.L1(0.1), lambda w: 0.5 * jnp.sum(w**2) + D / 2)
    batch = known.draw(jax.random.key(0), 3)
    np.testing.assert_allclose(known.gradient(W, batch), W - np.asarray(batch).mean(0), rtol=1e-12)
    np.testing.assert_allclose(known.full_gradient(jnp.asarray(W)), W, rtol=1e-12)
    np.testing.assert_allclose(known.residual(jnp.zeros(D)), np.zeros(D))
    unknown = jxt.Expectation(fit, sampler)
    with pytest.raises(ValueError, match="mean="):
        unknown.residual(jnp.zeros(D))
    with pytest.raises(ValueError, match="at least 1"):
        unknown.draw(jax.random.key(0), 0)


def test_problems_without_samples():
    fun = lambda w: jnp.sum(w**4)
    for p in (
        jxt.Smooth(fun),
        jxt.Composite(fun, prox.L1(0.1)),
        jxt.Constrained(fun, prox.Simplex(1.0)),
    ):
        asked = jxt.minibatches(p)
        batch = asked.draw(jax.random.key(0), 3)
        np.testing.assert_allclose(asked.gradient(W, batch), 4 * W**3, rtol=1e-12)
        np.testing.assert_allclose(asked.gradients(W, batch), 4 * W[None] ** 3, rtol=1e-12)
        assert asked.losses(W, batch).shape == (1,)
        assert asked.prox(W, 0.5).shape == W.shape
    assert jxt.minibatches(problem()).n == N
    with pytest.raises(TypeError, match="FixedPoint"):
        jxt.minibatches(jxt.FixedPoint(fun))


def test_bad_data():
    make = lambda data, **options: jxt.FiniteSum(loss, data, **options)
    with pytest.raises(ValueError, match=r"common leading axis.*\(23, 4\), \(3,\)"):
        make((X, np.ones(3)))
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        make((np.ones((0, 4)),))
    with pytest.raises(ValueError, match="common leading axis"):
        make((X, np.asarray(1.0)))
    with pytest.raises(ValueError, match="common leading axis"):
        make(())
    with pytest.raises(ValueError, match="b must be at least 1, got 0"):
        problem().draw(jax.random.key(0), 0)
    with pytest.raises(ValueError, match="30 of 23"):
        problem(sampling=jxt.WithoutReplacement()).draw(jax.random.key(0), 30)
    with pytest.raises(ValueError, match="chunk"):
        problem(chunk=0)
    with pytest.raises(TypeError, match="sampling"):
        problem(sampling="uniform")
    with pytest.raises(TypeError, match="nonsmooth"):
        problem(nonsmooth=lambda w: 0.0)
    vector = jxt.FiniteSum(lambda w, s: w, X)
    with pytest.raises(ValueError, match="loss must return a scalar"):
        jxt.solve(vector, Newton(), jnp.zeros(D))
