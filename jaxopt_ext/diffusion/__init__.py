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
- Whole numbers: `OrderAgnostic` and `Upscale`, autoregressive models of any order, trained by
  `AutoregressiveLoss`; `optimal_policy` generates many coordinates a call, `encode` and `decode`
  are a lossless coder.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .autoregressive import (
    AbstractOrderModel,
    AutoregressiveLoss,
    DataLogits,
    DirectLogits,
    MaskedMLP,
    OrderAgnostic,
    Upscale,
    antithetic_steps,
    digit_levels,
)
from .coding import decode, encode
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
from .policies import naive_policy, optimal_policy, policy_cost
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
    "AbstractOrderModel",
    "AbstractPrediction",
    "AbstractSampler",
    "AbstractSchedule",
    "AutoregressiveLoss",
    "ClassifierFree",
    "Cosine",
    "Data",
    "DataLogits",
    "Denoiser",
    "DirectLogits",
    "DiscreteSchedule",
    "GaussianMixture",
    "Guided",
    "Heun",
    "MaskedMLP",
    "Node",
    "Noise",
    "OrderAgnostic",
    "Preconditioned",
    "RectifiedFlow",
    "Sampled",
    "Score",
    "Thresholded",
    "Upscale",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "antithetic_steps",
    "combine",
    "cosine_betas",
    "decode",
    "digit_levels",
    "encode",
    "ends",
    "gaussian",
    "karras",
    "leading",
    "linear_betas",
    "linspaced",
    "naive_policy",
    "optimal_policy",
    "policy_cost",
    "prior",
    "quadratic_time",
    "sample",
    "trailing",
    "uniform_log_snr",
    "uniform_time",
]
