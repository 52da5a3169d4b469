"""Gaussian mixtures, whose noisy scores are known: the exact test bed of samplers."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks
from .denoiser import Data, Denoiser
from .schedules import Node


class GaussianMixture(eqx.Module):
    """$x_0 \\sim \\sum_k w_k N(\\mu_k, c_k^2 I)$.

    **Arguments:**

    - `means`: $\\mu$, shape `(k, d)`.
    - `scales`: $c > 0$, shape `(k,)`.
    - `weights`: $w > 0$, shape `(k,)`; normalized. Equal if left out.

    **Raises:** `ValueError` if shapes do not fit or numbers are not positive.
    """

    means: Float[Array, "k d"]
    scales: Float[Array, " k"]
    weights: Float[Array, " k"]

    def __init__(self, means, scales, weights=None):
        self.means, self.scales = jnp.asarray(means), jnp.asarray(scales)
        if self.means.ndim != 2 or self.scales.shape != self.means.shape[:1]:
            raise ValueError(
                f"means and scales do not fit: shapes {self.means.shape} and {self.scales.shape}"
            )
        weights = jnp.ones_like(self.scales) if weights is None else jnp.asarray(weights)
        if weights.shape != self.scales.shape:
            raise ValueError(f"weights must have shape {self.scales.shape}, got {weights.shape}")
        checks.positive("scales", self.scales)
        checks.positive("weights", weights)
        self.weights = weights / jnp.sum(weights)

    def data(self, x: Float[Array, "*n d"], node: Node) -> Float[Array, "*n d"]:
        """$E[x_0 \\mid x_t = x]$."""
        variances = node.alpha**2 * self.scales**2 + node.sigma**2
        gaps = x[..., None, :] - node.alpha * self.means
        squares = jnp.sum(gaps**2, -1)
        logits = -0.5 * squares / variances - 0.5 * x.shape[-1] * jnp.log(variances)
        shares = jax.nn.softmax(logits + jnp.log(self.weights))
        pulled = self.means + (node.alpha * self.scales**2 / variances)[:, None] * gaps
        return jnp.sum(shares[..., None] * pulled, -2)

    def denoiser(self) -> Denoiser:
        """The exact model."""
        return Denoiser(self.data, Data())

    def sample(self, key: PRNGKeyArray, num: int) -> Float[Array, "num d"]:
        """Independent draws."""
        which, noise = jax.random.split(key)
        chosen = jax.random.choice(which, self.scales.size, (num,), p=self.weights)
        z = jax.random.normal(noise, (num, self.means.shape[1]), self.means.dtype)
        return self.means[chosen] + self.scales[chosen, None] * z

    def moments(self) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
        """Mean and covariance."""
        mean = self.weights @ self.means
        spread = self.means - mean
        inner = jnp.sum(self.weights * self.scales**2) * jnp.eye(self.means.shape[1])
        return mean, (spread.T * self.weights) @ spread + inner
