"""Training of networks: parts that change what is trained, or with what numbers.

- Low precision: `pams_quantize` and `quantize_weights`, with derivatives; `QuantConv2d`, which
  trains in simulated integers and infers in true ones; `AlphaEMA` for the first range;
  `attention_transfer` from a teacher.
- Networks: `EDSR`, for super-resolution, in full precision or `quantized`.
- Layer by layer: `BlockCoordinateTraining`, split into `Three` or `Two` kinds of blocks, gives a
  `FeedforwardNetwork`.
- To the global optimum: `ConvexReLU` fits a `TwoLayerReLU` by ADMM over activation patterns, from
  `sample_patterns` or `all_patterns`, of which `scenario_size` are enough, robustly with a radius,
  or by `SampledNeurons`; its updates `PatternUpdate` and `BlockUpdate`.
- Losses of outputs, with their prox: `SquaredError`, `Hinge`, `Logistic`. Activations: `ReLU`,
  `LeakyReLU`, `Sigmoid`, `Tanh`, `Identity`.
"""

from .activations import AbstractActivation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from .block_coordinate import (
    AbstractNetworkSplitting,
    BlockCoordinateTraining,
    BlockFit,
    BlockState,
    FeedforwardNetwork,
    Three,
    Two,
)
from .convex_relu import (
    BlockUpdate,
    ConvexReLU,
    Patterns,
    PatternUpdate,
    SampledNeurons,
    TwoLayerReLU,
    all_patterns,
    sample_patterns,
    scenario_size,
)
from .losses import AbstractOutputLoss, Hinge, Logistic, SquaredError
from .pams import (
    EDSR,
    AlphaEMA,
    QuantConv2d,
    attention_transfer,
    pams_quantize,
    quantize_weights,
)

__all__ = [
    "EDSR",
    "AbstractActivation",
    "AbstractNetworkSplitting",
    "AbstractOutputLoss",
    "AlphaEMA",
    "BlockCoordinateTraining",
    "BlockFit",
    "BlockState",
    "BlockUpdate",
    "ConvexReLU",
    "FeedforwardNetwork",
    "Hinge",
    "Identity",
    "LeakyReLU",
    "Logistic",
    "PatternUpdate",
    "Patterns",
    "QuantConv2d",
    "ReLU",
    "SampledNeurons",
    "Sigmoid",
    "SquaredError",
    "Tanh",
    "Three",
    "Two",
    "TwoLayerReLU",
    "all_patterns",
    "attention_transfer",
    "pams_quantize",
    "quantize_weights",
    "sample_patterns",
    "scenario_size",
]
