"""A line search against every fixed step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "On logistic regression with columns of very different sizes (200 x 10, ridge 1e-3), starting "
    "far away, gradient descent with the default line search reaches a gradient norm of 1e-4 in at "
    "most a third of the steps of the best fixed step of a grid of powers of two from 1/L on, on "
    "each of 5 seeds."
)
SETTINGS = (
    "The line search has its default; the fixed step is the best of the grid on each problem "
    "itself, which favours the baseline. The search was chosen on seeds 20 to 22 (curvature "
    "0.9 or 0.99, first trial twice the last step or the secant's); seeds 0 to 4 are reported."
)


def run() -> Outcome:
    with jax.enable_x64(True):
        table = [_row(seed) for seed in range(5)]
    holds = all(3 * row["line search"] <= row["best fixed"] for row in table)
    return Outcome(
        table,
        holds,
        "A step of the search evaluates the function and its gradient once or a few times, which "
        "is not counted.",
        why="ours: our threshold of a third is not met on all seeds",
    )


def _row(seed):
    rng = np.random.default_rng(seed)
    X = jnp.asarray(rng.normal(size=(200, 10)) * np.logspace(-1, 1, 10))
    y = jnp.asarray(rng.integers(0, 2, 200), float)
    f = lambda w: jnp.mean(jax.nn.softplus(X @ w) - y * (X @ w)) + 0.5e-3 * jnp.sum(w**2)
    smoothness = float(jnp.linalg.norm(X, 2) ** 2 / 800 + 1e-3)
    start = jnp.asarray(10 * rng.normal(size=10))

    def steps(search):
        solver = jxt.minimize.GradientDescent(search, tol=1e-4, max_steps=50_000)
        solution = jxt.solve(jxt.Smooth(f), solver, start)
        return int(solution.steps) if solution.status == jxt.Status.converged else 10**9

    default = jxt.minimize.GradientDescent().line_search
    fixed = {2**k: steps(optax.scale(2**k / smoothness)) for k in range(7)}
    best = min(fixed, key=fixed.get)
    return {
        "seed": seed,
        "line search": steps(default),
        "best fixed": fixed[best],
        "step x L": best,
        "1/L": fixed[1],
    }
