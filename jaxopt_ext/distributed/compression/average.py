"""Means of messages, which travel as they are packed."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ...core import loops
from ..network import Network
from .compressor import AbstractCompressor, Shape, structs


def message_keys(
    compressor: AbstractCompressor, network: Network, key: PRNGKeyArray
) -> PRNGKeyArray:
    """A key for each local node, of its own or, where `shared_key`, one for all."""
    if compressor.shared_key:
        return jax.vmap(lambda _: key)(network.index())
    return network.keys(key)


def mean_message(
    compressor: AbstractCompressor,
    message: PyTree[Array],
    shape: Shape,
    network: Network,
    key: PRNGKeyArray,
) -> PyTree[Array]:
    """The mean over the nodes of what their messages mean, held once, at all nodes the same bit for
    bit.

    Messages that can be averaged as they are (`linear`) take one `mean`; all others are gathered,
    and each is read in its turn, so that one value and all messages are held.

    **Arguments:**

    - `message`: of the local nodes, stacked.
    - `shape`: what one node's value looks like.
    - `key`: that of the messages, where `shared_key`.
    """
    if compressor.linear:
        mean = jax.tree.map(lambda a: a[0], network.mean(message))
        return compressor.decompress(mean, shape, key)
    return _read(compressor, network.gather(message), shape, key)


def mean_message_over(
    compressor: AbstractCompressor,
    message: PyTree[Array],
    shape: Shape,
    axis_name: str | None,
    key: PRNGKeyArray,
) -> PyTree[Array]:
    """As `mean_message`, over an axis of `shard_map` or `vmap`; there is one sender if `None`."""
    if axis_name is None:
        return compressor.decompress(message, shape, key)
    if compressor.linear:
        return compressor.decompress(jax.lax.pmean(message, axis_name), shape, key)
    return _read(compressor, gathered(message, axis_name), shape, key)


def gathered(x: PyTree[Array], axis_name: str) -> PyTree[Array]:
    """All workers' values over an axis of `shard_map` or `vmap`, stacked."""
    # What all have gathered is the same everywhere, which the check of shard_map is told; older
    # versions of JAX cannot say so.
    known = "to" in inspect.signature(jax.lax.all_gather).parameters
    checked = axis_name in loops.varying_axes(x)
    options: dict[str, Any] = {"to": "invarying"} if known and checked else {}
    return jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name, **options), x)


def _read(compressor, messages, shape, key):
    like = structs(shape)

    def add(total, message):
        value = compressor.decompress(message, like, key)
        return jax.tree.map(jnp.add, total, value), None

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    total, _ = loops.scan(add, zeros, messages)
    count = jax.tree.leaves(messages)[0].shape[0]
    return jax.tree.map(lambda a: a / count, total)
