"""Minimization of smooth and composite functions.

Smooth:

- `GradientDescent`, with `wolfe_line_search` or a line search of `optax`. Quasi-Newton methods come
  from `optax` and `optimistix`: `solve` takes their objects as they are.
- `DampedNewton`: convex functions whose Hessian one can afford; no constant to choose.
- `RegularizedNewton`: the same with singular Hessians; `period` steps to a Hessian.
- `AcceleratedCubicNewton`, `AcceleratedTensor`: the best worst case for convex functions, and
  Hessians of minibatches or with noise.
- `LazyCubicNewton`: functions that are not convex, `period` steps to a Hessian; leaves saddles.

Smooth plus proximable, or over a set one can project on:

- `FISTA`: the default choice; accelerated, restarted, backtracking.
- `ProximalGradient`: its plain form; on a `Constrained` problem, projected gradient.
- `BlockCoordinateDescent`: sparse linear models, with `Cyclic`, `Shuffled` or `Random` order;
  `GreedyCoordinateDescent`: very sparse ones.
- `GreedyBlockCoordinateDescent`: blocks chosen by their promise, from partitions (`FixedBlocks`,
  `GivenBlocks`, `VariableBlocks`, `ForestBlocks`), rules (`GS`, `GSL`, `GSD`, `GSDH`, `GSQ`,
  `GSQIHT`) and updates; `TwoMetricUpdate` ends in Newton's steps on the support. Sparse quadratics
  are a `GraphQuadratic`, of which `forest_solver` solves blocks without cycles exactly.
- `ACODER`: cyclic blocks, accelerated; `VRACODER`: the same on finite sums, by minibatches.
- `NonconvexAGD`: SCAD and MCP, with `sparse_path` along a sequence of penalties.
- `MirrorDescent`: geometries other than the Euclidean, the simplex above all.

Over a set with a linear oracle:

- `FrankWolfe`: any set, slow tail. `AwayFrankWolfe`, `PairwiseFrankWolfe`: polytopes, linear rate.

Ratios of functions:

- `FractionalCoordinateDescent`: `Direct` or `Parametric`, for denominators that are known along
  coordinates (`SumOfMagnitudes`, `SumOfLargest`, `Affine`, ...); its limits are better than
  critical points. `Dinkelbach`, `QuadraticTransform`: by another solver.
  `ProximalSubgradientRatio`: one proximal step each.

Systems of equations with bounds on the unknowns:

- `ScaledDogleg`, with the scaling matrices `ColemanLi`, `KanzowKlug`, `HeinkenschlossUlbrich`,
  `HagerMairZhang` and `ConvexCombination`.

Conic programs (linear, second-order cones, matrix inequalities):

- `InteriorPoint`, with the paths `PredictorCorrector`, `LongStep`, `ShortStep`: accurate, certifies
  infeasible and unbounded programs.

By function values alone, many minima or kinks:

- `ConsensusBased`: particles that drift to their consensus point, with `Anisotropic` or `Isotropic`
  noise. `ConsensusHopping`: fresh samples around it, close to a proximal step. `laplace_mean` is
  the consensus point of both.

Step sizes are objects, `Backtracking`, `FixedStep`; so are orders of coordinates and geometries.
Their contracts for others are `AbstractStepSize`, `AbstractSelection`, `AbstractMirrorMap`,
`AbstractPath`.
"""

from .accelerated_newton import (
    AbstractOracle,
    AcceleratedCubicNewton,
    AcceleratedTensor,
    FullOracle,
    NoisyOracle,
    SubsampledOracle,
)
from .acoder import ACODER, VRACODER
from .block_coordinate import (
    AbstractSelection,
    BlockCoordinateDescent,
    Cyclic,
    GreedyBlockCoordinateDescent,
    GreedyCoordinateDescent,
    Random,
    Shuffled,
)
from .block_rules import (
    GS,
    GSD,
    GSDH,
    GSL,
    GSQ,
    GSQIHT,
    AbstractArrangement,
    AbstractFixedPartition,
    AbstractPartition,
    AbstractScore,
    AbstractVariablePartition,
    Averaged,
    FixedBlocks,
    ForestBlocks,
    GivenBlocks,
    InOrder,
    Sorted,
    VariableBlocks,
)
from .block_updates import (
    AbstractUpdate,
    BacktrackedGradientUpdate,
    ExactUpdate,
    ForestUpdate,
    GradientUpdate,
    MatrixUpdate,
    NewtonUpdate,
    TwoMetricUpdate,
)
from .consensus_based import (
    AbstractNoise,
    Anisotropic,
    ConsensusBased,
    ConsensusHopping,
    Isotropic,
    laplace_mean,
)
from .denominators import (
    AbstractDenominator,
    Affine,
    EuclideanNorm,
    FourNorm,
    LargestMagnitude,
    LeastAffine,
    RootOfQuadratic,
    SquaredEuclideanNorm,
    SquaredFourNorm,
    SquaredSumOfMagnitudes,
    SumOfLargest,
    SumOfMagnitudes,
)
from .forest import (
    ForestSolver,
    GraphQuadratic,
    forest_blocks,
    forest_solver,
    greedy_forest,
    red_black_blocks,
)
from .fractional import (
    AbstractMode,
    Dinkelbach,
    Direct,
    FractionalCoordinateDescent,
    GreedyDecrease,
    Parametric,
    ProximalSubgradientRatio,
    QuadraticTransform,
)
from .frank_wolfe import AwayFrankWolfe, FrankWolfe, PairwiseFrankWolfe
from .gradient_descent import GradientDescent
from .interior_point import AbstractPath, InteriorPoint, LongStep, PredictorCorrector, ShortStep
from .line_search import wolfe_line_search
from .mirror_descent import (
    AbstractMirrorMap,
    EntropicOrthant,
    EntropicSimplex,
    Euclidean,
    MirrorDescent,
)
from .newton import (
    AbstractDamping,
    AbstractHessian,
    AbstractRegularization,
    AICNDamping,
    ArmijoDamping,
    DampedNewton,
    DenseHessian,
    ExactDamping,
    FixedDamping,
    GradientRegularization,
    HessianFree,
    LazyCubicNewton,
    LocalRegularization,
    RegularizedNewton,
    RootDamping,
    SuperUniversalRegularization,
    UniversalDamping,
)
from .nonconvex_agd import (
    AbstractAveraging,
    HarmonicAveraging,
    NonconvexAGD,
    OptimalAveraging,
    SparsePath,
    SpeedRestart,
    marginal_slopes,
    sparse_path,
)
from .proximal_gradient import FISTA, ProximalGradient
from .scaled_trust_region import (
    AbstractRegion,
    AbstractScaling,
    ColemanLi,
    ConvexCombination,
    Elliptical,
    HagerMairZhang,
    HeinkenschlossUlbrich,
    KanzowKlug,
    ScaledDogleg,
    Spherical,
)
from .step_size import AbstractStepSize, Backtracking, FixedStep

__all__ = [
    "ACODER",
    "FISTA",
    "GS",
    "GSD",
    "GSDH",
    "GSL",
    "GSQ",
    "GSQIHT",
    "VRACODER",
    "AICNDamping",
    "AbstractArrangement",
    "AbstractAveraging",
    "AbstractDamping",
    "AbstractDenominator",
    "AbstractFixedPartition",
    "AbstractHessian",
    "AbstractMirrorMap",
    "AbstractMode",
    "AbstractNoise",
    "AbstractOracle",
    "AbstractPartition",
    "AbstractPath",
    "AbstractRegion",
    "AbstractRegularization",
    "AbstractScaling",
    "AbstractScore",
    "AbstractSelection",
    "AbstractStepSize",
    "AbstractUpdate",
    "AbstractVariablePartition",
    "AcceleratedCubicNewton",
    "AcceleratedTensor",
    "Affine",
    "Anisotropic",
    "ArmijoDamping",
    "Averaged",
    "AwayFrankWolfe",
    "BacktrackedGradientUpdate",
    "Backtracking",
    "BlockCoordinateDescent",
    "ColemanLi",
    "ConsensusBased",
    "ConsensusHopping",
    "ConvexCombination",
    "Cyclic",
    "DampedNewton",
    "DenseHessian",
    "Dinkelbach",
    "Direct",
    "Elliptical",
    "EntropicOrthant",
    "EntropicSimplex",
    "Euclidean",
    "EuclideanNorm",
    "ExactDamping",
    "ExactUpdate",
    "FixedBlocks",
    "FixedDamping",
    "FixedStep",
    "ForestBlocks",
    "ForestSolver",
    "ForestUpdate",
    "FourNorm",
    "FractionalCoordinateDescent",
    "FrankWolfe",
    "FullOracle",
    "GivenBlocks",
    "GradientDescent",
    "GradientRegularization",
    "GradientUpdate",
    "GraphQuadratic",
    "GreedyBlockCoordinateDescent",
    "GreedyCoordinateDescent",
    "GreedyDecrease",
    "HagerMairZhang",
    "HarmonicAveraging",
    "HeinkenschlossUlbrich",
    "HessianFree",
    "InOrder",
    "InteriorPoint",
    "Isotropic",
    "KanzowKlug",
    "LargestMagnitude",
    "LazyCubicNewton",
    "LeastAffine",
    "LocalRegularization",
    "LongStep",
    "MatrixUpdate",
    "MirrorDescent",
    "NewtonUpdate",
    "NoisyOracle",
    "NonconvexAGD",
    "OptimalAveraging",
    "PairwiseFrankWolfe",
    "Parametric",
    "PredictorCorrector",
    "ProximalGradient",
    "ProximalSubgradientRatio",
    "QuadraticTransform",
    "Random",
    "RegularizedNewton",
    "RootDamping",
    "RootOfQuadratic",
    "ScaledDogleg",
    "ShortStep",
    "Shuffled",
    "Sorted",
    "SparsePath",
    "SpeedRestart",
    "Spherical",
    "SquaredEuclideanNorm",
    "SquaredFourNorm",
    "SquaredSumOfMagnitudes",
    "SubsampledOracle",
    "SumOfLargest",
    "SumOfMagnitudes",
    "SuperUniversalRegularization",
    "TwoMetricUpdate",
    "UniversalDamping",
    "VariableBlocks",
    "forest_blocks",
    "forest_solver",
    "greedy_forest",
    "laplace_mean",
    "marginal_slopes",
    "red_black_blocks",
    "sparse_path",
    "wolfe_line_search",
]
