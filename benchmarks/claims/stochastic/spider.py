"""SPIDER beside normalized and clipped SGD, at equal samples, on noisy phase retrieval."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.stochastic import (
    SPIDER,
    ClippedSGD,
    Last,
    NormalizedGradientDescent,
    NormalizedSGD,
    phase_retrieval,
)

CLAIM = (
    "On noisy phase retrieval from a start where the gradient's norm is 5, after 60 passes over "
    "the data SPIDER's mean gradient norm over the last quarter is at most half of that of "
    "normalized SGD, with and without momentum, and of clipped SGD, on each of 5 seeds."
)
SETTINGS = (
    "Lengths of steps (and, of clipped SGD, step sizes too) are tuned for each start and method on "
    "seeds 0 and 1 over half decades from 1e-5 to 1e1 (clipped SGD: step sizes to 1e-1, thresholds "
    "by decades from 1e-4 to 1e2); seeds 10 to 14 are reported. Batches of 88, the samples of a "
    "step of SPIDER; momentum 0.9."
)
N, D, PASSES, BATCH = 2000, 20, 60, 88
GRID = tuple(10.0 ** (k / 2) for k in range(-10, 3))


def _problem(seed):
    rng = np.random.default_rng(seed)
    A, z = rng.normal(size=(N, D)), rng.normal(size=D)
    y = (A @ z) ** 2 + 4 * rng.normal(size=N)
    away = rng.normal(size=D)

    def slope(x):
        p = A @ x
        return np.linalg.norm(2 * A.T @ (p * (p**2 - y)) / N)

    low, high = 0.0, 0.5
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(z + middle * away) < 5 else (low, middle)
    starts = {"near": z + high * away, "middle": z + 0.5 * away, "far": 8 * rng.normal(size=D)}
    cast = lambda a: jnp.asarray(a, jnp.float32)
    return cast(A), cast(y), {name: cast(x) for name, x in starts.items()}


def _norms(A, y, points):
    p = points @ A.T
    return jnp.linalg.norm(2 * (p * (p**2 - y)) @ A / N, axis=1)


def _late(solver, A, y, start, key):
    """Mean norm of the gradient over the last quarter; infinite where an iterate is not finite."""
    follow = lambda problem, x, state: x
    found = jxt.solve(phase_retrieval(A, y), solver, start, key=key, trace=follow)
    late = found.trace[-(solver.max_steps // 4) :]
    norm = jnp.mean(_norms(A, y, late))
    return jnp.where(jnp.isfinite(norm), norm, jnp.inf)


STEPS = PASSES * N // BATCH
ROOT = 45
PERIODS = PASSES * N // (N + (ROOT - 1) * 2 * ROOT)
SINGLE = {
    "SPIDER": lambda g: SPIDER(g, ROOT, ROOT, output=Last(), max_steps=PERIODS * ROOT),
    "NSGD": lambda g: NormalizedSGD(g, batch=BATCH, max_steps=STEPS),
    "momentum": lambda g: NormalizedSGD(g, 0.9, BATCH, max_steps=STEPS),
}
DOUBLE = {"clipped": lambda g, c: ClippedSGD(g, c, BATCH, max_steps=STEPS)}


def _clipped(setting):
    return DOUBLE["clipped"](*setting)


METHODS = SINGLE | {"clipped": _clipped}
SETS: dict[str, list[tuple[float, ...]]] = {name: [(g,) for g in GRID] for name in SINGLE}
SETS["clipped"] = [(g, 10.0**k) for g in GRID[:9] for k in range(-4, 3)]


def _compile(name):
    make = METHODS[name] if name == "clipped" else lambda setting: METHODS[name](setting[0])

    @jax.jit
    def run(settings, A, y, start, key):
        return jax.lax.map(lambda s: _late(make(s), A, y, start, key), settings)

    return run


def _noiseless():
    """Gradient descent of every power from afar, without noise: the least gradient of 500 steps."""
    rng = np.random.default_rng(10)
    A, z, start = rng.normal(size=(200, D)), rng.normal(size=D), 8 * rng.normal(size=D)
    problem = phase_retrieval(A, (A @ z) ** 2)

    @jax.jit
    @jax.vmap
    def least(power, step):
        solver = NormalizedGradientDescent(step, power, tol=0.0, max_steps=500)
        found = jxt.solve(problem, solver, jnp.asarray(start))
        return jnp.where(found.status == jxt.Status.nonfinite, jnp.inf, found.residual)

    grid = 10.0 ** np.arange(-7, 2.1, 0.5)
    powers = (0.0, 1 / 3, 2 / 3, 1.0)
    found = least(jnp.repeat(jnp.asarray(powers), grid.size), jnp.tile(grid, len(powers)))
    best = np.min(np.asarray(found).reshape(len(powers), -1), axis=1)
    return {"seed": "no noise", "start": "far, least of 500 steps"} | {
        f"power {power:.2g}": float(value) for power, value in zip(powers, best, strict=True)
    }


def run() -> Outcome:
    compiled = {name: _compile(name) for name in METHODS}
    table, inside, holds = [], True, True
    data = {seed: _problem(seed) for seed in (0, 1, *range(10, 15))}
    for where in ("near", "middle", "far"):
        chosen = {}
        for name, fun in compiled.items():
            settings = jnp.asarray(SETS[name], jnp.float32)
            score = 0
            for seed in (0, 1):
                A, y, starts = data[seed]
                found = fun(settings, A, y, starts[where], jax.random.key(seed))
                score = score + np.log(np.asarray(found))
            best = int(np.argmin(score))
            chosen[name] = SETS[name][best : best + 1]
            for i, values in enumerate(zip(*SETS[name], strict=True)):
                edge = chosen[name][0][i] in (min(values), max(values))
                inside &= not edge or where != "near"
        table.append(
            {"seed": "setting", "start": where}
            | {name: " ".join(f"{v:.2g}" for v in value[0]) for name, value in chosen.items()}
        )
        for seed in range(10, 15):
            A, y, starts = data[seed]
            row = {
                name: float(
                    fun(
                        jnp.asarray(chosen[name], jnp.float32),
                        A,
                        y,
                        starts[where],
                        jax.random.key(seed),
                    )[0]
                )
                for name, fun in compiled.items()
            }
            table.append({"seed": seed, "start": where} | row)
            if where == "near":
                holds &= row["SPIDER"] <= 0.5 * min(v for k, v in row.items() if k != "SPIDER")
    with jax.enable_x64(True):
        table.append(_noiseless())
    note = (
        "mean gradient norm over the last quarter; the grid's ends are "
        f"{'not ' if inside else ''}hit from the near start, of which the claim is. Two farther "
        "starts are shown: there SPIDER is behind, as a step of fixed length is the same far away "
        "as near. Last row: deterministic descent, where power 0 is gradient descent; power 2/3 "
        "ends at a tenth of its gradient, where a hundredth was hoped for"
    )
    return Outcome(table, bool(holds and inside), note)
