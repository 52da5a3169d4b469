"""Averages of models that keep the variance of their layers, for nodes that start apart."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, tree
from .algorithm import AbstractNetworkAlgorithm, Loss, model_bits
from .local import AbstractLocalSolver
from .network import Network, Weights


def variance_corrected_mean(
    stack: PyTree[Array],
    weights: Float[Array, " m"] | None = None,
    mask: Bool[Array, " m"] | None = None,
) -> PyTree[Array]:
    """The mean of models, each leaf l spread out again to the variance that the models have,

    $$\\bar l = \\sum_i w_i l_i, \\qquad
      (\\bar l - \\mu) \\sqrt{\\frac{\\sum_i w_i \\mathrm{Var}(l_i)}{\\mathrm{Var}(\\bar l)}}
      + \\mu, \\qquad \\mu = \\mathrm{mean}(\\bar l),$$

    where mean and variance are over the entries of a leaf. The mean of m unrelated layers has only
    1/m of their variance, and signals that pass many such layers vanish. Models that agree keep
    their mean as it is; so do leaves of one entry, and those whose mean is constant.

    **Arguments:**

    - `stack`: models stacked on a leading axis of m.
    - `weights`: $w_i \\ge 0$, divided by their sum; equal if `None`.
    - `mask`: which models are there, all if `None`; the others are not looked at.

    **Returns:** one model; NaN if none is there, or all weights are zero.

    **Raises:** `TypeError` on leaves that are not real floating-point; `ValueError` if weights or
    mask do not have shape `(m,)`.

    **Reference:** Tian, Al-Ars, Kitsak, Hofstee, Vanishing Variance Problem in Fully Decentralized
    Neural-Network Systems, 2024, arXiv:2404.04616.
    """
    _check_real(stack)
    m = jax.tree.leaves(stack)[0].shape[0]
    for name, value in (("weights", weights), ("mask", mask)):
        if value is not None and jnp.shape(value) != (m,):
            raise ValueError(f"{name} must have shape {(m,)}, got {jnp.shape(value)}")
    share = jnp.ones(m) if weights is None else jnp.asarray(weights)
    share = share if mask is None else jnp.where(mask, share, 0)
    share = share / jnp.sum(share)

    def average(a):
        # A model of weight zero may hold anything.
        seen = jnp.where((share == 0).reshape(-1, *[1] * (a.ndim - 1)), 0, a)
        return jnp.tensordot(share.astype(a.dtype), seen, 1)

    rule = VarianceCorrected()
    spread = jax.tree.map(average, jax.vmap(rule.summary)(stack))
    return rule.combine(jax.tree.map(average, stack), spread)


def _check_real(models: PyTree[Any]) -> None:
    for leaf in jax.tree.leaves(models):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"layers must be real floating-point, got {jnp.result_type(leaf)}")


class AbstractModelAverage(eqx.Module):
    """What is made of a mean of models, from numbers that travel with them."""

    @abc.abstractmethod
    def summary(self, model: PyTree[Array]) -> PyTree[Array]:
        """What travels with one model, and is averaged as it is."""

    @abc.abstractmethod
    def combine(self, mean: PyTree[Array], summary: PyTree[Array]) -> PyTree[Array]:
        """The new model, from the means of models and summaries."""


class PlainAverage(AbstractModelAverage):
    """The mean as it is: the baseline, under which the variance of unrelated layers vanishes.

    **Reference:** Ormándi, Hegedűs, Jelasity, Gossip Learning with Linear Models on Fully
    Distributed Data, 2013, arXiv:1109.1396.
    """

    def summary(self, model):
        return ()

    def combine(self, mean, summary):
        return mean


class VarianceCorrected(AbstractModelAverage):
    """The mean, with the variance that the leaves had; see `variance_corrected_mean`. The variance
    of each leaf of two entries or more travels along.

    **Reference:** Tian, Al-Ars, Kitsak, Hofstee, Vanishing Variance Problem in Fully Decentralized
    Neural-Network Systems, 2024, arXiv:2404.04616.
    """

    def summary(self, model):
        _check_real(model)
        return jax.tree.map(lambda a: jnp.var(a) if a.size > 1 else None, model)

    def combine(self, mean, summary):
        return jax.tree.map(_spread_out, mean, summary)


def _spread_out(mean: Array, variance: Array | None) -> Array:
    if variance is None:
        return mean
    center = jnp.mean(mean)
    around = mean - center
    left = jnp.mean(around**2)
    ratio = variance / jnp.where(left > 0, left, 1)
    return jnp.where(left > 0, center + jnp.sqrt(ratio) * around, mean)


def sample_weights(network: Network, counts: Any) -> Weights:
    """Weights of a node and its neighbours in proportion to their samples.

    **Arguments:**

    - `counts`: for all nodes, shape `(n,)`; ones for the plain mean over the closed neighbourhood.
    """
    tables = network._graph()
    counts = jnp.asarray(counts)
    if counts.shape != (network.size,):
        raise ValueError(f"counts must have shape {(network.size,)}, got {counts.shape}")
    around = jnp.where(jnp.asarray(tables.mask), counts[jnp.asarray(tables.neighbors)], 0)
    total = counts + jnp.sum(around, axis=1)
    return counts / total, around / total[:, None]


def independent_init(
    init: Callable[[PRNGKeyArray], PyTree[Array]], network: Network, key: PRNGKeyArray
) -> PyTree[Array]:
    """A model for each node, drawn apart, stacked and placed.

    **Arguments:**

    - `init`: `key -> model`.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(network.size))
    return network.place(jax.vmap(init)(keys))


class _State(eqx.Module):
    params: PyTree[Array]


class GossipLearning(AbstractNetworkAlgorithm):
    """Nodes train on their own data, send their models to all neighbours, and take the average of
    what they hold, their own model included,

    $$z_i = \\mathrm{Local}_K(x_i), \\qquad
      x_i = \\mathrm{average}\\{z_j : j = i,\\ j \\sim i\\} .$$

    With `VarianceCorrected` the nodes may start from models drawn apart, `independent_init`, which
    under a plain average stops learning; later models are alike, and the correction does nothing.

    **Arguments:**

    - `loss`: `(params, minibatch) -> scalar` of one node.
    - `local`: `LocalSGD` or `LocalSAM`. Batches are as in `DecentralizedFederated`.
    - `average`: `VarianceCorrected()` or `PlainAverage()`.
    - `weights`: of a node and its neighbours, rows with sum one: `network.weights(matrix)` or
      `sample_weights`; equal if `None`.

    **Raises:** `TypeError` if `local` or `average` is something else.

    **Reference:** Tian, Al-Ars, Kitsak, Hofstee, Vanishing Variance Problem in Fully Decentralized
    Neural-Network Systems, 2024, arXiv:2404.04616.
    """

    loss: Loss
    local: AbstractLocalSolver
    average: AbstractModelAverage = VarianceCorrected()
    weights: Weights | None = None

    def __check_init__(self):
        _check_parts(self)

    def init(self, params, batch, network, key):
        return _State(params)

    def round(self, state, batch, network, key):
        trained = self.local.run_all(self.loss, state.params, batch, network.keys(key))
        weights = self.weights
        if weights is None:
            weights = sample_weights(network, jnp.ones(network.size))
        message = trained, jax.vmap(self.average.summary)(trained)
        return _State(jax.vmap(self.average.combine)(*network.mix(message, weights)))

    def bits_per_round(self, params, network):
        return _bits(self.average, params, network)


def _check_parts(algorithm):
    checks.instance("local", algorithm.local, AbstractLocalSolver, "LocalSGD(0.1, 5)")
    checks.instance("average", algorithm.average, AbstractModelAverage, "VarianceCorrected()")


def _bits(average, params, network):
    """Of models and what travels with them."""
    summary = jax.eval_shape(jax.vmap(average.summary), params)
    return network.max_degree * (model_bits(params) + model_bits(summary))


class _BufferState(eqx.Module):
    params: PyTree[Array]
    total: PyTree[Array]
    """Sums of the models that have come, and of what travelled with them."""
    held: Int[Array, " local"]


class BufferedGossipLearning(AbstractNetworkAlgorithm):
    """`GossipLearning` in which a node averages whenever `buffer_size` models have come, whoever
    sent them, together with its own, and begins anew. What is left waits for the next round.

    The buffer is a sum: it holds one model, not `buffer_size`.

    **Arguments:**

    - `loss`, `local`, `average`: see `GossipLearning`.
    - `buffer_size`: how many models; the degree, in a regular graph, is `GossipLearning` itself.

    **Raises:** `TypeError` if `local` or `average` is something else; `ValueError` if the buffer
    holds no model.

    **Reference:** Tian, Al-Ars, Kitsak, Hofstee, Vanishing Variance Problem in Fully Decentralized
    Neural-Network Systems, 2024, arXiv:2404.04616.
    """

    loss: Loss
    local: AbstractLocalSolver
    buffer_size: int = eqx.field(static=True)
    average: AbstractModelAverage = VarianceCorrected()

    def __check_init__(self):
        _check_parts(self)
        checks.count("buffer_size", self.buffer_size)

    def init(self, params, batch, network, key):
        message = params, jax.vmap(self.average.summary)(params)
        held = jnp.zeros_like(network.index(), jnp.int32)
        return _BufferState(params, jax.tree.map(jnp.zeros_like, message), held)

    def round(self, state, batch, network, key):
        trained = self.local.run_all(self.loss, state.params, batch, network.keys(key))
        message = trained, jax.vmap(self.average.summary)(trained)
        start = trained, state.total, state.held
        return _BufferState(*network.fold(jax.vmap(self._receive), start, message))

    def _receive(self, carry, message, mask):
        """One message at one node."""
        model, total, held = carry
        total = tree.where(mask, jax.tree.map(jnp.add, total, message), total)
        held = held + mask
        full = held == self.buffer_size
        whole = jax.tree.map(jnp.add, total, (model, self.average.summary(model)))
        new = self.average.combine(*tree.scale(whole, 1 / (self.buffer_size + 1)))
        empty = jax.tree.map(jnp.zeros_like, total)
        return (
            tree.where(full, new, model),
            tree.where(full, empty, total),
            jnp.where(full, 0, held),
        )

    def bits_per_round(self, params, network):
        return _bits(self.average, params, network)


class PartitionedGossip(AbstractNetworkAlgorithm):
    """Gossip learning by parts: each message carries one of s parts of the model, drawn anew, and
    a node averages each entry over its own and those that have come.

    Part p holds the entries p, p + s, p + 2 s, ... of the raveled model, so that all are of one
    size, whatever its leaves.

    **Arguments:**

    - `loss`, `local`: see `GossipLearning`.
    - `num_parts`: s.

    **Raises:** `TypeError` if `local` is something else; `ValueError` if there is no part.

    **Reference:** Hegedűs, Danner, Jelasity, Decentralized Learning Works: An Empirical Comparison
    of Gossip Learning and Federated Learning, 2021.
    """

    loss: Loss
    local: AbstractLocalSolver
    num_parts: int = eqx.field(static=True)

    def __check_init__(self):
        checks.instance("local", self.local, AbstractLocalSolver, "LocalSGD(0.1, 5)")
        checks.count("num_parts", self.num_parts)

    def init(self, params, batch, network, key):
        return _State(params)

    def round(self, state, batch, network, key):
        parts_key, local_key = jax.random.split(key)
        trained = self.local.run_all(self.loss, state.params, batch, network.keys(local_key))
        _, unravel = ravel_pytree(jax.tree.map(lambda a: a[0], trained))
        flat = jax.vmap(lambda x: ravel_pytree(x)[0])(trained)
        size, s = flat.shape[1], self.num_parts
        rows = jnp.pad(flat, ((0, 0), (0, -size % s))).reshape(len(flat), -1, s)
        part = jax.vmap(lambda k: jax.random.randint(k, (), 0, s))(network.keys(parts_key))
        part = part.astype(jnp.int32)  # what travels, wherever double precision is enabled too
        message = jax.vmap(lambda row, p: row[:, p])(rows, part), part

        def receive(carry, message, mask):
            total, count = carry
            values, p = message
            return total.at[:, p].add(jnp.where(mask, values, 0)), count.at[p].add(mask)

        start = rows, jnp.ones((len(flat), s), jnp.int32)
        total, count = network.fold(jax.vmap(receive), start, message)
        mean = (total / count[:, None].astype(total.dtype)).reshape(len(flat), -1)
        return _State(jax.vmap(unravel)(mean[:, :size]))

    def bits_per_round(self, params, network):
        leaves = jax.tree.leaves(params)
        size = tree.size(params) // leaves[0].shape[0]
        width = 8 * jnp.result_type(*leaves).itemsize
        return network.max_degree * (-(-size // self.num_parts) * width + 32)
