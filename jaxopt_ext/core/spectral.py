"""Functions of eigenvalues, with derivatives that survive repeated ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _apply(vectors, values):
    return (vectors * values[..., None, :]) @ jnp.swapaxes(vectors.conj(), -1, -2)


@jax.custom_jvp
def positive_part(matrix: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
    """$Q \\max(\\Lambda, 0) Q^*$ of Hermitian matrices."""
    values, vectors = jnp.linalg.eigh(matrix)
    return _apply(vectors, jnp.maximum(values, 0))


@positive_part.defjvp
def _positive_part_jvp(primals, tangents):
    (matrix,), (direction,) = primals, tangents
    return positive_part(matrix), positive_part_derivative(matrix, direction)


def positive_part_derivative(matrix, direction):
    """The derivative of the positive part along a direction, that can itself be differentiated.

    $M = DP(A)[H]$ solves $|A| M + M |A| = PH + HP$. The eigenvectors that solve this count as
    constants, and all further derivatives are those of the equation: eigenvectors have none where
    eigenvalues are repeated. $H$ stands among the unknowns, because divided differences lose
    nothing where sums of small eigenvalues would.
    """
    frozen = jax.lax.stop_gradient(matrix)
    positive = positive_part(matrix)
    size = 2 * positive - matrix  # |A|

    def equations(unknowns):
        moved, given = unknowns
        return jnp.stack([_anticommutator(size, moved) - _anticommutator(positive, given), given])

    def solve(_, rhs):
        return jnp.stack([_slopes(frozen, rhs[1]) + _lyapunov(frozen, rhs[0]), rhs[1]])

    def solve_transposed(_, rhs):
        moved, given = rhs.conj()  # the transpose of A is its conjugate
        return jnp.stack([_lyapunov(frozen, moved), given + _slopes(frozen, moved)]).conj()

    # One array: JAX transposes a solve only if no leaf of its right-hand side stands still.
    rhs = jnp.stack([jnp.zeros_like(direction), direction])
    return jax.lax.custom_linear_solve(equations, rhs, solve, solve_transposed)[0]


def _slopes(matrix, direction):
    """Daleckii-Krein: divided differences of the positive part in the eigenbasis of `matrix`.

    Of two eigenvalues on one side of zero that is the slope there, with nothing cancelled however
    close they are.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    low, high = values[..., :, None], values[..., None, :]
    gap, positive = low - high, lambda v: (v > 0).astype(v.dtype)
    quotient = (jnp.maximum(low, 0) - jnp.maximum(high, 0)) / jnp.where(gap == 0, 1, gap)
    table = jnp.where(positive(low) == positive(high), positive(low), quotient)
    return _in_basis(vectors, lambda inside: table * inside, direction)


def _in_basis(vectors, fun, matrix):
    """$V f(V^* M V) V^*$."""
    adjoint = jnp.swapaxes(vectors.conj(), -1, -2)
    return vectors @ fun(adjoint @ matrix @ vectors) @ adjoint


def _lyapunov(matrix, rhs):
    """$X$ with $|A| X + X |A| = C$, without what both ends of it are rounding of zero for."""
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.abs(values)
    total = values[..., :, None] + values[..., None, :]
    least = 8 * values.shape[-1] * jnp.finfo(values.dtype).eps
    there = total > least * jnp.max(values, axis=-1, keepdims=True)[..., None]
    divide = lambda inside: jnp.where(there, inside / jnp.where(there, total, 1), 0)
    return _in_basis(vectors, divide, rhs)


def _anticommutator(a, b):
    return a @ b + b @ a
