"""Activations that a quadratic can be minimized behind."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import Scalar, checks, scalar_field
from ._elementwise import root

GRID = 16
"""Intervals among which that of the least value is refined."""


class AbstractActivation(eqx.Module):
    """A scalar function $\\sigma$, with what block coordinate descent asks of it."""

    @abc.abstractmethod
    def __call__(self, u: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """$\\sigma(u)$ of each entry."""

    @abc.abstractmethod
    def minimize(
        self,
        v: Float[Array, "*s"],
        c: Float[Array, "*s"],
        g: Float[Array, ""],
        u: Float[Array, "*s"],
    ) -> Float[Array, "*s"]:
        """$\\arg\\min_u \\tfrac12 (\\sigma(u) - v)^2 + \\tfrac g2 (u - c)^2$ of each entry.

        `u` is where it was before, which an inexact method keeps if it is better."""


class Identity(AbstractActivation):
    """$u$."""

    def __call__(self, u):
        return u

    def minimize(self, v, c, g, u):
        return (v + g * c) / (1 + g)


class ReLU(AbstractActivation):
    """$\\max(u, 0)$; its minimum is the better of those of its two pieces."""

    def __call__(self, u):
        return jax.nn.relu(u)

    def minimize(self, v, c, g, u):
        return _piecewise(v, c, g, 0.0)


class LeakyReLU(AbstractActivation):
    """$\\max(u, a u)$; its minimum is the better of those of its two pieces.

    **Arguments:**

    - `slope`: $a$ in $[0, 1)$.
    """

    slope: Scalar = scalar_field(0.01)

    def __check_init__(self):
        checks.interval("slope", self.slope, 0, 1, open_high=True)

    def __call__(self, u):
        return jnp.where(u > 0, u, self.slope.astype(u.dtype) * u)

    def minimize(self, v, c, g, u):
        return _piecewise(v, c, g, self.slope.astype(v.dtype))


def _piecewise(v, c, g, a):
    value = lambda s, u: (s * u - v) ** 2 + g * (u - c) ** 2
    above = jnp.maximum((v + g * c) / (1 + g), 0)
    below = jnp.minimum((a * v + g * c) / (a**2 + g), 0)
    return jnp.where(value(1.0, above) < value(a, below), above, below)


class Sigmoid(AbstractActivation):
    """$1 / (1 + e^{-u})$; its minimum by Newton's method from the best of a few points."""

    def __call__(self, u):
        return jax.nn.sigmoid(u)

    def minimize(self, v, c, g, u):
        def derivatives(u):
            s = jax.nn.sigmoid(u)
            first = s * (1 - s)
            return s, first, first * (1 - 2 * s)

        return _smooth(derivatives, v, c, g, u)


class Tanh(AbstractActivation):
    """$\\tanh u$; its minimum by Newton's method from the best of a few points."""

    def __call__(self, u):
        return jnp.tanh(u)

    def minimize(self, v, c, g, u):
        def derivatives(u):
            s = jnp.tanh(u)
            first = 1 - s**2
            return s, first, -2 * s * first

        return _smooth(derivatives, v, c, g, u)


def _smooth(derivatives, v, c, g, u):
    """For a function that grows. The minimum is on the side of $c$ where $\\sigma$ comes nearer to
    $v$, and no farther than where the second term alone exceeds the value at $c$."""
    fixed = jax.lax.stop_gradient
    value = lambda u: 0.5 * (derivatives(u)[0] - v) ** 2 + 0.5 * g * (u - c) ** 2

    def slope(u):
        s, first, second = derivatives(u)
        return (s - v) * first + g * (u - c), first**2 + (s - v) * second + g

    reach = fixed((v - derivatives(c)[0]) / jnp.sqrt(g))
    part = jnp.linspace(0, 1, GRID + 1, dtype=v.dtype).reshape(-1, *[1] * v.ndim)
    best = jnp.argmin(fixed(value(fixed(c) + part * reach)), axis=0).astype(v.dtype)
    ends = [fixed(c) + jnp.clip(best + side, 0, GRID) * reach / GRID for side in (-1.0, 1.0)]
    new = root(slope, jnp.minimum(*ends), jnp.maximum(*ends))
    return jnp.where(fixed(value(new) <= value(u)), new, u)
