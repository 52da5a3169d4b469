"""Sizes of arrays whose squares would vanish or overflow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Axes = int | tuple[int, ...] | None


def unit(x: Float[Array, "..."], axis: Axes = None) -> Float[Array, "..."]:
    """A power of two within a factor of two of the largest entry, so that a quotient by it is
    exact; 1 where all are zero or one is not finite. A constant to derivatives.

    **Arguments:**

    - `x`: the array.
    - `axis`: over which the largest is looked for; it is kept, with length 1.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0))
    sound = (largest > 0) & jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(sound, largest, 1))
    return jnp.where(sound, jnp.ldexp(jnp.ones_like(largest), exponent - 1), 1)


def norm(x: Float[Array, "..."], axis: Axes = None) -> Float[Array, "..."]:
    """$\\|x\\|$, right for entries whose squares are out of range.

    **Arguments:**

    - `x`: the array.
    - `axis`: of the sum of squares; it is dropped.
    """
    size = unit(x, axis)
    length = size * jnp.sqrt(jnp.sum((x / size) ** 2, axis=axis, keepdims=True))
    return jnp.squeeze(length, axis)
