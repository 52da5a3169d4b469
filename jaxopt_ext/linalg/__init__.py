"""Matrix functions, updates of decompositions, and linear solvers for sequences of systems.

- Square roots of positive definite matrices: `sqrtm`, `inverse_sqrtm`, `sqrtm_pair`, by `Pade`,
  `Taylor`, `NewtonSchulz` or `Eigh`, differentiated by `Lyapunov` or `Exact`; `root_residual` says
  how good one is. `whiten` takes the covariance out of samples.
- `SOR`, `SSORCG`: over-relaxation and conjugate gradients preconditioned by it, as `lineax`
  solvers; `Coloring` makes their sweeps parallel, `optimal_omega` is Young's. `solve_sequence`
  learns the relaxation along a sequence of systems, by a policy: `TsallisINF` without contexts,
  `ChebCB` with a smooth dependence on one, `Binned` with any; `Fixed` to compare with.
- `lora_attention_loss`: the loss of an attention layer with `LowRankAdapter`s, and its gradient, in
  time almost linear in the length, for an `AdaptedAttention`; `attention_loss` is the exact one.
  `low_rank_attention` by `polynomial_features`; `degree_for` a `norm_bound` says of which degree,
  and `num_features` how many there are.
- `TruncatedSVD`: kept while a sparse matrix gets rows, columns or a change of low rank, in time
  that does not depend on its size; by `GramSchmidt`, exactly, or for wide updates by `Lanczos` or
  `RandomizedPower`.
- `KroneckerProjection`: $B^\\top (B B^\\top)^{-1} B h$ while the weights of a Kronecker product
  change, `OneSided` or `TwoSided`; `SketchedProjection` answers faster, and by a `PrivateMedian` of
  several sketches where queries depend on the answers before.
- `sketch_and_project`: systems by random combinations of their rows, a `GaussianSketch` or a
  `KaczmarzSketch`; matrix-free too.
"""

from .equivariant import (
    AbstractGroup,
    Diagram,
    EquivariantLinear,
    EquivariantMLP,
    InvariantGate,
    Orthogonal,
    SpecialOrthogonal,
    Symmetric,
    Symplectic,
    apply_diagram,
    brauer_diagrams,
    free_diagrams,
    partition_diagrams,
    spanning_matrix,
)
from .lora_gradient import (
    AdaptedAttention,
    LowRankAdapter,
    attention_loss,
    degree_for,
    lora_attention_loss,
    low_rank_attention,
    norm_bound,
    num_features,
    polynomial_features,
)
from .mlmc import (
    AbstractRowSampler,
    Estimate,
    ImportanceRows,
    MultilevelProduct,
    Pilot,
    UniformRows,
    doubling_sizes,
    energy_order,
    importance_product,
    uniform_product,
)
from .omega_learning import AbstractPolicy, Binned, ChebCB, Fixed, TsallisINF
from .projection_maintenance import (
    AbstractKroneckerForm,
    KroneckerProjection,
    OneSided,
    PrivateMedian,
    SketchedProjection,
    Statistics,
    TwoSided,
)
from .sketching import (
    AbstractSketch,
    GaussianSketch,
    KaczmarzSketch,
    Sketched,
    sketch_and_project,
)
from .sor import SOR, SSORCG, Coloring, SequenceResult, optimal_omega, solve_sequence
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
from .svd_update import AbstractAugmentation, GramSchmidt, Lanczos, RandomizedPower, TruncatedSVD

__all__ = [
    "SOR",
    "SSORCG",
    "AbstractAugmentation",
    "AbstractGroup",
    "AbstractKroneckerForm",
    "AbstractPolicy",
    "AbstractRootDerivative",
    "AbstractRootMethod",
    "AbstractRowSampler",
    "AbstractSketch",
    "AdaptedAttention",
    "Binned",
    "ChebCB",
    "Coloring",
    "Diagram",
    "Eigh",
    "EquivariantLinear",
    "EquivariantMLP",
    "Estimate",
    "Exact",
    "Fixed",
    "GaussianSketch",
    "GramSchmidt",
    "ImportanceRows",
    "InvariantGate",
    "KaczmarzSketch",
    "KroneckerProjection",
    "Lanczos",
    "LowRankAdapter",
    "Lyapunov",
    "MultilevelProduct",
    "NewtonSchulz",
    "OneSided",
    "Orthogonal",
    "Pade",
    "Pilot",
    "PrivateMedian",
    "RandomizedPower",
    "Root",
    "SequenceResult",
    "Sketched",
    "SketchedProjection",
    "SpecialOrthogonal",
    "Statistics",
    "Symmetric",
    "Symplectic",
    "Taylor",
    "TruncatedSVD",
    "TsallisINF",
    "TwoSided",
    "UniformRows",
    "apply_diagram",
    "attention_loss",
    "brauer_diagrams",
    "degree_for",
    "doubling_sizes",
    "energy_order",
    "free_diagrams",
    "importance_product",
    "inverse_sqrtm",
    "lora_attention_loss",
    "low_rank_attention",
    "norm_bound",
    "num_features",
    "optimal_omega",
    "partition_diagrams",
    "polynomial_features",
    "root_residual",
    "sketch_and_project",
    "solve_sequence",
    "spanning_matrix",
    "sqrtm",
    "sqrtm_pair",
    "uniform_product",
    "whiten",
]
