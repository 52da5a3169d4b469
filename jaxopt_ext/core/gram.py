"""Small convex programs of Gram matrices, solved by exact changes of the active set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from . import loops, tree


def gram(rows: PyTree[Array]) -> Float[Array, "m m"]:
    """Inner products of the rows of a Jacobian, $G = J J^\\top$.

    **Arguments:**

    - `rows`: a pytree of arrays stacked on a leading axis of $m$; a row goes across all leaves.
    """
    # The matrix is as exact as its type: half of the digits are lost in it already.
    with jax.default_matmul_precision("highest"):
        products = jax.vmap(tree.vdot, (None, 0))
        return jax.vmap(products, (0, None))(rows, rows)


def combine(rows: PyTree[Array], weights: Float[Array, " m"]) -> PyTree[Array]:
    """The weighted sum of the rows of a Jacobian, $J^\\top w$, in the types of its leaves."""
    with jax.default_matmul_precision("highest"):
        add = lambda leaf: jnp.tensordot(weights.astype(leaf.real.dtype), leaf, 1)
        return jax.tree.map(add, rows)


class _Scaled(NamedTuple):
    """A program in units in which the Gram matrix has a unit diagonal."""

    G: Float[Array, "m m"]
    C: Float[Array, "*k m"]
    scale: Float[Array, " m"]


def _scaled(G: Float[Array, "m m"], C: Float[Array, "*k m"]) -> _Scaled:
    eps = jnp.finfo(G.dtype).eps
    size = jnp.max(jnp.abs(jnp.diagonal(G)))
    size = jnp.where(size > 0, size, 1)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(G) / size, eps**2))
    return _Scaled(scale[:, None] * (G / size) * scale, scale * (C / size), scale)


def _proximal(dtype, shift):
    return float(jnp.finfo(dtype).eps) ** 0.5 if shift is None else shift


class _Pivots(NamedTuple):
    """Where block principal pivoting stands; `least` and `tries` are those of its exchanges,
    `done` counts proximal steps of the last shift."""

    free: Bool[Array, "*k m"]
    center: Float[Array, "*k m"]
    shift: Float[Array, "*k 1"]
    least: Int[Array, "*k 1"]
    tries: Int[Array, "*k 1"]
    done: Int[Array, "*k 1"]


def _pivot(
    at: _Pivots,
    v: Float[Array, "*k m"],
    excess: Float[Array, "*k m"],
    size: Float[Array, "*k m"],
    known: Bool[Array, "*k 1"],
    added: float,
    rounds: int,
) -> _Pivots:
    """The next free entries, or, where these are right, another center.

    **Arguments:**

    - `v`: the solution on the free entries.
    - `excess`: $Gv - c$ of the shifted program.
    - `size`: of the products that it is a sum of.
    - `known`: whether `v` is exact.
    - `added`, `rounds`: the last shift, and the most steps of it.
    """
    m, eps = v.shape[-1], jnp.finfo(v.dtype).eps
    noise, order = 4 * m * eps, jnp.arange(m)
    most = lambda a: jnp.max(a, axis=-1, keepdims=True)
    running = at.done < rounds
    below = v < -noise * most(jnp.abs(v))
    infeasible = jnp.where(at.free, below, excess < -noise * size) & running
    count = jnp.sum(infeasible, axis=-1, keepdims=True, dtype=jnp.int32)
    tries = jnp.where(count < at.least, 3, at.tries - 1)
    last = most(jnp.where(infeasible, order, -1))
    exchanged = jnp.where(tries > 0, infeasible, order == last) & running
    solved = (count == 0) & known & running
    new = jnp.maximum(v, 0)
    still = most(jnp.abs(new - at.center)) <= 2 * eps * most(new)
    last = solved & (at.shift <= added)
    return _Pivots(
        at.free ^ exchanged,
        jnp.where(solved, new, at.center),
        jnp.where(solved, jnp.maximum(0.1 * at.shift, added), at.shift),
        jnp.where(solved, m + 1, jnp.minimum(count, at.least)),
        jnp.where(solved, 3, tries),
        at.done + jnp.where(last, jnp.where(still, rounds, 1), 0),
    )


def _first(C: Float[Array, "*k m"], shift: float) -> _Pivots:
    column = lambda value, dtype=jnp.int32: jnp.full((*C.shape[:-1], 1), value, dtype)
    return _Pivots(
        C > 0,
        jnp.zeros_like(C),
        column(shift, C.dtype),
        column(C.shape[-1] + 1),
        column(3),
        column(0),
    )


def nonnegative_program(
    G: Float[Array, "m m"],
    c: Float[Array, " m"],
    shift: float | None = None,
    rounds: int = 16,
    turns: int | None = None,
    first: float = 0.0,
) -> Float[Array, " m"]:
    """The minimizer of $\\tfrac12 v^\\top G v - c^\\top v$ over $v \\ge 0$.

    The conditions $v \\ge 0$, $Gv \\ge c$, $v^\\top (Gv - c) = 0$ are met by block principal
    pivoting: each turn solves for the entries that are free and exchanges all that are infeasible,
    or, where that does not reduce their number, one of them, which ends. Rows and columns are
    scaled to a unit diagonal. Since $G$ may be singular, this is done for $G + \\delta I$ and
    $c + \\delta v'$ again and again, with the last solution $v'$: a proximal point method.

    **Arguments:**

    - `G`: positive semidefinite.
    - `c`: where it leaves the range of $G$ the program has no minimizer, and what comes back is a
      long vector along a direction of descent.
    - `shift`: $\\delta$, on the unit diagonal; the root of the rounding unit if `None`.
    - `rounds`: the most proximal steps; fewer once nothing moves.
    - `turns`: the most turns; about ten are usual, many more where $G$ is nearly singular;
      $40 + 10m$ if `None`.
    - `first`: a larger shift to begin with, which comes down by tenths. Turns are fewer then where
      $G$ is nearly singular, and more elsewhere.

    **Returns:** the minimizer; NaN if anything is not finite, or if the turns did not suffice for
    one proximal step.

    **Reference:** Portugal, Judice, Vicente, A Comparison of Block Pivoting and Interior-Point
    Algorithms for Linear Least Squares Problems with Nonnegative Variables, 1994.
    """
    m, dtype = G.shape[0], G.dtype
    turns = 40 + 10 * m if turns is None else turns
    finite = jnp.all(jnp.isfinite(G)) & jnp.all(jnp.isfinite(c))
    G, c, scale = _scaled(jnp.where(finite, G, 0), jnp.where(finite, c, 0))
    added, absolute, identity = _proximal(dtype, shift), jnp.abs(G), jnp.eye(m, dtype=dtype)

    def minimizer(free, shifted, slope):
        """On the free entries, the others zero."""
        inside = jnp.where(free[:, None] & free, shifted, identity)
        factor = jnp.linalg.cholesky(inside)
        v = jnp.zeros_like(c)
        for _ in range(2):
            missed = jnp.where(free, slope - shifted @ v, 0)
            v = v + jax.scipy.linalg.cho_solve((factor, True), missed)
        return v

    def turn(carry):
        at, number = carry
        slope, shifted = c + at.shift * at.center, G + at.shift * identity
        v = minimizer(at.free, shifted, slope)
        size = absolute @ jnp.abs(v) + jnp.abs(slope)
        known = jnp.asarray([True])
        return _pivot(at, v, shifted @ v - slope, size, known, added, rounds), number + 1

    def more(carry):
        at, number = carry
        return (at.done[0] < rounds) & (number < turns)

    with jax.default_matmul_precision("highest"):
        at, _ = loops.while_loop(
            more, turn, (_first(c, max(first, added)), jnp.asarray(0, jnp.int32))
        )
    return jnp.where(finite & (at.done > 0), scale * at.center, jnp.nan)


def nonnegative_programs(G: Float[Array, "m m"], C: Float[Array, "k m"]) -> Float[Array, "k m"]:
    """The minimizers of `nonnegative_program` for many $c$, the rows of $C$, and one $G$.

    Above 16 entries no matrix is factorized: the equations of a turn are solved by conjugate
    gradients, for all rows at once by products with $G$, each from its last solution; on what
    rounding leaves they agree. Where they do not converge, $G$ being too close to singular, or in
    60 turns, the rows that are left are solved by `nonnegative_program` one by one.

    **Arguments:**

    - `G`: positive semidefinite.
    - `C`: as $c$ there.

    **Returns:** the minimizers in rows, with NaN as there.

    **Reference:** Portugal, Judice, Vicente, A Comparison of Block Pivoting and Interior-Point
    Algorithms for Linear Least Squares Problems with Nonnegative Variables, 1994.
    """
    m, dtype = G.shape[0], G.dtype
    if m <= 16:
        return jax.vmap(nonnegative_program, (None, 0))(G, C)
    rounds, added = 16, _proximal(dtype, None)
    finite = jnp.all(jnp.isfinite(G)) & jnp.all(jnp.isfinite(C), axis=1, keepdims=True)
    given = jnp.where(jnp.all(jnp.isfinite(G)), G, 0), jnp.where(finite, C, 0)
    S, C, scale = _scaled(*given)
    shifted, absolute = S + added * jnp.eye(m, dtype=dtype), jnp.abs(S)
    level = m**0.5 * jnp.finfo(dtype).eps
    most = lambda a: jnp.max(jnp.abs(a), axis=1, keepdims=True)

    def turn(carry):
        at, v, met, number = carry
        slope = C + at.shift * at.center
        running = met & (at.done < rounds)
        v = jnp.where(running, jnp.where(at.free, v, 0), v)
        target = level * most(jnp.abs(v) @ absolute + jnp.abs(slope))
        v, met_now = _conjugate_gradients(shifted, at.free & running, slope, v, target)
        met = met & (met_now | ~running)
        size = jnp.abs(v) @ absolute + jnp.abs(slope)
        new = _pivot(at, v, v @ shifted - slope, size, met, added, rounds)
        return new, v, met, number + 1

    def more(carry):
        at, _, met, number = carry
        return jnp.any(met & (at.done < rounds)) & (number < 60)

    met = jnp.full_like(finite, True, shape=(len(C), 1))
    start = _first(C, added), jnp.zeros_like(C), met, jnp.asarray(0, jnp.int32)
    with jax.default_matmul_precision("highest"):
        at, _, met, _ = loops.while_loop(more, turn, start)
    left = ~met | (at.done < rounds)

    def rest(operand):
        G, C, left = operand
        one = lambda _, c: (None, nonnegative_program(G, c, first=0.01))
        # Programs with a slope below zero have the solution zero.
        return loops.scan(one, None, jnp.where(left, C, -1))[1]

    found = scale * at.center
    exact = loops.if_due(jnp.any(left), rest, (*given, left), found)
    return jnp.where(finite, jnp.where(left, exact, found), jnp.nan)


def _conjugate_gradients(A, free, slopes, v, target):
    """Solutions of $A_{FF} v_F = s_F$ in rows, each with free entries of its own, from `v`; and
    whether the residuals came below the target."""
    most = lambda a: jnp.max(jnp.abs(a), axis=1, keepdims=True)
    dot = lambda a, b: jnp.sum(a * b, axis=1, keepdims=True)
    limit = 4 * len(A) + 50

    def more(carry):
        _, r, _, _, number = carry
        return jnp.any(most(r) > target) & (number < limit)

    def turn(carry):
        v, r, p, square, number = carry
        going = most(r) > target
        product = jnp.where(free, p @ A, 0)
        curvature = dot(p, product)
        step = jnp.where(
            going & (curvature > 0), square / jnp.where(curvature > 0, curvature, 1), 0
        )
        v, r = v + step * p, r - step * product
        new = dot(r, r)
        p = r + new / jnp.where(square > 0, square, 1) * p
        return v, r, p, new, number + 1

    r = jnp.where(free, slopes - v @ A, 0)
    start = v, r, r, dot(r, r), jnp.asarray(0, jnp.int32)
    v, r, *_ = loops.while_loop(more, turn, start)
    return v, most(r) <= target


def min_norm_weights(G: Float[Array, "m m"]) -> Float[Array, " m"]:
    """Weights of the point of least norm in a convex hull, $\\min_{w \\in \\Delta} w^\\top G w$.

    They are the minimizer of $\\tfrac12 v^\\top G v - \\sum_i v_i$ over $v \\ge 0$, scaled to the
    sum one. Where many weights will do they are spread; a zero matrix gives equal ones.

    **Arguments:**

    - `G`: the Gram matrix of the points.
    """
    m = G.shape[0]
    v = nonnegative_program(G, jnp.ones_like(G, shape=m), 8 * m * float(jnp.finfo(G.dtype).eps), 2)
    # The sum of squares could overflow where the hull holds the origin, the largest entry cannot.
    largest = jnp.max(v)
    v = jnp.where(largest == 0, 1, v / jnp.where(largest == 0, 1, largest))
    return v / jnp.sum(v)
