"""Pooling of a few instances with a memory against whole bags and against no memory."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from benchmarks.claims import Outcome
from jaxopt_ext import training

CLAIM = (
    "On bags of 20 digits, positive if one is a nine, MIDAM with 4 instances of a bag in a step "
    "has a median test area under the ROC curve of at least 0.02 above that of the same 4 "
    "instances without a memory, and of at most 0.03 below that of whole bags, over 10 seeds."
)
SETTINGS = (
    "Smoothed maxima with tau = 0.1 of a tanh of a network 64-32-1, margin 1, momentum 0.1, 8 bags "
    "of each class in each of 1500 steps; gamma is the default 0.9. The step size of all three is "
    "the best of five, 0.03 to 3, by mean area on seeds 0 to 4. Seeds 10 to 19 are reported; "
    "with means over the first five of them it held, as whole bags ran into the flat part of tanh "
    "on one. Rates chosen by medians are too large for MIDAM on other seeds."
)

BAG, TRAIN, TEST, STEPS = 20, 300, 400, 1500
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
TUNING, REPORTED = (0, 1, 2, 3, 4), tuple(range(10, 20))
IMAGES, DIGITS = load_digits(return_X_y=True)


def bags(seed):
    """Instances and labels of training bags, then of test bags, from different images."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(IMAGES))
    parts = []
    for rows, n in ((order[: len(order) // 2], TRAIN), (order[len(order) // 2 :], TEST)):
        nines, others = rows[DIGITS[rows] == 9], rows[DIGITS[rows] != 9]
        labels = (np.arange(n) % 5 == 0).astype(np.int32)
        chosen = rng.choice(others, size=(n, BAG))
        chosen[labels == 1, 0] = rng.choice(nines, size=labels.sum())
        parts += [(IMAGES[chosen] / 16).astype(np.float32), labels]
    return parts


def first(key):
    keys = jax.random.split(key)
    return (
        jax.random.normal(keys[0], (64, 32), jnp.float32) / 8,
        jnp.zeros(32, jnp.float32),
        jax.random.normal(keys[1], (32,), jnp.float32) / 32**0.5,
        jnp.zeros((), jnp.float32),
    )


def phi(params, x):
    w, b, v, c = params
    return jnp.tanh(jnp.tanh(x @ w + b) @ v + c)


@eqx.filter_jit
def scores(rate, gamma, size, instances, test, keys):
    """Of the test bags after all steps, from all their instances."""
    labels, lengths = bags(0)[1], np.full(TRAIN, BAG)

    def run(instances, test, key):
        init, draw = jax.random.split(key)
        flat = instances.reshape(-1, 64)
        batches = training.BagSampler(flat, lengths, labels, 8, 8, size, key=draw)
        tx = optax.sgd(rate, momentum=0.1)
        pooling = training.SmoothedMax(0.1)
        method = training.MIDAM(phi, tx, TRAIN, pooling, gamma, dual_step=0.1)
        fit = training.fit(method, first(init), batches, STEPS, key=key)
        return method.predict(fit.params, test, jnp.ones(test.shape[:2], bool))

    return jax.vmap(run)(instances, test, keys)


def areas(rate, gamma, size, seeds):
    made = [bags(seed) for seed in seeds]
    instances, test = (jnp.stack([part[k] for part in made]) for k in (0, 2))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    rate, gamma = jnp.asarray(rate, jnp.float32), jnp.asarray(gamma, jnp.float32)
    found = np.asarray(scores(rate, gamma, size, instances, test, keys))
    # Weights that have become infinite rank nothing.
    found = np.where(np.isfinite(found), found, 0)
    return [roc_auc_score(part[3], row) for part, row in zip(made, found, strict=True)]


METHODS = {"MIDAM": (0.9, 4), "no memory": (1.0, 4), "whole bags": (1.0, BAG)}


def run() -> Outcome:
    table = [{"seed": seed} for seed in REPORTED]
    best, medians = {}, {}
    for name, (gamma, size) in METHODS.items():
        tuned = [np.mean(areas(rate, gamma, size, TUNING)) for rate in RATES]
        best[name] = RATES[int(np.argmax(tuned))]
        found = areas(best[name], gamma, size, REPORTED)
        medians[name] = float(np.median(found))
        for row, area in zip(table, found, strict=True):
            row[name] = float(area)
    holds = (
        medians["MIDAM"] >= medians["no memory"] + 0.02
        and medians["MIDAM"] >= medians["whole bags"] - 0.03
    )
    note = (
        "Areas under the ROC curve of 400 test bags; a step of whole bags sees five times the "
        "instances. "
        + "; ".join(
            f"{name}: step size {best[name]:g}, median {medians[name]:.3f}" for name in METHODS
        )
        + "."
    )
    return Outcome(table, holds, note)
