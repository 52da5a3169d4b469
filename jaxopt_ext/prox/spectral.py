"""Functions of eigenvalues and singular values, with derivatives that survive repeated ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _apply(vectors, values):
    return (vectors * values[..., None, :]) @ jnp.swapaxes(vectors.conj(), -1, -2)


def _derivative(matrix, direction, fun, slope):
    """Daleckii-Krein: divided differences of `fun` in the eigenbasis of `matrix`."""
    values, vectors = jnp.linalg.eigh(matrix)
    low, high = values[..., :, None], values[..., None, :]
    gap = low - high
    scale = jnp.max(jnp.abs(values), axis=-1, keepdims=True)[..., None]
    apart = jnp.abs(gap) > 10 * jnp.finfo(values.dtype).eps * scale
    middle = slope(0.5 * (low + high))
    quotient = (fun(low) - fun(high)) / jnp.where(apart, gap, 1)
    table = jnp.where(apart, quotient, middle)
    adjoint = jnp.swapaxes(vectors.conj(), -1, -2)
    return vectors @ (table * (adjoint @ direction @ vectors)) @ adjoint


def spectral_function(
    fun: Callable[[Array], Array], slope: Callable[[Array], Array]
) -> Callable[[Float[Array, "*b n n"]], Float[Array, "*b n n"]]:
    """The matrix function $Q f(\\Lambda) Q^*$ of Hermitian matrices, from $f$ and $f'$."""

    @jax.custom_jvp
    def apply(matrix):
        values, vectors = jnp.linalg.eigh(matrix)
        return _apply(vectors, fun(values))

    @apply.defjvp
    def jvp(primals, tangents):
        (matrix,), (direction,) = primals, tangents
        return apply(matrix), _derivative(matrix, direction, fun, slope)

    return apply


positive_part = spectral_function(
    lambda values: jnp.maximum(values, 0), lambda values: (values > 0).astype(values.dtype)
)


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
    # The singular values of x are eigenvalues of [[0, x], [x*, 0]], where f is odd.
    soft = lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - t, 0)
    slope = lambda v: (jnp.abs(v) > t).astype(v.dtype)
    moved = _derivative(_dilate(x), _dilate(x_dot), soft, slope)
    m = x.shape[-2]
    return value, moved[..., :m, m:] - t_dot * (u * kept[..., None, :]) @ vh


def _dilate(x):
    m, n = x.shape[-2:]
    batch = x.shape[:-2]
    adjoint = jnp.swapaxes(x.conj(), -1, -2)
    top = jnp.concatenate([jnp.zeros((*batch, m, m), x.dtype), x], axis=-1)
    bottom = jnp.concatenate([adjoint, jnp.zeros((*batch, n, n), x.dtype)], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)
