"""Feedforward computations as systems of equations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from . import checks
from .problem import AbstractProblem
from .restricted import Restricted


class Feedforward(AbstractProblem):
    """A sequence of states, each computed from those before it: $s_t = h_t(s_1, \\dots, s_{t-1})$.

    All leaves of $s$ have the positions $t = 1, \\dots, T$ on their leading axis. The residual is
    $h(s) - s$. As $h_t$ does not look at $s_t$ or behind, the Jacobian of $h$ is strictly lower
    triangular by blocks: there is exactly one solution, and that of the residual is regular.
    Nothing tests this; a map that looks ahead is a `FixedPoint`.

    **Arguments:**

    - `fun`: $h$, all positions at once. With a method `rows(indices, s)` that gives the positions
      of an integer array, on the leading axis, methods that need a few ask for those only.
    - `shape`: the tuple $(T, \\dots)$, or a pytree of `jax.ShapeDtypeStruct`, from which a solve
      without `x0` starts with zeros; `None` asks for an `x0`.

    **Raises:** `ValueError` if leaves have no common leading axis, or `fun` returns other shapes.
    """

    fun: Callable[[PyTree[Array]], PyTree[Array]]
    shape: Any = None

    def restrict(self, rest):
        return dataclasses.replace(self, fun=Restricted(self.fun, rest, maps=True))

    def residual(self, x):
        return jax.tree.map(jnp.subtract, self.fun(x), x)

    def start(self, x):
        if x is not None or self.shape is None:
            return x
        if isinstance(self.shape, tuple) and all(isinstance(n, int) for n in self.shape):
            return jnp.zeros(self.shape)
        return jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=s.sharding), self.shape
        )

    def check(self, x):
        self.length(x)
        checks.shaped_like("fun(x)", jax.eval_shape(self.fun, x), x)

    def length(self, x: PyTree[Array]) -> int:
        """$T$, the number of positions."""
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
        if not all(shapes) or len({shape[0] for shape in shapes}) != 1 or shapes[0][0] == 0:
            raise ValueError(f"positions are on a common leading axis, got shapes {shapes}")
        return shapes[0][0]

    def rows(self, indices: Int[Array, " k"], x: PyTree[Array]) -> PyTree[Array]:
        """$h_t(x)$ for some $t$, counted from 0, in the types of `x`."""
        if checks.has_method(self.fun, "rows"):
            out = self.fun.rows(indices, x)
        else:
            out = jax.tree.map(lambda leaf: leaf[indices], self.fun(x))
        return jax.tree.map(lambda a, like: a.astype(like.dtype), out, x)
