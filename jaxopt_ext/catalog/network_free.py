"""Rows of the network algorithms that see function values only."""

from jaxopt_ext import distributed
from jaxopt_ext.minimize import SphereSmoothing

from .network_events import _once  # what the same gossip sends
from .shapes import NetworkRow

NETWORK_FREE: tuple[NetworkRow, ...] = (
    NetworkRow(
        "Decentralized zeroth-order smoothing",
        "distributed.DecentralizedZerothOrder",
        "Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč, Dvurechensky, "
        "Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth Problems, 2022, "
        "arXiv:2201.12289",
        # The spectrum of I - W on the suite's ring, with room at its ends.
        lambda loss: distributed.DecentralizedZerothOrder(
            loss, SphereSmoothing(0.5, 8), 5.0, distributed.ChebyshevGossip((0.19, 1.34)), 6
        ),
        claim="minimize/zeroth_order",
        system=("S167",),
        collectives=_once,
        relative=True,
        opt_outs={"exact": "the noise of the estimates stays where nodes' gradients are not zero"},
    ),
)
