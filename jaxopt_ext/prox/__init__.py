"""Functions with a value and a prox, and sets with a projection.

Of each coordinate, on any pytree: `Zero`, `L1`, `L2Squared`, `ElasticNet`, `NonNegative`, `Box`,
and the non-convex `L0`, `SCAD`, `MCP`.

Of a pytree as one vector: `L2`, `L1Ball`, `L2Ball`, `LinfBall`, `Simplex`, `Hyperplane`,
`Halfspace`; of its rows or labelled groups, `GroupLasso`.

Of one vector: `AffineSet`, `Polyhedron`, `SecondOrderCone`, `Isotonic`, `TotalVariation1D`.

Of one matrix: `NuclearNorm`, `NuclearBall`, `PSDCone`, `TransportPolytope`, `Birkhoff`,
`TotalVariation2D`.

Made from others: `2.0 * g` or `Scaled`, `Shifted`, `Precomposed`, `Separable` (a pytree of
functions over a pytree), `Conjugate` (Moreau).

Parameters (weights, radii, bounds) are array leaves: derivatives reach them and new values do not
retrace. Complex input is taken wherever the definition makes sense.
"""

from .combinators import Conjugate, Precomposed, Scaled, Separable, Shifted
from .coordinatewise import (
    L0,
    L1,
    MCP,
    SCAD,
    AbstractFoldedConcave,
    Box,
    ElasticNet,
    L2Squared,
    NonNegative,
    Zero,
)
from .function import AbstractFunction, AbstractSet
from .isotonic import Isotonic
from .norms import (
    L2,
    GroupLasso,
    L1Ball,
    L2Ball,
    LinfBall,
    NuclearBall,
    NuclearNorm,
    Simplex,
    simplex_threshold,
)
from .polyhedron import Polyhedron
from .sets import (
    AffineSet,
    Birkhoff,
    Halfspace,
    Hyperplane,
    PSDCone,
    SecondOrderCone,
    TransportPolytope,
)
from .total_variation import TotalVariation1D, TotalVariation2D

__all__ = [
    "L0",
    "L1",
    "L2",
    "MCP",
    "SCAD",
    "AbstractFoldedConcave",
    "AbstractFunction",
    "AbstractSet",
    "AffineSet",
    "Birkhoff",
    "Box",
    "Conjugate",
    "ElasticNet",
    "GroupLasso",
    "Halfspace",
    "Hyperplane",
    "Isotonic",
    "L1Ball",
    "L2Ball",
    "L2Squared",
    "LinfBall",
    "NonNegative",
    "NuclearBall",
    "NuclearNorm",
    "PSDCone",
    "Polyhedron",
    "Precomposed",
    "Scaled",
    "SecondOrderCone",
    "Separable",
    "Shifted",
    "Simplex",
    "TotalVariation1D",
    "TotalVariation2D",
    "TransportPolytope",
    "Zero",
    "simplex_threshold",
]
