"""Worker momentum and robust aggregation, such as centered clipping."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, scalar_field
from .algorithm import AbstractGradientAlgorithm, Loss, at_each_node, model_bits
from .attacks.attack import AbstractAttack, honest_nodes, nodes
from .robust import AbstractAggregator


class _State(eqx.Module):
    params: PyTree[Array]
    momentum: PyTree[Array]
    center: PyTree[Array]
    """The last result of the aggregator, at each node."""
    attack: Any
    """What the attack remembers, at each node."""
    rounds: Int[Array, " local"]


class RobustSGD(AbstractGradientAlgorithm):
    """SGD of $n$ workers, some of them bad: each sends an average of its own gradients over time,
    and a robust rule makes one step of them,

    $$m_i \\leftarrow (1 - \\beta) g_i + \\beta m_i, \\qquad
      v \\leftarrow \\mathrm{rule}(m_1, \\dots, m_n), \\qquad x \\leftarrow x - \\eta v,$$

    with $m_i = g_i$ in the first round. Rules without a memory lose a constant to bad workers who
    push in one direction round after round, within the noise of the good ones; momentum makes that
    noise smaller, by $\\sqrt{(1 + \\beta)/(1 - \\beta)}$. The last $v$, zero at first, is the
    `state` of the rule: where `CenteredClip` starts from.

    All nodes hold the same $x$: start from `network.replicate`. Everybody talks to everybody, or to
    a server, whatever the graph; `Network.clients` needs none. `Mean` and `CenteredClip` send means
    only, the other rules gather all messages.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node; real parameters.
    - `step_size`: $\\eta > 0$. Momentum that sums gradients instead of averaging them takes
      $1 - \\beta$ times this.
    - `aggregator`: a rule of `robust` that needs no pivot.
    - `momentum`: $\\beta \\in [0, 1)$.
    - `attack`: what bad workers send, from `attacks`; it sees the good messages and its own. Those
      that flip labels need none: flip them in their batches.
    - `faulty`: the numbers of the bad workers, as many as the attack has; static.
    - `arrived`: `(key, n) -> mask` of the messages that arrive in a round, shape `(n,)`, the same
      at all nodes; all if `None`. One that is missing counts as zero in the mean of `CenteredClip`.

    **Raises:** `ValueError` if of `attack` and `faulty` one is missing or they do not fit, and from
    the aggregator if $n$ is too small for it.

    **Reference:** Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization,
    2021, arXiv:2012.10333.
    """

    loss: Loss
    step_size: Scalar = eqx.field(converter=checks.scalar)
    aggregator: AbstractAggregator
    momentum: Scalar = scalar_field(0.9)
    attack: AbstractAttack | None = None
    faulty: tuple[int, ...] = eqx.field(static=True, default=(), converter=nodes)
    arrived: Callable[[PRNGKeyArray, int], Bool[Array, " n"]] | None = None

    def __check_init__(self):
        checks.interval("momentum", self.momentum, 0, 1, open_high=True)
        checks.instance("aggregator", self.aggregator, AbstractAggregator, "CenteredClip(1.0)")
        if self.attack is not None:
            checks.instance("attack", self.attack, AbstractAttack, "ALIE(2)")
        if (self.attack is None) != (not self.faulty):
            raise ValueError(
                f"attack and faulty go together, got {self.attack!r} and {self.faulty!r}"
            )

    def init(self, params, batch, network, key):
        honest_nodes(self.faulty, network.size)
        zeros = jax.tree.map(jnp.zeros_like, params)
        memory = None
        if self.attack is not None:
            memory = at_each_node(self.attack.init(_first(params), key), params)
        rounds = jnp.zeros_like(network.index(), jnp.int32)
        return _State(params, zeros, zeros, memory, rounds)

    def round(self, state, batch, network, key):
        arrival, adversary, draws = jax.random.split(key, 3)
        gradient = self.gradients(state.params, batch)
        momentum = jax.tree.map(
            lambda m, g: _average(self.momentum.astype(g.dtype), m, g, state.rounds),
            state.momentum,
            gradient,
        )
        messages, memory = momentum, state.attack
        if self.attack is not None:
            everything = network.gather(momentum)
            own = jax.tree.map(lambda a: a[np.asarray(self.faulty)], everything)
            everything, memory = self.attack.corrupt(
                everything, self.faulty, adversary, _first(state.attack), own
            )
            memory = at_each_node(memory, momentum)
            messages = jax.tree.map(network.local, everything)
        mask = None if self.arrived is None else self.arrived(arrival, network.size)
        center = self.aggregator.aggregate_over(
            network, messages, _first(state.center), None, draws, mask
        )
        center = at_each_node(center, momentum)
        params = self.descend(state.params, center)
        return _State(params, momentum, center, memory, state.rounds + 1)

    def bits_per_round(self, params, network):
        return self.aggregator.exchanges * model_bits(params)


def clipping_radius(spread: Any, momentum: Any, factor: Any = 1.5) -> Array:
    """A threshold for `CenteredClip` on averaged gradients,
    $\\tau = c\\, \\sigma \\sqrt{(1 - \\beta)/(1 + \\beta)}$.

    **Arguments:**

    - `spread`: $\\sigma$, the root mean square distance of a good worker's gradient from the mean;
      it grows with the root of the number of parameters.
    - `momentum`: $\\beta$.
    - `factor`: $c$.
    """
    checks.nonnegative("spread", spread)
    checks.interval("momentum", momentum, 0, 1, open_high=True)
    checks.positive("factor", factor)
    momentum = jnp.asarray(momentum)
    return factor * spread * jnp.sqrt((1 - momentum) / (1 + momentum))


def _average(weight, old, new, rounds):
    first = (rounds == 0).reshape(-1, *[1] * (new.ndim - 1))
    return jnp.where(first, new, (1 - weight) * new + weight * old)


def _first(stacked):
    """What all nodes hold alike, once."""
    return jax.tree.map(lambda a: a[0], stacked)
