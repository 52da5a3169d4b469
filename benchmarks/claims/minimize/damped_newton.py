"""Damped Newton methods on logistic regression."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import (
    AICNDamping,
    DampedNewton,
    ExactDamping,
    FixedDamping,
    RootDamping,
    UniversalDamping,
)

CLAIM = (
    "On logistic regression from a far start, where the pure Newton method diverges, universal "
    "backtracking, which has no constant, needs at most as many steps to f - f* < 1e-10 as root "
    "Newton with q = 4, and that at most as many as the affine-invariant cubic Newton method, on "
    "each of 5 seeds and 3 scalings of the data."
)
SETTINGS = (
    "Each constant is the best for one scaling on seeds 0 to 5, by the worst number of steps, over "
    "{1, 2, 5} x 10^k, k = -1 to 4, and the largest such where several are equal; no end of the "
    "grid is best. Seeds 1010 to 1014, in one run; 10 to 14, reported before, had been seen "
    "before the grid was widened."
)
SCALINGS = {"equal": 0.0, "a decade": 1.0, "correlated": -1.0}
GRID = np.array([m * 10.0**k for k in range(-1, 5) for m in (1, 2, 5)])
STEPS, MANY = 100, 10**6


def _data(seed, scaling):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(200, 20))
    if scaling == "correlated":
        X = np.sqrt(0.5) * (X + rng.normal(size=(200, 1)))
    else:
        X = X * np.logspace(0, -SCALINGS[scaling], 20)
    X /= np.sqrt(np.mean(np.sum(X**2, axis=1)) / 15)
    y = (X @ rng.normal(size=20) + rng.normal(size=200) > 0) * 1.0
    return jnp.asarray(X), jnp.asarray(y)


def _gaps(solver, data, best):
    """f - f* behind each step."""
    X, y = data
    loss = jxt.objectives.LogisticLoss(X, y)
    problem = jxt.Smooth(lambda w: loss(w) + 5e-5 * jnp.sum(w**2))
    trace = lambda problem, x, state: (problem.fun(x), state.trials)
    start = jnp.full(20, 3.0)
    values, trials = jxt.solve(problem, solver, start, trace=trace).trace
    return values - best, trials


def _first(gaps):
    """Steps to the target."""
    reached = np.asarray(gaps) < 1e-10
    return np.where(reached.any(axis=-1), np.argmax(reached, axis=-1) + 1, MANY)


def _solver(damping):
    return DampedNewton(damping, tol=0.0, max_steps=STEPS)


RULES = {
    "root, q = 4": lambda c: RootDamping(4.0, c),
    "AICN": AICNDamping,
}


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _run():
    plain = jax.jit(jax.vmap(lambda data: _gaps(_solver(UniversalDamping()), data, 0.0)))
    others = {"universal": UniversalDamping(), "exact": ExactDamping(), "pure": FixedDamping()}
    others = {name: _solver(rule) for name, rule in others.items()}
    fixed = {
        name: jax.jit(jax.vmap(lambda data, best, solver=solver: _gaps(solver, data, best)))
        for name, solver in others.items()
    }
    over = {
        name: jax.jit(
            jax.vmap(
                lambda c, data, best, rule=rule: _gaps(_solver(rule(c)), data, best)[0],
                in_axes=(None, 0, 0),
            )
        )
        for name, rule in RULES.items()
    }
    table, edges = [], []
    for scaling in SCALINGS:
        drawn = [_data(seed, scaling) for seed in (*range(6), *range(1010, 1015))]
        data = tuple(jnp.stack(arrays) for arrays in zip(*drawn, strict=True))
        best = np.min(np.asarray(plain(data)[0]), axis=1)
        found = {name: jax.tree.map(np.asarray, solve(data, best)) for name, solve in fixed.items()}
        steps = {name: _first(gaps) for name, (gaps, _) in found.items()}
        trials = np.asarray(found["universal"][1])
        chosen = {}
        for name, sweep in over.items():
            counts = _first([sweep(c, data, best) for c in GRID]).T
            worst = np.max(counts[:6], axis=0)
            index = len(GRID) - 1 - int(np.argmin(worst[::-1]))
            edges.append(index in (0, len(GRID) - 1))
            steps[name], chosen[name] = counts[:, index], GRID[index]
        for i in range(6, len(drawn)):
            row = {"data": scaling, "seed": 1004 + i}
            row |= {name: int(counts[i]) for name, counts in steps.items()}
            row["universal, points tried"] = int(trials[i, row["universal"] - 1])
            row["M (q = 4)"], row["M (AICN)"] = chosen["root, q = 4"], chosen["AICN"]
            table.append(row)
    holds = not any(edges) and all(
        row["universal"] <= row["root, q = 4"] <= row["AICN"] and row["pure"] == MANY
        for row in table
    )
    note = (
        f"{MANY} is never within {STEPS} steps; exact line search, which sees more of f, is shown "
        "beside; a grid's end was best: " + ("yes" if any(edges) else "no")
    )
    return Outcome(table, holds, note)
