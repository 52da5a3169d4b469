"""Minimization of smooth and composite functions.

Smooth:

- `GradientDescent`, with `wolfe_line_search` or a line search of `optax`. Quasi-Newton methods come
  from `optax` and `optimistix`: `solve` takes their objects as they are.

Smooth plus proximable, or over a set one can project on:

- `FISTA`: the default choice; accelerated, restarted, backtracking.
- `ProximalGradient`: its plain form; on a `Constrained` problem, projected gradient.
- `BlockCoordinateDescent`: sparse linear models, with `Cyclic`, `Shuffled` or `Random` order;
  `GreedyCoordinateDescent`: very sparse ones.
- `MirrorDescent`: geometries other than the Euclidean, the simplex above all.

Over a set with a linear oracle:

- `FrankWolfe`: any set, slow tail. `AwayFrankWolfe`, `PairwiseFrankWolfe`: polytopes, linear rate.

Conic programs (linear, second-order cones, matrix inequalities):

- `InteriorPoint`, with the paths `PredictorCorrector`, `LongStep`, `ShortStep`: accurate, certifies
  infeasible and unbounded programs.

Step sizes are objects, `Backtracking`, `FixedStep`; so are orders of coordinates and geometries.
Their contracts for others are `AbstractStepSize`, `AbstractSelection`, `AbstractMirrorMap`,
`AbstractPath`.
"""

from .block_coordinate import (
    AbstractSelection,
    BlockCoordinateDescent,
    Cyclic,
    GreedyCoordinateDescent,
    Random,
    Shuffled,
)
from .frank_wolfe import AwayFrankWolfe, FrankWolfe, PairwiseFrankWolfe
from .gradient_descent import GradientDescent
from .interior_point import (
    AbstractPath,
    InteriorPoint,
    LongStep,
    PredictorCorrector,
    ShortStep,
)
from .line_search import wolfe_line_search
from .mirror_descent import (
    AbstractMirrorMap,
    EntropicOrthant,
    EntropicSimplex,
    Euclidean,
    MirrorDescent,
)
from .proximal_gradient import FISTA, ProximalGradient
from .step_size import AbstractStepSize, Backtracking, FixedStep

__all__ = [
    "FISTA",
    "AbstractMirrorMap",
    "AbstractPath",
    "AbstractSelection",
    "AbstractStepSize",
    "AwayFrankWolfe",
    "Backtracking",
    "BlockCoordinateDescent",
    "Cyclic",
    "EntropicOrthant",
    "EntropicSimplex",
    "Euclidean",
    "FixedStep",
    "FrankWolfe",
    "GradientDescent",
    "GreedyCoordinateDescent",
    "InteriorPoint",
    "LongStep",
    "MirrorDescent",
    "PairwiseFrankWolfe",
    "PredictorCorrector",
    "ProximalGradient",
    "Random",
    "ShortStep",
    "Shuffled",
    "wolfe_line_search",
]
