"""AdAdaGrad: the tests against numpy, the steps against AdaGrad, the loop by counting."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext.optimizers.adadagrad import (
    adadagrad,
    adadagrad_norm,
    batch_size_test,
    fit_adaptive_batch,
)
from jaxopt_ext.optimizers.per_sample import per_sample_grads

KINDS = ("norm", "coordinate", "inner", "augmented")
ETA, THETA, NU = 0.3, 0.7, 4.0
TOLERANCES = dict(eta=ETA, theta=THETA, nu=NU)


def oracle(G, kind, variance=lambda x: x.var(0, ddof=1), mean=lambda x: x.mean(0)):
    """G has one row per sample."""
    g = mean(G)
    square = g @ g
    if kind == "norm":
        return variance(G).sum() / (ETA**2 * square)
    if kind == "coordinate":
        return (variance(G) / (ETA**2 * g**2)).max()
    along = G @ g
    inner = variance(along[:, None])[0] / (THETA**2 * square**2)
    across = variance(G - np.outer(along, g) / square).sum() / (NU**2 * square)
    return inner if kind == "inner" else max(inner, across)


def gradients(dtype, scale=1.0):
    """Eleven samples over three leaves, padded to sixteen with rubbish."""
    rng = np.random.default_rng(0)
    G = 1 + scale * rng.normal(size=(11, 9))
    padded = np.concatenate([G, np.full((5, 9), np.nan)])
    cut = lambda x: {"a": x[:, :4].reshape(-1, 2, 2), "b": x[:, 4], "c": (x[:, 5:],)}
    return G, jax.tree.map(lambda x: jnp.asarray(x, dtype), cut(padded)), np.arange(16) < 11


@pytest.mark.always(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.5, 10.0])
def test_equals_numpy(dtype, kind, scale):
    G, tree, mask = gradients(dtype, scale)
    rtol = 1e-4 if dtype == jnp.float32 else 1e-11
    found = jax.jit(lambda t: batch_size_test(t, mask, kind, **TOLERANCES))(tree)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, oracle(G, kind), rtol=rtol)
    whole = jax.tree.map(lambda x: x[:11], tree)
    np.testing.assert_allclose(batch_size_test(whole, None, kind, **TOLERANCES), found, rtol=rtol)


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", KINDS)
def test_over_nodes_by_the_law_of_total_variance(kind):
    rng = np.random.default_rng(1)
    G = 0.5 + rng.normal(size=(4, 6, 5)) + rng.normal(size=(4, 1, 5))
    nodes = lambda x: x.reshape(4, 6, -1)

    def variance(x):
        return nodes(x).var(1, ddof=1).mean(0) + nodes(x).mean(1).var(0)

    expected = oracle(G.reshape(24, 5), kind, variance)
    one = lambda g: batch_size_test(g, kind=kind, **TOLERANCES, axis_name="nodes")
    found = jax.jit(jax.vmap(one, axis_name="nodes"))(jnp.asarray(G))
    np.testing.assert_allclose(found, np.full(4, expected), rtol=1e-11)


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", KINDS)
def test_no_mean_and_no_variance(dtype, kind):
    opposite = jnp.asarray([[1.0, 2.0], [-1.0, -2.0]], dtype)
    same = jnp.ones((2, 2), dtype)
    assert batch_size_test(opposite, kind=kind) == jnp.inf
    assert batch_size_test(same, kind=kind) == 0
    assert batch_size_test(0 * same, kind=kind) == 0


@pytest.mark.slow
def test_adagrad_is_optax_adagrad():
    """With ε = 0 there, where it stands inside the root."""
    G = jnp.asarray(np.random.default_rng(2).normal(size=(30, 8, 5)))
    mine = adadagrad(0.1, initial_accumulator=0.3, eps=1e-300)
    theirs = optax.adagrad(0.1, initial_accumulator_value=0.3, eps=0.0)
    x = y = jnp.zeros(5)
    a, b = mine.init(x), theirs.init(y)
    for g in G:
        u, a = mine.update(None, a, x, per_sample_grads=g)
        v, b = theirs.update(g.mean(0), b, y)
        x, y = x + u, y + v
    np.testing.assert_allclose(x, y, rtol=1e-12)


@pytest.mark.parametrize("method", [adadagrad, adadagrad_norm])
def test_equals_a_numpy_loop(dtype, method):
    rng = np.random.default_rng(3)
    G = rng.normal(size=(12, 8, 5)) + 0.3
    tx = method(0.1, eta=1.0, b0=4, b_max=300, test_interval=3, initial_accumulator=0.5)
    x, s, size = np.zeros(5), 0.5 if method is adadagrad_norm else np.full(5, 0.5), 4
    params = {"a": jnp.zeros(2, dtype), "b": jnp.zeros(3, dtype)}
    state = tx.init(params)
    update = jax.jit(lambda state, g: tx.update(None, state, None, per_sample_grads=g))
    for t, g in enumerate(G, 1):
        mean = g.mean(0)
        s = s + (mean @ mean if method is adadagrad_norm else mean**2)
        x = x - 0.1 * mean / np.sqrt(s)
        if t % 3 == 0:
            wanted = g.var(0, ddof=1).sum() / (mean @ mean)
            size = min(300, max(size, math.ceil(wanted)))
        tree = {"a": jnp.asarray(g[:, :2], dtype), "b": jnp.asarray(g[:, 2:], dtype)}
        updates, state = update(state, tree)
        params = optax.apply_updates(params, updates)
        assert state.batch_size == size
    found = jnp.concatenate([params["a"], params["b"]])
    assert found.dtype == dtype
    np.testing.assert_allclose(found, x, rtol=1e-5 if dtype == jnp.float32 else 1e-7)
    assert size > 4


@pytest.mark.slow
def test_a_gradient_that_is_passed_is_used():
    G = jnp.asarray(np.random.default_rng(4).normal(size=(8, 3)))
    tx = adadagrad_norm(1.0, initial_accumulator=1e-12)
    step = lambda g: tx.update(g, tx.init(jnp.zeros(3)), None, per_sample_grads=G)[0]
    np.testing.assert_allclose(step(None), step(G.mean(0)), rtol=1e-12)
    np.testing.assert_allclose(step(None), -step(-G.mean(0)), rtol=1e-12)
    chained = optax.chain(optax.clip(0.1), tx)
    updates, _ = chained.update(G.mean(0), chained.init(jnp.zeros(3)), None, per_sample_grads=G)
    clipped = np.clip(G.mean(0), -0.1, 0.1)
    np.testing.assert_allclose(updates, -clipped / np.linalg.norm(clipped), rtol=1e-6)


@pytest.mark.slow
def test_nodes_agree_with_each_other():
    G = jnp.asarray(np.random.default_rng(5).normal(size=(4, 8, 3))) + 0.2
    tx = adadagrad(0.1, b_max=10**6, axis_name="nodes")
    x = jnp.zeros(3)
    updates, state = jax.vmap(
        lambda g: tx.update(None, tx.init(x), x, per_sample_grads=g), axis_name="nodes"
    )(G)
    alone, _ = adadagrad(0.1).update(
        None, adadagrad(0.1).init(x), x, per_sample_grads=G.reshape(-1, 3)
    )
    np.testing.assert_allclose(updates, np.broadcast_to(alone, (4, 3)), rtol=1e-12)
    assert len(set(np.asarray(state.batch_size).tolist())) == 1
    assert state.batch_size[0] > 8


@pytest.mark.always(1)
@pytest.mark.parametrize("method", [adadagrad, adadagrad_norm])
def test_bounds_of_the_batch(dtype, method):
    """Infinite noise asks for the largest batch, none for no growth; bad gradients for neither."""
    x, tx = jnp.zeros(2, dtype), method(0.1, b0=2, b_max=64)
    step = lambda g: tx.update(None, tx.init(x), x, per_sample_grads=jnp.asarray(g, dtype))
    updates, state = step([[1.0, 2.0], [-1.0, -2.0]])
    assert state.batch_size == 64
    np.testing.assert_array_equal(updates, np.zeros(2))
    assert step([[1.0, 2.0], [1.0, 2.0]])[1].batch_size == 2
    assert step([[np.nan, 2.0], [1.0, 2.0]])[1].batch_size == 2
    assert state.batch_size.dtype == jnp.int32


def least_squares():
    rng = np.random.default_rng(6)
    A = rng.normal(size=(500, 6))
    b = A @ rng.normal(size=6) + 0.5 * rng.normal(size=500)
    loss = lambda x, sample: 0.5 * (sample[0] @ x - sample[1]) ** 2
    return loss, (jnp.asarray(A), jnp.asarray(b))


@pytest.mark.slow
def test_loop_keeps_to_its_budget(monkeypatch):
    """Batches grow, never past the limit; as many compilations as powers of two."""
    loss, data = least_squares()
    module = importlib.import_module("jaxopt_ext.optimizers.adadagrad")
    traced = []
    original = module._stretch

    def counted(loss, tx, padded, *args):
        traced.append(padded)
        return original(loss, tx, padded, *args)

    monkeypatch.setattr(module, "_stretch", counted)
    tx = optax.chain(adadagrad_norm(1.0, eta=0.3, b0=4, b_max=100, initial_accumulator=1e-4))
    fit = fit_adaptive_batch(loss, jnp.zeros(6), data, tx, 6000)
    sizes = fit.batch_sizes
    assert sizes[0] == 4
    assert np.all(np.diff(sizes) >= 0)
    assert sizes[-1] == sizes.max() == 100
    assert 6000 - 100 < sizes.sum() <= 6000
    assert len(traced) == len(set(traced)) <= 6
    again = fit_adaptive_batch(loss, jnp.zeros(6), data, tx, 6000)
    np.testing.assert_array_equal(again.params, fit.params)
    other = fit_adaptive_batch(loss, jnp.zeros(6), data, tx, 6000, seed=1)
    assert not np.array_equal(other.params, fit.params)
    A, b = data
    best = np.linalg.lstsq(A, b, rcond=None)[0]
    assert np.linalg.norm(fit.params - best) < 0.05 * np.linalg.norm(best)


def test_loop_refuses_what_it_cannot_do():
    loss, data = least_squares()
    tx = adadagrad(1.0)
    with pytest.raises(ValueError, match="budget"):
        fit_adaptive_batch(loss, jnp.zeros(6), data, tx, 7)
    with pytest.raises(ValueError, match="length"):
        fit_adaptive_batch(loss, jnp.zeros(6), (data[0], data[1][:3]), tx, 100)


@pytest.mark.slow
def test_per_sample_grads_are_gradients_of_samples():
    loss, (A, b) = least_squares()
    x = jnp.arange(6.0)
    found = per_sample_grads(loss, x, (A[:5], b[:5]))
    np.testing.assert_allclose(found, (A[:5] @ x - b[:5])[:, None] * A[:5], rtol=1e-12)


def test_missing_gradients_raise():
    x = jnp.ones(3)
    for tx in (adadagrad(0.1), adadagrad_norm(0.1)):
        with pytest.raises(ValueError, match="per_sample_grads"):
            tx.update(x, tx.init(x), x)


@pytest.mark.parametrize("method", [adadagrad, adadagrad_norm])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test", {"test": "orthogonal"}),
        ("eta", {"eta": 0.0}),
        ("theta", {"theta": -1.0}),
        ("nu", {"nu": 0.0}),
        ("b0", {"b0": 1}),
        ("b_max", {"b0": 8, "b_max": 4}),
        ("test_interval", {"test_interval": 0}),
        ("initial_accumulator", {"initial_accumulator": -1.0}),
    ],
)
def test_bad_input_raises(method, name, options):
    with pytest.raises(ValueError, match=name):
        method(0.1, **options)
    with pytest.raises(ValueError, match="learning_rate"):
        method(-0.1)
