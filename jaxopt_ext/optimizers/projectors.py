"""Projectors of matrices on a low-dimensional subspace of their smaller side.

A matrix G (m x n) is projected on r directions of its smaller side: from the right when m >= n,
so that the low-rank image is m x r, and from the left otherwise, image r x n. The side follows
from the shape of the matrix alone.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int, Key

from ..core import checks


def from_right(shape: tuple[int, ...]) -> bool:
    """Whether a matrix of this shape is projected from the right, that is, has m >= n."""
    return shape[0] >= shape[1]


def low_shape(shape: tuple[int, int], rank: int) -> tuple[int, int]:
    """Shape of the projection of an m x n matrix: (m, r) if m >= n, else (r, n)."""
    return (shape[0], rank) if from_right(shape) else (rank, shape[1])


def check_rank(rank: int | float, *, minimum: int = 1) -> None:
    """Raise unless `rank` is an int >= `minimum` or a fraction in (0, 1]."""
    if isinstance(rank, float):
        checks.interval("rank", rank, 0.0, 1.0, open_low=True)
    else:
        checks.count("rank", rank, minimum)


def resolve_rank(rank: int | float, shape: tuple[int, ...], name: str = "a matrix") -> int:
    """Number of directions kept of a matrix of this shape.

    **Arguments:**

    - `rank`: an int, or a float in (0, 1]: that fraction of the smaller side, rounded down, at
      least one.
    - `shape`: (m, n).
    - `name`: what the matrix is called in the error message.

    **Raises:** `ValueError` if an int `rank` exceeds min(m, n).
    """
    side = min(shape)
    if isinstance(rank, float):
        return min(side, max(1, int(rank * side)))
    if rank > side:
        raise ValueError(
            f"rank must be at most the smaller side of every matrix, got rank {rank} for {name} of "
            f"shape {tuple(shape)}; pass a fraction such as rank=0.25, or mask this leaf out"
        )
    return rank


class AbstractMatrixProjector(eqx.Module):
    """Chooses r directions of a matrix's smaller side, goes down to them and comes back up.

    With P (k x r, k = min(m, n)) of orthonormal columns, `down` is G P and `up` is Z Pᴴ if
    m >= n; Pᴴ G and P Z otherwise. So `up(down(G))` is the orthogonal projection of G.
    """

    @abc.abstractmethod
    def empty(self, shape: tuple[int, int], rank: int, dtype) -> Array:
        """A basis of the right shape and dtype, to start a state with."""

    @abc.abstractmethod
    def fit(self, gradient: Inexact[Array, "m n"], rank: int, key: Key[Array, ""]) -> Array:
        """A basis for this matrix. `key` is used by the random choices alone."""

    @abc.abstractmethod
    def down(self, gradient: Inexact[Array, "m n"], basis: Array) -> Inexact[Array, "..."]:
        """The low-dimensional image of a matrix: m x r if m >= n, else r x n."""

    @abc.abstractmethod
    def up(
        self, low: Inexact[Array, "..."], basis: Array, shape: tuple[int, int]
    ) -> Inexact[Array, "m n"]:
        """The matrix of this shape that a low-dimensional image stands for."""


def dense_down(gradient: Inexact[Array, "m n"], basis: Inexact[Array, "k r"]) -> Array:
    """G P if m >= n, else Pᴴ G."""
    return gradient @ basis if from_right(gradient.shape) else basis.conj().T @ gradient


def dense_up(low: Array, basis: Inexact[Array, "k r"], shape: tuple[int, int]) -> Array:
    """Z Pᴴ if m >= n, else P Z."""
    return low @ basis.conj().T if from_right(shape) else basis @ low


def index_down(gradient: Inexact[Array, "m n"], basis: Int[Array, " r"]) -> Array:
    """The chosen columns if m >= n, else the chosen rows."""
    return gradient[:, basis] if from_right(gradient.shape) else gradient[basis, :]


def index_up(low: Array, basis: Int[Array, " r"], shape: tuple[int, int]) -> Array:
    """Zeros but for the chosen columns or rows."""
    zeros = jnp.zeros(shape, low.dtype)
    return zeros.at[:, basis].set(low) if from_right(shape) else zeros.at[basis, :].set(low)


class SVDProjector(AbstractMatrixProjector):
    """The r leading singular vectors of the gradient's smaller side: the best rank-r subspace."""

    def empty(self, shape, rank, dtype):
        return jnp.eye(min(shape), rank, dtype=dtype)

    def fit(self, gradient, rank, key):
        u, _, vh = jnp.linalg.svd(gradient, full_matrices=False)
        return vh[:rank].conj().T if from_right(gradient.shape) else u[:, :rank]

    def down(self, gradient, basis):
        return dense_down(gradient, basis)

    def up(self, low, basis, shape):
        return dense_up(low, basis, shape)


class OrthonormalProjector(AbstractMatrixProjector):
    """A uniformly random r-dimensional subspace: Q of a Gaussian matrix."""

    def empty(self, shape, rank, dtype):
        return jnp.eye(min(shape), rank, dtype=dtype)

    def fit(self, gradient, rank, key):
        gaussian = jax.random.normal(key, (min(gradient.shape), rank), gradient.dtype)
        return jnp.linalg.qr(gaussian)[0]

    def down(self, gradient, basis):
        return dense_down(gradient, basis)

    def up(self, low, basis, shape):
        return dense_up(low, basis, shape)


class CoordinateProjector(AbstractMatrixProjector):
    """r columns (m >= n) or rows (m < n), drawn uniformly without replacement.

    The basis is r integers.
    """

    def empty(self, shape, rank, dtype):
        return jnp.arange(rank, dtype=jnp.int32)

    def fit(self, gradient, rank, key):
        return jax.random.permutation(key, min(gradient.shape))[:rank].astype(jnp.int32)

    def down(self, gradient, basis):
        return index_down(gradient, basis)

    def up(self, low, basis, shape):
        return index_up(low, basis, shape)


class TopNormProjector(AbstractMatrixProjector):
    """The r columns (m >= n) or rows (m < n) of largest Euclidean norm.

    The basis is r integers.
    """

    def empty(self, shape, rank, dtype):
        return jnp.arange(rank, dtype=jnp.int32)

    def fit(self, gradient, rank, key):
        axis = 0 if from_right(gradient.shape) else 1
        norms = jnp.sum(jnp.abs(gradient) ** 2, axis=axis)
        return jnp.argsort(norms, descending=True)[:rank].astype(jnp.int32)

    def down(self, gradient, basis):
        return index_down(gradient, basis)

    def up(self, low, basis, shape):
        return index_up(low, basis, shape)
