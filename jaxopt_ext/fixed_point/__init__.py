"""Fixed-point iterations for $x = T(x)$.

- `Picard`: contractions. `KrasnoselskiiMann`: any nonexpansive map, slowly but surely.
- `Halpern`: nonexpansive maps, with the best worst-case rate of the residual.
- `Anderson`: usually far faster than all of these; safeguarded, so as sure as the averaged one.
- `fixed_point_of`: the map of a splitting method, so that the above accelerate it.
"""

from .anderson import Anderson
from .operator import fixed_point_of
from .picard import Halpern, KrasnoselskiiMann, Picard

__all__ = ["Anderson", "Halpern", "KrasnoselskiiMann", "Picard", "fixed_point_of"]
