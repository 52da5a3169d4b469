"""Samplers of diffusion models, and what trains these.

`sample(model, sampler, schedule, times, x)` moves noise to data: a `Denoiser` wraps a network and
says what it predicts, a schedule says how much noise there is, a grid where to stop on the way.

- Schedules: `VariancePreserving`, `Cosine`, `VarianceExploding`, `RectifiedFlow`; of a chain of
  steps, `DiscreteSchedule` with `linear_betas` or `cosine_betas`.
- Grids: `uniform_time`, `uniform_log_snr`, `karras`, `quadratic_time`; of chains `leading`,
  `trailing`, `linspaced`.
- Predictions: `Noise`, `Data`, `Velocity`, `Score`, `Preconditioned`.
- Models of models: `Guided`, `ClassifierFree` (one network, one call), `Thresholded`.
- Samplers: `DDIM` (first order; with `eta=1` the ancestral sampler of DDPM), `Heun` (second
  order). Use DDIM for a rough sample in few evaluations, Heun for an accurate one.
- Provable rates: `AcceleratedDDIM`, `AcceleratedDDPM` and what they speed up, `PlainScoreDDIM`,
  `PlainScoreDDPM`; `theory_schedule` is the chain of the proofs. The first is of second order,
  for many steps; with few, exponential integrators are better.
- `sample_parallel` (ParaDiGMS): any sampler's run by rounds over a window of steps, fewer than
  steps, on one device or spread over a mesh. For latency where the model leaves devices idle.
- `EpsilonScaled`: a model with smaller noise, by a number, a `linear_scale` or a `TabulatedScale`;
  `fit_scale` chooses it, `noise_norm_gap` and `exposure_bias` measure what it is for: few steps
  and networks whose errors add up.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.
- Networks: `MLPDenoiser`, `UNetDenoiser`, `TransformerDenoiser`, each an `AbstractNetwork` in
  blocks; `Labelled` with a class filled in; `FourierFeatures`, `Sinusoidal` of their level.
- Training, by `training.fit`: `DenoisingLoss` over `LogNormal`, `UniformTime` or `DiscreteTimes`
  levels, weighed by `MinSNR`, `MaxSNR`, `TruncatedSNR`, `SNR`, `InverseSNR`, `P2`,
  `ConstantWeighting` or `EDMWeighting`; `PowerFunctionAverage` and `ExponentialAverage` of the
  weights.
- Levels as tasks: `UnifiedGradientWeights`, with `ExactWeights` or `SoftmaxWeights`, lets no group
  of times lose; `task_conflict` measures how far they do.
- Magnitudes that training preserves (EDM2): `EDM2MLP`, `EDM2UNet` of `MPLinear`, `MPConv`,
  `MPFourier`, `mp_silu`, `mp_sum`, `mp_cat`, `pixel_norm`; `UncertaintyLoss` of a
  `WithUncertainty`, `edm2_optimizer` at the rate of `inverse_sqrt_schedule`,
  `forced_normalisation`; averages of any width afterwards by `posthoc_average`,
  `posthoc_coefficients`, `power_exponent`, `power_width`.
- To try things on: `digits`, `digit_features`, `digits_teacher`; distances of samples are in
  `core.distances`.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .accelerated import (
    AcceleratedDDIM,
    AcceleratedDDPM,
    PlainScoreDDIM,
    PlainScoreDDPM,
    theory_schedule,
)
from .averages import (
    AbstractAverage,
    ExponentialAverage,
    PowerFunctionAverage,
    power_exponent,
    power_width,
)
from .beds import DigitFeatures, Digits, digit_features, digits, digits_teacher
from .ddim import DDIM
from .denoiser import (
    AbstractDenoiser,
    AbstractPrediction,
    Data,
    Denoiser,
    Noise,
    Preconditioned,
    Score,
    Velocity,
    combine,
)
from .edm2 import (
    EDM2MLP,
    EDM2UNet,
    UncertaintyLoss,
    WithUncertainty,
    edm2_optimizer,
    inverse_sqrt_schedule,
)
from .epsilon_scaling import (
    EpsilonScaled,
    FittedScale,
    NormGap,
    TabulatedScale,
    exposure_bias,
    fit_scale,
    linear_scale,
    noise_norm_gap,
)
from .grids import (
    karras,
    leading,
    linspaced,
    quadratic_time,
    trailing,
    uniform_log_snr,
    uniform_time,
)
from .guidance import ClassifierFree, Guided, Thresholded
from .heun import Heun
from .magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLinear,
    forced_normalisation,
    mp_cat,
    mp_silu,
    mp_sum,
    pixel_norm,
)
from .mixture import GaussianMixture
from .networks import (
    AbstractNetwork,
    FourierFeatures,
    Labelled,
    MLPDenoiser,
    Sinusoidal,
    TransformerDenoiser,
    UNetDenoiser,
)
from .objectives import (
    AbstractLevels,
    DenoisingLoss,
    DiscreteTimes,
    LogNormal,
    UniformTime,
)
from .paradigms import sample_parallel
from .posthoc import posthoc_average, posthoc_coefficients
from .sampler import AbstractSampler, Sampled, ends, gaussian, prior, sample
from .schedules import (
    AbstractSchedule,
    Cosine,
    DiscreteSchedule,
    Node,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    cosine_betas,
    linear_betas,
)
from .timestep_tasks import (
    ExactWeights,
    SoftmaxWeights,
    TaskConflict,
    UnifiedGradientWeights,
    task_conflict,
)
from .weightings import (
    P2,
    SNR,
    AbstractWeighting,
    ConstantWeighting,
    EDMWeighting,
    InverseSNR,
    MaxSNR,
    MinSNR,
    TruncatedSNR,
)

__all__ = [
    "DDIM",
    "EDM2MLP",
    "P2",
    "SNR",
    "AbstractAverage",
    "AbstractDenoiser",
    "AbstractLevels",
    "AbstractNetwork",
    "AbstractPrediction",
    "AbstractSampler",
    "AbstractSchedule",
    "AbstractWeighting",
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "ClassifierFree",
    "ConstantWeighting",
    "Cosine",
    "Data",
    "Denoiser",
    "DenoisingLoss",
    "DigitFeatures",
    "Digits",
    "DiscreteSchedule",
    "DiscreteTimes",
    "EDM2UNet",
    "EDMWeighting",
    "EpsilonScaled",
    "ExactWeights",
    "ExponentialAverage",
    "FittedScale",
    "FourierFeatures",
    "GaussianMixture",
    "Guided",
    "Heun",
    "InverseSNR",
    "Labelled",
    "LogNormal",
    "MLPDenoiser",
    "MPConv",
    "MPFourier",
    "MPLinear",
    "MaxSNR",
    "MinSNR",
    "Node",
    "Noise",
    "NormGap",
    "PlainScoreDDIM",
    "PlainScoreDDPM",
    "PowerFunctionAverage",
    "Preconditioned",
    "RectifiedFlow",
    "Sampled",
    "Score",
    "Sinusoidal",
    "SoftmaxWeights",
    "TabulatedScale",
    "TaskConflict",
    "Thresholded",
    "TransformerDenoiser",
    "TruncatedSNR",
    "UNetDenoiser",
    "UncertaintyLoss",
    "UnifiedGradientWeights",
    "UniformTime",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "WithUncertainty",
    "combine",
    "cosine_betas",
    "digit_features",
    "digits",
    "digits_teacher",
    "edm2_optimizer",
    "ends",
    "exposure_bias",
    "fit_scale",
    "forced_normalisation",
    "gaussian",
    "inverse_sqrt_schedule",
    "karras",
    "leading",
    "linear_betas",
    "linear_scale",
    "linspaced",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "noise_norm_gap",
    "pixel_norm",
    "posthoc_average",
    "posthoc_coefficients",
    "power_exponent",
    "power_width",
    "prior",
    "quadratic_time",
    "sample",
    "sample_parallel",
    "task_conflict",
    "theory_schedule",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
