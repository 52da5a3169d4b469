"""The contracts: functions with a value and a prox, and sets with a projection."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..core import tree


class AbstractFunction(eqx.Module):
    """A function $g$ with values in $(-\\infty, \\infty]$ and a proximal operator."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        convex: ClassVar[bool]
    else:
        convex: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$g(x)$."""

    @abc.abstractmethod
    def prox(self, x: PyTree[Array], step: Any = 1.0) -> PyTree[Array]:
        """$\\arg\\min_u g(u) + \\|u - x\\|^2 / (2 \\cdot \\mathrm{step})$."""

    def block(self, index: Any) -> "AbstractFunction":
        """The part of $g$ that acts on the entries `index` of the leading axis."""
        raise TypeError(f"{type(self).__name__} is not separable over the leading axis")

    def __rmul__(self, factor: Any) -> "AbstractFunction":
        from .combinators import Scaled

        return Scaled(self, factor)


class AbstractSet(AbstractFunction):
    """A closed set $C$, as the function that is zero on it and infinite elsewhere."""

    @abc.abstractmethod
    def project(self, x: PyTree[Array]) -> PyTree[Array]:
        """$\\arg\\min_{u \\in C} \\|u - x\\|$."""

    def prox(self, x: PyTree[Array], step: Any = 1.0) -> PyTree[Array]:
        """The projection, whatever the step."""
        return self.project(x)

    def contains(self, x: PyTree[Array], atol: Any = None) -> Bool[Array, ""]:
        """Whether `x` is within `atol` of its projection, by default a thousand roundings."""
        gap = tree.norm(jax.tree.map(jnp.subtract, x, self.project(x)))
        if atol is None:
            atol = 1e3 * jnp.finfo(gap.dtype).eps * jnp.maximum(1, tree.norm(x))
        return gap <= atol

    def __call__(self, x: PyTree[Array]) -> Float[Array, ""]:
        zero = jnp.zeros((), tree.real_dtype(x))
        return jnp.where(self.contains(x), zero, jnp.inf)

    def linear_minimizer(self, g: PyTree[Array]) -> PyTree[Array]:
        """$\\arg\\min_{s \\in C} \\langle g, s\\rangle$, where there is one."""
        raise TypeError(f"{type(self).__name__} has no linear minimization oracle")


def spread(parameter: Any, x: PyTree[Array]) -> PyTree[Array]:
    """A parameter for each leaf of `x`: given as a tree like `x`, or one for all leaves.

    Cast to the real type of its leaf, so that parameters never widen `x`.
    """
    if jax.tree.structure(parameter) != jax.tree.structure(x):
        parameter = jax.tree.map(lambda _: parameter, x)
    return jax.tree.map(lambda p, a: jnp.asarray(p, tree.real_dtype(a)), parameter, x)


def magnitude(x: Array) -> Array:
    """$|x|$, with derivative zero at zero, complex input included."""
    if not jnp.iscomplexobj(x):
        return jnp.abs(x)
    square = x.real**2 + x.imag**2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def shrink(x: Array, amount: Array) -> Array:
    """Soft thresholding: move the magnitude towards zero by `amount`, keep the phase."""
    if not jnp.iscomplexobj(x):
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - amount, 0)
    size = magnitude(x)
    kept = size > amount
    return jnp.where(kept, x * (1 - amount / jnp.where(kept, size, 1)), 0)


def part(parameter: Any, index: Any) -> Any:
    """The entries of an array parameter, or the scalar itself."""
    return parameter[index] if jnp.ndim(parameter) > 0 else parameter
