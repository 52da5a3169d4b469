"""The methods of the textbook on convex optimization, each with its theorem as a number.

`guarantee(method, steps, Constants(...))` is the bound that a method's theorem gives, also of the
landed ones (`ProximalGradient`, `FISTA`, `FrankWolfe`, ...).

In few unknowns, by cuts through the center of what is left, with `Solution.gap` a proof:

- `Ellipsoid`: the simplest; `Vaidya`: the fewest cuts; `CenterOfGravity`: the best rate, exact in
  two unknowns (`PolygonCentroid`), by random walks in more (`SampledCentroid`).
- Sets are known by a `ProjectionOracle` or a `FunctionOracle`.

By random walks in a convex body, a `Polytope`, a `Ball` or a `ConvexBody`:

- `hit_and_run` draws from it; `SimulatedAnnealing` minimizes by values.

Over signs, by semidefinite relaxations and random hyperplanes:

- `max_cut`, `max_quadratic_form`; relaxations are `ExactRelaxation` and `BurerMonteiro`, results
  `RoundedSigns`.

Their contracts for others are `AbstractSeparationOracle`, `AbstractCentroid`, `AbstractBody`,
`AbstractRelaxation`.
"""

from .centroid import AbstractCentroid, PolygonCentroid
from .cutting_plane import (
    AbstractSeparationOracle,
    CenterOfGravity,
    Ellipsoid,
    FunctionOracle,
    ProjectionOracle,
    Vaidya,
)
from .guarantee import Constants, guarantee
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

__all__ = [
    "AbstractBody",
    "AbstractCentroid",
    "AbstractRelaxation",
    "AbstractSeparationOracle",
    "Ball",
    "BurerMonteiro",
    "CenterOfGravity",
    "Constants",
    "ConvexBody",
    "Ellipsoid",
    "ExactRelaxation",
    "FunctionOracle",
    "PolygonCentroid",
    "Polytope",
    "ProjectionOracle",
    "RoundedSigns",
    "SampledCentroid",
    "SimulatedAnnealing",
    "Vaidya",
    "guarantee",
    "hit_and_run",
    "max_cut",
    "max_quadratic_form",
]
