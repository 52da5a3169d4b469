import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext.optimizers.quantize import (
    block_positions,
    dequantize_4bit,
    index_dtype,
    quantize_4bit,
    topk_blocks,
)


def numpy_quantized(x, bucket):
    """The value that stands for each entry: the nearest of 16 levels of its bucket."""
    out, units = np.empty_like(x), np.empty_like(x)
    for start in range(0, len(x), bucket):
        part = x[start : start + bucket]
        unit = (part.max() - part.min()) / 15
        code = np.zeros_like(part)
        if unit > 0:
            code = np.clip(np.floor((part - part.min()) / unit + 0.5), 0, 15)
        out[start : start + bucket] = part.min() + code * unit
        units[start : start + bucket] = unit
    return out, units


@pytest.mark.always(3)
@pytest.mark.parametrize(
    ("size", "bucket"), [(1, 1), (1, 8), (2, 1), (7, 3), (8, 8), (33, 20), (64, 8), (65, 64)]
)
def test_round_trip_equals_a_numpy_loop(size, bucket):
    x = np.random.default_rng(size).normal(size=size)
    quantized = jax.jit(lambda x: quantize_4bit(x, bucket))(x)
    assert quantized.codes.shape == ((size + 1) // 2,)
    assert quantized.low.shape == (-(-size // bucket),)
    got = jax.jit(lambda q: dequantize_4bit(q, size, bucket))(quantized)
    want, _ = numpy_quantized(x, bucket)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_error_is_at_most_half_a_level_in_float32():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 3
    got = dequantize_4bit(quantize_4bit(jnp.asarray(x), 64), 1000, 64)
    assert got.dtype == jnp.float32
    _, units = numpy_quantized(x, 64)
    assert np.all(np.abs(got - x) <= units / 2 + 1e-6)


@pytest.mark.always(2)
@pytest.mark.parametrize("value", [0.0, -3.7, 1e-38, 3e38])
def test_constant_buckets_are_exact(value):
    x = jnp.full(20, value, jnp.float32)
    for key in (None, jax.random.key(0)):
        quantized = jax.jit(lambda x, key=key: quantize_4bit(x, 8, key))(x)
        assert np.all(quantized.codes == 0)
        assert np.all(dequantize_4bit(quantized, 20, 8) == x)


@pytest.mark.slow
def test_stochastic_rounding_is_unbiased_and_takes_neighbouring_levels():
    x = jnp.asarray(np.random.default_rng(1).normal(size=37))
    run = lambda key: dequantize_4bit(quantize_4bit(x, 16, key), 37, 16)
    draws = np.asarray(jax.vmap(run)(jax.random.split(jax.random.key(0), 4000)))
    _, units = numpy_quantized(np.asarray(x), 16)
    assert np.all(np.abs(draws - x) <= units + 1e-12)
    assert np.all(np.abs(draws.mean(0) - x) < 5 * units / 2 / np.sqrt(4000) + 1e-12)


def test_empty():
    quantized = quantize_4bit(jnp.zeros(0), 8)
    assert dequantize_4bit(quantized, 0, 8).shape == (0,)
    assert topk_blocks(jnp.zeros(0), 8, 0.1)[0].shape == (0,)


@pytest.mark.always(3)
@pytest.mark.parametrize(
    ("size", "block", "fraction"),
    [(1, 1, 0.01), (1, 9, 1.0), (24, 8, 0.3), (25, 8, 0.01), (31, 8, 0.3), (60, 25, 1.0)],
)
def test_topk_equals_sorting_each_block(size, block, fraction):
    x = np.random.default_rng(size).normal(size=size)

    @jax.jit
    def run(x):
        relative, values = topk_blocks(x, block, fraction)
        return relative, block_positions(relative, size, block, fraction), values

    relative, positions, values = run(x)
    assert relative.dtype == jnp.int16
    positions = np.asarray(positions)
    expected = []
    for start in range(0, size, block):
        part = np.abs(x[start : start + block])
        keep = int(np.ceil(fraction * len(part)))
        expected += (start + np.argsort(-part)[:keep]).tolist()
    assert sorted(positions.tolist()) == sorted(expected)
    np.testing.assert_array_equal(values, x[positions])


def test_index_dtype():
    assert index_dtype(32768) == jnp.int16
    assert index_dtype(32769) == jnp.int32
