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
- Multistep samplers, one evaluation a step: `PNDM` (a `RungeKutta` or `ImprovedEuler` start, then
  Adams-Bashforth in the outputs; `FON` is the classical method that it is measured against).
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

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
from .pndm import FON, PNDM, ImprovedEuler, RungeKutta
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

__all__ = [
    "DDIM",
    "FON",
    "PNDM",
    "AbstractDenoiser",
    "AbstractPrediction",
    "AbstractSampler",
    "AbstractSchedule",
    "ClassifierFree",
    "Cosine",
    "Data",
    "Denoiser",
    "DiscreteSchedule",
    "GaussianMixture",
    "Guided",
    "Heun",
    "ImprovedEuler",
    "Node",
    "Noise",
    "Preconditioned",
    "RectifiedFlow",
    "RungeKutta",
    "Sampled",
    "Score",
    "Thresholded",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "combine",
    "cosine_betas",
    "ends",
    "gaussian",
    "karras",
    "leading",
    "linear_betas",
    "linspaced",
    "prior",
    "quadratic_time",
    "sample",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
