"""The driver of network algorithms."""

import contextlib
import functools
import os
import types
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..core import checks, loops
from ..core.closure import hoist
from ..core.progress import progress_bar
from ..core.rows import average
from .algorithm import AbstractNetworkAlgorithm
from .network import Network
from .saving import Checkpoints


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

    def __str__(self) -> str:
        """What happened, in two lines or three."""
        lines = [f"{self.rounds} rounds"]
        if all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(self.params)):
            lines.append(
                f"distance of the nodes from their mean {consensus_distance(self.params):.3g}"
            )
        if self.history is not None:
            last = jax.tree.map(lambda values: values[-1], self.history)
            lines.append(f"last record {last}")
        return "\n".join(lines)


Batches = PyTree[Array] | Callable[[Array], PyTree[Array]]


def _start(algorithm, network, params, batches, key):
    def start(params, batch, key):
        return algorithm.init(params, batch, network, key)

    return network.parallel(start)(params, _batch(batches, jnp.asarray(0, jnp.int32)), key)


_init = eqx.filter_jit(_start)


@eqx.filter_jit
def _advance(algorithm, network, state, batches, first, last, key):
    def one(state, batch, key):
        return algorithm.round(state, batch, network, key)

    def body(r, state):
        return network.parallel(one)(state, _batch(batches, r), jax.random.fold_in(key, r))

    return loops.fori_loop(first, last, body, state)


def _inside(algorithm, network, params, batches, num_rounds, key, measure, record_every):
    """A run as a part of another program: no bar, no file, and two scans, which have derivatives.

    A derivative computes the rounds between two records again rather than keep them.
    """

    def one(state, r):
        talk = lambda state, batch, key: algorithm.round(state, batch, network, key)
        return network.parallel(talk)(state, _batch(batches, r), jax.random.fold_in(key, r)), None

    def several(state, rounds):
        state, _ = jax.checkpoint(lambda state: loops.scan(one, state, rounds))(state)
        return state, measure(state)

    state = _start(algorithm, network, params, batches, key)
    rounds = jnp.arange(num_rounds, dtype=jnp.int32)
    whole = num_rounds - num_rounds % record_every
    history = []
    if whole:
        state, found = loops.scan(several, state, rounds[:whole].reshape(-1, record_every))
        history.append(found)
    if whole < num_rounds:
        state, found = several(state, rounds[whole:])
        history.append(jax.tree.map(lambda a: jnp.asarray(a)[None], found))
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *history) if history else None


def _observe(metric, state_metric, state):
    if state_metric is not None:
        return state_metric(state)
    return None if metric is None else metric(state.params)


_measure = eqx.filter_jit(_observe)

_PLAIN = int | float | complex | str | bytes | type | types.ModuleType | types.BuiltinFunctionType


def _measurement(metric, state_metric):
    """What is recorded of a state, compiled once for metrics made by the same line of code."""
    first, second = metrics = hoist((metric, state_metric))
    # Nobody can tell whether another object still holds what it held: for each run anew. So too
    # where a metric wants closed-over arrays of numpy as they are, and not traced.
    anew = eqx.filter_jit(lambda state: _observe(metric, state_metric, state))
    leaves = jax.tree.leaves(metrics)
    if not all(eqx.is_array(leaf) or isinstance(leaf, _PLAIN | np.dtype) for leaf in leaves):
        return anew

    def measure(state):
        try:
            return _measure(first, second, state)
        except TypeError:
            return anew(state)

    return measure


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
    state_metric: Callable[[Any], PyTree[Array]] | None = None,
    record_every: int = 10,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> Run:
    """Run rounds of a network algorithm.

    Inside of `jit`, `vmap`, `grad` and, with a simulated network, `shard_map` a run is a part of
    the program: without a bar or a checkpoint, and with derivatives by what its rounds depend on.

    **Arguments:**

    - `algorithm`: what the nodes do.
    - `network`: where they live.
    - `params`: starting parameters stacked over the nodes; `network.replicate` makes them from one.
    - `batches`: each node's data, stacked, the same in each round; or a function of the round,
      traced once. Arrays that it closes over are data of the run, not constants of the program,
      and lie where the nodes live if one of their first two axes counts the nodes.
    - `num_rounds`: rounds in all, those of a resumed run included.
    - `key`: random key, `jax.random.key(0)` if not given; round r uses `fold_in(key, r)`.
    - `metric`: a function of the stacked parameters, recorded every `record_every` rounds. Another
      one made by the same line of code is not traced again; what it closes over is seen anew at
      each call.
    - `state_metric`: a function of the whole state instead.
    - `record_every`: rounds compiled into one piece, between records and checkpoints.
    - `checkpoint`: a file that holds the state after each piece. If it exists the run goes on from
      there, on as many devices as it then has, and ends bit for bit where it would have ended
      without the interruption, if both kinds of network give the algorithm the same numbers. The
      devices wait for the copy to the host only. Of several processes each saves what it holds
      beside `checkpoint`, under its own name, and a run of as many processes, on a mesh alike,
      goes on from the last round that all of them have.
    - `progress`: show a bar if it takes longer than a second.

    **Raises:** `ValueError` if some leaf is not stacked over all nodes, both metrics are given, or
    a transformation is to write a checkpoint.
    """
    checks.count("num_rounds", num_rounds, minimum=0)
    checks.count("record_every", record_every)
    key = jax.random.key(0) if key is None else key
    _check_stacked("params", params, network.size)
    if metric is not None and state_metric is not None:
        raise ValueError("give a metric of the parameters or one of the state, not both")
    if not callable(batches):
        _check_stacked("batches", batches, network.size)
        batches = network.place(batches)
    params = network.place(params)
    # In `jit` all that is computed is traced; `grad` and `vmap` alone trace what they are given.
    functions = hoist((algorithm, batches, metric, state_metric))
    if checks.is_traced((jnp.zeros(()), functions, network, params, key)):
        if checkpoint is not None:
            raise ValueError("a run inside of a JAX transformation cannot write a checkpoint")
        measure = functools.partial(_observe, metric, state_metric)
        state, stacked = _inside(
            algorithm, network, params, batches, num_rounds, key, measure, record_every
        )
        return Run(state.params, state, num_rounds, stacked)
    if callable(batches):
        batches = _lifted(batches, network)
    measure = _measurement(metric, state_metric)
    state = _init(algorithm, network, params, batches, key)
    done, history = 0, []
    with contextlib.ExitStack() as stack:
        saved = None if checkpoint is None else stack.enter_context(Checkpoints(checkpoint))
        if saved is not None and (found := saved.resume(state, measure(state))) is not None:
            state, done, history = found
        advance = stack.enter_context(
            progress_bar(num_rounds, type(algorithm).__name__, enabled=progress)
        )
        advance(done)
        while done < num_rounds:
            upto = min(done + record_every, num_rounds)
            bounds = jnp.asarray(done, jnp.int32), jnp.asarray(upto, jnp.int32)
            state = _advance(algorithm, network, state, batches, *bounds, key)
            history.append(measure(state))
            advance(upto - done)
            done = upto
            if saved is not None:
                saved.save(done, state, history)
    stacked = None
    if (metric is not None or state_metric is not None) and history:
        stacked = jax.tree.map(lambda *values: jnp.stack(values), *history)
    return Run(state.params, state, done, stacked)


class _Lifted(eqx.Module):
    """A function of the round whose data are leaves."""

    data: list[Array]
    jaxpr: Any = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)

    def __call__(self, r):
        leaves = eval_jaxpr(self.jaxpr, self.data, jnp.asarray(r, jnp.int32))
        return jax.tree.unflatten(self.treedef, leaves)


# A function that is run again is the same program again.
_TRACED = weakref.WeakKeyDictionary()


def _lifted(batches, network):
    if jax.tree_util.all_leaves([batches]):  # a plain function, not a module with leaves
        known = _TRACED.setdefault(batches, {})
        wide = jax.config.read("jax_enable_x64")
        if wide not in known:
            traced, shapes = jax.make_jaxpr(batches, return_shape=True)(jnp.asarray(0, jnp.int32))
            known[wide] = traced, jax.tree.structure(shapes)
        traced, treedef = known[wide]
        batches = _Lifted(list(map(jnp.asarray, traced.consts)), traced.jaxpr, treedef)
    arrays, rest = eqx.partition(batches, eqx.is_array)
    return eqx.combine(network.place_data(arrays), rest)


def _check_stacked(name: str, x: PyTree[Array], size: int) -> None:
    for leaf in jax.tree.leaves(x):
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(
                f"{name} must be stacked over {size} nodes, got a leaf of shape {jnp.shape(leaf)}; "
                f"network.replicate({name}) gives all nodes the same"
            )


def consensus_distance(params: PyTree[Array]) -> Array:
    """Root mean square distance of the nodes' parameters from their mean."""
    leaves = jax.tree.leaves(params)
    squares = [jnp.sum(jnp.abs(a - average(a)) ** 2) / a.shape[0] for a in leaves]
    return jnp.sqrt(sum(squares))
