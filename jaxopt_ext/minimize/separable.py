"""Separable functions as block methods see them: entry by entry."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..prox import AbstractFunction


class Separable(eqx.Module):
    """The nonsmooth part of a problem over one real vector, or nothing.

    **Arguments:**

    - `function`: a separable function of `jaxopt_ext.prox`, aligned with the point; `None` for
      zero.
    """

    function: Any

    @classmethod
    def of(cls, nonsmooth: Any, x: Float[Array, " d"]) -> "Separable":
        """The function with its parameters along `x`."""
        aligned = isinstance(nonsmooth, AbstractFunction)
        return cls(nonsmooth.aligned(x) if aligned else nonsmooth)

    def prox(
        self, indices: Int[Array, " s"], values: Float[Array, " s"], steps: Float[Array, " s"]
    ) -> Float[Array, " s"]:
        """The prox of each entry, with a step of its own."""
        if self.function is None:
            return values
        one = lambda j, value, step: self.function.block(j).prox(value, step)
        return jax.vmap(one)(indices, values, steps)

    def values(self, indices: Int[Array, " s"], values: Float[Array, " s"]) -> Float[Array, " s"]:
        """$g_i(v_i)$ of each entry."""
        if self.function is None:
            return jnp.zeros_like(values)
        return jax.vmap(lambda j, value: self.function.block(j)(value))(indices, values)

    def decreases(
        self, x: Float[Array, " d"], slope: Float[Array, " d"], scales: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """What each entry's model promises at most: $\\max_d -s_i d - \\tfrac{D_i}2 d^2 -
        g_i(x_i + d) + g_i(x_i)$; without $g$ that is $s_i^2 / (2 D_i)$."""
        if self.function is None:
            return 0.5 * slope * (slope / scales)
        indices = jnp.arange(x.size)
        new = self.prox(indices, x - slope / scales, 1 / scales)
        move = new - x
        decrease = -move * (slope + 0.5 * scales * move)
        return decrease - self.values(indices, new) + self.values(indices, x)

    def held(self, x: Float[Array, " d"], slope: Float[Array, " d"]) -> Bool[Array, " d"]:
        """The entries at a kink that holds them: their prox does not change with its argument."""
        if self.function is None:
            return jnp.zeros(x.shape, bool)
        indices = jnp.arange(x.size)
        point = lambda u: self.prox(indices, u, jnp.ones_like(u))
        value, moved = jax.jvp(point, (x - slope,), (jnp.ones_like(x),))
        return (moved == 0) & (value == x)
