"""Rows of online learners."""

import dataclasses
from typing import ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LearnerRow(Row):
    """An online learner: `init`, `act` and `observe`, which the user's loop drives.

    `example` takes nothing.

    Not asked: the constant of its regret, which belongs to its tests, and what its decisions do in
    a method, which belongs to the claim of that method.

    **Arguments:**

    - `rate`: exponent of the number of rounds with which the regret of the example against a fixed
      decision may grow, on losses that a learner without memory loses on.
    """

    rate: float = 0.7

    shape: ClassVar[str] = "learner"
    suite: ClassVar[str] = "test_learners.py"
