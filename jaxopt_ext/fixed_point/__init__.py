"""Fixed-point iterations for $x = T(x)$.

- `Picard`: contractions. `KrasnoselskiiMann`: any nonexpansive map, slowly but surely.
- `Halpern`: nonexpansive maps, with the best worst-case rate of the residual.
- `Anderson`: usually far faster than all of these; safeguarded, so as sure as the averaged one.
- `DelayAgnostic`: block by block from values of any age, as workers that do not wait for each other
  would; `ARock`, its stale ancestor. Schedules `ConstantDelay`, `UniformDelay`, `GrowingDelay`,
  `RecordedSchedule`, of blocks in `Cyclic` or `Random` order. Maps `ProximalCoordinateMap`,
  `ConsensusMap`, `GossipMap`; `delay_free_margin` of the constants that `block_lipschitz` estimates
  says whether delays can hurt.
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
    "GossipMap",
    "GrowingDelay",
    "Halpern",
    "KrasnoselskiiMann",
    "Picard",
    "ProximalCoordinateMap",
    "Random",
    "RecordedSchedule",
    "UniformDelay",
    "block_lipschitz",
    "delay_free_margin",
    "fixed_point_of",
]
