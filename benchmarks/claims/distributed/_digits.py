"""Data-parallel training of a small network on the 8 x 8 digits."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.optimizers._digits import TEST, TRAIN, accuracy, loss, network
from jaxopt_ext import distributed as dd

WORKERS, BATCH = 4, 16
WIDTHS = (64, 64, 10)
NETWORK = dd.Network.clients(WORKERS)


def outputs_first(params):
    """The paper's matrices have their outputs as rows."""
    return [(w.T, b) for w, b in params]


def node_loss(params, batch):
    return loss(outputs_first(params), batch)


def start(key):
    return outputs_first(network(key, WIDTHS))


def train(algorithm_of, rate, key, num_steps):
    """Training loss and test accuracy at the end; each worker draws from its own quarter."""
    algorithm = algorithm_of(rate)
    init_key, data_key, round_key = jax.random.split(key, 3)
    params = NETWORK.replicate(start(init_key))
    size = len(TRAIN[0]) // WORKERS
    shards = jax.random.permutation(data_key, len(TRAIN[0]))[: size * WORKERS]
    shards = shards.reshape(WORKERS, size)

    def batch(step):
        picked = jax.random.randint(jax.random.fold_in(data_key, step), (WORKERS, BATCH), 0, size)
        indices = jnp.take_along_axis(shards, picked, axis=1)
        return jax.tree.map(lambda a: a[indices], TRAIN)

    def step(state, number):
        key = jax.random.fold_in(round_key, number)
        return algorithm.round(state, batch(number), NETWORK, key), None

    state = algorithm.init(params, batch(0), NETWORK, round_key)
    state, _ = jax.lax.scan(step, state, jnp.arange(num_steps))
    last = outputs_first(jax.tree.map(lambda a: a[0], state.params))
    return loss(last, TRAIN), accuracy(last, TEST)


def compare(algorithm_of, rates, keys, num_tuning, num_steps):
    """One method at its best rate, that of least mean training loss over the first keys.

    **Returns:** the index of the rate, and training losses and test accuracies of the other keys.
    """
    run = lambda rate, key: train(algorithm_of, rate, key, num_steps)
    run = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    losses, accuracies = map(np.asarray, run(rates, keys))
    tuned = losses[:, :num_tuning].mean(axis=1)
    best = int(np.argmin(np.where(np.isfinite(tuned), tuned, np.inf)))
    return best, losses[best, num_tuning:], accuracies[best, num_tuning:]


def bytes_per_step(algorithm):
    """Bytes that a worker hands over in a step."""
    params = jax.eval_shape(lambda: NETWORK.replicate(start(jax.random.key(0))))
    return algorithm.bits_per_round(params, NETWORK) / 8
