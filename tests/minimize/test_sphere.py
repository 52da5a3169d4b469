"""Spheres by their moments, estimates by closed forms, smoothed functions under other solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext.minimize import (
    FISTA,
    FixedStep,
    L1Sphere,
    L2Sphere,
    SphereSmoothing,
    TangentSphere,
    uniform_simplex,
)

KEY = jax.random.key(1)
MANY = 100_000
SPHERES = {"l2": L2Sphere(), "l1": L1Sphere(), "tangent": TangentSphere()}
RNG = np.random.default_rng(0)
A = RNG.normal(size=(4, 4))
A = A @ A.T / 4
SLOPE, X = RNG.normal(size=4), RNG.normal(size=4)


@jax.custom_jvp
def values_only(x):
    """The absolute sum, which raises when somebody differentiates it."""
    return jnp.sum(jnp.abs(x))


@values_only.defjvp
def _raise(primals, tangents):
    raise AssertionError("a black box was differentiated")


@pytest.fixture(scope="module")
def drawn():
    like = {"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}

    def flat(x):
        return jnp.concatenate([x["a"].reshape(-1, 2), x["b"]], axis=1)

    @jax.jit
    def draw(key):
        out = {name: s.draw(key, like, MANY) for name, s in SPHERES.items()}
        balls = {name: s.ball(key, like, MANY) for name, s in SPHERES.items()}
        simplex = uniform_simplex(key, like, MANY)
        return jax.tree.map(
            flat, (out, balls, simplex), is_leaf=lambda x: isinstance(x, dict) and "a" in x
        )

    return jax.tree.map(np.asarray, draw(KEY))


def test_directions_are_on_the_sphere_and_isotropic(drawn):
    directions, balls, simplex = drawn
    mean = np.ones((5, 5)) / 5
    for name, order, wanted in (("l2", 2, np.eye(5) / 5), ("tangent", 2, (np.eye(5) - mean) / 4)):
        e = directions[name][0]
        np.testing.assert_allclose(np.linalg.norm(e, order, axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(e.T @ e / MANY, wanted, atol=5e-3)
    np.testing.assert_allclose(directions["tangent"][0].sum(axis=1), 0, atol=1e-12)
    e, signs = directions["l1"]
    np.testing.assert_allclose(np.abs(e).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(signs, np.sign(e))
    # Magnitudes are uniform on the simplex, whose entries have the mean 1/n and this variance.
    for points in (np.abs(e), simplex):
        np.testing.assert_allclose(points.sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(points.mean(axis=0), 0.2, atol=3e-3)
        np.testing.assert_allclose(points.var(axis=0), 4 / (25 * 6), atol=1e-3)
    for name, order, n in (("l2", 2, 5), ("l1", 1, 5), ("tangent", 2, 4)):
        lengths = np.linalg.norm(balls[name], order, axis=1)
        np.testing.assert_allclose(lengths.mean(), n / (n + 1), atol=3e-3)
        np.testing.assert_allclose((lengths <= 0.5).mean(), 0.5**n, atol=3e-3)


@pytest.mark.parametrize("central", [True, False])
def test_estimates_are_unbiased(central):
    """Of a linear and of a quadratic function, to which smoothing adds a constant."""
    plane = np.eye(4) - 0.25
    linear, quadratic = (lambda x: SLOPE @ x), (lambda x: 0.5 * x @ A @ x)

    @jax.jit
    def estimates(key):
        out = {}
        for name, sphere in SPHERES.items():
            smoothing = SphereSmoothing(0.7, MANY, central, sphere)
            out[name] = [smoothing.estimates(f, jnp.asarray(X), key) for f in (linear, quadratic)]
        return out

    for name, both in estimates(KEY).items():
        for found, wanted in zip(both, (SLOPE, A @ X), strict=True):
            wanted = plane @ wanted if name == "tangent" else wanted
            error = np.std(found, axis=0) / np.sqrt(MANY)
            assert np.all(np.abs(np.mean(found, axis=0) - wanted) <= 3.5 * error), name


@pytest.mark.slow
def test_second_moment_and_the_mean_of_a_ball():
    d = 50
    smoothing = SphereSmoothing(0.05, 20_000)
    f = lambda x: jnp.sum(jnp.abs(x - 1)) / d**0.5
    x = jnp.zeros(d)
    each = jax.jit(lambda k: smoothing.estimates(f, x, k))(KEY)
    np.testing.assert_allclose(np.mean(np.sum(each**2, axis=1)), d, rtol=0.03)  # below 70.7
    mean = jax.jit(lambda k: smoothing.gradient(f, x, k))(KEY)
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-9, atol=1e-12)
    # Over a ball x'Ax/2 gains g^2 tr(A) / (2 (d + 2)).
    wide = SphereSmoothing(1.5, MANY)
    value = jax.jit(lambda k: wide.value(lambda x: 0.5 * x @ A @ x, jnp.asarray(X), k))(KEY)
    np.testing.assert_allclose(value, 0.5 * X @ A @ X + 1.5**2 * np.trace(A) / 12, rtol=0.02)
    np.testing.assert_allclose(smoothing.smoothness(3.0, x), 50**0.5 * 3 / 0.05)


@pytest.mark.slow
def test_complex_and_single_precision_leaves():
    c = jnp.asarray([1 + 2j, -1j], jnp.complex64)
    x = {"a": jnp.zeros(2, jnp.complex64), "b": jnp.zeros(1, jnp.float32)}
    smoothing = SphereSmoothing(0.1, 50_000)
    f = lambda x: jnp.sum(jnp.real(jnp.conj(c) * x["a"])) + 3 * x["b"][0]
    found = jax.jit(lambda k: smoothing.gradient(f, x, k))(KEY)
    assert (found["a"].dtype, found["b"].dtype) == (jnp.complex64, jnp.float32)
    np.testing.assert_allclose(found["a"], c, atol=0.15)
    np.testing.assert_allclose(found["b"], 3, atol=0.15)


def test_smoothed_functions_under_other_solvers():
    smoothing = SphereSmoothing(0.3, 200)
    solver = FISTA(FixedStep(0.2), tol=1e-9, max_steps=3000)

    def solved(shift):
        f = smoothing.function(lambda x: 0.5 * (x - shift) @ A @ (x - shift) + 0.2 * x @ x, KEY)
        return jxt.solve(jxt.Smooth(f), solver, jnp.zeros(4))

    solution = jax.jit(solved)(jnp.asarray(X))
    wanted = np.linalg.solve(A + 0.4 * np.eye(4), A)
    assert solution.status == jxt.Status.converged
    np.testing.assert_allclose(solution.value, wanted @ X, atol=1e-6)

    def value(shift):
        f = smoothing.function(lambda x: jnp.sum(shift**2) + x @ shift, KEY)
        return f(jnp.zeros(4))

    slope = jax.jit(jax.grad(value))(jnp.asarray(X))  # in what the function holds
    np.testing.assert_allclose(slope, 2 * X, atol=0.05)


def test_black_boxes_are_never_differentiated():
    f = SphereSmoothing(1e-3, 500).function(values_only, KEY)
    value, slope = jax.jit(jax.value_and_grad(f))(jnp.asarray([2.0, -3.0]))
    np.testing.assert_allclose(value, 5, atol=2e-3)
    np.testing.assert_allclose(slope, [1, -1], atol=0.2)
    with pytest.raises(AssertionError, match="differentiated"):
        jax.grad(values_only)(jnp.ones(2))


def test_bad_input():
    for radius in (0.0, -1.0, jnp.nan):
        with pytest.raises(ValueError, match="radius"):
            SphereSmoothing(radius)
    with pytest.raises(ValueError, match="batch"):
        SphereSmoothing(0.1, 0)
    with pytest.raises(TypeError, match="central"):
        SphereSmoothing(0.1, 1, 1)
    with pytest.raises(TypeError, match="sphere"):
        SphereSmoothing(0.1, sphere=2)
    with pytest.raises(ValueError, match="single entry"):
        TangentSphere().draw(KEY, jnp.zeros(1), 3)
    for draw in (L1Sphere().draw, TangentSphere().draw, uniform_simplex):
        args = (KEY, jnp.zeros(2, complex), 3)
        with pytest.raises(TypeError, match="complex"):
            draw(*args)
