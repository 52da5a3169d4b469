"""A small convolutional autoencoder, for diffusion models of latents."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks
from .networks import Conv3x3


class ConvolutionalAutoencoder(eqx.Module):
    """Images of one channel and even sides, to latents of half the sides and back.

    Three convolutions each way, of which the second changes the resolution. Latents are shifted and
    scaled by two numbers, so that after `standardized` they have mean 0 and variance 1.

    **Arguments:**

    - `channels`: of the hidden layers.
    - `key`: random key.
    - `dtype`: of the weights; the default type if left out.

    **Raises:** `ValueError` if `channels` is no positive number.

    **Reference:** Rombach, Blattmann, Lorenz, Esser, Ommer, High-Resolution Image Synthesis with
    Latent Diffusion Models, 2022, arXiv:2112.10752.
    """

    down: tuple[Conv3x3, Conv3x3, Conv3x3]
    up: tuple[Conv3x3, Conv3x3, Conv3x3]
    shift: Float[Array, ""]
    scale: Float[Array, ""]

    def __init__(self, channels: int = 8, *, key: PRNGKeyArray, dtype: Any = None):
        checks.count("channels", channels)
        keys = jax.random.split(key, 6)
        sizes = [(1, channels, 1), (channels, channels, 2), (channels, 1, 1)]
        layer = lambda size, key: Conv3x3(*size, key=key, dtype=dtype)
        self.down = tuple(map(layer, sizes, keys[:3]))  # pyright: ignore[reportAttributeAccessIssue]
        sizes = [(inputs, outputs, 1) for inputs, outputs, _ in sizes]
        self.up = tuple(map(layer, sizes, keys[3:]))  # pyright: ignore[reportAttributeAccessIssue]
        dtype = self.down[0].weight.dtype
        self.shift, self.scale = jnp.zeros((), dtype), jnp.ones((), dtype)

    def encode(self, x: Float[Array, "h w"]) -> Float[Array, "h/2 w/2"]:
        """The latent of an image."""
        if x.ndim != 2 or x.shape[0] % 2 or x.shape[1] % 2:
            raise ValueError(f"x must be an image of even sides, got shape {x.shape}")
        hidden = jax.nn.silu(self.down[0](x[None]))
        latent = self.down[2](jax.nn.silu(self.down[1](hidden)))[0]
        return (latent - self.shift) / self.scale

    def decode(self, z: Float[Array, "h w"]) -> Float[Array, "2*h 2*w"]:
        """The image of a latent."""
        hidden = jax.nn.silu(self.up[0]((self.scale * z + self.shift)[None]))
        hidden = jnp.repeat(jnp.repeat(hidden, 2, axis=1), 2, axis=2)
        return self.up[2](jax.nn.silu(self.up[1](hidden)))[0]

    def standardized(self, images: Float[Array, "n h w"]) -> "ConvolutionalAutoencoder":
        """The same with latents of these images that have mean 0 and variance 1, all together."""
        latents = jax.vmap(self.encode)(images) * self.scale + self.shift
        numbers = jnp.mean(latents), jnp.std(latents)
        return eqx.tree_at(lambda s: (s.shift, s.scale), self, numbers)
