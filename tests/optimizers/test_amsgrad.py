"""AMSGrad and AdamNC against loops in numpy, and the example that Adam fails."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import replay, trajectory

from jaxopt_ext import prox
from jaxopt_ext.optimizers.amsgrad import OnlineCounterexample, adamnc, amsgrad
from jaxopt_ext.optimizers.weighted_projection import weighted_projection

STEPS = 100


def gradients(seed=0):
    """Gradients that shrink, so that the largest second moment is an old one."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(STEPS, 3, 4)) * np.geomspace(3, 0.1, STEPS)[:, None, None]


def tolerance(dtype):
    return dict(rtol=1e-5, atol=1e-6) if dtype == jnp.float32 else dict(rtol=1e-11, atol=1e-14)


def rate(t):
    return 0.1 / np.sqrt(t + 1)


def schedule(count):
    return 0.1 / jnp.sqrt(jnp.asarray(count + 1, float))


def test_amsgrad_equals_a_numpy_loop(dtype):
    grads, x = gradients(), np.ones((3, 4))
    start, m, v, largest, path = x, 0, 0, 0, []
    for t, g in enumerate(grads):
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g**2
        largest = np.maximum(largest, v)
        x = x - rate(t) * m / (np.sqrt(largest) + 1e-3)
        path.append(x)
    tx = amsgrad(schedule, 0.9, 0.99, eps=1e-3)
    found = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.array(path), **tolerance(dtype))


def test_adamnc_equals_a_numpy_loop(dtype):
    grads, x = gradients(), np.ones((3, 4))
    start, m, path = x, 0, []
    for t, g in enumerate(grads):
        m = 0.8 * m + 0.2 * g
        mean = np.mean(grads[: t + 1] ** 2, axis=0)
        x = x - rate(t) * m / (np.sqrt(mean) + 1e-3)
        path.append(x)
    tx = adamnc(schedule, 0.8, eps=1e-3)
    found = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    np.testing.assert_allclose(found, np.array(path), **tolerance(dtype))


@pytest.mark.slow
def test_bias_correction_is_that_of_optax(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    mine, theirs = amsgrad(0.1, bias_correction=True), optax.amsgrad(0.1)
    np.testing.assert_array_equal(trajectory(mine, x, grads), trajectory(theirs, x, grads))
    plain = trajectory(amsgrad(0.1), x, grads)
    assert np.abs(plain[0] - trajectory(theirs, x, grads)[0]).max() > 0.1


def test_second_moment_never_shrinks():
    _, states = replay(amsgrad(0.1), jnp.ones((3, 4)), jnp.asarray(gradients()))
    assert np.all(np.diff(states[0].nu_max, axis=0) >= 0)
    assert np.any(np.diff(states[0].nu, axis=0) < 0)


@pytest.mark.slow
def test_decaying_first_moment_by_injection():
    grads, x = gradients(), np.ones((3, 4))
    start, m, v, largest = x, 0, 0, 0
    for t, g in enumerate(grads):
        b1 = 0.9 * 0.95**t
        m = b1 * m + (1 - b1) * g
        v = 0.99 * v + 0.01 * g**2
        largest = np.maximum(largest, v)
        x = x - 0.1 * m / (np.sqrt(largest) + 1e-8)
    tx = optax.inject_hyperparams(amsgrad)(0.1, b1=lambda t: 0.9 * 0.95**t, b2=0.99)
    found = trajectory(tx, jnp.asarray(start), jnp.asarray(grads))[-1]
    np.testing.assert_allclose(found, x, rtol=1e-5)


@pytest.mark.always(1)
@pytest.mark.parametrize("method", [amsgrad, adamnc])
def test_projection_is_in_the_norm_of_the_second_moment(method):
    ball = weighted_projection(prox.L2Ball(0.5))
    grads, x = jnp.asarray(gradients())[:, 0], jnp.zeros(4)
    path, states = replay(method(1.0, projection=ball), x, grads)
    assert np.all(np.linalg.norm(path, axis=1) <= 0.5 + 1e-9)
    free, _ = replay(method(1.0), x, grads[:1])
    second = states[0].nu_max if method is amsgrad else states[0].nu
    np.testing.assert_allclose(path[0], ball(free[0], jnp.sqrt(second[0]) + 1e-8), atol=1e-9)


@pytest.mark.slow
def test_adam_goes_to_the_worst_point_and_amsgrad_to_the_best():
    game = OnlineCounterexample()
    adam = game.play(optax.adam(lambda t: 0.5 / jnp.sqrt(t + 1), 0.9, 0.99), 100_000)
    mine = game.play(amsgrad(lambda t: 0.5 / jnp.sqrt(t + 1), 0.9, 0.99), 100_000)
    assert adam[0] > 0.9
    assert mine[0] < -0.9
    assert mine[1] < 0.5 * adam[1]


def test_the_case_of_the_theorem():
    game = OnlineCounterexample(large=4.0, small=1.0, period=3)
    rule = lambda t: 0.9 / jnp.sqrt(t + 1)
    adam = optax.chain(
        optax.scale_by_rms(decay=1 / 17, eps=1e-8, bias_correction=False),
        optax.scale_by_learning_rate(rule),
    )
    assert game.play(adam, 3000, start=1.0)[0] > 0.99
    assert game.play(amsgrad(rule, 0.0, 1 / 17), 3000, start=1.0)[0] < -0.9


def test_the_game_counts_regret_against_minus_one():
    game = OnlineCounterexample(large=4.0, small=1.0, period=3)
    last, regret = game.play(optax.sgd(0.1), 4)
    points = [0.0, -0.4, -0.3, -0.2]
    np.testing.assert_allclose(last, -0.6, atol=1e-6)
    np.testing.assert_allclose(regret, np.dot([4, -1, -1, 4], np.add(points, 1)) / 4, rtol=1e-6)
    OnlineCounterexample(large=2.01, small=1.0, period=3)  # just allowed


def test_zero_gradients_give_zero_updates(dtype):
    for tx in (amsgrad(0.1), adamnc(0.1)):
        path = trajectory(tx, jnp.ones(3, dtype), jnp.zeros((5, 3), dtype))
        np.testing.assert_array_equal(path, 1)


@pytest.mark.parametrize(("name", "value"), [("b1", 1.0), ("b2", -0.1), ("eps", 0.0)])
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        amsgrad(0.1, **{name: value})
    if name != "b2":
        with pytest.raises(ValueError, match=name):
            adamnc(0.1, **{name: value})


def test_the_best_point_must_be_minus_one():
    with pytest.raises(ValueError, match="large"):
        OnlineCounterexample(large=2.0, small=1.0, period=3)
