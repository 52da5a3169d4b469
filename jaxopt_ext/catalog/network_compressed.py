"""Rows of the network algorithms with small messages."""

import optax

import jaxopt_ext as jxt
from jaxopt_ext.distributed import compression

from .shapes import NetworkRow


def _means(params, network):
    """Every number that is averaged is in an all-reduce; the task has vectors only."""
    return {"all-reduce": jxt.distributed.algorithm.model_bits(params) // 8}


def gathered(params, network):
    """The messages of all nodes: of each leaf of the task one value, and a place among three.

    A TPU gathers what is this small by a sum in which all others add zeros, two bytes at least.
    """
    return {"all-reduce": network.size * (4 + 4 + 2)}


def _to_neighbors(params, network):
    """Of each leaf of the parameters and of the tracker one value, and of the larger leaf its place
    in a byte."""
    return {"collective-permute": 2 * network.max_degree * (4 + 4 + 1)}


_GAO = (
    "Gao, Islamov, Stich, EControl: Fast Distributed Optimization with Compression and Error "
    "Control, 2024, arXiv:2311.05645"
)
_ZHAO = (
    "Zhao, Liu, Efficient Gradient Tracking Algorithms for Distributed Optimization Problems with "
    "Inexact Communication, 2025, arXiv:2501.05737"
)
_TOP = compression.TopK(1)

NETWORK_COMPRESSED: tuple[NetworkRow, ...] = (
    NetworkRow(
        "PowerSGD",
        "distributed.PowerSGD",
        "Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for "
        "Distributed Optimization, 2019, arXiv:1905.13727",
        lambda loss: jxt.distributed.PowerSGD(loss, optax.sgd(0.3), 2),
        claim="distributed/powersgd",
        system=("S114",),
        collectives=_means,
    ),
    NetworkRow(
        "EControl",
        "distributed.EControl",
        _GAO,
        lambda loss: jxt.distributed.EControl(loss, 0.1, _TOP),
        claim="distributed/econtrol",
        system=("S091",),
        collectives=gathered,
    ),
    NetworkRow(
        "Compressed gradient tracking (C-GT)",
        "distributed.CompressedGossip",
        "Liao, Li, Huang, Pu, A Compressed Gradient Tracking Method for Decentralized Optimization "
        "with Linear Convergence, 2022, arXiv:2103.13748",
        lambda loss: jxt.distributed.CompressedGossip(
            jxt.distributed.GradientTracking(loss, 0.05), compression.ChocoGossip(_TOP, 0.5)
        ),
        claim="distributed/gradient_tracking",
        collectives=_to_neighbors,
        relative=True,
    ),
    NetworkRow(
        "VRA-DGT",
        "distributed.VRADGT",
        _ZHAO,
        lambda loss: jxt.distributed.VRADGT(loss, jxt.distributed.Harmonic(8.0)),
        claim="distributed/vra_tracking",
        system=("S058",),
    ),
    NetworkRow(
        "VRA-DSGT",
        "distributed.VRADSGT",
        _ZHAO,
        lambda loss: jxt.distributed.VRADSGT(loss, jxt.distributed.Harmonic(8.0)),
        claim="distributed/vra_tracking",
        system=("S058",),
    ),
)
