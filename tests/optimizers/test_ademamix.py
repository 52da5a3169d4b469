"""AdEMAMix against a loop in numpy, AdamW and optax; its schedules in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import replay, rosenbrock_after, trajectory

from jaxopt_ext.optimizers.ademamix import ademamix, alpha_schedule, log_beta3_schedule

STEPS = 100


def gradients(seed=0):
    return 1 + np.random.default_rng(seed).normal(size=(STEPS, 3, 4)) * 3


def beta3(t, length, b1, b3):
    b1 = b1 if b1 > 0 else 1e-8
    s = t / length
    log = np.log(b1) * np.log(b3) / ((1 - s) * np.log(b3) + s * np.log(b1))
    return min(np.exp(log), b3)


def reference(
    x,
    grads,
    lr,
    *,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    alpha=5.0,
    T_alpha=None,
    T_beta3=None,
    eps=1e-8,
    weight_decay=0.0,
):
    fast = slow = v = 0.0
    path = []
    for t, g in enumerate(grads, 1):
        a = alpha if T_alpha is None else min(t / T_alpha, 1) * alpha
        b = b3 if T_beta3 is None else beta3(t, T_beta3, b1, b3)
        fast = b1 * fast + (1 - b1) * g
        slow = b * slow + (1 - b) * g
        v = b2 * v + (1 - b2) * g**2
        root = np.sqrt(v / (1 - b2**t)) + eps
        rate = lr(t) if callable(lr) else lr
        x = x - rate * ((fast / (1 - b1**t) + a * slow) / root + weight_decay * x)
        path.append(x)
    return np.array(path)


def tolerance(dtype):
    return dict(rtol=1e-5, atol=1e-6) if dtype == jnp.float32 else dict(rtol=1e-11, atol=1e-14)


CASES = {
    "constant": {},
    "scheduled": {"T_alpha": 60, "T_beta3": 60},
    "alpha scheduled": {"T_alpha": 60, "b3": 0.99},
    "b3 scheduled": {"T_beta3": 60, "b3": 0.99},
    "no fast mean": {"b1": 0.0},
    "scheduled, no fast mean": {"b1": 0.0, "T_alpha": 60, "T_beta3": 60},
    "other decays": {"b1": 0.8, "b2": 0.9, "b3": 0.95, "eps": 0.1},
    "weight decay": {"weight_decay": 0.3, "alpha": 8.0},
}


@pytest.mark.always(2)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_numpy_loop(dtype, case):
    grads, start = gradients(), np.ones((3, 4))
    tx = ademamix(1e-2, **CASES[case])
    path = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert path.dtype == dtype
    wanted = reference(start, grads, 1e-2, **CASES[case])
    np.testing.assert_allclose(path, wanted, **tolerance(dtype))


@pytest.mark.slow
def test_learning_rate_schedules_scale_the_decay_too(dtype):
    grads, start = gradients(), np.ones((3, 4))
    tx = ademamix(lambda count: 0.1 / (1 + count), weight_decay=0.3)
    path = trajectory(tx, jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    wanted = reference(start, grads, lambda t: 0.1 / t, weight_decay=0.3)
    np.testing.assert_allclose(path, wanted, **tolerance(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("b1", [0.9, 0.0])
def test_hyperparameters_may_be_traced(b1):
    grads, x = jnp.asarray(gradients()), jnp.ones((3, 4))
    options = dict(b1=b1, b3=0.99, weight_decay=0.1, T_alpha=60, T_beta3=60)
    injected = optax.inject_hyperparams(ademamix, static_args=("T_alpha", "T_beta3"))
    found = trajectory(injected(1e-2, **options), x, grads)
    np.testing.assert_allclose(found, trajectory(ademamix(1e-2, **options), x, grads), rtol=1e-5)


@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one():
    grads, x = jnp.asarray(gradients()), jnp.ones((3, 4))
    tx = ademamix(1e-2, T_alpha=60, T_beta3=60)
    path, states = replay(tx, x, grads)
    resumed = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda leaf: leaf[29], states), tx.update
    )
    np.testing.assert_allclose(trajectory(resumed, path[29], grads[30:]), path[30:], rtol=1e-12)


@pytest.mark.slow
def test_complex_parameters_are_scaled_by_absolute_squares():
    size = np.abs(gradients())
    turn = np.exp(2j * np.pi * np.random.default_rng(0).uniform(size=size.shape))
    x = jnp.zeros((3, 4), complex)
    path, states = replay(ademamix(1e-2), x, jnp.asarray(size * turn))
    assert states[0].nu.dtype == jnp.float64
    wanted = reference(0.0, size[:1], 1e-2)[0] * turn[0]
    np.testing.assert_allclose(path[0], wanted, rtol=1e-10)


@pytest.mark.slow
def test_narrow_parameters_have_a_wide_state():
    x = jnp.ones((3, 4), jnp.bfloat16)
    path, states = replay(ademamix(), x, jnp.asarray(gradients(), jnp.bfloat16))
    assert path.dtype == jnp.bfloat16
    kinds = {leaf.dtype for leaf in jax.tree.leaves(states)}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.slow
def test_without_the_slow_mean_it_is_adamw(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((3, 4), dtype)
    mine = trajectory(ademamix(1e-2, alpha=0.0, weight_decay=0.1), x, grads)
    np.testing.assert_allclose(
        mine, trajectory(optax.adamw(1e-2, weight_decay=0.1), x, grads), rtol=1e-5, atol=1e-6
    )


def test_equals_optax_with_constants():
    grads, x = jnp.asarray(gradients()), jnp.ones((3, 4))
    theirs = trajectory(optax.contrib.ademamix(1e-2, b3=0.999, alpha=5.0), x, grads)
    np.testing.assert_allclose(trajectory(ademamix(1e-2, b3=0.999), x, grads), theirs, rtol=1e-9)


def test_half_life_grows_linearly():
    schedule = log_beta3_schedule(1000, 0.9, 0.9999)
    t = jnp.arange(0.0, 1001.0)
    half_life = np.log(0.5) / schedule(t)
    wanted = np.interp(t, [0, 1000], np.log(0.5) / np.log([0.9, 0.9999]))
    np.testing.assert_allclose(half_life, wanted, rtol=1e-6)
    np.testing.assert_allclose(schedule(0.0), np.log(0.9))
    np.testing.assert_allclose(schedule(2000.0), np.log(0.9999))
    np.testing.assert_allclose(alpha_schedule(1000, 5.0)(jnp.array([500.0, 2000.0])), [2.5, 5.0])


def test_slow_weight_is_exact_in_single_precision():
    x = jnp.zeros(1, jnp.float32)
    _, state = replay(ademamix(b3=0.9999), x, jnp.ones((1, 1), jnp.float32))
    np.testing.assert_allclose(state[0].slow[0], 1e-4, rtol=1e-6)


def test_no_fast_mean_is_not_stored():
    x = jnp.zeros(100)
    size = lambda tx: sum(leaf.size for leaf in jax.tree.leaves(tx.init(x)))
    assert size(ademamix()) - size(ademamix(b1=0.0)) == 100


@pytest.mark.slow
def test_rosenbrock_beats_adam():
    final = lambda tx: rosenbrock_after(tx, 8000)
    mine = final(ademamix(3e-4, b3=0.999, alpha=5.0, T_alpha=8000, T_beta3=8000))
    assert mine <= 0.1 * final(optax.adam(3e-4))


@pytest.mark.slow
def test_noise_is_averaged_out():
    eigenvalues = jnp.logspace(-3, 0, 100)
    start = jnp.full(100, 3.0)

    def excess(tx):
        def one(key):
            noise = jax.random.normal(key, (4000, 100))

            def step(carry, noise):
                x, state = carry
                updates, state = tx.update(eigenvalues * x + noise, state, x)
                return (optax.apply_updates(x, updates), state), None

            x = jax.lax.scan(step, (start, tx.init(start)), noise)[0][0]
            return 0.5 * jnp.sum(eigenvalues * x**2)

        return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 3)).mean()

    mine = excess(ademamix(1e-3, b3=0.999, T_alpha=4000, T_beta3=4000))
    assert mine <= 0.5 * excess(optax.adam(1e-3))


def test_zero_gradients_give_zero_updates(dtype):
    path = trajectory(ademamix(0.1), jnp.ones(3, dtype), jnp.zeros((5, 3), dtype))
    np.testing.assert_array_equal(path, 1)


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"b1": 1.0}, ValueError, "b1"),
        ({"b2": -0.1}, ValueError, "b2"),
        ({"b3": 1.0}, ValueError, "b3"),
        ({"b3": 0.5, "T_beta3": 10}, ValueError, "b3"),
        ({"alpha": -1.0}, ValueError, "alpha"),
        ({"eps": 0.0}, ValueError, "eps"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"T_alpha": 0}, ValueError, "num_steps"),
        ({"T_beta3": 1.5}, TypeError, "num_steps"),
    ],
)
def test_bad_input_raises(options, error, name):
    with pytest.raises(error, match=name):
        ademamix(**options)
