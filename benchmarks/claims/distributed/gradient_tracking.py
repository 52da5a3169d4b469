"""Exact decentralized first-order methods against decentralized gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "With a constant step size, each method at its best of one grid, gradient tracking, EXTRA and "
    "exact diffusion come within 1e-8 of the optimum of heterogeneous least squares on a ring of "
    "16 in 2000 rounds, where decentralized gradient descent stays above 1e-4, on 3 seeds."
)
SETTINGS = (
    "Step sizes from one grid, 0.003 * 2^k, k = 0..6. The exact methods take the one whose "
    "largest error is least on seeds 0 to 2, decentralized gradient descent the best on each "
    "problem itself, which favours it; seeds 10 to 12 are reported."
)
METHODS = (
    "GradientTracking",
    "AdaptThenCombineTracking",
    "EXTRA",
    "ExactDiffusion",
    "DecentralizedGradient",
)

TUNING, REPORTED = range(3), range(10, 13)
GRID = 0.003 * 2.0 ** np.arange(7)


def run() -> Outcome:
    with jax.enable_x64(True):
        errors = {seed: _errors(seed) for seed in (*TUNING, *REPORTED)}
    *exact, plain = METHODS
    best = {m: int(np.argmin(np.max([errors[s][m] for s in TUNING], 0))) for m in exact}
    table = [
        {"seed": s, **{m: errors[s][m][best[m]] for m in exact}, plain: min(errors[s][plain])}
        for s in REPORTED
    ]
    holds = all(max(row[m] for m in exact) < 1e-8 and row[plain] > 1e-4 for row in table)
    steps = ", ".join(f"{name} {GRID[best[name]]:g}" for name in exact)
    return Outcome(table, holds, f"Largest distance of a node. Chosen: {steps}.")


def _errors(seed):
    """Last errors of each method, over the grid; infinite where it diverges."""
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(16, 8, 5)), rng.normal(size=(16, 8))
    optimum = np.linalg.lstsq(A.reshape(-1, 5), b.reshape(-1), rcond=None)[0]
    network = jxt.distributed.Network.simulated(jxt.distributed.ring(16))
    batch = jnp.asarray(A), jnp.asarray(b)
    loss = lambda w, d: 0.5 * jnp.sum((d[0] @ w - d[1]) ** 2)
    found = {}
    for name in METHODS:
        errors = []
        for step in GRID:
            algorithm = getattr(jxt.distributed, name)(loss, step)
            result = jxt.distributed.run(
                algorithm,
                network,
                network.replicate(jnp.zeros(5)),
                batch,
                2000,
                record_every=2000,
                progress=False,
            )
            errors.append(float(jnp.max(jnp.abs(result.params - optimum))))
        found[name] = np.nan_to_num(errors, nan=np.inf).tolist()
    return found
