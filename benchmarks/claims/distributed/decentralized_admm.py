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


def run() -> Outcome:
    with jax.enable_x64(True):
        table = [_row(seed) for seed in range(3)]
    holds = all(2 * row["ADMM rounds"] <= row["EXTRA rounds"] for row in table)
    return Outcome(table, holds, "penalties and step sizes 0.01 * 4^k, k = 0..5; one value an edge")


def _row(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(10, 12, 5)) * np.array([1, 0.5, 0.3, 0.2, 0.1])
    b = rng.normal(size=(10, 12))
    optimum = np.linalg.lstsq(A.reshape(-1, 5), b.reshape(-1), rcond=None)[0]
    network = jxt.distributed.Network.simulated(jxt.distributed.erdos_renyi(10, 0.4, seed=seed))
    batch = jnp.asarray(A), jnp.asarray(b)
    loss = lambda w, d: 0.5 * jnp.sum((d[0] @ w - d[1]) ** 2)
    inner = jxt.minimize.FISTA(tol=1e-11, max_steps=500)
    makers = {
        "ADMM rounds": lambda c: jxt.distributed.DecentralizedADMM(loss, c, inner),
        "EXTRA rounds": lambda c: jxt.distributed.EXTRA(loss, c),
    }
    row = {"seed": seed}
    for name, make in makers.items():
        counts = []
        for parameter in 0.01 * 4.0 ** np.arange(6):
            result = jxt.distributed.run(
                make(parameter),
                network,
                network.replicate(jnp.zeros(5)),
                batch,
                1000,
                metric=lambda w: jnp.max(jnp.abs(w - optimum)),
                record_every=10,
                progress=False,
            )
            good = np.asarray(result.history) < 1e-6
            counts.append(10 * (int(np.argmax(good)) + 1) if good.any() else 10**9)
        row[name] = min(counts)
    return row
