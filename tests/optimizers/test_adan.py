"""Adan against a loop in numpy, optax's variant, and hand-made gradients."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import rosenbrock_after, trajectory

from jaxopt_ext.optimizers.adan import adan, restart_adan

STEPS = 100


def gradients(seed=0):
    return np.random.default_rng(seed).normal(size=(STEPS, 3, 4)) * 3


def reference(theta, grads, lr, b1, b2, b3, eps, decay, no_prox=False, max_norm=np.inf):
    m = v = n = 0.0
    last, path = None, []
    for t, g in enumerate(grads, 1):
        rate = lr(t - 1) if callable(lr) else lr
        g = g * min(1.0, max_norm / np.linalg.norm(g))
        d = np.zeros_like(g) if last is None else g - last
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        denom = np.sqrt(n) / np.sqrt(1 - b3**t) + eps
        u = m / (1 - b1**t) / denom + b2 * v / (1 - b2**t) / denom
        if no_prox:
            theta = theta * (1 - rate * decay) - rate * u
        else:
            theta = (theta - rate * u) / (1 + rate * decay)
        last = g
        path.append(theta)
    return np.array(path)


def tolerance(dtype):
    return dict(rtol=1e-5, atol=1e-6) if dtype == jnp.float32 else dict(rtol=1e-11, atol=1e-14)


@pytest.mark.always(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "no_prox": True},
        {"weight_decay": 0.1, "max_grad_norm": 2.0},
    ],
    ids=["plain", "proximal", "decoupled", "clipped"],
)
def test_equals_a_numpy_loop(dtype, options):
    grads, start = gradients(), np.random.default_rng(1).normal(size=(3, 4))
    path = trajectory(adan(1e-2, **options), jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert path.dtype == dtype
    expected = reference(
        start, grads, 1e-2, 0.98, 0.92, 0.99, 1e-8,
        options.get("weight_decay", 0.0),
        options.get("no_prox", False),
        options.get("max_grad_norm", np.inf),
    )  # fmt: skip
    np.testing.assert_allclose(path, expected, **tolerance(dtype))


@pytest.mark.slow
def test_schedule_enters_the_proximal_factor():
    schedule = optax.linear_schedule(0.1, 0.0, STEPS)
    grads, start = gradients(), np.ones((3, 4))
    path = trajectory(adan(schedule, weight_decay=0.5), jnp.asarray(start), jnp.asarray(grads))
    rate = lambda t: 0.1 * (1 - t / STEPS)
    expected = reference(start, grads, rate, 0.98, 0.92, 0.99, 1e-8, 0.5)
    np.testing.assert_allclose(path, expected, atol=1e-6)


@pytest.mark.slow
def test_optax_is_another_coefficient(dtype):
    grads, start = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    mine = adan(1e-2, weight_decay=0.1, no_prox=True, eps_root=1e-8, coef=1 - 0.92)
    theirs = optax.adan(1e-2, weight_decay=0.1)
    np.testing.assert_allclose(
        trajectory(mine, start, grads), trajectory(theirs, start, grads), **tolerance(dtype)
    )
    paper = trajectory(adan(1e-2, weight_decay=0.1), start, grads)
    assert np.abs(paper - trajectory(theirs, start, grads)).max() > 1e-3


def test_constant_gradient_is_a_sign_step(dtype):
    g = jnp.array([2.0, -0.5, 1e-3], dtype)
    path = trajectory(adan(0.1), jnp.zeros(3, dtype), jnp.tile(g, (STEPS, 1)))
    steps = jnp.diff(path, axis=0, prepend=0)
    np.testing.assert_allclose(steps, jnp.tile(-0.1 * g / (abs(g) + 1e-8), (STEPS, 1)), rtol=1e-4)


@pytest.mark.slow
def test_restart_forgets_the_past():
    tx, x = adan(1e-2), jnp.ones((3, 4))
    state, fresh = tx.init(x), tx.init(x)
    first, *rest = gradients()[:5]
    _, state = tx.update(jnp.asarray(first), state, x)
    state = restart_adan(state)
    for g in rest:
        u, state = tx.update(jnp.asarray(g), state, x)
        w, fresh = tx.update(jnp.asarray(g), fresh, x)
        np.testing.assert_array_equal(u, w)


@pytest.mark.slow
def test_rosenbrock_beats_adam():
    final = lambda tx: rosenbrock_after(tx, 3000)
    assert final(adan(1e-3)) <= 0.3 * final(optax.adam(1e-3))


def test_zero_gradients_give_zero_updates(dtype):
    path = trajectory(adan(0.1), jnp.ones(3, dtype), jnp.zeros((STEPS, 3), dtype))
    np.testing.assert_array_equal(path, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("b1", 1.0), ("b2", -0.1), ("b3", 2.0), ("eps", 0.0), ("max_grad_norm", 0.0)],
)
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        adan(**{name: value})
