"""RMSProp and Adam under generalized smoothness: loops in numpy, the rate, and the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import trajectory

from jaxopt_ext.optimizers.adam import (
    adam_gs,
    affine_noise,
    rmsprop_gs,
    sinh_problem,
    theory_hyperparams,
)


def reference(x, grads, eta, b1, b2, zeta, v0):
    m, v, path = 0.0, v0, []
    for g in grads:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        x = x - eta * m / np.sqrt(v + zeta)
        path.append(x)
    return np.array(path)


@pytest.mark.parametrize("b1", [0.0, 0.8])
def test_equal_loops_in_numpy(dtype, b1):
    rng = np.random.default_rng(0)
    grads, start = rng.normal(size=(200, 5)) * 2, rng.normal(size=5)
    x, g = jnp.asarray(start, dtype), jnp.asarray(grads, dtype)
    expected = reference(start, grads, 0.02, b1, 0.97, 1e-3, 0.5)
    limits = dict(rtol=1e-5, atol=2e-6) if dtype == jnp.float32 else dict(rtol=1e-10)
    path = trajectory(adam_gs(0.02, b1, 0.97, 1e-3, 0.5), x, g)
    assert path.dtype == dtype
    np.testing.assert_allclose(path, expected, **limits)
    if b1 == 0:
        path = trajectory(rmsprop_gs(0.02, 0.97, 1e-3, 0.5), x, g)
        np.testing.assert_allclose(path, expected, **limits)


@pytest.mark.slow
def test_adam_without_momentum_is_rmsprop(dtype):
    grads = jnp.asarray(np.random.default_rng(1).normal(size=(200, 5)), dtype)
    x = jnp.ones(5, dtype)
    adam, rms = (trajectory(tx, x, grads) for tx in (adam_gs(0.01, 0.0), rmsprop_gs(0.01)))
    np.testing.assert_allclose(adam, rms, atol=1e-7)


def run(tx, x, num_steps, key, problem):
    def step(carry, key):
        x, state = carry
        gradient = problem.gradient(x)
        updates, state = tx.update(affine_noise(gradient, key, 1.0, 1.0), state, x)
        return (optax.apply_updates(x, updates), state), jnp.linalg.norm(gradient)

    (x, _), norms = jax.lax.scan(step, (x, tx.init(x)), jax.random.split(key, num_steps))
    return x, norms


@pytest.mark.slow
def test_mean_gradient_falls_with_the_horizon():
    problem, keys = sinh_problem(20), jax.random.split(jax.random.key(0), 3)
    for method in (rmsprop_gs, adam_gs):
        means = []
        for horizon in (200, 3200):
            tx = method(**theory_hyperparams(horizon))
            norms = jax.vmap(
                lambda k, tx=tx, T=horizon: run(tx, jnp.full(20, 3.0), T, k, problem)[1]
            )(keys)
            means.append(norms.mean())
        assert np.log(means[1] / means[0]) / np.log(16) <= -0.25


@pytest.mark.slow
def test_sgd_overflows_where_they_do_not():
    problem, x, key = sinh_problem(20), jnp.full(20, 8.0, jnp.float32), jax.random.key(1)
    rates = theory_hyperparams(3200)
    x_sgd, _ = run(optax.sgd(rates["learning_rate"]), x, 3200, key, problem)
    assert not jnp.linalg.norm(x_sgd) < 1e6
    for method in (rmsprop_gs, adam_gs):
        last, _ = run(method(**rates), x, 3200, key, problem)
        assert last.dtype == jnp.float32
        assert jnp.linalg.norm(problem.gradient(last)) < 10


@pytest.mark.slow
def test_noise_has_the_stated_moments(dtype):
    gradient = {"a": jnp.array([0.0, 2.0, -5.0], dtype)}
    keys = jax.random.split(jax.random.key(2), 100_000)
    draws = jax.vmap(lambda k: affine_noise(gradient, k, 2.0, 0.5))(keys)["a"]
    assert draws.dtype == dtype
    np.testing.assert_allclose(draws.var(0), 2 + 0.5 * gradient["a"] ** 2, rtol=0.05)
    np.testing.assert_allclose(draws.mean(0), gradient["a"], atol=0.05)


def test_sinh_problem():
    x = jnp.array([0.3, -2.0])
    problem = sinh_problem(2)
    np.testing.assert_allclose(jax.grad(problem.value)(x), problem.gradient(x), rtol=1e-12)
    np.testing.assert_allclose(problem.value(0 * x), problem.dim)


def test_rates():
    assert theory_hyperparams(400, 2.0, 3.0) == {"learning_rate": 0.1, "b2": 0.85}


def test_bad_input_raises():
    with pytest.raises(ValueError, match="b1"):
        adam_gs(0.1, b1=0.95, b2=0.9)
    with pytest.raises(ValueError, match="b1"):
        adam_gs(0.1, b1=0.51, b2=0.25)
    adam_gs(0.1, b1=0.49, b2=0.25)
    for method in (adam_gs, rmsprop_gs):
        for name, value in (("b2", 1.0), ("zeta", 0.0), ("v0", 0.0)):
            with pytest.raises(ValueError, match=name):
                method(0.1, **{name: value})
    with pytest.raises(ValueError, match="num_steps"):
        theory_hyperparams(4, c_b=2.0)
    with pytest.raises(ValueError, match="D0"):
        affine_noise(jnp.ones(2), jax.random.key(0), -1.0, 1.0)
