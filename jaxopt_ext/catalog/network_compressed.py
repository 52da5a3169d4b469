"""Rows of the network algorithms with small messages."""

import optax

import jaxopt_ext as jxt

from .rows import NetworkRow


def _means(params, network):
    """Every number that is averaged is in an all-reduce; the task has vectors only."""
    return {"all-reduce": jxt.distributed.algorithm.model_bits(params) // 8}


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
)
