"""AdAdaGrad grows its batches as far as they pay."""

import jax.numpy as jnp
import numpy as np

from jaxopt_ext.optimizers import adadagrad_norm, fit_adaptive_batch

from .. import Outcome

CLAIM = (
    "On least squares (5000 x 20, noise 0.5) with a budget of 200,000 sample gradients "
    "AdAdaGradNorm (rate 1, eta 0.5, first batch 8) takes fewer than 1/20 of the updates of "
    "AdaGradNorm at batch 8, ends with a smaller full gradient, and never shrinks a batch, on "
    "each of 3 seeds."
)
SETTINGS = (
    "Rate, eta and first batch are those of the claim, the same for both sides. Seeds 10 to 12; "
    "the first run was on 0 to 2."
)

BUDGET = 200_000


def run() -> Outcome:
    table = []
    for seed in range(10, 13):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(5000, 20)).astype(np.float32)
        y = (X @ rng.normal(size=20) + 0.5 * rng.normal(size=5000)).astype(np.float32)
        data = jnp.asarray(X), jnp.asarray(y)
        loss = lambda w, sample: 0.5 * (sample[0] @ w - sample[1]) ** 2
        full = lambda w, X=data[0], y=data[1]: X.T @ (X @ w - y) / len(y)
        row = {"seed": seed}
        for name, limit in (("fixed", 8), ("adaptive", 5000)):
            tx = adadagrad_norm(1.0, eta=0.5, b0=8, b_max=limit, initial_accumulator=1e-4)
            fit = fit_adaptive_batch(loss, jnp.zeros(20), data, tx, BUDGET, seed=seed)
            sizes = np.asarray(fit.batch_sizes)
            row |= {
                f"updates, {name}": len(sizes),
                f"gradient^2, {name}": float(jnp.sum(full(fit.params) ** 2)),
                f"last batch, {name}": int(sizes[-1]),
                f"monotone, {name}": bool(np.all(np.diff(sizes) >= 0)),
            }
        table.append(row)
    holds = all(
        20 * row["updates, adaptive"] < row["updates, fixed"]
        and row["gradient^2, adaptive"] < row["gradient^2, fixed"]
        and row["monotone, adaptive"]
        for row in table
    )
    return Outcome(table, holds)
