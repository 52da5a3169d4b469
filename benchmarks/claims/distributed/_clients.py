"""Clients that hold parts of the 8 x 8 digits, and what is asked of their models."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.optimizers._digits import SPLIT, TEST, accuracy
from jaxopt_ext import distributed as dd

NODES = 16
IMAGES, LABELS = SPLIT[0], SPLIT[2].astype(np.int32)


def _padded(parts, longest):
    """Equal shapes for all seeds: one program serves them."""
    data = dd.Padded.of([(IMAGES[part], LABELS[part]) for part in parts])
    return jax.tree.map(
        lambda a: jnp.pad(a, ((0, 0), (0, longest - a.shape[1]), *[(0, 0)] * (a.ndim - 2))),
        data.data,
    ), data.count


def _stacked(splits):
    longest = max(len(part) for parts in splits for part in parts)
    both = [_padded(parts, longest) for parts in splits]
    return dd.Padded(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *both))


def dirichlet(seeds, alpha, smallest=8):
    """Each class goes to the clients in shares drawn from Dirichlet(alpha); drawn again while a
    client has fewer than `smallest` samples. Leaves have axes (seed, client, sample)."""

    def parts(seed):
        rng = np.random.default_rng(seed)
        while True:
            clients = [[] for _ in range(NODES)]
            for label in range(10):
                own = rng.permutation(np.flatnonzero(label == LABELS))
                cuts = np.cumsum(rng.dirichlet(np.full(NODES, alpha)))[:-1] * len(own)
                for client, part in zip(clients, np.split(own, cuts.astype(int)), strict=True):
                    client.extend(part)
            if min(map(len, clients)) >= smallest:
                return [np.asarray(client) for client in clients]

    return _stacked([parts(seed) for seed in seeds])


def uniform(seeds):
    """A random part of all samples each."""
    orders = [np.random.default_rng(seed).permutation(len(LABELS)) for seed in seeds]
    return _stacked([np.array_split(order, NODES) for order in orders])


def shards(seeds):
    """Two of 32 shards of the samples sorted by label each."""

    def parts(seed):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(LABELS))
        pieces = np.array_split(order[np.argsort(LABELS[order], kind="stable")], 2 * NODES)
        drawn = rng.permutation(2 * NODES).reshape(NODES, 2)
        return [np.concatenate([pieces[i] for i in pair]) for pair in drawn]

    return _stacked([parts(seed) for seed in seeds])


def train(algorithm, network, params, batch, key, number, every=1, activation=jax.nn.relu):
    """The last models, and the mean test accuracy of the clients after each `every` rounds."""

    def one(state, r):
        return algorithm.round(state, batch, network, jax.random.fold_in(key, r)), None

    def stretch(state, rs):
        state, _ = jax.lax.scan(one, state, rs)
        right = jax.vmap(lambda p: accuracy(p, TEST, activation))(state.params)
        return state, jnp.mean(right)

    state = algorithm.init(params, batch, network, key)
    state, curve = jax.lax.scan(stretch, state, jnp.arange(number).reshape(-1, every))
    return state.params, curve
