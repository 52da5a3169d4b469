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
- Provable rates: `AcceleratedDDIM`, `AcceleratedDDPM` and what they speed up, `PlainScoreDDIM`,
  `PlainScoreDDPM`; `theory_schedule` is the chain of the proofs. The first is of second order,
  for many steps; with few, exponential integrators are better.
- `sample_parallel` (ParaDiGMS): any sampler's run by rounds over a window of steps, fewer than
  steps, on one device or spread over a mesh. For latency where the model leaves devices idle.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .accelerated import (
    AcceleratedDDIM,
    AcceleratedDDPM,
    PlainScoreDDIM,
    PlainScoreDDPM,
    theory_schedule,
)
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
from .paradigms import sample_parallel
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
    "AbstractDenoiser",
    "AbstractPrediction",
    "AbstractSampler",
    "AbstractSchedule",
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "ClassifierFree",
    "Cosine",
    "Data",
    "Denoiser",
    "DiscreteSchedule",
    "GaussianMixture",
    "Guided",
    "Heun",
    "Node",
    "Noise",
    "PlainScoreDDIM",
    "PlainScoreDDPM",
    "Preconditioned",
    "RectifiedFlow",
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
    "sample_parallel",
    "theory_schedule",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
