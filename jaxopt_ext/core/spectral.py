"""Functions of eigenvalues, with derivatives that survive repeated ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _apply(vectors, values):
    return (vectors * values[..., None, :]) @ jnp.swapaxes(vectors.conj(), -1, -2)


def derivative(matrix, direction, fun, slope):
    """Daleckii-Krein: divided differences of `fun` in the eigenbasis of `matrix`.

    `fun` is piecewise linear. Where two eigenvalues have one sign and one slope, that slope is
    their divided difference, with nothing cancelled however close they are.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    low, high = values[..., :, None], values[..., None, :]
    gap = low - high
    together = (slope(low) == slope(high)) & (jnp.sign(low) == jnp.sign(high))
    quotient = (fun(low) - fun(high)) / jnp.where(gap == 0, 1, gap)
    table = jnp.where(together, slope(low), quotient)
    adjoint = jnp.swapaxes(vectors.conj(), -1, -2)
    return vectors @ (table * (adjoint @ direction @ vectors)) @ adjoint


@jax.custom_jvp
def positive_part(matrix: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
    """$Q \\max(\\Lambda, 0) Q^*$ of Hermitian matrices."""
    values, vectors = jnp.linalg.eigh(matrix)
    return _apply(vectors, jnp.maximum(values, 0))


@positive_part.defjvp
def _positive_part_jvp(primals, tangents):
    (matrix,), (direction,) = primals, tangents
    slope = lambda values: (values > 0).astype(values.dtype)
    moved = derivative(matrix, direction, lambda values: jnp.maximum(values, 0), slope)
    return positive_part(matrix), moved
