"""Project and Forget beside projections on all triangle inequalities, and learned metrics."""

import itertools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_wine
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.claims import Outcome
from jaxopt_ext import Status
from jaxopt_ext.minimize import (
    ProjectAndForget,
    Quadratic,
    itml,
    metric_nearness,
    path_rows,
)
from jaxopt_ext.minimize.bregman import sweep

CLAIM = (
    "The metric nearest to uniform dissimilarities of 40 points, to a violation of 0.01: Project "
    "and Forget remembers at most 3% of the 29640 triangle inequalities, and does at most a fifth "
    "of the projections, in less time, that sweeps of corrected projections over all of them need "
    "to come as close to the solution, on each of 5 seeds; and the metric that it learns from "
    "pairs of wines has on average no fewer right neighbours than the Euclidean one, on 5 splits."
)
SETTINGS = (
    "Nothing was tuned: two sweeps in a round, the method's default; sweeps over all inequalities "
    "have no setting. Projections on bounds count; both sides are compiled before they are timed. "
    "Learned metric: gamma = 1, bounds at the 5th and 95th percentile of squared distances, 150 "
    "pairs, 4 neighbours. First runs were on seeds 0 and 1; reported are 10 to 14, on "
    "which a run that timed compiling on one side alone lost the time on two seeds."
)
ALONE = True
POINTS, SWEEPS, TOL = 40, 2, 0.01
PAIRS = np.triu_indices(POINTS, 1)


def _dissimilarities(seed):
    upper = np.triu(np.random.default_rng(seed).uniform(size=(POINTS, POINTS)), 1)
    return jnp.asarray(upper + upper.T)


def _all_triangles():
    i, j, k = np.array(list(itertools.combinations(range(POINTS), 3))).T
    number = lambda u, v: u * (2 * POINTS - u - 1) // 2 + v - u - 1
    ij, ik, jk = number(i, j), number(i, k), number(j, k)
    edges = np.stack([ij, ik, jk], axis=1).ravel()
    paths = np.stack([np.stack(p, axis=1) for p in ((ik, jk), (ij, jk), (ij, ik))], axis=1)
    return jax.tree.map(jnp.asarray, path_rows(edges, paths.reshape(-1, 2), np.float64))


@eqx.filter_jit
def _pass(given, x, rows, dual):
    return sweep(Quadratic(given), x, rows, dual)


def _projections(solution):
    visited = solution.trace["visited"]
    return int(SWEEPS * np.sum(visited + len(PAIRS[0])))


def _nearness(seed, rows):
    D = _dissimilarities(seed)
    given = D[PAIRS]
    # Far more accurate than either side.
    exact = metric_nearness(D, solver=ProjectAndForget(sweeps=8, capacity=2048, tol=TOL / 100))
    exact = exact.distances[PAIRS]
    distance = lambda x: float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(given - exact))
    solver = ProjectAndForget(sweeps=SWEEPS, capacity=2048, tol=TOL)
    metric_nearness(D, solver=solver)
    start = time.perf_counter()
    found = metric_nearness(D, solver=solver)
    ours = time.perf_counter() - start
    reached = distance(found.distances[PAIRS])
    x, dual = given, jnp.zeros(len(rows.bound))
    passes, theirs = 0, 0.0
    while distance(x) > reached and passes < 100:
        start = time.perf_counter()
        x, dual = jax.block_until_ready(_pass(given, x, rows, dual))
        theirs += time.perf_counter() - start
        passes += 1
    return {
        "part": "nearness",
        "seed": seed,
        "distance": reached,
        "remembered": int(found.solution.trace["remembered"][-1]),
        "of": len(rows.bound),
        "projections": _projections(found.solution),
        "all: projections": passes * len(rows.bound),
        "seconds": ours,
        "all: seconds": theirs,
    }


def _wines(seed):
    X, y = load_wine(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    train, test = order[:120], order[120:]
    X = (X - X[train].mean(axis=0)) / X[train].std(axis=0)
    pairs = np.stack([rng.integers(0, 120, 400), rng.integers(0, 120, 400)], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]][:150]
    square = np.sum((X[train][pairs[:, 0]] - X[train][pairs[:, 1]]) ** 2, axis=1)
    upper, lower = np.percentile(square, [5, 95])
    alike = y[train][pairs[:, 0]] == y[train][pairs[:, 1]]
    solver = ProjectAndForget(sweeps=10, capacity=256, tol=1e-6, max_steps=300)
    points = jnp.asarray(X[train])
    learned = itml(points, pairs[alike], pairs[~alike], upper, lower, solver=solver)
    root = np.linalg.cholesky(np.asarray(learned.matrix))

    def right(map_):
        model = KNeighborsClassifier(4).fit(X[train] @ map_, y[train])
        return float(model.score(X[test] @ map_, y[test]))

    return {
        "part": "wines",
        "seed": seed,
        "learned": right(root),
        "Euclidean": right(np.eye(X.shape[1])),
        "solved": bool(learned.solution.status == Status.converged),
        "least eigenvalue": float(np.linalg.eigvalsh(np.asarray(learned.matrix))[0]),
    }


def run() -> Outcome:
    with jax.enable_x64(True):
        rows = _all_triangles()
        given = _dissimilarities(0)[PAIRS]
        jax.block_until_ready(_pass(given, given, rows, jnp.zeros(len(rows.bound))))
        nearness = [_nearness(seed, rows) for seed in range(10, 15)]
        wines = [_wines(seed) for seed in range(10, 15)]
    learned = np.mean([row["learned"] for row in wines])
    parts = {
        "remembered": all(row["remembered"] <= 0.03 * row["of"] for row in nearness),
        "projections": all(row["projections"] <= 0.2 * row["all: projections"] for row in nearness),
        "time": all(row["seconds"] < row["all: seconds"] for row in nearness),
        "pairs are kept": all(row["solved"] for row in wines),
        "wines": learned >= np.mean([row["Euclidean"] for row in wines]),
    }
    failed = [name for name, holds in parts.items() if not holds]
    note = "parts that do not hold: " + (", ".join(failed) or "none")
    return Outcome(nearness + wines, not failed, note)
