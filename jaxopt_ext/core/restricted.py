"""Functions of points with functions and integers in them, as functions of their arrays."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import PyTree


class Restricted(eqx.Module):
    """A function of points, as one of their floating-point arrays; further arguments pass.

    **Arguments:**

    - `function`: takes a whole point first.
    - `rest`: the leaves of the point that are no floating-point arrays.
    - `maps`: whether it returns such a point, of which the arrays are kept.
    """

    function: Callable[..., Any]
    rest: PyTree
    maps: bool = eqx.field(static=True, default=False)

    def __call__(self, x, *args):
        out = self.function(eqx.combine(x, self.rest), *args)
        return eqx.filter(out, eqx.is_inexact_array) if self.maps else out
