"""Douglas-Rachford takes steps of any size."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "On the lasso (80 x 40) Douglas-Rachford converges to 1e-8 with every step size 10^k / L, k = "
    "-1, ..., 3, where proximal gradient descent diverges beyond 2/L; and its best step needs at "
    "most a third of the steps of proximal gradient at its best of 1/L, 1.5/L and 1.9/L, on each "
    "of 5 seeds."
)
SETTINGS = (
    "Steps from the grids of the claim, the one of each method whose largest number of steps is "
    "least on seeds 0 to 2; seeds 10 to 14 are reported with it. That every step converges is "
    "asked of the reported seeds."
)

LIMIT = 200_000
OURS = {f"DR 1e{k}/L": 10.0**k for k in range(-1, 4)}
FORWARD = {f"forward-backward {c:g}/L": c for c in (1.0, 1.5, 1.9)}


def run() -> Outcome:
    with jax.enable_x64(True):
        tuning = [_row(seed) for seed in range(3)]
        table = [_row(seed) for seed in range(10, 15)]
    best = lambda names: min(names, key=lambda name: max(row[name] for row in tuning))
    mine, other = best(OURS), best(FORWARD)
    holds = all(
        all(row[name] < LIMIT for name in OURS)
        and row["forward-backward 10/L"] != "converged"
        and 3 * row[mine] <= row[other]
        for row in table
    )
    return Outcome(
        table,
        holds,
        f"Chosen: {mine} and {other}. Steps to an error of 1e-8; 200000 where the problem's "
        "own residual was then above 1e-6. "
        "While the error was the gap over the step alone, the run at 1000/L stopped long before "
        "its gap was small, and the claim failed there. On the seeds of the first run, 0 to 4, the "
        "best steps of each problem were more than three times fewer.",
        why="ours: the gain depends on how ill-conditioned a problem is; on the easiest of the "
        "five it is a factor of 2.1, below our three",
    )


def _row(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(80, 40)) * np.logspace(-1, 0, 40)
    w = np.where(rng.random(40) < 0.3, rng.normal(size=40), 0)
    loss = jxt.objectives.SquaredLoss(X, X @ w + 0.1 * rng.normal(size=80))
    problem = jxt.Composite(loss, jxt.prox.L1(0.01))
    L, start = float(np.linalg.norm(X, 2) ** 2 / 80), jnp.zeros(40)

    def run(solver):
        return jxt.solve(problem, solver, start)

    row = {"seed": seed}
    for name, c in OURS.items():
        solver = jxt.splitting.DouglasRachford(step_size=c / L, tol=1e-8, max_steps=LIMIT)
        solution = run(solver)
        exact = float(jxt.tree.norm(problem.residual(solution.value)))
        row[name] = int(solution.steps) if exact < 1e-6 else LIMIT
    forward = lambda c, limit=LIMIT: run(
        jxt.minimize.ProximalGradient(jxt.minimize.FixedStep(c / L), tol=1e-8, max_steps=limit)
    )
    row |= {name: int(forward(c).steps) for name, c in FORWARD.items()}
    done = forward(10.0, 5000).status == jxt.Status.converged
    row["forward-backward 10/L"] = "converged" if done else "diverged"
    return row
