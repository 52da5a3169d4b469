"""Functions made from functions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core import checks, tree
from .coordinatewise import parameter_field
from .function import AbstractFunction, AbstractSet


def _is_function(x: Any) -> bool:
    return isinstance(x, AbstractFunction)


class Scaled(AbstractFunction):
    """$c\\, g(x)$.

    **Arguments:**

    - `function`: $g$.
    - `factor`: $c > 0$.
    """

    function: AbstractFunction
    factor: Any = parameter_field()
    convex = True

    def __check_init__(self):
        checks.positive("factor", self.factor)

    def __call__(self, x):
        value = self.function(x)
        return self.factor.astype(value.dtype) * value

    def prox(self, x, step=1.0):
        return self.function.prox(x, step * self.factor)

    def block(self, index):
        return Scaled(self.function.block(index), self.factor)


class Shifted(AbstractFunction):
    """$g(x - b)$.

    **Arguments:**

    - `function`: $g$.
    - `offset`: $b$, shaped like `x` or a number.
    """

    function: AbstractFunction
    offset: PyTree[Array] = parameter_field()
    convex = True

    def _move(self, x, sign):
        if jax.tree.structure(self.offset) == jax.tree.structure(x):
            return jax.tree.map(lambda a, b: a + sign * b.astype(a.dtype), x, self.offset)
        return jax.tree.map(lambda a: a + sign * self.offset.astype(a.dtype), x)

    def __call__(self, x):
        return self.function(self._move(x, -1))

    def prox(self, x, step=1.0):
        return self._move(self.function.prox(self._move(x, -1), step), 1)

    def project(self, x):
        """The projection on the moved set, if the function is a set."""
        if not isinstance(self.function, AbstractSet):
            raise TypeError(f"{type(self.function).__name__} is not a set")
        return self.prox(x)


class Precomposed(AbstractFunction):
    """$g(a x + b)$ for a number $a \\ne 0$.

    **Arguments:**

    - `function`: $g$.
    - `scale`: $a$.
    - `offset`: $b$, shaped like `x` or a number.
    """

    function: AbstractFunction
    scale: Any = parameter_field(default=1.0)
    offset: PyTree[Array] = parameter_field(default=0.0)
    convex = True

    def __check_init__(self):
        checks.positive("the magnitude of scale", jnp.abs(self.scale))

    def _inner(self, x):
        offset = self.offset
        if jax.tree.structure(offset) != jax.tree.structure(x):
            offset = jax.tree.map(lambda _: self.offset, x)
        return jax.tree.map(
            lambda a, b: self.scale.astype(a.dtype) * a + b.astype(a.dtype), x, offset
        )

    def __call__(self, x):
        return self.function(self._inner(x))

    def prox(self, x, step=1.0):
        inner = self._inner(x)
        moved = self.function.prox(inner, step * self.scale**2)
        return jax.tree.map(
            lambda a, y, z: a + (y - z) / self.scale.astype(a.dtype), x, moved, inner
        )


class Separable(AbstractFunction):
    """A sum of functions over the parts of a pytree.

    **Arguments:**

    - `functions`: a pytree with a function wherever `x` has a subtree for it.
    """

    functions: PyTree[AbstractFunction]
    convex = True

    def __check_init__(self):
        leaves = jax.tree.leaves(self.functions, is_leaf=_is_function)
        if not leaves or not all(_is_function(f) for f in leaves):
            raise TypeError("functions must be a pytree of functions with a prox")

    def __call__(self, x):
        values = jax.tree.map(lambda f, a: f(a), self.functions, x, is_leaf=_is_function)
        return tree.sum_leaves(values)

    def prox(self, x, step=1.0):
        return jax.tree.map(lambda f, a: f.prox(a, step), self.functions, x, is_leaf=_is_function)


class Conjugate(AbstractFunction):
    """The convex conjugate $g^*(y) = \\sup_x \\langle x, y\\rangle - g(x)$, by Moreau's identity

    $$\\mathrm{prox}_{t g^*}(y) = y - t\\, \\mathrm{prox}_{g / t}(y / t).$$

    Its value is known only where `value` is given; the prox always is.

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
        scaled = jax.tree.map(lambda a: a / jnp.asarray(step, a.real.dtype), x)
        inner = self.function.prox(scaled, 1 / step)
        return jax.tree.map(lambda a, p: a - jnp.asarray(step, a.real.dtype) * p, x, inner)
