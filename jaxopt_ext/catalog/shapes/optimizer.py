"""Rows of gradient transformations."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OptimizerRow(Row):
    """A gradient transformation, as of `optax`.

    `example` takes the parameters and gives the keyword arguments of the public function.

    Not asked: behaviour on large models or over many steps, which belongs to its claim.

    **Arguments:**

    - `extras`: names of the extra arguments that `update` needs.
    - `static`: names of floating-point arguments that decide shapes, and so cannot be traced.
    - `state_bytes`: the paper's formula for the size of the state, from the parameters; counters
      of a few bytes are left out.
    """

    state_bytes: Callable[[Any], int]
    extras: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    shape: ClassVar[str] = "optimizer"
    suite: ClassVar[str] = "test_optimizers.py"

    def transformation(self, params: Any) -> Any:
        """The example for these parameters."""
        return self.object(**self.example(params))
