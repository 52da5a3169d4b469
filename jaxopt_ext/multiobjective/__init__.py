"""Several objectives at once: one step from conflicting gradients.

The problem is `MultiObjective` of `core`.

- `JacobianDescent`: steps along an aggregate of all gradients, or of those of a few objectives.
  `UPGrad`, its own aggregator, reduces every objective, each at a rate of its gradient's length;
  `DualProj` projects only the mean.
- `aggregated_grad`: the same for a loss of each sample, in place of a gradient in any training
  loop; `gramian` needs no Jacobian.
- `Mean`, `MGDA`, `PCGrad`, `IMTLG`, `CAGrad`, `NashMTL`, `AlignedMTL`, `GradDrop`, `RandomWeights`:
  other aggregators. `MGDA` favours the shortest gradient, `CAGrad` and `PCGrad` stay near the mean,
  `NashMTL`, `IMTLG` do not see how long gradients are; `AlignedMTL` takes its scale from
  `smallest`, `lower_median` or `root_mean_square`.
- `dual_cone_weights`, `min_norm_weights`, `nash_weights`: the small programs behind them.
- `AbstractJacobianAggregator`, `AbstractWeighting`: the contract of new ones.
"""

from ..core.gram import min_norm_weights
from .aggregator import AbstractJacobianAggregator, AbstractWeighting
from .baselines import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    GradDrop,
    Mean,
    NashMTL,
    PCGrad,
    RandomWeights,
    lower_median,
    root_mean_square,
    smallest,
)
from .gram import dual_cone_weights, nash_weights
from .jacobian_descent import DualProj, JacobianDescent, UPGrad, aggregated_grad, gramian

__all__ = [
    "IMTLG",
    "MGDA",
    "AbstractJacobianAggregator",
    "AbstractWeighting",
    "AlignedMTL",
    "CAGrad",
    "DualProj",
    "GradDrop",
    "JacobianDescent",
    "Mean",
    "NashMTL",
    "PCGrad",
    "RandomWeights",
    "UPGrad",
    "aggregated_grad",
    "dual_cone_weights",
    "gramian",
    "lower_median",
    "min_norm_weights",
    "nash_weights",
    "root_mean_square",
    "smallest",
]
