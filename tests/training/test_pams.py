"""Quantizers with trained ranges: their derivatives by formulas, integers against simulation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn

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
    clipped = jax.vmap(jax.value_and_grad(lambda a: pams_quantize(jnp.float32(3), a)))
    value, slope = jax.jit(clipped)(np.array([0.0, -100.0, 1e-9], np.float32))
    np.testing.assert_allclose(value, 1e-6, rtol=1e-5)
    assert np.all(slope == 1)


def test_weights_take_the_nearest_level_and_pass_derivatives():
    w, weights = RNG.normal(size=(2, 3, 4))
    found, pull = jax.vjp(jax.jit(lambda w: quantize_weights(w, 3)), w)
    (slope,) = pull(weights)
    m = np.abs(w).max() + 1e-8
    levels = m * np.arange(-3, 4) / 3
    nearest = levels[np.argmin(np.abs(w[..., None] - levels), -1)]
    np.testing.assert_allclose(found, nearest, atol=1e-12)
    np.testing.assert_array_equal(slope, weights)
    assert np.all(quantize_weights(np.zeros((3, 4)), 3) == 0)


@pytest.mark.parametrize("implementation", ["xla", pytest.param("pallas", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_integers_equal_the_simulation(bits, implementation):
    shapes = (4, 16, 3, 3), (4,), (2, 16, 6, 5)
    w, b, x = (jnp.array(RNG.normal(size=s).astype(np.float32)) for s in shapes)
    layer = QuantConv2d(w, b, 1.5, bits)
    # The levels are the same to the bit.
    q = 2 ** (bits - 1) - 1

    @jax.jit
    def all_of(x):
        exact = layer.integer(x, implementation=implementation)
        levels = quantize(x, layer.alpha, bits).astype(jnp.float32) * (layer.alpha / q)
        return layer(x), exact, levels, pams_quantize(x, layer.alpha, bits)

    simulated, exact, *levels = all_of(x)
    assert exact.dtype == jnp.float32
    scale = np.abs(simulated).max()
    np.testing.assert_allclose(exact, simulated, atol=1e-6 * scale, rtol=1e-6)
    np.testing.assert_array_equal(*levels)


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
    x, y = RNG.normal(size=(2, 2, 3, 4, 5))
    transfer = jax.jit(jax.value_and_grad(attention_transfer, (0, 1)))
    assert transfer(x, 3 * x)[0] < 1e-30  # scale does not matter, sample by sample
    single = x.astype(np.float32)
    assert transfer(np.float32(1e-14) * single, single)[0] < 1e-12
    value, (_, by_teacher) = transfer(x, y)
    assert value > 1e-4
    assert np.all(by_teacher == 0)
    assert np.all(transfer(0 * x, y)[1][0] == 0)  # no NaN
    narrow = transfer(np.concatenate([x, x, x], axis=1), x)[0]
    assert narrow < 1e-30  # of as many channels as there are


def small(blocks, features, scale):
    return drawn(lambda: EDSR(blocks, features, scale, key=jax.random.key(0)), scale=0.1)


def test_network():
    network = small(2, 4, 3)
    fine = network.quantized(16)
    x = np.random.default_rng(1).uniform(size=(2, 1, 6, 5))
    assert len(fine.ranges) == 5 + 3

    @jax.jit
    def all_of(x):
        image, features, maxima = network.observe(x)
        assert maxima == []
        image16, _, maxima = fine.observe(x)
        ranges = jnp.stack([jnp.max(m) for m in maxima])
        clipped = jax.vmap(lambda r: fine.with_ranges(list(r)).observe(x)[0])
        # The maxima come in the order of the ranges: clipping there changes nothing, half of it
        # does.
        cuts = clipped(jnp.concatenate([ranges[None], ranges * (1 - 0.7 * jnp.eye(8))]))
        return image, features, image16, cuts, network.up(features)

    image, features, image16, (same, *cuts), y = jax.tree.map(np.asarray, all_of(x))
    assert image.shape == (2, 1, 18, 15)
    assert features.shape == (2, 4, 6, 5)
    np.testing.assert_allclose(image16, image, atol=5e-3)
    np.testing.assert_allclose(same, image, atol=1e-3)
    for i, cut in enumerate(cuts):
        assert np.abs(cut - image).max() > 1e-3, i
    # Pixels, by a loop over the channels that become them.
    pixels = np.zeros((2, 4, 18, 15))
    for c in range(4):
        for s in range(9):
            pixels[:, c, s // 3 :: 3, s % 3 :: 3] = y[:, 9 * c + s]
    np.testing.assert_allclose(network.tail(jnp.asarray(pixels)), image, atol=1e-5)


def test_bytes_by_the_formula():
    network = small(4, 16, 2)
    weights, biases = 9 * 16 * 16 * 9, 9 * 16
    assert network.body_bytes() == 4 * (weights + biases)
    assert network.quantized(8).body_bytes() == weights + 4 * (biases + 9 + 9 + 5)
    assert network.quantized(4).body_bytes() == weights // 2 + 4 * (biases + 9 + 9 + 5)


def test_gradients_reach_ranges_and_weights_with_bits_as_data():
    network = small(1, 2, 2).quantized(jnp.array(4))
    x = np.random.default_rng(1).uniform(size=(3, 1, 4, 4))

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
        g = slope(network.with_ranges([jnp.array(0.1)] * 5), jnp.asarray(bits))
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
