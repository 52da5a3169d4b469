"""Hutchinson's estimate of a diagonal against its exact mean and variance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext.optimizers.hutchinson import hutchinson_diag, random_signs

SIZE = 10


def symmetric():
    A = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    return (A + A.T) / 2


def test_exact_for_a_diagonal_hessian(dtype, key):
    diagonal = {"a": jnp.asarray([1.0, -2.0, 3e-3], dtype), "b": jnp.asarray(5.0, dtype)}
    loss = lambda p: optax.tree.sum(jax.tree.map(lambda d, x: jnp.sum(d * x**2) / 2, diagonal, p))
    params = optax.tree.ones_like(diagonal)
    found = hutchinson_diag(loss, params, key)
    jax.tree.map(lambda f, d: np.testing.assert_allclose(f, d, rtol=1e-6), found, diagonal)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found))


def test_mean_and_variance(dtype, key):
    H = symmetric()
    matrix = jnp.asarray(H, dtype)
    hvp = lambda params, z: matrix @ z
    one = lambda key: hutchinson_diag(None, jnp.zeros(SIZE, dtype), key, hvp_fn=hvp)
    samples = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 200_000)), float)
    np.testing.assert_allclose(samples.mean(0), np.diag(H), atol=0.05)
    off_diagonal = H - np.diag(np.diag(H))
    np.testing.assert_allclose(samples.var(0), (off_diagonal**2).sum(1), rtol=0.02)


def test_several_samples_are_averaged(key):
    matrix = jnp.asarray(symmetric())
    loss = lambda x, scale: scale * x @ matrix @ x / 2
    x = jnp.zeros(SIZE)
    each = [hutchinson_diag(loss, x, k, 1, 3.0) for k in jax.random.split(key, 7)]
    np.testing.assert_allclose(hutchinson_diag(loss, x, key, 7, 3.0), np.mean(each, 0), rtol=1e-12)


def test_needs_a_function_and_a_count(key):
    with pytest.raises(ValueError, match="loss_fn or hvp_fn"):
        hutchinson_diag(None, jnp.ones(2), key)
    with pytest.raises(ValueError, match="n must"):
        hutchinson_diag(jnp.sum, jnp.ones(2), key, 0)


@pytest.mark.always(3)
@pytest.mark.parametrize("shape", [(), (1,), (31,), (64,), (3, 33), (2, 0), (0, 3), (0,)])
def test_signs_are_signs(shape, dtype, key):
    signs = random_signs(key, shape, dtype)
    assert signs.shape == shape
    assert signs.dtype == dtype
    assert np.all(np.abs(signs) == 1)


@pytest.mark.slow
def test_signs_are_independent(key):
    """Means and pairwise products over many draws, within five standard deviations."""
    draws = 40_000
    z = np.asarray(jax.vmap(lambda k: random_signs(k, (2, 40)))(jax.random.split(key, draws)))
    products = z.reshape(draws, -1).T @ z.reshape(draws, -1) / draws
    off_diagonal = products - np.eye(80)
    assert np.abs(z.mean(0)).max() < 5 / np.sqrt(draws)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(draws)
