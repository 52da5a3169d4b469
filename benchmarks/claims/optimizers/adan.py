"""Adan against Adam in small and large batches, each at its best learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_ext.optimizers import adan

from .. import Outcome
from . import _digits as digits
from ._seeds import chosen, keys
from ._toys import ROSENBROCK_START, descend, rosenbrock

CLAIM = (
    "A 64-128-10 network on digits (mean of 4 seeds): Adan reaches 95 % training accuracy in at "
    "most 1.1 times the epochs of Adam, in batches of 1000 and of 64, each at its best learning "
    "rate of {3e-3, 1e-2, 3e-2, 1e-1}; and from (-1.5, 2), at rate 1e-3, it brings Rosenbrock's "
    "function in 3000 steps to at most 0.3 of Adam's value."
)
SETTINGS = (
    "Rates from one grid for both, chosen by epochs on 3 keys for each batch size; four others "
    "are reported. The grid was widened on the keys that choose. Rosenbrock's function is "
    "deterministic, at the rate of the claim."
)

SEEDS = 4
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
BATCHES = {1000: (150, 1), 64: (220, 2)}  # steps, and steps between looks


def valley(tx):
    """Rosenbrock's function after 3000 steps."""
    return rosenbrock(descend(tx, rosenbrock, ROSENBROCK_START, 3000)).item()


def epochs(method, batch_size):
    """Epochs to 95 % training accuracy by rate, and the rate that is chosen by them."""
    num_steps, every = BATCHES[batch_size]

    def one(rate, key):
        curves, _, _ = digits.train(
            method(rate), key, batch_size=batch_size, num_steps=num_steps, every=every
        )
        return curves.train_accuracy

    curves = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.array(RATES), keys(SEEDS))
    return chosen(digits.first(np.asarray(curves) >= 0.95, every, batch_size))


def run() -> Outcome:
    table, best = [], {}
    for name, method in {"Adam": optax.adam, "Adan": adan}.items():
        row = {"method": name, "Rosenbrock": valley(method(1e-3))}
        for batch_size in BATCHES:
            index, taken = epochs(method, batch_size)
            row |= {
                f"batch {batch_size}, {rate:g}": e.item()
                for rate, e in zip(RATES, taken, strict=True)
            }
            row[f"rate, batch {batch_size}"] = RATES[index]
            best[name, batch_size] = taken[index].item()
        table.append(row)
    holds = table[1]["Rosenbrock"] <= 0.3 * table[0]["Rosenbrock"] and all(
        best["Adan", b] <= 1.1 * best["Adam", b] for b in BATCHES
    )
    ratios = " and ".join(f"{best['Adan', b] / best['Adam', b]:.2f} (batch {b})" for b in BATCHES)
    return Outcome(
        table,
        bool(holds),
        f"Epochs to 95 % relative to Adam, at the rates that were chosen: {ratios}. The grid was "
        "first 1e-3, 3e-3, 1e-2, and at its end, the best rate there for both, the claim failed "
        "(1.16 for batches of 1000, 1.39 of 64). It was then widened until the best rates of both "
        "were inside.",
    )
