"""Inference on nodes that are not trusted: checks that the committed model was used, that replicas
agree, and that no node sees the input and the model together.

Integers live on the host, as Python's and as 64-bit ones of `numpy`; models of floats are JAX.

- `commit`, `prove`, `verify`: a proof of $y = W x$ that tells nothing of $W$; `simulate` shows why.
  `Group` is where they live; `with_bias` and `convolution_matrix` make matrices of other layers.
- `freivalds`: a check of $Y = W X$ for public weights, cheaper than the product.
- `Consensus` of replicas' outputs, `SampleConsensus` where outputs are drawn.
- `SplitModel`: a node holds one stage and sees activations only, `CutNoise` on them if wanted;
  `audit` names the first stage that was altered. `IntegerLayer` is a stage that is the same bit for
  bit everywhere.
- `SoftwareEnclave`, `Attestation`: the interface of attested code, without hardware behind it.
"""

from .attestation import Attestation, Quote, SoftwareEnclave, measure
from .consensus import (
    Agreement,
    Consensus,
    KolmogorovSmirnov,
    SampleConsensus,
    TotalVariation,
)
from .freivalds import freivalds
from .group import MODP_2048, Group
from .layers import IntegerLayer, convolution_matrix, quantize, with_bias
from .split import CutNoise, SplitModel, Transcript, audit, gaussian_scale
from .zero_knowledge import Commitment, Opening, Proof, commit, holds, prove, simulate, verify

__all__ = [
    "MODP_2048",
    "Agreement",
    "Attestation",
    "Commitment",
    "Consensus",
    "CutNoise",
    "Group",
    "IntegerLayer",
    "KolmogorovSmirnov",
    "Opening",
    "Proof",
    "Quote",
    "SampleConsensus",
    "SoftwareEnclave",
    "SplitModel",
    "TotalVariation",
    "Transcript",
    "audit",
    "commit",
    "convolution_matrix",
    "freivalds",
    "gaussian_scale",
    "holds",
    "measure",
    "prove",
    "quantize",
    "simulate",
    "verify",
    "with_bias",
]
