"""Sums over devices whose derivative cannot be trusted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, PyTree

from . import loops


def reject_unchecked_sums(fun: Callable[[PyTree[Array]], Array], x: PyTree[Array]) -> None:
    """Raise `ValueError` if `fun` sums over devices what depends on `x` where `shard_map` does not
    check what varies.

    There JAX takes the derivative of a `psum` to be another `psum`, so each device would get its
    own part of the gradient, times their number.
    """
    if not loops.in_shard_map() or jax.eval_shape(lambda: jnp.zeros(())).manual_axis_type:
        return
    if _sums(jax.make_jaxpr(fun)(x).jaxpr):
        raise ValueError(
            "the gradient of a psum is wrong inside of shard_map(..., check_vma=False) and pmap: "
            "leave check_vma=True"
        )


def _sums(jaxpr: Jaxpr) -> bool:
    """Whether a sum over devices depends on an input."""
    known = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if known.isdisjoint(var for var in eqn.invars if not isinstance(var, Literal)):
            continue
        if eqn.primitive.name.startswith("psum"):
            return True
        if not eqn.primitive.name.startswith("custom_"):  # whose derivative is the author's
            parts = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
            if any(_sums(getattr(part, "jaxpr", part)) for part in parts if _is_jaxpr(part)):
                return True
        known.update(eqn.outvars)
    return False


def _is_jaxpr(value) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)
