"""ASWA, NASWA and Switch EMA against loops in numpy over the visited weights."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext.optimizers.averaging import (
    aswa,
    averaged_params,
    jaccard_topk,
    prediction_std,
    relative_entropy,
    switch_ema,
)
from jaxopt_ext.optimizers.weight_switch import WeightSwitchState

N = 7  # steps in an epoch
EPOCHS = 4


def noise(seed=0):
    return np.random.default_rng(seed).normal(size=(N * EPOCHS, 3))


def trajectory(tx, start, grads):
    """Weights after each step, the states, all in one scan."""

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update({"w": g}, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params["w"], state)

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    return run({"w": start}, grads)


class Momentum:
    """Momentum SGD in numpy."""

    def __init__(self, lr=0.1, mu=0.9):
        self.lr, self.mu, self.buffer = lr, mu, 0.0

    def step(self, w, g):
        self.buffer = self.mu * self.buffer + g
        return w - self.lr * self.buffer


def aswa_loop(w, grads, switch=True):
    mean, seen, path, means, inner = w, [], [], [], Momentum()
    for t, g in enumerate(grads):
        seen.append(w)
        mean = np.mean(seen, axis=0)
        w = inner.step(w, g)
        if switch and (t + 1) % N == 0:
            w = mean
        path.append(w)
        means.append(mean)
    return np.array(path), np.array(means)


def naswa_loop(w, grads, ord, denominator):
    mean, taken, distances, inner = w, 0, [], Momentum()
    path, means, mask = [], [], []
    for t, g in enumerate(grads):
        distance = np.linalg.norm(w - mean, ord)
        accept = distance > (np.mean(distances) if distances else 0.0)
        if accept:
            taken += 1
            mean = mean + (w - mean) / (taken if denominator == "accepted" else t + 1)
            distances = [distance]
        else:
            distances.append(distance)
        w = inner.step(w, g)
        if (t + 1) % N == 0:
            w = mean
        path.append(w)
        means.append(mean)
        mask.append(accept)
    return np.array(path), np.array(means), np.array(mask)


def ema_loop(w, grads, rate, every=N, start=0, switch=True):
    ema, path, averages, inner = w, [], [], Momentum()
    for t, g in enumerate(grads):
        w = inner.step(w, g)
        r = rate(t)
        ema = (1 - r) * ema + r * w
        if switch and (t + 1) % every == 0 and t + 1 > start:
            w = ema
        path.append(w)
        averages.append(ema)
    return np.array(path), np.array(averages)


def limits(dtype):
    return dict(rtol=1e-5, atol=1e-6) if dtype == jnp.float32 else dict(rtol=1e-11, atol=1e-13)


def sgd():
    return optax.sgd(0.1, 0.9)


START = np.array([1.0, -2.0, 3.0])


def test_aswa_equals_its_listing(dtype):
    w, g = jnp.asarray(START, dtype), jnp.asarray(noise(), dtype)
    path, states = trajectory(aswa(sgd(), N), w, g)
    expected, means = aswa_loop(START, noise())
    assert path.dtype == dtype
    np.testing.assert_allclose(path, expected, **limits(dtype))
    np.testing.assert_allclose(averaged_params(states)["w"], means, **limits(dtype))


@pytest.mark.slow
def test_without_switch_the_mean_is_only_kept(dtype):
    w, g = jnp.asarray(START, dtype), jnp.asarray(noise(), dtype)
    path, states = trajectory(aswa(sgd(), N, switch=False), w, g)
    alone, _ = trajectory(sgd(), w, g)
    np.testing.assert_array_equal(path, alone)
    before = np.concatenate([START[None], alone[:-1]])
    expected = np.cumsum(before, 0) / np.arange(1, len(before) + 1)[:, None]
    np.testing.assert_allclose(averaged_params(states)["w"], expected, **limits(dtype))


def test_no_steps_leave_the_weights():
    tx = aswa(optax.set_to_zero(), 2)
    path, _ = trajectory(tx, jnp.asarray(START), jnp.asarray(noise()))
    np.testing.assert_array_equal(path, np.tile(START, (len(path), 1)))


@pytest.mark.always(2)
@pytest.mark.parametrize("ord", [1, 2])
@pytest.mark.parametrize("denominator", ["accepted", "iteration"])
def test_naswa_equals_its_listing(dtype, ord, denominator):
    w, g = jnp.asarray(START, dtype), jnp.asarray(noise(), dtype)
    path, states = trajectory(aswa(sgd(), N, True, ord, denominator), w, g)
    expected, means, mask = naswa_loop(START, noise(), ord, denominator)
    np.testing.assert_array_equal(states.aggregator.accepted, mask)
    assert 0 < mask.sum() < len(mask)
    np.testing.assert_allclose(path, expected, **limits(dtype))
    np.testing.assert_allclose(averaged_params(states)["w"], means, **limits(dtype))


@pytest.mark.always(1)
@pytest.mark.parametrize("warmup", [None, "exp", "linear"])
def test_switch_ema_equals_its_listing(dtype, warmup):
    w, g = jnp.asarray(START, dtype), jnp.asarray(noise(), dtype)
    r = 0.05
    rates = {
        None: lambda t: r,
        "exp": lambda t: (1 - r) * np.exp(-(1 + t) / 2000) + r,
        "linear": lambda t: max(r, (1 - r) * (1 - t / 100) * (1 - 0.9)),
    }
    tx = switch_ema(sgd(), 0.95, steps_per_epoch=N, decay_warmup=warmup)
    path, states = trajectory(tx, w, g)
    expected, averages = ema_loop(START, noise(), rates[warmup])
    assert path.dtype == dtype
    np.testing.assert_allclose(path, expected, **limits(dtype))
    np.testing.assert_allclose(averaged_params(states)["w"], averages, **limits(dtype))


@pytest.mark.always(1)
@pytest.mark.parametrize(("every", "start"), [(2, 0), (1, 2), (2, 1)])
def test_when_to_switch(every, start):
    tx = switch_ema(sgd(), 0.9, steps_per_epoch=N, switch_every=every, switch_start=start)
    path, _ = trajectory(tx, jnp.asarray(START), jnp.asarray(noise()))
    expected, _ = ema_loop(START, noise(), lambda t: 0.1, N * every, N * start)
    np.testing.assert_allclose(path, expected, rtol=1e-11)


@pytest.mark.slow
def test_plain_ema_leaves_training_alone(dtype):
    w, g = jnp.asarray(START, dtype), jnp.asarray(noise(), dtype)
    tx = switch_ema(optax.adam(0.1), 0.9, steps_per_epoch=N, switch=False)
    path, states = trajectory(tx, w, g)
    alone, _ = trajectory(optax.adam(0.1), w, g)
    np.testing.assert_array_equal(path, alone)
    ema = START
    for t, x in enumerate(np.asarray(alone, np.float64)):
        ema = 0.9 * ema + 0.1 * x
        np.testing.assert_allclose(averaged_params(states)["w"][t], ema, **limits(dtype))


@pytest.mark.always(1)
@pytest.mark.parametrize("method", [aswa, switch_ema])
def test_after_a_switch_the_weights_are_the_average(dtype, method):
    w, g = jnp.asarray(START * 1e3, dtype), jnp.asarray(noise(), dtype)
    options = {"decay": 0.9} if method is switch_ema else {}
    tx = method(optax.adam(0.1), steps_per_epoch=N, **options)
    path, states = trajectory(tx, w, g)
    average = averaged_params(states)["w"]
    np.testing.assert_array_equal(path[N - 1 :: N], average[N - 1 :: N])
    assert np.all(path[: N - 1] != average[: N - 1])


@pytest.mark.slow
def test_the_moments_do_not_see_the_switch():
    w, g = jnp.asarray(START), jnp.asarray(noise())
    _, switched = trajectory(switch_ema(optax.adam(0.1), 0.9, steps_per_epoch=N), w, g)
    _, alone = trajectory(optax.adam(0.1), w, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), switched.inner, alone)


@pytest.mark.slow
def test_switch_ema_steadies_a_noisy_quadratic():
    curvature = jnp.array([1.0, 100.0])

    def final(tx, key):
        def step(carry, key):
            x, state = carry
            g = curvature * x + jax.random.normal(key, (2,))
            updates, state = tx.update(g, state, x)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.array([3.0, 3.0])
        x = jax.lax.scan(step, (x, tx.init(x)), jax.random.split(key, 600))[0][0]
        return 0.5 * jnp.sum(curvature * x**2)

    keys = jax.random.split(jax.random.key(0), 64)
    inner = optax.sgd(0.0195)  # stable below 0.02
    plain = jax.vmap(lambda k: final(inner, k))(keys).mean()
    sema = switch_ema(inner, 0.9, steps_per_epoch=30)
    assert jax.vmap(lambda k: final(sema, k))(keys).mean() <= 0.7 * plain


def test_integers_missing_leaves_and_narrow_types():
    params = {"w": jnp.ones(3, jnp.bfloat16), "n": jnp.array([3, 4]), "none": None}
    updates = {"w": jnp.full(3, 0.5, jnp.bfloat16), "n": jnp.array([1, 1]), "none": None}
    for tx in (
        aswa(optax.identity(), 2),
        aswa(optax.identity(), 2, True),
        switch_ema(optax.identity(), 0.5, steps_per_epoch=2),
    ):
        state, p = tx.init(params), params
        for _ in range(2):
            u, state = jax.jit(tx.update)(updates, state, p)
            assert u["w"].dtype == jnp.bfloat16
            p = optax.apply_updates(p, u)
        average = averaged_params(state)
        assert average["w"].dtype == jnp.float32
        np.testing.assert_array_equal(p["n"], [5, 6])
        assert average["n"].dtype == params["n"].dtype
        assert average["none"] is None
        np.testing.assert_array_equal(p["w"], average["w"].astype(jnp.bfloat16))


def test_averaged_params_looks_inside_wrappers():
    tx = optax.chain(optax.clip(1.0), aswa(optax.sgd(0.1), 3))
    x = jnp.ones(2)
    np.testing.assert_array_equal(averaged_params(tx.init(x)), x)
    assert isinstance(tx.init(x)[1], WeightSwitchState)
    with pytest.raises(ValueError, match="found 0"):
        averaged_params(optax.sgd(0.1).init(x))


def test_slow_average_warns():
    with pytest.warns(UserWarning, match="0.9999"):
        switch_ema(sgd(), 0.9999, steps_per_epoch=30)
    with warnings.catch_warnings(action="error"):
        switch_ema(sgd(), 0.995, steps_per_epoch=30)


@pytest.mark.slow
def test_stability_measures():
    accuracies = np.random.default_rng(0).normal(size=(10, 2))
    np.testing.assert_allclose(prediction_std(jnp.asarray(accuracies)), accuracies.std(0, ddof=1))
    a, b = jnp.array([5.0, 4, 3, 2, 1]), jnp.array([5.0, 1, 4, 2, 3])
    np.testing.assert_allclose(jaccard_topk(a, b, 3), 2 / 4)  # {0, 1, 2} and {0, 2, 4}
    np.testing.assert_allclose(jaccard_topk(jnp.stack([a, b]), jnp.stack([b, b]), 2), [1 / 3, 1])
    p, q = np.array([0.2, 0.8, 0.0]), np.array([0.5, 0.25, 0.25])
    expected = 0.2 * np.log(0.2 / 0.5) + 0.8 * np.log(0.8 / 0.25)
    np.testing.assert_allclose(relative_entropy(jnp.asarray(3 * p), jnp.asarray(q)), expected)


def test_bad_input_raises():
    with pytest.raises(ValueError, match="ord"):
        aswa(sgd(), N, True, ord=3)
    with pytest.raises(ValueError, match="denominator"):
        aswa(sgd(), N, True, denominator="all")
    with pytest.raises(ValueError, match="steps_per_epoch"):
        aswa(sgd(), 0)
    with pytest.raises(ValueError, match="decay"):
        switch_ema(sgd(), 1.0, steps_per_epoch=N)
    with pytest.raises(ValueError, match="decay_warmup"):
        switch_ema(sgd(), 0.9, steps_per_epoch=N, decay_warmup="cosine")
    with pytest.raises(ValueError, match="switch_start"):
        switch_ema(sgd(), 0.9, steps_per_epoch=N, switch_start=-1)
    with pytest.raises(ValueError, match="k must be"):
        jaccard_topk(jnp.ones(3), jnp.ones(3), 4)
    tx = aswa(sgd(), N)
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="params"):
        tx.update(x, tx.init(x))
