"""Quantizers with trained ranges: their derivatives by formulas, integers against simulation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext.training import (
    EDSR,
    AlphaEMA,
    QuantConv2d,
    attention_transfer,
    pams_quantize,
    quantize_weights,
)
from jaxopt_ext_kernels import quantize

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("clip", [True, False])
def test_derivatives_by_the_formulas(clip, dtype):
    x = np.concatenate([RNG.normal(size=190), [0, 1.3, -1.3, 5, -5], 1.3 * np.arange(-2, 3) / 7])
    x = x.astype(dtype)
    alpha, q, bits = np.asarray(1.3, dtype), 7, 4

    @jax.jit
    @jax.vmap
    def both(x):
        fun = lambda x, a: pams_quantize(x, a, bits, clip=clip)
        value, slopes = jax.value_and_grad(fun, (0, 1))(x, jnp.asarray(alpha))
        return (
            value,
            *slopes,
            *(jax.jvp(fun, (x, alpha), (s, t))[1] for s, t in np.eye(2, dtype=dtype)),
        )

    value, by_x, by_alpha, *forward = both(x)
    assert value.dtype == dtype
    inside = (np.abs(x) < alpha) | (not clip)
    level = np.round(np.where(inside, x, np.sign(x) * alpha) * (q / alpha))
    eps = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(value, level * alpha / q, rtol=eps)
    np.testing.assert_array_equal(by_x, inside)
    wanted = np.where(inside, level / q - x / alpha, np.sign(x))
    np.testing.assert_allclose(by_alpha, wanted, atol=eps)
    np.testing.assert_allclose(by_alpha[-5:], 0, atol=eps)  # on a level
    for a, b in zip(forward, (by_x, by_alpha), strict=True):
        np.testing.assert_allclose(a, b, atol=eps)


def test_the_range_stays_positive_and_can_come_back():
    for alpha in (0.0, -100.0, 1e-9):
        value, slope = jax.value_and_grad(lambda a: pams_quantize(jnp.float32(3), a))(
            jnp.float32(alpha)
        )
        np.testing.assert_allclose(value, 1e-6, rtol=1e-5)
        assert slope == 1


def test_weights_take_the_nearest_level_and_pass_derivatives():
    w = jnp.asarray(RNG.normal(size=(3, 4)))
    weights = jnp.cos(jnp.arange(12.0).reshape(3, 4))
    slope = jax.grad(lambda w: jnp.sum(weights * quantize_weights(w, 3)))(w)
    m = np.abs(w).max() + 1e-8
    levels = m * np.arange(-3, 4) / 3
    nearest = levels[np.argmin(np.abs(w[..., None] - levels), -1)]
    np.testing.assert_allclose(quantize_weights(w, 3), nearest, atol=1e-12)
    np.testing.assert_array_equal(slope, weights)
    assert np.all(quantize_weights(jnp.zeros(3)) == 0)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("pallas", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_integers_equal_the_simulation(bits, implementation):
    shapes = (4, 16, 3, 3), (4,), (2, 16, 6, 5)
    w, b, x = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in shapes)
    layer = QuantConv2d(w, b, 1.5, bits)
    simulated = jax.jit(lambda x: layer(x))(x)
    exact = layer.integer(x, implementation=implementation)
    assert exact.dtype == jnp.float32
    scale = np.abs(simulated).max()
    np.testing.assert_allclose(exact, simulated, atol=1e-6 * scale, rtol=1e-6)
    # The levels are the same to the bit.
    q = 2 ** (bits - 1) - 1
    levels = quantize(x, layer.alpha, bits).astype(jnp.float32) * (layer.alpha / q)
    np.testing.assert_array_equal(levels, pams_quantize(x, layer.alpha, bits))


def test_running_mean_of_the_maxima():
    ema = AlphaEMA(0.9)
    assert ema.alpha == 10
    x = RNG.normal(size=(3, 4, 2, 2))
    batch = np.mean([np.abs(sample).max() for sample in x])
    ema = ema.update(x)
    np.testing.assert_allclose(ema.alpha, batch)
    ema = jax.jit(lambda e: e.update(2 * x))(ema)
    np.testing.assert_allclose(ema.alpha, 0.9 * batch + 0.1 * 2 * batch)
    np.testing.assert_allclose(AlphaEMA(0.0).update(x).update(3 * x).alpha, 3 * batch)


def test_transfer():
    x = jnp.asarray(RNG.normal(size=(2, 3, 4, 5)))
    assert attention_transfer(x, 3 * x) < 1e-30  # scale does not matter, sample by sample
    single = x.astype(jnp.float32)
    assert attention_transfer(1e-14 * single, single) < 1e-12
    y = jnp.asarray(RNG.normal(size=(2, 1, 4, 5)))
    assert attention_transfer(x, y) > 1e-4
    assert np.all(jax.grad(attention_transfer, 1)(x, y) == 0)
    assert np.all(jax.grad(attention_transfer)(0 * x, y) == 0)  # no NaN


def test_network():
    key = jax.random.key(0)
    network = EDSR(2, 4, 3, key=key)
    x = jax.random.uniform(jax.random.key(1), (2, 1, 6, 5))
    image, features, maxima = eqx.filter_jit(EDSR.observe)(network, x)
    assert image.shape == (2, 1, 18, 15)
    assert features.shape == (2, 4, 6, 5)
    assert maxima == []
    fine = network.quantized(16)
    image16, _, maxima = eqx.filter_jit(EDSR.observe)(fine, x)
    assert len(maxima) == len(fine.ranges) == 5 + 3
    np.testing.assert_allclose(image16, image, atol=5e-3)
    # The maxima come in the order of the ranges: clipping there changes nothing, half of it does.
    ranges = [jnp.max(m) for m in maxima]
    same = eqx.filter_jit(EDSR.observe)(fine.with_ranges(ranges), x)[0]
    np.testing.assert_allclose(same, image, atol=1e-3)
    for i, r in enumerate(ranges):
        cut = [0.3 * r if i == j else s for j, s in enumerate(ranges)]
        model = fine.with_ranges(cut)
        assert np.abs(eqx.filter_jit(EDSR.observe)(model, x)[0] - image).max() > 1e-3, i
    # Pixels, by a loop over the channels that become them.
    h = np.asarray(features)
    y = np.asarray(network.up(features))
    pixels = np.zeros((2, 4, 18, 15))
    for c in range(4):
        for s in range(9):
            pixels[:, c, s // 3 :: 3, s % 3 :: 3] = y[:, 9 * c + s]
    np.testing.assert_allclose(network.tail(jnp.asarray(pixels)), image, atol=1e-5)
    assert h.shape[1] == 4


def test_bytes_by_the_formula():
    network = EDSR(4, 16, 2, key=jax.random.key(0))
    weights, biases = 9 * 16 * 16 * 9, 9 * 16
    assert network.body_bytes() == 4 * (weights + biases)
    assert network.quantized(8).body_bytes() == weights + 4 * (biases + 9 + 9 + 5)
    assert network.quantized(4).body_bytes() == weights // 2 + 4 * (biases + 9 + 9 + 5)


def test_gradients_reach_ranges_and_weights_with_bits_as_data():
    network = EDSR(1, 2, 2, key=jax.random.key(0)).quantized(jnp.asarray(4))
    x = jax.random.uniform(jax.random.key(1), (3, 1, 4, 4))

    @eqx.filter_jit
    def slope(network, bits):
        network = eqx.tree_at(
            lambda n: (n.bits, *(c.bits for b in n.blocks for c in b), n.last.bits),
            network,
            (bits,) * 4,
        )
        score = lambda n: jnp.sum(jax.vmap(lambda x: n(x[None]))(x) ** 2)
        return eqx.filter_grad(score)(network)

    for bits in (4, 8):
        g = slope(network.with_ranges([jnp.float32(0.1)] * 5), jnp.asarray(bits))
        assert all(np.any(a) for a in g.ranges)
        assert np.any(g.blocks[0][0].weight)


def test_bad_input_is_named():
    w, b = jnp.ones((2, 3, 3, 3)), jnp.ones(2)
    x = jnp.ones((2, 3, 4, 4))
    cases = [
        (lambda: pams_quantize(x, 1.0, 1), "1"),
        (lambda: pams_quantize(x, 1.0, 25), "25"),
        (lambda: AlphaEMA(1.0), "decay"),
        (lambda: AlphaEMA(initial=0.0), "initial"),
        (lambda: QuantConv2d(w, b, -1.0), "-1.0"),
        (lambda: QuantConv2d(w, b[:1]), r"\(1,\)"),
        (lambda: QuantConv2d(w[..., :2, :2], b), r"\(2, 3, 2, 2\)"),
        (lambda: attention_transfer(x, x[:1]), r"\(1, 3, 4, 4\)"),
        (lambda: EDSR(0, 4, 2, key=jax.random.key(0)), "blocks"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
