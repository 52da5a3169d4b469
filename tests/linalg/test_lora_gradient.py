"""Polynomial attention against exact attention and series written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from jaxopt_ext import linalg


def layer(seed, n, d, bound, dtype=np.float64):
    """A layer whose logits are at most `bound`, with data."""
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(2, n, d))
    query, key, value = rng.normal(size=(3, d, d))
    query *= bound / np.abs(X @ query @ key.T @ X.T).max()
    draws = rng.normal(size=(3, 2, d, 1)) * 0.01
    adapt = lambda W, AB: linalg.LowRankAdapter(*map(cast, (W, AB[0].T, AB[1])), alpha=2.0)
    cast = lambda a: jnp.asarray(a, dtype)
    matrices = [adapt(W, AB) for W, AB in zip((query, key, value), draws, strict=True)]
    return linalg.AdaptedAttention(*matrices), cast(X), cast(Y)


def test_features_are_the_terms_of_the_series():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3))
    for degree in (0, 3):
        features = [linalg.polynomial_features(jnp.asarray(a), degree) for a in (q, k)]
        assert features[0].shape == (linalg.num_features(3, degree),)
        wanted = sum((q @ k) ** j / math.factorial(j) for j in range(degree + 1))
        np.testing.assert_allclose(features[0] @ features[1], wanted, rtol=1e-12)


def test_the_formulas_are_the_gradient_and_errors_fall_with_the_degree():
    params, X, Y = layer(0, 24, 2, 1.0)
    flat = lambda tree: np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)])

    @jax.jit
    def gradients(*arguments):
        approximate = [
            jax.grad(lambda *a, g=g: linalg.lora_attention_loss(*a, g), (0, 1, 2))(*arguments)
            for g in (2, 4, 6, 18)
        ]
        return jax.grad(linalg.attention_loss, (0, 1, 2))(*arguments), approximate

    with pytest.warns(UserWarning, match="exact loss is cheaper"):
        exact, approximate = gradients(params, X, Y)
    size = np.linalg.norm(flat(exact))
    errors = [np.linalg.norm(flat(found) - flat(exact)) / size for found in approximate]
    assert errors[-1] < 1e-9
    assert errors[0] < 0.1
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 0.1 * errors[1]
    # What is frozen stands still, and a matrix that is not adapted too.
    for part in (exact[0], approximate[0][0]):
        assert not np.any(part.query.base)
        assert not np.any(part.query.alpha)
        assert np.any(part.query.A)


@pytest.mark.slow
def test_a_matrix_that_is_not_adapted_stands_still():
    params, X, Y = layer(0, 24, 2, 1.0)
    partial = linalg.AdaptedAttention(params.query, params.key.base, params.value)
    for slope in (
        jax.grad(linalg.attention_loss)(partial, X, Y),
        jax.grad(linalg.lora_attention_loss)(partial, X, Y, 4),
    ):
        assert not np.any(slope.key)
        assert np.any(slope.query.A)


@pytest.mark.slow
def test_the_degree_is_enough_and_no_more():
    for bound in (0.3, 1.0, 4.0):
        x = np.linspace(-bound, bound, 101)
        worst = lambda g, x=x: np.max(
            np.abs(sum(x**j / math.factorial(j) for j in range(g + 1)) / np.exp(x) - 1)
        )
        degree = linalg.degree_for(bound, 1e-3)
        assert degree % 2 == 0
        assert worst(degree) <= 1e-3
    assert linalg.degree_for(0.0, 1e-3) == 0
    # About linear in the bound.
    assert linalg.degree_for(8.0, 1e-3) < 2.3 * linalg.degree_for(4.0, 1e-3)
    params, X, _ = layer(0, 24, 2, 1.0)
    W, _ = params.weights()
    assert np.abs(X @ W @ X.T).max() <= linalg.norm_bound(X, W)


def test_nothing_of_quadratic_size_is_formed():
    params, X, Y = layer(0, 997, 2, 1.0)
    text = str(jax.make_jaxpr(jax.grad(lambda p: linalg.lora_attention_loss(p, X, Y, 4)))(params))
    assert "997,997" not in text
    assert "997,997" in str(jax.make_jaxpr(linalg.attention_loss)(params, X, Y))


@pytest.mark.slow
def test_batches_share_adapters_and_devices_share_them_too():
    params, X, Y = layer(0, 16, 2, 0.5, np.float32)
    Xs, Ys = jnp.stack([X, 0.5 * X]), jnp.stack([Y, -Y])
    loss = lambda p, X, Y: linalg.lora_attention_loss(p, X, Y, 4)
    one = jax.jit(jax.grad(loss))
    total = jax.tree.map(jnp.add, one(params, X, Y), one(params, Xs[1], Ys[1]))

    def spread(p, X, Y):
        return jax.lax.psum(loss(p, X[0], Y[0]), "i")

    mesh = Mesh(np.array(jax.devices()[:2]), "i")
    on_mesh = jax.shard_map(spread, mesh=mesh, in_specs=(P(), P("i"), P("i")), out_specs=P())
    for fun in (lambda p, X, Y: jnp.sum(jax.vmap(loss, (None, 0, 0))(p, X, Y)), on_mesh):
        found = jax.jit(jax.grad(fun))(params, Xs, Ys)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(total), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert found.query.A.dtype == jnp.float32


def test_bad_input_raises():
    params, X, Y = layer(0, 16, 2, 0.5)
    with pytest.raises(ValueError, match="even"):
        linalg.lora_attention_loss(params, X, Y, 3)
    with pytest.raises(ValueError, match="15 features, more than 10"):
        linalg.lora_attention_loss(params, X, Y, 4, max_rank=10)
    with pytest.raises(ValueError, match="do not fit"):
        linalg.lora_attention_loss(params, X, Y[:3], 2)
    with pytest.raises(ValueError, match="do not fit"):
        linalg.low_rank_attention(X, X[:, :1], Y, 2)
    with pytest.raises(TypeError, match="bfloat16"):
        linalg.polynomial_features(X.astype(jnp.bfloat16), 2)
    with pytest.raises(TypeError, match="int"):
        linalg.polynomial_features(jnp.arange(3), 2)
    with pytest.raises(ValueError, match="scalar"):
        linalg.polynomial_features(jnp.ones(()), 2)
    with pytest.raises(ValueError, match="degree"):
        linalg.polynomial_features(X, -1)
    for bound, tol in ((-1.0, 1e-3), (np.inf, 1e-3), (1.0, 0.0)):
        with pytest.raises(ValueError, match="must be"):
            linalg.degree_for(bound, tol)
    with pytest.raises(ValueError, match="do not fit"):
        linalg.LowRankAdapter(jnp.ones((2, 2)), jnp.ones((1, 2)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="rank 3"):
        linalg.LowRankAdapter.create(jnp.ones((2, 2)), 3, jax.random.key(0))
    fresh = linalg.LowRankAdapter.create(jnp.ones((2, 2)), 1, jax.random.key(0))
    np.testing.assert_array_equal(fresh.weight, np.ones((2, 2)))
