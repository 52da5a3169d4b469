"""Sparse matrix times sparse matrix."""

import functools
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu, triton as plt
from jaxtyping import Array, Bool, Int

from ._chunks import vary_like
from .formats import CSR, int32, known_places
from .spmm import Implementation

_LARGEST_TABLE = 1 << 14
"""Products of a window whose hash table fits the scalar memory of a TPU."""

_LARGEST_TAGS = 1 << 15
"""Products of a window whose tags alone fit it."""

_PIECE = 1 << 10
"""Products of a window that are in scalar memory at once, if the sums are not."""

_RUN = 128
"""Sorted products that a GPU program merges."""


class ProductRecord(eqx.Module):
    """All partial products of two patterns, and where each of them goes.

    Made by `spgemm_symbolic` with `record=True`, for products of the same patterns again and again.

    **Attributes:**

    - `entries`, `others`: the factors of each product, stored entries of $A$ and of $B$.
    - `slots`: the entry of the result that it is added to.
    - `columns`, `rows`, `pointers`, `order`: of the result, as of a `CSR`.
    - `pattern`: columns and pointers of $A$ and of $B$, which another product must share.
    """

    entries: Int[Array, " products"]
    others: Int[Array, " products"]
    slots: Int[Array, " products"]
    columns: Int[Array, " nnz"]
    rows: Int[Array, " nnz"]
    pointers: Int[Array, " m_1"]
    order: Int[Array, " nnz"]
    pattern: tuple[Array, Array, Array, Array]


class SpGEMMPlan(eqx.Module):
    """The symbolic phase of a sparse product: windows of rows, and bounds that are static.

    Made by `spgemm_symbolic`. It may serve other matrices of the same shapes whose products fit;
    one with a `record` serves other values in the same places only.

    **Attributes:**

    - `starts`: the first row of each window, shape `(windows + 1,)`.
    - `work`: products of each window, shape `(windows,)`, as they were counted.
    - `products`: partial products in all.
    - `capacity`: room for the partial products of a window.
    - `rows`: rows of a window, at most.
    - `nnz`: room for the entries of the result.
    - `record`: the partial products one by one, or `None`.
    """

    starts: Int[Array, " windows_1"]
    work: Int[Array, " windows"]
    products: int = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    nnz: int = eqx.field(static=True)
    record: ProductRecord | None = None


class SpGEMM(NamedTuple):
    """A sparse product.

    **Attributes:**

    - `matrix`: sorted, without duplicates, padded to the plan's `nnz`.
    - `overflow`: whether the plan's bounds were too small, or its record is that of other places.
      Then the values are NaN.
    """

    matrix: CSR
    overflow: Bool[Array, ""]


class HashTable(NamedTuple):
    """The table in which the Pallas body merges products on a TPU. The product is the same.

    **Attributes:**

    - `order`: `"scattered"` puts a place anywhere, by Fibonacci hashing; `"high bits"` in the order
      of the high bits of row and column, so that the table is nearly sorted when it is written
      back, but a window whose rows have unlike numbers of products fills some parts of the table
      sooner than others, and probes longer there (the second version of the thesis).
    - `sums`: in scalar memory with the `"tags"`, or in main `"memory"`: then scalar memory holds
      the tags and a piece of the products at a time, double-buffered, and a window may have twice
      as many (the third version).

    **Reference:** Bhattarai, SMASH: Sparse Matrix Atomic Scratchpad Hashing, 2021,
    arXiv:2105.14156.
    """

    order: Literal["scattered", "high bits"] = "scattered"
    sums: Literal["tags", "memory"] = "tags"

    @property
    def largest_window(self) -> int:
        """Products of a window, at most."""
        return _LARGEST_TABLE if self.sums == "tags" else _LARGEST_TAGS


SCATTERED = HashTable()


def spgemm_symbolic(
    A: CSR,
    B: CSR,
    *,
    window: int = 4096,
    nnz: int | None = None,
    split: Literal["products", "rows"] = "products",
    record: bool = False,
) -> SpGEMMPlan:
    """Count the partial products of $AB$, cut its rows into windows and bound its entries.

    It runs on the host, once for each pair of patterns.

    **Arguments:**

    - `A`, `B`: shapes `(m, k)` and `(k, n)`.
    - `window`: partial products of a window; one row may have more and then is alone.
    - `nnz`: room for the result; `None` for what it needs, which is counted.
    - `split`: windows of consecutive rows with about as many `"products"` as the others (the second
      version of the thesis), or as many windows of equally many `"rows"` (the first one).
    - `record`: write down where each partial product goes, 12 bytes for each. The XLA body then
      neither searches nor sorts, which is several times faster where many products have the same
      places, as in a solver; and holds for these places only.

    **Raises:** `ValueError` if shapes do not fit, `window` or `nnz` is not positive, `split` is
    unknown, the partial products are $2^{31}$ or more, or `nnz` is too small for a record;
    `TypeError` if the places are traced or
    `A`, `B` no `CSR`.
    """
    _check_fit(A, B)
    if window < 1:
        raise ValueError(f"window must be positive, got {window}")
    if nnz is not None and nnz < 0:
        raise ValueError(f"nnz must not be negative, got {nnz}")
    if split not in ("products", "rows"):
        raise ValueError(f"split must be 'products' or 'rows', got {split!r}")
    m, n = A.shape[0], B.shape[1]
    (rows, middle), (_, columns) = known_places(A), known_places(B)
    lengths = np.diff(np.asarray(B.pointers).astype(np.int64))[middle]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if ends[-1] >= 2**31:
        raise ValueError(f"{ends[-1]} partial products do not fit 32-bit counters")
    until = ends[np.searchsorted(rows, np.arange(m + 1))]  # products before each row
    starts = _packed(until, window)
    if split == "rows":
        starts = np.linspace(0, m, len(starts)).round().astype(np.int64)
    work = np.diff(until[starts])
    heads = np.asarray(B.pointers).astype(np.int64)[middle]
    recorded = _record(A, B, rows, lengths, heads, ends, columns, nnz) if record else None
    if recorded is not None:
        nnz = recorded.columns.shape[0]
    elif nnz is None:
        nnz = 0
        for low, high in _pairs(_packed(until, 1 << 20)):
            low, high = np.searchsorted(rows, (low, high))
            some = lengths[low:high]
            shift = np.repeat(heads[low:high] - np.cumsum(some) + some, some)
            keys = np.repeat(rows[low:high], some) * max(n, 1)
            nnz += len(np.unique(keys + columns[shift + np.arange(len(shift))]))
    return SpGEMMPlan(
        int32(starts),
        int32(work),
        int(ends[-1]),
        int(max(work.max(initial=1), 1)),
        int(np.diff(starts).max(initial=1)),
        int(nnz),
        recorded,
    )


def _record(A, B, rows, lengths, heads, ends, columns, nnz):
    """The products one by one, in the order of the entries of $A$."""
    (m, n), wide = (A.shape[0], B.shape[1]), max(B.shape[1], 1)
    entries = np.repeat(np.arange(len(lengths)), lengths)
    others = heads[entries] + np.arange(ends[-1]) - ends[:-1][entries]
    places, slots = np.unique(rows[entries] * wide + columns[others], return_inverse=True)
    count = len(places)
    if nnz is not None and nnz < count:
        raise ValueError(f"nnz={nnz} is too small for the record of {count} entries")
    # Its format has the padding and the order that such a matrix has.
    found = CSR.from_coo(np.zeros(count), places // wide, places % wide, (m, n), nnz=nnz)
    assert found.order is not None
    pattern = (A.columns, A.pointers, B.columns, B.pointers)
    lists = [int32(x) for x in (entries, others, slots)]
    format_of = found.columns, found.rows, found.pointers, found.order
    return ProductRecord(lists[0], lists[1], lists[2], *format_of, pattern)


def _packed(until, window):
    """Consecutive rows, as many as have at most `window` products, one at least."""
    starts = [0]
    while starts[-1] < len(until) - 1:
        last = np.searchsorted(until, until[starts[-1]] + window, side="right") - 1
        starts.append(max(int(last), starts[-1] + 1))
    return np.asarray(starts)


def _pairs(starts):
    return zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)


def spgemm(
    A: CSR,
    B: CSR,
    plan: SpGEMMPlan | None = None,
    *,
    implementation: Implementation = None,
    table: HashTable = SCATTERED,
) -> SpGEMM:
    """$C = A B$ for sparse $A$ and $B$, row by row, products merged where they arise (SMASH).

    $$C_{i:} = \\sum_{k: A_{ik} \\ne 0} A_{ik} B_{k:}$$

    Rows are taken in windows. The partial products of one are enumerated from the lengths of the
    rows of $B$, merged, and appended to the result, sorted; those of all windows are never there
    together. The Pallas body merges them on a TPU in a hash table in scalar memory, with linear
    probing: an equal tag adds, an empty slot is claimed. On a GPU, where a program has no table of
    its own, they are sorted first and runs are summed with atomic additions. The XLA body sorts,
    and sums runs.

    On a CPU the XLA body takes about ten times as long as scipy, whose result is not sorted: nearly
    half of that sorts, a fifth finds the factors of the products. A plan with a record of them, for
    places that stay, leaves a gather and a scatter, and takes about as long as scipy.

    The pattern of $C$ is that of the boolean product: entries that cancel are kept, as zeros.

    Derivatives in the values of both, of any order and in both modes, take no second merge: each
    partial product finds its entry of $C$ by bisection in its row,
    $\\bar A_{ik} = \\sum_j \\bar C_{ij} B_{kj}$ at the places of $A$ only.

    **Arguments:**

    - `A`, `B`: shapes `(m, k)` and `(k, n)`.
    - `plan`: from `spgemm_symbolic`; `None` makes one, which needs places that are not traced.
    - `implementation`: `"pallas"`, `"xla"`, or `None` for Pallas on TPU and GPU and XLA elsewhere.
      On a CPU Pallas is interpreted, for tests. The Pallas body is not for `shard_map` with its
      check on.
    - `table`: how the Pallas body merges on a TPU; other bodies have no table.

    **Returns:** the matrix, in the wider type of the two, and whether a bound was too small.

    **Raises:** `ValueError` if shapes do not fit, the implementation or a field of the table is
    unknown, or a window of the plan is too large for the table of the Pallas body;
    `TypeError` for another format, complex values in the Pallas body, or traced places without a
    plan.

    **Reference:** Bhattarai, SMASH: Sparse Matrix Atomic Scratchpad Hashing, 2021,
    arXiv:2105.14156. Gustavson, Two Fast Algorithms for Sparse Matrices, 1978.
    """
    _check_fit(A, B)
    if implementation is None:
        implementation = "xla" if jax.default_backend() == "cpu" else "pallas"
    if implementation not in ("pallas", "xla"):
        raise ValueError(f"implementation must be 'pallas', 'xla' or None, got {implementation!r}")
    if table.order not in ("scattered", "high bits") or table.sums not in ("tags", "memory"):
        raise ValueError(
            f"order must be 'scattered' or 'high bits' and sums 'tags' or 'memory', got {table}"
        )
    plan = spgemm_symbolic(A, B) if plan is None else plan
    dtype = jnp.result_type(A.values, B.values)
    if implementation == "pallas":
        largest = table.largest_window
        if plan.capacity > largest:
            raise ValueError(
                f"a window of {plan.capacity} products is too large for a table of {largest}"
                "; implementation='xla' has no such limit"
            )
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"the Pallas body is for real values, got {dtype}")
    shape = A.shape[0], B.shape[1]
    if not (A.nnz and B.nnz and plan.nnz):
        overflow = jnp.asarray(False) if not (A.nnz and B.nnz) else _any_product(A, B)
        zero = jnp.zeros(plan.nnz, jnp.int32)
        pointers, values = jnp.zeros(shape[0] + 1, jnp.int32), jnp.zeros(plan.nnz, dtype)
        rows = jnp.full(plan.nnz, max(shape[0] - 1, 0), jnp.int32)
        return SpGEMM(CSR(values, zero, rows, pointers, None, shape), overflow)
    wide = jnp.promote_types(dtype, jnp.float32)
    values = A.values.astype(wide), B.values.astype(wide)
    if plan.record is not None and implementation == "xla":
        return _recorded_product(shape, dtype, *values, A, B, plan.record)
    places = _Places.of(A, B, plan)
    merge = _sorted_merge if implementation == "xla" else functools.partial(_hashed_merge, table)
    found = _product(merge, shape, plan, *jax.lax.stop_gradient(values), places)
    columns, rows, pointers, overflow = found[1:]
    values = _with_derivative(shape, plan.capacity, *values, places, *found)
    matrix = CSR(values.astype(dtype), columns, rows, pointers, None, shape)
    return SpGEMM(matrix, overflow)


def _check_fit(A, B):
    for matrix in (A, B):
        if not isinstance(matrix, CSR):
            raise TypeError(f"expected a CSR, got {type(matrix).__name__}")
    if A.shape[1] != B.shape[0]:
        raise ValueError(f"shapes do not fit: {A.shape} times {B.shape}")


def _recorded_product(shape, dtype, a, b, A, B, record):
    pattern = (A.columns, A.pointers, B.columns, B.pointers)
    pairs = list(zip(pattern, record.pattern, strict=True))
    if any(x.shape != y.shape for x, y in pairs):
        overflow = jnp.asarray(True)
        values = jnp.full(record.columns.shape, jnp.nan, dtype)
    else:
        take = lambda x, at: x.at[at].get(mode="promise_in_bounds")
        products = take(a, record.entries) * take(b, record.others)
        values = vary_like(jnp.zeros(record.columns.shape, a.dtype), (products, record.slots))
        values = values.at[record.slots].add(products, mode="promise_in_bounds")
        overflow = ~functools.reduce(jnp.logical_and, [jnp.all(x == y) for x, y in pairs])
        values = jnp.where(overflow, jnp.nan, values).astype(dtype)
    matrix = CSR(values, record.columns, record.rows, record.pointers, record.order, shape)
    return SpGEMM(matrix, overflow)


def _any_product(A, B):
    return jnp.any(A.in_use & (jnp.diff(B.pointers)[A.columns] > 0))


class _Places(eqx.Module):
    """Where partial products come from."""

    rows: Int[Array, " entries_of_a"]
    middle: Int[Array, " entries_of_a"]
    until: Int[Array, " entries_of_a_1"]  # products of the entries before
    heads: Int[Array, " k_1"]
    columns: Int[Array, " entries_of_b"]
    starts: Int[Array, " windows_1"]
    ends: Int[Array, " windows_1"]  # products before each window

    @classmethod
    def of(cls, A, B, plan):
        lengths = jnp.where(A.in_use, jnp.diff(B.pointers)[A.columns], 0)
        until = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(lengths, dtype=jnp.int32)])
        ends = until[A.pointers[plan.starts]]
        return cls(A.rows, A.columns, until, B.pointers, B.columns, plan.starts, ends)

    def window(self, w, capacity):
        """Products of a window: the entries of A and B, whether there is one, row and column."""
        product = self.ends[w] + jnp.arange(capacity, dtype=jnp.int32)
        there = product < self.ends[w + 1]
        entry = jnp.searchsorted(self.until, product, side="right").astype(jnp.int32) - 1
        entry = jnp.minimum(entry, self.rows.shape[0] - 1)
        other = self.heads[self.middle[entry]] + product - self.until[entry]
        other = jnp.where(there, other, 0)
        return entry, other, there, self.rows[entry], self.columns[other]


def _product(merge, shape, plan, a, b, places):
    capacity, nnz = plan.capacity, plan.nnz
    windows = places.starts.shape[0] - 1
    like = a, b, places

    def append(carry, w):
        count, lengths, rows, columns, values = carry
        entry, other, there, row, column = places.window(w, capacity)
        products = jnp.where(there, a[entry] * b[other], 0)
        row, column = jnp.where(there, row, shape[0]), jnp.where(there, column, 0)
        window = _Window(shape, plan.rows, places.starts[w])
        row, column, value, more = merge(row, column, products, jnp.sum(there), window)
        index = jnp.arange(row.shape[0], dtype=jnp.int32)
        there = index < more
        lengths = lengths.at[row].add(there, mode="drop")
        at = jnp.where(there, count + index, nnz)
        put = lambda array, piece: array.at[at].set(piece, mode="drop")
        carry = put(rows, row), put(columns, column), put(values, value)
        return (count + more, lengths, *carry), None

    start = (
        jnp.asarray(0, jnp.int32),
        jnp.zeros(shape[0], jnp.int32),
        jnp.full(nnz, shape[0] - 1, jnp.int32),
        jnp.zeros(nnz, jnp.int32),
        jnp.zeros(nnz, a.dtype),
    )
    start = jax.tree.map(lambda x: vary_like(x, like), start)
    steps = jnp.arange(windows, dtype=jnp.int32)
    (count, lengths, rows, columns, values), _ = jax.lax.scan(append, start, steps)
    overflow = jnp.any(jnp.diff(places.ends) > capacity) | (count > nnz)
    pointers = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(lengths, dtype=jnp.int32)])
    return jnp.where(overflow, jnp.nan, values), columns, rows, pointers, overflow


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _with_derivative(shape, capacity, a, b, places, values, columns, rows, pointers, overflow):
    """The values found, as a function of those of both matrices."""
    del shape, capacity, a, b, places, columns, rows, pointers, overflow
    return values


@_with_derivative.defjvp
def _with_derivative_jvp(shape, capacity, primals, tangents):
    a, b, places, _, columns, _, pointers, overflow = primals
    slope = _into_entries(shape, capacity, (a, b), tangents[:2], places, columns, pointers)
    # With its derivative again, for the next order.
    values = _with_derivative(shape, capacity, *primals)
    return values, jnp.where(overflow, jnp.nan, slope)


def _into_entries(shape, capacity, values, shifts, places, columns, pointers):
    """$\\dot A B + A \\dot B$ at known entries, window by window."""
    (a, b), (da, db) = values, shifts
    nnz, bits = columns.shape[0], max(shape[1], 1).bit_length()

    def add(total, w):
        entry, other, there, row, column = places.window(w, capacity)
        low, high = pointers[row], pointers[row + 1]
        for _ in range(bits):  # the entry of that column in the row, by bisection
            middle = (low + high) // 2
            before = columns[jnp.minimum(middle, nnz - 1)] < column
            open_ = low < high
            low, high = (
                jnp.where(open_ & before, middle + 1, low),
                jnp.where(open_ & ~before, middle, high),
            )
        slope = jnp.where(there, da[entry] * b[other] + a[entry] * db[other], 0)
        return total.at[jnp.where(there, low, nnz)].add(slope, mode="drop"), None

    like = a, b, da, db, places, columns
    start = vary_like(jnp.zeros(nnz, a.dtype), like)
    steps = jnp.arange(places.starts.shape[0] - 1, dtype=jnp.int32)
    return jax.lax.scan(jax.checkpoint(add), start, steps)[0]


class _Window(NamedTuple):
    """A window of rows of the product."""

    shape: tuple[int, int]
    rows: int
    first: Int[Array, ""]

    def sort(self, row, column):
        """The order of places, those without a row last.

        Place and index in one number are sorted several times faster than side by side.
        """
        size, wide = row.shape[0], max(self.shape[1], 1)
        index = jnp.arange(size, dtype=jnp.int32)
        bits = (size - 1).bit_length()
        largest = (self.rows + 1) * wide << bits
        for kind in (jnp.uint32, jnp.uint64) if _wide() else (jnp.uint32,):
            if largest < 1 << jnp.iinfo(kind).bits:
                local = jnp.minimum(row - self.first, self.rows).astype(kind)
                key = (local * kind(wide) + column.astype(kind)) << kind(bits)
                found = jnp.sort(key | index.astype(kind)) & kind((1 << bits) - 1)
                return found.astype(jnp.int32)
        return jax.lax.sort((row, column, index), num_keys=2)[2]

    def slots(self, row, column, size, order):
        """Where places are looked for first in a table of that size, a power of two."""
        bits = size.bit_length() - 1
        if order == "scattered":
            # Fibonacci hashing; the product wraps around, and its high bits depend on all of both.
            key = row.astype(jnp.uint32) * jnp.uint32(40503) + column.astype(jnp.uint32)
            return (key * jnp.uint32(2654435769) >> jnp.uint32(32 - bits)).astype(jnp.int32)
        # The high bits of row and column side by side: as many of the column as the row leaves.
        of_row, of_column = (max(n - 1, 0).bit_length() for n in (self.rows, self.shape[1]))
        left = bits - of_row
        local = jnp.clip(row - self.first, 0, max(self.rows - 1, 0))
        if left <= 0:
            return local >> -left
        shifted = column >> of_column - left if of_column >= left else column << left - of_column
        return (local << left) | shifted


def _wide():
    return jax.config.read("jax_enable_x64")


def _runs(row, column, order):
    """Sorted places, and the number of the run of equal ones that each is in."""
    row, column = row[order], column[order]
    new = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    run = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new, dtype=jnp.int32)])
    return row, column, run


def _sorted_merge(row, column, products, count, window):
    order = window.sort(row, column)
    row, column, run = _runs(row, column, order)
    size = run.shape[0]
    sums = jax.ops.segment_sum(products[order], run, size, indices_are_sorted=True)
    more = jnp.where(count > 0, run[jnp.maximum(count - 1, 0)] + 1, 0).astype(jnp.int32)
    return *_heads(row, column, run, window.shape), sums, more


def _heads(row, column, run, shape):
    """The places of the runs."""
    size = run.shape[0]
    rows = jnp.full(size, shape[0], jnp.int32).at[run].set(row)
    return rows, jnp.zeros(size, jnp.int32).at[run].set(column)


def _table_size(capacity):
    """A power of two, at least twice as much: half of the slots stay empty."""
    return max(1 << (2 * capacity - 1).bit_length(), 2 * _RUN)


def _hashed_merge(table, row, column, products, count, window):
    shape = window.shape
    size = _table_size(row.shape[0])
    slots = window.slots(row, column, size, table.order)
    on_tpu = _tpu_table if table.sums == "tags" else _tpu_tags
    call = lambda which, **options: functools.partial(which, shape, **options)
    row, column, values = jax.lax.platform_dependent(
        row,
        column,
        products,
        slots,
        count.astype(jnp.int32),
        cpu=call(on_tpu, interpret=True),
        tpu=call(on_tpu),
        cuda=call(_triton_runs),
    )
    order = window.sort(row, column)
    row, column, values = row[order], column[order], values[order]
    return row, column, values, jnp.sum(row < shape[0]).astype(jnp.int32)


def _find(rows, columns, empty, i, j, slot):
    """The slot that a place has or may have, by linear probing."""
    mask = np.int32(rows.shape[0] - 1)

    def taken(s):
        return (rows[s] != empty) & ((rows[s] != i) | (columns[s] != j))

    return jax.lax.while_loop(taken, lambda s: (s + 1) & mask, slot)


def _tpu_table(shape, row, column, products, slots, count, *, interpret=False):
    """Tags and sums of a hash table in scalar memory; the slots left empty have no row."""
    size, empty = _table_size(row.shape[0]), shape[0]

    def kernel(count, row, column, products, slots, rows, columns, values):
        def clear(s, _):
            rows[s] = empty
            columns[s] = 0
            values[s] = jnp.zeros((), values.dtype)
            return 0

        jax.lax.fori_loop(0, size, clear, 0)

        def insert(p, _):
            s = _find(rows, columns, empty, row[p], column[p], slots[p])
            rows[s] = row[p]
            columns[s] = column[p]
            values[s] = values[s] + products[p]
            return 0

        jax.lax.fori_loop(0, count[0], insert, 0)

    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    kinds = [jax.ShapeDtypeStruct((size,), kind) for kind in (jnp.int32, jnp.int32, products.dtype)]
    return pl.pallas_call(
        kernel,
        out_shape=kinds,
        in_specs=[scalar] * 5,
        out_specs=[scalar] * 3,
        interpret=interpret,
    )(jnp.minimum(count, row.shape[0])[None], row, column, products, slots)


def _tpu_tags(shape, row, column, products, slots, count, *, interpret=False):
    """A hash table of which scalar memory has the tags only. Pieces of the products come in while
    the slots of the piece before go out, and the products are added up in main memory."""
    size, empty = _table_size(row.shape[0]), shape[0]
    pieces = -(-row.shape[0] // _PIECE)
    pad = lambda x: jnp.pad(x, (0, pieces * _PIECE - x.shape[0]))
    cut = lambda x: pad(x).reshape(pieces, 1, _PIECE)

    def kernel(count, row, column, slots, rows, columns, found):
        step = pl.program_id(0)

        @pl.when(step == 0)
        def _():
            def clear(s, _):
                rows[s] = empty
                columns[s] = 0
                return 0

            jax.lax.fori_loop(0, size, clear, 0)

        def insert(p, _):
            i, j = row[0, p], column[0, p]
            s = _find(rows, columns, empty, i, j, slots[0, p])
            rows[s] = i
            columns[s] = j
            found[0, p] = s
            return 0

        there = jnp.clip(count[0] - step * np.int32(_PIECE), 0, _PIECE)
        jax.lax.fori_loop(0, there, insert, 0)

        def nothing(p, _):
            found[0, p] = size
            return 0

        jax.lax.fori_loop(there, _PIECE, nothing, 0)

    whole = pl.BlockSpec(memory_space=pltpu.SMEM)
    piece = pl.BlockSpec((None, 1, _PIECE), lambda k: (k, 0, 0), memory_space=pltpu.SMEM)
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    rows, columns, found = pl.pallas_call(
        kernel,
        out_shape=[of(size), of(size), of(pieces, 1, _PIECE)],
        grid=(pieces,),
        in_specs=[whole, piece, piece, piece],
        out_specs=[whole, whole, piece],
        interpret=interpret,
    )(jnp.minimum(count, row.shape[0])[None], *map(cut, (row, column, slots)))
    values = jnp.zeros(size, products.dtype).at[found.ravel()].add(pad(products), mode="drop")
    return rows, columns, values


def _triton_runs(shape, row, column, products, slots, count, *, interpret=False):
    """Sorted products, whose runs are summed: each program adds up the runs within its piece, and
    adds that atomically to the sums, for runs go on from one piece to the next."""
    del slots, count
    size = _table_size(row.shape[0])
    pad = lambda x, fill: jnp.pad(x, (0, size - x.shape[0]), constant_values=fill)
    row, column, products = pad(row, shape[0]), pad(column, 0), pad(products, 0)
    order = _Window(shape, shape[0], jnp.asarray(0, jnp.int32)).sort(row, column)
    row, column, run = _runs(row, column, order)

    def kernel(run, products, before, sums):
        del before
        begin = pl.program_id(0) * _RUN
        own = run[pl.ds(begin, _RUN)]
        first = jnp.min(own)
        lane = jnp.arange(_RUN, dtype=jnp.int32)
        same = (own - first)[:, None] == lane[None, :]
        values = products[pl.ds(begin, _RUN)]
        total = jnp.sum(jnp.where(same, values[:, None], jnp.zeros_like(values)[:, None]), axis=0)
        plt.atomic_add(sums, (first + lane,), total)

    # A piece has fewer runs than products, and so may reach past the last one.
    room = size + _RUN
    whole = lambda size: pl.BlockSpec((size,), lambda i: (0,))
    sums = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((room,), products.dtype),
        grid=(size // _RUN,),
        in_specs=[whole(size), whole(size), whole(room)],
        out_specs=whole(room),
        input_output_aliases={2: 0},
        compiler_params=plt.CompilerParams(),
        interpret=interpret,
    )(run, products[order], jnp.zeros(room, products.dtype))
    return *_heads(row, column, run, shape), sums[:size]
