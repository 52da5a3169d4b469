"""Relaxations learnt from counts along a sequence, against the best fixed one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.stats

from benchmarks.claims import Outcome
from jaxopt_ext import linalg

CLAIM = (
    "On shifted five-point Laplacians of 100 unknowns, tolerance 1e-8, Tsallis-INF on 20 "
    "relaxations needs in the last 1000 of 5000 systems at most 6 % more sweeps than the best "
    "fixed one on these systems, for shifts by Beta(0.5, 1.5) and by Beta(2, 6), on the mean of 5 "
    "seeds; ChebCB, which sees the shift, needs fewer than the best fixed one on each seed, over "
    "all of its 1200 systems."
)
SETTINGS = (
    "Nothing of the learners is chosen: grid 1, 1.05, .., 1.95, learning rates, degree 5 and "
    "distributions are the paper's. The fixed relaxation is the best of the same grid in hindsight "
    "on the systems it is judged by: all of the grid on every twentieth of them, and then the best "
    "two on all. Seeds 10 to 14 are reported; seed 0 was looked at before."
)

N, GRID = 10, np.linspace(1, 1.95, 20)
LAWS = {"Beta(0.5, 1.5)": (0.5, 1.5), "Beta(2, 6)": (2, 6)}
SEEDS = range(10, 15)
COLORED = linalg.SOR(rtol=1e-8, coloring=linalg.Coloring.red_black((N, N)))


def run() -> Outcome:
    with jax.enable_x64(True):
        table = [row for law in LAWS for row in _rows(law)]
    ratios = {
        law: np.mean([r["Tsallis-INF, last 1000"] for r in table if r["shifts"] == law])
        / np.mean([r["best fixed, last 1000"] for r in table if r["shifts"] == law])
        for law in LAWS
    }
    ahead = all(r["ChebCB, 1200"] < r["best fixed, 1200"] for r in table)
    said = ", ".join(f"{law} {ratio:.3f}" for law, ratio in ratios.items())
    return Outcome(
        table,
        max(ratios.values()) <= 1.06 and ahead,
        f"Mean sweeps. Tsallis-INF to the best fixed: {said}. Sweeps go by colours, red and black.",
        why="scale: the regret a system falls like one over the root of their number, and after "
        "5000 it is still between 5 and 7 %",
    )


def _rows(law):
    shifts, vectors = map(jnp.stack, zip(*(_draw(law, seed) for seed in SEEDS), strict=True))
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    first, last = slice(0, 1200), slice(4000, 5000)
    counts = np.asarray(_sequences(linalg.TsallisINF(GRID), shifts, vectors, keys))
    policy = linalg.ChebCB(GRID, -0.15, 0.45)
    seen = np.asarray(_sequences(policy, shifts[:, first], vectors[:, first], keys))
    for k, seed in enumerate(SEEDS):
        omega, fixed = _best(shifts[k, last], vectors[k, last])
        _, early = _best(shifts[k, first], vectors[k, first])
        yield {
            "shifts": law,
            "seed": seed,
            "Tsallis-INF, all": counts[k].mean(),
            "Tsallis-INF, last 1000": counts[k, last].mean(),
            "best fixed, last 1000": fixed,
            "its omega": omega,
            "ChebCB, 1200": seen[k].mean(),
            "ChebCB, last 400": seen[k, 800:].mean(),
            "best fixed, 1200": early,
        }


def _draw(law, seed):
    rng = np.random.default_rng(seed)
    shifts = -0.15 + 0.6 * rng.beta(*LAWS[law], 5000)
    low, high = scipy.stats.norm.cdf([-1, 1])
    uniforms = low + (high - low) * rng.uniform(size=(5000, N * N))
    return jnp.asarray(shifts), jnp.asarray(scipy.stats.norm.ppf(uniforms))


def _best(shifts, vectors):
    """The best relaxation of the grid for these systems, and its mean count."""
    part = [_mean(i, shifts[::20], vectors[::20]) for i in range(len(GRID))]
    means = {i: _mean(i, shifts, vectors) for i in np.argsort(part)[:2]}
    best = min(means, key=lambda i: means[i])
    if best in (0, len(GRID) - 1):
        raise RuntimeError(f"the grid's end {GRID[best]} is the best")
    return float(GRID[best]), means[best]


def _mean(index, shifts, vectors):
    return float(jnp.mean(_counts(jnp.asarray(GRID[index]), shifts, vectors)))


@eqx.filter_jit
def _sequences(policy, shifts, vectors, keys):
    def one(shifts, vectors, key):
        return linalg.solve_sequence(_system, shifts, vectors, policy, key, solver=COLORED).counts

    # One after the other: under vmap they would wait for the slowest of each round.
    return jax.lax.map(lambda given: one(*given), (shifts, vectors, keys))


@jax.jit
def _counts(omega, shifts, vectors):
    solver = eqx.tree_at(lambda s: s.omega, COLORED, omega)
    one = lambda c, b: lx.linear_solve(_system(c), b, solver, throw=False).stats["num_steps"]
    return jax.lax.map(lambda given: one(*given), (shifts, vectors))


def _system(shift):
    def product(u):
        p = jnp.pad(u.reshape(N, N), 1)
        near = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
        return ((4 + shift) * p[1:-1, 1:-1] - near).reshape(-1)

    shape = jax.ShapeDtypeStruct((N * N,), jnp.float64)
    return lx.FunctionLinearOperator(product, shape, lx.positive_semidefinite_tag)
