"""Rows of network algorithms with bad nodes."""

import numpy as np

from jaxopt_ext import distributed
from jaxopt_ext.distributed import attacks, robust
from jaxopt_ext.distributed.algorithm import model_bits

from .rows import NetworkRow

_FAULTY = np.arange(8) == 3
_EIGHT = "its bad node is one of eight"
_PULLED = "the bad node pulls, and the nodes' data differ"
_CLIPPING = (
    "Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, 2021, "
    "arXiv:2012.10333"
)

ROBUST: tuple[NetworkRow, ...] = (
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
        "Worker momentum and geometric median, attacked",
        "distributed.RobustSGD",
        _CLIPPING,
        lambda loss: distributed.RobustSGD(
            loss,
            0.2,
            robust.GeometricMedian(),
            attack=attacks.Gaussian(1, 10.0),
            faulty=_FAULTY,
        ),
        claim="distributed/centered_clipping",
        system=("S062",),
        opt_outs={"exact": _PULLED, "pod": _EIGHT},
    ),
)
