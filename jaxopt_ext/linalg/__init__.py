"""Matrix functions, updates of decompositions, and linear solvers for sequences of systems.

- `SOR`, `SSORCG`: over-relaxation and conjugate gradients preconditioned by it, as `lineax`
  solvers; `Coloring` makes their sweeps parallel, `optimal_omega` is Young's. `solve_sequence`
  learns the relaxation along a sequence of systems, by a policy: `TsallisINF` without contexts,
  `ChebCB` with a smooth dependence on one, `Binned` with any; `Fixed` to compare with.
"""

from .omega_learning import AbstractPolicy, Binned, ChebCB, Fixed, TsallisINF
from .sor import SOR, SSORCG, Coloring, SequenceResult, optimal_omega, solve_sequence

__all__ = [
    "SOR",
    "SSORCG",
    "AbstractPolicy",
    "Binned",
    "ChebCB",
    "Coloring",
    "Fixed",
    "SequenceResult",
    "TsallisINF",
    "optimal_omega",
    "solve_sequence",
]
