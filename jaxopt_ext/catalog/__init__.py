"""The table of systems: what each is, where it lives, which paper it follows, what it claims.

The conformance suite runs over these rows and nothing else: a new member is a file in its family
and a row in a file of rows here. `shapes` has the row classes; `find` looks rows up by words.
"""

from typing import TypeVar

from .find import ROWS, find
from .shapes import (
    AbstractFunctionCase,
    AggregatorRow,
    EstimatorRow,
    FunctionRow,
    KernelRow,
    LearnerRow,
    NetworkRow,
    OptimizerRow,
    Row,
    SamplerRow,
    SolverRow,
    TrainingRow,
)

AnyRow = TypeVar("AnyRow", bound=Row)


def rows(kind: type[AnyRow]) -> tuple[AnyRow, ...]:
    """The rows of one shape, `rows(SolverRow)` say; of all, `rows(Row)`."""
    return tuple(row for row in ROWS if isinstance(row, kind))


__all__ = [
    "ROWS",
    "AbstractFunctionCase",
    "AggregatorRow",
    "EstimatorRow",
    "FunctionRow",
    "KernelRow",
    "LearnerRow",
    "NetworkRow",
    "OptimizerRow",
    "Row",
    "SamplerRow",
    "SolverRow",
    "TrainingRow",
    "find",
    "rows",
]
