"""Rows of aggregators."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AggregatorRow(Row):
    """An aggregator: many rows, some of them bad, to one.

    `example` takes the number of rows and the number of bad ones among them, `(m, f)`.

    Not asked: how far bad rows move the result within the hull of the good ones, and what becomes
    of training under attack, which belongs to the claims and to `benchmarks/robustness.py`.

    **Arguments:**

    - `tolerates`: the largest number of bad rows that may be asked of the example for `m` rows.
    """

    tolerates: Callable[[int], int]

    shape: ClassVar[str] = "aggregator"
    suite: ClassVar[str] = "test_aggregators.py"
