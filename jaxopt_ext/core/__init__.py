"""Problems, solvers, the one loop, and derivatives of solutions.

- Problems: `Smooth`, `Composite`, `Constrained`, `LeastSquares`, `RootFinding`, `FixedPoint`,
  `Saddle`, `Splitting`, `QuadraticProgram`; their points `PrimalDual` and `SplitPoint`.
- Means over samples: `FiniteSum`, `Expectation`, drawn `WithReplacement` or `WithoutReplacement`;
  `minibatches` asks other problems in the same way.
- Constraints: `EqualityConstrained`, `NonlinearProgram` with its `Multipliers`,
  `BoundedRootFinding`; within `Bounds`. Ratios: `Fractional`.
- Several objectives: `MultiObjective`.
- States that are each computed from those before: `Feedforward`.
- A problem inside: `Bilevel`, `StochasticBilevel`; their `BilevelPoint`.
- Cones: `LinearProgram`, `SecondOrderConeProgram`, `LinearMatrixInequality`.
- Equilibria: `Inclusion`, `VariationalInequality`, `MinMax`, `Game`, `FiniteSumInclusion`, each an
  `AbstractInclusion`; `as_inclusion` makes one of others.
- `solve(problem, solver, x0)` returns a `Solution` with a `Status`.
- Derivatives: `ImplicitAdjoint` (default), `UnrolledAdjoint`, `OneStepAdjoint`; `attach` gives the
  implicit derivative to a solution found elsewhere.
- `AbstractSolver` and `AbstractSplittingSolver` are the contracts for new solvers.
- `objectives`: losses of linear models. `operators`: linear maps. `checkpoint`: saving trees.
  `distances`: between two samples of points.
  `loops`: loops that trace in `shard_map`. `ring`: the last points of a sequence.
"""

from . import checkpoint, checks, distances, loops, objectives, operators, progress, ring, tree
from .adjoint import AbstractAdjoint, ImplicitAdjoint, OneStepAdjoint, UnrolledAdjoint, attach
from .bilevel import Bilevel, BilevelPoint, StochasticBilevel
from .bounded_root import BoundedRootFinding
from .bounds import Bounds
from .closure import hoist
from .conic import LinearMatrixInequality, LinearProgram, SecondOrderConeProgram
from .feedforward import Feedforward
from .finite_sum import (
    AbstractExpectation,
    AbstractSampling,
    Expectation,
    FiniteSum,
    WithoutReplacement,
    WithReplacement,
    minibatches,
)
from .fractional import Fractional
from .inclusion import (
    AbstractInclusion,
    FiniteSumInclusion,
    Game,
    Inclusion,
    MinMax,
    VariationalInequality,
    as_inclusion,
)
from .linear import LeastSquaresFallback
from .multi_objective import MultiObjective
from .nonlinear_program import EqualityConstrained, Multipliers, NonlinearProgram
from .problem import (
    AbstractProblem,
    Composite,
    Constrained,
    FixedPoint,
    LeastSquares,
    PrimalDual,
    QuadraticProgram,
    RootFinding,
    Saddle,
    Smooth,
    SplitPoint,
    Splitting,
)
from .solution import Solution, Status
from .solve import solve
from .solver import AbstractSolver, AbstractSplittingSolver, Scalar, scalar_field

__all__ = [
    "AbstractAdjoint",
    "AbstractExpectation",
    "AbstractInclusion",
    "AbstractProblem",
    "AbstractSampling",
    "AbstractSolver",
    "AbstractSplittingSolver",
    "Bilevel",
    "BilevelPoint",
    "BoundedRootFinding",
    "Bounds",
    "Composite",
    "Constrained",
    "EqualityConstrained",
    "Expectation",
    "Feedforward",
    "FiniteSum",
    "FiniteSumInclusion",
    "FixedPoint",
    "Fractional",
    "Game",
    "ImplicitAdjoint",
    "Inclusion",
    "LeastSquares",
    "LeastSquaresFallback",
    "LinearMatrixInequality",
    "LinearProgram",
    "MinMax",
    "MultiObjective",
    "Multipliers",
    "NonlinearProgram",
    "OneStepAdjoint",
    "PrimalDual",
    "QuadraticProgram",
    "RootFinding",
    "Saddle",
    "Scalar",
    "SecondOrderConeProgram",
    "Smooth",
    "Solution",
    "SplitPoint",
    "Splitting",
    "Status",
    "StochasticBilevel",
    "UnrolledAdjoint",
    "VariationalInequality",
    "WithReplacement",
    "WithoutReplacement",
    "as_inclusion",
    "attach",
    "checkpoint",
    "checks",
    "distances",
    "hoist",
    "loops",
    "minibatches",
    "objectives",
    "operators",
    "progress",
    "ring",
    "scalar_field",
    "solve",
    "tree",
]
