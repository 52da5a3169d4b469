"""Problems with a problem inside, for hyperparameters, data weights and initializations.

- In a single loop, lower levels that are only convex too: `BAMM`, with its weight `PowerDecay`,
  `HarmonicDecay` or `ConstantAveraging` (each an `AbstractAveraging`), its multiplier by an
  `ExactMultiplierStep` or fixed ones, in an `AbstractOrder`, `Simultaneous` or `Sequential`.
- Many blocks, a few in each step, each block with a lower level of its own (`MultiBlockBilevel` of
  `core`): `BSVRB`, `BSVRBHessian` for small ones, `RSVRB`, `BlockwiseSGD`; rows move as an
  `AbstractRowMoves`, `MeasuredRows` or `AllRows`.
- Meta-learning: `MAML`, `FirstOrderMAML`, `HessianFreeMAML` and `NonAdaptive`, each an
  `AbstractMetaMethod` over a `Task`, trained by `meta_train`, which returns `MetaTrained`. Whether
  it pays, in closed form: `LinearTask`, `hardness_mixture`, `adapted_covariance`,
  `maml_population_solution`, `nal_population_solution`, `excess_risk`.
- Hypergradients of a `Bilevel` of `core` at any point: `hypergradient` by a linear solve, `neumann`
  and `truncated_neumann` by a series, `unrolled` through gradient steps; made of `cross` and
  `hessian` products. Each returns a `Hypergradient`, which tells how far off the lower level is.
  `averaged` mixes the upper level into the lower. `descend` takes the steps.
- Over clients that differ, on a `distributed.Network`: `FedMBO`, and its baselines `FedNest` and
  `LocalHypergradient`. `federated_hypergradient` of `Clients` alone is by an `AbstractChain`,
  `ExchangedChains`, `AveragedChain` or `OwnChains`, and an `AbstractSeries`, `OwnTruncation`,
  `CommonTruncation` or `WholeSeries`.

Where the lower level has a solver, `jax.grad` of $F(x, \\mathrm{solve}(\\dots))$ is the
hypergradient too, and nothing here is needed.
"""

from .bamm import (
    BAMM,
    AbstractAveraging,
    AbstractOrder,
    ConstantAveraging,
    ExactMultiplierStep,
    HarmonicDecay,
    PowerDecay,
    Sequential,
    Simultaneous,
)
from .federated import (
    AbstractChain,
    AbstractSeries,
    AveragedChain,
    Clients,
    CommonTruncation,
    ExchangedChains,
    OwnChains,
    OwnTruncation,
    WholeSeries,
    federated_hypergradient,
)
from .fedmbo import FederatedState, FedMBO, FedNest, LocalHypergradient
from .hypergradient import (
    Hypergradient,
    averaged,
    cross,
    hessian,
    hypergradient,
    neumann,
    truncated_neumann,
    unrolled,
)
from .inner import descend
from .maml import (
    MAML,
    AbstractMetaMethod,
    FirstOrderMAML,
    HessianFreeMAML,
    LinearTask,
    MetaTrained,
    NonAdaptive,
    Task,
    adapted_covariance,
    excess_risk,
    hardness_mixture,
    maml_population_solution,
    meta_train,
    nal_population_solution,
)
from .multi_block import (
    BSVRB,
    RSVRB,
    AbstractRowMoves,
    AllRows,
    BlockwiseSGD,
    BSVRBHessian,
    MeasuredRows,
)

__all__ = [
    "BAMM",
    "BSVRB",
    "MAML",
    "RSVRB",
    "AbstractAveraging",
    "AbstractChain",
    "AbstractMetaMethod",
    "AbstractOrder",
    "AbstractRowMoves",
    "AbstractSeries",
    "AllRows",
    "AveragedChain",
    "BSVRBHessian",
    "BlockwiseSGD",
    "Clients",
    "CommonTruncation",
    "ConstantAveraging",
    "ExactMultiplierStep",
    "ExchangedChains",
    "FedMBO",
    "FedNest",
    "FederatedState",
    "FirstOrderMAML",
    "HarmonicDecay",
    "HessianFreeMAML",
    "Hypergradient",
    "LinearTask",
    "LocalHypergradient",
    "MeasuredRows",
    "MetaTrained",
    "NonAdaptive",
    "OwnChains",
    "OwnTruncation",
    "PowerDecay",
    "Sequential",
    "Simultaneous",
    "Task",
    "WholeSeries",
    "adapted_covariance",
    "averaged",
    "cross",
    "descend",
    "excess_risk",
    "federated_hypergradient",
    "hardness_mixture",
    "hessian",
    "hypergradient",
    "maml_population_solution",
    "meta_train",
    "nal_population_solution",
    "neumann",
    "truncated_neumann",
    "unrolled",
]
