"""Rows of functions."""

import abc
import dataclasses
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import PyTree

from .row import Row


class AbstractFunctionCase(eqx.Module):
    """A function with a way to draw its arguments and a reference."""

    @abc.abstractmethod
    def draw(self, seed: int, dtype: Any) -> tuple[PyTree, ...]:
        """Arguments of this type, of the same shapes for every seed."""

    @abc.abstractmethod
    def call(self, *arguments: PyTree) -> PyTree:
        """The function."""

    @abc.abstractmethod
    def reference(self, *arguments: PyTree) -> PyTree:
        """The same in `numpy` or plain Python, by code that shares none with the function."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FunctionRow(Row):
    """A function, or a module called as one, that is none of the other shapes: a layer, a routine
    on matrices or graphs, a protocol.

    `example` takes nothing and gives an `AbstractFunctionCase`. Arguments and results are any
    pytrees; the suite asks that the result equals the reference in both precisions, integers and
    booleans exactly; `jit`, `vmap`, one trace for each shape, types, derivatives with respect to
    all floating arrays of the arguments, and that NaN stays visible. What runs on the host says so
    in `host` and is called as it is.

    Not asked: speed, and what the function is good for, which belongs to its claim.

    **Arguments:**

    - `relative`: it is made of the parts of another row, and the suite runs it where time does not
      matter only.
    """

    relative: bool = False

    shape: ClassVar[str] = "function"
    suite: ClassVar[str] = "test_functions.py"
