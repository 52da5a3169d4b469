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
- `Euler`, `Midpoint`, `RK4` and `Heun` are explicit Runge-Kutta methods; `sample_adjoint` takes
  them for derivatives whose memory does not grow with the steps.
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

from .adjoint import sample_adjoint
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
from .exponential import DataForm, NoiseForm
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
from .runge_kutta import RK4, AbstractRungeKutta, Euler, Midpoint
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
    "DDIM",
    "P2",
    "RK4",
    "SNR",
    "AbstractAverage",
    "AbstractDenoiser",
    "AbstractLevels",
    "AbstractNetwork",
    "AbstractPrediction",
    "AbstractRungeKutta",
    "AbstractSampler",
    "AbstractSchedule",
    "AbstractWeighting",
    "ClassifierFree",
    "ConstantWeighting",
    "Cosine",
    "Data",
    "DataForm",
    "Denoiser",
    "DenoisingLoss",
    "DigitFeatures",
    "Digits",
    "DiscreteSchedule",
    "DiscreteTimes",
    "EDMWeighting",
    "Euler",
    "ExponentialAverage",
    "FourierFeatures",
    "GaussianMixture",
    "Guided",
    "Heun",
    "InverseSNR",
    "Labelled",
    "LogNormal",
    "MLPDenoiser",
    "MaxSNR",
    "Midpoint",
    "MinSNR",
    "Node",
    "Noise",
    "NoiseForm",
    "PowerFunctionAverage",
    "Preconditioned",
    "RectifiedFlow",
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
    "combine",
    "cosine_betas",
    "digit_features",
    "digits",
    "digits_teacher",
    "ends",
    "gaussian",
    "karras",
    "leading",
    "linear_betas",
    "linspaced",
    "power_exponent",
    "power_width",
    "prior",
    "quadratic_time",
    "sample",
    "sample_adjoint",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
