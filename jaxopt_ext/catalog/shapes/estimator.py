"""Rows of estimators."""

import dataclasses
from typing import ClassVar, Literal

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EstimatorRow(Row):
    """An estimator: `fit` gives a module with `predict` or `transform` and `score`.

    `example` takes nothing.

    Not asked: sample weights, sparse data and missing values.

    **Arguments:**

    - `task`: what the targets are.
    """

    task: Literal["real", "binary", "classes", "counts"]

    shape: ClassVar[str] = "estimator"
    suite: ClassVar[str] = "test_estimators.py"
