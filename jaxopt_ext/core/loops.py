"""Loops and conditionals that trace inside of `jax.shard_map` with its check on.

There the type of an array says over which mesh axes it varies. A loop that starts from a constant,
which varies over none, and ends with what was computed from a device's own data does not trace;
nor do two branches of which only one looks at the data. The functions here have the signatures of
their namesakes in `jax.lax` and promote what starts a loop, or leaves a branch, until the types
agree. Outside of `shard_map` they are their namesakes.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

Axes = frozenset[Any]


def in_shard_map() -> bool:
    """Whether this is traced for the devices of a mesh one by one."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def varying_axes(x: PyTree) -> Axes:
    """The mesh axes over which any array leaf of `x` varies.

    Empty outside of `shard_map`, and where its check is off.
    """
    return frozenset().union(*map(_axes, jax.tree.leaves(x)))


def _axes(leaf: Any) -> Axes:
    if isinstance(leaf, jax.Array):
        kind = jax.typeof(leaf)
    elif isinstance(leaf, jax.ShapeDtypeStruct):
        kind = leaf
    else:
        return frozenset()
    axes = getattr(kind, "manual_axis_type", None)  # jax >= 0.10
    axes = getattr(kind, "vma", None) if axes is None else axes.varying
    return frozenset() if axes is None else axes


def vary(x: PyTree, axes: Axes) -> PyTree:
    """`x` with its array leaves varying over these axes, and those that they varied over."""
    return jax.tree.map(lambda leaf: _vary(leaf, axes), x) if axes else x


def _vary(leaf: Any, axes: Axes) -> Any:
    missing = axes - _axes(leaf)
    if not missing or not eqx.is_array_like(leaf):
        return leaf
    return jax.lax.pcast(jnp.asarray(leaf), tuple(sorted(missing, key=str)), to="varying")


def vary_like(x: PyTree[Array], like: PyTree) -> PyTree[Array]:
    """`x` with each leaf varying over the axes of its twin too."""
    return jax.tree.map(lambda leaf, twin: _vary(leaf, _axes(twin)), x, like)


def settle(fun: Callable[[PyTree], PyTree], x: PyTree[Array]):
    """`fun` and `x`, both promoted so that each leaf of `fun(x)` varies over the axes of its twin
    in `x`."""
    if not in_shard_map():
        return fun, x
    while True:
        settled = vary_like(x, jax.eval_shape(fun, x))
        if all(map(lambda a, b: _axes(a) == _axes(b), *map(jax.tree.leaves, (settled, x)))):
            return lambda x: vary_like(fun(x), x), x
        x = settled


def while_loop(cond_fun, body_fun, init_val) -> Any:
    """`jax.lax.while_loop`."""
    return jax.lax.while_loop(cond_fun, *settle(body_fun, init_val))


def fori_loop(lower, upper, body_fun, init_val) -> Any:
    """`jax.lax.fori_loop`."""
    if in_shard_map():
        _, init_val = settle(lambda carry: body_fun(jnp.asarray(lower), carry), init_val)
        promoted = lambda i, carry: vary_like(body_fun(i, carry), carry)
        return jax.lax.fori_loop(lower, upper, promoted, init_val)
    return jax.lax.fori_loop(lower, upper, body_fun, init_val)


def scan(f, init, xs=None, length=None, **options) -> tuple[Any, Any]:
    """`jax.lax.scan`."""
    if in_shard_map():
        first = jax.tree.map(lambda a: a[0], xs)
        _, init = settle(lambda carry: f(carry, first)[0], init)

        def promoted(carry, x):
            new, out = f(carry, x)
            return vary_like(new, carry), out

        return jax.lax.scan(promoted, init, xs, length=length, **options)
    return jax.lax.scan(f, init, xs, length=length, **options)


def cond(pred, true_fun, false_fun, *operands) -> Any:
    """`jax.lax.cond`."""
    return jax.lax.cond(pred, *_alike((true_fun, false_fun), operands), *operands)


def switch(index, branches, *operands) -> Any:
    """`jax.lax.switch`."""
    return jax.lax.switch(index, _alike(branches, operands), *operands)


def _alike(branches, operands):
    """The branches, with results that vary over the same axes."""
    if not in_shard_map():
        return list(branches)
    kinds = [jax.eval_shape(fun, *operands) for fun in branches]

    def promoted(fun):
        def branch(*operands):
            out = fun(*operands)
            for kind in kinds:
                out = vary_like(out, kind)
            return out

        return branch

    return [*map(promoted, branches)]


def if_due(
    due: Bool[Array, ""],
    make: Callable[[PyTree[Array]], PyTree[Array]],
    operand: PyTree[Array],
    otherwise: PyTree[Array],
) -> PyTree[Array]:
    """`make(operand)` if due, else `otherwise`.

    It is a loop of at most one turn: under `vmap` that is entered only if a member needs it, where
    a conditional would always take both branches. What does not depend on the carry would be moved
    out of the loop and paid for all the same, beside other work; so the operand does, and is zero
    where nothing is due.
    """

    def turn(carry):
        due, _ = carry
        masked = jax.tree.map(lambda a: jnp.where(due, a, jnp.zeros_like(a)), operand)
        return jnp.zeros_like(due), make(masked)

    return while_loop(lambda carry: carry[0], turn, (due, otherwise))[1]


def checkpointed_loop(cond_fun, body_fun, init_val, *, max_steps: int, checkpoints: int | None):
    """A `while_loop` of at most `max_steps` steps that can be differentiated, in every mode.

    It is two nested scans of checkpointed conditionals that skip what comes after the end; under
    `vmap` nothing is skipped. The checkpoint is around the conditional, because what its branches
    close over would count among their results, and be kept at each step.
    """
    segments = min(checkpoints or math.ceil(math.sqrt(max_steps)), max_steps)
    length = math.ceil(max_steps / segments)

    def repeat(fun, times):
        def guarded(carry, _):
            return cond(cond_fun(carry), fun, lambda carry: carry, carry), None

        return lambda carry: scan(jax.checkpoint(guarded), carry, length=times)[0]

    return repeat(repeat(body_fun, length), segments)(init_val)
