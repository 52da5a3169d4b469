"""Rows of functions that run on networks: layers and protocols."""

import functools

import jaxopt_ext as jxt

from .cases.mixture import MixtureCase
from .rows import FunctionRow

_SCMOE = (
    "Cai, Jiang, Qin, Cui, Kim, Huang, Shortcut-connected Expert Parallelism for Accelerating "
    "Mixture-of-Experts, 2025, arXiv:2404.05019"
)

NETWORK_LAYERS: tuple[FunctionRow, ...] = (
    FunctionRow(
        "Shortcut-connected mixture of experts (ScMoE)",
        "distributed.ScMoEPair",
        _SCMOE,
        lambda: MixtureCase(functools.partial(jxt.distributed.ScMoEPair, shared_gate=True)),
        claim="distributed/scmoe",
        system=("S132",),
    ),
    FunctionRow(
        "Double-gated mixture of experts (DGMoE)",
        "distributed.DGMoEPair",
        _SCMOE,
        lambda: MixtureCase(jxt.distributed.DGMoEPair),
        claim="distributed/scmoe",
        system=("S132",),
    ),
)
