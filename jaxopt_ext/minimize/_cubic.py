"""Regularized second-order steps, from an eigendecomposition that is kept.

With $H = V \\Lambda V^\\top$ at hand every step below costs $O(d^2)$, whatever the gradient and the
regularization, so that a Hessian can serve many steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import loops, tree

Vector = Float[Array, " d"]
Objective = Callable[[Vector], Float[Array, ""]]


class Flat(NamedTuple):
    """A function of one real vector, the vector, and the way back to points."""

    fun: Objective
    x: Vector
    unravel: Callable[[Vector], PyTree[Array]]


def flatten(fun: Callable[[PyTree[Array]], Array], x: PyTree[Array]) -> Flat:
    """A function of pytrees, complex ones too, as one of real vectors.

    **Arguments:**

    - `fun`: the function.
    - `x`: the point.
    """
    flat, unravel = ravel_pytree(tree.real_view(x))
    back = lambda v: tree.complex_view(unravel(v), x)
    return Flat(lambda v: fun(back(v)), flat, back)


def hessian(fun: Objective, x: Vector) -> Float[Array, "d d"]:
    """The symmetrized matrix of second derivatives."""
    _, product = jax.linearize(lambda v: tree.gradient(fun, v), x)
    basis = loops.vary(jnp.eye(x.size, dtype=x.dtype), loops.varying_axes(x))
    matrix = jax.vmap(product)(basis)
    return 0.5 * (matrix + matrix.T)


class Eigen(NamedTuple):
    """A symmetric matrix by its eigenvalues, ascending, and eigenvectors, in columns."""

    values: Vector
    vectors: Float[Array, "d d"]


def eigen(matrix: Float[Array, "d d"]) -> Eigen:
    """The eigendecomposition; of the identity for a matrix that is not finite, whose entries then
    become the eigenvalues' NaN."""
    finite = jnp.all(jnp.isfinite(matrix))
    values, vectors = jnp.linalg.eigh(
        jnp.where(finite, matrix, jnp.eye(*matrix.shape, dtype=matrix.dtype))
    )
    return Eigen(jnp.where(finite, values, jnp.nan), vectors)


def regularized_step(at: Eigen, gradient: Vector, shift: Any) -> Vector:
    """$-(H + \\lambda I)^{+} g$, the least-squares solution where the matrix is singular.

    **Arguments:**

    - `at`: $H$.
    - `gradient`: $g$, shape `(d,)`.
    - `shift`: $\\lambda$.
    """
    values = at.values + shift
    rounding = values.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    zero = jnp.abs(values) <= rounding  # not so for NaN
    along = at.vectors.T @ gradient
    return -at.vectors @ jnp.where(zero, 0, along / jnp.where(zero, 1, values))


def newton_decrement(at: Eigen, gradient: Vector) -> Float[Array, ""]:
    """$\\sqrt{g^\\top H^{+} g}$; NaN if that is negative."""
    return jnp.sqrt(-jnp.vdot(gradient, regularized_step(at, gradient, 0)))


class _Root(NamedTuple):
    excess: Float[Array, ""]  # t = r - boundary
    trials: Int[Array, ""]
    searching: Bool[Array, ""]


def cubic_step(at: Eigen, gradient: Vector, constant: Any, shift: Any = 0.0) -> Vector:
    """The global minimizer of a quadratic model with a cubic penalty,

    $$\\min_h \\langle g, h\\rangle + \\tfrac12 h^\\top H h + \\tfrac\\tau2 |h|^2
      + \\tfrac M6 |h|^3 .$$

    Its length $r$ is the root of the secular equation $|(H + \\tau I + \\tfrac M2 r I)^{-1} g| = r$
    beyond the boundary $r_0 = \\max(0, -2 (\\lambda_{\\min} + \\tau) / M)$, where the matrix is
    positive definite. Newton's method runs on $1 / |h(r)| - 1 / r$, which is concave and
    increasing: from a lower bound the iterates grow to the root and never pass it. In the hard
    case, where $g$ has no part in the lowest eigenspace to speak of and the root does not exist, a
    multiple of the first eigenvector makes up for the missing length.

    **Arguments:**

    - `at`: $H$, of size $d$.
    - `gradient`: $g$, shape `(d,)`.
    - `constant`: $M > 0$.
    - `shift`: $\\tau$.

    **Returns:** $h$, shape `(d,)`; zero only if $g = 0$ and $H + \\tau I$ is semidefinite.

    **Reference:** Nesterov, Polyak, Cubic Regularization of Newton Method and its Global
    Performance, 2006. Conn, Gould, Toint, Trust-Region Methods, 2000, chapter 7.
    """
    dtype = gradient.dtype
    eps = jnp.finfo(dtype).eps
    M, tau = jnp.asarray(constant, dtype), jnp.asarray(shift, dtype)
    along = at.vectors.T @ gradient
    lowest, highest = at.values[0] + tau, at.values[-1] + tau
    boundary = jnp.maximum(0, -2 * lowest / M)
    gaps = at.values - at.values[0] + jnp.maximum(lowest, 0)  # exact next to the boundary

    size = jnp.linalg.norm(along)
    root = lambda s: jnp.sqrt(s**2 + 2 * M * size)
    ratio = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
    high = ratio(2 * size, jnp.abs(lowest) + root(lowest))  # all of g along the lowest eigenvector
    low = ratio(2 * size, highest + root(highest)) - boundary  # all along the highest
    low = jnp.where(highest >= 0, low, 0)
    pole = 2 * jnp.abs(along[0]) / jnp.where(boundary > 0, M * (boundary + high), jnp.inf)
    floor = jnp.where(boundary > 0, eps * (boundary + high), 0)
    start = jnp.maximum(jnp.maximum(low, pole), floor)

    def look(t):
        shifted = gaps + 0.5 * M * t
        h = ratio(along, shifted)
        length = tree.norm(h)  # with a derivative at zero
        bend = 0.5 * M * jnp.sum(ratio(ratio(h, length) ** 2, shifted))
        r = boundary + t
        return h, length - r, ratio(length - r, bend * r + ratio(length, r))

    def advance(s):
        _, gap, move = look(s.excess)
        t = jnp.clip(s.excess + move, s.excess, jnp.maximum(high, s.excess))
        more = (gap > 2 * eps * (boundary + t)) & (t > s.excess) & (s.trials < 100)
        return _Root(jnp.where(gap > 0, t, s.excess), s.trials + 1, more)

    finite = jnp.isfinite(boundary + high + start)
    first = _Root(start, jnp.asarray(0, jnp.int32), finite)
    t = jax.lax.stop_gradient(loops.while_loop(lambda s: s.searching, advance, first).excess)
    _, gap, _ = look(t)
    # Not even the smallest excess is a lower bound: the length that is missing costs nothing there.
    hard = (boundary > 0) & (t <= floor) & (gap < 0)

    def differentiable(t):
        move = look(t)[2]
        return t + (move - jax.lax.stop_gradient(move))

    # The derivative is that of a root, whose value is found: one step of Newton's method has the
    # first, two the second.
    t = jnp.where(hard, t, differentiable(differentiable(t)))
    h, _, _ = look(t)
    r, rest = boundary + t, tree.norm(h[1:])
    square = (r - rest) * (r + rest)
    missing = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    h = jnp.where(hard, h.at[0].set(jnp.where(h[0] < 0, -missing, missing)), h)
    return -at.vectors @ jnp.where(finite, h, jnp.nan)


def newton_point(fun: Callable[[PyTree[Array]], Array], x: PyTree[Array]) -> PyTree[Array]:
    """$x - H^{+} \\nabla f(x)$ with derivatives as if $H$ were constant: at a minimizer these are
    those of the implicit function theorem."""
    flat = flatten(fun, x)
    at = jax.lax.stop_gradient(eigen(hessian(flat.fun, jax.lax.stop_gradient(flat.x))))
    return flat.unravel(flat.x + regularized_step(at, tree.gradient(flat.fun, flat.x), 0))
