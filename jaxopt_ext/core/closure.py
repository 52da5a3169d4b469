"""Python closures as pytrees.

A function made anew at each call, `lambda w: loss(w, data)`, would be a new static value to
`jax.jit`: every call would retrace, and traced data inside it would be invisible to derivatives.
Here the arrays that a function closes over become leaves, and the rest is compared by code.
"""

import functools
import types
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree


class _Code:
    """Static part of a closure: equal when the code and the globals that it uses are the same.

    A global that was bound to another value since is another function, as it must be: its value is
    a constant in what was compiled. The globals of the functions it calls count too, as far as
    they live in the same module.
    """

    def __init__(self, function: types.FunctionType):
        self.function = function
        self.globals = tuple(_globals_of(function, {function}))

    def __hash__(self) -> int:
        return hash(self.function.__code__)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Code)
            and self.function.__code__ == other.function.__code__
            and self.function.__globals__ is other.function.__globals__
            and len(self.globals) == len(other.globals)
            and all(map(_is_same, self.globals, other.globals))
        )


def _globals_of(function: types.FunctionType, seen: set[types.FunctionType]) -> Iterator[Any]:
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        yield value
        if not isinstance(value, types.FunctionType) or value in seen:
            continue
        if value.__globals__ is function.__globals__:
            seen.add(value)
            yield from _globals_of(value, seen)


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names that some code and the functions inside it may look up globally."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return tuple(sorted(set(code.co_names).union(*map(_names, inner))))


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, float | int | str) and a == b)


class Closure(eqx.Module):
    """A Python function whose closed-over and default values are pytree leaves."""

    code: _Code = eqx.field(static=True)
    cells: tuple[Any, ...]
    defaults: tuple[Any, ...]
    keyword_defaults: dict[str, Any]

    def rebuild(self) -> types.FunctionType:
        """The function again, with functions, not closures, in its cells."""
        original = self.code.function
        cells, defaults, keyword_defaults = jax.tree.map(
            lambda x: x.rebuild() if isinstance(x, Closure) else x,
            (self.cells, self.defaults, self.keyword_defaults),
            is_leaf=lambda x: isinstance(x, Closure),
        )
        function = types.FunctionType(
            original.__code__,
            original.__globals__,
            original.__name__,
            defaults,
            tuple(types.CellType(cell) for cell in cells),
        )
        function.__kwdefaults__ = keyword_defaults
        return function

    def __call__(self, *args, **kwargs):
        return self.rebuild()(*args, **kwargs)


def hoist(tree: PyTree) -> PyTree:
    """Replace every Python function in `tree` by a callable pytree of what it closes over.

    Two functions made by the same line of code then differ by their leaves only. Callables whose
    arrays cannot be reached (methods of ordinary Python objects) are left as they are and retrace
    when they change.
    """
    if not any(_may_close_over(leaf) for leaf in jax.tree.leaves(tree)):
        return tree  # equinox modules all the way down
    return _hoist(tree, ())


def _may_close_over(leaf: Any) -> bool:
    return callable(leaf) and not isinstance(leaf, jax.Array)


def _hoist(tree: PyTree, seen: tuple[int, ...]) -> PyTree:
    return jax.tree.map(
        lambda leaf: _hoist_leaf(leaf, seen), tree, is_leaf=lambda x: isinstance(x, Closure)
    )


def _hoist_leaf(leaf: Any, seen: tuple[int, ...]) -> Any:
    if id(leaf) in seen:  # a function that refers to itself
        return leaf
    if isinstance(leaf, functools.partial) and not isinstance(leaf, jax.tree_util.Partial):
        leaf = jax.tree_util.Partial(leaf.func, *leaf.args, **leaf.keywords)
        return _hoist(leaf, seen)
    wrapped = getattr(leaf, "__wrapped__", None)
    if isinstance(wrapped, types.FunctionType) and hasattr(leaf, "lower"):  # jax.jit(function)
        return _hoist_leaf(wrapped, seen) if wrapped.__closure__ else leaf
    if not isinstance(leaf, types.FunctionType):
        return leaf
    try:
        cells = tuple(cell.cell_contents for cell in leaf.__closure__ or ())
    except ValueError:  # a cell that is not filled yet
        return leaf
    contents = (cells, leaf.__defaults__ or (), leaf.__kwdefaults__ or {})
    contents = _hoist(contents, (*seen, id(leaf)))
    if not all(_is_array(x) or _is_hashable(x) for x in jax.tree.leaves(contents)):
        return leaf
    return Closure(_Code(leaf), *contents)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
