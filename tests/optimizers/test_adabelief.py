"""AdaBelief against optax, loops in numpy, and the direction of a valley."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import descend, trajectory

from jaxopt_ext import prox
from jaxopt_ext.optimizers.adabelief import adabelief
from jaxopt_ext.optimizers.weighted_projection import weighted_projection

STEPS = 100


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return (1 + rng.normal(size=(STEPS, 3, 4))) * np.geomspace(3, 0.1, STEPS)[:, None, None]


def reference(x, grads, lr, b1=0.9, b2=0.999, eps=1e-8, root=1e-8, decay=0.0, variant=None):
    m = s = largest = 0.0
    path, limit = [], 2 / (1 - b2) - 1
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + root
        largest = np.maximum(largest, s)
        size = largest if variant == "amsgrad" else s
        step = m / (1 - b1**t) / (np.sqrt(size / (1 - b2**t)) + eps)
        if variant in ("rectify", "skip"):
            length = limit - 2 * t * b2**t / (1 - b2**t)
            if length >= 5:
                ratio = (length - 4) * (length - 2) * limit
                step = step * np.sqrt(ratio / ((limit - 4) * (limit - 2) * length))
            else:
                step = m / (1 - b1**t) if variant == "rectify" else 0.0
        x = x - lr * step - lr * decay * x
        path.append(x)
    return np.array(path)


def tolerance(dtype):
    return dict(rtol=2e-5, atol=1e-6) if dtype == jnp.float32 else dict(rtol=1e-10, atol=1e-13)


@pytest.mark.always(2)
@pytest.mark.parametrize(
    ("options", "variant"),
    [
        ({}, None),
        ({"amsgrad": True}, "amsgrad"),
        ({"rectify": True}, "rectify"),
        ({"rectify": True, "amsgrad": True}, "rectify"),
        ({"rectify": True, "degenerate_to_sgd": False}, "skip"),
        ({"weight_decay": 0.3}, None),
    ],
    ids=["plain", "amsgrad", "rectify", "both", "skip", "decay"],
)
def test_equals_a_numpy_loop(dtype, options, variant):
    grads, start = gradients(), np.ones((3, 4))
    tx = adabelief(1e-2, eps=1e-8, eps_root=1e-8, **options)
    path = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert path.dtype == dtype
    decay = options.get("weight_decay", 0.0)
    expected = reference(start, grads, 1e-2, decay=decay, variant=variant)
    np.testing.assert_allclose(path, expected, **tolerance(dtype))


def test_plain_is_optax(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    mine, theirs = (
        trajectory(adabelief(1e-2), x, grads),
        trajectory(optax.adabelief(1e-2), x, grads),
    )
    rtol = 1e-6 if dtype == jnp.float32 else 1e-14
    np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=rtol)


@pytest.mark.slow
def test_first_rectified_steps_are_momentum(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.zeros((3, 4), dtype)
    steps = jnp.diff(trajectory(adabelief(1.0, rectify=True), x, grads), axis=0, prepend=0)
    m = 0.0
    for t in range(1, 6):
        m = 0.9 * m + 0.1 * grads[t - 1]
        np.testing.assert_allclose(steps[t - 1], -m / (1 - 0.9**t), rtol=1e-4, atol=1e-5)
    m = 0.9 * m + 0.1 * grads[5]
    assert np.abs(steps[5] + m / (1 - 0.9**6)).max() > 0.1


@pytest.mark.slow
def test_runs_down_a_valley_that_adam_crawls_in():
    def loss(x):
        return (x[0] + x[1]) ** 2 + (x[0] - x[1]) ** 2 / 10

    distance = lambda tx: jnp.linalg.norm(descend(tx, loss, jnp.array([-1.0, 4.0]), 500))
    mine = distance(adabelief(1e-2, eps=1e-8, eps_root=1e-8))
    assert mine <= 0.3 * distance(optax.adam(1e-2))


@pytest.mark.slow
def test_projection_is_in_the_norm_of_the_variance():
    ball = weighted_projection(prox.L2Ball(0.5))
    g = jnp.array([3.0, 0.1])
    path = trajectory(adabelief(1.0, projection=ball), jnp.zeros(2), g[None])
    s = 0.001 * (0.9 * g) ** 2 + 1e-16
    weights = jnp.sqrt(s / 0.001) + 1e-16
    wanted = ball(-g / weights, weights)
    np.testing.assert_allclose(path[0], wanted, atol=1e-7)


def test_narrow_parameters_have_a_wide_state():
    x = jnp.ones(3, jnp.bfloat16)
    tx = adabelief(1e-2)
    state = tx.init(x)
    updates, state = tx.update(x, state, x)
    assert updates.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


@pytest.mark.always(1)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"rectify": True}])
def test_zero_gradients_give_zero_updates(dtype, options):
    path = trajectory(adabelief(0.1, **options), jnp.ones(3, dtype), jnp.zeros((20, 3), dtype))
    np.testing.assert_array_equal(path, 1)


def test_constant_gradients_stay_finite(dtype):
    path = trajectory(adabelief(1e-3), jnp.zeros(2, dtype), jnp.ones((3000, 2), dtype))
    assert np.all(np.isfinite(path))
    assert path[-1, 0] < -10  # steps grow as the variance vanishes


@pytest.mark.parametrize(
    ("name", "value"),
    [("b1", 1.0), ("b2", 1.0), ("eps", 0.0), ("eps_root", -1.0), ("weight_decay", -1.0)],
)
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        adabelief(**{name: value})


def test_rectifying_needs_a_long_memory():
    with pytest.raises(ValueError, match="b2"):
        adabelief(b2=0.5, rectify=True)
