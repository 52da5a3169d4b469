"""Fixed-point iterations for $x = T(x)$.

- `Picard`: contractions. `KrasnoselskiiMann`: any nonexpansive map, slowly but surely.
- `Halpern`: nonexpansive maps, with the best worst-case rate of the residual.
- `Anderson`: usually far faster than all of these; safeguarded, so as sure as the averaged one.
- `DelayAgnostic`: block by block from values of any age, as workers that do not wait for each other
  would; `ARock`, its stale ancestor. Schedules `ConstantDelay`, `UniformDelay`, `GrowingDelay`,
  `RecordedSchedule`, of blocks in `Cyclic` or `Random` order. Maps `ProximalCoordinateMap`,
  `ConsensusMap`, `GossipMap`; `delay_free_margin` of the constants that `block_lipschitz` estimates
  says whether delays can hurt.
- `Feedforward` problems, each state from those before it, in fewer rounds than states: `Jacobi`,
  all at once; `JacobiGaussSeidel`, blocks at once; `GaussSeidelJacobi`, a window at a time, for
  less memory; `GaussSeidel`, the sequential computation; `ScanNewton`, the fewest rounds, for small
  states of a `recurrence`. Others by `backprop`, `autoregressive`, `dense_block`; `Recurrence` is
  the map. `UnitTriangular` is the linear solve of their derivatives by the same iteration.
- `fixed_point_of`: the map of a splitting method, so that the above accelerate it.
"""

from .anderson import Anderson
from .asynchrony import (
    AbstractOrder,
    AbstractSchedule,
    ConstantDelay,
    Cyclic,
    GrowingDelay,
    Random,
    RecordedSchedule,
    UniformDelay,
)
from .degas import (
    ARock,
    ConsensusMap,
    DelayAgnostic,
    GossipMap,
    ProximalCoordinateMap,
    block_lipschitz,
    delay_free_margin,
)
from .feedforward import (
    GaussSeidel,
    GaussSeidelJacobi,
    Jacobi,
    JacobiGaussSeidel,
    Recurrence,
    ScanNewton,
    UnitTriangular,
    autoregressive,
    backprop,
    dense_block,
    recurrence,
)
from .operator import fixed_point_of
from .picard import Halpern, KrasnoselskiiMann, Picard

__all__ = [
    "ARock",
    "AbstractOrder",
    "AbstractSchedule",
    "Anderson",
    "ConsensusMap",
    "ConstantDelay",
    "Cyclic",
    "DelayAgnostic",
    "GaussSeidel",
    "GaussSeidelJacobi",
    "GossipMap",
    "GrowingDelay",
    "Halpern",
    "Jacobi",
    "JacobiGaussSeidel",
    "KrasnoselskiiMann",
    "Picard",
    "ProximalCoordinateMap",
    "Random",
    "RecordedSchedule",
    "Recurrence",
    "ScanNewton",
    "UniformDelay",
    "UnitTriangular",
    "autoregressive",
    "backprop",
    "block_lipschitz",
    "delay_free_margin",
    "dense_block",
    "fixed_point_of",
    "recurrence",
]
