"""Sums over long lists in chunks that stay in the caches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


def sum_rows(
    products: Callable[[PyTree[Array]], Array],
    entries: PyTree[Array],
    rows: Int[Array, " n"],
    like: Any,
    chunk: int,
    *,
    is_sorted: bool,
) -> Array:
    """Adds `products(entries)`, one for each entry, to the rows of an array of zeros.

    Chunk by chunk, so that the products are never all there; nor are they kept for derivatives.

    **Arguments:**

    - `products`: from entries on a leading axis to arrays on one.
    - `entries`: arrays of n entries on their leading axes.
    - `rows`: where each product belongs.
    - `like`: shape and type of the result, a `jax.ShapeDtypeStruct`; it varies over the mesh axes
      that the products vary over.
    - `chunk`: number of entries at a time; all of them at once if there are no more.
    - `is_sorted`: whether `rows` never fall.
    """
    n = rows.shape[0]
    if n <= chunk:
        return jax.ops.segment_sum(
            products(entries), rows, like.shape[0], indices_are_sorted=is_sorted
        )

    def add(total, part):
        entries, rows = part
        # Places are known to be inside, and a checked scatter takes longer.
        total = total.at[rows].add(
            products(entries), indices_are_sorted=is_sorted, mode="promise_in_bounds"
        )
        return total, None

    whole = n // chunk * chunk
    head, tail = (
        jax.tree.map(lambda a: a[:whole].reshape(-1, chunk, *a.shape[1:]), (entries, rows)),
        jax.tree.map(lambda a: a[whole:], (entries, rows)),
    )
    # What the products vary over, a carry that starts as a constant must vary over too.
    total = vary_like(jnp.zeros(like.shape, like.dtype), jax.eval_shape(products, tail[0]))
    total = jax.lax.scan(jax.checkpoint(add), total, head)[0]
    return add(total, tail)[0] if whole < n else total


def vary_like(x: Array, like: PyTree) -> Array:
    """`x` varying over the mesh axes that any leaf of `like` varies over, as `shard_map` checks."""
    axes = frozenset().union(*map(_axes, jax.tree.leaves(like)))
    return jax.lax.pcast(x, tuple(sorted(axes, key=str)), to="varying") if axes else x


def _axes(leaf):
    kind = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
    axes = getattr(kind, "manual_axis_type", None)  # jax >= 0.10
    axes = getattr(kind, "vma", None) if axes is None else axes.varying
    return frozenset() if axes is None else axes
