"""Tables: rows of numbers kept for each sample or block, of which a batch reads and writes a
few."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PyTree


def read(table: PyTree[Array], index: Int[Array, " b"]) -> PyTree[Array]:
    """The rows of a batch; NaN for floating-point rows that do not exist."""
    at = lambda leaf: leaf.at[_forward(index, leaf)].get(mode="fill")
    return jax.tree.map(at, table)


def write(table: PyTree[Array], index: Int[Array, " b"], rows: PyTree[Array]) -> PyTree[Array]:
    """The table with these rows in their places; rows that do not exist are dropped."""
    put = lambda leaf, row: leaf.at[_forward(index, leaf)].set(row.astype(leaf.dtype), mode="drop")
    return jax.tree.map(put, table, rows)


def _forward(index, leaf):
    """Negative numbers are not counted from the end."""
    return jnp.where(index < 0, leaf.shape[0], index)


def is_sound(index: Int[Array, " b"], size: int) -> Bool[Array, ""]:
    """Whether a batch has rows of the table only, and none twice: then what is written is clear."""
    order = jnp.sort(index)
    return (order[0] >= 0) & (order[-1] < size) & jnp.all(order[1:] > order[:-1])


def check(index: Int[Array, "*steps b"], size: int) -> None:
    """Raise `ValueError` for rows outside the table, and for one twice in a batch.

    Numbers that are being traced are not looked at.
    """
    if isinstance(index, Tracer):
        return
    rows = np.asarray(index)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"index must hold integers, got {rows.dtype}")
    if np.any(outside := (rows < 0) | (rows >= size)):
        raise ValueError(f"index must be in [0, {size}), got {rows[outside][0]}")
    order = np.sort(rows, axis=-1)
    if np.any(twice := order[..., 1:] == order[..., :-1]):
        raise ValueError(f"no sample may be twice in a batch, got {order[..., 1:][twice][0]}")
