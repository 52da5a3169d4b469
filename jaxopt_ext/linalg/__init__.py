"""Matrix functions, updates of decompositions, and linear solvers for sequences of systems.

- Square roots of positive definite matrices: `sqrtm`, `inverse_sqrtm`, `sqrtm_pair`, by `Pade`,
  `Taylor`, `NewtonSchulz` or `Eigh`, differentiated by `Lyapunov` or `Exact`; `root_residual` says
  how good one is. `whiten` takes the covariance out of samples.
"""

from .sqrtm import (
    AbstractRootDerivative,
    AbstractRootMethod,
    Eigh,
    Exact,
    Lyapunov,
    NewtonSchulz,
    Pade,
    Root,
    Taylor,
    inverse_sqrtm,
    root_residual,
    sqrtm,
    sqrtm_pair,
    whiten,
)

__all__ = [
    "AbstractRootDerivative",
    "AbstractRootMethod",
    "Eigh",
    "Exact",
    "Lyapunov",
    "NewtonSchulz",
    "Pade",
    "Root",
    "Taylor",
    "inverse_sqrtm",
    "root_residual",
    "sqrtm",
    "sqrtm_pair",
    "whiten",
]
