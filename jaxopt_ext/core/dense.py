"""Small dense linear systems, in batches that do not wait for each other."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import loops

_SMALL = 16


@jax.custom_batching.custom_vmap
def lu_solve(
    matrix: Float[Array, "n n"], columns: Float[Array, "n k"]
) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
    """$A^{-1} B$ by LU with partial pivoting, and the pivots.

    On CPUs a batch of factorizations is cut up for a pool of threads and waits for it in one of
    them; where several such batches stand side by side, a solver's and its derivative's say, all
    threads may wait. So a batch of small matrices is eliminated by array operations here, one of
    larger ones goes through one after the other, and of a matrix that all share there is one
    factorization.

    **Reference:** Golub, Van Loan, Matrix Computations, 2013, chapter 3.
    """
    factors, _, permutation = jax.lax.linalg.lu(matrix)
    options: Any = dict(left_side=True)
    half = jax.lax.linalg.triangular_solve(
        factors, columns[permutation], lower=True, unit_diagonal=True, **options
    )
    x = jax.lax.linalg.triangular_solve(factors, half, lower=False, **options)
    return x, jnp.diagonal(factors)


def _for_one_matrix(solve, matrix, columns):
    """`solve`, whose first result has the columns' shape, for columns in a batch."""
    wide = jnp.moveaxis(columns, 0, -1)
    x, *rest = solve(matrix, wide.reshape(wide.shape[0], -1))
    return jnp.moveaxis(x.reshape(wide.shape), -1, 0), *rest


@lu_solve.def_vmap
def _lu_solve_batch(size, batched, matrix, columns):
    if not batched[0]:
        return _for_one_matrix(lu_solve, matrix, columns), (True, False)
    if not batched[1]:
        columns = jnp.broadcast_to(columns, (size, *columns.shape))
    if 0 < matrix.shape[-1] <= _SMALL:
        return jax.vmap(_eliminated)(matrix, columns), (True, True)
    # Devices other than CPUs have kernels for a batch.
    in_turn = lambda matrix, columns: jax.lax.map(lambda args: lu_solve(*args), (matrix, columns))
    together = jax.vmap(lu_solve.fun)
    out = jax.lax.platform_dependent(matrix, columns, cpu=in_turn, default=together)
    return out, (True, True)


def _eliminated(matrix, columns):
    """The same by Gauss-Jordan elimination."""
    n = matrix.shape[-1]
    index = jnp.arange(n)

    def eliminate(k, carry):
        table, pivots = carry
        column = table[:, k]
        row = jnp.argmax(jnp.where(index >= k, jnp.abs(column), -1))
        at_k, at_row = (index == k)[:, None], (index == row)[:, None]
        chosen = table[row]
        table = jnp.where(at_k, chosen, jnp.where(at_row, table[k], table))
        pivot = chosen[k]
        scaled = chosen / pivot
        table = jnp.where(at_k, scaled, table - table[:, k, None] * scaled)
        return table, jnp.where(index == k, pivot, pivots)

    table = jnp.concatenate([matrix, columns], axis=1)
    table, pivots = loops.fori_loop(0, n, eliminate, (table, jnp.zeros_like(matrix[0])))
    return table[:, n:], pivots


@jax.custom_batching.custom_vmap
def pseudo_solve(
    matrix: Float[Array, "n n"], columns: Float[Array, "n k"]
) -> tuple[Float[Array, "n k"]]:
    """$A^{+} B$ by singular values; those that rounding may have made count as zero.

    A batch goes through one after the other, see `lu_solve`.
    """
    left, values, right = jax.lax.linalg.svd(matrix, full_matrices=False)
    zero = 4 * values.size * jnp.finfo(values.dtype).eps * jnp.max(values, initial=0)
    kept = values > zero
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0 * values)  # a NaN stays one
    product = functools.partial(jnp.matmul, precision="highest")
    return (product(right.T, inverse[:, None] * product(left.T, columns)),)


@pseudo_solve.def_vmap
def _pseudo_solve_batch(size, batched, matrix, columns):
    if not batched[0]:
        return _for_one_matrix(pseudo_solve, matrix, columns), (True,)
    if not batched[1]:
        columns = jnp.broadcast_to(columns, (size, *columns.shape))
    return jax.lax.map(lambda args: pseudo_solve(*args), (matrix, columns)), (True,)


def solve_checked(
    matrix: Float[Array, "n n"], b: Float[Array, " n"], tolerance: Any
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """$A^{-1} b$, and whether its relative residual is small and the pivots show no rank loss."""
    x, pivots = lu_solve(matrix, b[:, None])
    x, pivots = x[:, 0], jnp.abs(pivots)
    rounding = b.size * jnp.finfo(b.dtype).eps
    regular = jnp.min(pivots, initial=jnp.inf) > rounding * jnp.max(pivots, initial=0)
    gap = jnp.linalg.norm(jnp.matmul(matrix, x, precision="highest") - b)
    return x, regular & (gap <= tolerance * jnp.linalg.norm(b))  # False for NaN
