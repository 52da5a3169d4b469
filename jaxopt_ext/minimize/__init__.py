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
- `GreedyBlockCoordinateDescent`: blocks chosen by their promise, from partitions (`FixedBlocks`,
  `GivenBlocks`, `VariableBlocks`, `ForestBlocks`), rules (`GS`, `GSL`, `GSD`, `GSDH`, `GSQ`,
  `GSQIHT`) and updates; `TwoMetricUpdate` ends in Newton's steps on the support. Sparse quadratics
  are a `GraphQuadratic`, of which `forest_solver` solves blocks without cycles exactly.

Over a set with a linear oracle:

- `FrankWolfe`: any set, slow tail. `AwayFrankWolfe`, `PairwiseFrankWolfe`: polytopes, linear rate.

Conic programs (linear, second-order cones, matrix inequalities):

- `InteriorPoint`, with the paths `PredictorCorrector`, `LongStep`, `ShortStep`: accurate, certifies
  infeasible and unbounded programs.

Under smooth constraints:

- `AugmentedLagrangian`: equations, inequalities and bounds, by a solver of smooth functions.
- `SketchedSQP`: equations, by Newton steps from random sketches, globally convergent; `ExactSQP`
  with the `DirectSolve` of its systems. `DenseRegularity` forms the matrix, `LanczosRegularity` and
  `GivenRegularity` do not.

Systems of equations with bounds on the unknowns:

- `ScaledDogleg`, with the scaling matrices `ColemanLi`, `KanzowKlug`, `HeinkenschlossUlbrich`,
  `HagerMairZhang` and `ConvexCombination`.

Lipschitz constants of networks:

- `lipschitz_bound`: the least that quadratic constraints prove, a `LipschitzCertificate` for
  `verify`; `split_lipschitz_bound` for deep networks, `norm_product` and `sampled_lipschitz` from
  above and below. In the `EuclideanNorm` or the `MaximumNorm`, for layers `Affine`, `Residual`,
  `Implicit` with the activations `SlopeRestricted`, `GroupSort`, `MaxMin`, `Householder`, or
  `from_equinox`.

By function values alone, many minima or kinks:

- `ConsensusBased`: particles that drift to their consensus point, with `Anisotropic` or `Isotropic`
  noise. `ConsensusHopping`: fresh samples around it, close to a proximal step. `laplace_mean` is
  the consensus point of both.
- `ZerothOrder`: convex functions with kinks, smoothed over a ball by a `SphereSmoothing`. Methods
  are `AcceleratedBatch`, `MirrorBatch`, `Restarted`, and `games.MirrorProxBatch` for saddle points;
  `zeroth_order_plan` chooses radius, batch and steps. Directions are those of an `L2Sphere`,
  `L1Sphere` or `TangentSphere`, points those of a `uniform_simplex`. `SmoothedFunction` is for
  other solvers, `estimated_gradient` for those of `optax`.

Strictly convex functions over more half-spaces than one can write down:

- `ProjectAndForget`, by `solve` for quadratic programs of which few rows matter;
  `project_with_oracle` for half-spaces that only an oracle knows, on the host: `ShortestPathOracle`
  (by `FloydWarshall` or `Dijkstra`), `RandomTriangleOracle`, `ListOracle`, with the functions
  `Quadratic`, `MatrixQuadratic`, `Entropy`, `LogDet`. `HalfSpaces` and `Pairs` are their rows;
  `ForgetInactive` and `ForgetAll` say what stays on the list.
- `metric_nearness` with `SquaredError`, `RelativeEntropy`, `AbsoluteError` or `LargestError`;
  `correlation_clustering`, its relaxation; `itml`, Mahalanobis distances from pairs.

Ratios of functions:

- `FractionalCoordinateDescent`: `Direct` or `Parametric`, for the denominators of `denominators`,
  which are known along coordinates; its limits are better than critical points. `Dinkelbach`,
  `QuadraticTransform`: by another solver. `ProximalSubgradientRatio`: one proximal step each.

Of sets:

- `submodular`: differences of submodular functions, by `SubmodularDCA` and others.

With a theorem, and what it proves as a number:

- `textbook`: cutting planes and random walks in few unknowns, relaxations over signs, subgradients,
  mirror descent, dual averaging, mirror prox, geometric descent, saddle points, stochastic methods;
  `textbook.guarantee` of these and others.

Step sizes are objects, `Backtracking`, `FixedStep`; so are orders of coordinates and geometries.
Their contracts for others are `AbstractStepSize`, `AbstractSelection`, `AbstractMirrorMap`,
`AbstractPath`, `AbstractActivation`, `AbstractLayer`, `AbstractLipschitzNorm`,
`AbstractRegularity`.
"""

from . import denominators, submodular, textbook
from .accelerated_newton import (
    AbstractOracle,
    AcceleratedCubicNewton,
    AcceleratedTensor,
    FullOracle,
    NoisyOracle,
    SubsampledOracle,
)
from .acoder import ACODER, VRACODER
from .augmented_lagrangian import AugmentedLagrangian
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
from .lipsdp import (
    AbstractLipschitzNorm,
    EuclideanNorm,
    LipschitzCertificate,
    MaximumNorm,
    from_equinox,
    lipschitz_bound,
    norm_product,
    sampled_lipschitz,
    split_lipschitz_bound,
    verify,
)
from .lipsdp_layers import (
    AbstractActivation,
    AbstractLayer,
    Affine,
    GroupSort,
    Householder,
    Implicit,
    MaxMin,
    Residual,
    SlopeRestricted,
)
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
from .p_norm import PNorm
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
from .sketched_sqp import (
    AbstractRegularity,
    DenseRegularity,
    DirectSolve,
    ExactSQP,
    GivenRegularity,
    LanczosRegularity,
    SketchedSQP,
)
from .sphere import (
    AbstractSphere,
    L1Sphere,
    L2Sphere,
    SmoothedFunction,
    SphereSmoothing,
    TangentSphere,
    uniform_simplex,
)
from .step_size import AbstractStepSize, Backtracking, FixedStep
from .zeroth_order import (
    AbstractBatchMethod,
    AcceleratedBatch,
    MirrorBatch,
    Restarted,
    ValueOracle,
    ZerothOrder,
    ZerothOrderPlan,
    estimated_gradient,
    zeroth_order_plan,
)

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
    "AbsoluteError",
    "AbstractActivation",
    "AbstractArrangement",
    "AbstractAveraging",
    "AbstractBatchMethod",
    "AbstractBregman",
    "AbstractDamping",
    "AbstractDiscrepancy",
    "AbstractFixedPartition",
    "AbstractForgetting",
    "AbstractHessian",
    "AbstractLayer",
    "AbstractLipschitzNorm",
    "AbstractMirrorMap",
    "AbstractMode",
    "AbstractNoise",
    "AbstractOracle",
    "AbstractPartition",
    "AbstractPath",
    "AbstractRegion",
    "AbstractRegularity",
    "AbstractRegularization",
    "AbstractRows",
    "AbstractScaling",
    "AbstractScore",
    "AbstractSelection",
    "AbstractSeparable",
    "AbstractSeparation",
    "AbstractSphere",
    "AbstractStepSize",
    "AbstractUpdate",
    "AbstractVariablePartition",
    "AcceleratedBatch",
    "AcceleratedCubicNewton",
    "AcceleratedTensor",
    "Affine",
    "Anisotropic",
    "ArmijoDamping",
    "AugmentedLagrangian",
    "Averaged",
    "AwayFrankWolfe",
    "BacktrackedGradientUpdate",
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
    "DenseRegularity",
    "Dijkstra",
    "Dinkelbach",
    "Direct",
    "DirectSolve",
    "Elliptical",
    "EntropicOrthant",
    "EntropicSimplex",
    "Entropy",
    "Euclidean",
    "EuclideanNorm",
    "ExactDamping",
    "ExactSQP",
    "ExactUpdate",
    "FixedBlocks",
    "FixedDamping",
    "FixedStep",
    "FloydWarshall",
    "ForestBlocks",
    "ForestSolver",
    "ForestUpdate",
    "ForgetAll",
    "ForgetInactive",
    "FractionalCoordinateDescent",
    "FrankWolfe",
    "FullOracle",
    "GivenBlocks",
    "GivenRegularity",
    "GradientDescent",
    "GradientRegularization",
    "GradientUpdate",
    "GraphQuadratic",
    "GreedyBlockCoordinateDescent",
    "GreedyCoordinateDescent",
    "GreedyDecrease",
    "GroupSort",
    "HagerMairZhang",
    "HalfSpaces",
    "HarmonicAveraging",
    "HeinkenschlossUlbrich",
    "HessianFree",
    "Householder",
    "Implicit",
    "InOrder",
    "InteriorPoint",
    "Isotropic",
    "KanzowKlug",
    "L1Sphere",
    "L2Sphere",
    "LanczosRegularity",
    "LargestError",
    "LazyCubicNewton",
    "LearnedMetric",
    "LipschitzCertificate",
    "ListOracle",
    "LocalRegularization",
    "LogDet",
    "LongStep",
    "MatrixQuadratic",
    "MatrixUpdate",
    "MaxMin",
    "MaximumNorm",
    "MetricPoint",
    "MirrorBatch",
    "MirrorDescent",
    "NearestMetric",
    "NewtonUpdate",
    "NoisyOracle",
    "NonconvexAGD",
    "OptimalAveraging",
    "PNorm",
    "Pairs",
    "PairwiseFrankWolfe",
    "Parametric",
    "PredictorCorrector",
    "ProjectAndForget",
    "ProximalGradient",
    "ProximalSubgradientRatio",
    "Quadratic",
    "QuadraticTransform",
    "Random",
    "RandomTriangleOracle",
    "RegularizedNewton",
    "RelativeEntropy",
    "RelaxedClustering",
    "Remembered",
    "Residual",
    "Restarted",
    "RootDamping",
    "ScaledDogleg",
    "ShortStep",
    "ShortestPathOracle",
    "Shuffled",
    "SketchedSQP",
    "SlopeRestricted",
    "SmoothedFunction",
    "Sorted",
    "SparsePath",
    "SpeedRestart",
    "SphereSmoothing",
    "Spherical",
    "SquaredError",
    "SubsampledOracle",
    "SuperUniversalRegularization",
    "TangentSphere",
    "TwoMetricUpdate",
    "UniversalDamping",
    "ValueOracle",
    "VariableBlocks",
    "ZerothOrder",
    "ZerothOrderPlan",
    "complete_graph",
    "correlation_clustering",
    "denominators",
    "estimated_gradient",
    "forest_blocks",
    "forest_solver",
    "from_equinox",
    "greedy_forest",
    "itml",
    "laplace_mean",
    "lipschitz_bound",
    "marginal_slopes",
    "metric_nearness",
    "norm_product",
    "path_rows",
    "project_with_oracle",
    "red_black_blocks",
    "sampled_lipschitz",
    "sparse_path",
    "split_lipschitz_bound",
    "submodular",
    "textbook",
    "uniform_simplex",
    "verify",
    "wolfe_line_search",
    "zeroth_order_plan",
]
