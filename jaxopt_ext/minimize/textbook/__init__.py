"""The methods of the textbook on convex optimization, each with its theorem as a number.

`guarantee(method, steps, Constants(...))` is the bound that a method's theorem gives, also of the
landed ones (`ProximalGradient`, `FISTA`, `FrankWolfe`, ...).

Rates without a dimension:

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

Contracts for others are `AbstractAverage` and `AbstractSampledObjective`.
"""

from .averaging import AbstractAverage, BestPoint, LinearAverage, UniformAverage
from .gradient import (
    GeometricDescent,
    ProjectedSubgradient,
    StronglyConvexNesterov,
    StronglyConvexSubgradient,
)
from .lower_bound import HardestNonsmooth, HardestQuadratic
from .mirror import DualAveraging, FixedMirrorDescent, MirrorProx
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
    "AbstractAverage",
    "AbstractSampledObjective",
    "BestPoint",
    "Constants",
    "DualAveraging",
    "FixedMirrorDescent",
    "GeometricDescent",
    "HardestNonsmooth",
    "HardestQuadratic",
    "LinearAverage",
    "MatrixEntropy",
    "MatrixGame",
    "MirrorProx",
    "ProjectedSubgradient",
    "SaddleMirrorDescent",
    "SaddleMirrorProx",
    "SmoothStochasticMirrorDescent",
    "Spectrahedron",
    "StochasticMirrorDescent",
    "StochasticSaddleMirrorDescent",
    "StochasticSaddleMirrorProx",
    "StronglyConvexNesterov",
    "StronglyConvexSubgradient",
    "UniformAverage",
    "guarantee",
    "linear_classification",
    "matrix_game",
    "maximum_of",
]
