"""Sparse matrix times dense matrix."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu, triton as plt
from jaxtyping import Array, Float, Num

from ._chunks import sum_rows
from .formats import BCSR, CSR

Implementation = Literal["pallas", "xla"] | None


def spmm(
    matrix: BCSR | CSR,
    dense: Num[Array, "n *k"],
    *,
    implementation: Implementation = None,
    tile: int = 128,
) -> Num[Array, "m *k"]:
    """$C = A B$ for a sparse $A$, in blocks that may be cut from reordered rows (SMaT).

    An unstructured matrix has entries in many blocks, each of few entries. With rows of similar
    patterns brought together, $PA$ has entries in few, dense ones, which matrix units multiply
    while blocks of zeros are skipped: $C = P^\\top ((PA) B)$. Then $B$ is not moved, only rows of
    the product are gathered.

    ```python
    order = reorder_rows(csr, (16, 16))
    A = BCSR.from_csr(csr, (16, 16), row_order=order)
    C = spmm(A, B)
    ```

    Derivatives in `dense` and in the blocks are those of `bcsr_matmul`; through `BCSR.from_csr`
    those in the blocks become derivatives in the entries of the `CSR`.

    **Arguments:**

    - `matrix`: $A$, shape `(m, n)`. Of a `CSR` the product is entry by entry, in plain XLA.
    - `dense`: $B$, shape `(n, k)`, or a vector; use `vmap` for batches.
    - `implementation`: `"pallas"`, `"xla"`, or `None`, as of `bcsr_matmul`.
    - `tile`: columns of `dense` that a Pallas program works on.

    **Returns:** $C$, in the wider type of the two.

    **Raises:** `ValueError` if shapes do not fit, the implementation is unknown, or is `"pallas"`
    for a `CSR`; `TypeError` for another format.

    **Reference:** Okanovic, Kwasniewski, Sylos Labini, Besta, Vella, Hoefler, High Performance
    Unstructured SpMM Computation Using Tensor Cores, SC 2024, arXiv:2408.11551.
    """
    if isinstance(matrix, CSR):
        if implementation not in (None, "xla"):
            raise ValueError(f"a CSR is multiplied by implementation='xla', not {implementation!r}")
        return matrix @ dense
    if not isinstance(matrix, BCSR):
        raise TypeError(f"expected a BCSR or a CSR, got {type(matrix).__name__}")
    dense = jnp.asarray(dense)
    columns = dense[:, None] if dense.ndim == 1 else dense
    product = bcsr_matmul(matrix, columns, implementation=implementation, tile=tile)
    return product[:, 0] if dense.ndim == 1 else product


def bcsr_matmul(
    matrix: BCSR,
    dense: Float[Array, "n k"],
    *,
    implementation: Implementation = None,
    tile: int = 128,
) -> Float[Array, "m k"]:
    """$C = A B$ for a block-sparse $A$.

    Half-precision inputs are accumulated in single precision. The derivative in `dense` is
    $A^\\top \\bar C$ by the same kernel; that in the blocks is $\\bar C B^\\top$, sampled there.

    **Arguments:**

    - `matrix`: $A$, shape `(m, n)`.
    - `dense`: $B$, shape `(n, k)`; use `vmap` for batches.
    - `implementation`: `"pallas"`, `"xla"`, or `None` for Pallas on TPU and GPU and XLA elsewhere.
      On a CPU Pallas is interpreted, for tests. The XLA body has derivatives of any order in both
      modes, the Pallas body in reverse mode.
    - `tile`: columns of `dense` that a Pallas program works on.

    **Returns:** $C$, in the wider type of the two.

    **Raises:** `ValueError` if shapes do not fit or the implementation is unknown.

    **Reference:** Im, Yelick, Vuduc, Sparsity: Optimization Framework for Sparse Matrix Kernels,
    2004.
    """
    if dense.ndim != 2 or dense.shape[0] != matrix.shape[1]:
        raise ValueError(f"shapes do not fit: {matrix.shape} times {dense.shape}")
    if implementation is None:
        implementation = "xla" if jax.default_backend() == "cpu" else "pallas"
    if implementation not in ("pallas", "xla"):
        raise ValueError(f"implementation must be 'pallas', 'xla' or None, got {implementation!r}")
    dtype = jnp.result_type(matrix.values, dense)
    m, k = matrix.shape[0], dense.shape[1]
    if 0 in (*matrix.shape, k):
        return jnp.zeros((m, k), dtype)
    c = matrix.block[1]
    if matrix.column_order is not None:
        dense = dense[matrix.column_order.order]
    padded = jnp.pad(dense, ((0, -dense.shape[0] % c), (0, 0)))
    body = _xla if implementation == "xla" else functools.partial(_pallas, tile)
    blocks = dataclasses.replace(matrix, row_order=None, column_order=None)
    product = body(blocks, padded)[:m].astype(dtype)
    return product if matrix.row_order is None else product[matrix.row_order.places]


def _accumulator(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


_PIECE = 1 << 17
"""Numbers in a chunk of the products of blocks, if all of them are far more."""

_PREFETCHED = 1 << 17
"""Blocks whose places fit the scalar memory of a TPU."""


def _xla(matrix, dense):
    r, c = matrix.block
    wide = _accumulator(matrix.values, dense)
    tiles = dense.reshape(matrix.block_columns, c, -1)

    def products(blocks):
        values, columns = blocks
        return jnp.einsum("nij,njk->nik", values, tiles[columns], preferred_element_type=wide)

    blocks, size = matrix.values.shape[0], r * dense.shape[1]
    # Many products are made and added in pieces that stay in the caches.
    chunk = blocks if blocks * size <= 8 * _PIECE else max(_PIECE // size, 1)
    like = jax.ShapeDtypeStruct((matrix.block_rows, r, dense.shape[1]), wide)
    entries = matrix.values, matrix.columns
    sums = sum_rows(products, entries, matrix.rows, like, chunk, is_sorted=True)
    return sums.reshape(matrix.block_rows * r, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pallas(tile, matrix, dense):
    return _forward(tile, matrix, dense)


def _forward(tile, matrix, dense):
    k = dense.shape[1]
    dense = jnp.pad(dense, ((0, 0), (0, -k % tile)))
    interpreted = functools.partial(_tpu_call, tile, interpret=True)
    # The platform is known when the program is lowered, not when it is traced.
    product = jax.lax.platform_dependent(
        matrix,
        dense,
        cpu=interpreted,
        tpu=functools.partial(_tpu_call, tile),
        cuda=functools.partial(_triton_call, tile),
    )
    return product[:, :k]


def _vjp_forward(tile, matrix, dense):
    return _forward(tile, matrix, dense), (matrix, dense)


def _vjp_backward(tile, residuals, cotangent):
    matrix, dense = residuals
    r, c = matrix.block
    cotangent = cotangent.astype(jnp.result_type(matrix.values, dense))
    pulled = _forward(tile, matrix.T, cotangent).astype(dense.dtype)
    left = cotangent.reshape(matrix.block_rows, r, -1)[matrix.rows]
    right = dense.reshape(matrix.block_columns, c, -1)[matrix.columns]
    values = jnp.einsum(
        "nik,njk->nij", left, right, preferred_element_type=_accumulator(matrix.values, dense)
    ).astype(matrix.values.dtype)

    # Integers have cotangents of a type of their own.
    def zero(x) -> Any:
        return np.zeros(x.shape, jax.dtypes.float0)

    bar = BCSR(
        values,
        zero(matrix.rows),
        zero(matrix.columns),
        zero(matrix.pointers),
        zero(matrix.order),
        matrix.shape,
    )
    return bar, pulled


_pallas.defvjp(_vjp_forward, _vjp_backward)


def _tpu_call(tile, matrix, dense, *, interpret=False):
    """One program for each block and tile; blocks of a row follow each other and share the output
    block, which stays in fast memory between them.

    Scalar memory holds the places of so many blocks only. Longer lists are cut, and each piece adds
    to what those before have left.
    """
    r, c = matrix.block
    out_dtype = _accumulator(matrix.values, dense)
    blocks, shape = matrix.values.shape[0], (matrix.block_rows * r, dense.shape[1])
    lists = matrix.rows, matrix.columns, matrix.values
    call = functools.partial(_tpu_piece, tile, (r, c), interpret)
    if blocks <= _PREFETCHED:
        return call(None, *lists, dense, jax.ShapeDtypeStruct(shape, out_dtype))
    # Zeros added to the last row stand in for the blocks that the last piece lacks.
    lists = [
        jnp.pad(a, ((0, -blocks % _PREFETCHED), *((0, 0),) * (a.ndim - 1)), mode=mode).reshape(
            -1, _PREFETCHED, *a.shape[1:]
        )
        for a, mode in zip(lists, ("edge", "edge", "constant"), strict=True)
    ]

    def add(total, piece):
        rows, columns, values = piece
        out_shape = jax.ShapeDtypeStruct(shape, out_dtype)
        return call(total, rows, columns, values, dense, out_shape), None

    return jax.lax.scan(add, jnp.zeros(shape, out_dtype), tuple(lists))[0]


def _tpu_piece(tile, block, interpret, total, rows, columns, values, dense, out_shape):
    r, c = block

    def kernel(rows, columns, values, tile_in, *rest):
        *before, out = rest
        n = pl.program_id(1)
        begins = (n == 0) | (rows[n] != rows[jnp.maximum(n - 1, 0)])

        @pl.when(begins)
        def _():
            out[...] = before[0][...] if before else jnp.zeros_like(out)

        out[...] += jnp.dot(values[0], tile_in[...], preferred_element_type=out.dtype)

    result = pl.BlockSpec((r, tile), lambda t, n, rows, columns: (rows[n], t))
    more = [] if total is None else [total]
    return pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(dense.shape[1] // tile, values.shape[0]),
            in_specs=[
                pl.BlockSpec((1, r, c), lambda t, n, rows, columns: (n, 0, 0)),
                pl.BlockSpec((c, tile), lambda t, n, rows, columns: (columns[n], t)),
                *[result for _ in more],
            ],
            out_specs=result,
        ),
        input_output_aliases={4: 0} if more else {},
        interpret=interpret,
    )(rows, columns, values, dense, *more)


def _triton_call(tile, matrix, dense):
    """One program for each block row and tile, which walks over the blocks of its row."""
    r, c = matrix.block
    out_dtype = _accumulator(matrix.values, dense)

    def kernel(pointers, columns, values, whole, out):
        row = pl.program_id(0)

        def add(n, total):
            block = values[n]
            rows = pl.ds(columns[n] * c, c)
            return total + pl.dot(block, whole[rows, :]).astype(out_dtype)

        start = jnp.zeros((r, tile), out_dtype)
        out[...] = jax.lax.fori_loop(pointers[row], pointers[row + 1], add, start)

    everything = lambda array: pl.BlockSpec(array.shape, lambda i, t: (0,) * array.ndim)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((matrix.block_rows * r, dense.shape[1]), out_dtype),
        grid=(matrix.block_rows, dense.shape[1] // tile),
        in_specs=[
            everything(matrix.pointers),
            everything(matrix.columns),
            everything(matrix.values),
            pl.BlockSpec((dense.shape[0], tile), lambda i, t: (0, t)),
        ],
        out_specs=pl.BlockSpec((r, tile), lambda i, t: (i, t)),
        compiler_params=plt.CompilerParams(),
    )(matrix.pointers, matrix.columns, matrix.values, dense)
