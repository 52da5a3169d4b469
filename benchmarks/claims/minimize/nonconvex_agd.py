"""Accelerated and plain proximal gradient steps for SCAD."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import (
    BlockCoordinateDescent,
    FixedStep,
    NonconvexAGD,
    ProximalGradient,
    sparse_path,
)

CLAIM = (
    "On sparse regression with SCAD at a tenth of the greatest penalty, restarted acceleration is "
    "within 1e-6 of its final objective after at most 0.4 of the steps of proximal gradient with "
    "the same step 0.99/L, and at most 0.6 with the step of each tuned, in the mean over 5 seeds; "
    "and on paths of penalties it finds the support with a mean F1 no more than 0.02 below that of "
    "coordinate descent, over 20 seeds."
)
SETTINGS = (
    "Tuned steps are the best of {0.5, 0.99, 1.9, 3, 6, 12}/L for each method on seeds 0 to 2, by "
    "the mean number of steps; no end of the grid is best. Seeds 10 to 14. Paths have 10 penalties "
    "from 0.8 of the greatest to 0.1; of each that with the least error on 200 fresh samples "
    "counts, and both solvers go on to 1e-6. Seeds 30 to 49."
)
FACTORS = (0.5, 0.99, 1.9, 3.0, 6.0, 12.0)
N, D, STEPS = 200, 400, 1500


def _rows(rng):
    rows = rng.normal(size=(N, D))
    for j in range(1, D):
        rows[:, j] = 0.5 * rows[:, j - 1] + np.sqrt(0.75) * rows[:, j]
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def _data(seed):
    """Rows, targets, and the coefficients; and fresh rows and targets."""
    rng = np.random.default_rng(seed)
    rows = _rows(rng)
    w = np.zeros(D)
    w[rng.choice(D, 10, replace=False)] = rng.choice([-1, 1], 10) * rng.uniform(0.5, 2, 10)
    signal = rows @ w
    spread = signal.std() / np.sqrt(5)
    y = signal + rng.normal(size=N) * spread
    fresh = _rows(rng)
    return rows, y - y.mean(), w, fresh, fresh @ w + rng.normal(size=N) * spread


def _problem(seed, share):
    rows, y, *_ = _data(seed)
    lam = share * np.max(np.abs(rows.T @ y)) / N
    loss = jxt.objectives.SquaredLoss(jnp.asarray(rows), jnp.asarray(y))
    largest = max(np.linalg.norm(rows, 2) ** 2 / N, 1 / 2.7)
    return jxt.Composite(loss, jxt.prox.SCAD(lam)), largest


def _record(problem, x, state):
    return problem.objective(x)


def _steps(solver, problem):
    values = np.asarray(jxt.solve(problem, solver, jnp.zeros(D), trace=_record).trace)
    close = values <= values[-1] * (1 + 1e-6)
    settled = np.isfinite(values[-1]) and close[: STEPS // 2 * 2 - 100].any()
    return int(np.argmax(close)) + 1 if settled else STEPS


def _solver(name, factor, largest):
    options = {"tol": 0.0, "max_steps": STEPS}
    if name == "proximal gradient":
        return ProximalGradient(FixedStep(factor / largest), **options)
    return NonconvexAGD(lipschitz=largest, safety=factor, **options)


def _support(seed, solver):
    """The F1 of the support that has the least error on fresh samples."""
    rows, y, w, fresh, wanted = _data(seed)
    greatest = np.max(np.abs(rows.T @ y)) / N
    loss = jxt.objectives.SquaredLoss(jnp.asarray(rows), jnp.asarray(y))
    path = sparse_path(loss, jxt.prox.SCAD(1.0), greatest * np.geomspace(0.8, 0.1, 10), solver)
    found = np.asarray(path.coefficients)
    error = np.mean((found @ fresh.T - wanted) ** 2, axis=1)
    there = found[np.argmin(error)] != 0
    return 2 * np.sum(there & (w != 0)) / (np.sum(there) + np.sum(w != 0))


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _run():
    table, edge, holds = [], False, True
    for share in (0.5, 0.1):
        drawn = {seed: _problem(seed, share) for seed in (0, 1, 2, *range(10, 15))}
        common, tuned = {}, {}
        for name in ("accelerated", "proximal gradient"):
            steps = lambda factor, seed, name=name, drawn=drawn: _steps(
                _solver(name, factor, drawn[seed][1]), drawn[seed][0]
            )
            means = [np.mean([steps(factor, seed) for seed in range(3)]) for factor in FACTORS]
            best = int(np.argmin(means))
            edge = edge or (share == 0.1 and best in (0, len(FACTORS) - 1))
            common[name] = [steps(0.99, seed) for seed in range(10, 15)]
            tuned[name] = FACTORS[best], [steps(FACTORS[best], seed) for seed in range(10, 15)]
        for i, seed in enumerate(range(10, 15)):
            row = {"penalty / greatest": share, "seed": seed}
            row |= {f"{name}, 0.99/L": counts[i] for name, counts in common.items()}
            row |= {f"{name}, {c:g}/L": counts[i] for name, (c, counts) in tuned.items()}
            table.append(row)
        if share == 0.1:
            ratio = lambda a, b: np.mean(a) / np.mean(b)
            ratios = (
                ratio(*common.values()),
                ratio(*(counts for _, counts in tuned.values())),
            )
            holds = ratios[0] <= 0.4 and ratios[1] <= 0.6 and not edge
    supports = {
        "accelerated": [_support(seed, NonconvexAGD(tol=1e-6)) for seed in range(30, 50)],
        "coordinate descent": [
            _support(seed, BlockCoordinateDescent(tol=1e-6)) for seed in range(30, 50)
        ],
    }
    means = {f"F1, {name}": float(np.mean(each)) for name, each in supports.items()}
    table.append({"seed": "30 to 49"} | means)
    same = means["F1, accelerated"] >= means["F1, coordinate descent"] - 0.02
    note = (
        f"steps, {STEPS} is never; at a tenth the ratios are {ratios[0]:.2f} at the common step "
        f"and {ratios[1]:.2f} with tuned ones; at a half, where iterates are sparse, nothing is "
        f"claimed; an end of the grid was best at a tenth: {'yes' if edge else 'no'}"
    )
    why = (
        f"paper: it compares at one step, where the ratio is {ratios[0]:.2f}; a longer step serves "
        f"the plain method best, and of its steps {ratios[1]:.2f} are left"
    )
    holds = bool(holds and same)
    # Said of the tuned steps alone.
    why = why if same and not edge and ratios[0] <= 0.4 else ""
    return Outcome(table, holds, note, "" if holds else why)
