"""Rows of network algorithms with bad nodes."""

from jaxopt_ext import distributed
from jaxopt_ext.distributed import attacks, robust
from jaxopt_ext.distributed.algorithm import model_bits

from .shapes import NetworkRow

_CLIPPING = (
    "Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, 2021, "
    "arXiv:2012.10333"
)
_MONNA = (
    "Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative Learning with "
    "Linear Gradient Overhead, 2023, arXiv:2210.00253"
)

NETWORK_ROBUST: tuple[NetworkRow, ...] = (
    NetworkRow(
        "Centered clipping with worker momentum",
        "distributed.RobustSGD",
        _CLIPPING,
        lambda loss: distributed.RobustSGD(loss, 0.2, robust.CenteredClip(1e3, 2)),
        claim="distributed/centered_clipping",
        system=("S062",),
        collectives=lambda params, network: {"all-reduce": model_bits(params) // 8},
    ),
    NetworkRow(
        "MoNNA",
        "distributed.MoNNA",
        _MONNA,
        lambda loss: distributed.MoNNA(
            loss, 0.2, 1, 0.9, attack=attacks.Gaussian(1, 10.0), faulty=(3,)
        ),
        claim="distributed/monna",
        system=("S052",),
        # The compiler makes sums of such small gathers.
        collectives=lambda params, network: {"all-reduce": network.size * model_bits(params) // 8},
        graph=distributed.complete,
        opt_outs={"exact": "it drops what is far, and the nodes' data differ; one node is bad"},
    ),
)
