"""Distances between samples against numpy loops and scipy."""

import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats

from jaxopt_ext.core import distances

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 2, 2)), 0.7 * RNG.normal(size=(9, 2, 2)) + 0.3
KEY = jax.random.key(3)


def loop_mmd(x, y, k, unbiased):
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)

    def within(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j or not unbiased]
        return sum(k(x[i], x[j]) for i, j in pairs) / len(pairs)

    return within(x) + within(y) - 2 * np.mean([[k(a, b) for b in y] for a in x])


def median_rbf(a, b):
    gamma = 1 / np.median(scipy.spatial.distance.pdist(Y.reshape(9, 4)) ** 2)
    return np.exp(-gamma * np.sum((a - b) ** 2))


KERNELS = {
    "median": (distances.RBF(), median_rbf),
    "rbf": (distances.RBF(0.3), lambda a, b: np.exp(-0.3 * np.sum((a - b) ** 2))),
    "polynomial": (distances.Polynomial(), lambda a, b: (a @ b / 4 + 1) ** 3),
    "quadratic": (distances.Polynomial(2, 0.5, 0.0), lambda a, b: (0.5 * a @ b) ** 2),
    "distance": (distances.NegativeDistance(), lambda a, b: -np.linalg.norm(a - b)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_mmd_is_a_double_loop(name, dtype):
    kernel, k = KERNELS[name]
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    both = (True, False)
    go = jax.jit(lambda x, y: [distances.squared_mmd(x, y, kernel, u) for u in both])
    for value, unbiased in zip(go(jnp.asarray(X, dtype), jnp.asarray(Y, dtype)), both, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, loop_mmd(X, Y, k, unbiased), atol=tolerance)


def test_energy_distance_on_a_line_is_that_of_scipy():
    x, y = X[:, 0, 0], Y[:, 1, 0]
    wanted = scipy.stats.energy_distance(x, y) ** 2  # scipy's is the root
    go = jax.jit(lambda x, y: (distances.energy_distance(x, y), distances.energy_distance(x, x)))
    found, zero = go(x, y)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert abs(float(zero)) < 1e-14


def test_sliced_wasserstein_on_a_line_is_the_distance_of_sorted_numbers():
    x, y = X[:, 0, 0], Y[:, 0, 1]
    go = jax.jit(lambda x, y: distances.sliced_wasserstein(x, y, KEY, 2))
    same = go(x[:9], y)
    np.testing.assert_allclose(same, np.sqrt(np.mean((np.sort(x[:9]) - np.sort(y)) ** 2)))
    # Of different sizes: each number as often as both sizes have a common multiple.
    repeated = np.sort(np.repeat(x, 3)), np.sort(np.repeat(y, 4))
    found = go(x, y)
    np.testing.assert_allclose(found, np.sqrt(np.mean((repeated[0] - repeated[1]) ** 2)))
    # Of order 1, where scipy has it, for a shift: all orders agree.
    moved = go(x, x + 0.7)
    np.testing.assert_allclose(moved, scipy.stats.wasserstein_distance(x, x + 0.7))


def test_sliced_wasserstein_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    x = RNG.normal(size=(50, 4))
    found = distances.sliced_wasserstein(x, x + np.array([2.0, 0, 0, 0]), KEY, 20_000)
    np.testing.assert_allclose(found, 1.0, rtol=0.02)


def by_sqrtm(x, y):
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    a, b = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(a @ b)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * np.real(root))


def test_frechet_distance_is_that_of_sqrtm(dtype):
    x, y = RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 6)), RNG.normal(size=(30, 6)) + 0.5
    found = distances.frechet_distance(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, by_sqrtm(x, y), rtol=1e-10 if dtype == jnp.float64 else 1e-5)


def test_frechet_distance_of_singular_covariances(dtype):
    """Samples in a plane, of which each knows the other's law in closed form."""
    basis = np.linalg.qr(RNG.normal(size=(20, 2)))[0].T
    x = RNG.normal(size=(50, 2)) @ basis
    found = distances.frechet_distance(jnp.asarray(x, dtype), jnp.asarray(3 * x, dtype))
    wanted = 4 * (np.trace(np.cov(x.T)) + np.sum(x.mean(0) ** 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-10 if dtype == jnp.float64 else 1e-5)
    few = jnp.asarray(RNG.normal(size=(3, 8)), dtype)  # fewer points than coordinates
    np.testing.assert_allclose(distances.frechet_distance(few, few), 0, atol=1e-5)


ALL = {
    "mmd": distances.squared_mmd,
    "polynomial": lambda x, y: distances.squared_mmd(x, y, distances.Polynomial()),
    "energy": distances.energy_distance,
    "sliced": lambda x, y: distances.sliced_wasserstein(x, y, KEY, 10),
    "frechet": distances.frechet_distance,
}


@pytest.mark.parametrize("name", ALL)
def test_derivatives_equal_differences(name):
    direction = np.cos(np.arange(48.0)).reshape(X.shape), np.sin(np.arange(36.0)).reshape(Y.shape)
    # The width of the kernel is data, not a function of the points.
    fixed = distances.RBF(0.3)
    fun = (lambda x, y: distances.squared_mmd(x, y, fixed)) if name == "mmd" else ALL[name]
    both = jax.jit(lambda x, y: jax.value_and_grad(fun, (0, 1))(x, y))
    slope = sum(np.vdot(a, b) for a, b in zip(both(X, Y)[1], direction, strict=True))
    moved = lambda h: float(both(X + h * direction[0], Y + h * direction[1])[0])
    np.testing.assert_allclose(slope, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


def test_derivatives_where_samples_meet():
    every = jax.jit(lambda x: [jax.grad(fun)(x, X) for fun in ALL.values()])
    assert np.all(np.isfinite(np.stack(every(X))))


def test_batches_equal_a_loop_and_factorize_one_behind_the_other():
    x, y = jnp.stack([X, X + 0.1]), jnp.stack([Y, 2 * Y])
    every = lambda x, y: jnp.stack([fun(x, y) for fun in ALL.values()])
    found, one = jax.jit(jax.vmap(every))(x, y), jax.jit(every)
    for i in range(2):
        np.testing.assert_allclose(found[i], one(x[i], y[i]), rtol=1e-9, atol=1e-12)
    run = jax.vmap(jax.value_and_grad(distances.frechet_distance))
    assert not lapack.side_by_side(jax.make_jaxpr(run)(x, y))


def test_bad_input():
    with pytest.raises(ValueError, match="one shape"):
        distances.squared_mmd(X, Y.reshape(9, 4))
    with pytest.raises(ValueError, match="at least 2 points"):
        distances.frechet_distance(X[:1], Y)
    with pytest.raises(TypeError, match="floating"):
        distances.energy_distance(np.arange(3), np.arange(3))
    with pytest.raises(TypeError, match="kernel"):
        distances.squared_mmd(X, Y, "rbf")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="gamma"):
        distances.RBF(0.0)
    with pytest.raises(TypeError, match="degree"):
        distances.Polynomial(2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_projections"):
        distances.sliced_wasserstein(X, Y, KEY, 0)
