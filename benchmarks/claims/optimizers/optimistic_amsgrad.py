"""Optimistic AMSGrad against AMSGrad in a game and on digits."""

import jax
import jax.numpy as jnp
import optax

from jaxopt_ext.optimizers import LastGradient, amsgrad, opt_amsgrad

from .. import Outcome
from . import _digits as digits
from ._seeds import chosen, keys

CLAIM = (
    "In the bilinear game min_x max_y xy from (1, 1) optimistic AMSGrad (last gradient, rate "
    "0.05) ends within 1e-3 of the saddle after 3000 steps and AMSGrad further than 1; and on "
    "digits (64-128-10 network, batch 64, 5 epochs, mean of 5 seeds) its training loss with "
    "extrapolated gradients is at most 1.02 times AMSGrad's, each at its best rate in {1e-3, "
    "3e-3, 1e-2, 3e-2}."
)
SETTINGS = (
    "Rates from one grid for both, chosen by training loss on 3 keys; five others are reported. "
    "The grid was widened on the keys that choose. What was tried afterwards was on the keys of "
    "the first run, seed 0. The game is deterministic, at the rate of the claim."
)

SEEDS, BATCH, EPOCHS, RATES = 5, 64, 5, (1e-3, 3e-3, 1e-2, 3e-2)


def game(tx):
    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jnp.array([x[1], -x[0]]), state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.ones(2, jnp.float32)
    return jnp.linalg.norm(jax.lax.scan(step, (x, tx.init(x)), length=3000)[0][0]).item()


def losses(method):
    """Index of the chosen rate, and final training losses by rate."""
    num_steps = EPOCHS * (digits.NUM_TRAIN // BATCH)

    def one(rate, key):
        return digits.train(
            method(rate), key, batch_size=BATCH, num_steps=num_steps, every=num_steps
        )[0].train_loss[-1]

    return chosen(
        jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.array(RATES), keys(SEEDS))
    )


def run() -> Outcome:
    methods = {
        "AMSGrad": (amsgrad(0.05, 0.0, 0.99), amsgrad),
        "optimistic": (opt_amsgrad(0.05, 0.0, 0.99, predictor=LastGradient()), opt_amsgrad),
    }
    table = []
    for name, (tx, method) in methods.items():
        row = {"method": name, "distance to the saddle": game(tx)}
        best, values = losses(method)
        row |= {f"loss, {r:g}": v.item() for r, v in zip(RATES, values, strict=True)}
        row |= {"rate": RATES[best], "loss": values[best].item()}
        table.append(row)
    plain, mine = table
    holds = (
        mine["distance to the saddle"] < 1e-3
        and plain["distance to the saddle"] > 1
        and mine["loss"] <= 1.02 * plain["loss"]
    )
    ratios = [mine[f"loss, {r:g}"] / plain[f"loss, {r:g}"] for r in RATES]
    return Outcome(
        table,
        holds,
        "On the keys of the first run the digits part did not hold, with a ratio of 1.05 at the "
        "best rate, 0.01: means of five networks spread that far. Here the ratios are "
        + ", ".join(f"{ratio:.2f} at {rate:g}" for ratio, rate in zip(ratios, RATES, strict=True))
        + ". The longer the step, the less the gradients of past "
        "batches say about the next. Tried afterwards at 0.003 and 0.01: the last gradient as the "
        "prediction, 0.79 and 0.81; spans of 3 and 10, 0.86 and 0.84, 1.15 and 1.17; the current "
        "momentum, 0.81 and 1.19; the second moment of what was not predicted, 0.96 and 1.15.",
        why="scale: at the best rate, batches of 64 digits say too little about the next "
        "gradient; the game holds",
    )
