"""Rows of kernels."""

import dataclasses
from typing import ClassVar

from .row import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class KernelRow(Row):
    """A kernel: one signature, a Pallas body and an XLA body.

    `example` takes nothing and gives a case of `jaxopt_ext_kernels.testing`: it draws inputs, knows
    a dense reference, and says which of the inputs are differentiable (none, if they are integers).
    Outputs are any pytree; integers must be equal, floats close.

    Not asked: speed, which `benchmarks/peers` measures.
    """

    shape: ClassVar[str] = "kernel"
    suite: ClassVar[str] = "test_kernels.py"
