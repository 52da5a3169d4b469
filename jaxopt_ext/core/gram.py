"""Small convex programs of Gram matrices, solved by exact changes of the active set."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

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


def nonnegative_program(
    G: Float[Array, "m m"], c: Float[Array, " m"], shift: float | None = None, rounds: int = 16
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

    **Returns:** the minimizer; NaN if anything is not finite.

    **Reference:** Portugal, Judice, Vicente, A Comparison of Block Pivoting and Interior-Point
    Algorithms for Linear Least Squares Problems with Nonnegative Variables, 1994.
    """
    m, dtype = G.shape[0], G.dtype
    eps = jnp.finfo(dtype).eps
    finite = jnp.all(jnp.isfinite(G)) & jnp.all(jnp.isfinite(c))
    G, c = jnp.where(finite, G, 0), jnp.where(finite, c, 0)
    size = jnp.max(jnp.abs(jnp.diagonal(G)))
    size = jnp.where(size > 0, size, 1)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(G) / size, eps**2))
    G, c = scale[:, None] * (G / size) * scale, scale * (c / size)
    noise = 4 * m * eps
    added = float(eps) ** 0.5 if shift is None else shift
    shifted, absolute = G + added * jnp.eye(m, dtype=dtype), jnp.abs(G)
    limit = 40 + 10 * m

    def minimizer(free, slope):
        """On the free entries, the others zero."""
        inside = jnp.where(free[:, None] & free, shifted, jnp.eye(m, dtype=dtype))
        factor = jnp.linalg.cholesky(inside)
        v = jnp.zeros_like(c)
        for _ in range(2):
            missed = jnp.where(free, slope - shifted @ v, 0)
            v = v + jax.scipy.linalg.cho_solve((factor, True), missed)
        return v

    def turn(carry):
        free, center, least, tries, done, number = carry
        slope = c + added * center
        v = minimizer(free, slope)
        below = v < -noise * jnp.max(jnp.abs(v))
        rounding = noise * (absolute @ jnp.abs(v) + jnp.abs(slope))
        infeasible = jnp.where(free, below, shifted @ v - slope < -rounding)
        count = jnp.sum(infeasible, dtype=jnp.int32)
        tries = jnp.where(count < least, 3, tries - 1)
        last = jnp.max(jnp.where(infeasible, jnp.arange(m), -1))
        exchanged = jnp.where(tries > 0, infeasible, jnp.arange(m) == last)
        solved = (count == 0) | (number + 1 == limit)
        new = jnp.maximum(v, 0)
        still = jnp.max(jnp.abs(new - center)) <= 2 * eps * jnp.max(new)
        return (
            free ^ exchanged,
            jnp.where(solved, new, center),
            jnp.where(solved, m + 1, jnp.minimum(count, least)),
            jnp.where(solved, 3, tries),
            done + jnp.where(solved, jnp.where(still, rounds, 1), 0),
            number + 1,
        )

    def more(carry):
        *_, done, number = carry
        return (done < rounds) & (number < limit)

    count = lambda value: jnp.asarray(value, jnp.int32)
    start = c > 0, jnp.zeros_like(c), count(m + 1), count(3), count(0), count(0)
    with jax.default_matmul_precision("highest"):
        _, v, *_ = loops.while_loop(more, turn, start)
    return jnp.where(finite, scale * v, jnp.nan)


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
