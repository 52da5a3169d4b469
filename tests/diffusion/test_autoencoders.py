"""The convolutional autoencoder against correlations by scipy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxopt_ext import diffusion

MODEL = diffusion.ConvolutionalAutoencoder(3, key=jax.random.key(0), dtype=jnp.float64)
IMAGES = np.random.default_rng(0).normal(size=(5, 8, 6))


def layer(layer, x, stride=1):
    weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
    rows = [
        sum(correlate2d(channel, w, mode="same") for channel, w in zip(x, row, strict=True))
        for row in weight
    ]
    return np.stack(rows)[:, ::stride, ::stride] + bias


def silu(x):
    return x / (1 + np.exp(-x))


def test_both_ways_by_correlations():
    model = eqx.tree_at(lambda m: (m.shift, m.scale), MODEL, (jnp.array(0.3), jnp.array(2.0)))
    x = IMAGES[0]
    hidden = silu(layer(model.down[1], silu(layer(model.down[0], x[None])), 2))
    latent = (layer(model.down[2], hidden)[0] - 0.3) / 2
    np.testing.assert_allclose(model.encode(jnp.asarray(x)), latent, rtol=1e-9, atol=1e-12)
    hidden = silu(layer(model.up[0], (2 * latent + 0.3)[None]))
    hidden = silu(layer(model.up[1], np.kron(hidden, np.ones((1, 2, 2)))))
    image = layer(model.up[2], hidden)[0]
    np.testing.assert_allclose(model.decode(jnp.asarray(latent)), image, rtol=1e-9, atol=1e-12)


def test_standardized_latents_decode_as_before():
    images = jnp.asarray(IMAGES)
    model = MODEL.standardized(images)
    latents = jax.vmap(model.encode)(images)
    np.testing.assert_allclose([latents.mean(), latents.std()], [0, 1], atol=1e-9)
    there = jax.vmap(lambda m, x: m.decode(m.encode(x)), (None, 0))
    np.testing.assert_allclose(there(model, images), there(MODEL, images), rtol=1e-8, atol=1e-12)
    again = model.standardized(images)
    np.testing.assert_allclose([again.shift, again.scale], [model.shift, model.scale], rtol=1e-9)


@pytest.mark.slow
def test_digits_are_encoded_and_decoded():
    autoencoder, data = diffusion.digits_autoencoder(), diffusion.digits()
    images = jnp.asarray(data.test)
    latents = jax.vmap(autoencoder.encode)(images)
    assert latents.shape == (597, 4, 4)
    assert latents.dtype == jnp.float32
    error = np.mean((jax.vmap(autoencoder.decode)(latents) - images) ** 2)
    assert 10 * np.log10(4 / error) > 17
    np.testing.assert_allclose([latents.mean(), latents.std()], [0, 1], atol=0.05)


@pytest.mark.parametrize("shape", [(8,), (7, 8), (8, 7)])
def test_odd_images_are_refused(shape):
    with pytest.raises(ValueError, match="even sides"):
        MODEL.encode(jnp.zeros(shape))
    with pytest.raises(ValueError, match="channels"):
        diffusion.ConvolutionalAutoencoder(0, key=jax.random.key(0))
