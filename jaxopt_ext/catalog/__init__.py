"""The table of systems: what each is, where it lives, which paper it follows, what it claims.

The conformance suite runs over these rows and nothing else: a new member is a file in its family
and a row in the file of its shape here. `find` looks rows up by words.
"""

from .estimators import ESTIMATORS
from .find import ROWS, find
from .kernels import KERNELS
from .network import NETWORK
from .optimizers import OPTIMIZERS
from .row import Row, Shape
from .samplers import SAMPLERS
from .solvers import SOLVERS


def rows(shape: Shape | None = None) -> tuple[Row, ...]:
    """All rows, or those of one shape."""
    return tuple(row for row in ROWS if shape in (None, row.shape))


__all__ = [
    "ESTIMATORS",
    "KERNELS",
    "NETWORK",
    "OPTIMIZERS",
    "ROWS",
    "SAMPLERS",
    "SOLVERS",
    "Row",
    "Shape",
    "find",
    "rows",
]
