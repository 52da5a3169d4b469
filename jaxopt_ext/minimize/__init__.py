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
- `ACODER`: cyclic blocks, accelerated; `VRACODER`: the same on finite sums, by minibatches.
- `NonconvexAGD`: SCAD and MCP, with `sparse_path` along a sequence of penalties.
- `MirrorDescent`: geometries other than the Euclidean, the simplex above all.

Over a set with a linear oracle:

- `FrankWolfe`: any set, slow tail. `AwayFrankWolfe`, `PairwiseFrankWolfe`: polytopes, linear rate.

Systems of equations with bounds on the unknowns:

- `ScaledDogleg`, with the scaling matrices `ColemanLi`, `KanzowKlug`, `HeinkenschlossUlbrich`,
  `HagerMairZhang` and `ConvexCombination`.

Conic programs (linear, second-order cones, matrix inequalities):

- `InteriorPoint`, with the paths `PredictorCorrector`, `LongStep`, `ShortStep`: accurate, certifies
  infeasible and unbounded programs.

Strictly convex functions over more half-spaces than one can write down:

- `ProjectAndForget`, by `solve` for quadratic programs of which few rows matter;
  `project_with_oracle` for half-spaces that only an oracle knows, on the host: `ShortestPathOracle`
  (by `FloydWarshall` or `Dijkstra`), `RandomTriangleOracle`, `ListOracle`, with the functions
  `Quadratic`, `MatrixQuadratic`, `Entropy`, `LogDet`. `HalfSpaces` and `Pairs` are their rows;
  `ForgetInactive` and `ForgetAll` say what stays on the list.
- `metric_nearness` with `SquaredError`, `RelativeEntropy`, `AbsoluteError` or `LargestError`;
  `correlation_clustering`, its relaxation; `itml`, Mahalanobis distances from pairs.

By function values alone, many minima or kinks:

- `ConsensusBased`: particles that drift to their consensus point, with `Anisotropic` or `Isotropic`
  noise. `ConsensusHopping`: fresh samples around it, close to a proximal step. `laplace_mean` is
  the consensus point of both.

Step sizes are objects, `Backtracking`, `FixedStep`; so are orders of coordinates and geometries.
Their contracts for others are `AbstractStepSize`, `AbstractSelection`, `AbstractMirrorMap`,
`AbstractPath`; of Project and Forget `AbstractBregman`, `AbstractSeparable`, `AbstractRows`,
`AbstractSeparation`, `AbstractForgetting`, `AbstractDiscrepancy`.
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
    GreedyCoordinateDescent,
    Random,
    Shuffled,
)
from .bregman import (
    AbstractBregman,
    AbstractRows,
    AbstractSeparable,
    Entropy,
    HalfSpaces,
    LogDet,
    MatrixQuadratic,
    MetricPoint,
    Pairs,
    Quadratic,
)
from .consensus_based import (
    AbstractNoise,
    Anisotropic,
    ConsensusBased,
    ConsensusHopping,
    Isotropic,
    laplace_mean,
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
from .project_and_forget import (
    AbsoluteError,
    AbstractDiscrepancy,
    AbstractForgetting,
    ForgetAll,
    ForgetInactive,
    LargestError,
    LearnedMetric,
    NearestMetric,
    ProjectAndForget,
    RelativeEntropy,
    RelaxedClustering,
    Remembered,
    SquaredError,
    correlation_clustering,
    itml,
    metric_nearness,
    project_with_oracle,
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
from .separation import (
    AbstractSeparation,
    Cuts,
    Dijkstra,
    FloydWarshall,
    ListOracle,
    RandomTriangleOracle,
    ShortestPathOracle,
    complete_graph,
    path_rows,
)
from .step_size import AbstractStepSize, Backtracking, FixedStep

__all__ = [
    "ACODER",
    "FISTA",
    "VRACODER",
    "AICNDamping",
    "AbsoluteError",
    "AbstractAveraging",
    "AbstractBregman",
    "AbstractDamping",
    "AbstractDiscrepancy",
    "AbstractForgetting",
    "AbstractHessian",
    "AbstractMirrorMap",
    "AbstractNoise",
    "AbstractOracle",
    "AbstractPath",
    "AbstractRegion",
    "AbstractRegularization",
    "AbstractRows",
    "AbstractScaling",
    "AbstractSelection",
    "AbstractSeparable",
    "AbstractSeparation",
    "AbstractStepSize",
    "AcceleratedCubicNewton",
    "AcceleratedTensor",
    "Anisotropic",
    "ArmijoDamping",
    "AwayFrankWolfe",
    "Backtracking",
    "BlockCoordinateDescent",
    "ColemanLi",
    "ConsensusBased",
    "ConsensusHopping",
    "ConvexCombination",
    "Cuts",
    "Cyclic",
    "DampedNewton",
    "DenseHessian",
    "Dijkstra",
    "Elliptical",
    "EntropicOrthant",
    "EntropicSimplex",
    "Entropy",
    "Euclidean",
    "ExactDamping",
    "FixedDamping",
    "FixedStep",
    "FloydWarshall",
    "ForgetAll",
    "ForgetInactive",
    "FrankWolfe",
    "FullOracle",
    "GradientDescent",
    "GradientRegularization",
    "GreedyCoordinateDescent",
    "HagerMairZhang",
    "HalfSpaces",
    "HarmonicAveraging",
    "HeinkenschlossUlbrich",
    "HessianFree",
    "InteriorPoint",
    "Isotropic",
    "KanzowKlug",
    "LargestError",
    "LazyCubicNewton",
    "LearnedMetric",
    "ListOracle",
    "LocalRegularization",
    "LogDet",
    "LongStep",
    "MatrixQuadratic",
    "MetricPoint",
    "MirrorDescent",
    "NearestMetric",
    "NoisyOracle",
    "NonconvexAGD",
    "OptimalAveraging",
    "Pairs",
    "PairwiseFrankWolfe",
    "PredictorCorrector",
    "ProjectAndForget",
    "ProximalGradient",
    "Quadratic",
    "Random",
    "RandomTriangleOracle",
    "RegularizedNewton",
    "RelativeEntropy",
    "RelaxedClustering",
    "Remembered",
    "RootDamping",
    "ScaledDogleg",
    "ShortStep",
    "ShortestPathOracle",
    "Shuffled",
    "SparsePath",
    "SpeedRestart",
    "Spherical",
    "SquaredError",
    "SubsampledOracle",
    "SuperUniversalRegularization",
    "UniversalDamping",
    "complete_graph",
    "correlation_clustering",
    "itml",
    "laplace_mean",
    "marginal_slopes",
    "metric_nearness",
    "path_rows",
    "project_with_oracle",
    "sparse_path",
    "wolfe_line_search",
]
