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
- `Euler`, `Midpoint`, `RK4` and `Heun` are explicit Runge-Kutta methods; `sample_adjoint` takes
  them for derivatives whose memory does not grow with the steps.
- `DPMSolver` (orders 1 to 3 in the predicted noise; `dpm_solver_fast` for a given number of
  evaluations), `DPMSolverPP` (in the predicted data; for guidance), each by `SingleStep` or
  `MultiStep`; `SDEDPMSolverPP` draws noise. `sample_adaptive` with `DPMSolverAdaptive` chooses the
  steps. Use `DPMSolverPP()` for few evaluations, `MultiStep(3)` from 20 on.
- Predictor and corrector: `UniPC`, of one order more than `UniP` at the same evaluations, with
  `BH1`, `BH2` or `Varying` coefficients; `UniC` corrects any other sampler. Use `UniPC(2)` up
  to 10 evaluations and under guidance, `UniPC()` above.
- Multistep samplers, one evaluation a step: `PNDM` (a `RungeKutta` or `ImprovedEuler` start, then
  Adams-Bashforth in the outputs; `FON` is the classical method that it is measured against);
  `GradientEstimation`, for networks with few evaluations.
- From the model's own statistics: `DPMSolverV3` on what `model_statistics` measured once, with
  `Interpolation` or `DividedDifferences` of outputs; the most accurate with 5 to 10 evaluations.
- Any exponential integrator, step by step: `USFSampler` of a `Decision`, whose `Step`s have an
  order, an output (`StatisticsForm` for that of DPM-Solver-v3), a relaxation (`LinearRelaxation`,
  `ExponentialRelaxation`, `BH1`, `BH2`), a `PseudoCorrector` or `ImplicitCorrector`; `ZeroData` or
  `MeanData` save the first evaluation. `as_decision` writes known samplers so;
  `sample_decisions` runs many at once, and `search` finds a good one for so many evaluations by
  evolution with a `Mutation` and, for fewer trials, a `RankPredictor`.
- Provable rates: `AcceleratedDDIM`, `AcceleratedDDPM` and what they speed up, `PlainScoreDDIM`,
  `PlainScoreDDPM`; `theory_schedule` is the chain of the proofs. The first is of second order,
  for many steps; with few, exponential integrators are better.
- Samplers that run backwards: `BDIA` (`EulerIncrement`, `HeunIncrement`), `EDICT`, and
  `DDIMInversion` for comparison; `encode` and `decode` a sample, `invert` a run,
  `sample_reversible` for derivatives in constant memory.
- `sample_parallel` (ParaDiGMS): any sampler's run by rounds over a window of steps, fewer than
  steps, on one device or spread over a mesh. For latency where the model leaves devices idle.
- `EpsilonScaled`: a model with smaller noise, by a number, a `linear_scale` or a `TabulatedScale`;
  `fit_scale` chooses it, `noise_norm_gap` and `exposure_bias` measure what it is for: few steps
  and networks whose errors add up.
- Inverse problems: `posterior_sample` with `MCG`, with `PSLD` for models of latents between which
  and images an `Autoencoder` stands, or with `RePaint`, `DataProjection` to compare with. What is
  measured: `LinearMeasurement`, `Inpainting`, `Colorization`, `SuperResolution`, `SparseRadon`,
  `Blur` with `gaussian_kernel` or `motion_kernel`. What is imposed of it: `Projection`,
  `Transpose`, `Kaczmarz`, `Unconstrained`.
- `GaussianMixture`: data whose exact denoiser is known, for tests and for study.
- Denoising as projection: `DistanceFunction`, `IdealDenoiser` of finitely many points,
  `relative_projection_error`; `admissible` levels and their `constant_rate`.
- To try things on: `digits`, `digit_features`, `digits_teacher`, `digits_autoencoder` (a
  `ConvolutionalAutoencoder`); distances of samples are in `core.distances`.
- Networks: `MLPDenoiser`, `UNetDenoiser`, `TransformerDenoiser`, each an `AbstractNetwork` in
  blocks; `Labelled` with a class filled in; `FourierFeatures`, `Sinusoidal` of their level.
- Blocks continuous in depth: `ContinuousUNet` and `ContinuousMLP` of `SecondOrderBlock` or
  `FirstOrderBlock`, with a `ConvolutionField` or `DenseField`, integrated by `CheckpointedSteps`,
  `AdjointSteps` or `DormandPrince`. Few parameters, not few operations: `parameter_count` and
  `flop_count` tell.
- Networks that stop early where there is much noise: `EarlyExit` with an `ExitSchedule`, of
  `graded_exits` say, over `ScheduleTime` or `KarrasTime`, finetuned by `EarlyExitLoss` with
  `all_but_embedding`; `block_evaluations` counts what a run costs.
- Several networks as one: `AggregatedNetwork`, whose trained aggregators (`FeatureAggregator`,
  `GroupAggregator`; fixed ones are `UniformAggregator`, `LevelChoice`) weigh their features at
  each place, as `attention_maps` shows; `aggregator_filter` says what is trained. Without
  training: `average_weights` of networks from one ancestor, `AveragedOutputs` of any.
- Cascades (Cas-DM): `CascadedDenoiser`, a network of the noise and one of the data behind it, with
  `BothInputs`, `CleanInput` or `NoisyInput`, blended by a `LearnedShare`, `PixelShare` or
  `FixedShare`; `CascadedLoss` with a `PerceptualDistance` that leaves the first network alone. To
  compare with: `DualDenoiser`, and `MetricLoss` of one network.
- Magnitudes that training preserves (EDM2): `EDM2MLP`, `EDM2UNet` of `MPLinear`, `MPConv`,
  `MPFourier`, `mp_silu`, `mp_sum`, `mp_cat`, `pixel_norm`; `UncertaintyLoss` of a
  `WithUncertainty`, `edm2_optimizer` at the rate of `inverse_sqrt_schedule`,
  `forced_normalisation`; averages of any width afterwards by `posthoc_average`,
  `posthoc_coefficients`, `power_exponent`, `power_width`.
- Training, by `training.fit`: `DenoisingLoss` over `LogNormal`, `UniformTime` or `DiscreteTimes`
  levels, weighed by `MinSNR`, `MaxSNR`, `TruncatedSNR`, `SNR`, `InverseSNR`, `P2`,
  `ConstantWeighting` or `EDMWeighting`; `PowerFunctionAverage` and `ExponentialAverage` of the
  weights.
- Levels as tasks: `UnifiedGradientWeights`, with `ExactWeights` or `SoftmaxWeights`, lets no group
  of times lose; `task_conflict` measures how far they do.
- Training through the sampler: `MMDLoss` and `finetune_mmd` for the samples of a few steps,
  `PropagationLoss` against errors that grow along a run; `modular_errors`, `cumulative_errors` and
  their `amplification` measure these, `gaussian_chain_errors` knows them.
- One call from noise to data: `ConsistencyModel`, trained in continuous time by
  `ContinuousConsistencyLoss` with `TangentNorm` or `TangentClip`, beside its weight in a
  `WeightedConsistency`; `DiscreteConsistencyLoss` to compare with. Its coordinates are `TrigFlow`
  and `TrigVelocity`, to which `trigflow_teacher` brings any denoiser; `consistency_tangent` and
  `DoubleNorm` are for networks and losses of your own.
- Trajectories: a `TrajectoryModel` of a `TrajectoryNetwork` jumps from any level to any lower one,
  by `GammaSampler` in one step or many; `CTMLoss`, with `denoising_term` and a `HingeAdversary`
  against a critic, trains it, `consistency_distillation_loss` its relative with one target.
- Whole numbers: `OrderAgnostic` and `Upscale`, autoregressive models of any order, trained by
  `AutoregressiveLoss`; `optimal_policy` generates many coordinates a call, `compress` and
  `decompress` are a lossless coder.

A new sampler is a subclass of `AbstractSampler` with `plan` and `step`.
"""

from .accelerated import (
    AcceleratedDDIM,
    AcceleratedDDPM,
    PlainScoreDDIM,
    PlainScoreDDPM,
    theory_schedule,
)
from .adaptive import DPMSolverAdaptive, sample_adaptive
from .adjoint import sample_adjoint
from .autoencoders import ConvolutionalAutoencoder
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
from .averages import (
    AbstractAverage,
    ExponentialAverage,
    PowerFunctionAverage,
    power_exponent,
    power_width,
)
from .bdia import BDIA, AbstractIncrement, EulerIncrement, HeunIncrement
from .beds import DigitFeatures, Digits, digit_features, digits, digits_autoencoder, digits_teacher
from .beyond_u import (
    AbstractDepthSolver,
    AdjointSteps,
    CheckpointedSteps,
    ContinuousMLP,
    ContinuousUNet,
    ConvolutionField,
    DenseField,
    DormandPrince,
    FirstOrderBlock,
    SecondOrderBlock,
    flop_count,
    parameter_count,
)
from .cascaded import (
    AbstractBlended,
    AbstractInputs,
    AbstractShare,
    BothInputs,
    CascadedDenoiser,
    CascadedLoss,
    CleanInput,
    DualDenoiser,
    FixedShare,
    LearnedShare,
    MetricLoss,
    NoisyInput,
    PerceptualDistance,
    PixelShare,
    Predictions,
)
from .coding import compress, decompress
from .consistency import AbstractConsistency, Kaczmarz, Projection, Transpose, Unconstrained
from .consistency_trajectory import (
    AbstractSpans,
    AbstractTargets,
    AdaptiveWeight,
    AnyTarget,
    CTMLoss,
    HingeAdversary,
    KarrasLevels,
    LastTarget,
    MixedLevels,
    NearestTarget,
    SquaredDistance,
    UniformSpans,
    WeightedSpans,
    WithCritic,
    consistency_distillation_loss,
    denoising_term,
)
from .continuous_consistency import (
    ConsistencyModel,
    ContinuousConsistencyLoss,
    DiscreteConsistencyLoss,
    DoubleNorm,
    TangentClip,
    TangentNorm,
    WeightedConsistency,
    consistency_tangent,
)
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
from .dpm_solver import DPMSolver, dpm_solver_fast
from .dpm_solver_pp import DPMSolverPP, SDEDPMSolverPP
from .dpm_solver_v3 import DividedDifferences, DPMSolverV3, Interpolation
from .early_exit import (
    EarlyExit,
    EarlyExitLoss,
    ExitSchedule,
    KarrasTime,
    MixedDepths,
    ScheduleTime,
    all_but_embedding,
    block_evaluations,
    graded_exits,
)
from .edict import EDICT
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
from .error_propagation import (
    ChainErrors,
    PropagationLoss,
    amplification,
    cumulative_errors,
    gaussian_chain_errors,
    modular_errors,
)
from .exponential import DataForm, NoiseForm
from .feature_aggregation import (
    AbstractAggregator,
    AggregatedNetwork,
    AveragedOutputs,
    FeatureAggregator,
    GroupAggregator,
    LevelChoice,
    UniformAggregator,
    aggregator_filter,
    attention_maps,
    average_weights,
)
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
from .mmd_finetune import MMDLoss, finetune_mmd
from .model_statistics import ModelStatistics, model_statistics
from .networks import (
    AbstractNetwork,
    FourierFeatures,
    Labelled,
    MLPDenoiser,
    Sinusoidal,
    TransformerDenoiser,
    UNetDenoiser,
)
from .objectives import AbstractLevels, DenoisingLoss, DiscreteTimes, LogNormal, UniformTime
from .paradigms import sample_parallel
from .pndm import FON, PNDM, ImprovedEuler, RungeKutta
from .policies import naive_policy, optimal_policy, policy_cost
from .posterior import AbstractGuidedSampler, posterior_sample
from .posthoc import posthoc_average, posthoc_coefficients
from .projection import (
    DistanceFunction,
    IdealDenoiser,
    admissible,
    constant_rate,
    relative_projection_error,
)
from .psld import PSLD, Autoencoder
from .rank_predictor import RankPredictor
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
from .solver_search import Mutation, Searched, search
from .stepping import MultiStep, SingleStep
from .timestep_tasks import (
    ExactWeights,
    SoftmaxWeights,
    TaskConflict,
    UnifiedGradientWeights,
    task_conflict,
)
from .trajectories import AbstractTrajectory, GammaSampler, TrajectoryModel, TrajectoryNetwork
from .trigflow import TrigFlow, TrigVelocity, trigflow_teacher
from .unipc import BH1, BH2, UniC, UniP, UniPC, Varying
from .usf import (
    Decision,
    ExponentialRelaxation,
    ImplicitCorrector,
    LinearRelaxation,
    MeanData,
    PseudoCorrector,
    StatisticsForm,
    Step,
    USFSampler,
    ZeroData,
    as_decision,
    sample_decisions,
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
    "BH1",
    "BH2",
    "DDIM",
    "EDICT",
    "EDM2MLP",
    "FON",
    "MCG",
    "P2",
    "PNDM",
    "PSLD",
    "RK4",
    "SNR",
    "AbstractAggregator",
    "AbstractAverage",
    "AbstractBlended",
    "AbstractConsistency",
    "AbstractDenoiser",
    "AbstractDepthSolver",
    "AbstractGuidedSampler",
    "AbstractIncrement",
    "AbstractInputs",
    "AbstractInvertible",
    "AbstractLevels",
    "AbstractMeasurement",
    "AbstractNetwork",
    "AbstractOrderModel",
    "AbstractPrediction",
    "AbstractRungeKutta",
    "AbstractSampler",
    "AbstractSchedule",
    "AbstractShare",
    "AbstractSpans",
    "AbstractTargets",
    "AbstractTrajectory",
    "AbstractWeighting",
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "AdaptiveWeight",
    "AdjointSteps",
    "AggregatedNetwork",
    "AnyTarget",
    "Autoencoder",
    "AutoregressiveLoss",
    "AveragedOutputs",
    "Blur",
    "BothInputs",
    "CTMLoss",
    "CascadedDenoiser",
    "CascadedLoss",
    "Chain",
    "ChainErrors",
    "CheckpointedSteps",
    "ClassifierFree",
    "CleanInput",
    "Colorization",
    "ConsistencyModel",
    "ConstantWeighting",
    "ContinuousConsistencyLoss",
    "ContinuousMLP",
    "ContinuousUNet",
    "ConvolutionField",
    "ConvolutionalAutoencoder",
    "Cosine",
    "DDIMInversion",
    "DPMSolver",
    "DPMSolverAdaptive",
    "DPMSolverPP",
    "DPMSolverV3",
    "Data",
    "DataForm",
    "DataLogits",
    "DataProjection",
    "Decision",
    "Denoiser",
    "DenoisingLoss",
    "DenseField",
    "DigitFeatures",
    "Digits",
    "DirectLogits",
    "DiscreteConsistencyLoss",
    "DiscreteSchedule",
    "DiscreteTimes",
    "DistanceFunction",
    "DividedDifferences",
    "DormandPrince",
    "DoubleNorm",
    "DualDenoiser",
    "EDM2UNet",
    "EDMWeighting",
    "EarlyExit",
    "EarlyExitLoss",
    "EpsilonScaled",
    "Euler",
    "EulerIncrement",
    "ExactWeights",
    "ExitSchedule",
    "ExponentialAverage",
    "ExponentialRelaxation",
    "FeatureAggregator",
    "FirstOrderBlock",
    "FittedScale",
    "FixedShare",
    "FourierFeatures",
    "GammaSampler",
    "GaussianMixture",
    "GradientEstimation",
    "GroupAggregator",
    "Guided",
    "Heun",
    "HeunIncrement",
    "HingeAdversary",
    "IdealDenoiser",
    "ImplicitCorrector",
    "ImprovedEuler",
    "Inpainting",
    "Interpolation",
    "InverseSNR",
    "Kaczmarz",
    "KarrasLevels",
    "KarrasTime",
    "Labelled",
    "LastTarget",
    "LearnedShare",
    "LevelChoice",
    "LinearMeasurement",
    "LinearRelaxation",
    "LogNormal",
    "MLPDenoiser",
    "MMDLoss",
    "MPConv",
    "MPFourier",
    "MPLinear",
    "MaskedMLP",
    "MaxSNR",
    "MeanData",
    "MetricLoss",
    "Midpoint",
    "MinSNR",
    "MixedDepths",
    "MixedLevels",
    "ModelStatistics",
    "MultiStep",
    "Mutation",
    "NearestTarget",
    "Node",
    "Noise",
    "NoiseForm",
    "NoisyInput",
    "NormGap",
    "OrderAgnostic",
    "PerceptualDistance",
    "PixelShare",
    "PlainScoreDDIM",
    "PlainScoreDDPM",
    "PowerFunctionAverage",
    "Preconditioned",
    "Predictions",
    "Projection",
    "PropagationLoss",
    "PseudoCorrector",
    "RankPredictor",
    "RePaint",
    "RectifiedFlow",
    "RungeKutta",
    "SDEDPMSolverPP",
    "Sampled",
    "ScheduleTime",
    "Score",
    "Searched",
    "SecondOrderBlock",
    "SingleStep",
    "Sinusoidal",
    "SoftmaxWeights",
    "SparseRadon",
    "SquaredDistance",
    "StatisticsForm",
    "Step",
    "SuperResolution",
    "TabulatedScale",
    "TangentClip",
    "TangentNorm",
    "TaskConflict",
    "Thresholded",
    "TrajectoryModel",
    "TrajectoryNetwork",
    "TransformerDenoiser",
    "Transpose",
    "TrigFlow",
    "TrigVelocity",
    "TruncatedSNR",
    "UNetDenoiser",
    "USFSampler",
    "UncertaintyLoss",
    "Unconstrained",
    "UniC",
    "UniP",
    "UniPC",
    "UnifiedGradientWeights",
    "UniformAggregator",
    "UniformSpans",
    "UniformTime",
    "Upscale",
    "VarianceExploding",
    "VariancePreserving",
    "Varying",
    "Velocity",
    "WeightedConsistency",
    "WeightedSpans",
    "WithCritic",
    "WithUncertainty",
    "ZeroData",
    "admissible",
    "aggregator_filter",
    "all_but_embedding",
    "amplification",
    "antithetic_steps",
    "as_decision",
    "attention_maps",
    "average_weights",
    "block_evaluations",
    "combine",
    "compress",
    "consistency_distillation_loss",
    "consistency_tangent",
    "constant_rate",
    "cosine_betas",
    "cumulative_errors",
    "decode",
    "decompress",
    "denoising_term",
    "digit_features",
    "digit_levels",
    "digits",
    "digits_autoencoder",
    "digits_teacher",
    "dpm_solver_fast",
    "edm2_optimizer",
    "encode",
    "ends",
    "exposure_bias",
    "finetune_mmd",
    "fit_scale",
    "flop_count",
    "forced_normalisation",
    "gaussian",
    "gaussian_chain_errors",
    "gaussian_kernel",
    "graded_exits",
    "inverse_sqrt_schedule",
    "invert",
    "karras",
    "leading",
    "linear_betas",
    "linear_scale",
    "linspaced",
    "log_linear",
    "model_statistics",
    "modular_errors",
    "motion_kernel",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "naive_policy",
    "noise_norm_gap",
    "optimal_policy",
    "parameter_count",
    "pixel_norm",
    "policy_cost",
    "posterior_sample",
    "posthoc_average",
    "posthoc_coefficients",
    "power_exponent",
    "power_width",
    "prior",
    "quadratic_time",
    "relative_projection_error",
    "sample",
    "sample_adaptive",
    "sample_adjoint",
    "sample_decisions",
    "sample_parallel",
    "sample_reversible",
    "search",
    "task_conflict",
    "theory_schedule",
    "trailing",
    "trigflow_teacher",
    "uniform_log_snr",
    "uniform_time",
]
