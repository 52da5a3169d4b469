"""Centroids of convex bodies that are cut again and again."""

import abc
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...core import checks

Body = TypeVar("Body")


class AbstractCentroid(eqx.Module, Generic[Body]):
    """A body that is kept with its centroid at the origin, as the method follows it.

    `ratio` is the share of the volume that a cut through the point returned leaves at most.
    """

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        ratio: ClassVar[float]
    else:
        ratio: eqx.AbstractClassVar[float]

    @abc.abstractmethod
    def start(self, dimension: int, radius: Float[Array, ""], key: PRNGKeyArray) -> Body:
        """The box $|y_i| \\le R$."""

    @abc.abstractmethod
    def cut(
        self, body: Body, normal: Float[Array, " n"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " n"], Body, Bool[Array, ""]]:
        """Keep $\\{y : w^\\top y \\le 0\\}$.

        **Arguments:**

        - `body`: the body.
        - `normal`: $w$, of length one.
        - `key`: for those that draw.

        **Returns:** the new centroid, the body with its origin there, and whether anything is left
        that numbers can tell from nothing.
        """

    @abc.abstractmethod
    def least(self, body: Body, slope: Float[Array, " n"]) -> Float[Array, ""] | None:
        """$\\min_y g^\\top y$ over the body, or `None` if it is not known."""


class _Polygon(eqx.Module):
    """Corners in order; those behind the count repeat none."""

    corners: Float[Array, "k 2"]
    count: Int[Array, ""]


class PolygonCentroid(AbstractCentroid[_Polygon]):
    """The exact centroid in one or two unknowns, of a polygon that is clipped.

    **Arguments:**

    - `max_corners`: of the array that keeps them. Cuts through centroids leave a few only.
    """

    max_corners: int = eqx.field(static=True, default=32)
    ratio = 1 - 1 / 2.718281828459045

    def __check_init__(self):
        checks.count("max_corners", self.max_corners, minimum=5)

    def start(self, dimension, radius, key):
        if dimension > 2:
            raise ValueError(f"PolygonCentroid takes one or two unknowns, got {dimension}")
        square = jnp.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], radius.dtype)
        corners = jnp.zeros((self.max_corners, 2), radius.dtype).at[:4].set(radius * square)
        return _Polygon(corners, jnp.asarray(4, jnp.int32))

    def cut(self, body, normal, key):
        # In one unknown the polygon is a rectangle that is cut across.
        wide = jnp.zeros(2, normal.dtype).at[: normal.shape[0]].set(normal)
        k = self.max_corners
        index = jnp.arange(k)
        used = index < body.count
        here = body.corners
        there = here[jnp.where(index + 1 < body.count, index + 1, 0)]
        a, b = here @ wide, there @ wide
        share = a / jnp.where(a == b, 1, a - b)
        crossing = here + share[:, None] * (there - here)
        keep = used & (a <= 0)
        crosses = used & ((a < 0) & (b > 0) | (a > 0) & (b < 0))
        points = jnp.stack([here, crossing], axis=1).reshape(2 * k, 2)
        flags = jnp.stack([keep, crosses], axis=1).reshape(2 * k)
        place = jnp.where(flags, jnp.cumsum(flags) - 1, 2 * k)
        corners = jnp.zeros_like(here).at[place].set(points, mode="drop")
        count = jnp.sum(flags).astype(jnp.int32)
        # Sums over the triangles that the edges make with the first corner.
        rest = jnp.where((index < count)[:, None], corners - corners[0], 0)
        after = jnp.where((index + 1 < count)[:, None], jnp.roll(rest, -1, axis=0), 0)
        twice = rest[:, 0] * after[:, 1] - rest[:, 1] * after[:, 0]
        area = jnp.sum(twice)
        ok = (area > 0) & (count <= k)
        middle = jnp.sum((rest + after) * twice[:, None], axis=0) / 3
        move = corners[0] + middle / jnp.where(ok, area, 1)
        move = jnp.where(ok, move, 0)
        body = _Polygon(corners - move, jnp.minimum(count, k))
        return move[: normal.shape[0]], body, ok

    def least(self, body, slope):
        wide = jnp.zeros(2, slope.dtype).at[: slope.shape[0]].set(slope)
        used = jnp.arange(self.max_corners) < body.count
        return jnp.min(jnp.where(used, body.corners @ wide, jnp.inf))
