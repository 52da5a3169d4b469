"""How far a point is from an equilibrium."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import AbstractInclusion, AbstractSolver, Composite, Game, Smooth, Status, solve, tree


def natural_residual(problem: AbstractInclusion, z: PyTree[Array]) -> Float[Array, ""]:
    """$\\|z - J_G(z - F(z))\\|$, zero exactly at solutions.

    **Arguments:**

    - `problem`: an inclusion.
    - `z`: a point of it.
    """
    return tree.norm(problem.residual(z))


def tangent_residual(
    problem: AbstractInclusion, z: PyTree[Array], u: PyTree[Array]
) -> Float[Array, ""]:
    """$\\|F(z) + u\\|$ for some $u \\in G(z)$: at least the natural residual.

    A step $z = J_{tG}(v)$ knows such a $u$: it is $(v - z) / t$.

    **Arguments:**

    - `problem`: an inclusion.
    - `z`: a point of it.
    - `u`: an element of $G(z)$, shaped like `z`; it is not checked.
    """
    return tree.norm(jax.tree.map(jnp.add, problem.forward(z), u))


def duality_gap(
    A: Float[Array, "m n"], x: Float[Array, " m"], y: Float[Array, " n"]
) -> Float[Array, ""]:
    """$\\max_j (A^\\top x)_j - \\min_i (A y)_i$ of the matrix game $\\min_x \\max_y x^\\top A y$
    over two simplices: what both players together could gain by a better answer.

    **Arguments:**

    - `A`: the payoffs, shape `(m, n)`.
    - `x`, `y`: mixed strategies, shapes `(m,)` and `(n,)`.

    **Raises:** `ValueError` if the shapes do not fit.
    """
    if jnp.shape(A) != jnp.shape(x) + jnp.shape(y):
        raise ValueError(f"A {jnp.shape(A)} does not fit x {jnp.shape(x)} and y {jnp.shape(y)}")
    return jnp.max(x @ A) - jnp.min(A @ y)


def best_response_gain(
    game: Game, z: tuple[PyTree[Array], ...], solver: AbstractSolver | None = None
) -> Float[Array, " n"]:
    """What each player could gain by its best answer, $\\ell_i(z) - \\min_{u \\in C_i} \\ell_i(u,
    z_{-i})$. All are zero exactly at a Nash equilibrium of a game that is convex for each player.

    **Arguments:**

    - `game`: the game; each player's loss is convex in its own decision. A function with a prox
      in place of a set counts as part of the loss.
    - `z`: a decision for each player, within its set.
    - `solver`: solves each player's problem; `None` is `FISTA` to the square root of the rounding
      unit. A problem that it does not solve gives NaN.
    """
    if solver is None:
        from ..minimize import FISTA  # here, as most users of this module never need it

        solver = FISTA(tol=float(jnp.finfo(tree.real_dtype(z)).eps) ** 0.5)

    def of_player(i):
        own = lambda u: game.losses((*z[:i], u, *z[i + 1 :]))[i]
        feasible = None if game.feasible is None else game.feasible[i]
        if feasible is None:
            problem, objective = Smooth(own), own
        else:
            problem = Composite(own, feasible)
            objective = problem.objective
        best = solve(problem, solver, z[i])
        gain = objective(z[i]) - objective(best.value)
        return jnp.where(best.status == Status.converged, gain, jnp.nan)

    return jnp.stack([of_player(i) for i in range(len(z))])
