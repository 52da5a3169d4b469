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
    in_range = jnp.all(sums_in_range(squares, x.shape[-1]))
    return loops.cond(in_range, lambda: jnp.sqrt(squares), lambda: _scaled_norms(x))


def sums_in_range(squares: Float[Array, " m"], d: int) -> Bool[Array, " m"]:
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


def weighted_sum(weights: Float[Array, " m"], x: Float[Array, "m d"]) -> Float[Array, " d"]:
    """$\\sum_i w_i x_i$; a row of weight zero may hold anything.

    Such rows are cleared, which takes a copy of the rows, only if the sum shows that it has to be.
    """
    total = row_sum(weights, x)
    cleared = lambda: row_sum(weights, jnp.where((weights != 0)[:, None], x, 0))
    return loops.cond(jnp.all(jnp.isfinite(total)), lambda: total, cleared)


def squared_distances(x: Float[Array, "m d"], y: Float[Array, " d"]) -> Float[Array, " m"]:
    """$\\sum_j (x_{ij} - y_j)^2$, by differences."""
    plain = lambda x, y: jnp.sum((x - y) ** 2, axis=1)
    if x.shape[1] < 4 * LANES or x.dtype.itemsize < 4:
        return plain(x, y)
    return jax.lax.platform_dependent(x, y, cpu=_squared_distances_in_lanes, default=plain)


LANES = 1024
"""As many sums run side by side."""


def _squared_distances_in_lanes(x, y):
    """Each lane sums up one coordinate of many: a loop of products and sums of whole vectors, which
    compilers for CPUs make twice as fast as a reduction of differences."""
    whole = x.shape[1] // LANES * LANES

    def add(k, sums):
        piece = lambda a: jax.lax.dynamic_slice_in_dim(a, k * LANES, LANES, axis=-1)
        return sums + (piece(x) - piece(y)) ** 2

    sums = loops.fori_loop(0, whole // LANES, add, jnp.zeros_like(x[:, :LANES]))
    rest = jnp.sum((x[:, whole:] - y[whole:]) ** 2, axis=1)
    return jnp.sum(sums, axis=1) + rest


def distances(x: Float[Array, "m d"], y: Float[Array, " d"]) -> Float[Array, " m"]:
    """Distances of rows from a point, by differences; infinite where one is not finite.

    Ranges are kept as in `row_norms`.
    """
    return _distances(x, y, jnp.zeros(len(x), bool))


def _distances(x, y, known):
    """`distances`, of which the known ones may be too small to be told from zero."""
    squares = squared_distances(x, y)
    in_range = jnp.all(known | sums_in_range(squares, x.shape[1]))
    found = loops.cond(in_range, lambda: jnp.sqrt(squares), lambda: _scaled_norms(x - y))
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def pairwise(x: Float[Array, "m d"]) -> Float[Array, "m m"]:
    """Distances between rows, by differences; infinite where one is not finite, zero to itself.

    One row after the other: all pairs at once are m times m times d numbers, and slower.
    """
    itself = jnp.eye(len(x), dtype=bool)
    found = jax.lax.map(lambda row: _distances(x, *row), (x, itself))
    return jnp.where(itself, 0, found)


def ranks(keys: Float[Array, " m"]):
    """The place of each key in ascending order; equals keep theirs."""
    return jnp.argsort(jnp.argsort(keys))


def mean_of(x: Float[Array, "m d"], chosen: Bool[Array, " m"]) -> Float[Array, " d"]:
    """Mean of the chosen rows, NaN if there are none; the others may hold anything."""
    return weighted_sum(chosen, x) / jnp.sum(chosen).astype(x.dtype)


def finite_rows(x: Float[Array, "m d"]) -> Bool[Array, " m"]:
    """Which rows are finite.

    A finite sum is one of finite numbers; entries are looked at one by one only if one is not.
    """
    finite = jnp.isfinite(jnp.sum(x, axis=1))
    one_by_one = lambda: jnp.all(jnp.isfinite(x), axis=1)
    return loops.cond(jnp.all(finite), lambda: finite, one_by_one)
