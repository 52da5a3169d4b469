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
- Steps on batches, with any `optax` transformation: `fit` drives them, over `Shuffled` batches say,
  and gives a `Fit`; `GradientStep` is the plain one, whose loss sees a `Context`.
- Consistency under augmentation: `AdaWAC` weighs it against supervision sample by sample, on a
  `PairBatch` from `pair_augment`, with `MeanSquare` consistency and a `DiceLoss` beside it; its
  relatives `FixedWeights`, `Reweight`, `DroReweight` and `Trim`; `entropic_update` and
  `saddle_value`.
- Losses of outputs, with their prox: `SquaredError`, `Hinge`, `Logistic`. Activations: `ReLU`,
  `LeakyReLU`, `Sigmoid`, `Tanh`, `Identity`.
"""

from .activations import AbstractActivation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from .adawac import (
    AbstractPairTraining,
    AdaWAC,
    DiceLoss,
    DroReweight,
    FixedWeights,
    MeanSquare,
    PairBatch,
    PairState,
    Reweight,
    Trim,
    entropic_update,
    pair_augment,
    saddle_value,
)
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
from .fit import Fit, Shuffled, fit
from .losses import AbstractOutputLoss, Hinge, Logistic, SquaredError
from .pams import (
    EDSR,
    AlphaEMA,
    QuantConv2d,
    attention_transfer,
    pams_quantize,
    quantize_weights,
)
from .step import AbstractTrainingStep, Context, GradientState, GradientStep

__all__ = [
    "EDSR",
    "AbstractActivation",
    "AbstractNetworkSplitting",
    "AbstractOutputLoss",
    "AbstractPairTraining",
    "AbstractTrainingStep",
    "AdaWAC",
    "AlphaEMA",
    "BlockCoordinateTraining",
    "BlockFit",
    "BlockState",
    "BlockUpdate",
    "Context",
    "ConvexReLU",
    "DiceLoss",
    "DroReweight",
    "FeedforwardNetwork",
    "Fit",
    "FixedWeights",
    "GradientState",
    "GradientStep",
    "Hinge",
    "Identity",
    "LeakyReLU",
    "Logistic",
    "MeanSquare",
    "PairBatch",
    "PairState",
    "PatternUpdate",
    "Patterns",
    "QuantConv2d",
    "ReLU",
    "Reweight",
    "SampledNeurons",
    "Shuffled",
    "Sigmoid",
    "SquaredError",
    "Tanh",
    "Three",
    "Trim",
    "Two",
    "TwoLayerReLU",
    "all_patterns",
    "attention_transfer",
    "entropic_update",
    "fit",
    "pair_augment",
    "pams_quantize",
    "quantize_weights",
    "saddle_value",
    "sample_patterns",
    "scenario_size",
]
