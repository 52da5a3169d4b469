"""Scaling matrices of a trust region in a box."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.minimize import (
    ColemanLi,
    ConvexCombination,
    HagerMairZhang,
    HeinkenschlossUlbrich,
    KanzowKlug,
    ScaledDogleg,
)

CLAIM = (
    "Over six systems of equations in a box with three starts each, the equal mixture of the four "
    "classical scaling matrices fails no more often than each of them and needs fewer steps than "
    "each on the runs that all solve."
)
SETTINGS = (
    "Nothing is chosen: weights are equal, constants those of the papers, the region elliptical, "
    "and starts l + c (u - l) with c = 1/4, 1/2, 3/4. A run fails if |F| is above 1e-8 after 300 "
    "steps."
)


def _himmelblau(x):
    return jnp.array([x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7])


def _powell(x):
    return jnp.array([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def _combustion(x):
    """Meintjes and Morgan's chemical equilibrium."""
    a, b, c, d, e = x
    R, R5, R6, R7, R8, R9, R10 = (
        10.0,
        0.193,
        0.002597 / np.sqrt(40),
        0.003448 / np.sqrt(40),
        0.00001799 / 40,
        0.0002155 / np.sqrt(40),
        0.00003846 / 40,
    )
    common = R10 * b**2 + R7 * b * c + R9 * b * d + R8 * b
    return jnp.array(
        [
            a * b + a - 3 * e,
            2 * a * b + a + b * c**2 + R8 * b - R * e + 2 * R10 * b**2 + R7 * b * c + R9 * b * d,
            2 * b * c**2 + 2 * R5 * c**2 - 8 * e + R6 * c + R7 * b * c,
            R9 * b * d + 2 * d**2 - 4 * R * e,
            a * b + a + common + b * c**2 + R5 * c**2 + R6 * c + d**2 - 1,
        ]
    )


def _trigexp(x):
    left, right = x[:-1], x[1:]
    first = 3 * left**3 + 2 * right - 5 + jnp.sin(left - right) * jnp.sin(left + right)
    second = 4 * right - left * jnp.exp(left - right) - 3
    return jnp.append(first, 0) + jnp.append(0, second)


def _bratu(x, lam=3.0):
    h = 1 / (x.size + 1)
    padded = jnp.pad(x, 1)
    return padded[:-2] - 2 * x + padded[2:] + lam * h**2 * jnp.exp(x)


def _chandrasekhar(x, c=0.99):
    mu = (jnp.arange(x.size) + 0.5) / x.size
    return x - 1 / (1 - c / (2 * x.size) * ((mu[:, None] / (mu[:, None] + mu)) @ x))


PROBLEMS = {
    "himmelblau": (_himmelblau, 2, 0.0, 5.0),
    "powell": (_powell, 2, 0.0, np.array([1.0, 10.0])),
    "combustion": (_combustion, 5, 0.0, 100.0),
    "trigexp": (_trigexp, 30, -10.0, 10.0),
    "bratu": (_bratu, 30, -1.0, 5.0),
    "chandrasekhar": (_chandrasekhar, 30, 0.0, 5.0),
}
MEMBERS = (ColemanLi(), KanzowKlug(), HeinkenschlossUlbrich(), HagerMairZhang())
WEIGHTS = {
    "CL": (1.0, 0, 0, 0),
    "KK": (0, 1.0, 0, 0),
    "HUU": (0, 0, 1.0, 0),
    "HMZ": (0, 0, 0, 1.0),
    "CL + KK": (0.5, 0.5, 0, 0),
    "all": (0.25, 0.25, 0.25, 0.25),
}


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _run():
    table, steps, failed = [], [], []
    for name, (fun, n, low, high) in PROBLEMS.items():
        problem = jxt.BoundedRootFinding(fun, low, high)
        for share in (0.25, 0.5, 0.75):
            row = {"problem": name, "start": share}
            for label, weights in WEIGHTS.items():
                scaling = ConvexCombination(MEMBERS, jnp.array(weights))
                solver = ScaledDogleg(scaling, tol=1e-8, max_steps=300)
                start = low + share * (high - low) * jnp.ones(n)
                solution = jxt.solve(problem, solver, start)
                solved = float(jnp.linalg.norm(fun(solution.value))) <= 1e-8
                row[label] = int(solution.steps) if solved else -1
            table.append(row)
            steps.append([row[label] for label in WEIGHTS])
            failed.append([row[label] < 0 for label in WEIGHTS])
    steps, failed = np.array(steps), np.array(failed)
    everyone = ~failed.any(axis=1)
    total, failures = steps[everyone].sum(axis=0), failed.sum(axis=0)
    for label, counts in (("failures", failures), ("steps where all solve", total)):
        row = {"problem": label, "start": ""}
        table.append(row | dict(zip(WEIGHTS, map(int, counts), strict=True)))
    # The performance profile: the share of runs within a factor of the fewest steps.
    fewest = np.where(failed, np.inf, steps).min(axis=1, keepdims=True)
    for factor in (1.0, 1.1, 1.25, 1.5, 2.0):
        within = np.mean(~failed & (steps <= factor * fewest), axis=0)
        row = {"problem": "share of runs within", "start": f"{factor:g} of the fewest steps"}
        table.append(row | dict(zip(WEIGHTS, map(float, within), strict=True)))
    holds = all(failures[-1] <= failures[:4]) and all(total[-1] < total[:4])
    why = "paper: its steps lie between those of its members, and all fail on the same run"
    return Outcome(
        table, bool(holds), "steps to |F| <= 1e-8; -1 is a failure", "" if holds else why
    )
