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
- Inverse problems: `posterior_sample` with `MCG`, with `PSLD` for models of latents between which
  and images an `Autoencoder` stands, or with `RePaint`, `DataProjection` to compare with. What is
  measured: `LinearMeasurement`, `Inpainting`, `Colorization`, `SuperResolution`, `SparseRadon`,
  `Blur` with `gaussian_kernel` or `motion_kernel`. What is imposed of it: `Projection`,
  `Transpose`, `Kaczmarz`, `Unconstrained`.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.
- Networks: `MLPDenoiser`, `UNetDenoiser`, `TransformerDenoiser`, each an `AbstractNetwork` in
  blocks; `Labelled` with a class filled in; `FourierFeatures`, `Sinusoidal` of their level.
- Training, by `training.fit`: `DenoisingLoss` over `LogNormal`, `UniformTime` or `DiscreteTimes`
  levels, weighed by `MinSNR`, `MaxSNR`, `TruncatedSNR`, `SNR`, `InverseSNR`, `P2`,
  `ConstantWeighting` or `EDMWeighting`; `PowerFunctionAverage` and `ExponentialAverage` of the
  weights.
- To try things on: `digits`, `digit_features`, `digits_teacher`, `digits_autoencoder` (a
  `ConvolutionalAutoencoder`); distances of samples are in `core.distances`.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .adjoint import sample_adjoint
from .autoencoders import ConvolutionalAutoencoder
from .averages import (
    AbstractAverage,
    ExponentialAverage,
    PowerFunctionAverage,
    power_exponent,
    power_width,
)
from .beds import DigitFeatures, Digits, digit_features, digits, digits_autoencoder, digits_teacher
from .consistency import AbstractConsistency, Kaczmarz, Projection, Transpose, Unconstrained
from .data_projection import DataProjection
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
from .mcg import MCG
from .measurement import (
    AbstractMeasurement,
    Blur,
    Colorization,
    Inpainting,
    LinearMeasurement,
    SparseRadon,
    SuperResolution,
    gaussian_kernel,
    motion_kernel,
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
from .posterior import AbstractGuidedSampler, posterior_sample
from .psld import PSLD, Autoencoder
from .repaint import RePaint
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
    "MCG",
    "P2",
    "PSLD",
    "RK4",
    "SNR",
    "AbstractAverage",
    "AbstractConsistency",
    "AbstractDenoiser",
    "AbstractGuidedSampler",
    "AbstractLevels",
    "AbstractMeasurement",
    "AbstractNetwork",
    "AbstractPrediction",
    "AbstractRungeKutta",
    "AbstractSampler",
    "AbstractSchedule",
    "AbstractWeighting",
    "Autoencoder",
    "Blur",
    "ClassifierFree",
    "Colorization",
    "ConstantWeighting",
    "ConvolutionalAutoencoder",
    "Cosine",
    "Data",
    "DataForm",
    "DataProjection",
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
    "Inpainting",
    "InverseSNR",
    "Kaczmarz",
    "Labelled",
    "LinearMeasurement",
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
    "Projection",
    "RePaint",
    "RectifiedFlow",
    "Sampled",
    "Score",
    "Sinusoidal",
    "SparseRadon",
    "SuperResolution",
    "Thresholded",
    "TransformerDenoiser",
    "Transpose",
    "TruncatedSNR",
    "UNetDenoiser",
    "Unconstrained",
    "UniformTime",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "combine",
    "cosine_betas",
    "digit_features",
    "digits",
    "digits_autoencoder",
    "digits_teacher",
    "ends",
    "gaussian",
    "gaussian_kernel",
    "karras",
    "leading",
    "linear_betas",
    "linspaced",
    "motion_kernel",
    "posterior_sample",
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
