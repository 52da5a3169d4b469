"""AdaBound and AMSBound against loops in numpy, at both ends of their bounds, and online."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import replay, trajectory

from jaxopt_ext import prox
from jaxopt_ext.optimizers.adabound import AdaBoundState, adabound, amsbound
from jaxopt_ext.optimizers.amsgrad import OnlineCounterexample
from jaxopt_ext.optimizers.weighted_projection import weighted_projection

STEPS = 100


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(STEPS, 3, 4)) * np.geomspace(3, 0.1, STEPS)[:, None, None]


def reference(x, grads, lr, *, final=0.1, gamma=0.1, decay=0.0, **flags):
    m = v = largest = 0.0
    path, start = [], lr(0)
    for t, g in enumerate(grads, 1):
        now = lr(t - 1)
        if decay and not flags.get("decoupled"):
            g = g + decay * x
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g**2
        largest = np.maximum(largest, v)
        bound = final * now / start
        if flags.get("bias_correction", True):
            now = now * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        root = np.sqrt(largest if flags.get("amsbound") else v) + 1e-8
        low, high = bound * (1 - 1 / (gamma * t + 1)), bound * (1 + 1 / (gamma * t))
        rate = np.minimum(np.maximum(now / root, low), high)
        if flags.get("sqrt_decay"):
            rate = rate / np.sqrt(t)
        x = x - rate * m - (decay * x if flags.get("decoupled") else 0)
        path.append(x)
    return np.array(path)


def tolerance(dtype):
    return dict(rtol=1e-5, atol=2e-6) if dtype == jnp.float32 else dict(rtol=1e-10, atol=1e-13)


@pytest.mark.always(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amsbound": True},
        {"bias_correction": False},
        {"sqrt_decay": True},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled": True},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_equals_a_numpy_loop(dtype, options):
    grads, start = gradients(), np.ones((3, 4))
    tx = adabound(0.03, 0.9, 0.99, gamma=0.1, **options)
    path = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert path.dtype == dtype
    flags = dict(options)
    decay = flags.pop("weight_decay", 0.0)
    expected = reference(start, grads, lambda t: 0.03, decay=decay, **flags)
    np.testing.assert_allclose(path, expected, **tolerance(dtype))


@pytest.mark.slow
def test_a_schedule_moves_the_bounds_too():
    grads, start = gradients(), np.ones((3, 4))
    schedule = optax.linear_schedule(0.03, 0.0, STEPS)
    path = trajectory(
        adabound(schedule, 0.9, 0.99, gamma=0.1), jnp.asarray(start), jnp.asarray(grads)
    )
    expected = reference(start, grads, lambda t: 0.03 * (1 - t / STEPS))
    np.testing.assert_allclose(path, expected, atol=1e-6)


def test_amsbound_is_adabound_with_the_largest_moment():
    grads, x = jnp.asarray(gradients()), jnp.ones((3, 4))
    np.testing.assert_array_equal(
        trajectory(amsbound(0.03, gamma=0.1), x, grads),
        trajectory(adabound(0.03, gamma=0.1, amsbound=True), x, grads),
    )


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("t", "low", "high"), [(1, 0.1 * 0.000999, 0.1 * 1001), (100_000, 0.0990, 0.1010)]
)
def test_every_rate_lies_between_the_bounds(t, low, high):
    v = jnp.array([0.0, 1e-12, 1e-4, 1.0, 1e8])
    state = AdaBoundState(jnp.asarray(t - 1), jnp.zeros(5), v, None)
    m = 0.1 * jnp.ones(5)
    updates, _ = adabound().update(jnp.ones(5) * 1e-30, state._replace(mu=m), jnp.zeros(5))
    rates = -updates / (0.9 * m)
    assert np.all(rates >= low * (1 - 1e-3))
    assert np.all(rates <= high * (1 + 1e-3))
    assert rates[0] > rates[-1]  # the clip leaves room in between
    np.testing.assert_allclose(rates[-1], low, rtol=1e-2)
    np.testing.assert_allclose(rates[0], high, rtol=1e-2)


@pytest.mark.slow
def test_late_it_is_momentum_at_the_final_rate(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    tx = adabound(gamma=0.99)
    state = tx.init(x)._replace(count=jnp.asarray(10**7, jnp.int32))
    plain = optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))
    other = plain.init(x)
    for g in grads[:30]:
        mine, state = tx.update(g, state, x)
        theirs, other = plain.update(g, other, x)
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-7)


def test_without_bounds_it_is_adam(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    mine = trajectory(adabound(1e-3, gamma=1e-9, final_lr=1.0), x, grads)
    # eps is added to the uncorrected root here, so it must not matter
    theirs = trajectory(optax.adam(1e-3, eps=1e-12), x, grads)
    np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.slow
def test_does_not_fall_for_the_counterexample():
    game, rule = OnlineCounterexample(), lambda t: 0.5 / jnp.sqrt(t + 1)
    assert game.play(optax.adam(rule, 0.9, 0.99), 100_000)[0] > 0.9
    box = weighted_projection(prox.Box(-1.0, 1.0))
    for method in (adabound, amsbound):
        tx = method(0.5, 0.9, 0.99, final_lr=0.01, gamma=0.01, sqrt_decay=True, projection=box)
        assert game.play(tx, 100_000)[0] < -0.9


@pytest.mark.slow
def test_projection_is_in_the_norm_of_the_inverse_rates():
    ball = weighted_projection(prox.L2Ball(0.5))
    grads, x = jnp.asarray(gradients())[:, 0], jnp.zeros(4)
    free, _ = replay(adabound(1.0), x, grads[:1])
    path, _ = replay(adabound(1.0, projection=ball), x, grads[:1])
    rates = -free[0] / (0.1 * grads[0])
    np.testing.assert_allclose(path[0], ball(free[0], 1 / rates), atol=1e-9)


def test_zero_gradients_give_zero_updates(dtype):
    for tx in (adabound(), amsbound(sqrt_decay=True)):
        path = trajectory(tx, jnp.ones(3, dtype), jnp.zeros((5, 3), dtype))
        np.testing.assert_array_equal(path, 1)


@pytest.mark.slow
def test_a_schedule_that_ends_at_zero_stops():
    path = trajectory(adabound(lambda t: 1e-2 * (t < 5)), jnp.ones(3), jnp.ones((8, 3)))
    np.testing.assert_array_equal(path[5:], path[5:6].repeat(3, 0))
    assert np.all(np.isfinite(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("b1", 1.0),
        ("b2", -0.1),
        ("gamma", 0.0),
        ("gamma", 1.0),
        ("final_lr", 0.0),
        ("eps", 0.0),
        ("weight_decay", -1.0),
    ],
)
def test_bad_input_raises(name, value):
    for method in (adabound, amsbound):
        with pytest.raises(ValueError, match=name):
            method(**{name: value})


def test_decay_needs_params():
    tx = adabound(weight_decay=0.1)
    with pytest.raises(ValueError, match="weight decay needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
