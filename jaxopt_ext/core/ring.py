"""The last points of a sequence, kept in a ring, and their inner products.

A buffer holds m points on the leading axis of each leaf; a new point goes to a slot that moves
round. What is computed with the new point in its place is computed from the old buffer and the new
point, before that is stored: the compiler then works in one buffer, where it would otherwise copy
all of it once or twice a step.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from . import tree


def empty(x: PyTree[Array], length: int) -> PyTree[Array]:
    """A buffer of `length` zero points like `x`."""
    # From the points themselves, for the mesh axes over which they are cut or vary.
    return jax.tree.map(lambda a: jnp.broadcast_to(jnp.zeros_like(a), (length, *a.shape)), x)


def products(buffer: PyTree[Array], v: PyTree[Array]) -> Float[Array, " m"]:
    """Inner products of each point of a buffer with another, all real."""

    def of_leaf(b, a):
        if tree.is_spread(a):
            return jnp.sum(b * a, axis=tuple(range(1, b.ndim)))
        return jnp.tensordot(b, a, axes=a.ndim, precision="highest")

    return tree.sum_leaves(jax.tree.map(of_leaf, buffer, v))


def minus(x: PyTree[Array], weights: Float[Array, " m"], buffer: PyTree[Array]) -> PyTree[Array]:
    """A point less the weighted sum of those in a buffer."""
    return jax.tree.map(
        lambda a, b: a - jnp.tensordot(weights.astype(b.dtype), b, axes=1, precision="highest"),
        x,
        buffer,
    )


def minus_rows(
    x: PyTree[Array], weights: Float[Array, " m"], buffer: PyTree[Array], rows: Sequence[Array]
) -> PyTree[Array]:
    """A point less the weighted sum of a few of those in a buffer."""

    def of_leaf(a, b):
        for row in rows:
            point = jax.lax.dynamic_index_in_dim(b, row, keepdims=False)
            a = a - weights[row].astype(b.dtype) * point
        return a

    return jax.tree.map(of_leaf, x, buffer)


def store(
    buffer: PyTree[Array], new: PyTree[Array], slot: Int[Array, ""], *, after: PyTree[Array]
) -> PyTree[Array]:
    """The buffer with the new point in its slot.

    `after`, a tree like the point, is what was computed from the buffer last: the write waits for
    it, and so needs no copy of the buffer.
    """

    def write(b, v, last):
        # Zero, which the compiler does not know; not 0 * last, which is NaN where last is infinite.
        zero = 0 * (last != last).astype(b.dtype)
        return jax.lax.dynamic_update_index_in_dim(b, v.astype(b.dtype) + zero, slot, 0)

    return jax.tree.map(write, buffer, new, after)


def gram_with(
    gram: Float[Array, "m m"], buffer: PyTree[Array], new: PyTree[Array], slot: Int[Array, ""]
) -> Float[Array, "m m"]:
    """Inner products of the points with the new one in its slot, from those without it."""
    products = jax.vmap(lambda point: tree.vdot(point, new))(buffer)
    products = products.at[slot].set(tree.vdot(new, new)).astype(gram.dtype)
    return gram.at[slot].set(products).at[:, slot].set(products)


def weighted_sum(
    weights: Float[Array, " m"], buffer: PyTree[Array], new: PyTree[Array], slot: Int[Array, ""]
) -> PyTree[Array]:
    """Weighted sum of the points, with the new one in its slot."""
    older, newest = weights.at[slot].set(0), weights[slot]

    def total(b, v):
        older_sum = jnp.tensordot(older.astype(b.dtype), b, axes=1, precision="highest")
        return older_sum + newest.astype(b.dtype) * v

    return jax.tree.map(total, buffer, new)
