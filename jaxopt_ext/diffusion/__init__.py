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
- `DPMSolver` (orders 1 to 3 in the predicted noise; `dpm_solver_fast` for a given number of
  evaluations), `DPMSolverPP` (in the predicted data; for guidance), each by `SingleStep` or
  `MultiStep`; `SDEDPMSolverPP` draws noise. `sample_adaptive` with `DPMSolverAdaptive` chooses the
  steps. Use `DPMSolverPP()` for few evaluations, `MultiStep(3)` from 20 on.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.
- Networks: `MLPDenoiser`, `UNetDenoiser`, `TransformerDenoiser`, each an `AbstractNetwork` in
  blocks; `Labelled` with a class filled in; `FourierFeatures`, `Sinusoidal` of their level.
- Training, by `training.fit`: `DenoisingLoss` over `LogNormal`, `UniformTime` or `DiscreteTimes`
  levels, weighed by `MinSNR`, `MaxSNR`, `TruncatedSNR`, `SNR`, `InverseSNR`, `P2`,
  `ConstantWeighting` or `EDMWeighting`; `PowerFunctionAverage` and `ExponentialAverage` of the
  weights.
- Levels as tasks: `UnifiedGradientWeights`, with `ExactWeights` or `SoftmaxWeights`, lets no group
  of times lose; `task_conflict` measures how far they do.
- To try things on: `digits`, `digit_features`, `digits_teacher`; distances of samples are in
  `core.distances`.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .adaptive import DPMSolverAdaptive, sample_adaptive
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
from .dpm_solver import DPMSolver, dpm_solver_fast
from .dpm_solver_pp import DPMSolverPP, SDEDPMSolverPP
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
from .stepping import MultiStep, SingleStep
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
    "ClassifierFree",
    "ConstantWeighting",
    "Cosine",
    "DPMSolver",
    "DPMSolverAdaptive",
    "DPMSolverPP",
    "Data",
    "DataForm",
    "Denoiser",
    "DenoisingLoss",
    "DigitFeatures",
    "Digits",
    "DiscreteSchedule",
    "DiscreteTimes",
    "EDMWeighting",
    "ExactWeights",
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
    "MinSNR",
    "MultiStep",
    "Node",
    "Noise",
    "NoiseForm",
    "PowerFunctionAverage",
    "Preconditioned",
    "RectifiedFlow",
    "SDEDPMSolverPP",
    "Sampled",
    "Score",
    "SingleStep",
    "Sinusoidal",
    "SoftmaxWeights",
    "TaskConflict",
    "Thresholded",
    "TransformerDenoiser",
    "TruncatedSNR",
    "UNetDenoiser",
    "UnifiedGradientWeights",
    "UniformTime",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "combine",
    "cosine_betas",
    "digit_features",
    "digits",
    "digits_teacher",
    "dpm_solver_fast",
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
    "sample_adaptive",
    "task_conflict",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
