"""Stacked pytrees as the rows of a matrix, and distances between rows."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ...core import loops


def ravel_rows(
    rows: PyTree[Array],
) -> tuple[Float[Array, "m d"], Callable[[Float[Array, "*k d"]], PyTree[Array]]]:
    """The matrix of the rows, and the way back for one row or a stack of them.

    **Raises:** `ValueError` if leaves have no or not the same number of rows; `TypeError` if a leaf
    is not real floating-point.
    """
    leaves, structure = jax.tree.flatten(rows)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if not leaves or not all(shape and shape[0] == shapes[0][0] for shape in shapes):
        raise ValueError(f"all leaves must have the same number of rows, got shapes {shapes}")
    types = [jnp.result_type(leaf) for leaf in leaves]
    for dtype in types:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"rows must be real floating-point, got {dtype}")
    wide = jnp.result_type(*types)
    m = shapes[0][0]
    sizes = [math.prod(shape[1:]) for shape in shapes]
    matrix = jnp.concatenate(
        [jnp.reshape(a, (m, n)).astype(wide) for a, n in zip(leaves, sizes, strict=True)], axis=1
    )
    ends = np.cumsum(sizes)[:-1]

    def unravel(x):
        parts = jnp.split(x, ends, axis=-1)
        return jax.tree.unflatten(
            structure,
            [
                part.reshape(*x.shape[:-1], *shape[1:]).astype(dtype)
                for part, shape, dtype in zip(parts, shapes, types, strict=True)
            ],
        )

    return matrix, unravel


def ravel_row(name: str, row: PyTree[Array], rows: PyTree[Any]) -> Float[Array, " d"]:
    """One row as a vector.

    **Raises:** `ValueError` if it is not shaped like one of the `rows`.
    """
    shapes = [jnp.shape(a) for a in jax.tree.leaves(row)]
    wanted = [jnp.shape(a)[1:] for a in jax.tree.leaves(rows)]
    if shapes != wanted:
        raise ValueError(f"{name} must be shaped like a row, {wanted}, got {shapes}")
    return ravel_rows(jax.tree.map(lambda a: jnp.asarray(a)[None], row))[0][0]


def row_norms(x: Float[Array, "*m d"]) -> Float[Array, " *m"]:
    """Norms of rows, whose squares may overflow or vanish.

    Rows are looked at once, and again in units of their largest entries only if some sum of squares
    is out of range; under `vmap` always.
    """
    squares = jnp.sum(x**2, axis=-1)
    in_range = jnp.all(_in_range(squares, x.shape[-1]))
    return loops.cond(in_range, lambda: jnp.sqrt(squares), lambda: _scaled_norms(x))


def _in_range(squares, d):
    """Whether sums of d squares are neither overflown nor so small that vanished ones count."""
    info = jnp.finfo(squares.dtype)
    return (squares >= d * float(info.tiny) / float(info.eps)) & (squares <= info.max)


def _scaled_norms(x):
    largest = jnp.max(jnp.abs(x), axis=-1, initial=0)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.sqrt(jnp.sum((x / unit[..., None]) ** 2, axis=-1))


def row_sum(weights: Float[Array, " m"], x: Float[Array, "m d"]) -> Float[Array, " d"]:
    """$\\sum_i w_i x_i$, as a product: compilers for CPUs sum over a leading axis thirty times
    slower."""
    return jnp.matmul(weights.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST)


def distances(x: Float[Array, "m d"], y: Float[Array, " d"]) -> Float[Array, " m"]:
    """Distances of rows from a point, by differences; infinite where one is not finite."""
    found = row_norms(x - y)
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def pairwise(x: Float[Array, "m d"]) -> Float[Array, "m m"]:
    """Distances between rows, by differences; infinite where one is not finite.

    Each row and the k-th after it, around the circle, for k up to m / 2: all pairs at once are m
    times m times d numbers, and slower.
    """
    m, d = x.shape
    half = m // 2
    twice = jnp.concatenate([x, x])

    def squares(k):
        return jnp.sum((x - jax.lax.dynamic_slice_in_dim(twice, k, m)) ** 2, axis=1)

    found = jax.lax.map(squares, jnp.arange(1, half + 1))
    i, j = np.indices((m, m))
    k = (j - i) % m
    near = k <= half
    table = found[np.where(near, k, m - k) - 1, np.where(near, i, j)] if half else jnp.zeros((m, m))
    table = jnp.where(np.eye(m, dtype=bool), 0, table)
    in_range = jnp.all(_in_range(found, d))
    one_by_one = lambda: jax.lax.map(lambda y: distances(x, y), x)
    return loops.cond(in_range, lambda: jnp.sqrt(table).astype(x.dtype), one_by_one)


def ranks(keys: Float[Array, " m"]):
    """The place of each key in ascending order; equals keep theirs."""
    return jnp.argsort(jnp.argsort(keys))


def mean_of(x: Float[Array, "m d"], chosen: Bool[Array, " m"]) -> Float[Array, " d"]:
    """Mean of the chosen rows, NaN if there are none; the others may hold anything."""
    count = jnp.sum(chosen).astype(x.dtype)
    return row_sum(chosen, jnp.where(chosen[:, None], x, 0)) / count


def finite_rows(x: Float[Array, "m d"]) -> Bool[Array, " m"]:
    """Which rows are finite."""
    return jnp.all(jnp.isfinite(x), axis=1)
