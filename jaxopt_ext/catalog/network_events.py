"""Rows of the network algorithms whose links, clocks or walkers are events in time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_ext as jxt
from jaxopt_ext.distributed.algorithm import model_bits

from .shapes import NetworkRow


def _once(params, network):
    """A loop's body counts once: one of the rounds of talk inside of an iteration."""
    return {"collective-permute": network.max_degree * model_bits(params) // 8}


@functools.cache
def _clocks():
    """Of the suite's ring, for as many rounds as it runs."""
    graph = jxt.distributed.ring(8)
    events, chi_1 = jxt.distributed.dadao_events(jax.random.key(0), graph, 1100.0)
    return events.blocks(15), chi_1


def _dadao(loss):
    events, chi_1 = _clocks()
    return jxt.distributed.DADAO(loss, events, 5.0, 0.15, chi_1)


def _rows_of_an_event(params, network):
    """In the loop's body: the six vectors of two nodes, and the data of one."""
    return {"all-reduce": 2 * 6 * model_bits(params) // 8 + 4 * 30}


def _walk(chain):
    return jxt.distributed.SelfRepellentWalk(chain, 2.0)


def _gradient_and_visits(params, network):
    """The token's gradient, and a number of each node: so small a gather is a sum on TPUs."""
    return {"all-reduce": model_bits(params) // 8 + 4 * network.size}


@functools.cache
def _parts():
    """A matrix whose blocks meet around the suite's ring."""
    shift = np.roll(np.eye(32), 1, axis=0)
    matrix = np.diag(2 + np.linspace(0, 1, 32) ** 2) - shift - shift.T
    return jxt.distributed.partition(matrix, 8)


class _Partitioned(jxt.distributed.AbstractNetworkAlgorithm):
    """With blocks of a matrix in the place of the suite's batch."""

    algorithm: jxt.distributed.OwnerEigensolver
    blocks: jxt.distributed.Blocks

    def _batch(self, network):
        return jax.tree.map(network.local, (self.blocks, jnp.eye(8, 4) + 0.25))

    def init(self, params, batch, network, key):
        return self.algorithm.init(params, self._batch(network), network, key)

    def round(self, state, batch, network, key):
        return self.algorithm.round(state, self._batch(network), network, key)

    def bits_per_round(self, params, network):
        return self.algorithm.bits_per_round(params, network)


def _owner(loss):
    parts = _parts()
    network = jxt.distributed.Network.simulated(parts.graph)
    solver = jxt.distributed.OwnerEigensolver(
        parts.block_size,
        parts.step_size,
        lambda w, start: start.astype(w["b"].dtype) + jnp.concatenate([w["a"], w["b"]]),
    )
    return _Partitioned(solver, parts.blocks(network))


def _replicated(loss):
    return jxt.distributed.ReplicatedEigensolver(
        lambda u: jnp.arange(1, 5) * u - jnp.roll(u, 1) - jnp.roll(u, -1),
        lambda w: 1 + jnp.concatenate([w["a"], w["b"]]),
        optax.adam(0.02),
        links=jxt.distributed.DelayedLinks(2, 0.2),
    )


_EIGENVALUE = (
    "Katende, Decentralized Neural Networks for Robust and Scalable Eigenvalue Computation, 2024"
)
_NO_LOSS = "it finds an eigenvalue, not the minimum of a loss"

_TOKEN = (
    "Hu, Doshi, Eun, Accelerating Distributed Stochastic Optimization via Self-Repellent Random "
    "Walks, 2024, arXiv:2401.09665"
)
_DECREASING = "its steps decrease, and so the error only like 1 / rounds"

NETWORK_EVENTS: tuple[NetworkRow, ...] = (
    NetworkRow(
        "Accelerated gossip on slowly varying networks",
        "distributed.AcceleratedDGD",
        "Metelev, Rogozin, Kovalev, Gasnikov, Is Consensus Acceleration Possible in Decentralized "
        "Optimization over Slowly Time-Varying Networks?, 2023, arXiv:2301.11817",
        # The spectrum of I - W on the suite's ring, with room at its ends.
        lambda loss: jxt.distributed.AcceleratedDGD(
            loss, 0.2, 0.05, jxt.distributed.ChebyshevGossip((0.19, 1.34)), 24
        ),
        claim="distributed/slowly_varying",
        system=("S013",),
        collectives=_once,
    ),
    NetworkRow(
        "DADAO",
        "distributed.DADAO",
        "Nabli, Oyallon, DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization, "
        "2023, arXiv:2208.00779",
        _dadao,
        claim="distributed/dadao",
        system=("S011",),
        collectives=_rows_of_an_event,
    ),
    NetworkRow(
        "Self-repellent random walk SGD",
        "distributed.TokenSGD",
        _TOKEN,
        lambda loss: jxt.distributed.TokenSGD(loss, _walk, 0.9, 0.2),
        claim="distributed/random_walk",
        system=("S151",),
        opt_outs={"exact": _DECREASING},
        collectives=_gradient_and_visits,
    ),
    NetworkRow(
        "Self-repellent random walk heavy ball",
        "distributed.TokenHeavyBall",
        _TOKEN,
        lambda loss: jxt.distributed.TokenHeavyBall(loss, _walk, 0.9, 0.2),
        claim="distributed/random_walk",
        system=("S151",),
        opt_outs={"exact": _DECREASING},
        collectives=_gradient_and_visits,
    ),
    NetworkRow(
        "Decentralized eigenvalues, blocks with owners",
        "distributed.OwnerEigensolver",
        _EIGENVALUE,
        _owner,
        claim="distributed/eigenvalue",
        system=("S045",),
        opt_outs={"exact": _NO_LOSS},
    ),
    NetworkRow(
        "Decentralized eigenvalues, replicated networks",
        "distributed.ReplicatedEigensolver",
        _EIGENVALUE,
        _replicated,
        claim="distributed/eigenvalue",
        system=("S045",),
        opt_outs={"exact": _NO_LOSS},
    ),
)
