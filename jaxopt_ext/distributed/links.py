"""Links that lose, delay or change messages.

- Loss: `lose_edges` makes the weights of a round in which some edges are down.
- Noise: a *channel*, `channel(key, message) -> received`, such as `GaussianNoise`, goes to
  `Network.mix`; `receive` applies one to all neighbours' values. `LaplaceNoise` hides what is sent,
  `Quantized` rounds it, and `receive` then sends it packed.
- Delay: `DelayedLinks` holds what is under way.

Draws belong to an edge by its number, and so are the same wherever the nodes live.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import checks
from .network import Channel, Network, Weights


def lose_edges(
    network: Network, key: PRNGKeyArray, probability: Any, weights: Weights | None = None
) -> Weights:
    """Weights of a round in which each edge is down, in both directions, with some probability.

    The weight of a lost edge goes back to both of its ends, so that symmetric doubly stochastic
    weights stay so. Weights that are not symmetric keep their row sums only.

    **Arguments:**

    - `key`: of the round.
    - `probability`: of loss, in [0, 1]; one number, or one for each entry of the table `(n, k)`,
      alike at both ends of an edge.
    - `weights`: of the round without loss; the network's own if `None`.
    """
    checks.interval("probability", probability, 0, 1)
    tables = network._graph()
    own, table = (tables.own, tables.weights) if weights is None else weights
    draw = lambda e: jax.random.uniform(jax.random.fold_in(key, e))
    lost = jax.vmap(jax.vmap(draw))(jnp.asarray(tables.edges)) < jnp.asarray(probability)
    table = jnp.asarray(table)
    back = jnp.sum(jnp.where(lost, table, 0), axis=1)
    return jnp.asarray(own) + back, jnp.where(lost, 0, table)


class GaussianNoise(eqx.Module):
    """A channel that adds independent normal noise to each number.

    **Arguments:**

    - `scale`: its standard deviation.
    """

    scale: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.nonnegative("scale", self.scale)

    def __call__(self, key, message):
        leaves, treedef = jax.tree.flatten(message)
        keys = jax.random.split(key, max(len(leaves), 1))
        noisy = [
            a + self.scale.astype(a.real.dtype) * jax.random.normal(k, a.shape, a.dtype)
            for k, a in zip(keys, leaves, strict=False)
        ]
        return jax.tree.unflatten(treedef, noisy)


class LaplaceNoise(eqx.Module):
    """A channel that adds independent Laplace noise to each number, as differential privacy asks.

    **Arguments:**

    - `scale`: b of the density $e^{-|t|/b}/(2b)$; the variance is $2b^2$.
    """

    scale: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.nonnegative("scale", self.scale)

    def __call__(self, key, message):
        leaves, treedef = jax.tree.flatten(message)
        keys = jax.random.split(key, max(len(leaves), 1))
        noisy = [
            a + self.scale.astype(a.dtype) * jax.random.laplace(k, a.shape, a.dtype)
            for k, a in zip(keys, leaves, strict=False)
        ]
        return jax.tree.unflatten(treedef, noisy)


class Quantized(eqx.Module):
    """A channel of few bits: what arrives is $C(m)$.

    The sender rounds its message once for all neighbours. `receive` sends it packed;
    `Network.mix`, to which every channel is a function, sends it whole and rounds it at each
    receiver.

    **Arguments:**

    - `compressor`: an unbiased one without shared keys or memory, such as
      `compression.Grid(0.1, 8)`.
    """

    compressor: Any

    def __check_init__(self):
        from .compression import AbstractCompressor

        checks.instance("compressor", self.compressor, AbstractCompressor, "Grid(0.1, 8)")
        if self.compressor.shared_key:
            raise ValueError(f"Quantized needs a compressor without a shared key, got {self}")

    def __call__(self, key, message):
        return self.compressor(message, key)


def receive(
    network: Network, x: PyTree[Array], channel: Channel, key: PRNGKeyArray
) -> tuple[PyTree[Array], Bool[Array, "local k"]]:
    """`network.neighbors(x)`, each value as it comes out of its link's channel.

    Noise is drawn for each direction of each edge; `Quantized` draws once for each sender, and its
    messages travel packed.
    """
    if isinstance(channel, Quantized):
        compressor = channel.compressor
        message = jax.vmap(compressor.compress)(x, network.keys(key))
        around, mask = network.neighbors(message)
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), x)
        read = lambda message: compressor.decompress(message, one)
        return jax.vmap(jax.vmap(read))(around), mask
    around, mask = network.neighbors(x)
    return jax.vmap(jax.vmap(channel))(network.edge_keys(key, directed=True), around), mask


class _UnderWay(eqx.Module):
    known: PyTree[Array]
    """The newest message of each neighbour, `(local, k, ...)`; the node's own value at first."""
    sent: Int[Array, "local k"]
    """The round in which it was sent; -1 if none has arrived."""
    waiting: PyTree[Array]
    waiting_sent: Int[Array, "local k slots"]
    arrival: Int[Array, "local k slots"]


class DelayedLinks(eqx.Module):
    """Links on which a message takes some rounds, or is lost.

    A message sent in round t arrives in round $t + \\tau$, with $\\tau$ uniform on 0, ...,
    `max_delay`, drawn for each message; a lost one never does. A receiver uses the newest message
    that has arrived; one that was overtaken is dropped. Each message travels once, and waits at
    its receiver: the state holds degree times `max_delay + 2` models for each node.

    **Arguments:**

    - `max_delay`: at least 0.
    - `loss`: probability that a message is lost, in each direction on its own.
    """

    max_delay: int = eqx.field(static=True)
    loss: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.0)

    def __check_init__(self):
        checks.count("max_delay", self.max_delay, minimum=0)
        checks.interval("loss", self.loss, 0, 1)

    def init(self, x: PyTree[Array], network: Network) -> _UnderWay:
        """Nothing has been sent."""
        shape = network.neighbor_table()[1].shape
        slots = self.max_delay + 1

        def spread(a, *more):
            value = a.reshape(a.shape[0], *([1] * (1 + len(more))), *a.shape[1:])
            return jnp.broadcast_to(value, (*shape, *more, *a.shape[1:]))

        return _UnderWay(
            jax.tree.map(spread, x),
            jnp.full(shape, -1, jnp.int32),
            jax.tree.map(lambda a: spread(a, slots), x),
            jnp.full((*shape, slots), -1, jnp.int32),
            jnp.full((*shape, slots), jnp.iinfo(jnp.int32).max, jnp.int32),
        )

    def exchange(
        self,
        state: _UnderWay,
        x: PyTree[Array],
        round: Int[Array, ""],
        network: Network,
        key: PRNGKeyArray,
    ) -> tuple[_UnderWay, PyTree[Array], Int[Array, "local k"]]:
        """Send `x` to all neighbours in round `round`, counted from 0, and take in what arrives.

        **Arguments:**

        - `key`: of the round.

        **Returns:** the state; the newest message of each neighbour, `(local, k, ...)`; the rounds
        in which these were sent, -1 where none has arrived. Entries that are no neighbours are
        those of `network.neighbor_table`.
        """
        around, _ = network.neighbors(x)
        draw = jax.vmap(jax.vmap(self._draw))
        delay, lost = draw(network.edge_keys(key, directed=True))
        round = jnp.asarray(round, jnp.int32)
        slot = round % (self.max_delay + 1)
        store = lambda buffer, a: jax.lax.dynamic_update_index_in_dim(buffer, a, slot, 2)
        waiting = jax.tree.map(store, state.waiting, around)
        sent = store(state.waiting_sent, jnp.full_like(delay, round))
        arrival = store(state.arrival, jnp.where(lost, jnp.iinfo(jnp.int32).max, round + delay))

        new = (arrival <= round) & (sent > state.sent[..., None])
        newest = jnp.argmax(jnp.where(new, sent, -1), axis=-1)
        some = jnp.any(new, axis=-1)

        def pick(buffer, old):
            here = newest.reshape(*newest.shape, *([1] * (buffer.ndim - 2)))
            value = jnp.take_along_axis(buffer, here, axis=2).squeeze(2)
            return jnp.where(some.reshape(*some.shape, *([1] * (old.ndim - 2))), value, old)

        known = jax.tree.map(pick, waiting, state.known)
        stamp = pick(sent, state.sent)
        return _UnderWay(known, stamp, waiting, sent, arrival), known, stamp

    def _draw(self, key):
        one, two = jax.random.split(key)
        delay = jax.random.randint(one, (), 0, self.max_delay + 1, jnp.int32)
        return delay, jax.random.bernoulli(two, self.loss)
