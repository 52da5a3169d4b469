"""Equilibria of games, saddle points and variational inequalities.

The problems are the inclusions of `core`: `MinMax`, `Game`, `VariationalInequality`, `Inclusion`.

- `Extragradient`: two evaluations of the map a step, and the largest steps; begin here.
- `OptimisticGradient`, `ForwardReflectedBackward`: one evaluation a step, with half the step size.
- `AnchoredExtragradient`: the best worst-case rate of the last iterate on problems that are merely
  monotone; on most others slower.
- `GradientDescentAscent`: what does not converge without strong monotonicity, to compare with.
- `AcceleratedLinearizedPrimalDual`: saddle points that are strongly concave on one side, with a
  smooth part on the other that is looked at once a step; `InexactAcceleratedPrimalDual` where the
  coupling is cheap and bends, `LinearizedPrimalDual` to compare with. `penalty_problem` makes one
  of inequalities.
- `MirrorProxBatch`: saddle points by function values alone, a method of `minimize.ZerothOrder`.
- `measures`: how far a point is from an equilibrium.
"""

from . import measures
from .extragradient import (
    AnchoredExtragradient,
    Extragradient,
    ForwardReflectedBackward,
    GradientDescentAscent,
    OptimisticGradient,
)
from .primal_dual import (
    AcceleratedLinearizedPrimalDual,
    InexactAcceleratedPrimalDual,
    LinearizedPrimalDual,
    LipschitzConstants,
    penalty_problem,
)
from .zeroth_order import MirrorProxBatch

__all__ = [
    "AcceleratedLinearizedPrimalDual",
    "AnchoredExtragradient",
    "Extragradient",
    "ForwardReflectedBackward",
    "GradientDescentAscent",
    "InexactAcceleratedPrimalDual",
    "LinearizedPrimalDual",
    "LipschitzConstants",
    "MirrorProxBatch",
    "OptimisticGradient",
    "measures",
    "penalty_problem",
]
