"""EXAdam against Adam, a loop in numpy, and its first step by hand."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import rosenbrock_after, trajectory

from jaxopt_ext.optimizers.exadam import exadam

STEPS = 100


def gradients(shape=(3, 4), seed=0):
    return np.random.default_rng(seed).normal(size=(STEPS, *shape)) * 3


def reference(theta, grads, lr, b1, b2, eps, decay, log):
    m, v, path = 0.0, 0.0, []
    for t, g in enumerate(grads, 1):
        theta = theta * (1 - lr * decay)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        d1 = 1 + (v / (v + eps)) * b2**t
        d2 = 1 + (m**2 / (m**2 + eps)) * b1**t
        mt, vt, gt = m / (1 - b1**t) * d1, v / (1 - b2**t) * d2, g / (1 - b1**t) * d1
        a = lr * np.log(np.sqrt(2) * np.sqrt(t + 1)) if log else lr
        theta = theta - a * (mt + gt) / (np.sqrt(vt) + eps)
        path.append(theta)
    return np.array(path)


@pytest.mark.parametrize("log", [True, False])
def test_equals_a_numpy_loop(dtype, log):
    grads, start = gradients(), np.random.default_rng(1).normal(size=(3, 4))
    grads[::7] *= 1e-5
    tx = exadam(1e-2, 0.8, 0.99, 1e-6, 0.1, log)
    path = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert path.dtype == dtype
    expected = reference(start, grads, 1e-2, 0.8, 0.99, 1e-6, 0.1, log)
    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype == jnp.float32 else dict(rtol=1e-12)
    np.testing.assert_allclose(path, expected, **tolerance)


def test_without_its_three_changes_is_adamw(dtype):
    grads, start = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    off = dict(dynamic_step_size=False, cross_debias=False, grad_acceleration=False)
    plain = trajectory(exadam(1e-2, weight_decay=0.1, **off), start, grads)
    adamw = trajectory(optax.adamw(1e-2, weight_decay=0.1), start, grads)
    np.testing.assert_allclose(plain, adamw, atol=1e-6 if dtype == jnp.float32 else 1e-13)


@pytest.mark.always(1)
@pytest.mark.parametrize("g", [1.0, -3.0, 40.0])
def test_first_step(dtype, g):
    tx, x = exadam(1e-3), jnp.zeros([], dtype)
    delta, _ = tx.update(jnp.asarray(g, dtype), tx.init(x), x)
    expected = -1e-3 * np.log(2) * 1.999 * (1 + 1 / 0.1) / np.sqrt(1.9) * np.sign(g)
    np.testing.assert_allclose(delta, expected, rtol=1e-2)
    np.testing.assert_allclose(abs(delta), 1e-3 * 11.06, rtol=1e-2)


@pytest.mark.slow
def test_rosenbrock_runs_far_ahead_of_adam():
    final = lambda tx: rosenbrock_after(tx, 3000)
    adam = final(optax.adam(1e-3))
    assert final(exadam(1e-3)) <= 0.01 * adam
    np.testing.assert_allclose(final(exadam(1e-3, dynamic_step_size=False)), 0.108, rtol=0.05)


def test_zero_gradients_give_zero_updates(dtype):
    path = trajectory(exadam(0.1), jnp.ones(3, dtype), jnp.zeros((STEPS, 3), dtype))
    np.testing.assert_array_equal(path, 1)


@pytest.mark.slow
def test_complex_is_adam_on_moduli():
    tx, z = exadam(1e-2), jnp.array([1.0 + 2j])
    rotate = np.exp(0.7j)
    state, turned = tx.init(z), tx.init(z * rotate)
    for g in [1 + 1j, -0.5j, 2.0]:
        g = jnp.array([g], complex)
        u, state = tx.update(g, state, z)
        w, turned = tx.update(g * rotate, turned, z)
        np.testing.assert_allclose(w, u * rotate, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "value"), [("b1", 1.0), ("b2", -0.1), ("eps", 0.0), ("weight_decay", -1.0)]
)
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        exadam(**{name: value})
