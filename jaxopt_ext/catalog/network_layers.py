"""Rows of functions that run on networks: layers and protocols."""

import functools

import jaxopt_ext as jxt

from .cases.mixture import MixtureCase
from .cases.secure import ConsensusCase, ProofCase
from .rows import FunctionRow

_SCMOE = (
    "Cai, Jiang, Qin, Cui, Kim, Huang, Shortcut-connected Expert Parallelism for Accelerating "
    "Mixture-of-Experts, 2025, arXiv:2404.05019"
)

_SECURE = (
    "Zhang, Zhao, Angione, Yang, Buban, Farhan, Johnston, Colangelo, Towards Secure and Private "
    "AI: A Framework for Decentralized Inference, 2024, arXiv:2407.19401"
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
        "Zero-knowledge proof of a linear layer",
        "distributed.secure_inference.prove",
        _SECURE,
        lambda: ProofCase(),
        claim="distributed/secure_inference",
        system=("S124",),
        host="exact integers of 2048 bits are Python's",
        opt_outs={
            "single": "integers have one precision",
            "dtype": "integers have one precision",
            "gradient": "a function of integers has no derivative",
            "nan": "integers have no NaN",
        },
    ),
    FunctionRow(
        "Consensus of replicas",
        "distributed.secure_inference.Consensus",
        _SECURE,
        lambda: ConsensusCase(),
        claim="distributed/secure_inference",
        system=("S124",),
    ),
)
