"""Rows of functions that run on networks: layers and protocols."""

import functools

import jaxopt_ext as jxt

from .cases.mixture import MixtureCase
from .cases.secure import ConsensusCase, ProofCase
from .shapes import FunctionRow

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
        "Mixture of the best experts (top-k)",
        "distributed.TopKMoE",
        "Lepikhin et al., GShard: Scaling Giant Models with Conditional Computation and Automatic "
        "Sharding, 2020, arXiv:2006.16668",
        lambda: MixtureCase(jxt.distributed.TopKMoE),
        claim="distributed/scmoe",
        system=("S132",),
        relative=True,
    ),
    FunctionRow(
        "Mixture of experts with a shared one",
        "distributed.SharedExpertMoE",
        "Rajbhandari et al., DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training "
        "to Power Next-Generation AI Scale, 2022, arXiv:2201.05596",
        lambda: MixtureCase(jxt.distributed.SharedExpertMoE),
        claim="distributed/scmoe",
        system=("S132",),
        relative=True,
    ),
    FunctionRow(
        "Mixture of experts with two gates (DGMoE)",
        "distributed.DGMoEPair",
        _SCMOE,
        lambda: MixtureCase(jxt.distributed.DGMoEPair),
        claim="distributed/scmoe",
        system=("S132",),
        relative=True,
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
