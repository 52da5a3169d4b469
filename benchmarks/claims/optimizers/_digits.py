"""The 8 x 8 digits and a small network to train on them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGES, LABELS = load_digits(return_X_y=True)
SPLIT = train_test_split(
    IMAGES.astype(np.float32) / 16, LABELS, test_size=360, random_state=0, stratify=LABELS
)
TRAIN = (jnp.asarray(SPLIT[0]), jnp.asarray(SPLIT[2], jnp.int32))
TEST = (jnp.asarray(SPLIT[1]), jnp.asarray(SPLIT[3], jnp.int32))
NUM_TRAIN = len(SPLIT[0])


class Curves(NamedTuple):
    """After every `every` steps."""

    train_loss: jax.Array
    train_accuracy: jax.Array
    test_accuracy: jax.Array


def network(key, widths=(64, 128, 10)):
    """Weights and biases of a ReLU network."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(k, (m, n), jnp.float32) * (2 / m) ** 0.5, jnp.zeros(n, jnp.float32))
        for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def logits(params, x, activation=jax.nn.relu):
    for w, b in params[:-1]:
        x = activation(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def loss(params, batch, activation=jax.nn.relu):
    x, y = batch
    outputs = logits(params, x, activation)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def accuracy(params, batch, activation=jax.nn.relu):
    x, y = batch
    return jnp.mean(jnp.argmax(logits(params, x, activation), -1) == y)


def plain_gradient(params, state, batch):
    return jax.grad(loss)(params, batch), {}


def train(
    tx,
    key,
    *,
    batch_size,
    num_steps,
    every,
    gradient=plain_gradient,
    train_set=TRAIN,
    test_set=TEST,
    evaluated=lambda params, state: params,
    widths=(64, 128, 10),
    activation=jax.nn.relu,
):
    """Train on shuffled epochs; returns the curves and the last parameters and state.

    The key decides the first weights and the order of the data. `gradient(params, state, batch)`
    gives the gradient and the extra arguments of `tx.update`, `evaluated(params, state)` the
    weights that are measured. `gradient` must know of an `activation` by itself.
    """
    tx = optax.with_extra_args_support(tx)
    init_key, data_key = jax.random.split(key)
    params, size = network(init_key, widths), len(train_set[0])
    per_epoch = size // batch_size
    epochs = -(-num_steps // per_epoch)
    orders = jax.vmap(lambda k: jax.random.permutation(k, size)[: per_epoch * batch_size])(
        jax.random.split(data_key, epochs)
    )
    orders = orders.reshape(-1, batch_size)[:num_steps].reshape(-1, every, batch_size)

    def step(carry, indices):
        params, state = carry
        batch = jax.tree.map(lambda a: a[indices], train_set)
        grads, extras = gradient(params, state, batch)
        updates, state = tx.update(grads, state, params, **extras)
        return (optax.apply_updates(params, updates), state), None

    def stretch(carry, indices):
        carry, _ = jax.lax.scan(step, carry, indices)
        at = evaluated(*carry)
        measured = (
            loss(at, train_set, activation),
            accuracy(at, train_set, activation),
            accuracy(at, test_set, activation),
        )
        return carry, Curves(*measured)

    (params, state), curves = jax.lax.scan(stretch, (params, tx.init(params)), orders)
    return curves, params, state


def first(reached, every, batch_size):
    """Epochs until `reached` first holds along the last axis; infinite if it never does."""
    reached = np.asarray(reached)
    steps = (np.argmax(reached, -1) + 1) * every
    return np.where(reached.any(-1), steps * batch_size / NUM_TRAIN, np.inf)
