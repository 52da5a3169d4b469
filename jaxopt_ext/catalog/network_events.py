"""Rows of the network algorithms whose links, clocks or walkers are events in time."""

import jaxopt_ext as jxt
from jaxopt_ext.distributed.algorithm import model_bits

from .rows import NetworkRow


def _once(params, network):
    """A loop's body counts once: one of the rounds of talk inside of an iteration."""
    return {"collective-permute": network.max_degree * model_bits(params) // 8}


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
)
