"""Rows of solvers."""

import dataclasses
from typing import ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SolverRow(Row):
    """A solver: `init`, `step` and `error`, driven by `solve`.

    `example` takes nothing. `tests/conformance/test_solvers.py` asks for what is listed there in
    `CHECKS`, `test_converged.py` draws ugly problems for it, `test_composition.py` runs it in
    `shard_map`. The opt-out `"problems"` names the problem types that it takes but the suite has no
    case of.

    Not asked: a rate of convergence, which belongs to its claim, and complex variables.
    """

    shape: ClassVar[str] = "solver"
    suite: ClassVar[str] = "test_solvers.py"
