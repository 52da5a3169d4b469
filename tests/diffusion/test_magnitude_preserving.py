"""Layers that keep magnitudes: against numpy, and their sizes on random inputs."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn, numpy_draws
from scipy import integrate, signal, stats

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import edm2, magnitude_preserving as mp

KEY = jax.random.key(0)
WIDTH = 256


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def hat(weight):
    """With rows of root mean square 1."""
    w = np.asarray(weight)
    axes = tuple(range(1, w.ndim))
    return w / (1e-4 + np.sqrt(np.mean(w**2, axis=axes, keepdims=True)))


def test_layers_are_those_of_numpy():
    x, image = normal(5), normal(2, 4, 6)
    linear = drawn(functools.partial(diffusion.MPLinear, 5, 3, key=KEY))
    convs = [drawn(functools.partial(diffusion.MPConv, 2, 3, side, key=KEY)) for side in (1, 3)]

    @eqx.filter_jit
    def outputs(linear, convs, x, image):
        return {
            "linear": linear(x, 0.7),
            "convolutions": [layer(image, 0.7) for layer in convs],
            "pixels": diffusion.pixel_norm(image),
            "cat": diffusion.mp_cat(image, image[:1], 0.3),
            "sum": diffusion.mp_sum(x, x[::-1], 0.3),
            "silu": diffusion.mp_silu(x),
        }

    found = outputs(linear, convs, jnp.array(x), jnp.array(image))
    wanted = 0.7 / np.sqrt(5) * hat(linear.weight) @ x
    np.testing.assert_allclose(found["linear"], wanted, rtol=1e-12)
    for side, layer, out in zip((1, 3), convs, found["convolutions"], strict=True):
        correlate = lambda a, k: signal.correlate2d(a, k, mode="same")
        wanted = [sum(map(correlate, image, kernels)) for kernels in hat(layer.weight)]
        wanted = np.stack(wanted) * 0.7 / np.sqrt(2 * side**2)
        np.testing.assert_allclose(out, wanted, rtol=1e-9, atol=1e-12)
    wanted = image / (1e-4 + np.sqrt(np.mean(image**2, axis=0)))
    np.testing.assert_allclose(found["pixels"], wanted, rtol=1e-12)
    a, b = image, image[:1]
    scale = np.sqrt(3 / (0.7**2 + 0.3**2))
    wanted = np.concatenate([scale * 0.7 / np.sqrt(2) * a, scale * 0.3 * b])
    np.testing.assert_allclose(found["cat"], wanted, rtol=1e-12)
    wanted = (0.7 * x + 0.3 * x[::-1]) / np.sqrt(0.58)
    np.testing.assert_allclose(found["sum"], wanted, rtol=1e-12)
    # The size of silu of a normal number, by quadrature.
    square = lambda x: (x / (1 + np.exp(-x))) ** 2 * stats.norm.pdf(x)
    size = np.sqrt(integrate.quad(square, -12, 12)[0])
    np.testing.assert_allclose(size, 0.596, atol=1e-3)
    np.testing.assert_allclose(found["silu"], x / (1 + np.exp(-x)) / 0.596, rtol=1e-12)


def test_unit_inputs_give_unit_outputs():
    """Every layer, within 3 % at width 256."""

    make = {"key": jax.random.key(7), "dtype": jnp.float32}
    with numpy_draws(7):
        linear = diffusion.MPLinear(WIDTH, WIDTH, **make)
        fourier = diffusion.MPFourier(WIDTH, **make)
        convolution = mp.MPConv(WIDTH, 64, **make)
        layer = edm2.MPLayer(WIDTH, 8, **make)
        block = edm2.MPBlock(WIDTH, WIDTH, 8, ascending=False, **make)
    layers = linear, fourier, convolution, layer, block
    shapes = (500, WIDTH), (500, WIDTH), (4, WIDTH, 6, 6), (8,)
    inputs = [jnp.array(normal(*shape, seed=i, dtype=np.float32)) for i, shape in enumerate(shapes)]

    @eqx.filter_jit
    def outputs(layers, x, y, images, condition):
        linear, fourier, convolution, layer, block = layers
        return {
            "linear": jax.vmap(linear)(x),
            "silu": diffusion.mp_silu(x),
            "sum": diffusion.mp_sum(x, y, 0.3),
            "cat": jax.vmap(lambda a, b: diffusion.mp_cat(a, b[:64], 0.5))(x, y),
            "fourier": jax.vmap(fourier)(x[:, 0]),
            "pixels": jax.vmap(diffusion.pixel_norm)(3 * x),
            "layer": jax.vmap(lambda a: layer(a, condition))(x),
            "convolution": jax.vmap(convolution)(images)[..., 1:-1, 1:-1],
            "block": jax.vmap(lambda a: block(a, condition))(images)[..., 2:-2, 2:-2],
        }

    for name, value in outputs(layers, *inputs).items():
        assert abs(rms(value) - 1) < 0.03, (name, rms(value))


def test_weights_count_by_their_direction_only():
    network = drawn(functools.partial(diffusion.EDM2MLP, (3, 3), 16, 2, key=KEY))
    gains = lambda n: [n.gain, *(block.gain for block in n.blocks)]
    network = eqx.tree_at(gains, network, [jnp.array(0.8), jnp.array(0.5), jnp.array(0.5)])
    x, sigma = normal(4, 3, 3), np.linspace(0.1, 3, 4)
    node = diffusion.Node(sigma, np.ones(4), sigma)
    weights = lambda tree: [n for n in jax.tree.leaves(tree, is_leaf=is_layer) if is_layer(n)]
    is_layer = lambda n: isinstance(n, diffusion.MPLinear)
    ten = lambda w: jnp.array(10 * np.asarray(w))
    every = lambda n: [layer.weight for layer in weights(n)]
    larger = eqx.tree_at(every, network, replace_fn=ten)

    @eqx.filter_jit
    def both(network):
        loss = lambda network: jnp.sum(network(x, node) ** 2)
        return network(x, node), eqx.filter_grad(loss)(network)

    value, gradient = both(network)
    assert rms(value) > 0.5
    np.testing.assert_allclose(both(larger)[0], value, atol=1e-3)
    forced = eqx.filter_jit(diffusion.forced_normalisation)(larger)
    np.testing.assert_allclose(both(forced)[0], value, atol=1e-3)
    for layer, slope in zip(weights(forced), weights(gradient), strict=True):
        size = layer.weight.shape[1]
        norms = np.linalg.norm(layer.weight, axis=1)
        np.testing.assert_allclose(norms, np.sqrt(size), rtol=2e-4)
        assert np.any(np.asarray(slope.weight))
    # A step along the gradient changes no weight's length to first order.
    for layer, slope in zip(weights(network), weights(gradient), strict=True):
        w, s = np.asarray(layer.weight), np.asarray(slope.weight)
        along = np.sum(w * s, axis=1)
        scale = np.linalg.norm(w, axis=1) * np.linalg.norm(s, axis=1)
        assert np.all(np.abs(along) < 1e-3 * scale + 1e-12)
    assert not jax.tree.leaves(gradient.embedding.fourier)


MAKE = {
    "mlp": functools.partial(diffusion.EDM2MLP, width=8, depth=2),
    "unet": functools.partial(diffusion.EDM2UNet, channels=(4, 8), attention=True, heads=2),
}


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_networks_fold_and_take_labels(name):
    with numpy_draws():
        network = MAKE[name]((4, 4), num_classes=3, key=KEY)
    x, sigma = jnp.array(normal(3, 4, 4)), jnp.array([0.1, 1.0, 5.0])
    nodes, labels = diffusion.Node(sigma, jnp.ones(3), sigma), jnp.array([0, -1, 2])
    gains = [m for m in jax.tree.leaves(network, is_leaf=has_gain) if has_gain(m)]
    assert len(gains) == len(network.blocks) if name == "mlp" else gains
    fresh = network
    network = eqx.tree_at(lambda n: n.gain, network, jnp.ones(()))
    shaken = jax.tree.map(
        lambda m: eqx.tree_at(lambda m: m.gain, m, jnp.ones(())) if has_gain(m) else m,
        network,
        is_leaf=has_gain,
    )

    @eqx.filter_jit
    def every(network, x, nodes, labels):
        hidden, condition = network.stem(x[2], jax.tree.map(lambda a: a[2], nodes), labels[2])
        for block in network.blocks:
            hidden = block(hidden, condition)
        same = network(jnp.stack([x[0]] * 3), nodes, labels)
        return network(x, nodes, labels), network.head(hidden, condition), same

    outputs = lambda network: map(np.asarray, every(network, x, nodes, labels))
    assert not np.any(next(outputs(fresh)))  # a gain of zero
    many, folded, same = outputs(shaken)
    np.testing.assert_allclose(many[2], folded, rtol=1e-9, atol=1e-12)
    assert 0.5 < rms(many) < 1.5
    assert np.max(np.abs(same - same[1])) > 1e-2
    *_, steady = outputs(network)  # with gains of zero the condition is not looked at
    np.testing.assert_allclose(steady, steady[[1, 1, 1]], rtol=1e-9, atol=1e-12)


def has_gain(node):
    return isinstance(node, edm2.MPLayer | edm2.MPBlock)


def test_attention_is_that_of_numpy():
    layer = drawn(functools.partial(edm2.MPAttention, 4, 2, key=KEY))
    x = normal(4, 2, 3)
    mixed = lambda conv, x: np.tensordot(hat(conv.weight)[:, :, 0, 0], x, 1) / 2
    parts = mixed(layer.project, x).reshape(2, 2, 3, 6)  # heads, channels, which, pixels
    out = []
    for head in parts:
        q, k, v = (
            p / (1e-4 + np.sqrt(np.mean(p**2, axis=0, keepdims=True))) for p in head.swapaxes(0, 1)
        )
        scores = np.exp(q.T @ k / np.sqrt(2))
        out.append(v @ (scores / scores.sum(axis=1, keepdims=True)).T)
    y = mixed(layer.out, np.concatenate(out).reshape(4, 2, 3))
    wanted = (0.7 * x + 0.3 * y) / np.sqrt(0.58)
    np.testing.assert_allclose(eqx.filter_jit(layer)(jnp.array(x)), wanted, rtol=1e-9)


def test_bad_input():
    with pytest.raises(ValueError, match="side"):
        diffusion.MPConv(2, 3, 2, key=KEY)
    with pytest.raises(ValueError, match="halved"):
        diffusion.EDM2UNet((3, 4), key=KEY)
    with pytest.raises(ValueError, match="heads"):
        diffusion.EDM2UNet((4, 4), attention=True, heads=3, key=KEY)
    with pytest.raises(ValueError, match="width"):
        diffusion.EDM2MLP((4, 4), 0, key=KEY)
