"""Adafactor against loops in numpy, and its two numbers per row and column."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import replay, trajectory

from jaxopt_ext.optimizers.adafactor import adafactor, relative_step_size

STEPS = 20


def gradients(shape=(7, 5), seed=0):
    return np.random.default_rng(seed).normal(size=(STEPS, *shape)) * 2


def rms(x):
    return np.sqrt(np.mean(x**2))


def reference(
    x,
    grads,
    *,
    rate=None,
    scale=True,
    clip=1.0,
    power=0.8,
    b1=None,
    b2=None,
    eps=1e-30,
    decay=0.0,
    factor=(-1, -2),
):
    """Positions after each step; `factor` names the axes that are summed over."""
    rate = rate or (lambda t: min(1e-2, t**-0.5))
    rows = columns = full = mean = 0.0
    path = []
    for t, g in enumerate(grads, 1):
        beta = 1 - t**-power if b2 is None else b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        square = g**2 + eps
        if factor:
            rows = beta * rows + (1 - beta) * square.sum(factor[0], keepdims=True)
            columns = beta * columns + (1 - beta) * square.sum(factor[1], keepdims=True)
            v = rows * columns / rows.sum(factor[1], keepdims=True)
        else:
            v = full = beta * full + (1 - beta) * square
        u = g / np.sqrt(v)
        if clip is not None:
            u = u / max(1, rms(u) / clip)
        step = rate(t) * u * (max(1e-3, rms(x)) if scale else 1)
        if b1 is not None:
            step = mean = b1 * mean + (1 - b1) * step
        x = x - step - rate(t) * decay * x
        path.append(x)
    return np.array(path)


def tolerance(dtype):
    return dict(rtol=1e-5, atol=1e-6) if dtype == jnp.float32 else dict(rtol=1e-10, atol=1e-13)


CASES = {
    "defaults": ({}, {}),
    "external rate": ({"learning_rate": 0.1}, {"rate": lambda t: 0.1}),
    "warm-up": (
        {"learning_rate": relative_step_size(warmup_init=True)},
        {"rate": lambda t: min(1e-6 * t, t**-0.5)},
    ),
    "no scaling": ({"scale_parameter": False}, {"scale": False}),
    "no clipping": ({"clipping_threshold": None}, {"clip": None}),
    "clipping": ({"clipping_threshold": 0.5}, {"clip": 0.5}),
    "momentum": ({"b1": 0.9}, {"b1": 0.9}),
    "constant b2": ({"b2": 0.99}, {"b2": 0.99}),
    "no past": ({"b2": 0.0}, {"b2": 0.0}),
    "other power": ({"decay_rate": 0.5}, {"power": 0.5}),
    "larger eps1": ({"eps1": 0.1}, {"eps": 0.1}),
    "decay": ({"weight_decay": 0.3}, {"decay": 0.3}),
    "schedule, momentum and decay": (
        {"learning_rate": lambda count: 0.1 / (1 + count), "b1": 0.9, "weight_decay": 0.3},
        {"rate": lambda t: 0.1 / t, "b1": 0.9, "decay": 0.3},
    ),
    "whole": ({"min_dim_size_to_factor": 6}, {"factor": None}),
}


@pytest.mark.always(2)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_numpy_loop(dtype, case):
    options, expected = CASES[case]
    grads, start = gradients(), np.random.default_rng(1).normal(size=(7, 5))
    path = trajectory(adafactor(**options), jnp.asarray(start, dtype), jnp.asarray(grads, dtype))
    assert path.dtype == dtype
    wanted = reference(start, grads, **expected)
    np.testing.assert_allclose(path - start, wanted - start, **tolerance(dtype))


@pytest.mark.always(1)
@pytest.mark.parametrize("shape", [(6,), (), (1, 6)])
def test_vectors_are_not_factored(shape):
    grads, start = gradients(shape), np.random.default_rng(1).normal(size=shape)
    path = trajectory(adafactor(), jnp.asarray(start), jnp.asarray(grads))
    np.testing.assert_allclose(path, reference(start, grads, factor=None), **tolerance(jnp.float64))


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 7, 5), (-1, -2)), ((7, 2, 5), (-1, -3)), ((5, 3, 7, 2), (-2, -4))]
)
def test_higher_ranks_are_factored_along_their_largest_axes(shape, axes):
    grads, start = gradients(shape), np.random.default_rng(1).normal(size=shape)
    path = trajectory(adafactor(), jnp.asarray(start), jnp.asarray(grads))
    wanted = reference(start, grads, factor=axes)
    np.testing.assert_allclose(path, wanted, **tolerance(jnp.float64))


@pytest.mark.slow
def test_rank_one_squares_are_not_approximated():
    rng = np.random.default_rng(0)
    size = np.abs(np.outer(rng.normal(size=7), rng.normal(size=5)))
    grads = jnp.asarray(size * rng.choice([-1, 1], size=(STEPS, 7, 5)))
    x = jnp.ones((7, 5))
    factored = trajectory(adafactor(), x, grads)
    whole = trajectory(adafactor(min_dim_size_to_factor=6), x, grads)
    np.testing.assert_allclose(factored, whole, rtol=1e-9)


def test_state_is_rows_and_columns():
    state = jax.eval_shape(adafactor().init, jnp.zeros((512, 256)))
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 1) == 768


def test_equals_optax_with_its_settings(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((7, 5), dtype)
    theirs = optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9, dtype_momentum=dtype)
    mine = adafactor(0.1, b1=0.9)
    np.testing.assert_allclose(trajectory(mine, x, grads), trajectory(theirs, x, grads), rtol=1e-6)


@pytest.mark.slow
def test_an_outlier_is_clipped(dtype):
    grads = np.random.default_rng(0).normal(size=(201, 7, 5))
    grads[200] *= 1000
    x = jnp.zeros((7, 5), dtype)
    for d in (1.0, None):
        tx = adafactor(1.0, scale_parameter=False, b2=0.999, clipping_threshold=d)
        last = jnp.diff(trajectory(tx, x, jnp.asarray(grads, dtype)), axis=0)[-1]
        assert (rms(last) <= 1 + 1e-4) if d else (rms(last) > 10)


@pytest.mark.slow
def test_parameters_at_zero_move_and_zero_gradients_do_not(dtype):
    x, zeros = jnp.zeros((7, 5), dtype), jnp.zeros((5, 7, 5), dtype)
    for eps2 in (1e-3, 0.1):
        moved = trajectory(adafactor(eps2=eps2), x, jnp.asarray(gradients()[:1], dtype))
        np.testing.assert_allclose(rms(moved[0]), 1e-2 * eps2, rtol=0.2)
    np.testing.assert_array_equal(trajectory(adafactor(), x + 1, zeros), 1)


@pytest.mark.slow
def test_hyperparameters_may_be_traced(dtype):
    grads, x = jnp.asarray(gradients(), dtype), jnp.ones((7, 5), dtype)
    options = dict(learning_rate=0.1, b1=0.9, b2=0.99, clipping_threshold=0.5, weight_decay=0.1)
    injected = optax.inject_hyperparams(adafactor, static_args=("min_dim_size_to_factor",))
    found = trajectory(injected(**options), x, grads)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, trajectory(adafactor(**options), x, grads), rtol=1e-5)


@pytest.mark.slow
def test_complex_parameters_are_scaled_by_absolute_squares():
    rng = np.random.default_rng(0)
    size = np.abs(gradients())
    grads = jnp.asarray(size * np.exp(2j * np.pi * rng.uniform(size=size.shape)))
    x = jnp.zeros((7, 5), complex)
    tx = adafactor(scale_parameter=False)
    first = trajectory(tx, x, grads)[0]
    real = trajectory(tx, jnp.zeros((7, 5)), jnp.asarray(size))[0]
    np.testing.assert_allclose(first, real * np.asarray(grads[0]) / size[0], rtol=1e-10)


@pytest.mark.slow
def test_narrow_parameters_have_a_wide_state():
    x = jnp.ones((7, 5), jnp.bfloat16)
    path, states = replay(adafactor(b1=0.9), x, jnp.zeros((2, 7, 5), jnp.bfloat16))
    assert path.dtype == jnp.bfloat16
    kinds = {leaf.dtype for leaf in jax.tree.leaves(states)}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert jnp.all(states[0].v_row > 0)  # 1e-30 would be lost in its square, not here


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("b1", 1.0, ValueError),
        ("b2", -0.1, ValueError),
        ("decay_rate", 0.0, ValueError),
        ("eps1", 0.0, ValueError),
        ("eps2", 0.0, ValueError),
        ("clipping_threshold", 0.0, ValueError),
        ("weight_decay", -1.0, ValueError),
        ("min_dim_size_to_factor", 1, ValueError),
        ("min_dim_size_to_factor", 2.5, TypeError),
    ],
)
def test_bad_input_raises(name, value, error):
    with pytest.raises(error, match=name):
        adafactor(**{name: value})


def test_params_are_needed():
    tx = adafactor()
    with pytest.raises(ValueError, match="params"):
        tx.update(jnp.ones((3, 3)), tx.init(jnp.ones((3, 3))))


def test_relative_step_size():
    counts = np.array([0, 9_998, 40_000 - 1])
    plain, warm = (jax.vmap(relative_step_size(w))(jnp.asarray(counts)) for w in (False, True))
    np.testing.assert_allclose(plain, [1e-2, 1e-2, 1 / 200], rtol=1e-4)
    np.testing.assert_allclose(warm, [1e-6, 9_999e-6, 1 / 200], rtol=1e-6)
