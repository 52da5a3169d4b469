"""Sparse formats as pytrees with static shapes."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Num

from ._chunks import sum_rows

_PIECE = 1 << 15
"""Numbers in a chunk of a product that does not fit the caches."""


class CSR(eqx.Module):
    """A matrix in compressed rows: entries sorted by row, then by column, no place twice.

    The number of stored entries is static. Those at and behind `pointers[-1]` are padding: value 0,
    column 0, the last row. So a product whose structure is only found at run time is a `CSR` too.

    `A @ x` and `x @ A` are products with dense vectors and matrices, with derivatives of any order
    in both the stored values and `x`; nothing dense is made. Half precision is accumulated in
    single precision.

    Build it with `from_dense`, `from_scipy`, `from_arrays` or `from_coo`.

    **Attributes:**

    - `values`: stored entries, shape `(nnz,)`; differentiable. The padding has derivative 0.
    - `columns`, `rows`: place of each entry.
    - `pointers`: where each row starts, shape `(m + 1,)`; its last entry counts those in use.
    - `order`: the entries sorted by column, then by row, padding last; `None` where the structure
      was found at run time, and then the transpose sorts.
    - `shape`: of the matrix.
    """

    values: Num[Array, " nnz"]
    columns: Int[Array, " nnz"]
    rows: Int[Array, " nnz"]
    pointers: Int[Array, " m_1"]
    order: Int[Array, " nnz"] | None
    shape: tuple[int, int] = eqx.field(static=True)

    __array_ufunc__: ClassVar[None] = None  # so that numpy's `x @ A` comes to us

    @classmethod
    def from_coo(
        cls, values: Any, rows: Any, columns: Any, shape: tuple[int, int], *, nnz: int | None = None
    ) -> "CSR":
        """From entries at given places, in any order; those at one place are summed.

        `values` may be traced, the places may not.

        **Arguments:**

        - `values`, `rows`, `columns`: one entry each, shape `(entries,)`.
        - `shape`: of the matrix.
        - `nnz`: stored entries, the rest of them padding; `None` for as many as there are.

        **Raises:** `ValueError` if the arrays do not fit each other, a place lies outside, or `nnz`
        is too small; `TypeError` if values are not numbers with a fraction, or places no integers.
        """
        values = _host_if_known(values)
        m, n = shape = _checked_shape(shape)
        rows, columns = _indices("rows", rows), _indices("columns", columns)
        if values.ndim != 1 or rows.shape != values.shape or columns.shape != values.shape:
            raise ValueError(
                f"values {values.shape}, rows {rows.shape} and columns {columns.shape} do not fit"
            )
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            raise TypeError(f"values must be floating-point or complex, got {values.dtype}")
        outside = (rows < 0) | (rows >= m) | (columns < 0) | (columns >= n)
        if outside.any():
            i = int(np.argmax(outside))
            place = (int(rows[i]), int(columns[i]))
            raise ValueError(f"entry {i} at {place} lies outside of {shape}")
        by_place = np.lexsort((columns, rows))
        sorted_already = bool((np.diff(by_place) == 1).all())
        rows, columns = rows[by_place], columns[by_place]
        if not sorted_already:
            values = values[by_place]
        first = np.ones(len(rows), bool)
        first[1:] = (np.diff(rows) != 0) | (np.diff(columns) != 0)
        if not first.all():
            values = _sums(values, np.cumsum(first) - 1, (int(first.sum()),))
        rows, columns = rows[first], columns[first]
        count = len(rows)
        nnz = count if nnz is None else nnz
        if nnz < count:
            raise ValueError(f"nnz={nnz} is too small for {count} entries")
        if nnz >= 2**31:
            raise ValueError(f"{nnz} entries do not fit 32-bit indices")
        extra = nnz - count
        order = np.concatenate([np.lexsort((rows, columns)), np.arange(count, nnz)])
        pointers = np.searchsorted(rows, np.arange(m + 1))
        xp = np if isinstance(values, np.ndarray) else jnp
        return cls(
            jnp.asarray(xp.concatenate([values, np.zeros(extra, values.dtype)])),
            int32(np.pad(columns, (0, extra))),
            int32(np.pad(rows, (0, extra), constant_values=max(m - 1, 0))),
            int32(pointers),
            int32(order),
            shape,
        )

    @classmethod
    def from_arrays(cls, values: Any, columns: Any, pointers: Any, shape: tuple[int, int]) -> "CSR":
        """From the three arrays of the format, which must be in order.

        **Raises:** `ValueError` if pointers do not start at 0, end at the number of entries and
        never fall, or columns are out of range or do not rise within a row; `TypeError` as
        `from_coo` does.
        """
        pointers, columns = _indices("pointers", pointers), _indices("columns", columns)
        m = _checked_shape(shape)[0]
        if pointers.shape != (m + 1,):
            raise ValueError(f"pointers must have shape {(m + 1,)}, got {pointers.shape}")
        if pointers[0] != 0 or pointers[-1] != len(columns):
            raise ValueError(
                f"pointers must go from 0 to {len(columns)}, got {pointers[0]} to {pointers[-1]}"
            )
        if (np.diff(pointers) < 0).any():
            raise ValueError(f"pointers fall after row {int(np.argmax(np.diff(pointers) < 0))}")
        rows = np.repeat(np.arange(m), np.diff(pointers))
        falls = (np.diff(columns) <= 0) & (np.diff(rows) == 0)
        if falls.any():
            i = int(np.argmax(falls))
            raise ValueError(
                f"columns of row {rows[i]} are not sorted: {columns[i]} before {columns[i + 1]}"
            )
        return cls.from_coo(values, rows, columns, shape)

    @classmethod
    def from_dense(cls, matrix: Any, *, nnz: int | None = None) -> "CSR":
        """The entries of a dense matrix that are not zero.

        **Raises:** `ValueError` if it is no matrix, or has more than `nnz` entries.
        """
        matrix = np.asarray(matrix)
        if matrix.ndim != 2:
            raise ValueError(f"expected a matrix, got shape {matrix.shape}")
        rows, columns = np.nonzero(matrix)
        return cls.from_coo(matrix[rows, columns], rows, columns, matrix.shape, nnz=nnz)

    @classmethod
    def from_scipy(cls, matrix: Any, *, nnz: int | None = None) -> "CSR":
        """From any `scipy.sparse` matrix; never dense. Stored zeros are kept, duplicates summed."""
        import scipy.sparse as sp

        coo: Any = sp.coo_array(matrix)
        rows, columns = coo.coords
        return cls.from_coo(coo.data, rows, columns, coo.shape, nnz=nnz)

    def to_scipy(self) -> Any:
        """As `scipy.sparse.csr_array`, without padding."""
        import scipy.sparse as sp

        _, columns = known_places(self)
        values = np.asarray(self.values)[: len(columns)]
        return sp.csr_array((values, columns, np.asarray(self.pointers)), shape=self.shape)

    @property
    def nnz(self) -> int:
        """Stored entries, padding included."""
        return self.values.shape[0]

    @property
    def count(self) -> Int[Array, ""]:
        """Entries in use."""
        return self.pointers[-1]

    @property
    def in_use(self) -> Bool[Array, " nnz"]:
        """Which stored entries are no padding."""
        return jnp.arange(self.nnz, dtype=jnp.int32) < self.count

    @property
    def _entries(self):
        # So that no derivative, and no step along one, gives the padding a value.
        return jnp.where(self.in_use, self.values, 0)

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        return self.values.dtype

    @property
    def T(self) -> "CSR":
        """The transpose; sorts nothing if `order` is known."""
        m, n = self.shape
        if self.order is None:  # entries are sorted by row, and a stable sort keeps that
            order = jnp.argsort(jnp.where(self.in_use, self.columns, n), stable=True)
            order = order.astype(jnp.int32)
        else:
            order = self.order
        # Padding stays behind; as an entry of row n it is counted by no pointer.
        rows = jnp.where(self.in_use, self.columns[order], n)
        pointers = jnp.searchsorted(rows, jnp.arange(n + 1)).astype(jnp.int32)
        inverse = jnp.zeros_like(order).at[order].set(jnp.arange(self.nnz, dtype=jnp.int32))
        return CSR(
            self.values[order],
            jnp.where(self.in_use, self.rows[order], 0),
            jnp.minimum(rows, max(n - 1, 0)),
            pointers,
            inverse,
            (n, m),
        )

    def conj(self) -> "CSR":
        """The complex conjugate."""
        return self.with_values(jnp.conj(self.values))

    def with_values(self, values: Num[Array, " nnz"]) -> "CSR":
        """The same structure with other values; those of the padding take no part."""
        return dataclasses.replace(self, values=values)

    def todense(self) -> Num[Array, "m n"]:
        """The matrix with its zeros."""
        return jnp.zeros(self.shape, self.dtype).at[self.rows, self.columns].add(self._entries)

    def __matmul__(self, other: Num[Array, "n *k"]) -> Num[Array, "m *k"]:
        if not eqx.is_array_like(other):
            return NotImplemented
        return _gather_product(self._entries, self.columns, self.rows, self.shape, other, True)

    def __rmatmul__(self, other: Num[Array, "*k m"]) -> Num[Array, "*k n"]:
        if not eqx.is_array_like(other):
            return NotImplemented
        shape = self.shape[::-1]
        # Entry by entry, the transpose is the same product: it needs no order of its own.
        product = _gather_product(
            self._entries, self.rows, self.columns, shape, jnp.asarray(other).T, False
        )
        return product.T


class Permutation(eqx.Module):
    """An order of rows or columns, with its inverse.

    **Attributes:**

    - `order`: what stands at each place.
    - `places`: where each one stands.
    """

    order: Int[Array, " n"]
    places: Int[Array, " n"]

    @classmethod
    def of(cls, order: Any, size: int) -> "Permutation":
        """From `order`; **raises** `ValueError` if it is no permutation of `range(size)`."""
        order = _indices("order", order)
        if order.shape != (size,) or not np.array_equal(np.sort(order), np.arange(size)):
            raise ValueError(f"not an order of {size} rows or columns: {order}")
        places = np.empty(size, np.int64)
        places[order] = np.arange(size)
        return cls(int32(order), int32(places))


class BCSR(eqx.Module):
    """A matrix in blocked compressed rows: dense blocks, sorted by row, then by column.

    Every block row has at least one block, of zeros if need be, so that kernels write all of their
    output. The order of the blocks in the transpose is found once, on the host.

    The blocks may be cut from the matrix with its rows or columns in another order, in which fewer
    of them are needed; `T`, `todense` and products still are those of the matrix itself.

    Build it with `from_dense`, `from_scipy`, `from_csr` or `from_blocks`. `A @ x` is `spmm(A, x)`.

    **Attributes:**

    - `values`: the blocks, shape `(blocks, rows_per_block, columns_per_block)`; differentiable.
    - `rows`, `columns`: block row and block column of each block.
    - `pointers`: where each block row starts, shape `(block_rows + 1,)`.
    - `order`: the blocks sorted by column, then by row.
    - `shape`: of the matrix, which the blocks may overhang.
    - `row_order`, `column_order`: in which the blocks are cut; `None` for the matrix's own.
    """

    values: Float[Array, "blocks r c"]
    rows: Int[Array, " blocks"]
    columns: Int[Array, " blocks"]
    pointers: Int[Array, " block_rows_1"]
    order: Int[Array, " blocks"]
    shape: tuple[int, int] = eqx.field(static=True)
    row_order: Permutation | None = None
    column_order: Permutation | None = None

    __array_ufunc__: ClassVar[None] = None

    @classmethod
    def from_blocks(cls, values: Any, rows: Any, columns: Any, shape: tuple[int, int]) -> "BCSR":
        """From blocks at given places, in any order; no place twice.

        **Raises:** `ValueError` if arrays do not fit, a block lies outside, or two share a place.
        """
        values = _host_if_known(values)
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
        place = rows.astype(np.int64) * max(block_columns, 1) + columns
        if len(np.unique(place)) != len(place):
            raise ValueError("two blocks share a place")
        zeros = np.zeros((extra, r, c), values.dtype)
        stack = np if isinstance(values, np.ndarray) else jnp
        values = stack.concatenate([values, zeros])
        by_row = np.argsort(place, kind="stable")
        rows, columns = rows[by_row], columns[by_row]
        pointers = np.searchsorted(rows, np.arange(block_rows + 1)).astype(np.int32)
        order = np.lexsort((rows, columns)).astype(np.int32)
        return cls(
            jnp.asarray(values[by_row]),
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

    @classmethod
    def from_csr(
        cls,
        matrix: CSR,
        block: tuple[int, int],
        row_order: Any = None,
        column_order: Any = None,
    ) -> "BCSR":
        """The blocks that hold an entry of a `CSR`; its values may be traced, its places may not.

        The derivative in the blocks goes back to the entries.

        **Arguments:**

        - `matrix`: the entries.
        - `block`: rows and columns of a block.
        - `row_order`: in which rows are cut into blocks: a `RowOrder` of `reorder_rows`, an array,
          or `None` for their own.
        - `column_order`: the same of the columns; `reorder_rows(matrix.T, block[::-1])` finds one.

        **Raises:** `ValueError` if the block is empty or an order is no permutation.
        """
        r, c = block
        if min(r, c) < 1:
            raise ValueError(f"bad block {(r, c)}")
        places = known_places(matrix)
        orders: list[Permutation | None] = [None, None]
        for axis, order in enumerate((row_order, column_order)):
            if order is not None:
                order = getattr(order, "order", order)
                orders[axis] = Permutation.of(order, matrix.shape[axis])
                places[axis] = np.argsort(np.asarray(order))[places[axis]]
        rows, columns = places
        wide = max(-(-matrix.shape[1] // c), 1)
        taken, which = np.unique(rows // r * wide + columns // c, return_inverse=True)
        values = _host_if_known(matrix.values)[: len(rows)]
        blocks = _sums(values, (which, rows % r, columns % c), (len(taken), r, c))
        found = cls.from_blocks(blocks, taken // wide, taken % wide, matrix.shape)
        return dataclasses.replace(found, row_order=orders[0], column_order=orders[1])

    def to_scipy(self) -> Any:
        """As `scipy.sparse.csr_array`, without the zeros of the blocks."""
        import scipy.sparse as sp

        values, (r, c) = np.asarray(self.values), self.block
        block, i, j = np.nonzero(values)
        places = [
            np.asarray(at)[block].astype(np.int64) * size + inside
            for at, size, inside in ((self.rows, r, i), (self.columns, c, j))
        ]
        for axis, order in enumerate((self.row_order, self.column_order)):
            if order is not None:
                places[axis] = np.asarray(order.order)[places[axis]]
        return sp.coo_array((values[block, i, j], tuple(places)), shape=self.shape).tocsr()

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
        orders = self.column_order, self.row_order
        return BCSR(values, rows, self.rows[order], pointers, inverse, (n, m), *orders)

    def todense(self) -> Float[Array, "m n"]:
        """The matrix with its zeros."""
        (r, c), (m, n) = self.block, self.shape
        blocks = jnp.zeros((self.block_rows, self.block_columns, r, c), self.values.dtype)
        blocks = blocks.at[self.rows, self.columns].add(self.values)
        full = jnp.swapaxes(blocks, 1, 2).reshape(self.block_rows * r, self.block_columns * c)
        full = full[:m, :n]
        if self.row_order is not None:
            full = full[self.row_order.places]
        return full if self.column_order is None else full[:, self.column_order.places]

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def dtype(self) -> Any:
        """Type of the values."""
        return self.values.dtype

    def conj(self) -> "BCSR":
        """The complex conjugate."""
        return dataclasses.replace(self, values=jnp.conj(self.values))

    def __matmul__(self, other: Num[Array, "n *k"]) -> Num[Array, "m *k"]:
        from .spmm import spmm  # which needs the format

        return spmm(self, other) if eqx.is_array_like(other) else NotImplemented

    def __rmatmul__(self, other: Num[Array, "*k m"]) -> Num[Array, "*k n"]:
        return (self.T @ jnp.asarray(other).T).T if eqx.is_array_like(other) else NotImplemented


def known_places(matrix: CSR) -> list[np.ndarray]:
    """Rows and columns of the entries in use, on the host.

    **Raises:** `TypeError` if they are traced.
    """
    arrays = matrix.pointers, matrix.rows, matrix.columns
    if any(isinstance(a, Tracer) for a in arrays):
        raise TypeError("the places of entries are traced: do this outside of jit, vmap and grad")
    pointers, *places = map(np.asarray, arrays)
    return [indices[: pointers[-1]].astype(np.int64) for indices in places]


def _host_if_known(values):
    """On the host, where sums and sorts compile nothing, unless traced."""
    values = jnp.asarray(values)
    return values if isinstance(values, Tracer) else np.asarray(values)


def int32(indices: Any) -> Int[Array, "..."]:
    """Indices of the host on the device; their type is changed on the host, which compiles
    nothing."""
    return jnp.asarray(np.asarray(indices).astype(np.int32))


def _sums(values, places, shape):
    if isinstance(values, np.ndarray):
        out = np.zeros(shape, values.dtype)
        np.add.at(out, places, values)
        return out
    return jnp.zeros(shape, values.dtype).at[places].add(values)


def _checked_shape(shape):
    if len(shape) != 2 or min(shape) < 0 or max(shape) >= 2**31:
        raise ValueError(f"bad shape of a matrix: {tuple(shape)}")
    return int(shape[0]), int(shape[1])


def _indices(name, array):
    array = np.asarray(array)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64)


def _gather_product(values, columns, rows, shape, dense, is_sorted):
    dense = jnp.asarray(dense)
    if dense.ndim not in (1, 2) or dense.shape[0] != shape[1]:
        raise ValueError(f"shapes do not fit: {shape} times {dense.shape}")
    dtype = jnp.result_type(values, dense)
    if not values.size or not dense.size:
        return jnp.zeros((shape[0], *dense.shape[1:]), dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    width = dense.size // dense.shape[0]

    def products(entries):
        values, columns = entries
        weights = values.reshape(-1, *(1,) * (dense.ndim - 1)).astype(wide)
        return weights * dense[columns].astype(wide)

    like = jax.ShapeDtypeStruct((shape[0], *dense.shape[1:]), wide)
    # A few columns are fastest at once, many in pieces that stay in the caches.
    chunk = max(_PIECE // width, 64) if width >= 8 and values.size * width > 8 * _PIECE else None
    sums = sum_rows(
        products, (values, columns), rows, like, chunk or values.size, is_sorted=is_sorted
    )
    return sums.astype(dtype)
