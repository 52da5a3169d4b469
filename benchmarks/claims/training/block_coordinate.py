"""Block coordinate descent against gradients through the depth of a network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.claims import Outcome
from benchmarks.claims.optimizers._digits import TEST, TRAIN
from jaxopt_ext.training import BlockCoordinateTraining, FeedforwardNetwork

CLAIM = (
    "From weights of standard deviation 0.01, a ReLU network with five hidden layers of 64 trained "
    "on digits by block coordinate descent reaches a test accuracy above 0.85 in 60 epochs, and "
    "minibatch SGD on the same squared loss and from the same weights stays below 0.2 at the best "
    "of seven step sizes, on each of 5 seeds."
)
SETTINGS = (
    "Block coordinate descent has the paper's gamma = rho = 1 and, for this depth, alpha = 1: "
    "nothing is tuned. SGD, with batches of 32, takes the best of seven step sizes from 1e-3 to 1, "
    "SGD and Adam from He's weights the best of three, by mean test accuracy on seeds 0 and 1, "
    "which favours them. Seeds 10 to 14 are reported."
)

DEPTH, BATCH, EPOCHS = 5, 32, 60
TUNING, REPORTED = (0, 1), (10, 11, 12, 13, 14)
RATES = {
    "SGD": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
    "SGD, He": (1e-2, 3e-2, 0.1),
    "Adam, He": (1e-3, 3e-3, 1e-2),
}
X, Y = TRAIN[0], jax.nn.one_hot(TRAIN[1], 10)


def widths(hidden):
    return (64, *[64] * hidden, 10)


def accuracy(network):
    return jnp.mean(jnp.argmax(network(TEST[0]), 1) == TEST[1])


@functools.partial(jax.jit, static_argnums=3)
def blocks(key, X, Y, hidden):
    """Test accuracies after every 20 epochs, and the last objective over the number of samples."""
    model = BlockCoordinateTraining(widths(hidden), alpha=1.0)

    def stretch(state, _):
        epoch = lambda _, state: model.epoch(state, X, Y)
        state = jax.lax.fori_loop(0, 20, epoch, state)
        return state, accuracy(model.to_network(state))

    state, reached = jax.lax.scan(stretch, model.init(X, Y, key), length=EPOCHS // 20)
    return reached, model.objective(state, X, Y) / len(X)


def start(key, hidden, he):
    """The weights that block coordinate descent starts from, or He's."""
    model = BlockCoordinateTraining(widths(hidden))
    network = model.to_network(model.init(X[:1], Y[:1], key))
    if not he:
        return network
    weights = tuple(w / model.init_scale * (2 / w.shape[1]) ** 0.5 for w in network.weights)
    biases = tuple(map(jnp.zeros_like, network.biases))
    return FeedforwardNetwork(weights, biases, network.activation, network.skips)


@functools.partial(jax.jit, static_argnums=(4, 5))
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None, None))
@functools.partial(jax.vmap, in_axes=(None, 0, None, None, None, None))
def gradients(rate, key, X, Y, optimizer, he):
    """Test accuracy after all epochs."""
    network, tx = start(key, DEPTH, he), optimizer(rate)
    per_epoch = len(X) // BATCH
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, len(X))[: per_epoch * BATCH])
    orders = shuffled(jax.random.split(jax.random.fold_in(key, 1), EPOCHS)).reshape(-1, BATCH)

    def step(carry, rows):
        network, state = carry
        loss = lambda network: 0.5 * jnp.mean(jnp.sum((network(X[rows]) - Y[rows]) ** 2, axis=1))
        updates, state = tx.update(jax.grad(loss)(network), state)
        return (optax.apply_updates(network, updates), state), None

    (network, _), _ = jax.lax.scan(step, (network, tx.init(network)), orders)
    return accuracy(network)


def best(name):
    """Accuracies on the reported seeds at the best step size, and that size."""
    optimizer = optax.adam if name.startswith("Adam") else optax.sgd
    keys = lambda seeds: jnp.stack([jax.random.key(seed) for seed in seeds])
    reach = lambda rates, seeds: np.asarray(
        gradients(jnp.asarray(rates), keys(seeds), X, Y, optimizer, name.endswith("He"))
    )
    rate = RATES[name][int(np.argmax(reach(RATES[name], TUNING).mean(axis=1)))]
    return reach((rate,), REPORTED)[0], rate


def run() -> Outcome:
    others = {name: best(name) for name in RATES}
    table = []
    for i, seed in enumerate(REPORTED):
        reached, objective = blocks(jax.random.key(seed), X, Y, DEPTH)
        row = {"seed": seed, "blocks, 20 epochs": float(reached[0])}
        row["blocks, 60 epochs"], row["objective"] = float(reached[-1]), float(objective)
        for name, (found, rate) in others.items():
            row[f"{name} ({rate:g})"] = float(found[i])
        table.append(row)
    deep, objective = blocks(jax.random.key(REPORTED[0]), X, Y, 10)
    key = next(key for key in table[0] if key.startswith("SGD ("))
    holds = all(row["blocks, 60 epochs"] > 0.85 and row[key] < 0.2 for row in table)
    note = (
        "Test accuracies; step sizes in brackets; the objective is over the number of samples. "
        f"With ten hidden layers, not claimed, the objective falls to {float(objective):.2g} and "
        f"the network's accuracy is {float(deep[-1]):.2f}: the auxiliary variables fit, the "
        "network does not. From He's weights gradients do better than blocks: what is claimed is "
        "what a bad start costs them."
    )
    return Outcome(table, holds, note, why="scale: digits are few, and depth five is not much")
