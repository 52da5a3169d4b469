"""Products in the precision of their factors."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

Function = TypeVar("Function", bound=Callable)


def highest(fun: Function) -> Function:
    """`fun` with products of single precision as such, where accelerators would round their factors
    to half of it: what takes differences of products has nothing left then."""

    @functools.wraps(fun)
    def wrapped(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return fun(*args, **kwargs)

    return wrapped  # pyright: ignore[reportReturnType]
