"""Linear maps given as matrices or matrix-free."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from . import checks, loops

LinearMap = Any
"""A matrix, dense or a `CSR` or `BCSR` of `jaxopt_ext_kernels`, a `lineax` operator, a scalar
multiple of the identity, or `None` for the identity."""


class Map(eqx.Module):
    """A linear map with its adjoint, made by `as_map`."""

    forward: Callable[[PyTree[Array]], PyTree[Array]]
    adjoint: Callable[[PyTree[Array]], PyTree[Array]]
    gram: Any = None
    """The number $c$ with $A^* A = c I$, if there is one."""

    def __call__(self, x: PyTree[Array]) -> PyTree[Array]:
        return self.forward(x)


class _Scale(eqx.Module):
    factor: Any

    def __call__(self, x):
        return jax.tree.map(lambda leaf: self.factor * leaf, x)


class _Matrix(eqx.Module):
    matrix: Array
    transposed: bool = eqx.field(static=True)

    def __call__(self, x):
        if not self.transposed:
            return self.matrix @ x
        if is_sparse(self.matrix):  # its transpose would have to be put in order first
            return (x.T @ self.matrix.conj()).T
        return self.matrix.conj().T @ x


class _Lineax(eqx.Module):
    operator: lx.AbstractLinearOperator
    transposed: bool = eqx.field(static=True)

    def __call__(self, x):
        operator = lx.conj(self.operator).T if self.transposed else self.operator
        return operator.mv(x)


def is_sparse(matrix: Any) -> bool:
    """Whether this is a `CSR` or a `BCSR` of `jaxopt_ext_kernels`."""
    # Who has one has imported the package, which takes long; nobody else has to.
    kernels = sys.modules.get("jaxopt_ext_kernels")
    return kernels is not None and isinstance(matrix, kernels.CSR | kernels.BCSR)


def as_matrix(matrix: Any) -> Any:
    """A sparse matrix as it is, anything else as an array."""
    return matrix if is_sparse(matrix) else jnp.asarray(matrix)


def entrywise(fun: Callable[[Array], Array], matrix: Any) -> Any:
    """`fun`, which must map 0 to 0, of the entries of a dense or sparse matrix."""
    if is_sparse(matrix):
        return dataclasses.replace(matrix, values=fun(matrix.values))
    return fun(matrix)


def as_map(operator: LinearMap) -> Map:
    """A `Map` from anything that stands for a linear map.

    **Arguments:**

    - `operator`: a matrix of shape `(m, n)`, dense or sparse, a `lineax.AbstractLinearOperator`, a
      scalar, a `Map`, or `None` for the identity.

    **Raises:** `TypeError` for anything else; `ValueError` for an array that is neither a scalar
    nor a matrix.
    """
    if operator is None:
        return Map(_Scale(1), _Scale(1), 1)
    if isinstance(operator, Map):
        return operator
    if isinstance(operator, lx.AbstractLinearOperator):
        return Map(_Lineax(operator, False), _Lineax(operator, True))
    if is_sparse(operator):
        return Map(_Matrix(operator, False), _Matrix(operator, True))
    if isinstance(operator, float | int) or eqx.is_array_like(operator):
        if jnp.ndim(operator) == 0:
            return Map(_Scale(operator), _Scale(jnp.conj(operator)), jnp.abs(operator) ** 2)
        if jnp.ndim(operator) != 2:
            raise ValueError(f"a linear map must be a matrix, got shape {jnp.shape(operator)}")
        matrix = jnp.asarray(operator)
        return Map(_Matrix(matrix, False), _Matrix(matrix, True))
    raise TypeError(f"expected a matrix, a lineax operator, a scalar or None, got {operator!r}")


class _Copy(eqx.Module):
    count: int = eqx.field(static=True)

    def __call__(self, x):
        return jax.tree.map(lambda a: jnp.broadcast_to(-a, (self.count, *a.shape)), x)


def _negative_sum(x):
    return jax.tree.map(lambda a: -jnp.sum(a, axis=0), x)


def minus_copies(count: int) -> Map:
    """$z \\mapsto (-z, \\dots, -z)$, stacked on a leading axis: the map of consensus problems."""
    return Map(_Copy(count), _negative_sum, count)


def norm_bound(operator: Map, x: PyTree[Array], steps: int = 30) -> Array:
    """The norm of a linear map on vectors shaped like `x`, by power iteration, plus 2 %."""
    key = jax.random.key(0)
    flat, unravel = ravel_pytree(x)
    start = jax.random.normal(key, flat.shape, flat.dtype)

    def step(_, v):
        length = jnp.linalg.norm(v)
        v = v / jnp.where(length > 0, length, 1)
        return ravel_pytree(operator.adjoint(operator(unravel(v))))[0]

    v = loops.fori_loop(0, steps, step, start)
    return 1.02 * jnp.sqrt(jnp.linalg.norm(v))


def dense(operator: LinearMap, x: PyTree[Array]) -> Array:
    """The matrix of a linear map on vectors shaped like `x`."""
    if is_sparse(operator):
        return operator.todense()
    if eqx.is_array(operator) and jnp.ndim(operator) == 2:
        return operator
    if isinstance(operator, lx.AbstractLinearOperator):
        return operator.as_matrix()
    flat, unravel = ravel_pytree(x)

    def column(e):
        return ravel_pytree(as_map(operator)(unravel(e)))[0]

    return jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))


def image_shape(name: str, operator: LinearMap, x: PyTree[Array]) -> PyTree:
    """Shapes and types of what a linear map makes of `x`.

    **Raises:** `ValueError` with the name of the map if it does not fit.
    """
    try:
        return jax.eval_shape(as_map(operator), x)
    except TypeError as error:
        raise ValueError(
            f"{name} does not fit a variable shaped {checks.shapes_of(x)}: {error}"
        ) from error


def matrix_or_operator(operator: Any) -> Any:
    """An array with at least two axes; a sparse matrix, `lineax` operator or `Map` as it is."""
    if isinstance(operator, lx.AbstractLinearOperator | Map) or is_sparse(operator):
        return operator
    array = jnp.asarray(operator)
    if array.ndim < 2:
        raise ValueError(f"expected a matrix, got shape {array.shape}")
    return array


def require_size(name: str, operator: Any, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless a map is from `shape[1]` to `shape[0]` numbers; of a `Map` the
    sizes show only where it is applied."""
    is_matrix = eqx.is_array(operator) or is_sparse(operator)
    if is_matrix and operator.shape[-2:] != shape:
        raise ValueError(f"{name} must have shape {shape}, got {operator.shape}")
    if isinstance(operator, lx.AbstractLinearOperator):
        size = (operator.out_size(), operator.in_size())
        if size != shape:
            raise ValueError(f"{name} must map as {shape}, got {size}")
