"""Sparse formats as pytrees with static shapes."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class BCSR(eqx.Module):
    """A matrix in blocked compressed rows: dense blocks, sorted by row, then by column.

    Every block row has at least one block, of zeros if need be, so that kernels write all of their
    output. The order of the blocks in the transpose is found once, on the host.

    Build it with `from_dense`, `from_scipy` or `from_blocks`.

    **Attributes:**

    - `values`: the blocks, shape `(blocks, rows_per_block, columns_per_block)`; differentiable.
    - `rows`, `columns`: block row and block column of each block.
    - `pointers`: where each block row starts, shape `(block_rows + 1,)`.
    - `order`: the blocks sorted by column, then by row.
    - `shape`: of the matrix, which the blocks may overhang.
    """

    values: Float[Array, "blocks r c"]
    rows: Int[Array, " blocks"]
    columns: Int[Array, " blocks"]
    pointers: Int[Array, " block_rows_1"]
    order: Int[Array, " blocks"]
    shape: tuple[int, int] = eqx.field(static=True)

    @classmethod
    def from_blocks(cls, values: Any, rows: Any, columns: Any, shape: tuple[int, int]) -> "BCSR":
        """From blocks at given places, in any order; no place twice.

        **Raises:** `ValueError` if arrays do not fit, a block lies outside, or two share a place.
        """
        values = jnp.asarray(values)
        rows, columns = np.asarray(rows, np.int32), np.asarray(columns, np.int32)
        if values.ndim != 3 or rows.shape != values.shape[:1] or columns.shape != rows.shape:
            raise ValueError(
                f"values {values.shape}, rows {rows.shape} and columns {columns.shape} do not fit"
            )
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(f"values must be floating-point, got {values.dtype}")
        r, c = values.shape[1:]
        if min(r, c) < 1 or min(shape) < 0:
            raise ValueError(f"bad block {(r, c)} or shape {shape}")
        block_rows, block_columns = -(-shape[0] // r), -(-shape[1] // c)
        outside = (rows < 0) | (rows >= block_rows) | (columns < 0) | (columns >= block_columns)
        if outside.any():
            i = int(np.argmax(outside))
            raise ValueError(f"block {i} at {rows[i], columns[i]} lies outside of {shape}")
        # Empty block rows, and so empty block columns of the transpose, get a block of zeros; one
        # that lies in both serves both.
        empty_rows = np.setdiff1d(np.arange(block_rows), rows) if block_columns else []
        empty_columns = np.setdiff1d(np.arange(block_columns), columns) if block_rows else []
        extra = max(len(empty_rows), len(empty_columns))
        more_rows, more_columns = np.zeros((2, extra), np.int32)
        more_rows[: len(empty_rows)] = empty_rows
        more_columns[: len(empty_columns)] = empty_columns
        rows = np.concatenate([rows, more_rows])
        columns = np.concatenate([columns, more_columns])
        values = jnp.concatenate([values, jnp.zeros((extra, r, c), values.dtype)])
        place = rows.astype(np.int64) * max(block_columns, 1) + columns
        if len(np.unique(place)) != len(place):
            raise ValueError("two blocks share a place")
        by_row = np.argsort(place, kind="stable")
        rows, columns = rows[by_row], columns[by_row]
        pointers = np.searchsorted(rows, np.arange(block_rows + 1)).astype(np.int32)
        order = np.lexsort((rows, columns)).astype(np.int32)
        return cls(
            values[by_row],
            jnp.asarray(rows),
            jnp.asarray(columns),
            jnp.asarray(pointers),
            jnp.asarray(order),
            (int(shape[0]), int(shape[1])),
        )

    @classmethod
    def from_dense(cls, matrix: Any, block: tuple[int, int]) -> "BCSR":
        """The blocks of a dense matrix that are not all zero."""
        matrix = np.asarray(matrix)
        if matrix.ndim != 2:
            raise ValueError(f"expected a matrix, got shape {matrix.shape}")
        (m, n), (r, c) = matrix.shape, block
        padded = np.pad(matrix, ((0, -m % r), (0, -n % c)))
        blocks = padded.reshape(padded.shape[0] // r, r, padded.shape[1] // c, c).swapaxes(1, 2)
        rows, columns = np.nonzero(np.any(blocks != 0, axis=(2, 3)))
        return cls.from_blocks(blocks[rows, columns], rows, columns, (m, n))

    @classmethod
    def from_scipy(cls, matrix: Any, block: tuple[int, int]) -> "BCSR":
        """From any `scipy.sparse` matrix; never dense."""
        import scipy.sparse as sp

        (m, n), (r, c) = matrix.shape, block
        coo = sp.coo_array(matrix)
        padded = sp.coo_array((coo.data, coo.coords), shape=(m + (-m % r), n + (-n % c)))
        bsr = sp.bsr_array(padded.tocsr(), blocksize=block)
        bsr.sum_duplicates()
        rows = np.repeat(np.arange(len(bsr.indptr) - 1), np.diff(bsr.indptr))
        return cls.from_blocks(bsr.data.reshape(-1, r, c), rows, bsr.indices, (m, n))

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def block_rows(self) -> int:
        """Number of block rows."""
        return self.pointers.shape[0] - 1

    @property
    def block_columns(self) -> int:
        """Number of block columns."""
        return -(-self.shape[1] // self.block[1])

    @property
    def T(self) -> "BCSR":
        """The transpose; sorts nothing."""
        order, (m, n) = self.order, self.shape
        rows = self.columns[order]
        pointers = jnp.searchsorted(rows, jnp.arange(self.block_columns + 1)).astype(jnp.int32)
        # Where each block of ours went: the inverse permutation.
        inverse = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
        values = jnp.swapaxes(self.values[order], 1, 2)
        return BCSR(values, rows, self.rows[order], pointers, inverse, (n, m))

    def todense(self) -> Float[Array, "m n"]:
        """The matrix with its zeros."""
        (r, c), (m, n) = self.block, self.shape
        blocks = jnp.zeros((self.block_rows, self.block_columns, r, c), self.values.dtype)
        blocks = blocks.at[self.rows, self.columns].add(self.values)
        full = jnp.swapaxes(blocks, 1, 2).reshape(self.block_rows * r, self.block_columns * c)
        return full[:m, :n]
