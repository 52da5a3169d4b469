"""The methods of the textbook on convex optimization, each with its theorem as a number.

`guarantee(method, steps, Constants(...))` is the bound that a method's theorem gives, also of the
landed ones (`ProximalGradient`, `FISTA`, `FrankWolfe`, ...).

In few unknowns, by cuts through the center of what is left, with `Solution.gap` a proof:

- `Ellipsoid`: the simplest; `Vaidya`: the fewest cuts; `CenterOfGravity`: the best rate, exact in
  two unknowns (`PolygonCentroid`), by random walks in more (`SampledCentroid`).
- Sets are known by a `ProjectionOracle` or a `FunctionOracle`.

Conic programs:

- `BarrierMethod`: the central path in the primal variables, from a point in the interior, which a
  `DampedApproach` or a `ReversedPath` leads to it. `InteriorPoint` is faster and needs no such
  point.

By random walks in a convex body, a `Polytope`, a `Ball` or a `ConvexBody`:

- `hit_and_run` draws from it; `SimulatedAnnealing` minimizes by values.

Over signs, by semidefinite relaxations and random hyperplanes:

- `max_cut`, `max_quadratic_form`; relaxations are `ExactRelaxation` and `BurerMonteiro`, results
  `RoundedSigns`.
- `ProjectedSubgradient`, `StronglyConvexSubgradient`: functions with kinks; both return an
  average, `UniformAverage`, `LinearAverage` or `BestPoint`.
- `StronglyConvexNesterov`: smooth and strongly convex, both constants known. `GeometricDescent`:
  with line searches, and a ball around the minimizer that certifies it.
- `HardestNonsmooth`, `HardestQuadratic`: functions on which no such method is faster.

Other geometries, those of `minimize` and `MatrixEntropy` on the `Spectrahedron`:

- `FixedMirrorDescent`, `DualAveraging`: kinks; with an L1 penalty that is not linearized.
- `MirrorProx`: smooth.

Saddle points:

- `SaddleMirrorDescent`: kinks. `SaddleMirrorProx`: smooth, a faster rate. `matrix_game`, a
  `MatrixGame`; `maximum_of` smooth functions; `linear_classification`.

By samples:

- `StochasticMirrorDescent`, `SmoothStochasticMirrorDescent`: any stream. `SVRG`: finite sums, a
  linear rate.
- `StochasticSaddleMirrorDescent`, `StochasticSaddleMirrorProx`: matrix games by drawn rows and
  columns.

Their contracts for others are `AbstractSeparationOracle`, `AbstractCentroid`, `AbstractBody`,
`AbstractRelaxation`.
"""

from .averaging import AbstractAverage, BestPoint, LinearAverage, UniformAverage
from .barrier import AbstractApproach, BarrierMethod, DampedApproach, ReversedPath
from .centroid import AbstractCentroid, PolygonCentroid
from .cutting_plane import (
    AbstractSeparationOracle,
    CenterOfGravity,
    Ellipsoid,
    FunctionOracle,
    ProjectionOracle,
    Vaidya,
)
from .gradient import (
    GeometricDescent,
    ProjectedSubgradient,
    StronglyConvexNesterov,
    StronglyConvexSubgradient,
)
from .lower_bound import HardestNonsmooth, HardestQuadratic
from .mirror import DualAveraging, FixedMirrorDescent, MirrorProx
from .random_walk import (
    AbstractBody,
    Ball,
    ConvexBody,
    Polytope,
    SampledCentroid,
    SimulatedAnnealing,
    hit_and_run,
)
from .rounding import (
    AbstractRelaxation,
    BurerMonteiro,
    ExactRelaxation,
    RoundedSigns,
    max_cut,
    max_quadratic_form,
)
from .saddle_point import (
    AbstractSampledObjective,
    MatrixGame,
    SaddleMirrorDescent,
    SaddleMirrorProx,
    linear_classification,
    matrix_game,
    maximum_of,
)
from .spectrahedron import MatrixEntropy, Spectrahedron
from .stochastic import (
    SVRG,
    SmoothStochasticMirrorDescent,
    StochasticMirrorDescent,
    StochasticSaddleMirrorDescent,
    StochasticSaddleMirrorProx,
)
from .theorem import Constants, guarantee

__all__ = [
    "SVRG",
    "AbstractApproach",
    "AbstractAverage",
    "AbstractBody",
    "AbstractCentroid",
    "AbstractRelaxation",
    "AbstractSampledObjective",
    "AbstractSeparationOracle",
    "Ball",
    "BarrierMethod",
    "BestPoint",
    "BurerMonteiro",
    "CenterOfGravity",
    "Constants",
    "ConvexBody",
    "DampedApproach",
    "DualAveraging",
    "Ellipsoid",
    "ExactRelaxation",
    "FixedMirrorDescent",
    "FunctionOracle",
    "GeometricDescent",
    "HardestNonsmooth",
    "HardestQuadratic",
    "LinearAverage",
    "MatrixEntropy",
    "MatrixGame",
    "MirrorProx",
    "PolygonCentroid",
    "Polytope",
    "ProjectedSubgradient",
    "ProjectionOracle",
    "ReversedPath",
    "RoundedSigns",
    "SaddleMirrorDescent",
    "SaddleMirrorProx",
    "SampledCentroid",
    "SimulatedAnnealing",
    "SmoothStochasticMirrorDescent",
    "Spectrahedron",
    "StochasticMirrorDescent",
    "StochasticSaddleMirrorDescent",
    "StochasticSaddleMirrorProx",
    "StronglyConvexNesterov",
    "StronglyConvexSubgradient",
    "UniformAverage",
    "Vaidya",
    "guarantee",
    "hit_and_run",
    "linear_classification",
    "matrix_game",
    "max_cut",
    "max_quadratic_form",
    "maximum_of",
]
