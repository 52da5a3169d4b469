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
    """

    shape: ClassVar[str] = "learner"
    suite: ClassVar[str] = "test_learners.py"
