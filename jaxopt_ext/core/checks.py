"""Checks at the door: each raises `ValueError` or `TypeError` with the offending value.

Values that are being traced cannot be inspected and pass; what goes wrong with them shows in a
solver's status.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree


def is_traced(value: PyTree) -> bool:
    """Whether any leaf is being traced, so that its numbers cannot be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def concrete(value: Any) -> np.ndarray | None:
    """`value` as an array of the host; `None` while it is being traced."""
    if isinstance(value, Tracer):
        return None
    if isinstance(value, str) or value is None:
        raise TypeError(f"expected a number, got {value!r}")
    return np.asarray(value)


def _require(ok, name: str, what: str, value: Any) -> None:
    if not np.all(ok):
        raise ValueError(f"{name} must be {what}, got {value}")


def positive(name: str, value: Any) -> None:
    """Raise unless every entry of `value` is finite and > 0."""
    array = concrete(value)
    if array is not None:
        _require(np.isfinite(array) & (array > 0), name, "positive", value)


def nonnegative(name: str, value: Any) -> None:
    """Raise unless every entry of `value` is >= 0 (infinity allowed)."""
    array = concrete(value)
    if array is not None:
        _require(array >= 0, name, "non-negative", value)


def interval(
    name: str, value: Any, low: float, high: float, *, open_low=False, open_high=False
) -> None:
    """Raise unless every entry of `value` lies between `low` and `high`."""
    array = concrete(value)
    if array is None:
        return
    above = array > low if open_low else array >= low
    below = array < high if open_high else array <= high
    bounds = f"in {'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
    _require(above & below, name, bounds, value)


def finite(name: str, value: PyTree) -> None:
    """Raise unless every entry of every leaf is finite."""
    for leaf in jax.tree.leaves(value):
        array = concrete(leaf)
        if array is not None and not np.all(np.isfinite(array)):
            raise ValueError(f"{name} must be finite, got NaN or infinity")


def count(name: str, value: Any, minimum: int = 1) -> None:
    """Raise unless `value` is a Python int >= `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def split_point(name: str, value: PyTree) -> tuple[PyTree, PyTree]:
    """The floating-point array leaves of a point, and its other leaves, each with `None` in the
    places of the others.

    Numbers in plain containers are made arrays; those inside of equinox modules, a dropout rate
    say, are none of the variables, as everywhere in equinox.

    **Raises:** `TypeError` if no leaf is a floating-point array; `ValueError` if there is none.
    """
    whole = jax.tree.map(_variable, value, is_leaf=lambda x: isinstance(x, eqx.Module))
    arrays, rest = eqx.partition(whole, eqx.is_inexact_array)
    if not jax.tree.leaves(arrays):
        kinds = sorted({_kind(leaf) for leaf in jax.tree.leaves(rest)})
        if not kinds:
            raise ValueError(f"{name} is an empty pytree: there is nothing to solve for")
        raise TypeError(f"{name} must hold floating-point arrays, got {', '.join(kinds)}")
    # A weak type would give way to that of another leaf.
    arrays = jax.tree.map(lambda a: a.astype(a.dtype) if a.weak_type else a, arrays)
    return arrays, rest


def _variable(x: Any) -> Any:
    if isinstance(x, eqx.Module):
        return jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, x)
    if isinstance(x, float | complex | np.ndarray | np.inexact):
        return jnp.asarray(x)
    return x


def _kind(leaf: Any) -> str:
    return f"dtype {leaf.dtype}" if hasattr(leaf, "dtype") else type(leaf).__name__


def inexact_tree(name: str, value: PyTree) -> PyTree:
    """Return `value` with array leaves; raise on no leaves or on any that is not floating-point."""
    arrays, rest = split_point(name, value)
    for leaf in jax.tree.leaves(rest):
        raise TypeError(f"{name} must hold floating-point arrays, got {_kind(leaf)}")
    return arrays


def scalar(value: Any):
    """Make a Python number a weakly typed array leaf, so that a new value never retraces.

    Inside of `jit` too it is a constant, whose value can be checked.
    """
    if not isinstance(value, float | int):
        return value
    array = jnp.asarray(value)
    if not isinstance(array, Tracer):
        return array
    with jax.ensure_compile_time_eval():
        return jnp.asarray(value)


def instance(name: str, value: Any, kind: type, example: str) -> None:
    """Raise `TypeError` unless `value` is an object of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be an object such as {example}, got {value!r}")


def objective(name: str, fun: Callable[..., Any], x: PyTree) -> None:
    """Raise `ValueError` unless `fun(x)` is a real floating-point scalar."""
    out = jax.eval_shape(fun, x)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != ():
        raise ValueError(f"{name} must return a scalar, got {out}")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"{name} must return a real floating-point number, got {out.dtype}")


def shaped_like(name: str, out: PyTree, x: PyTree) -> None:
    """Raise `ValueError` unless two pytrees have one structure and the same shapes."""
    shapes = jax.tree.map(jnp.shape, (out, x), is_leaf=eqx.is_array)
    if jax.tree.structure(out) != jax.tree.structure(x) or shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} must be shaped like x: got {shapes_of(out)} for x shaped {shapes_of(x)}"
        )


def shapes_of(x: PyTree) -> PyTree:
    """The shape of each leaf, for messages."""
    return jax.tree.map(jnp.shape, x)


def has_method(value: Any, name: str) -> bool:
    """Whether an object has such an attribute."""
    # Asking the class first spares binding a method of an equinox module, which is slow.
    return hasattr(type(value), name) or hasattr(value, name)


def proximable(name: str, function: Any) -> None:
    """Raise `TypeError` unless `function` has a value and a prox."""
    if not (callable(function) and has_method(function, "prox")):
        raise TypeError(f"{name} must have a value and a prox, got {function!r}")


def point(name: str, x: Any, kind: type, form: str) -> None:
    """Raise `TypeError` unless a point is of the kind that a problem is solved for."""
    if not isinstance(x, kind):
        raise TypeError(f"{name} is solved for a {form}, got {type(x).__name__}")
