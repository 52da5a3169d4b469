"""Equations in one variable, solved for many entries at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import loops


def root(
    fun: Callable[[Float[Array, "*s"]], tuple[Array, Array]],
    low: Float[Array, "*s"],
    high: Float[Array, "*s"],
    steps: int = 20,
) -> Float[Array, "*s"]:
    """Where a function of each entry crosses zero, from below at `low` to above at `high`, by
    Newton's method inside a bracket that shrinks.

    The derivative is that of the implicit function theorem: a last Newton step carries it.

    **Arguments:**

    - `fun`: entries to values and slopes.
    - `low`, `high`: the bracket.
    - `steps`: where Newton leaves the bracket, or hardly moves it, it is halved.
    """
    fixed = jax.lax.stop_gradient

    def step(_, carry):
        x, low, high = carry
        value, slope = fixed(fun(x))
        low, high = jnp.where(value < 0, x, low), jnp.where(value < 0, high, x)
        newton = x - value / jnp.where(slope > 0, slope, 1)
        good = (slope > 0) & (newton > low) & (newton < high)
        return jnp.where(good, newton, 0.5 * (low + high)), low, high

    low, high = fixed(low), fixed(high)
    x, _, _ = loops.fori_loop(0, steps, step, (0.5 * (low + high), low, high))
    x = fixed(x)
    value, slope = fun(x)
    slope = fixed(slope)
    return x - jnp.where(slope > 0, value / jnp.where(slope > 0, slope, 1), 0)
