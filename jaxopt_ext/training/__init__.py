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
- Steps on batches, with any `optax` transformation: `fit` drives them, over `Shuffled`, `Drawn` or
  `Fresh` batches say, and gives a `Fit`; `GradientStep` is the plain one, whose loss sees a
  `Context`, with averages, frozen parts and projections; `Snapshots` are taken on the way.
- Consistency under augmentation: `AdaWAC` weighs it against supervision sample by sample, on a
  `PairBatch` from `pair_augment`, with `MeanSquare` consistency and a `DiceLoss` beside it; its
  relatives `FixedWeights`, `Reweight`, `DroReweight` and `Trim`; `entropic_update` and
  `saddle_value`.
- Bags of instances: `MIDAM` maximizes the area under the ROC curve from a few instances of each,
  pooled by `SmoothedMax`, `AttentionPooling`, `MeanPooling` or `MaxPooling`; a `BagBatch` comes
  from a `BagSampler`; `auc_margin_loss` is what it makes a saddle of.
- Robust to attacks on inputs: `ConcurrentAdversarial`, whose attacks do not wait for the gradient,
  and `SequentialAdversarial`; attacks `FGSM`, `RandomTargetFGSM`, `PGD`, `NoAttack`; a
  `SplitBatchNorm` with statistics for each `Branch`.
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
from .attacks import FGSM, PGD, AbstractAttack, NoAttack, RandomTargetFGSM
from .block_coordinate import (
    AbstractNetworkSplitting,
    BlockCoordinateTraining,
    BlockFit,
    BlockState,
    FeedforwardNetwork,
    Three,
    Two,
)
from .concurrent_adversarial import (
    AdversarialState,
    Branch,
    ConcurrentAdversarial,
    SequentialAdversarial,
    SplitBatchNorm,
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
from .fit import Drawn, Fit, Fresh, Shuffled, fit
from .losses import AbstractOutputLoss, Hinge, Logistic, SquaredError
from .midam import (
    MIDAM,
    AbstractPooling,
    AttentionPooling,
    BagBatch,
    BagSampler,
    BagState,
    MaxPooling,
    MeanPooling,
    SmoothedMax,
    auc_margin_loss,
)
from .pams import (
    EDSR,
    AlphaEMA,
    QuantConv2d,
    attention_transfer,
    pams_quantize,
    quantize_weights,
)
from .snapshots import Snapshots
from .step import AbstractTrainingStep, Context, GradientState, GradientStep

__all__ = [
    "EDSR",
    "FGSM",
    "MIDAM",
    "PGD",
    "AbstractActivation",
    "AbstractAttack",
    "AbstractNetworkSplitting",
    "AbstractOutputLoss",
    "AbstractPairTraining",
    "AbstractPooling",
    "AbstractTrainingStep",
    "AdaWAC",
    "AdversarialState",
    "AlphaEMA",
    "AttentionPooling",
    "BagBatch",
    "BagSampler",
    "BagState",
    "BlockCoordinateTraining",
    "BlockFit",
    "BlockState",
    "BlockUpdate",
    "Branch",
    "ConcurrentAdversarial",
    "Context",
    "ConvexReLU",
    "DiceLoss",
    "Drawn",
    "DroReweight",
    "FeedforwardNetwork",
    "Fit",
    "FixedWeights",
    "Fresh",
    "GradientState",
    "GradientStep",
    "Hinge",
    "Identity",
    "LeakyReLU",
    "Logistic",
    "MaxPooling",
    "MeanPooling",
    "MeanSquare",
    "NoAttack",
    "PairBatch",
    "PairState",
    "PatternUpdate",
    "Patterns",
    "QuantConv2d",
    "RandomTargetFGSM",
    "ReLU",
    "Reweight",
    "SampledNeurons",
    "SequentialAdversarial",
    "Shuffled",
    "Sigmoid",
    "SmoothedMax",
    "Snapshots",
    "SplitBatchNorm",
    "SquaredError",
    "Tanh",
    "Three",
    "Trim",
    "Two",
    "TwoLayerReLU",
    "all_patterns",
    "attention_transfer",
    "auc_margin_loss",
    "entropic_update",
    "fit",
    "pair_augment",
    "pams_quantize",
    "quantize_weights",
    "saddle_value",
    "sample_patterns",
    "scenario_size",
]
