"""The driver of network algorithms."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..core import checkpoint as files, checks, loops
from ..core.progress import progress_bar
from .algorithm import AbstractNetworkAlgorithm
from .network import Network


class Run(eqx.Module):
    """What `run` returns.

    **Attributes:**

    - `params`: the nodes' parameters, stacked.
    - `state`: the algorithm's state.
    - `rounds`: rounds done.
    - `history`: what `metric` returned every `record_every` rounds, stacked; or `None`.
    """

    params: PyTree[Array]
    state: Any
    rounds: int
    history: PyTree[Array] | None


Batches = PyTree[Array] | Callable[[Array], PyTree[Array]]


@eqx.filter_jit
def _init(algorithm, network, params, batches, key):
    def start(params, batch, key):
        return algorithm.init(params, batch, network, key)

    return network.parallel(start)(params, _batch(batches, jnp.asarray(0)), key)


@eqx.filter_jit
def _advance(algorithm, network, state, batches, first, last, key):
    def one(state, batch, key):
        return algorithm.round(state, batch, network, key)

    def body(r, state):
        return network.parallel(one)(state, _batch(batches, r), jax.random.fold_in(key, r))

    return loops.fori_loop(first, last, body, state)


def _batch(batches, r):
    return batches(r) if callable(batches) else batches


def run(
    algorithm: AbstractNetworkAlgorithm,
    network: Network,
    params: PyTree[Array],
    batches: Batches,
    num_rounds: int,
    *,
    key: PRNGKeyArray | None = None,
    metric: Callable[[PyTree[Array]], PyTree[Array]] | None = None,
    record_every: int = 10,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> Run:
    """Run rounds of a network algorithm.

    **Arguments:**

    - `algorithm`: what the nodes do.
    - `network`: where they live.
    - `params`: starting parameters stacked over the nodes; `network.replicate` makes them from one.
    - `batches`: each node's data, stacked, the same in each round; or a function of the round.
    - `num_rounds`: rounds in all, those of a resumed run included.
    - `key`: random key, `jax.random.key(0)` if not given; round r uses `fold_in(key, r)`.
    - `metric`: a function of the stacked parameters, recorded every `record_every` rounds.
    - `record_every`: rounds compiled into one piece, between records and checkpoints.
    - `checkpoint`: a file that holds the state after each piece. If it exists the run goes on from
      there, and ends bit for bit where it would have ended without the interruption.
    - `progress`: show a bar if it takes longer than a second.

    **Raises:** `ValueError` if some leaf is not stacked over all nodes.
    """
    checks.count("num_rounds", num_rounds, minimum=0)
    checks.count("record_every", record_every)
    key = jax.random.key(0) if key is None else key
    _check_stacked("params", params, network.size)
    if not callable(batches):
        _check_stacked("batches", batches, network.size)
        batches = network.place(batches)
    state = _init(algorithm, network, network.place(params), batches, key)

    measure = eqx.filter_jit(lambda p: None if metric is None else metric(p))
    done, history = 0, []
    if checkpoint is not None and pathlib.Path(checkpoint).exists():
        state, done, history = _resume(checkpoint, state, measure(state.params))
    with progress_bar(num_rounds, type(algorithm).__name__, enabled=progress) as advance:
        advance(done)
        while done < num_rounds:
            upto = min(done + record_every, num_rounds)
            bounds = jnp.asarray(done, jnp.int32), jnp.asarray(upto, jnp.int32)
            state = _advance(algorithm, network, state, batches, *bounds, key)
            history.append(measure(state.params))
            advance(upto - done)
            done = upto
            if checkpoint is not None:
                files.save(checkpoint, (len(history), done, state, history))
    stacked = None
    if metric is not None and history:
        stacked = jax.tree.map(lambda *values: jnp.stack(values), *history)
    return Run(state.params, state, done, stacked)


def _resume(path, state, measured):
    # The number of records comes first in the file, since it decides the shape of the rest.
    length = files.load(path, 0)
    _, done, state, history = files.load(path, (0, 0, state, [measured] * length))
    return state, done, history


def _check_stacked(name: str, x: PyTree[Array], size: int) -> None:
    for leaf in jax.tree.leaves(x):
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(
                f"{name} must be stacked over {size} nodes, got a leaf of shape {jnp.shape(leaf)}"
            )


def consensus_distance(params: PyTree[Array]) -> Array:
    """Root mean square distance of the nodes' parameters from their mean."""
    leaves = jax.tree.leaves(params)
    squares = [jnp.sum(jnp.abs(a - jnp.mean(a, axis=0)) ** 2) / a.shape[0] for a in leaves]
    return jnp.sqrt(sum(squares))
