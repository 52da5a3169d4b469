"""Symmetric cones with what interior point methods need of them.

Each has a product $\\circ$, for which it is the cone of squares, a unit $e$, and for two interior
points $s$, $z$ the scaling of Nesterov and Todd: a linear $W$ that keeps the cone, with
$W z = W^{-\\top} s = \\lambda$, the scaled point. The barriers with the central path
$s \\circ z = \\mu e$ are logarithmic: $-\\sum \\log s_i$, $-\\frac12 \\log(t^2 - |v|^2)$,
$-\\log\\det S$.
"""

import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

W = TypeVar("W")


def _transpose(x):
    return jnp.swapaxes(x, -1, -2)


class AbstractCone(eqx.Module, Generic[W]):
    """A symmetric cone over arrays of one shape."""

    shape: eqx.AbstractVar[tuple[int, ...]]

    @property
    @abc.abstractmethod
    def degree(self) -> int:
        """$\\nu = \\langle e, e\\rangle$."""

    @abc.abstractmethod
    def unit(self, dtype) -> Array:
        """$e$."""

    @abc.abstractmethod
    def interior(self, s: Array) -> Bool[Array, ""]:
        """Whether a point is in the interior; false for NaN."""

    @abc.abstractmethod
    def scaling(self, s: Array, z: Array) -> tuple[W, Array]:
        """The scaling of two interior points, and the scaled point."""

    @abc.abstractmethod
    def inverse(self, s: Array) -> Array:
        """$s^{-1}$ of an interior point, with $s \\circ s^{-1} = e$: minus the barrier's slope."""

    @abc.abstractmethod
    def scale(self, w: W, z: Array) -> Array:
        """$W z$."""

    @abc.abstractmethod
    def unscale(self, w: W, z: Array) -> Array:
        """$W^{-1} z$."""

    @abc.abstractmethod
    def scale_slack(self, w: W, s: Array) -> Array:
        """$W^{-\\top} s$."""

    @abc.abstractmethod
    def unscale_slack(self, w: W, s: Array) -> Array:
        """$W^\\top s$."""

    @abc.abstractmethod
    def product(self, a: Array, b: Array) -> Array:
        """$a \\circ b$."""

    @abc.abstractmethod
    def divide(self, point: Array, a: Array) -> Array:
        """The $x$ with $\\lambda \\circ x = a$ for a scaled point $\\lambda$."""

    @abc.abstractmethod
    def reach(self, point: Array, move: Array) -> Float[Array, ""]:
        """$1 / \\sup \\{t : \\lambda + t d \\in K\\}$ for a scaled point $\\lambda$; zero if there
        is no end."""


class Orthant(AbstractCone[Array]):
    """$\\{s \\ge 0\\}$, shape `(m,)`."""

    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def degree(self):
        return self.shape[0]

    def unit(self, dtype):
        return jnp.ones(self.shape, dtype)

    def interior(self, s):
        return jnp.all((s > 0) & jnp.isfinite(s))

    def scaling(self, s, z):
        root, other = jnp.sqrt(s), jnp.sqrt(z)  # a product might vanish
        return root / other, root * other

    def inverse(self, s):
        return 1 / s

    def scale(self, w, z):
        return w * z

    def unscale(self, w, z):
        return z / w

    def scale_slack(self, w, s):
        return s / w

    def unscale_slack(self, w, s):
        return w * s

    def product(self, a, b):
        return a * b

    def divide(self, point, a):
        return a / point

    def reach(self, point, move):
        return jnp.max(-move / point, initial=0)


class SecondOrderCones(AbstractCone[tuple[Array, Array]]):
    """$\\{(t, v) : |v| \\le t\\}$ in each row, shape `(cones, width)`. Narrower cones are padded
    with zeros, which stay zero."""

    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def degree(self):
        return self.shape[0]

    def unit(self, dtype):
        return jnp.zeros(self.shape, dtype).at[:, 0].set(1)

    def interior(self, s):
        room = s[:, 0] - jnp.linalg.norm(s[:, 1:], axis=1)
        return jnp.all((room > 0) & jnp.isfinite(room))

    def scaling(self, s, z):
        size_s, size_z = _length(s), _length(z)
        unit_s, unit_z = s / size_s[:, None], z / size_z[:, None]
        half = jnp.sqrt(0.5 * (1 + jnp.sum(unit_s * unit_z, axis=1)))[:, None]
        w = 0.5 * (unit_s + _flip(unit_z)) / half
        w = (jnp.sqrt(size_s / size_z), w)
        return w, self.scale(w, z)

    def inverse(self, s):
        size = _length(s)[:, None]
        return _flip(s) / size / size

    def scale(self, w, z):
        size, axis = w
        return size[:, None] * _hyperbolic(axis, z)

    def unscale(self, w, z):
        size, axis = w
        return _hyperbolic(_flip(axis), z) / size[:, None]

    def scale_slack(self, w, s):
        return self.unscale(w, s)

    def unscale_slack(self, w, s):
        return self.scale(w, s)

    def product(self, a, b):
        head = jnp.sum(a * b, axis=1, keepdims=True)
        return jnp.concatenate([head, a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:]], axis=1)

    def divide(self, point, a):
        t, v = point[:, :1], point[:, 1:]
        square = _length(point)[:, None] ** 2
        along = jnp.sum(v * a[:, 1:], axis=1, keepdims=True)
        head = (t * a[:, :1] - along) / square
        return jnp.concatenate([head, (a[:, 1:] - head * v) / t], axis=1)

    def reach(self, point, move):
        size = _length(point)[:, None]
        unit = point / size
        # The move seen from the unit: (along, across).
        along = unit[:, :1] * move[:, :1] - jnp.sum(unit[:, 1:] * move[:, 1:], 1, keepdims=True)
        across = move[:, 1:] - (along + move[:, :1]) / (unit[:, :1] + 1) * unit[:, 1:]
        ends = (jnp.linalg.norm(across, axis=1) - along[:, 0]) / size[:, 0]
        return jnp.max(ends, initial=0)


def _length(s):
    """$\\sqrt{t^2 - |v|^2}$ of interior points."""
    norm = jnp.linalg.norm(s[:, 1:], axis=1)
    return jnp.sqrt(s[:, 0] - norm) * jnp.sqrt(s[:, 0] + norm)


def _flip(s):
    return jnp.concatenate([s[:, :1], -s[:, 1:]], axis=1)


def _hyperbolic(axis, z):
    """The positive definite matrix of determinant one and first column `axis`, times z."""
    t, v = axis[:, :1], axis[:, 1:]
    along = jnp.sum(v * z[:, 1:], axis=1, keepdims=True)
    head = t * z[:, :1] + along
    return jnp.concatenate([head, z[:, 1:] + (z[:, :1] + along / (1 + t)) * v], axis=1)


class SemidefiniteCones(AbstractCone[tuple[Array, Array]]):
    """Positive semidefinite matrices side by side, shape `(count, n, n)`."""

    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def degree(self):
        return self.shape[0] * self.shape[1]

    def unit(self, dtype):
        return jnp.broadcast_to(jnp.eye(self.shape[1], dtype=dtype), self.shape)

    def interior(self, s):
        return jnp.all(jnp.isfinite(jnp.linalg.cholesky(s)))

    def scaling(self, s, z):
        low_s, low_z = jnp.linalg.cholesky(jnp.stack([s, z]))
        left, values, right = jnp.linalg.svd(_transpose(low_z) @ low_s)
        root = jnp.sqrt(values)[..., None, :]
        there = low_s @ _transpose(right) / root
        back = _transpose(low_z @ left / root)
        return (there, back), jnp.eye(self.shape[1], dtype=s.dtype) * values[..., None, :]

    def inverse(self, s):
        root = jnp.linalg.cholesky(s)
        back = jax.scipy.linalg.solve_triangular(root, self.unit(s.dtype), lower=True)
        return _transpose(back) @ back

    def scale(self, w, z):
        there, _ = w
        return _transpose(there) @ z @ there

    def unscale(self, w, z):
        _, back = w
        return _transpose(back) @ z @ back

    def scale_slack(self, w, s):
        _, back = w
        return back @ s @ _transpose(back)

    def unscale_slack(self, w, s):
        there, _ = w
        return there @ s @ _transpose(there)

    def product(self, a, b):
        both = a @ b
        return 0.5 * (both + _transpose(both))

    def divide(self, point, a):
        values = jnp.diagonal(point, axis1=-2, axis2=-1)
        return 2 * a / (values[..., :, None] + values[..., None, :])

    def reach(self, point, move):
        root = jnp.sqrt(jnp.diagonal(point, axis1=-2, axis2=-1))
        move = move / (root[..., :, None] * root[..., None, :])
        return jnp.max(-jnp.linalg.eigvalsh(move), initial=0)


def symmetrized(x: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
    """$(X + X^\\top) / 2$."""
    return 0.5 * (x + _transpose(x))
