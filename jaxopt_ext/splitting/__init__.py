"""Splitting methods: sums of functions, each touched through its prox alone.

- `ADMM`: $f(x) + g(z)$ with $Ax + Bz = c$; its updates `ProxUpdate`, `LinearizedUpdate`,
  `QuadraticUpdate`, `InexactUpdate`; its penalties `SpectralBalance`, `ResidualBalance`;
  `consensus` for data in parts.
- `DouglasRachford`: $f(x) + g(x)$, both with a prox.
- `PrimalDualHybridGradient`: $f(x) + g(Kx)$, no linear solve.
- `OSQP`: quadratic programs.
"""

from .admm import ADMM, Stacked, consensus
from .douglas_rachford import DouglasRachford
from .osqp import OSQP
from .penalty import AbstractBalance, ResidualBalance, SpectralBalance
from .primal_dual import PrimalDualHybridGradient
from .subproblem import (
    AbstractUpdate,
    InexactUpdate,
    LinearizedUpdate,
    ProxUpdate,
    QuadraticUpdate,
)

__all__ = [
    "ADMM",
    "OSQP",
    "AbstractBalance",
    "AbstractUpdate",
    "DouglasRachford",
    "InexactUpdate",
    "LinearizedUpdate",
    "PrimalDualHybridGradient",
    "ProxUpdate",
    "QuadraticUpdate",
    "ResidualBalance",
    "SpectralBalance",
    "Stacked",
    "consensus",
]
