"""Multi-momentum variance reduction: a loop in numpy, unbiasedness, and mean estimation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext.optimizers.multimomentum import (
    cluster_grads,
    discover_igt,
    discover_qhm,
    discover_sgd,
    discover_sgdm,
    lookahead_params,
    multi_momentum,
)

K, D = 4, 3
WEIGHTS = (0.1, 0.2, 0.3, 0.4)


def batches(steps=50, size=3, seed=0):
    """Cluster gradients (garbage where a cluster is absent) and fractions."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(K, size=(steps, size))
    frac = np.stack([np.bincount(i, minlength=K) / size for i in ids])
    return rng.normal(size=(steps, K, D)) * 3, frac


def reference(grads, frac, weights, alpha, sampling):
    """The gradients that the inner optimizer gets."""
    M, out = np.zeros((K, D)), []
    for G, q in zip(grads, frac, strict=True):
        mean = weights @ M
        e = mean.copy()
        for k in np.flatnonzero(q):
            e += q[k] * weights[k] / sampling[k] * (G[k] - M[k])
        for k in np.flatnonzero(q):
            M[k] = (1 - alpha) * M[k] + alpha * G[k]
        out.append(e)
    return np.array(out), M


def limits(dtype):
    return dict(rtol=1e-5, atol=1e-5) if dtype == jnp.float32 else dict(rtol=1e-10, atol=1e-12)


def passed_on(tx, grads, frac):
    """What `inner` gets at each step, and the last state."""
    x = jnp.zeros(D, grads.dtype)

    def step(state, batch):
        g, q = batch
        e, state = tx.update(None, state, x, cluster_grads=g, cluster_frac=q)
        return state, e

    state, seen = jax.lax.scan(step, tx.init(x), (grads, frac))
    return seen, state


@pytest.mark.always(1)
@pytest.mark.parametrize("sampling", [None, (0.25,) * 4])
def test_equals_a_numpy_loop(dtype, sampling):
    grads, frac = batches()
    grads[frac == 0] = np.nan  # the gradients of absent clusters are not looked at
    tx = multi_momentum(optax.identity(), K, WEIGHTS, 0.2, sampling=sampling)
    seen, state = passed_on(tx, jnp.asarray(grads, dtype), jnp.asarray(frac, dtype))
    expected, M = reference(grads, frac, np.array(WEIGHTS), 0.2, np.array(sampling or WEIGHTS))
    assert seen.dtype == dtype
    np.testing.assert_allclose(seen, expected, **limits(dtype))
    np.testing.assert_allclose(state.table, M, **limits(dtype))
    np.testing.assert_allclose(state.mean, np.array(WEIGHTS) @ M, **limits(dtype))


@pytest.mark.slow
def test_one_cluster_batches(dtype):
    grads, ids = batches()[0][:, 0], np.random.default_rng(1).integers(K, size=50)
    tx, x = multi_momentum(optax.identity(), K, WEIGHTS), jnp.zeros(D, dtype)

    def step(state, batch):
        g, k = batch
        e, state = tx.update(g, state, x, cluster_id=k)
        return state, e

    _, seen = jax.lax.scan(step, tx.init(x), (jnp.asarray(grads, dtype), jnp.asarray(ids)))
    full = np.zeros((50, K, D))
    full[np.arange(50), ids] = grads
    weights = np.array(WEIGHTS)
    expected, _ = reference(full, np.eye(K)[ids], weights, 0.1, weights)
    # a batch of one cluster stands for it alone: no importance weights
    assert seen.dtype == dtype
    np.testing.assert_allclose(seen, expected, **limits(dtype))


@pytest.mark.slow
def test_unbiased_whatever_the_momenta(dtype):
    grads = jnp.asarray(batches(1)[0][0], dtype)
    table = jax.random.normal(jax.random.key(0), (K, D), dtype) * 5
    tx, x = multi_momentum(optax.identity(), K, WEIGHTS), jnp.zeros(D, dtype)
    p = jnp.asarray(WEIGHTS, dtype)
    state = tx.init(x)._replace(table=table, mean=p @ table)
    each = jax.vmap(lambda k: tx.update(grads[k], state, x, cluster_id=k)[0])(jnp.arange(K))
    np.testing.assert_allclose(p @ each, p @ grads, atol=1e-5)


def test_one_cluster_is_the_inner_optimizer(dtype):
    grads = jnp.asarray(batches()[0][:, 0], dtype)
    tx, inner, x = discover_sgdm(0.1, 1), optax.sgd(0.1, 0.9), jnp.zeros(D, dtype)
    state, alone = tx.init(x), inner.init(x)
    for g in grads[:10]:
        mine, state = tx.update(g, state, x, cluster_id=jnp.array(0))
        plain, alone = inner.update(g, alone, x)
        np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_cluster_per_node(dtype):
    grads, frac = (jnp.asarray(a, dtype) for a in batches())
    single, state = passed_on(multi_momentum(optax.identity(), K, WEIGHTS), grads, frac)
    tx, x = multi_momentum(optax.identity(), K, WEIGHTS, axis_name="node"), jnp.zeros(D, dtype)

    def node(grads, frac):
        def step(state, batch):
            g, q = batch
            e, state = tx.update(g, state, x, cluster_frac=q)
            return state, e

        return jax.lax.scan(step, tx.init(x), (grads, frac))

    local, seen = jax.vmap(node, (1, 1), axis_name="node")(grads, frac)
    np.testing.assert_allclose(seen, np.broadcast_to(single, seen.shape), **limits(dtype))
    np.testing.assert_allclose(local.table[:, 0], state.table, **limits(dtype))


@pytest.mark.slow
def test_cluster_grads_are_means():
    rng = np.random.default_rng(3)
    x, y, ids = rng.normal(size=(7, D)), rng.normal(size=7), np.array([0, 2, 2, 0, 2, 0, 0])
    params = {"w": jnp.asarray(rng.normal(size=D)), "b": jnp.array(0.3)}
    loss = lambda p, s: (p["w"] @ s[0] + p["b"] - s[1]) ** 2
    out = cluster_grads(loss, params, (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(ids), K)
    np.testing.assert_allclose(out["cluster_frac"], [4 / 7, 0, 3 / 7, 0])
    residual = x @ np.asarray(params["w"]) + 0.3 - y
    for k in range(K):
        here = ids == k
        mean = (2 * residual[here, None] * x[here]).mean(0) if here.any() else np.zeros(D)
        np.testing.assert_allclose(out["cluster_grads"]["w"][k], mean, atol=1e-12)


@pytest.mark.slow
def test_inner_optimizers(dtype):
    """The four inner rules on the same stream, one cluster: plain formulas."""
    grads = batches(20)[0][:, 0]
    x0, k = jnp.zeros(D, dtype), jnp.array(0)

    def run(tx):
        state, x, path = tx.init(x0), x0, []
        for g in grads:
            u, state = tx.update(jnp.asarray(g, dtype), state, x, cluster_id=k)
            x = optax.apply_updates(x, u)
            path.append(x)
        return np.array(path)

    def loop(rule):
        x, memory, path = np.zeros(D), 0.0, []
        for t, g in enumerate(grads):
            direction, memory = rule(t, g, memory)
            x = x - 0.1 * direction
            path.append(x)
        return np.array(path)

    def heavy(t, g, b):
        return (0.9 * b + g,) * 2

    def smooth(t, g, b):
        return (0.9 * b + 0.1 * g,) * 2

    def qhm(t, g, b):
        b = 0.8 * b + 0.2 * g
        return 0.3 * g + 0.7 * b, b

    def igt(t, g, v):
        gamma = t / (t + 1)
        return (gamma * v + (1 - gamma) * g,) * 2

    for tx, rule in (
        (discover_sgd(0.1, 1), lambda t, g, b: (g, b)),
        (discover_sgdm(0.1, 1), heavy),
        (discover_sgdm(0.1, 1, ema=True), smooth),
        (discover_qhm(0.1, 1, 0.8), qhm),
        (discover_igt(0.1, 1), igt),
    ):
        np.testing.assert_allclose(run(tx), loop(rule), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lookahead_point():
    tx, x = discover_igt(0.1, 1), jnp.ones(D)
    state = tx.init(x)
    np.testing.assert_array_equal(lookahead_params(state, x), x)
    for t in range(1, 4):
        u, state = tx.update(jnp.ones(D), state, x, cluster_id=jnp.array(0))
        last, x = x, x + u
        np.testing.assert_allclose(lookahead_params(state, x), x + t * (x - last))
    with pytest.raises(ValueError, match="scale_by_igt"):
        lookahead_params(optax.sgd(0.1).init(x), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mine", "plain", "factor"),
    [
        (discover_sgd(0.05, 10), optax.sgd(0.05), 0.05),
        (discover_sgdm(0.05, 10), optax.sgd(0.05, 0.9), 0.05),
    ],
    ids=["sgd", "sgdm"],
)
def test_mean_estimation(mine, plain, factor):
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(10, 1, 10)) * 3
    data = jnp.asarray(centres + 0.3 * rng.normal(size=(10, 100, 10)))
    optimum = data.mean((0, 1))

    def error(tx):
        def step(carry, key):
            x, state = carry
            k, i = jax.random.randint(key, (2,), 0, jnp.array([10, 100]))
            u, state = tx.update(x - data[k, i], state, x, cluster_id=k)
            x = optax.apply_updates(x, u)
            return (x, state), jnp.sum((x - optimum) ** 2)

        tx = optax.with_extra_args_support(tx)
        x = jnp.zeros(10)
        keys = jax.random.split(jax.random.key(0), 4000)
        return jax.lax.scan(step, (x, tx.init(x)), keys)[1][2000:].mean()

    assert error(mine) <= factor * error(plain)


@pytest.mark.slow
def test_masked_leaves_are_left_out_of_the_table():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    grads = jax.tree.map(lambda x: jnp.stack([x, 3 * x]), params)
    tx = optax.masked(multi_momentum(optax.sgd(0.1), 2), {"a": True, "b": False})
    extra = {"cluster_grads": grads, "cluster_frac": jnp.array([0.5, 0.5])}
    updates, state = tx.update(params, tx.init(params), params, **extra)
    np.testing.assert_allclose(updates["a"], -0.2, rtol=1e-6)
    assert sum(x.size for x in jax.tree.leaves(state)) == 9


@pytest.mark.slow
def test_narrow_parameters_have_a_wide_table():
    x = jnp.ones(3, jnp.bfloat16)
    tx = discover_igt(0.1, 2)
    state = tx.init(x)
    updates, new = tx.update(x, state, x, cluster_id=1)
    assert updates.dtype == lookahead_params(new, x).dtype == jnp.bfloat16
    types = [leaf.dtype for leaf in jax.tree.leaves(new)]
    assert types == [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert jnp.bfloat16 not in types


def test_missing_arguments_raise():
    tx, x = multi_momentum(optax.sgd(0.1), K), jnp.ones(D)
    with pytest.raises(ValueError, match="cluster_grads"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="cluster_frac"):
        tx.update(x, tx.init(x), x, cluster_grads=jnp.ones((K, D)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", (0.5, 0.5)),
        ("weights", (0.5, 0.5, 0.5, 0.5)),
        ("weights", (1.0, 0.0, 0.0, 0.0)),
        ("alpha", 0.0),
        ("alpha", 1.5),
        ("sampling", (1.0,)),
    ],
)
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        multi_momentum(optax.sgd(0.1), K, **{name: value})
