"""UPGrad against the mean and one projection, with each sample an objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from benchmarks.claims import Outcome
from jaxopt_ext import multiobjective as mo

CLAIM = (
    "Instance-wise risk minimization of 1,024 digits by a small network: after 12 epochs of "
    "stochastic sub-Jacobian descent on minibatches of 32 the mean loss by UPGrad is at most 0.65 "
    "of that by the mean gradient, and below that by a single projection, on each of 4 seeds."
)
SETTINGS = (
    "The step size of each aggregator is the best for the mean loss at the end over seeds 0 and 1, "
    "from one grid, 0.03 to 10, of which no end was the best. Seeds 10 to 13 are reported."
)
GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RULES = {"UPGrad": mo.UPGrad(), "DualProj": mo.DualProj(), "mean": mo.Mean()}
N, BATCH, EPOCHS = 1024, 32, 12


def _loss(params, sample):
    image, label = sample
    hidden = jnp.tanh(image @ params["first"] + params["shift"])
    logits = hidden @ params["second"] + params["offset"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def _start(key):
    first, second = jax.random.split(key)
    return {
        "first": jax.random.normal(first, (64, 32)) / 8,
        "shift": jnp.zeros(32),
        "second": jax.random.normal(second, (32, 10)) / np.sqrt(32),
        "offset": jnp.zeros(10),
    }


@functools.cache
def _trainer(name):
    rule = RULES[name]
    images, labels = load_digits(return_X_y=True)

    def train(seed, step_size):
        keys = jax.random.split(jax.random.key(seed), 3)
        chosen = jax.random.permutation(keys[0], len(images))[:N]
        data = jnp.asarray(images / 16, jnp.float32)[chosen], jnp.asarray(labels)[chosen]

        def visit(params, indices):
            batch = jax.tree.map(lambda a: a[indices], data)
            update = mo.aggregated_grad(_loss, params, batch, rule)
            return jax.tree.map(lambda p, u: p - step_size * u, params, update), None

        orders = jax.vmap(lambda key: jax.random.permutation(key, N))(
            jax.random.split(keys[1], EPOCHS)
        )
        params, _ = jax.lax.scan(visit, _start(keys[2]), orders.reshape(-1, BATCH))
        return jnp.mean(jax.vmap(_loss, (None, 0))(params, data))

    return jax.jit(train)


def run() -> Outcome:
    best, inside, tried = {}, True, []
    for name in RULES:
        means = [float(np.mean([_trainer(name)(seed, size) for seed in (0, 1)])) for size in GRID]
        finite = [value if np.isfinite(value) else np.inf for value in means]
        index = int(np.argmin(finite))
        best[name] = GRID[index]
        inside &= 0 < index < len(GRID) - 1
        tried.append(f"{name} {GRID[index]}")
    table = []
    for seed in range(10, 14):
        losses = {name: float(_trainer(name)(seed, best[name])) for name in RULES}
        ratio = losses["UPGrad"] / losses["mean"]
        table.append({"seed": seed, **losses, "UPGrad / mean": ratio})
    holds = inside and all(
        row["UPGrad / mean"] <= 0.65 and row["UPGrad"] < row["DualProj"] for row in table
    )
    note = "mean losses after 12 epochs; best step sizes: " + ", ".join(tried)
    return Outcome(table, holds, note if inside else note + "; an end of the grid was the best")
