"""Coordinate descent for ratios beside its peers: principal components by absolute values, and
sparse recovery."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import (
    FISTA,
    Dinkelbach,
    Direct,
    FractionalCoordinateDescent,
    Parametric,
    ProximalGradient,
    ProximalSubgradientRatio,
    QuadraticTransform,
)
from jaxopt_ext.minimize.denominators import SquaredSumOfMagnitudes, SumOfLargest

CLAIM = (
    "On L1 principal components, min |x|^2 / |Gx|_1^2 with G 12 x 6, both coordinate methods end "
    "in the global optimum at least twice as often as the sign iteration, over 60 starts on each "
    "of 5 seeds together; and on sparse recovery with the sum of the k largest magnitudes as "
    "denominator both end lower than Dinkelbach's method on at least 14 of 20 seeds."
)
SETTINGS = (
    "Nothing is tuned: coordinate constants are exact, the peers search their steps. Sparse "
    "recovery: every method runs until its residual is below 1e-6 or for as many passes over the "
    "data as coordinate descent's limit. Seeds 10 to 14 and 10 to 29; first runs were on 0 to 2."
)
ROWS, COLUMNS, STARTS = 12, 6, 60
N, D, K, RHO, PASSES = 30, 60, 6, 0.05, 1000
SIGNS = np.array(list(itertools.product([-1, 1], repeat=ROWS - 1)))


def _best(G):
    """By enumeration: the best point is $G^T s$ for some signs $s$."""
    signs = np.concatenate([np.ones((len(SIGNS), 1)), SIGNS], axis=1)
    return 2 / np.max(np.sum((signs @ G) ** 2, axis=1))


@jax.jit
def _components(G, starts):
    problem = jxt.Fractional(lambda x: jnp.sum(x**2), None, SquaredSumOfMagnitudes(G))

    def descend(mode):
        solver = FractionalCoordinateDescent(
            mode, lipschitz=2.0, normalize_every=5, tol=1e-8, max_steps=300
        )
        return lambda x: problem.objective(jxt.solve(problem, solver, x).value)

    def signs(x):
        def turn(_, x):
            x = G.T @ jnp.sign(G @ x)
            return x / jnp.linalg.norm(x)

        return problem.objective(jax.lax.fori_loop(0, 300, turn, x))

    runs = {"direct": descend(Direct()), "parametric": descend(Parametric()), "signs": signs}
    return {name: jax.vmap(run)(starts) for name, run in runs.items()}


RECOVERY = {
    "direct": FractionalCoordinateDescent(Direct(), max_steps=PASSES),
    "parametric": FractionalCoordinateDescent(Parametric(), max_steps=PASSES),
    "Dinkelbach": Dinkelbach(ProximalGradient(tol=1e-8, max_steps=50), max_steps=PASSES // 50),
    "Dinkelbach by FISTA": Dinkelbach(FISTA(tol=1e-8, max_steps=50), max_steps=PASSES // 50),
    "linearized": ProximalSubgradientRatio(max_steps=PASSES),
    "quadratic transform": QuadraticTransform(
        ProximalGradient(tol=1e-8, max_steps=50), max_steps=PASSES // 50
    ),
}


def _recovery(seed):
    """A sparse vector seen through fewer rows than it has entries, with noise."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(N, D)) / np.sqrt(N)
    x = np.zeros(D)
    x[rng.permutation(D)[:K]] = rng.normal(size=K) + np.sign(rng.normal(size=K))
    return A, A @ x + 0.1 * rng.normal(size=N), 0.1 * rng.normal(size=D)


@jax.jit
@jax.vmap
def _sparse(A, b, start):
    loss = jxt.objectives.SquaredLoss(A, b)
    problem = jxt.Fractional(loss, jxt.prox.L1(RHO), SumOfLargest(K))
    ends = {}
    for name, solver in RECOVERY.items():
        ends[name] = problem.objective(jxt.solve(problem, solver, start).value)
    return ends


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run(range(10, 15), range(10, 30))


def _run(first, second) -> Outcome:
    table, found, ratios = [], [], []
    for seed in first:
        rng = np.random.default_rng(seed)
        G, starts = rng.normal(size=(ROWS, COLUMNS)), rng.normal(size=(STARTS, COLUMNS))
        ends = {name: np.asarray(v) / _best(G) for name, v in _components(G, starts).items()}
        found.append({name: float(np.mean(v < 1 + 1e-6)) for name, v in ends.items()})
        ratios.append({name: float(np.mean(v)) for name, v in ends.items()})
        row = {f"{name} found": v for name, v in found[-1].items()}
        table.append({"task": "components", "seed": seed} | row)
    share = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    mean = {name: float(np.mean([row[name] for row in ratios])) for name in ratios[0]}
    table.append(
        {"task": "components", "seed": "mean"} | {f"{n} found": v for n, v in share.items()}
    )
    batch = [np.stack(a) for a in zip(*map(_recovery, second), strict=True)]
    ends = {name: np.asarray(v) for name, v in _sparse(*batch).items()}
    for k, seed in enumerate(second):
        row = {name: float(v[k]) for name, v in ends.items()}
        table.append({"task": "recovery", "seed": seed} | row)
    better = {n: int(np.sum(ends[n] < ends["Dinkelbach"] - 1e-9)) for n in ("direct", "parametric")}
    twice = min(share["direct"], share["parametric"]) >= 2 * share["signs"]
    holds = twice and min(better.values()) >= 0.7 * len(second)
    note = (
        "shares of starts that reach the global optimum; the lesser of the coordinate methods' is "
        f"{min(share['direct'], share['parametric']) / share['signs']:.3f} times the signs'; mean "
        "ratios to the optimum "
        + ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
        + f". Recovery: final ratios; lower than Dinkelbach on {better['direct']} (direct) and "
        f"{better['parametric']} (parametric) of {len(second)} seeds"
    )
    why = (
        "paper: all methods end in critical points, and which is lowest depends on the start; at "
        "this size coordinate moves are not lower as often as the claim asks"
    )
    return Outcome(table, holds, note, why)
