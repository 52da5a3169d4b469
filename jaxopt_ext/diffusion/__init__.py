"""Samplers of diffusion models, and what trains these.

`sample(model, sampler, schedule, times, x)` moves noise to data: a `Denoiser` wraps a network and
says what it predicts, a schedule says how much noise there is, a grid where to stop on the way.

- Schedules: `VariancePreserving`, `Cosine`, `VarianceExploding`, `RectifiedFlow`; of a chain of
  steps, `DiscreteSchedule` with `linear_betas` or `cosine_betas`.
- Grids: `uniform_time`, `uniform_log_snr`, `karras`, `quadratic_time`, `log_linear` (to no noise);
  of chains `leading`, `trailing`, `linspaced`.
- Predictions: `Noise`, `Data`, `Velocity`, `Score`, `Preconditioned`.
- Models of models: `Guided`, `ClassifierFree` (one network, one call), `Thresholded`.
- Samplers: `DDIM` (first order; with `eta=1` the ancestral sampler of DDPM), `Heun` (second
  order). Use DDIM for a rough sample in few evaluations, Heun for an accurate one.
- Multistep samplers, one evaluation a step: `PNDM` (a `RungeKutta` or `ImprovedEuler` start, then
  Adams-Bashforth in the outputs; `FON` is the classical method that it is measured against);
  `GradientEstimation`, for networks with few evaluations.
- Samplers that run backwards: `BDIA` (`EulerIncrement`, `HeunIncrement`), `EDICT`, and
  `DDIMInversion` for comparison; `encode` and `decode` a sample, `invert` a run,
  `sample_reversible` for derivatives in constant memory.
- Denoising as projection: `DistanceFunction`, `IdealDenoiser` of finitely many points,
  `relative_projection_error`; `admissible` levels and their `constant_rate`.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.
- Networks: `MLPDenoiser`, `UNetDenoiser`, `TransformerDenoiser`, each an `AbstractNetwork` in
  blocks; `Labelled` with a class filled in; `FourierFeatures`, `Sinusoidal` of their level.
- Training, by `training.fit`: `DenoisingLoss` over `LogNormal`, `UniformTime` or `DiscreteTimes`
  levels, weighed by `MinSNR`, `MaxSNR`, `TruncatedSNR`, `SNR`, `InverseSNR`, `P2`,
  `ConstantWeighting` or `EDMWeighting`; `PowerFunctionAverage` and `ExponentialAverage` of the
  weights.
- To try things on: `digits`, `digit_features`, `digits_teacher`; distances of samples are in
  `core.distances`.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .averages import (
    AbstractAverage,
    ExponentialAverage,
    PowerFunctionAverage,
    power_exponent,
    power_width,
)
from .bdia import BDIA, AbstractIncrement, EulerIncrement, HeunIncrement
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
from .edict import EDICT
from .gradient_estimation import GradientEstimation
from .grids import (
    karras,
    leading,
    linspaced,
    log_linear,
    quadratic_time,
    trailing,
    uniform_log_snr,
    uniform_time,
)
from .guidance import ClassifierFree, Guided, Thresholded
from .heun import Heun
from .inversion import (
    AbstractInvertible,
    Chain,
    DDIMInversion,
    decode,
    encode,
    invert,
    sample_reversible,
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
from .pndm import FON, PNDM, ImprovedEuler, RungeKutta
from .projection import (
    DistanceFunction,
    IdealDenoiser,
    admissible,
    constant_rate,
    relative_projection_error,
)
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
    "BDIA",
    "DDIM",
    "EDICT",
    "FON",
    "P2",
    "PNDM",
    "SNR",
    "AbstractAverage",
    "AbstractDenoiser",
    "AbstractIncrement",
    "AbstractInvertible",
    "AbstractLevels",
    "AbstractNetwork",
    "AbstractPrediction",
    "AbstractSampler",
    "AbstractSchedule",
    "AbstractWeighting",
    "Chain",
    "ClassifierFree",
    "ConstantWeighting",
    "Cosine",
    "DDIMInversion",
    "Data",
    "Denoiser",
    "DenoisingLoss",
    "DigitFeatures",
    "Digits",
    "DiscreteSchedule",
    "DiscreteTimes",
    "DistanceFunction",
    "EDMWeighting",
    "EulerIncrement",
    "ExponentialAverage",
    "FourierFeatures",
    "GaussianMixture",
    "GradientEstimation",
    "Guided",
    "Heun",
    "HeunIncrement",
    "IdealDenoiser",
    "ImprovedEuler",
    "InverseSNR",
    "Labelled",
    "LogNormal",
    "MLPDenoiser",
    "MaxSNR",
    "MinSNR",
    "Node",
    "Noise",
    "PowerFunctionAverage",
    "Preconditioned",
    "RectifiedFlow",
    "RungeKutta",
    "Sampled",
    "Score",
    "Sinusoidal",
    "Thresholded",
    "TransformerDenoiser",
    "TruncatedSNR",
    "UNetDenoiser",
    "UniformTime",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "admissible",
    "combine",
    "constant_rate",
    "cosine_betas",
    "decode",
    "digit_features",
    "digits",
    "digits_teacher",
    "encode",
    "ends",
    "gaussian",
    "invert",
    "karras",
    "leading",
    "linear_betas",
    "linspaced",
    "log_linear",
    "power_exponent",
    "power_width",
    "prior",
    "quadratic_time",
    "relative_projection_error",
    "sample",
    "sample_reversible",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
