"""The contracts: functions with a value and a prox, and sets with a projection."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..core import checks, tree

MEMBERSHIP = 1e3
"""Roundings, of the numbers at hand, within which a point belongs to a set."""


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

    def prox_slopes(self, x: PyTree[Array], step: Any = 1.0) -> PyTree[Array] | None:
        """The derivative of each entry of the prox of real `x`, if none depends on another entry;
        else `None`."""
        return None

    def aligned(self, x: Array) -> "AbstractFunction":
        """The same function, with its parameters broadcast to `x`, so that `block` finds them."""
        return self

    def block(self, index: Any) -> "AbstractFunction":
        """The part of $g$ that acts on the entries `index` of the leading axis, where array
        parameters have that axis; `aligned` gives it to them."""
        raise TypeError(f"{type(self).__name__} is not separable over the leading axis")

    def __rmul__(self, factor: Any) -> "AbstractFunction":
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
        """Whether `x` is within `atol` of its projection.

        By default within a thousand roundings of the norm of `x`, at all scales: what `project`
        returns is inside, and a point that is outside by more is not, however small.
        """
        projected = self.project(x)
        gap, _ = norm_and_direction(jax.tree.map(jnp.subtract, x, projected))
        if atol is None:
            size, _ = norm_and_direction(x)
            atol = MEMBERSHIP * jnp.finfo(gap.dtype).eps * size
        return (gap <= atol) & (gap < jnp.inf)

    def __call__(self, x: PyTree[Array]) -> Float[Array, ""]:
        zero = jnp.zeros((), tree.real_dtype(x))
        return jnp.where(self.contains(x), zero, jnp.inf)

    def linear_minimizer(self, g: PyTree[Array]) -> PyTree[Array]:
        """$\\arg\\min_{s \\in C} \\langle g, s\\rangle$, where there is one."""
        raise TypeError(f"{type(self).__name__} has no linear minimization oracle")


def parameter_field(**options) -> Any:
    """A parameter kept as array leaves."""
    return eqx.field(converter=lambda p: jax.tree.map(checks.scalar, p), **options)


class AbstractMade(AbstractFunction):
    """A function made of one other, convex if that is."""

    function: eqx.AbstractVar[AbstractFunction]

    @property
    def convex(self) -> bool:
        return self.function.convex


def entrywise_slopes(prox: Callable[[PyTree[Array]], PyTree[Array]], x: PyTree[Array]):
    """The derivatives of a prox that works entry by entry."""
    return jax.jvp(prox, (x,), (jax.tree.map(jnp.ones_like, x),))[1]


class Scaled(AbstractMade):
    """$c\\, g(x)$.

    **Arguments:**

    - `function`: $g$.
    - `factor`: $c > 0$.
    """

    function: AbstractFunction
    factor: Any = parameter_field()

    def __check_init__(self):
        checks.positive("factor", self.factor)

    def __call__(self, x):
        value = self.function(x)
        return number("factor", self.factor, value.dtype) * value

    def prox(self, x, step=1.0):
        checks.positive("step", step)
        return self.function.prox(x, step * self.factor)

    def prox_slopes(self, x, step=1.0):
        return self.function.prox_slopes(x, step * self.factor)

    def aligned(self, x):
        return Scaled(self.function.aligned(x), self.factor)

    def block(self, index):
        return Scaled(self.function.block(index), self.factor)


def spread(parameter: Any, x: PyTree[Array], real: bool = True) -> PyTree[Array]:
    """A parameter for each leaf of `x`: given as a tree like `x`, or one for all leaves.

    Cast to the type of its leaf, by default the real one, so that parameters never widen `x`.

    **Raises:** `ValueError` if the parameter would give its leaf another shape.
    """

    def fit(p, leaf):
        dtype = tree.real_dtype(leaf) if real else leaf.dtype
        if jnp.iscomplexobj(p) and not jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError("a complex parameter does not fit real numbers")
        p = jnp.asarray(p, dtype)
        sizes = zip(reversed(p.shape), reversed(leaf.shape), strict=False)
        if p.ndim > leaf.ndim or not all(a in (1, b) for a, b in sizes):
            raise ValueError(f"a parameter of shape {p.shape} does not fit x of shape {leaf.shape}")
        return p

    if jax.tree.structure(parameter) != jax.tree.structure(x):
        parameter = jax.tree.map(lambda _: parameter, x)
    return jax.tree.map(fit, parameter, x)


def number(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    """A parameter that must be one number, in the given type."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be one number, got shape {jnp.shape(value)}")
    return jnp.asarray(value, dtype)


def amount_of(step: Any, weight: Any, dtype: Any) -> Float[Array, ""]:
    """The product of a step $> 0$ and the weight of a function."""
    checks.positive("step", step)
    return number("step", step, dtype) * number("weight", weight, dtype)


def corrected(project: Any, x: PyTree[Array]) -> PyTree[Array]:
    """`project(x)`, projected once more to lose the rounding of a far longer `x`.

    The derivative is that of the first projection, which is exact.
    """
    first = project(x)
    again = jax.lax.stop_gradient(project(first))
    # In this order the value is `again` to the last digit.
    return jax.tree.map(lambda a, b: b + (a - jax.lax.stop_gradient(a)), first, again)


def require_real(name: str, x: PyTree[Array]) -> None:
    """Raise `TypeError` if a leaf is complex: there is no order then."""
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(x)):
        raise TypeError(f"{name} takes real numbers, got complex ones")


def require_array(name: str, x: Any, what: str, ndim: int) -> None:
    """Raise unless `x` is one array with so many axes."""
    if not hasattr(x, "shape"):
        raise TypeError(f"{name} takes {what}, got {type(x).__name__}")
    if len(x.shape) != ndim:
        raise ValueError(f"{name} takes {what}, got shape {x.shape}")


def largest(x: Array) -> Array:
    """A size of each entry that cannot overflow: $\\max(|\\Re x|, |\\Im x|)$."""
    if jnp.iscomplexobj(x):
        return jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag))
    return jnp.abs(x)


def unit_of(size: Array) -> Array:
    """What to divide by before squaring, so that squares neither overflow nor vanish."""
    size = jax.lax.stop_gradient(size)
    return jnp.where(size < jnp.finfo(size.dtype).tiny, 1, size)


def root(square: Array) -> Array:
    """$\\sqrt{s}$, with derivative zero at zero."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def over(x: Array, size: Array) -> Array:
    """$x / s$, zero where $s$ is."""
    return jnp.where(size == 0, 0, x / jnp.where(size == 0, 1, size))


def polar(x: Array) -> tuple[Array, Array]:
    """$|x|$ and $x / |x|$ of each entry, both with derivative zero at zero."""
    if not jnp.iscomplexobj(x):
        return jnp.abs(x), jnp.sign(x)
    unit = unit_of(largest(x))
    x = x / unit
    size = root(x.real**2 + x.imag**2)
    return unit * size, over(x, size)


def magnitude(x: Array) -> Array:
    """$|x|$, with derivative zero at zero, complex input included."""
    return polar(x)[0]


def norm_and_direction(x: PyTree[Array]) -> tuple[Array, PyTree[Array]]:
    """$\\|x\\|$ and $x / \\|x\\|$ of a tree as one vector, both with derivative zero at zero.

    Safe at all scales, unlike `tree.norm`, whose squares may overflow or vanish.
    """
    dtype = tree.real_dtype(x)
    sizes = [jnp.max(largest(a), initial=0).astype(dtype) for a in jax.tree.leaves(x)]
    unit = unit_of(jnp.max(jnp.stack(sizes)))
    scaled = jax.tree.map(lambda a: a / unit.astype(a.real.dtype), x)
    norm = tree.norm(scaled)
    return unit * norm, jax.tree.map(lambda a: over(a, norm.astype(a.real.dtype)), scaled)


def pull(x: Array, size: Array, direction: Array, amount: Array) -> Array:
    """Move `x` towards zero by `amount`, at most to zero, given its size and direction.

    By nothing, it is the identity at zero too.
    """
    gone = (size <= amount) & (amount != 0)  # False for NaN, which must not vanish
    return jnp.where(gone, 0, x - amount * direction)


def shrink(x: Array, amount: Array) -> Array:
    """Soft thresholding: move the magnitude towards zero by `amount`, keep the phase."""
    return pull(x, *polar(x), amount)


def part(parameter: Any, index: Any) -> Any:
    """The entries of an array parameter, or the scalar itself."""
    return jnp.asarray(parameter)[index] if jnp.ndim(parameter) > 0 else parameter


def align(parameter: Any, x: Array) -> Any:
    """A parameter with the axes of `x`, so that `part` finds it on the leading one."""
    return parameter if jnp.ndim(parameter) == 0 else jnp.broadcast_to(parameter, x.shape)
