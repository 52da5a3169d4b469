"""Differentiable solvers for JAX.

Families are loaded on first use, so importing the package stays cheap.

- `core`: problems, `solve`, adjoints, objectives, checkpoints.
- `prox`: functions with a value and a proximal operator.
- `fixed_point`: Picard, Krasnosel'skii-Mann, Anderson, Halpern.
- `linalg`: matrix functions, updates, solvers for sequences of systems.
- `minimize`: gradient, proximal, coordinate, projection-free, second-order and conic methods.
- `bilevel`: hyperparameters and meta-learning; single-loop methods and hypergradients.
- `games`: saddle points, equilibria, variational inequalities.
- `stochastic`: variance reduction and models from minibatches.
- `multiobjective`: several objectives at once, conflicting gradients made one.
- `splitting`: ADMM, Douglas-Rachford, primal-dual, quadratic programs.
- `optimizers`: gradient transformations for `optax`.
- `distributed`: graphs, networks and decentralized algorithms.
- `training`: quantized networks and what trains them.
- `diffusion`: samplers. `estimators`: models with `fit`.
- `plots`: pictures of what these return.
"""

import importlib
from typing import TYPE_CHECKING

from .core import *  # noqa: F403
from .core import __all__ as _core_all

_FAMILIES = (
    "adapters",
    "bilevel",
    "catalog",
    "core",
    "diffusion",
    "distributed",
    "estimators",
    "fixed_point",
    "games",
    "linalg",
    "minimize",
    "multiobjective",
    "optimizers",
    "plots",
    "prox",
    "splitting",
    "stochastic",
    "training",
)

if TYPE_CHECKING:
    from . import (
        adapters as adapters,
        bilevel as bilevel,
        catalog as catalog,
        core as core,
        diffusion as diffusion,
        distributed as distributed,
        estimators as estimators,
        fixed_point as fixed_point,
        games as games,
        linalg as linalg,
        minimize as minimize,
        multiobjective as multiobjective,
        optimizers as optimizers,
        plots as plots,
        prox as prox,
        splitting as splitting,
        stochastic as stochastic,
        training as training,
    )

__version__ = "0.1.0"
__all__ = [*_core_all, *_FAMILIES]


def __getattr__(name: str):
    if name in _FAMILIES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FAMILIES])
