"""Rows of training steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainingRow(Row):
    """A training step: `init` and `step`, driven by `training.fit`.

    `example` takes nothing.

    Not asked: what comes out of long training, which belongs to its claim.

    **Arguments:**

    - `start`: `(dtype) -> params`, first parameters of the suite's task.
    - `batches`: `(num_steps, dtype) -> batches`, stacked on a leading axis of steps.
    - `plain`: gives two training steps whose parameters agree on these batches: the method with
      weight zero of what it adds, and a loss of its own under `GradientStep`; `None` for a method
      that adds nothing.
    - `delay`: steps until a batch is trained on.
    """

    start: Callable[[Any], Any]
    batches: Callable[[int, Any], Any]
    plain: Callable[[], tuple[Any, Any]] | None = None
    delay: int = 0

    shape: ClassVar[str] = "training"
    suite: ClassVar[str] = "test_training.py"
