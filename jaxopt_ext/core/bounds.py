"""Lower and upper bounds of variables, and what is held at one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from . import checks
from .operators import is_sparse


def ordered(l: Any, u: Any) -> None:
    """Raise `ValueError` unless $l \\le u$, $l < \\infty$ and $u > -\\infty$, none of them NaN."""
    if checks.is_traced((l, u)):
        return
    l, u = np.asarray(l), np.asarray(u)  # on the host, also inside of jit
    if np.any(l == np.inf) or np.any(u == -np.inf):
        raise ValueError("l must be below +inf and u above -inf")
    checks.nonnegative("u - l", u - l)


def excess(value: Array, dual: Array, l: Array, u: Array) -> Array:
    """$v - \\Pi_{[l, u]}(v + y)$: zero exactly if $l \\le v \\le u$ and $y$ is a multiplier, in the
    normal cone of $[l, u]$ at $v$."""
    moved = value + dual
    # At an equation without a multiplier a clip would have a quarter of its slope.
    tie = (l == u) & (moved == l)
    half = 0.5 * jnp.where(tie, l, 0) + 0.5 * jnp.where(tie, u, 0)
    return value - jnp.where(tie, half, jnp.clip(moved, l, u))


def intervals(like: Array, A=None, b=None, G=None, h=None) -> tuple[Array, Array, Array]:
    """$Ax = b$ and $Gx \\le h$ as rows, their lower and their upper bounds; either pair may be left
    out.

    **Arguments:**

    - `like`: a vector shaped like $x$, in its type.
    """
    rows, lower, upper = [], [], []
    for name, matrix, bound, equal in (("A", A, b, True), ("G", G, h, False)):
        if (matrix is None) != (bound is None):
            raise ValueError(f"{name} and its right-hand side come together")
        if matrix is None:
            continue
        if is_sparse(matrix):
            raise TypeError(f"{name} is a sparse {matrix.shape}: stack A and G, give l and u")
        bound = jnp.asarray(bound, like.dtype)
        rows.append(jnp.asarray(matrix, like.dtype))
        upper.append(bound)
        lower.append(bound if equal else jnp.full_like(bound, -jnp.inf))
    if not rows:
        rows, lower = [jnp.zeros((0, like.shape[-1]), like.dtype)], [jnp.zeros(0, like.dtype)]
        upper = lower
    return jnp.concatenate(rows), jnp.concatenate(lower), jnp.concatenate(upper)


class Bounds(eqx.Module):
    """$l \\le x \\le u$ for the entries of a pytree.

    **Arguments:**

    - `lower`, `upper`: numbers, arrays or pytrees like `x`; infinite where there is no bound.

    **Raises:** `ValueError` if bounds cross, are NaN, or do not fit `x`.
    """

    lower: PyTree = eqx.field(converter=lambda b: jax.tree.map(checks.scalar, b))
    upper: PyTree = eqx.field(converter=lambda b: jax.tree.map(checks.scalar, b))

    def __check_init__(self):
        lowers, uppers = jax.tree.leaves(self.lower), jax.tree.leaves(self.upper)
        count = max(len(lowers), len(uppers))
        lowers, uppers = (v * count if len(v) == 1 else v for v in (lowers, uppers))
        if len(lowers) != len(uppers):
            raise ValueError(f"{len(lowers)} lower and {len(uppers)} upper bounds do not fit")
        for l, u in zip(lowers, uppers, strict=True):
            ordered(l, u)

    def like(self, x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        """The two bounds of each entry, in the types of `x`."""
        return _spread("lower", self.lower, x), _spread("upper", self.upper, x)

    def project(self, x: PyTree[Array]) -> PyTree[Array]:
        """The nearest point within the bounds."""
        return jax.tree.map(jnp.clip, x, *self.like(x))

    def excess(self, x: PyTree[Array], dual: PyTree[Array]) -> PyTree[Array]:
        """Zero exactly where `x` is within the bounds and `dual` a multiplier of them."""
        return jax.tree.map(excess, x, dual, *self.like(x))

    def check(self, x: PyTree[Array]) -> None:
        """Raise unless the bounds fit `x`, which must be real."""
        if any(map(jnp.iscomplexobj, jax.tree.leaves(x))):
            raise TypeError("bounds take real numbers, got complex ones")
        jax.eval_shape(self.like, x)


def _spread(name: str, bound: PyTree, x: PyTree[Array]) -> PyTree[Array]:
    if jax.tree.structure(bound) != jax.tree.structure(x):
        if len(jax.tree.leaves(bound)) != 1:
            shapes = checks.shapes_of(bound), checks.shapes_of(x)
            raise ValueError(f"{name}, shaped {shapes[0]}, does not fit x shaped {shapes[1]}")
        (one,) = jax.tree.leaves(bound)
        bound = jax.tree.map(lambda _: one, x)

    def fit(b, leaf):
        try:
            return jnp.broadcast_to(jnp.asarray(b, leaf.dtype), leaf.shape)
        except ValueError as error:
            raise ValueError(
                f"{name} of shape {jnp.shape(b)} does not fit x of shape {leaf.shape}"
            ) from error

    return jax.tree.map(fit, bound, x)
