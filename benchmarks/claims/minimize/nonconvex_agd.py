"""Accelerated and plain proximal gradient steps for SCAD."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import FixedStep, NonconvexAGD, ProximalGradient

CLAIM = (
    "On sparse regression with SCAD at a tenth of the greatest penalty, restarted acceleration is "
    "within 1e-6 of its final objective after at most 0.4 of the steps of proximal gradient with "
    "the same step 0.99/L, and at most 0.6 with the step of each tuned, in the mean over 5 seeds."
)
SETTINGS = (
    "Tuned steps are the best of {0.5, 0.99, 1.9, 3, 6, 12}/L for each method on seeds 0 to 2, by "
    "the mean number of steps; no end of the grid is best. Seeds 10 to 14."
)
FACTORS = (0.5, 0.99, 1.9, 3.0, 6.0, 12.0)
N, D, STEPS = 200, 400, 1500


def _problem(seed, share):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(N, D))
    for j in range(1, D):
        rows[:, j] = 0.5 * rows[:, j - 1] + np.sqrt(0.75) * rows[:, j]
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    w = np.zeros(D)
    w[rng.choice(D, 10, replace=False)] = rng.choice([-1, 1], 10) * rng.uniform(0.5, 2, 10)
    signal = rows @ w
    y = signal + rng.normal(size=N) * signal.std() / np.sqrt(5)
    y -= y.mean()
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
    note = (
        f"steps, {STEPS} is never; at a tenth the ratios are {ratios[0]:.2f} at the common step "
        f"and {ratios[1]:.2f} with tuned ones; at a half, where iterates are sparse, nothing is "
        f"claimed; an end of the grid was best at a tenth: {'yes' if edge else 'no'}"
    )
    why = (
        f"paper: it compares at one step, where the ratio is {ratios[0]:.2f}; a longer step serves "
        f"the plain method best, and of its steps {ratios[1]:.2f} are left"
    )
    return Outcome(table, bool(holds), note, "" if holds else why)
