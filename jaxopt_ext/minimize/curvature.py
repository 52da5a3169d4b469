"""Bounds on a Hessian, as block methods read them: by entries and by blocks, never whole."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core import checks, loops, tree
from ..core.objectives import AbstractLinearLoss
from .coordinate_model import (
    AbstractCoordinateModel,
    Quadratic,
    coordinate_bounds,
    gather,
)


class AbstractCurvature(eqx.Module):
    """A matrix $H$ with $\\nabla^2 f(x) \\preceq H$ for all $x$.

    Blocks are given by their indices, shape `(s,)`; those of `d` or more stand for nothing.
    """

    @abc.abstractmethod
    def diagonal(self) -> Float[Array, " d"]:
        """$H_{ii}$, positive; 1 where it is zero."""

    @abc.abstractmethod
    def block(self, indices: Int[Array, " s"]) -> Float[Array, "s s"]:
        """$H_{bb}$, with zeros for nothing."""

    @abc.abstractmethod
    def row_sums(self) -> Float[Array, " d"]:
        """$\\sum_j |H_{ij}|$, positive."""

    @abc.abstractmethod
    def product(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """$H v$."""

    def bound(self, indices: Int[Array, " s"]) -> Float[Array, ""]:
        """$\\lambda_{\\max}(H_{bb})$, positive."""
        block = self.block(indices)
        if block.shape[0] == 1:
            return _positive(block[0, 0])
        return _positive(jnp.linalg.eigvalsh(block)[-1])


def _positive(x):
    return jnp.where(x > 0, x, jnp.where(jnp.isnan(x), x, 1))


class DiagonalCurvature(AbstractCurvature):
    """Of which only bounds on the entries are known, those of a positive semidefinite Hessian."""

    bounds: Float[Array, " d"]

    def diagonal(self):
        return self.bounds

    def bound(self, indices):
        """The trace, which is all that is known to bound the block."""
        return _positive(jnp.sum(gather(self.bounds, indices)))

    def block(self, indices):
        raise TypeError(_NO_MATRIX)

    def row_sums(self):
        raise TypeError(_NO_MATRIX)

    def product(self, v):
        raise TypeError(_NO_MATRIX)


_NO_MATRIX = (
    "this rule or update needs a matrix that bounds the Hessian: give matrix, or a smooth part "
    "that knows its own, a Quadratic or a loss of objectives with bounded curvature"
)


class DenseCurvature(AbstractCurvature):
    """A matrix that is at hand."""

    matrix: Float[Array, "d d"]

    def diagonal(self):
        return _positive(jnp.diagonal(self.matrix))

    def block(self, indices):
        rows = gather(self.matrix, indices)
        return rows.at[:, indices].get(mode="fill", fill_value=0)

    def row_sums(self):
        return _positive(jnp.sum(jnp.abs(self.matrix), axis=1))

    def product(self, v):
        return self.matrix @ v


class LinearCurvature(AbstractCurvature):
    """$H = \\frac{c}{n} X^\\top X$ of a linear loss with curvature $c$; never formed."""

    model: Any
    diagonals: Float[Array, " d"]
    factor: Float[Array, ""]

    def diagonal(self):
        return self.diagonals

    def block(self, indices):
        columns = self.model.block(indices).columns
        return self.factor * (columns @ columns.T)

    def row_sums(self):
        def one(j):
            column = self.model.block(j[None]).columns[0]
            return jnp.sum(jnp.abs(self.model.columns @ column))

        # Row by row, so that no d x d matrix is there.
        rows = jnp.arange(self.diagonals.size)
        _, sums = loops.scan(lambda carry, j: (carry, one(j)), None, rows)
        return _positive(self.factor * sums)

    def product(self, v):
        return self.factor * (self.model.columns @ (v @ self.model.columns))


def curvature_of(
    smooth: Any,
    model: AbstractCoordinateModel,
    lipschitz: Float[Array, "..."] | None,
    matrix: Float[Array, "d d"] | None,
    x: Float[Array, " d"],
) -> AbstractCurvature | None:
    """The bound that was given, or the one that is known of the function; `None` if neither is.

    **Raises:** `ValueError` if shapes do not fit.
    """
    dtype = tree.real_dtype(x)
    if matrix is not None:
        if matrix.shape != 2 * x.shape:
            raise ValueError(f"matrix must be {2 * x.shape}, got shape {matrix.shape}")
        return DenseCurvature(matrix.astype(dtype))
    if lipschitz is not None:
        return DiagonalCurvature(coordinate_bounds(lipschitz, smooth, x))
    if checks.has_method(smooth, "curvature_bound"):
        return smooth.curvature_bound()
    if isinstance(smooth, Quadratic):
        return DenseCurvature(smooth.matrix.astype(dtype))
    if isinstance(smooth, AbstractLinearLoss) and smooth.curvature < float("inf"):
        factor = jnp.asarray(smooth.curvature / smooth.matrix.shape[0], dtype)
        return LinearCurvature(model, coordinate_bounds(None, smooth, x), factor)
    return None


def largest_eigenvalue(curvature: AbstractCurvature, d: int, dtype: Any) -> Float[Array, ""]:
    """$\\lambda_{\\max}(H)$ by fifty steps of the power method, from below."""

    def turn(_, carry):
        v, _ = carry
        v = curvature.product(v)
        size = tree.norm(v)
        return v / _positive(size), size

    start = jnp.sin(1 + jnp.arange(d, dtype=dtype))
    first = (start / tree.norm(start), jnp.zeros((), dtype))
    return _positive(loops.fori_loop(0, 50, turn, first)[1])


def solve_block(matrix: Float[Array, "s s"], v: Float[Array, " s"]) -> Float[Array, " s"]:
    """$M^+ v$ for a symmetric matrix, by the magnitudes of its eigenvalues."""
    if matrix.shape[0] == 1:
        return v / _positive(jnp.abs(matrix[0]))
    values, vectors = jnp.linalg.eigh(matrix)
    sizes = jnp.abs(values)
    floor = matrix.shape[0] * jnp.finfo(matrix.dtype).eps * jnp.max(sizes)
    inverse = jnp.where(sizes > floor, 1 / jnp.where(sizes > floor, sizes, 1), 0)
    inverse = jnp.where(jnp.isnan(sizes), jnp.nan, inverse)
    return vectors @ (inverse * (vectors.T @ v))
