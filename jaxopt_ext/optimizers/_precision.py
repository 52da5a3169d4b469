"""Narrow parameters with a wide state."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ._devices import on_each_device


def widen(tree: PyTree[Array]) -> PyTree[Array]:
    """Floating-point leaves narrower than float32 in float32."""

    def wide(leaf):
        dtype = jnp.result_type(leaf)
        inexact = jnp.issubdtype(dtype, jnp.inexact)
        return jnp.asarray(leaf, jnp.promote_types(dtype, jnp.float32) if inexact else dtype)

    return jax.tree.map(wide, tree)


def narrow(tree: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """Leaves in the types of their twins."""
    return jax.tree.map(lambda leaf, twin: leaf.astype(jnp.result_type(twin)), tree, like)


def keep_wide(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Run `tx` in at least float32, and give its updates in the gradients' types.

    Where no gradients are passed, as to a transformation that takes them by an extra argument, the
    updates have the types of the parameters.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params):
        return tx.init(widen(params))

    def update(updates, state, params=None, **extra_args):
        like = params if updates is None else updates
        updates, state = tx.update(widen(updates), state, widen(params), **extra_args)
        return updates if like is None else narrow(updates, like), state

    return on_each_device(optax.GradientTransformationExtraArgs(init, update))
