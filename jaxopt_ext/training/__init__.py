"""Training of networks: parts that change what is trained, or with what numbers.

- Low precision: `pams_quantize` and `quantize_weights`, with derivatives; `QuantConv2d`, which
  trains in simulated integers and infers in true ones; `AlphaEMA` for the first range;
  `attention_transfer` from a teacher.
- Networks: `EDSR`, for super-resolution, in full precision or `quantized`.
- Layer by layer: `BlockCoordinateTraining`, split into `Three` or `Two` kinds of blocks, gives a
  `FeedforwardNetwork`.
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
    "FeedforwardNetwork",
    "Hinge",
    "Identity",
    "LeakyReLU",
    "Logistic",
    "QuantConv2d",
    "ReLU",
    "Sigmoid",
    "SquaredError",
    "Tanh",
    "Three",
    "Two",
    "attention_transfer",
    "pams_quantize",
    "quantize_weights",
]
