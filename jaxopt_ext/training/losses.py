"""Losses of outputs, entry by entry, each with its prox."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import checks
from ._elementwise import root


class AbstractOutputLoss(eqx.Module):
    """A convex loss $\\ell(z, y)$ of one output and its target."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        curvature: ClassVar[float]
        margin: ClassVar[bool]
    else:
        curvature: eqx.AbstractClassVar[float]
        """An upper bound on the second derivative in $z$; infinite where it has a kink."""
        margin: eqx.AbstractClassVar[bool]
        """Whether targets are $\\pm 1$ and the loss depends on $y z$ alone."""

    @abc.abstractmethod
    def __call__(self, z: Float[Array, "*s"], y: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """$\\ell(z, y)$ of each entry."""

    @abc.abstractmethod
    def prox(
        self, z: Float[Array, "*s"], y: Float[Array, "*s"], step: Any = 1.0
    ) -> Float[Array, "*s"]:
        """$\\arg\\min_u \\ell(u, y) + (u - z)^2 / (2 \\cdot \\mathrm{step})$ of each entry."""

    def check(self, y: Float[Array, "*s"]) -> None:
        """Raise `ValueError` for targets that the loss does not take."""


class SquaredError(AbstractOutputLoss):
    """$(z - y)^2 / 2$."""

    curvature = 1.0
    margin = False

    def __call__(self, z, y):
        return 0.5 * (z - y) ** 2

    def prox(self, z, y, step=1.0):
        return (z + step * y) / (1 + step)


def _signs(y):
    if not checks.is_traced(y) and not np.all(np.abs(np.asarray(y)) == 1):
        other = np.asarray(y)[np.abs(np.asarray(y)) != 1].ravel()[0]
        raise ValueError(f"targets must be -1 or 1, got {other}")


class Hinge(AbstractOutputLoss):
    """$\\max(0, 1 - y z)$ for targets $\\pm 1$."""

    curvature = float("inf")
    margin = True

    def __call__(self, z, y):
        return jnp.maximum(1 - y * z, 0)

    def prox(self, z, y, step=1.0):
        return z + y * jnp.clip(1 - y * z, 0, step)

    def check(self, y):
        _signs(y)


class Logistic(AbstractOutputLoss):
    """$\\log(1 + e^{-y z})$ for targets $\\pm 1$."""

    curvature = 0.25
    margin = True

    def __call__(self, z, y):
        return jax.nn.softplus(-y * z)

    def prox(self, z, y, step=1.0):
        # m - yz = step / (1 + e^m), of which the root is within step above yz.
        margin = y * z

        def slope(m):
            tail = jax.nn.sigmoid(-m)
            return m - margin - step * tail, 1 + step * tail * (1 - tail)

        return y * root(slope, margin, margin + step)

    def check(self, y):
        _signs(y)
