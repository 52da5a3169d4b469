"""Rows of the network algorithms whose links, clocks or walkers are events in time."""

import functools

import jax

import jaxopt_ext as jxt
from jaxopt_ext.distributed.algorithm import model_bits

from .rows import NetworkRow


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
)
