"""Restarts in the primal-dual method for linear programs."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "On random linear programs restarts bring the primal-dual method to a residual of 1e-6 in at "
    "most half the steps of the method without them, on each of 5 seeds."
)
SETTINGS = (
    "One step size and the weight 1 on both sides; nothing is chosen. Seeds 0 to 4. What was "
    "tried afterwards is on seed 2."
)


class _Cost(jxt.prox.AbstractFunction):
    """A linear cost on the non-negative orthant."""

    cost: jax.Array
    convex = True

    def __call__(self, x):
        return jnp.vdot(self.cost, x) + jxt.prox.NonNegative()(x)

    def prox(self, x, step=1.0):
        return jnp.maximum(x - step * self.cost, 0)


def run() -> Outcome:
    with jax.enable_x64(True):
        table = [_row(seed) for seed in range(5)]
    holds = all(2 * row["restarted"] <= row["plain"] for row in table)
    return Outcome(
        table,
        holds,
        "same step size and the weight 1 in both; at most 200,000 steps. Seed 2 is hard for every "
        "criterion and decay of restarts tried, and that weight makes it so (its smallest reduced "
        "cost is 6e-3): with the weight 0.03 it takes 1,976 steps with restarts and 3,653 without. "
        "The solver's default, which adapts the weight at restarts and is not part of the verdict, "
        "ends at 0.03 there by itself and is the last column",
        why="ours: with the weight fixed at 1 one of the five programs is hard with restarts too; "
        "the solver's default adapts it",
    )


def _row(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(15, 30))
    b = jnp.asarray(A @ np.maximum(rng.normal(size=30), 0))
    cost = jnp.asarray(A.T @ rng.normal(size=15) + np.maximum(rng.normal(size=30), 0))
    problem = jxt.Saddle(_Cost(cost), jxt.prox.Box(b, b), jnp.asarray(A))
    row = {"seed": seed}
    for name, options in (
        ("restarted", {"adaptive": False}),
        ("plain", {"restart": False, "adaptive": False}),
        ("restarted and adapted", {}),
    ):
        solver = jxt.splitting.PrimalDualHybridGradient(tol=1e-6, max_steps=200_000, **options)
        row[name] = int(jxt.solve(problem, solver, jnp.zeros(30)).steps)
    return row
