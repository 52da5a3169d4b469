"""Gossip learning on the clocks of links, without rounds."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ..core import checks, tree
from .algorithm import AbstractNetworkAlgorithm, Loss, model_bits
from .events import Events, Kind, run_events
from .local import AbstractLocalSolver, Padded
from .variance_corrected import AbstractModelAverage, PlainAverage


class _State(eqx.Module):
    params: PyTree[Array]
    count: Int[Array, " local"]


class AsynchronousGossipLearning(AbstractNetworkAlgorithm):
    """Gossip learning in which nobody waits: whenever the clock of a link ticks, one of its ends,
    drawn anew, sends its model to the other, which merges it with its own and trains the result on
    its own data,

    $$x_j \\leftarrow \\mathrm{Local}_K\\bigl(\\mathrm{average}\\{x_i, x_j\\}\\bigr) .$$

    At a tick of its own clock a node trains without a message. A round is one block of events; in
    rounds after the last block nothing happens.

    **Arguments:**

    - `loss`: `(params, minibatch) -> scalar` of one node.
    - `local`: `LocalSGD` or `LocalSAM`. Batches are as in `DecentralizedFederated`.
    - `events`: `EDGE` and `NODE` events in blocks: `poisson_events(key, graph, horizon,
      node_rates=0.0).blocks(length)`.
    - `average`: `PlainAverage()` or `VarianceCorrected()`, for models drawn apart.

    **Raises:** `TypeError` if `local`, `events` or `average` is something else; `ValueError` if the
    events are not in blocks.

    **Reference:** Ormándi, Hegedűs, Jelasity, Gossip Learning with Linear Models on Fully
    Distributed Data, 2013, arXiv:1109.1396.
    """

    loss: Loss
    local: AbstractLocalSolver
    events: Events
    average: AbstractModelAverage = PlainAverage()

    def __check_init__(self):
        checks.instance("local", self.local, AbstractLocalSolver, "LocalSGD(0.1, 5)")
        checks.instance("average", self.average, AbstractModelAverage, "PlainAverage()")
        checks.instance("events", self.events, Events, "poisson_events(key, graph, 10.0)")
        self.events.check_blocks()

    def init(self, params, batch, network, key):
        return _State(params, jnp.zeros_like(network.index(), jnp.int32))

    def round(self, state, batch, network, key):
        events = self.events.block(state.count[0])
        params, _, _ = run_events(self._rule, network, state.params, events, data=batch, key=key)
        return _State(params, state.count + 1)

    def _rule(self, event, rows, data, common, key):
        direction, key = jax.random.split(key)
        meet = event.kind == Kind.EDGE
        upwards = meet & jax.random.bernoulli(direction)
        own = tree.where(upwards, rows[1], rows[0])
        samples = tree.where(upwards, data[1], data[0])
        both = [(model, self.average.summary(model)) for model in rows]
        mean = tree.scale(jax.tree.map(jnp.add, *both), 0.5)
        start = tree.where(meet, self.average.combine(*mean), own)
        known = (samples.data, samples.count) if isinstance(samples, Padded) else (samples, None)
        new = self.local.run(self.loss, start, *known, key)
        return (tree.where(upwards, rows[0], new), tree.where(upwards, new, rows[1])), common

    def bits_per_round(self, params, network):
        """As if the busiest node in the busiest block sent at each of its meetings."""
        summary = jax.eval_shape(jax.vmap(self.average.summary), params)
        return self.events.most_meetings() * (model_bits(params) + model_bits(summary))
