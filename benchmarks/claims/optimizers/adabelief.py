"""AdaBelief against Adam in a valley and on digits."""

import jax
import jax.numpy as jnp
import optax

from jaxopt_ext.optimizers import adabelief

from .. import Outcome
from . import _digits as digits
from ._seeds import chosen, keys
from ._toys import descend

CLAIM = (
    "On f = (x+y)^2 + (x-y)^2/10 from (-1, 4) AdaBelief (rate 0.01, epsilons 1e-8) comes within "
    "0.3 of Adam's distance to the minimum after 500 steps; and on digits (64-128-10 network, "
    "batch 64, 10 epochs, mean of 10 seeds) its test accuracy is at least Adam's minus 0.01, each "
    "at its best rate in {3e-4, 1e-3, 3e-3, 1e-2, 3e-2}."
)
SETTINGS = (
    "Rates from one grid for both, chosen by training loss on 3 keys, after their test accuracies "
    "had taken 3e-2 for Adam, which is not its best on the others; ten others are reported. The "
    "grid was widened on the keys that choose, until Adam's best rate was inside. The valley is "
    "deterministic, at the rate of the claim."
)

SEEDS, BATCH, RATES = 10, 64, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def valley(x):
    return (x[0] + x[1]) ** 2 + (x[0] - x[1]) ** 2 / 10


def race(method):
    """Final train loss and test accuracy by rate, and the rate that is chosen by the former."""
    num_steps = 10 * (digits.NUM_TRAIN // BATCH)

    def one(rate, key):
        return digits.train(
            method(rate), key, batch_size=BATCH, num_steps=num_steps, every=num_steps
        )[0]

    curves = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.array(RATES), keys(SEEDS))
    best, loss = chosen(curves.train_loss[..., -1])
    return loss, chosen(curves.test_accuracy[..., -1])[1], best


def run() -> Outcome:
    table = []
    start = jnp.array([-1.0, 4.0], jnp.float32)
    for name, toy, method in (
        ("Adam", optax.adam(1e-2), optax.adam),
        ("AdaBelief", adabelief(1e-2, eps=1e-8, eps_root=1e-8), adabelief),
    ):
        row = {"method": name, "distance": float(jnp.linalg.norm(descend(toy, valley, start, 500)))}
        *values, best = race(method)
        for rate, loss, accuracy in zip(RATES, *values, strict=True):
            row |= {f"train loss, {rate:g}": loss.item(), f"test, {rate:g}": accuracy.item()}
        row |= {"rate": RATES[best], "test": values[1][best].item()}
        table.append(row)
    adam, mine = table
    holds = mine["distance"] <= 0.3 * adam["distance"] and mine["test"] >= adam["test"] - 0.01
    return Outcome(table, holds, "Last columns: the rate that was chosen, and its test accuracy.")
