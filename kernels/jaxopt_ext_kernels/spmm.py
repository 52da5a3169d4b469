"""Block-sparse matrix times dense matrix."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu, triton as plt
from jaxtyping import Array, Float

from .formats import BCSR

Implementation = Literal["pallas", "xla"] | None


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
    padded = jnp.pad(dense, ((0, -dense.shape[0] % c), (0, 0)))
    body = _xla if implementation == "xla" else functools.partial(_pallas, tile)
    return body(matrix, padded)[:m].astype(dtype)


def _accumulator(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _xla(matrix, dense):
    r, c = matrix.block
    tiles = dense.reshape(matrix.block_columns, c, -1)[matrix.columns]
    products = jnp.einsum(
        "nij,njk->nik",
        matrix.values,
        tiles,
        preferred_element_type=_accumulator(matrix.values, dense),
    )
    sums = jax.ops.segment_sum(products, matrix.rows, matrix.block_rows, indices_are_sorted=True)
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
    block, which stays in fast memory between them."""
    r, c = matrix.block
    out_dtype = _accumulator(matrix.values, dense)

    def kernel(rows, columns, values, tile_in, out):
        n = pl.program_id(1)
        begins = (n == 0) | (rows[n] != rows[jnp.maximum(n - 1, 0)])

        @pl.when(begins)
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += jnp.dot(values[0], tile_in[...], preferred_element_type=out.dtype)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((matrix.block_rows * r, dense.shape[1]), out_dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(dense.shape[1] // tile, matrix.values.shape[0]),
            in_specs=[
                pl.BlockSpec((1, r, c), lambda t, n, rows, columns: (n, 0, 0)),
                pl.BlockSpec((c, tile), lambda t, n, rows, columns: (columns[n], t)),
            ],
            out_specs=pl.BlockSpec((r, tile), lambda t, n, rows, columns: (rows[n], t)),
        ),
        interpret=interpret,
    )(matrix.rows, matrix.columns, matrix.values, dense)


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
