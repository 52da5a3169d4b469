"""Discover: a momentum per cluster takes out the variance between clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxopt_ext.optimizers import (
    cluster_grads,
    discover_igt,
    discover_qhm,
    discover_sgd,
    discover_sgdm,
    lookahead_params,
    scale_by_igt,
    scale_by_qhm,
)

from .. import Outcome
from . import _digits as digits
from ._seeds import chosen, keys

CLAIM = (
    "Estimating the mean of 10 clusters one sample at a time (centres N(0, 9), spread 0.3, rate "
    "0.05, 4000 steps, 5 seeds), Discover has at most 0.05 of the mean squared error of SGD, "
    "momentum and QHM, and at most 0.3 of IGT's; and a 64-128-10 network on digits (classes as "
    "clusters, batch 16, 4 seeds) reaches training loss 0.05 in no more epochs than momentum SGD, "
    "both at their best rate of {0.03, 0.1, 0.3}."
)
SETTINGS = (
    "On digits, rates from one grid for both, chosen by epochs on 3 keys; four others are "
    "reported. Mean estimation at the rate of the claim, keys of seed 10. What was tried "
    "afterwards was on the keys of the first run, seeds 0 and 1."
)

SEEDS, CLUSTERS, RATE = 5, 10, 0.05
RATES = (0.03, 0.1, 0.3)
BATCH, EVERY, NUM_STEPS = 16, 20, 800


def mean_error(tx, lookahead):
    """Mean squared error over the second half, mean over seeds."""
    tx = optax.with_extra_args_support(tx)

    def one(key):
        centre_key, spread_key, key = jax.random.split(key, 3)
        centres = 3 * jax.random.normal(centre_key, (CLUSTERS, 1, 10), jnp.float32)
        data = centres + 0.3 * jax.random.normal(spread_key, (CLUSTERS, 100, 10), jnp.float32)
        optimum = data.mean((0, 1))

        def step(carry, key):
            x, state = carry
            k, i = jax.random.randint(key, (2,), 0, jnp.array([CLUSTERS, 100]))
            at = lookahead_params(state, x) if lookahead else x
            updates, state = tx.update(at - data[k, i], state, x, cluster_id=k)
            x = optax.apply_updates(x, updates)
            return (x, state), jnp.sum((x - optimum) ** 2)

        x = jnp.zeros(10, jnp.float32)
        errors = jax.lax.scan(step, (x, tx.init(x)), jax.random.split(key, 4000))[1]
        return errors[2000:].mean()

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(10), SEEDS)).mean().item()


def sample_loss(params, sample):
    return digits.loss(params, jax.tree.map(lambda a: a[None], sample))


def by_class(params, state, batch):
    return None, cluster_grads(sample_loss, params, batch, batch[1], CLUSTERS)


def epochs(method, gradient):
    """Index of the chosen rate, and epochs to training loss 0.05 by rate."""

    def one(rate, key):
        return digits.train(
            method(rate),
            key,
            batch_size=BATCH,
            num_steps=NUM_STEPS,
            every=EVERY,
            gradient=gradient,
        )[0].train_loss

    curves = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.array(RATES), keys(4))
    return chosen(digits.first(np.asarray(curves) <= 0.05, EVERY, BATCH))


def run() -> Outcome:
    scale = optax.scale_by_learning_rate(RATE)
    pairs = {
        "SGD": (optax.sgd(RATE), discover_sgd(RATE, CLUSTERS), 0.05),
        "momentum": (optax.sgd(RATE, 0.9), discover_sgdm(RATE, CLUSTERS), 0.05),
        "QHM": (optax.chain(scale_by_qhm(), scale), discover_qhm(RATE, CLUSTERS), 0.05),
        "IGT": (optax.chain(scale_by_igt(), scale), discover_igt(RATE, CLUSTERS), 0.3),
    }
    table, holds = [], True
    for name, (plain, mine, factor) in pairs.items():
        errors = [mean_error(tx, name == "IGT") for tx in (plain, mine)]
        holds &= errors[1] <= factor * errors[0]
        table.append({"inner": name, "error": errors[0], "error, Discover": errors[1]})
    frequency = np.bincount(digits.TRAIN[1], minlength=CLUSTERS) / digits.NUM_TRAIN
    at, plain = epochs(lambda rate: optax.sgd(rate, 0.9), digits.plain_gradient)
    other, mine = epochs(lambda rate: discover_sgdm(rate, CLUSTERS, weights=frequency), by_class)
    for rate, p, m in zip(RATES, plain, mine, strict=True):
        table.append(
            {
                "inner": f"digits, momentum, {rate:g}",
                "epochs to 0.05": p.item(),
                "epochs to 0.05, Discover": m.item(),
            }
        )
    epochs_plain, epochs_mine = plain[at].item(), mine[other].item()
    return Outcome(
        table,
        bool(holds and epochs_mine <= epochs_plain),
        f"On digits momentum takes {epochs_plain:.2f} epochs at the chosen rate {RATES[at]:g}, "
        f"Discover {epochs_mine:.2f} at {RATES[other]:g}; infinite where a seed does not get "
        "there. Tried afterwards at rate 0.1: alpha = 0.3 takes 5.1 epochs; 0.03 and 0.01 equal "
        "momentum (4.0), 0.003 takes 3.6: in batches of 16 from 10 classes the variance between "
        "classes is small, and the momenta add staleness.",
        why="scale: in batches of 16 from 10 classes the variance between classes is small; on "
        "mean estimation it holds",
    )
