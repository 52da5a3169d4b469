"""Samplers of diffusion models.

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

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .adaptive import DPMSolverAdaptive, sample_adaptive
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

__all__ = [
    "DDIM",
    "AbstractDenoiser",
    "AbstractPrediction",
    "AbstractSampler",
    "AbstractSchedule",
    "ClassifierFree",
    "Cosine",
    "DPMSolver",
    "DPMSolverAdaptive",
    "DPMSolverPP",
    "Data",
    "DataForm",
    "Denoiser",
    "DiscreteSchedule",
    "GaussianMixture",
    "Guided",
    "Heun",
    "MultiStep",
    "Node",
    "Noise",
    "NoiseForm",
    "Preconditioned",
    "RectifiedFlow",
    "SDEDPMSolverPP",
    "Sampled",
    "Score",
    "SingleStep",
    "Thresholded",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "combine",
    "cosine_betas",
    "dpm_solver_fast",
    "ends",
    "gaussian",
    "karras",
    "leading",
    "linear_betas",
    "linspaced",
    "prior",
    "quadratic_time",
    "sample",
    "sample_adaptive",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
