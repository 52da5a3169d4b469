"""The entropic geometry of the simplex against the Euclidean one."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "Minimizing max_i-smoothed linear costs over simplices (log-sum-exp of 50 random rows, n = 10, "
    "100, 1000, 10000, mean of 3 seeds) entropic mirror descent needs at n = 10000 at most 4 times "
    "its steps at n = 10 to a relative gap of 1e-2, and at n = 10000 at most half of the steps of "
    "projected gradient with the same backtracking."
)
SETTINGS = (
    "Both geometries have the default backtracking; nothing is chosen. Seeds 0 to 2. What was "
    "tried afterwards is on the same seeds."
)

SIZES = (10, 100, 1000, 10_000)


def run() -> Outcome:
    table = [_row(n) for n in SIZES]
    last = table[-1]
    holds = (
        last["entropic"] <= 4 * table[0]["entropic"] and 2 * last["entropic"] <= last["Euclidean"]
    )
    return Outcome(
        table,
        holds,
        "Steps to the gap, from the centre of the simplex. The entropic steps hardly grow with n, "
        "as claimed; projected gradient with the same backtracking is not slower here. Tried "
        "afterwards: smoothing of 0.01 (at n = 10000 210 entropic steps, 281 Euclidean), and gaps "
        "of 1e-3 (88 and 56; with 0.01, 794 and 579).",
        why="paper: only the bound of the Euclidean method grows with n, not the steps that it "
        "takes with backtracking",
    )


def _row(n):
    counts = {"entropic": [], "Euclidean": []}
    for seed in range(3):
        A = jnp.asarray(np.random.default_rng(seed).normal(size=(50, n)), jnp.float32)
        f = lambda x, A=A: 0.1 * jax.nn.logsumexp(A @ x / 0.1)
        problem = jxt.Constrained(f, jxt.prox.Simplex())
        start = jnp.full(n, 1 / n, jnp.float32)
        values = {
            name: np.asarray(
                jxt.solve(
                    problem,
                    jxt.minimize.MirrorDescent(geometry, tol=0.0, max_steps=3000),
                    start,
                    trace=lambda p, x, s: p.smooth(x),
                ).trace
            )
            for name, geometry in (
                ("entropic", jxt.minimize.EntropicSimplex()),
                ("Euclidean", jxt.minimize.Euclidean()),
            )
        }
        best = min(v.min() for v in values.values())
        target = best + 1e-2 * (float(f(start)) - best)
        for name, v in values.items():
            counts[name].append(int(np.argmax(v <= target)) + 1 if v.min() <= target else 3000)
    return {"n": n, **{name: float(np.mean(c)) for name, c in counts.items()}}
