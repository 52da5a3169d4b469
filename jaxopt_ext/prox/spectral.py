"""Functions of singular values, with derivatives that survive repeated ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.spectral import derivative


@jax.custom_jvp
def soft_threshold_singular_values(
    x: Float[Array, "*b m n"], threshold: Float[Array, ""]
) -> Float[Array, "*b m n"]:
    """$U \\max(\\Sigma - t, 0) V^*$."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return (u * jnp.maximum(s - threshold, 0)[..., None, :]) @ vh


@soft_threshold_singular_values.defjvp
def _soft_threshold_jvp(primals, tangents):
    x, t = primals
    x_dot, t_dot = tangents
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    kept = (s > t).astype(s.dtype)
    value = (u * (kept * (s - t))[..., None, :]) @ vh
    return value, soft_threshold_derivative(x, x_dot, t, t_dot, (u * kept[..., None, :]) @ vh)


def soft_threshold_derivative(x, x_dot, t, t_dot, kept):
    """The derivative of soft thresholding, given $U [\\Sigma > t] V^*$."""
    # The singular values of x are eigenvalues of [[0, x], [x*, 0]], where f is odd.
    soft = lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - t, 0)
    slope = lambda v: ((jnp.abs(v) > t) | (t == 0)).astype(v.dtype)
    moved = derivative(_dilate(x), _dilate(x_dot), soft, slope)
    m = x.shape[-2]
    return moved[..., :m, m:] - t_dot * kept


def _dilate(x):
    m, n = x.shape[-2:]
    batch = x.shape[:-2]
    adjoint = jnp.swapaxes(x.conj(), -1, -2)
    top = jnp.concatenate([jnp.zeros((*batch, m, m), x.dtype), x], axis=-1)
    bottom = jnp.concatenate([adjoint, jnp.zeros((*batch, n, n), x.dtype)], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)
