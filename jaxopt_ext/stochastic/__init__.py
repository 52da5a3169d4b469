"""Methods that look at minibatches, and at one block or one model at a time.

They take `FiniteSum`, `Expectation` and problems with one smooth part; a step is a minibatch, and
their states count `samples`. `solve` ends at the step limit unless a method has full gradients.

- `StochasticGradient`: proximal steps with any of `estimators`; begin here.
- `NormalizedGradientDescent`, `SPIDER`: steps of normalized length, for quartics and exponentials;
  `NormalizedSGD`, `ClippedSGD` without variance reduction; `generalized_smooth_step`.
- `StochasticModelBased`: a model of one sample's loss in each step, for kinks and weakly convex
  losses, with `Subgradient`, `ProxLinear` (of a `ComposedLoss`), `ProximalPoint`, `Truncated`;
  `HorizonPenalty`, `GrowingPenalty`; `phase_retrieval_prox`; `moreau_gradient` measures it.
- `OnlineToNonconvex`: an online learner chooses the steps, for functions neither smooth nor convex:
  `BallGradientDescent`, `OptimisticBall`, `BoxGradientDescent`, `BoxAdaGrad`, or your own
  `AbstractLearner`; `UniformPoint`, `Midpoint` say where gradients are taken; `o2nc_parameters`
  has the theory's numbers, `goldstein_norm` measures what is found.
- `CyclicProximal`, `VarianceReducedCyclic`: one block after the other, in the `order` of
  `minimize.Cyclic` or `Backward`; `cyclic_step`, `mahalanobis_constant`, `quadratic_constants`.
- Which iterate is returned: `Last`, `Average`, `RandomIterate`, `LeastGradient`.
- `estimators`: `SVRG`, `SPIDER`, `PAGE`, `STORM` and plain ones; `MSVR` for tables.
- `phase_retrieval`, `chi2_dro`, `robust_phase_retrieval`, `blind_deconvolution`,
  `covariance_sketch`: problems that they are measured on.
"""

from . import estimators
from .cyclic_block import (
    CyclicProximal,
    VarianceReducedCyclic,
    cyclic_step,
    mahalanobis_constant,
    quadratic_constants,
)
from .descent import StochasticGradient
from .examples import (
    blind_deconvolution,
    chi2_dro,
    covariance_sketch,
    phase_retrieval,
    robust_phase_retrieval,
)
from .learners import (
    AbstractLearner,
    BallGradientDescent,
    BoxAdaGrad,
    BoxGradientDescent,
    OptimisticBall,
)
from .model_based import (
    AbstractModel,
    ComposedLoss,
    GrowingPenalty,
    HorizonPenalty,
    ProximalPoint,
    ProxLinear,
    StochasticModelBased,
    Subgradient,
    Truncated,
    moreau_gradient,
    phase_retrieval_prox,
)
from .online_to_nonconvex import (
    Midpoint,
    OnlineToNonconvex,
    UniformPoint,
    goldstein_norm,
    o2nc_parameters,
)
from .outputs import AbstractOutput, Average, Last, LeastGradient, RandomIterate
from .partition import Backward
from .spider import (
    SPIDER,
    ClippedSGD,
    NormalizedGradientDescent,
    NormalizedSGD,
    generalized_smooth_step,
)

__all__ = [
    "SPIDER",
    "AbstractLearner",
    "AbstractModel",
    "AbstractOutput",
    "Average",
    "Backward",
    "BallGradientDescent",
    "BoxAdaGrad",
    "BoxGradientDescent",
    "ClippedSGD",
    "ComposedLoss",
    "CyclicProximal",
    "GrowingPenalty",
    "HorizonPenalty",
    "Last",
    "LeastGradient",
    "Midpoint",
    "NormalizedGradientDescent",
    "NormalizedSGD",
    "OnlineToNonconvex",
    "OptimisticBall",
    "ProxLinear",
    "ProximalPoint",
    "RandomIterate",
    "StochasticGradient",
    "StochasticModelBased",
    "Subgradient",
    "Truncated",
    "UniformPoint",
    "VarianceReducedCyclic",
    "blind_deconvolution",
    "chi2_dro",
    "covariance_sketch",
    "cyclic_step",
    "estimators",
    "generalized_smooth_step",
    "goldstein_norm",
    "mahalanobis_constant",
    "moreau_gradient",
    "o2nc_parameters",
    "phase_retrieval",
    "phase_retrieval_prox",
    "quadratic_constants",
    "robust_phase_retrieval",
]
