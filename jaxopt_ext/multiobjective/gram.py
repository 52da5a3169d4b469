"""Weights of gradients from their Gram matrix, as solutions of small convex programs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import loops
from ..core.gram import min_norm_weights, nonnegative_programs


def dual_cone_weights(G: Float[Array, "m m"], U: Float[Array, "k m"]) -> Float[Array, "k m"]:
    """Weights of projections on the dual cone $\\{d : Jd \\ge 0\\}$, by $G = JJ^\\top$ alone.

    For each row $u$ of $U$ the projection of $J^\\top u$ is $J^\\top w$ with
    $w = \\arg\\min_{v \\ge u} v^\\top G v$. The programs are solved in one batch, exactly up to
    rounding; where $G$ is singular $w$ is one of many, $J^\\top w$ the only one. Up to 16
    objectives are solved by factorizations, more by products with $G$, a few hundred of them; only
    where $G$ is nearly singular, without being of low rank, that ends in factorizations too, one
    row after the other.

    **Arguments:**

    - `G`: the Gram matrix, positive semidefinite.
    - `U`: weights of what is projected.

    **Returns:** $w$ for each row; $u$ itself where $G$ is zero. NaN if anything is not finite, or
    a row was not solved within a limit of turns.

    **Raises:** `ValueError` if the shapes do not fit.

    **Reference:** Quinton, Rey, Jacobian Descent for Multi-Objective Optimization, 2024,
    arXiv:2406.16232.
    """
    _square(G)
    if jnp.ndim(U) != 2 or jnp.shape(U)[1] != len(G):
        raise ValueError(f"U must have shape (k, {len(G)}), got {jnp.shape(U)}")
    with jax.default_matmul_precision("highest"):
        slopes = -U @ G
    return U + nonnegative_programs(G, slopes)


def nash_weights(G: Float[Array, "m m"]) -> Float[Array, " m"]:
    """The minimizer of $\\tfrac12 w^\\top G w - \\sum_i \\log w_i$ over $w > 0$, where
    $(Gw)_i = 1 / w_i$: the bargaining solution of Nash.

    Newton's method, damped so that it converges from anywhere, in relative changes of $w$, whose
    Hessian $\\mathrm{diag}(w) G\\, \\mathrm{diag}(w) + I$ is never singular. Where the hull of the
    gradients holds the origin there is no minimizer, and weights come back that are as long as
    the precision bears.

    **Arguments:**

    - `G`: positive semidefinite; an objective with a zero row counts as one with a unit diagonal.

    **Raises:** `ValueError` if `G` is not square.

    **Reference:** Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya, Multi-Task Learning
    as a Bargaining Game, 2022, arXiv:2202.01017.
    """
    _square(G)
    m, dtype = len(G), G.dtype
    eps = float(jnp.finfo(dtype).eps)
    diagonal = jnp.diagonal(G)
    scale = jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1))
    identity = jnp.eye(m, dtype=dtype)
    G = scale[:, None] * G * scale + jnp.diag(jnp.where(diagonal > 0, 8 * m * eps, 1))

    def turn(carry):
        w, _, number = carry
        scaled = w[:, None] * G * w
        slope = 1 - jnp.sum(scaled, axis=1)
        factor = jnp.linalg.cholesky(scaled + identity)
        move = jax.scipy.linalg.cho_solve((factor, True), slope)
        decrement = jnp.sqrt(jnp.maximum(jnp.vdot(move, slope), 0))
        step = jnp.where(decrement > 0.25, 1 / (1 + decrement), 1)
        return w * (1 + step * move), decrement, number + 1

    def more(carry):
        _, decrement, number = carry
        return (decrement > 0.1 * eps**0.5) & (number < 200)

    first = jnp.full_like(scale, 1) * jnp.sqrt(m / jnp.sum(jnp.abs(G)))
    start = first, jnp.full_like(first[0], jnp.inf), jnp.asarray(0, jnp.int32)
    with jax.default_matmul_precision("highest"):
        w, *_ = loops.while_loop(more, turn, start)
    return scale * w


def _square(G):
    if jnp.ndim(G) != 2 or jnp.shape(G)[0] != jnp.shape(G)[1] or jnp.shape(G)[0] == 0:
        raise ValueError(f"G must have shape (m, m) with m >= 1, got {jnp.shape(G)}")


__all__ = ["dual_cone_weights", "min_norm_weights", "nash_weights"]
