"""Samplers of diffusion models.

`sample(model, sampler, schedule, times, x)` moves noise to data: a `Denoiser` wraps a network and
says what it predicts, a schedule says how much noise there is, a grid where to stop on the way.

- Schedules: `VariancePreserving`, `Cosine`, `VarianceExploding`, `RectifiedFlow`.
- Grids: `uniform_time`, `uniform_log_snr`, `karras`.
- Predictions: `Noise`, `Data`, `Velocity`, `Score`, `Preconditioned`.
- Samplers: `DDIM` (first order; with `eta=1` the ancestral sampler of DDPM), `Heun` (second
  order). Use DDIM for a rough sample in few evaluations, Heun for an accurate one.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.

A new sampler is a subclass of `AbstractSampler` with `coefficients` and `step`.
"""

from .ddim import DDIM
from .denoiser import (
    AbstractPrediction,
    Data,
    Denoiser,
    Noise,
    Preconditioned,
    Score,
    Velocity,
    combine,
)
from .grids import karras, uniform_log_snr, uniform_time
from .heun import Heun
from .mixture import GaussianMixture
from .sampler import AbstractSampler, Sampled, prior, sample
from .schedules import (
    AbstractSchedule,
    Cosine,
    Node,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)

__all__ = [
    "DDIM",
    "AbstractPrediction",
    "AbstractSampler",
    "AbstractSchedule",
    "Cosine",
    "Data",
    "Denoiser",
    "GaussianMixture",
    "Heun",
    "Node",
    "Noise",
    "Preconditioned",
    "RectifiedFlow",
    "Sampled",
    "Score",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "combine",
    "karras",
    "prior",
    "sample",
    "uniform_log_snr",
    "uniform_time",
]
