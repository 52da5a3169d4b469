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
    "Step sizes from one grid, 0.003 * 2^k, k = -4..6. The exact methods take the one whose "
    "largest error is least on seeds 0 and 1, decentralized gradient descent the best on each "
    "problem itself, which favours it; seeds 10 to 12 are reported. The grid first began at k = 0, "
    "and there decentralized gradient descent was at its end."
)
METHODS = (
    "GradientTracking",
    "AdaptThenCombineTracking",
    "EXTRA",
    "ExactDiffusion",
    "DecentralizedGradient",
)

TUNING, REPORTED = range(2), range(10, 13)
GRID = 0.003 * 2.0 ** np.arange(-4, 7)


def run() -> Outcome:
    *exact, plain = METHODS
    with jax.enable_x64(True):
        chosen = {}
        for name in exact:
            errors = [[_error(seed, name, step) for step in GRID] for seed in TUNING]
            chosen[name] = GRID[int(np.argmin(np.max(errors, 0)))]
        table = []
        for seed in REPORTED:
            row = {name: _error(seed, name, chosen[name]) for name in exact}
            row[plain], step = min((_error(seed, plain, step), step) for step in GRID)
            table.append({"seed": seed, **row, "its step": float(step)})
    holds = all(max(row[m] for m in exact) < 1e-8 and row[plain] > 1e-4 for row in table)
    steps = ", ".join(f"{name} {chosen[name]:g}" for name in exact)
    return Outcome(table, holds, f"Largest distance of a node. Chosen: {steps}.")


def _error(seed, name, step):
    """Largest distance of a node to the optimum at the end; infinite if it diverged."""
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(16, 8, 5)), rng.normal(size=(16, 8))
    optimum = np.linalg.lstsq(A.reshape(-1, 5), b.reshape(-1), rcond=None)[0]
    network = jxt.distributed.Network.simulated(jxt.distributed.ring(16))
    result = jxt.distributed.run(
        getattr(jxt.distributed, name)(_loss, step),
        network,
        network.replicate(jnp.zeros(5)),
        (jnp.asarray(A), jnp.asarray(b)),
        2000,
        record_every=2000,
        progress=False,
    )
    error = float(jnp.max(jnp.abs(result.params - optimum)))
    return error if np.isfinite(error) else np.inf


def _loss(w, data):
    return 0.5 * jnp.sum((data[0] @ w - data[1]) ** 2)
