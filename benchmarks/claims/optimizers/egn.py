"""Exact Gauss-Newton against Adam and SGD at equal numbers of steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes

from jaxopt_ext.optimizers import egn

from .. import Outcome
from . import _digits as digits

CLAIM = (
    "With batches of 64 and equal numbers of steps, exact Gauss-Newton at rate 1 and damping 1 "
    "trains networks with 32 tanh units to a test loss at most 1.05 times the best of Adam and "
    "SGD with momentum 0.9 over three rates each, on diabetes (200 steps, mean of 5 seeds) and "
    "on digits (100 steps, mean of 2 seeds)."
)
SETTINGS = (
    "Rate 1 and damping 1 are the method's defaults; Adam and SGD take the best of three rates "
    "each on the reported keys and by test loss, which favours them, though on digits both are "
    "best at the longest. Keys of seed 0."
)

RATES = {"Adam": (1e-3, 3e-3, 1e-2), "SGD": (1e-2, 3e-2, 1e-1)}


def outputs(params, x):
    return digits.logits(params, x, jnp.tanh)


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    y = ((y - y.mean()) / y.std()).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = jnp.asarray(X[order]), jnp.asarray(y[order])
    return (X[:352], y[:352]), (X[352:], y[352:])


def squared(params, batch):
    return 0.5 * jnp.mean((outputs(params, batch[0])[:, 0] - batch[1]) ** 2)


def crossed(params, batch):
    return digits.loss(params, batch, jnp.tanh)


def train(tx, loss, widths, data, num_steps, key):
    """Test loss after the last step."""
    tx = optax.with_extra_args_support(tx)
    (train_set, test_set), (init_key, data_key) = data, jax.random.split(key)
    params = digits.network(init_key, widths)

    def step(carry, key):
        params, state = carry
        chosen = jax.random.choice(key, train_set[0].shape[0], (64,), replace=False)
        batch = jax.tree.map(lambda a: a[chosen], train_set)
        gradient = jax.grad(loss)(params, batch)
        updates, state = tx.update(gradient, state, params, batch=batch)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(data_key, num_steps)
    return loss(jax.lax.scan(step, (params, tx.init(params)), keys)[0][0], test_set)


def run() -> Outcome:
    tasks = {
        "diabetes": (squared, "mse", (10, 32, 1), diabetes(), 200, 5),
        "digits": (crossed, "ce", (64, 32, 10), (digits.TRAIN, digits.TEST), 100, 2),
    }
    table, holds = [], True
    for name, (loss, kind, widths, data, num_steps, seeds) in tasks.items():
        keys = jax.random.split(jax.random.key(0), seeds)

        def mean(tx, loss=loss, widths=widths, data=data, num_steps=num_steps, keys=keys):
            one = functools.partial(train, tx, loss, widths, data, num_steps)
            return jax.jit(jax.vmap(one))(keys).mean().item()

        rows = [
            {"data": name, "method": f"{method} {rate:g}", "test loss": mean(make(rate))}
            for method, make in (("Adam", optax.adam), ("SGD", lambda r: optax.sgd(r, 0.9)))
            for rate in RATES[method]
        ]
        predict = (lambda p, x: outputs(p, x)[0]) if kind == "mse" else outputs
        mine = mean(egn(predict, kind))
        slower = mean(egn(predict, kind, 0.1)) if name == "diabetes" else None
        holds = holds and mine <= 1.05 * min(row["test loss"] for row in rows)
        table += [*rows, {"data": name, "method": "EGN", "test loss": mine}]
        if slower is not None:
            table.append({"data": name, "method": "EGN 0.1", "test loss": slower})
    return Outcome(
        table,
        holds,
        "On digits it holds. On diabetes, 352 rows, rate 1 fits the noise within 200 steps; the "
        "rate 0.1 beside it is not part of the claim.",
        why="scale: on 352 rows rate 1 fits the noise within 200 steps; on digits it holds",
    )
