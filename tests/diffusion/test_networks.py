"""Networks of denoisers: their parts against numpy and `lax`, one sample against batches."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import numpy_draws

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import networks

KEY = jax.random.key(0)
SIGMA = jnp.array([0.1, 1.0, 5.0])
NODES = diffusion.Node(SIGMA, jnp.ones(3), SIGMA)
MAKE = {
    "mlp": functools.partial(diffusion.MLPDenoiser, width=6, depth=2),
    "unet": functools.partial(diffusion.UNetDenoiser, channels=(4, 8), attention=True),
    "transformer": functools.partial(diffusion.TransformerDenoiser, width=8, depth=2, heads=2),
}


def shaken(network):
    """With all weights away from zero."""
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    shake = lambda a: a + 0.1 * np.cos(np.arange(a.size)).reshape(a.shape).astype(a.dtype)
    arrays = jax.tree.map(lambda a: jnp.array(shake(np.asarray(a))), arrays)
    return eqx.combine(arrays, rest)


def normal(*shape, dtype=np.float64):
    return jnp.array(np.random.default_rng(0).normal(size=shape).astype(dtype))


def mapped(fun):
    return lambda tree: jax.tree.map(fun, tree)


@functools.cache
def outputs(name):
    """Of a batch at three levels with labels, of one of its samples, and what folds give for it."""
    with numpy_draws():
        network = shaken(MAKE[name]((4, 4), num_classes=3, key=KEY, dtype=jnp.float32))
    x = normal(3, 4, 4, dtype=np.float32)
    labels = jnp.array([0, -1, 2])
    at = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    nodes = jax.tree.map(lambda a: a.astype(jnp.float32), NODES)

    @eqx.filter_jit
    def every(network, x):
        def fold(blocks):
            hidden, condition = network.stem(x[2], at(nodes, 2), labels[2])
            for block in blocks:
                hidden = block(hidden, condition)
            return network.head(hidden, condition)

        return network(x, nodes, labels), fold(network.blocks)

    many, folded = map(np.asarray, every(network, x))
    return network, x, nodes, labels, many, folded, every


@pytest.mark.parametrize("name", MAKE)
def test_a_batch_is_its_samples_and_a_call_is_a_fold(name):
    *_, many, folded, _ = outputs(name)
    assert many.dtype == jnp.float32
    np.testing.assert_allclose(many[2], folded, rtol=1e-4, atol=1e-5)
    assert np.std(many) > 0.01


@pytest.mark.parametrize("name", MAKE)
def test_blocks_levels_and_labels_matter(name):
    network, x, _, _, many, _, every = outputs(name)
    zero = lambda leaf: jnp.array(np.zeros(leaf.shape, leaf.dtype))
    zeros = lambda leaf: zero(leaf) if eqx.is_inexact_array(leaf) else leaf
    without = eqx.tree_at(lambda n: n.blocks[-1], network, replace_fn=mapped(zeros))
    assert np.max(np.abs(every(without, x)[0] - many)) > 1e-3
    same = np.asarray(every(network, jnp.array(np.stack([np.asarray(x)[0]] * 3)))[0])
    assert np.min(np.max(np.abs(same - same[::-1]), axis=(1, 2))[[0, 2]]) > 1e-3


def test_one_level_for_all_and_no_label():
    network, x, nodes, labels, many, *_ = outputs("mlp")

    @eqx.filter_jit
    def both(network, x, nodes, labels):
        one = jax.tree.map(lambda a: a[1], nodes)
        return network(x, one, labels)[1], network(x[1], one)

    for found in both(network, x, nodes, labels):  # -1 is none
        np.testing.assert_allclose(found, many[1], rtol=1e-5, atol=1e-6)


def test_convolution_equals_that_of_lax():

    @jax.jit
    def both(weight, x):
        conv = lambda stride: jax.lax.conv(x[None], weight, (stride,) * 2, [(1, 1), (1, 1)])[0]
        return [(networks.conv3x3(weight, x, stride), conv(stride)) for stride in (1, 2)]

    x = normal(2, 6, 8)
    for found, wanted in both(normal(3, 2, 3, 3), x):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    with numpy_draws():
        layer = networks.Conv3x3(2, 3, key=KEY)
    # On accelerators it is a convolution, on CPUs it is none.
    for platform, there in (("cpu", False), ("cuda", True)):
        text = jax.jit(lambda x: layer(x)).trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == there


def test_features_of_levels():
    fourier = diffusion.FourierFeatures(200, 0.5, key=KEY)
    frequencies = np.asarray(fourier.frequencies)
    assert abs(np.std(frequencies) / np.pi - 1) < 0.15
    wanted = np.concatenate([np.cos(0.3 * frequencies), np.sin(0.3 * frequencies)])
    np.testing.assert_allclose(fourier(jnp.asarray(0.3)), wanted, rtol=1e-12, atol=1e-12)
    assert not jax.tree.leaves(eqx.filter(fourier, eqx.is_inexact_array))  # they are not trained
    steady = diffusion.Sinusoidal(3, 100.0)
    angles = 2.0 / 100 ** (np.arange(3) / 3)
    wanted = np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(steady(jnp.asarray(2.0)), wanted, rtol=1e-12)
    assert fourier.size == 400
    assert steady.size == 6
    node = diffusion.Node(*(jnp.asarray(v) for v in (7.0, 0.5, 2.0)))
    np.testing.assert_allclose(networks.log_ratio(node), 0.25 * np.log(4))
    assert networks.time(node) == 7


@numpy_draws()
def test_first_outputs_are_zero_where_weights_are():
    x = normal(8, 8)
    node = jax.tree.map(lambda a: a[0], NODES)
    network = MAKE["transformer"]((8, 8), key=KEY)
    np.testing.assert_array_equal(eqx.filter_jit(network)(x, node), 0)
    assert not np.any(np.asarray(diffusion.UNetDenoiser((8, 8), key=KEY).last.weight))


def test_labels_filled_in():
    with numpy_draws():
        network = MAKE["mlp"]((2, 2), num_classes=3, key=KEY)

    @eqx.filter_jit
    def both(network, x, labels):
        return diffusion.Labelled(network, labels)(x, NODES), network(x, NODES, labels)

    np.testing.assert_array_equal(*both(network, normal(3, 2, 2), jnp.array([0, 1, 2])))


@numpy_draws()
def test_bad_input():
    network = MAKE["mlp"]((2, 2), key=KEY)
    with pytest.raises(ValueError, match="shape"):
        network(jnp.ones((2, 3)), NODES)
    with pytest.raises(ValueError, match="label"):
        network(jnp.ones((2, 2)), jax.tree.map(lambda a: a[0], NODES), 0)
    with pytest.raises(ValueError, match="halved"):
        MAKE["unet"]((3, 4), key=KEY)
    with pytest.raises(ValueError, match="two sides"):
        MAKE["unet"]((4,), key=KEY)
    with pytest.raises(ValueError, match="patch"):
        diffusion.TransformerDenoiser((5, 4), key=KEY)
    with pytest.raises(ValueError, match="heads"):
        diffusion.TransformerDenoiser((4, 4), width=6, key=KEY)
    with pytest.raises(ValueError, match="width"):
        diffusion.MLPDenoiser((4, 4), width=0, key=KEY)
    with pytest.raises(ValueError, match="bandwidth"):
        diffusion.FourierFeatures(4, 0.0, key=KEY)
