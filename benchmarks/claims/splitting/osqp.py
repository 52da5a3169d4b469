"""Equilibration and the adaptive penalty of OSQP."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "On badly scaled quadratic programs equilibration with an adaptive penalty at least halves the "
    "iterations to 1e-4 of the method with neither, and polishing then reaches a residual below "
    "1e-8, on each of 5 seeds."
)
SETTINGS = "The defaults on both sides; nothing is chosen. Seeds 0 to 4."


def run() -> Outcome:
    with jax.enable_x64(True):
        table = [_row(seed) for seed in range(5)]
    holds = all(
        2 * row["full"] <= row["plain"] and row["residual polished"] < 1e-8 for row in table
    )
    return Outcome(
        table,
        holds,
        "iterations, at most 50,000; columns scaled by 10^U(-1.5, 1.5). From this tolerance the "
        "authors' package (osqp 1.1.3) polishes seeds 1, 3 and 4 and gives up on 0 and 2. Where "
        "seed 0 meets 1e-4 the rows it holds are not those of the solution, and eight Newton turns "
        "do not lead there; with a tolerance of 1e-5, met after 250, it is polished",
        why="paper: polishing guesses the active rows, and at 1e-4 the guess can be wrong; the "
        "authors' package gives up on seeds too",
    )


def _row(seed):
    rng = np.random.default_rng(seed)
    n, m = 20, 40
    D = 10.0 ** rng.uniform(-1.5, 1.5, n)
    root = rng.normal(size=(n, n))
    P, A = D[:, None] * (root @ root.T) * D, rng.normal(size=(m, n)) * D
    inside = A @ (rng.normal(size=n) / D)
    problem = jxt.QuadraticProgram(
        P, D * rng.normal(size=n), A, inside - rng.uniform(0, 1, m), inside + rng.uniform(0, 1, m)
    )
    options = {"tol": 1e-4, "max_steps": 2000}
    full = jxt.solve(problem, jxt.splitting.OSQP(**options), None)
    plain = jxt.splitting.OSQP(adaptive=False, scaling_steps=0, polish=False, **options)
    residual = max(
        float(jnp.max(jnp.abs(r))) for r in jax.tree.leaves(problem.residual(full.value))
    )
    return {
        "seed": seed,
        "full": 25 * int(full.steps),
        "plain": 25 * int(jxt.solve(problem, plain, None).steps),
        "residual polished": residual,
    }
