"""Decentralized ADMM against EXTRA, in rounds."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from benchmarks.claims import Outcome

CLAIM = (
    "On ill-conditioned decentralized least squares, ADMM converges linearly and needs at most "
    "half the rounds of EXTRA to an error of 1e-6, each at its best of one grid, on 3 seeds."
)
SETTINGS = (
    "Penalties and step sizes from one grid, 0.01 * 4^k, k = 0..5. ADMM takes the value whose "
    "largest number of rounds is least on seeds 0 and 1, EXTRA the best on each problem itself, "
    "which favours it; seeds 10 to 12 are reported."
)

TUNING, REPORTED = range(2), range(10, 13)
GRID = 0.01 * 4.0 ** np.arange(6)


def run() -> Outcome:
    inner = jxt.minimize.FISTA(tol=1e-11, max_steps=500)
    admm = lambda c: jxt.distributed.DecentralizedADMM(_loss, c, inner)
    extra = lambda c: jxt.distributed.EXTRA(_loss, c)
    with jax.enable_x64(True):
        counts = [[_rounds(seed, admm(c)) for c in GRID] for seed in TUNING]
        penalty = GRID[int(np.argmin(np.max(counts, 0)))]
        table = [
            {
                "seed": seed,
                "ADMM rounds": _rounds(seed, admm(penalty)),
                "EXTRA rounds": min(_rounds(seed, extra(c)) for c in GRID),
            }
            for seed in REPORTED
        ]
    holds = all(2 * row["ADMM rounds"] <= row["EXTRA rounds"] for row in table)
    note = f"Penalty chosen: {penalty:g}; one value an edge. 1000000000: not in 1000 rounds."
    return Outcome(table, holds, note)


def _loss(w, data):
    return 0.5 * jnp.sum((data[0] @ w - data[1]) ** 2)


def _rounds(seed, algorithm):
    """Rounds to the tolerance."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(10, 12, 5)) * np.array([1, 0.5, 0.3, 0.2, 0.1])
    b = rng.normal(size=(10, 12))
    optimum = np.linalg.lstsq(A.reshape(-1, 5), b.reshape(-1), rcond=None)[0]
    network = jxt.distributed.Network.simulated(jxt.distributed.erdos_renyi(10, 0.4, seed=seed))
    result = jxt.distributed.run(
        algorithm,
        network,
        network.replicate(jnp.zeros(5)),
        (jnp.asarray(A), jnp.asarray(b)),
        1000,
        metric=lambda w: jnp.max(jnp.abs(w - optimum)),
        record_every=10,
        progress=False,
    )
    good = np.asarray(result.history) < 1e-6
    return 10 * (int(np.argmax(good)) + 1) if good.any() else 10**9
