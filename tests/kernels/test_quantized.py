"""8-bit integers against 64-bit ones of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext_kernels import int8_conv2d, int8_matmul, quantize
from jaxopt_ext_kernels.testing import Int8Conv2dCase

RNG = np.random.default_rng(0)


def integers(*shape):
    return jnp.asarray(RNG.integers(-128, 128, shape), jnp.int8)


@pytest.mark.always(2)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_takes_the_nearest_level(bits):
    q = 2 ** (bits - 1) - 1
    x = RNG.normal(size=200).astype(np.float32)
    x[:4] = np.inf, -np.inf, np.nan, 0
    alpha = np.float32(1.25)
    found = jax.jit(lambda x: quantize(x, jnp.asarray(alpha), bits))(x)
    assert found.dtype == jnp.int8
    np.testing.assert_array_equal(found[:4], [q, -q, 0, 0])
    levels = np.arange(-q, q + 1)
    nearest = levels[np.argmin(np.abs(x[4:, None] - alpha * levels / q), axis=1)]
    np.testing.assert_array_equal(found[4:], nearest)


def test_halves_go_to_even():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5])
    np.testing.assert_array_equal(quantize(x, jnp.asarray(127.0)), [0, 2, 2, 0, -2, 126])


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_extreme_sums_and_batches(implementation):
    x = jnp.full((2, 3, 2000), -128, jnp.int8)
    run = jax.jit(jax.vmap(lambda x: int8_matmul(x, x.T, implementation=implementation)))
    np.testing.assert_array_equal(run(x), 128 * 128 * 2000)


CONVOLUTIONS = [((2, 3, 7, 6), (4, 3, 3, 3), 2, 1), ((1, 130, 5, 5), (2, 130, 3, 3), 1, 1)]
MORE = [((1, 2, 9, 8), (3, 2, 5, 1), 3, 0), ((3, 2, 2, 2), (1, 2, 4, 4), 1, 2)]


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize(
    ("images", "filters", "stride", "padding"),
    [*CONVOLUTIONS, *(pytest.param(*c, marks=pytest.mark.slow) for c in MORE)],
)
def test_convolutions_are_exact(images, filters, stride, padding, implementation):
    first = integers(*images), integers(*filters)
    # The largest sums that single precision holds, and beyond: -128 everywhere.
    for x, w in (first, [jnp.full_like(a, -128) for a in first]):
        found = int8_conv2d(x, w, stride, padding, implementation=implementation)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, Int8Conv2dCase(stride, padding).reference(x, w))


@pytest.mark.slow
def test_in_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    x, w = integers(4, 6), integers(6, 3)
    run = jax.shard_map(
        int8_matmul, mesh=mesh, in_specs=(jax.P("d"), jax.P()), out_specs=jax.P("d")
    )
    np.testing.assert_array_equal(run(x, w), np.asarray(x, int) @ np.asarray(w, int))


def test_bad_input_is_named():
    x, w, images = integers(3, 4), integers(4, 2), integers(1, 2, 4, 4)
    cases = [
        (lambda: quantize(jnp.ones(3), jnp.ones(()), 9), ValueError, "9"),
        (lambda: quantize(jnp.ones(3), jnp.ones(()), 1), ValueError, "1"),
        (lambda: quantize(jnp.ones(3, int), jnp.ones(())), TypeError, "int"),
        (lambda: int8_matmul(x, x), ValueError, r"\(3, 4\) times \(3, 4\)"),
        (lambda: int8_matmul(x.astype(int), w), TypeError, "x must be"),
        (lambda: int8_matmul(x, w, implementation="cuda"), ValueError, "'cuda'"),
        (lambda: int8_conv2d(images, integers(2, 3, 3, 3)), ValueError, r"\(2, 3, 3, 3\)"),
        (lambda: int8_conv2d(images, integers(2, 2, 5, 5)), ValueError, r"\(2, 2, 5, 5\)"),
        (lambda: int8_conv2d(images, integers(2, 2, 3, 3), 0), ValueError, "got 0"),
        (lambda: int8_conv2d(images, integers(2, 2, 3, 3), 1, -1), ValueError, "-1"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
