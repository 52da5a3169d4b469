"""Models of a kinked loss beside its subgradients, over seven decades of the penalty."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome
from jaxopt_ext.stochastic import (
    Last,
    ProximalPoint,
    ProxLinear,
    StochasticModelBased,
    Subgradient,
    Truncated,
    phase_retrieval_prox,
    robust_phase_retrieval,
)

CLAIM = (
    "On robust phase retrieval, 100 passes, the median of the objective over 5 seeds is at most "
    "1e-8 for 4 consecutive decades of the constant penalty with prox-linear steps, for 5 with "
    "proximal points, and for none with subgradients."
)
SETTINGS = (
    "Nothing is tuned: all methods have the penalties 0.1, 1, ..., 1e5, and the best is among "
    "them. Seeds 10 to 14, which no setting was chosen on."
)
M, D, PASSES, LEVEL = 60, 20, 100, 1e-8
GRID = tuple(10.0**k for k in range(-1, 6))
MODELS = {
    "subgradient": Subgradient(),
    "truncated": Truncated(),
    "prox-linear": ProxLinear(),
    "proximal point": ProximalPoint(phase_retrieval_prox),
}


def _data(seed):
    rng = np.random.default_rng(seed)
    A, x, start = rng.normal(size=(M, D)), rng.normal(size=D), rng.normal(size=D)
    return A, (A @ (x / np.linalg.norm(x))) ** 2, start / np.linalg.norm(start)


def _longest(passed):
    """The longest run of successes."""
    best = run = 0
    for ok in passed:
        run = run + 1 if ok else 0
        best = max(best, run)
    return best


def run() -> Outcome:
    with jax.enable_x64(True):
        return _run()


def _run() -> Outcome:
    data = [jnp.asarray(np.stack(part)) for part in zip(*map(_data, range(10, 15)), strict=True)]
    table, decades = [], {}
    for name, model in MODELS.items():

        def value(beta, A, b, start, seed, model=model):
            problem = robust_phase_retrieval(A, b)
            solver = StochasticModelBased(model, beta, output=Last(), max_steps=PASSES * M)
            x = jxt.solve(problem, solver, start, key=jax.random.key(seed)).value
            found = problem.full_value(x)
            return jnp.where(jnp.isfinite(found), found, jnp.inf)

        seeds = jax.vmap(value, (None, 0, 0, 0, 0))
        found = jax.jit(jax.vmap(seeds, (0, None, None, None, None)))(
            jnp.asarray(GRID), *data, jnp.arange(10, 15)
        )
        medians = np.median(np.asarray(found), axis=1)
        decades[name] = _longest(medians <= LEVEL)
        row = {f"{beta:g}": float(v) for beta, v in zip(GRID, medians, strict=True)}
        table.append({"model": name} | row | {"decades": decades[name]})
    holds = (
        decades["prox-linear"] >= 4
        and decades["proximal point"] >= 5
        and decades["subgradient"] == 0
    )
    note = (
        f"median objective by penalty, {M} measurements of a unit signal in dimension {D}, without "
        "noise; a step of each costs one sample. The truncated model, which for this loss and no "
        "nonsmooth part is close to the prox-linear one, is shown besides"
    )
    return Outcome(
        table,
        holds,
        note,
        why="scale: at a penalty of 1000 steps are so short that on other seeds prox-linear solves "
        "6 of 12 in 100 passes and 9 in 1000: a median is a toss, and a decade is missed",
    )
