"""Gradient transformations for `optax`: one file per method.

All are `optax.GradientTransformationExtraArgs`: they ignore extra arguments that they do not know,
and work under `optax.chain`, `optax.masked`, `optax.multi_transform` and `optax.MultiSteps`.

Less memory than Adam's two numbers per parameter:

- `badam`: Adam on one block of layers at a time, with a state one block large; `blocks_by_layer`
  cuts the parameters, `value_and_block_grad` differentiates the current block only.
- `microadam`: a window of sparse gradients and a 4-bit error: about one byte per parameter.
- `subset_norm`, `adam_sn`: one adaptive step size per row or column.
- `subspace_momentum`, `adam_snsm`: momentum in a low-dimensional subspace, SGD in its complement.
- `online_subspace_descent`: both moments in a subspace that online PCA keeps moving.
- `adafactor`: the second moment of a matrix from its row and column sums.

Faster or steadier than Adam at its own price in memory:

- `adabelief`: long steps where gradients agree with their mean; rectified, AMSGrad and decayed
  variants.
- `ademamix`: a second, very slow mean of gradients, for long runs.
- `amsgrad`, `adamnc`: rates that never grow, for convex and online problems; with
  `weighted_projection` onto a set. `OnlineCounterexample` is what Adam fails.
- `adabound`, `amsbound`: begin as Adam and end as SGD with momentum.
- `opt_amsgrad`: moves ahead along a prediction of the next gradient; for games too.
- `exadam`: moments that correct each other, and a step that grows with the logarithm of time.
- `adan`: Nesterov momentum from differences of gradients; for large batches.
- `adamp`, `sgdp`: for networks with normalisation layers, whose weights are scale-invariant;
  `project_radial` is the projection alone.
- `rmsprop_gs`, `adam_gs`: the forms with guarantees on functions that are not smooth, under noise
  that grows with the gradient; `theory_hyperparams` gives the rates.

More than one gradient per step:

- `multiadam`: one Adam for each group of losses, as of physics-informed networks; `grouped_grads`
  makes the gradients.
- `multi_momentum`, `discover_sgd`, `discover_sgdm`, `discover_qhm`, `discover_igt`: one momentum
  for each cluster of the data takes out the variance between them; `cluster_grads`.

With curvature, from the loss as a function or from Hessian-vector products:

- `adahessian`: Adam that divides by the diagonal of the Hessian instead of the gradient's size.
- `oasis`: the same diagonal, and a learning rate that finds itself.
- `sania`: Polyak's step size from the value of the loss; with `"adagrad_sqr"` or `"adam_sqr"` the
  units of the coordinates do not matter, and no curvature is needed.
- `egn`: exact Gauss-Newton steps at the price of a system of the size of the batch.

Growing batches:

- `adadagrad`, `adadagrad_norm`: AdaGrad with a test, `batch_size_test`, on the gradients of samples
  that says when noise begins to matter; `fit_adaptive_batch` is the loop.

Averages of the weights, around any other transformation; `averaged_params` reads the average:

- `switch_ema`: training goes on from an exponential average each epoch.
- `aswa`: from the mean, optionally of filtered weights (NASWA), which steadies models over seeds;
  `prediction_std`, `jaccard_topk` and `relative_entropy` measure that.
- `weight_switch`: the wrapper behind both, for other averages.

Shared blocks: `projectors` (subspaces of matrices), `quantize` (4-bit codes, largest entries),
`hutchinson` (diagonal of the Hessian), `per_sample` (gradients and Jacobians of samples).
"""

from .adabelief import ScaleByAdaBeliefState, adabelief, scale_by_adabelief
from .adabound import AdaBoundState, adabound, amsbound
from .adadagrad import (
    AdAdaGradState,
    AdaptiveBatchFit,
    adadagrad,
    adadagrad_norm,
    batch_size_test,
    fit_adaptive_batch,
)
from .adafactor import adafactor, relative_step_size
from .adahessian import (
    ScaleByAdaHessianState,
    adahessian,
    scale_by_adahessian,
    spatial_average,
)
from .adam import (
    SinhProblem,
    adam_gs,
    affine_noise,
    rmsprop_gs,
    sinh_problem,
    theory_hyperparams,
)
from .adamp import (
    ScaleByAdamPState,
    ScaleBySGDPState,
    adamp,
    project_radial,
    scale_by_adamp,
    scale_by_sgdp,
    sgdp,
)
from .adan import ScaleByAdanState, adan, restart_adan, scale_by_adan
from .ademamix import (
    ScaleByAdEMAMixState,
    ademamix,
    alpha_schedule,
    log_beta3_schedule,
    scale_by_ademamix,
)
from .amsgrad import (
    OnlineCounterexample,
    ScaleByAdamNCState,
    adamnc,
    amsgrad,
    scale_by_adamnc,
)
from .averaging import (
    aswa,
    averaged_params,
    jaccard_topk,
    prediction_std,
    relative_entropy,
    switch_ema,
)
from .badam import (
    BAdamState,
    badam,
    blocks_by_layer,
    value_and_block_grad,
)
from .egn import EGNState, egn, gauss_newton_direction
from .exadam import ScaleByEXAdamState, exadam, scale_by_exadam
from .hutchinson import hessian_vector_product, hutchinson_diag
from .microadam import MicroAdamState, microadam
from .multiadam import ScaleByMultiAdamState, grouped_grads, multiadam, scale_by_multiadam
from .multimomentum import (
    MultiMomentumState,
    cluster_grads,
    discover_igt,
    discover_qhm,
    discover_sgd,
    discover_sgdm,
    lookahead_params,
    multi_momentum,
    scale_by_igt,
    scale_by_qhm,
)
from .oasis import OASISState, oasis
from .online_subspace import (
    OnlineSubspaceState,
    online_subspace_descent,
    subspace_gradient,
    subspace_loss,
)
from .optimistic_amsgrad import (
    AbstractPredictor,
    ExtrapolatedGradient,
    LastGradient,
    OptAMSGradState,
    opt_amsgrad,
    rmpe,
)
from .per_sample import flat_jacobian, per_sample_grads
from .projectors import (
    AbstractMatrixProjector,
    CoordinateProjector,
    OrthonormalProjector,
    SVDProjector,
    TopNormProjector,
)
from .quantize import (
    Quantized4Bit,
    dequantize_4bit,
    quantize_4bit,
    topk_blocks,
)
from .sania import SANIAState, newton_direction, sania, truncated_cg
from .subset_norm import (
    SubsetNormState,
    adam_sn,
    adam_snsm,
    subset_norm,
    subspace_momentum,
)
from .weight_switch import (
    AbstractAggregator,
    ExponentialMean,
    NormFilteredMean,
    RunningMean,
    WeightSwitchState,
    weight_switch,
)
from .weighted_projection import Projection, project_updates, weighted_projection

__all__ = [
    "AbstractAggregator",
    "AbstractMatrixProjector",
    "AbstractPredictor",
    "AdAdaGradState",
    "AdaBoundState",
    "AdaptiveBatchFit",
    "BAdamState",
    "CoordinateProjector",
    "EGNState",
    "ExponentialMean",
    "ExtrapolatedGradient",
    "LastGradient",
    "MicroAdamState",
    "MultiMomentumState",
    "NormFilteredMean",
    "OASISState",
    "OnlineCounterexample",
    "OnlineSubspaceState",
    "OptAMSGradState",
    "OrthonormalProjector",
    "Projection",
    "Quantized4Bit",
    "RunningMean",
    "SANIAState",
    "SVDProjector",
    "ScaleByAdEMAMixState",
    "ScaleByAdaBeliefState",
    "ScaleByAdaHessianState",
    "ScaleByAdamNCState",
    "ScaleByAdamPState",
    "ScaleByAdanState",
    "ScaleByEXAdamState",
    "ScaleByMultiAdamState",
    "ScaleBySGDPState",
    "SinhProblem",
    "SubsetNormState",
    "TopNormProjector",
    "WeightSwitchState",
    "adabelief",
    "adabound",
    "adadagrad",
    "adadagrad_norm",
    "adafactor",
    "adahessian",
    "adam_gs",
    "adam_sn",
    "adam_snsm",
    "adamnc",
    "adamp",
    "adan",
    "ademamix",
    "affine_noise",
    "alpha_schedule",
    "amsbound",
    "amsgrad",
    "aswa",
    "averaged_params",
    "badam",
    "batch_size_test",
    "blocks_by_layer",
    "cluster_grads",
    "dequantize_4bit",
    "discover_igt",
    "discover_qhm",
    "discover_sgd",
    "discover_sgdm",
    "egn",
    "exadam",
    "fit_adaptive_batch",
    "flat_jacobian",
    "gauss_newton_direction",
    "grouped_grads",
    "hessian_vector_product",
    "hutchinson_diag",
    "jaccard_topk",
    "log_beta3_schedule",
    "lookahead_params",
    "microadam",
    "multi_momentum",
    "multiadam",
    "newton_direction",
    "oasis",
    "online_subspace_descent",
    "opt_amsgrad",
    "per_sample_grads",
    "prediction_std",
    "project_radial",
    "project_updates",
    "quantize_4bit",
    "relative_entropy",
    "relative_step_size",
    "restart_adan",
    "rmpe",
    "rmsprop_gs",
    "sania",
    "scale_by_adabelief",
    "scale_by_adahessian",
    "scale_by_adamnc",
    "scale_by_adamp",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_exadam",
    "scale_by_igt",
    "scale_by_multiadam",
    "scale_by_qhm",
    "scale_by_sgdp",
    "sgdp",
    "sinh_problem",
    "spatial_average",
    "subset_norm",
    "subspace_gradient",
    "subspace_loss",
    "subspace_momentum",
    "switch_ema",
    "theory_hyperparams",
    "topk_blocks",
    "truncated_cg",
    "value_and_block_grad",
    "weight_switch",
    "weighted_projection",
]
