"""Functions made from functions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..core import checks, tree
from .function import (
    AbstractFunction,
    AbstractMade,
    Scaled as Scaled,
    align,
    magnitude,
    number,
    parameter_field,
    part,
    spread,
)


def _is_function(x: Any) -> bool:
    return isinstance(x, AbstractFunction)


def _project(function, x):
    if not hasattr(function, "project"):
        raise TypeError(f"{type(function).__name__} is not a set")
    return function.project(x)


def _linear_minimizer(function, g):
    if not hasattr(function, "linear_minimizer"):
        raise TypeError(f"{type(function).__name__} has no linear minimization oracle")
    return function.linear_minimizer(g)


class Shifted(AbstractMade):
    """$g(x - b)$; of a set, the moved set.

    **Arguments:**

    - `function`: $g$.
    - `offset`: $b$, shaped like `x` or a number.
    """

    function: AbstractFunction
    offset: PyTree[Array] = parameter_field()

    def _move(self, x, sign):
        offset = spread(self.offset, x, real=False)
        return jax.tree.map(lambda a, b: a + sign * b, x, offset)

    def __call__(self, x):
        return self.function(self._move(x, -1))

    def prox(self, x, step=1.0):
        return self._move(self.function.prox(self._move(x, -1), step), 1)

    def project(self, x):
        """The projection on the moved set, if the function is a set."""
        return self._move(_project(self.function, self._move(x, -1)), 1)

    def linear_minimizer(self, g):
        """$\\arg\\min \\langle g, s\\rangle$ over the moved set, where there is one."""
        return self._move(_linear_minimizer(self.function, g), 1)

    def aligned(self, x):
        return Shifted(self.function.aligned(x), align(self.offset, x))

    def block(self, index):
        return Shifted(self.function.block(index), part(self.offset, index))


class Precomposed(AbstractMade):
    """$g(a x + b)$ for a number $a \\ne 0$.

    **Arguments:**

    - `function`: $g$.
    - `scale`: $a$, real.
    - `offset`: $b$, shaped like `x` or a number.
    """

    function: AbstractFunction
    scale: Any = parameter_field(default=1.0)
    offset: PyTree[Array] = parameter_field(default=0.0)

    def __check_init__(self):
        if jnp.iscomplexobj(self.scale):
            raise TypeError("scale must be real")
        if not checks.is_traced(self.scale):
            checks.positive("the magnitude of scale", np.abs(self.scale))

    def _inner(self, x):
        offset = spread(self.offset, x, real=False)
        return jax.tree.map(
            lambda a, b: number("scale", self.scale, a.real.dtype) * a + b, x, offset
        )

    def __call__(self, x):
        return self.function(self._inner(x))

    def prox(self, x, step=1.0):
        checks.positive("step", step)
        inner = self._inner(x)
        moved = self.function.prox(inner, step * self.scale**2)
        offset = spread(self.offset, x, real=False)

        def leaf(a, b, y, z):
            scale = jnp.asarray(self.scale, a.real.dtype)
            # The shorter way loses fewer digits: from x, or from where the inner prox ends.
            far = magnitude(y - z) > magnitude(y) + magnitude(b)
            return jnp.where(far, (y - b) / scale, a + (y - z) / scale)

        return jax.tree.map(leaf, x, offset, moved, inner)

    def aligned(self, x):
        return Precomposed(self.function.aligned(x), self.scale, align(self.offset, x))

    def block(self, index):
        return Precomposed(self.function.block(index), self.scale, part(self.offset, index))


class Separable(AbstractFunction):
    """A sum of functions over the parts of a pytree; of sets, their product.

    **Arguments:**

    - `functions`: a pytree with a function wherever `x` has a subtree for it.
    """

    functions: PyTree[AbstractFunction]

    @property
    def convex(self) -> bool:
        return all(f.convex for f in jax.tree.leaves(self.functions, is_leaf=_is_function))

    def __check_init__(self):
        leaves = jax.tree.leaves(self.functions, is_leaf=_is_function)
        if not leaves or not all(_is_function(f) for f in leaves):
            raise TypeError("functions must be a pytree of functions with a prox")

    def _over(self, apply, x):
        return jax.tree.map(apply, self.functions, x, is_leaf=_is_function)

    def __call__(self, x):
        values = jax.tree.leaves(self._over(lambda f, a: f(a), x))
        return tree.sum_leaves(values)

    def prox(self, x, step=1.0):
        return self._over(lambda f, a: f.prox(a, step), x)

    def project(self, x):
        """The projection on the product, if all functions are sets."""
        return self._over(_project, x)

    def linear_minimizer(self, g):
        """$\\arg\\min \\langle g, s\\rangle$ over the product, where there is one."""
        return self._over(_linear_minimizer, g)


class Conjugate(AbstractFunction):
    """The convex conjugate $g^*(y) = \\sup_x \\langle x, y\\rangle - g(x)$, by Moreau's identity

    $$\\mathrm{prox}_{t g^*}(y) = y - t\\, \\mathrm{prox}_{g / t}(y / t).$$

    Its value is known only where `value` is given; the prox always is, to the rounding of $y$:
    where $y$ is far longer than the answer, digits cancel.

    **Arguments:**

    - `function`: $g$, convex.
    - `value`: $g^*$ as a Python function, or `None`.

    **Raises:** `ValueError` if $g$ is not convex.
    """

    function: AbstractFunction
    value: Any = eqx.field(default=None)
    convex = True

    def __check_init__(self):
        if not self.function.convex:
            raise ValueError(f"{type(self.function).__name__} is not convex")

    def __call__(self, x):
        if self.value is None:
            raise TypeError(f"the conjugate of {type(self.function).__name__} has no given value")
        return self.value(x)

    def prox(self, x, step=1.0):
        checks.positive("step", step)
        scaled = jax.tree.map(lambda a: a / jnp.asarray(step, a.real.dtype), x)
        inner = self.function.prox(scaled, 1 / step)
        return jax.tree.map(lambda a, p: a - jnp.asarray(step, a.real.dtype) * p, x, inner)

    def aligned(self, x):
        return Conjugate(self.function.aligned(x), self.value)
