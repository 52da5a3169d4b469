"""Smooth functions as coordinate methods see them: one entry, or one block, at a time.

A model keeps what makes a coordinate cheap, the predictions $z = Xw$ of a linear loss or the
product $Ax$ of a quadratic, and moves it along with the point.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core import checks, tree
from ..core.objectives import AbstractLinearLoss
from ..core.operators import is_sparse


class AbstractCoordinateModel(eqx.Module):
    """A smooth function $f$ of an array `w` with leading axis `d`, and what is kept of its point.

    Blocks are given by their indices, shape `(s,)`; those of `d` or more stand for nothing, so that
    blocks of different lengths have one shape.
    """

    @abc.abstractmethod
    def predictions(self, w: Float[Array, "d *k"]) -> Array:
        """What is kept of a point, linear in it."""

    @abc.abstractmethod
    def partial(self, w: Float[Array, "d *k"], z: Array, j: Int[Array, ""]) -> Array:
        """$\\nabla_j f(w)$."""

    @abc.abstractmethod
    def gradient(self, w: Float[Array, "d *k"], z: Array) -> Float[Array, "d *k"]:
        """$\\nabla f(w)$."""

    @abc.abstractmethod
    def move(self, z: Array, j: Int[Array, ""], move: Array) -> Array:
        """What is kept, after entry `j` moved."""

    @abc.abstractmethod
    def value(self, w: Float[Array, "d *k"], z: Array) -> Float[Array, ""]:
        """$f(w)$."""

    @abc.abstractmethod
    def block(self, indices: Int[Array, " s"]) -> "AbstractBlock":
        """The function of a block of entries, the others being where they are."""


class AbstractBlock(eqx.Module):
    """A block of entries of a model."""

    @abc.abstractmethod
    def partial(self, w: Float[Array, "d *k"], z: Array) -> Float[Array, "s *k"]:
        """The block's entries of $\\nabla f(w)$."""

    @abc.abstractmethod
    def move(self, z: Array, move: Float[Array, "s *k"]) -> Array:
        """What is kept, after the block moved."""

    @abc.abstractmethod
    def value(self, w: Float[Array, "d *k"], z: Array, move: Float[Array, "s *k"]) -> Array:
        """$f$ after such a move."""


def gather(x: Array, indices: Int[Array, " s"]) -> Array:
    """Entries of the leading axis; zeros where an index stands for nothing."""
    return x.at[indices].get(mode="fill", fill_value=0)


def scatter_add(x: Array, indices: Int[Array, " s"], move: Array) -> Array:
    """Move entries of the leading axis."""
    return x.at[indices].add(move.astype(x.dtype), mode="drop")


class _ColumnsBlock(AbstractBlock):
    """Of a linear loss: some of its columns."""

    loss: AbstractLinearLoss
    columns: Float[Array, "s n"]

    def partial(self, w, z):
        return _like(self.columns.conj() @ _slopes(self.loss, z).T, w)

    def move(self, z, move):
        return z + (move.T @ self.columns if move.ndim > 1 else move @ self.columns)

    def value(self, w, z, move):
        return self.loss.of_predictions(self.move(z, move).T)


class _GeneralBlock(AbstractBlock):
    """Of anything: the entries themselves."""

    model: AbstractCoordinateModel
    indices: Int[Array, " s"]

    def partial(self, w, z):
        return tree.gradient(
            lambda move: self.value(w, z, move), jnp.zeros_like(gather(w, self.indices))
        )

    def move(self, z, move):
        return z

    def value(self, w, z, move):
        w = scatter_add(w, self.indices, move)
        return self.model.value(w, self.model.predictions(w))


class _QuadraticBlock(AbstractBlock):
    """Of a quadratic: some rows of its matrix."""

    linear: Float[Array, " d"]
    rows: Float[Array, "s d"]
    indices: Int[Array, " s"]

    def partial(self, w, z):
        return gather(z - self.linear, self.indices)

    def move(self, z, move):
        return z + move @ self.rows

    def value(self, w, z, move):
        w = scatter_add(w, self.indices, move)
        return 0.5 * jnp.vdot(w, self.move(z, move)) - jnp.vdot(self.linear, w)


class Quadratic(eqx.Module):
    """$f(x) = \\tfrac12 x^\\top A x - b^\\top x$, as a function that coordinate methods know.

    **Arguments:**

    - `matrix`: $A$, symmetric positive semidefinite, shape `(d, d)`.
    - `linear`: $b$, shape `(d,)`.

    **Raises:** `ValueError` if the shapes do not fit.
    """

    matrix: Float[Array, "d d"] = eqx.field(converter=jnp.asarray)
    linear: Float[Array, " d"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        shape = jnp.shape(self.matrix)
        if len(shape) < 2 or shape[-1:] != jnp.shape(self.linear)[-1:] or shape[-1] != shape[-2]:
            raise ValueError(
                f"matrix must be (d, d) and linear (d,), got {shape} and {jnp.shape(self.linear)}"
            )

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return 0.5 * jnp.vdot(x, self.matrix @ x) - jnp.vdot(self.linear, x)


class QuadraticModel(AbstractCoordinateModel):
    """A quadratic, with its product kept."""

    fun: Quadratic

    def predictions(self, w):
        return self.fun.matrix @ w

    def partial(self, w, z, j):
        return z[j] - self.fun.linear[j]

    def gradient(self, w, z):
        return z - self.fun.linear

    def move(self, z, j, move):
        return z + move * self.fun.matrix[j]

    def value(self, w, z):
        return 0.5 * jnp.vdot(w, z) - jnp.vdot(self.fun.linear, w)

    def block(self, indices):
        return _QuadraticBlock(self.fun.linear, gather(self.fun.matrix, indices), indices)


class LinearModel(AbstractCoordinateModel):
    """A linear loss with its columns laid out as contiguous rows."""

    loss: AbstractLinearLoss
    columns: Float[Array, "d n"]

    def predictions(self, w):
        return w.T @ self.columns if w.ndim > 1 else w @ self.columns

    def partial(self, w, z, j):
        return _like(_slopes(self.loss, z) @ self.columns[j].conj(), w)

    def gradient(self, w, z):
        return _like(self.columns.conj() @ _slopes(self.loss, z).T, w)

    def move(self, z, j, move):
        return z + jnp.multiply.outer(move, self.columns[j])

    def value(self, w, z):
        return self.loss.of_predictions(z.T)

    def block(self, indices):
        return _ColumnsBlock(self.loss, gather(self.columns, indices))


class SparseLinearModel(AbstractCoordinateModel):
    """The same with a sparse $X^\\top$, of whose rows only entries are read."""

    loss: AbstractLinearLoss
    columns: Any

    def predictions(self, w):
        return w.T @ self.columns if w.ndim > 1 else w @ self.columns

    def _column(self, j):
        """Places and values of one column, padded to the length that is known to suffice."""
        X = self.columns
        length = min(X.nnz, X.shape[1])
        start, end = X.pointers[j], X.pointers[j + 1]
        begin = jnp.clip(start, 0, X.nnz - length)
        cut = lambda array: jax.lax.dynamic_slice(array, (begin,), (length,))
        index = begin + jnp.arange(length, dtype=begin.dtype)
        there = (index >= start) & (index < end)
        return cut(X.columns), jnp.where(there, cut(X.values), 0)

    def partial(self, w, z, j):
        places, values = self._column(j)
        return _like(_slopes(self.loss, z)[..., places] @ values.conj(), w)

    def gradient(self, w, z):
        return _like(self.columns.conj() @ _slopes(self.loss, z).T, w)

    def move(self, z, j, move):
        places, values = self._column(j)
        return z.at[..., places].add(jnp.multiply.outer(move, values))

    def value(self, w, z):
        return self.loss.of_predictions(z.T)

    def block(self, indices):
        """The rows are made dense, `s` of them."""
        d, n = self.columns.shape

        def column(j):
            places, values = self._column(jnp.minimum(j, d - 1))
            return jnp.zeros(n, values.dtype).at[places].add(jnp.where(j < d, values, 0))

        return _ColumnsBlock(self.loss, jax.vmap(column)(indices))


def _slopes(loss, z):
    return tree.gradient(lambda z: loss.of_predictions(z.T), z)


def _like(gradient, w):
    """With complex data, the gradient in real coefficients is the real part."""
    return gradient if jnp.iscomplexobj(w) else gradient.real


class GeneralModel(AbstractCoordinateModel):
    """Any smooth function; there is nothing to keep."""

    fun: Callable[[Array], Float[Array, ""]]

    def predictions(self, w):
        return jnp.zeros((), w.dtype)

    def partial(self, w, z, j):
        return tree.gradient(lambda block: self.fun(w.at[j].set(block)), w[j])

    def gradient(self, w, z):
        return tree.gradient(self.fun, w)

    def move(self, z, j, move):
        return z

    def value(self, w, z):
        return self.fun(w)

    def block(self, indices):
        return _GeneralBlock(self, indices)


def coordinate_model(smooth: Callable[[Array], Float[Array, ""]]) -> AbstractCoordinateModel:
    """The model of a smooth function: by predictions for the losses of `objectives`, by the product
    for a `Quadratic`, its own for a function with a method `coordinate_model`, by derivatives for
    any other.

    **Raises:** `TypeError` for a loss whose matrix is a `BCSR`.
    """
    if isinstance(smooth, Quadratic):
        return QuadraticModel(smooth)
    if checks.has_method(smooth, "coordinate_model"):
        return smooth.coordinate_model()
    if isinstance(smooth, AbstractLinearLoss):
        if is_sparse(smooth.matrix):
            if hasattr(smooth.matrix, "block"):
                raise TypeError("coordinate descent reads columns of a matrix or a CSR, not a BCSR")
            return SparseLinearModel(smooth, smooth.matrix.T)
        return LinearModel(smooth, smooth.matrix.T)
    return GeneralModel(smooth)


def coordinate_bounds(
    lipschitz: Float[Array, "..."] | None, smooth: Any, x: Float[Array, "d *k"]
) -> Float[Array, " d"]:
    """Bounds on the curvature of each entry of the leading axis: those given, or those known.

    **Raises:** `ValueError` if there is not one for each entry; `TypeError` if none is known.
    """
    if not (isinstance(x, jax.Array) and x.ndim > 0):
        raise TypeError("block coordinate descent works on the leading axis of one array")
    dtype = tree.real_dtype(x)
    if lipschitz is not None:
        if lipschitz.shape not in ((), (1,), x.shape[:1]):
            raise ValueError(
                f"lipschitz must have one entry for each of {x.shape[0]} blocks, got shape "
                f"{lipschitz.shape}"
            )
        return jnp.broadcast_to(lipschitz.astype(dtype), x.shape[:1])
    if isinstance(smooth, Quadratic):
        bounds = jnp.diagonal(smooth.matrix).astype(dtype)
        return jnp.where(bounds > 0, bounds, 1)
    if checks.has_method(smooth, "curvature_bound"):
        return smooth.curvature_bound().diagonal().astype(dtype)
    if not isinstance(smooth, AbstractLinearLoss):
        raise TypeError("give lipschitz: only the losses in objectives know their own bounds")
    if smooth.curvature == float("inf"):
        raise TypeError(f"give lipschitz: {type(smooth).__name__} has unbounded curvature")
    bounds = smooth.coordinate_lipschitz().astype(dtype)
    # A column of zeros never moves its block; any positive bound will do.
    return jnp.where(bounds > 0, bounds, 1)
