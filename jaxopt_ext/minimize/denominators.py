"""Denominators of fractional programs, and what they are along a coordinate."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core import checks, tree


class Line(NamedTuple):
    """A denominator along a coordinate, $e \\mapsto g(x + e e_i)$: at each $e$ it is $c\\, P(e)^s$
    for the polynomial $P$ of some piece.

    - `pieces`: coefficients of the polynomials, the lowest first, shape `(k, r + 1)`.
    - `low`, `high`: where each piece holds, shape `(k,)`; all of the line where that is not known.
    - `kinks`: where a concave denominator turns, shape `(b,)`.
    """

    pieces: Float[Array, "k r"]
    low: Float[Array, " k"]
    high: Float[Array, " k"]
    kinks: Float[Array, " b"]


class AbstractDenominator(eqx.Module):
    """A denominator $g$ of `Fractional` that is known along coordinates.

    **Attributes:**

    - `exponent`, `factor`: $s$ and $c$ of `Line`.
    - `concave`: whether $g$ is the least of its pieces; else it is the largest.
    """

    exponent: ClassVar[float] = 1.0
    factor: ClassVar[float] = 1.0
    concave: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """$g(x)$."""

    def subgradient(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """A subgradient of $g$; JAX's derivative."""
        return tree.gradient(self.__call__, x)

    def keep(self, x: Float[Array, " d"]) -> Array:
        """What is kept of a point: an image of it."""
        return x

    def move(self, kept: Array, i: Int[Array, ""], e: Float[Array, ""]) -> Array:
        """What is kept, after entry `i` moved by `e`."""
        return kept.at[i].add(e)

    @abc.abstractmethod
    def breakpoints(self, x: Float[Array, " d"], kept: Array, i: Int[Array, ""]) -> Line:
        """$g$ along coordinate `i`."""


class AbstractOfImage(AbstractDenominator):
    """A function of $G x$."""

    matrix: eqx.AbstractVar[Float[Array, "m d"]]

    def __check_init__(self):
        if jnp.ndim(self.matrix) < 2 or 0 in jnp.shape(self.matrix):
            raise ValueError(f"matrix must be (m, d), got shape {jnp.shape(self.matrix)}")

    def keep(self, x):
        return self.matrix @ x

    def move(self, kept, i, e):
        return kept + e * self.matrix[:, i]


def _matrix():
    return eqx.field(converter=jnp.asarray)


def _everywhere(pieces):
    whole = jnp.full(pieces.shape[0], jnp.inf, pieces.dtype)
    return Line(pieces, -whole, whole, jnp.zeros(0, pieces.dtype))


def _sum_of_magnitudes(y, q):
    """The pieces of $\\sum_j |y_j + q_j e|$, by a sort of its breakpoints."""
    moving = q != 0
    turn = jnp.where(moving, -y / jnp.where(moving, q, 1), jnp.inf)
    order = jnp.argsort(turn)
    turn, q, y = turn[order], q[order], y[order]
    sign = jnp.sign(q)
    slope = -jnp.sum(jnp.abs(q)) + jnp.append(0, jnp.cumsum(2 * jnp.abs(q)))
    height = jnp.sum(jnp.where(sign == 0, jnp.abs(y), -sign * y))
    height = height + jnp.append(0, jnp.cumsum(2 * sign * y))
    end = jnp.asarray([jnp.inf], turn.dtype)
    low, high = jnp.concatenate([-end, turn]), jnp.concatenate([turn, end])
    return Line(jnp.stack([height, slope], axis=1), low, high, jnp.zeros(0, turn.dtype))


class SumOfMagnitudes(AbstractOfImage):
    """$g(x) = |Gx|_1$.

    **Arguments:**

    - `matrix`: $G$, shape `(m, d)`.
    """

    matrix: Float[Array, "m d"] = _matrix()

    def __call__(self, x):
        return jnp.sum(jnp.abs(self.matrix @ x))

    def breakpoints(self, x, kept, i):
        return _sum_of_magnitudes(kept, self.matrix[:, i])


class SquaredSumOfMagnitudes(AbstractOfImage):
    """$g(x) = |Gx|_1^2 / 2$.

    **Arguments:**

    - `matrix`: $G$, shape `(m, d)`.
    """

    matrix: Float[Array, "m d"] = _matrix()
    exponent = 2.0
    factor = 0.5

    def __call__(self, x):
        return 0.5 * jnp.sum(jnp.abs(self.matrix @ x)) ** 2

    def breakpoints(self, x, kept, i):
        return _sum_of_magnitudes(kept, self.matrix[:, i])


class LargestMagnitude(AbstractOfImage):
    """$g(x) = |Gx|_\\infty$.

    **Arguments:**

    - `matrix`: $G$, shape `(m, d)`.
    """

    matrix: Float[Array, "m d"] = _matrix()

    def __call__(self, x):
        return jnp.max(jnp.abs(self.matrix @ x))

    def breakpoints(self, x, kept, i):
        half = jnp.stack([kept, self.matrix[:, i]], axis=1)
        return _everywhere(jnp.concatenate([half, -half]))


class SumOfLargest(AbstractDenominator):
    """The sum of the $k$ largest $|x_j|$.

    **Arguments:**

    - `count`: $k$.
    """

    count: int

    def __check_init__(self):
        checks.count("count", self.count)

    def _top(self, sizes):
        if self.count > sizes.size:
            raise ValueError(f"count must be at most the {sizes.size} entries, got {self.count}")
        return jax.lax.top_k(sizes, self.count)[0]

    def __call__(self, x):
        return jnp.sum(self._top(jnp.abs(x)))

    def breakpoints(self, x, kept, i):
        others = self._top(jnp.abs(x).at[i].set(0))
        rest, least = jnp.sum(others[:-1]), others[-1]
        one, nothing = jnp.ones_like(rest), jnp.zeros_like(rest)
        pieces = jnp.stack(
            [
                jnp.stack([rest - x[i], -one]),
                jnp.stack([rest + least, nothing]),
                jnp.stack([rest + x[i], one]),
            ]
        )
        ends = jnp.stack([-jnp.inf * one, -least - x[i], least - x[i], jnp.inf * one])
        return Line(pieces, ends[:-1], ends[1:], jnp.zeros(0, x.dtype))


class EuclideanNorm(AbstractOfImage):
    """$g(x) = |Gx|_2$.

    **Arguments:**

    - `matrix`: $G$, shape `(m, d)`.
    """

    matrix: Float[Array, "m d"] = _matrix()
    exponent = 0.5

    def __call__(self, x):
        return tree.norm(self.matrix @ x)

    def breakpoints(self, x, kept, i):
        return _everywhere(_square(kept, self.matrix[:, i]))


def _square(y, q):
    return jnp.stack([jnp.vdot(y, y), 2 * jnp.vdot(y, q), jnp.vdot(q, q)])[None]


class SquaredEuclideanNorm(AbstractOfImage):
    """$g(x) = |Gx|_2^2$.

    **Arguments:**

    - `matrix`: $G$, shape `(m, d)`.
    """

    matrix: Float[Array, "m d"] = _matrix()

    def __call__(self, x):
        return jnp.sum((self.matrix @ x) ** 2)

    def breakpoints(self, x, kept, i):
        return _everywhere(_square(kept, self.matrix[:, i]))


def _fourth(y, q):
    powers = [jnp.sum(y ** (4 - k) * q**k) for k in range(5)]
    return jnp.stack([c * p for c, p in zip((1, 4, 6, 4, 1), powers, strict=True)])[None]


class FourNorm(AbstractOfImage):
    """$g(x) = |Gx|_4$.

    **Arguments:**

    - `matrix`: $G$, shape `(m, d)`.
    """

    matrix: Float[Array, "m d"] = _matrix()
    exponent = 0.25

    def __call__(self, x):
        return _root(jnp.sum((self.matrix @ x) ** 4), 0.25)

    def breakpoints(self, x, kept, i):
        return _everywhere(_fourth(kept, self.matrix[:, i]))


class SquaredFourNorm(AbstractOfImage):
    """$g(x) = |Gx|_4^2$.

    **Arguments:**

    - `matrix`: $G$, shape `(m, d)`.
    """

    matrix: Float[Array, "m d"] = _matrix()
    exponent = 0.5

    def __call__(self, x):
        return _root(jnp.sum((self.matrix @ x) ** 4), 0.5)

    def breakpoints(self, x, kept, i):
        return _everywhere(_fourth(kept, self.matrix[:, i]))


def _root(power, exponent):
    """With derivative zero at zero."""
    there = power > 0
    return jnp.where(there, jnp.where(there, power, 1) ** exponent, power)


class RootOfQuadratic(AbstractDenominator):
    """$g(x) = \\sqrt{x^\\top Q x}$.

    **Arguments:**

    - `matrix`: $Q$, symmetric positive semidefinite, shape `(d, d)`.
    """

    matrix: Float[Array, "d d"] = _matrix()
    exponent = 0.5

    def __check_init__(self):
        shape = jnp.shape(self.matrix)
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"matrix must be (d, d), got shape {shape}")

    def __call__(self, x):
        return _root(jnp.vdot(x, self.matrix @ x), 0.5)

    def keep(self, x):
        return self.matrix @ x

    def move(self, kept, i, e):
        return kept + e * self.matrix[i]

    def breakpoints(self, x, kept, i):
        pieces = jnp.stack([jnp.vdot(x, kept), 2 * kept[i], self.matrix[i, i]])
        return _everywhere(pieces[None])


class Affine(AbstractDenominator):
    """$g(x) = a^\\top x + b$.

    **Arguments:**

    - `normal`: $a$, shape `(d,)`.
    - `offset`: $b$.
    """

    normal: Float[Array, " d"] = _matrix()
    offset: Any = eqx.field(converter=checks.scalar, default=0.0)

    def __call__(self, x):
        return jnp.vdot(self.normal, x) + jnp.asarray(self.offset, x.dtype)

    def keep(self, x):
        return self(x)

    def move(self, kept, i, e):
        return kept + e * self.normal[i]

    def breakpoints(self, x, kept, i):
        return _everywhere(jnp.stack([kept, self.normal[i].astype(kept.dtype)])[None])


class LeastAffine(AbstractOfImage):
    """$g(x) = \\min_j a_j^\\top x + b_j$, concave; a step costs the cube of the number of rows.

    **Arguments:**

    - `matrix`: $A$, shape `(m, d)`.
    - `offset`: $b$, shape `(m,)`.
    """

    matrix: Float[Array, "m d"] = _matrix()
    offset: Float[Array, " m"] = _matrix()
    concave = True

    def __call__(self, x):
        return jnp.min(self.matrix @ x + self.offset)

    def keep(self, x):
        return self.matrix @ x + self.offset

    def breakpoints(self, x, kept, i):
        q = self.matrix[:, i]
        rise, gap = q[:, None] - q, kept - kept[:, None]
        meet = jnp.where(rise == 0, 0, gap / jnp.where(rise == 0, 1, rise))
        line = _everywhere(jnp.stack([kept, q], axis=1))
        return line._replace(kinks=meet.reshape(-1))
