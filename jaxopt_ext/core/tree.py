"""Arithmetic on pytrees that `optax.tree` does not have."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from . import collectives, loops


def value_and_gradient(fun: Callable[..., Array], x: PyTree[Array]) -> tuple[Array, PyTree[Array]]:
    """Value and steepest-ascent direction of a real function.

    For complex leaves this is the conjugate of what `jax.grad` returns, so that `x - t * gradient`
    descends. In `shard_map` it is each device's own gradient of its own function, also at a point
    that is the same on all devices, where `jax.grad` would sum over them.

    **Raises:** `ValueError` for a function with a `psum` in `shard_map(..., check_vma=False)`.
    """
    if loops.in_shard_map():
        collectives.reject_unchecked_sums(fun, x)
        x = loops.vary(x, loops.varying_axes(jax.eval_shape(fun, x)))
    value, gradient = jax.value_and_grad(fun)(x)
    return value, jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, gradient)


def gradient(fun: Callable[..., Array], x: PyTree[Array]) -> PyTree[Array]:
    """Steepest-ascent direction of a real function; see `value_and_gradient`."""
    return value_and_gradient(fun, x)[1]


def vdot(a: PyTree[Array], b: PyTree[Array]) -> Array:
    """Real inner product $\\mathrm{Re}\\langle a, b\\rangle$ over all leaves."""
    return sum_leaves(jax.tree.map(_vdot, a, b))


def _vdot(x: Array, y: Array) -> Array:
    if is_spread(x) or is_spread(y):  # a product would ask how its sum is to be sharded
        return jnp.sum(jnp.real(jnp.conj(x) * y))
    return jnp.real(jnp.vdot(x, y))


def is_spread(x: Array) -> bool:
    """Whether an array is cut over a mesh with explicit axes, as its type tells."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def norm(a: PyTree[Array]) -> Array:
    """Euclidean norm over all leaves, with derivative zero at zero."""
    square = vdot(a, a)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)


def sum_leaves(tree: PyTree[Array]) -> Array:
    """Sum of all leaves, in the widest of their types."""
    leaves = jax.tree.leaves(tree)
    total = leaves[0]
    for leaf in leaves[1:]:
        total = total + leaf
    return total


def all_finite(tree: PyTree[Array]) -> Array:
    """Whether every entry is finite, in one pass without temporaries.

    Finite entries whose absolute sum overflows count as infinite.
    """
    return jnp.isfinite(sum_leaves(jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf)), tree)))


def size(tree: PyTree[Any]) -> int:
    """Number of entries over all leaves."""
    return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(tree))


def real_dtype(tree: PyTree[Array]) -> Any:
    """The real floating type that holds norms of `tree`."""
    return jnp.finfo(jnp.result_type(*jax.tree.leaves(tree))).dtype


def where(condition: Array, a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """Choose between two trees by one condition."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def axpy(x: PyTree[Array], a: Any, y: PyTree[Array]) -> PyTree[Array]:
    """$x + a y$ for a real number $a$, in the types of $x$."""
    return jax.tree.map(lambda u, v: u + jnp.asarray(a, u.real.dtype) * v, x, y)


def scale(x: PyTree[Array], a: Any) -> PyTree[Array]:
    """$a x$ for a real number $a$, in the types of $x$."""
    return jax.tree.map(lambda u: jnp.asarray(a, u.real.dtype) * u, x)


def cast_like(a: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """Give each leaf of `a` the type of its twin in `like`."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, dtype=jnp.result_type(y)), a, like)


def real_view(x: PyTree[Array]) -> PyTree[Array]:
    """Complex leaves as pairs of real ones: residuals need not be holomorphic."""
    return jax.tree.map(lambda leaf: (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf, x)


def complex_view(x: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """Inverse of `real_view`; `like` tells which leaves are complex."""
    return jax.tree.map(
        lambda leaf, part: jax.lax.complex(*part) if jnp.iscomplexobj(leaf) else part, like, x
    )


def zeros_of(shapes: PyTree) -> PyTree[Array]:
    """Zeros of given shapes and types, those of `jax.eval_shape` say."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
