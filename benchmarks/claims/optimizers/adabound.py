"""AdaBound between Adam and SGD on digits, and where Adam fails."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_ext.optimizers import OnlineCounterexample, adabound, amsbound

from .. import Outcome
from . import _digits as digits

CLAIM = (
    "On digits (64-128-10 network, batch 64, 30 epochs, mean of 5 seeds) AdaBound and AMSBound "
    "with their defaults end with a test accuracy at least that of Adam and of SGD with momentum "
    "0.9, each at its best rate on a grid, minus 0.01, and are ahead of SGD at 0.01 after one "
    "epoch; and both end within 0.1 of the best point of the online problem in which Adam ends "
    "within 0.1 of the worst."
)
SETTINGS = (
    "The defaults for AdaBound and AMSBound; Adam and SGD take the rate of their grids that is "
    "best on the reported keys, which favours them, though SGD was best at the longest of its "
    "three. Keys of seed 10; the first run was on seed 0."
)

SEEDS, BATCH, EPOCHS = 5, 64, 30


def accuracies(tx):
    """Mean test accuracy after the first and after the last epoch."""
    per_epoch = digits.NUM_TRAIN // BATCH

    def one(key):
        return digits.train(
            tx, key, batch_size=BATCH, num_steps=EPOCHS * per_epoch, every=per_epoch
        )[0].test_accuracy

    curves = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(10), SEEDS))
    return np.asarray(curves).mean(0)[[0, -1]].tolist()


def online(tx):
    return OnlineCounterexample().play(tx, 100_000)[0].item()


def run() -> Outcome:
    decaying = lambda t: 0.5 / jnp.sqrt(t + 1)
    bounds = dict(final_lr=0.01, gamma=0.01, sqrt_decay=True)
    methods = {
        **{f"Adam {r:g}": optax.adam(r) for r in (1e-3, 3e-3, 1e-2)},
        **{f"SGD {r:g}": optax.sgd(r, 0.9) for r in (0.01, 0.03, 0.1)},
        "SGD 0.01, no momentum": optax.sgd(0.01),
        "AdaBound": adabound(),
        "AMSBound": amsbound(),
    }
    games = {
        "Adam 0.001": optax.adam(decaying, 0.9, 0.99),
        "AdaBound": adabound(0.5, 0.9, 0.99, **bounds),
        "AMSBound": amsbound(0.5, 0.9, 0.99, **bounds),
    }
    table = []
    for name, tx in methods.items():
        first, last = accuracies(tx)
        row = {"method": name, "test, epoch 1": first, "test, epoch 30": last}
        if name in games:
            row["online, x"] = online(games[name])
        table.append(row)
    rows = {row["method"]: row for row in table}
    best = max(row["test, epoch 30"] for row in table[:6])
    holds = rows["Adam 0.001"]["online, x"] > 0.9 and all(
        rows[name]["test, epoch 30"] >= best - 0.01
        and rows[name]["test, epoch 1"] > rows["SGD 0.01, no momentum"]["test, epoch 1"]
        and rows[name]["online, x"] < -0.9
        for name in ("AdaBound", "AMSBound")
    )
    return Outcome(table, holds)
