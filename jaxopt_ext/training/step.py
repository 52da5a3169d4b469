"""Training steps: what all share, and the plain one.

A training step holds a loss and any `optax` transformation. `init` makes its state, `step` takes a
batch; `fit` drives it, or a loop of the user's.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, collectives, loops, tree

Metrics = dict[str, Array]


class AbstractTrainingStep(eqx.Module):
    """A step of training, pure on both sides; in a loop of one's own under `eqx.filter_jit`.

    Its metrics have the scalar `loss` and `finite`: whether loss and gradient were. Where they were
    not, the batch leaves no trace in the parameters, in the state of the optimizer and in tables.
    """

    @abc.abstractmethod
    def init(self, params: PyTree, batch: PyTree[Array], key: PRNGKeyArray) -> Any:
        """The state before the first step. It has `params`, and holds the randomness of all steps.

        **Arguments:**

        - `params`: first parameters.
        - `batch`: the first batch, or one like it: what is looked at is its shapes.
        - `key`: random key.
        """

    @abc.abstractmethod
    def step(self, state: Any, batch: PyTree[Array]) -> tuple[Any, Metrics]:
        """The state after a batch, and scalars to be recorded."""

    def check(self, batch: PyTree[Array]) -> None:
        """Raise `ValueError` if a batch, or a stack of batches, cannot be trained on.

        Numbers that are being traced are not looked at.
        """
        del batch


class Context(eqx.Module):
    """What a loss may look at besides the model and the batch.

    **Attributes:**

    - `key`: a random key of this step's own.
    - `step`: its number, from 1.
    - `averaged`: the averaged model, without derivative; `None` if there is no average.
    """

    key: PRNGKeyArray
    step: Int[Array, ""]
    averaged: PyTree


class GradientState(eqx.Module):
    """State of `GradientStep`: the model, the optimizer's state, the average, steps done."""

    params: PyTree
    opt_state: PyTree[Array]
    averaged: PyTree
    step: Int[Array, ""]
    key: PRNGKeyArray


class GradientStep(AbstractTrainingStep):
    r"""Plain training,

    $$\theta \leftarrow \theta + u(\nabla_\theta \ell(\theta, \text{batch}, \text{context})),$$

    with $u$ the optimizer's update.

    **Arguments:**

    - `loss`: `(model, batch, context) -> (scalar, metrics)`, with a dictionary of scalars, and
      `context` a `Context`.
    - `tx`: an `optax` transformation; it is told the loss as `value`.
    - `average`: an object with `init(params) -> average` and `update(average, params, step) ->
      average`, where `step` counts from 1 and is that of the parameters; or `None`.

    **Raises:** `TypeError` if `loss` is not a function or `tx` not a transformation.

    **Reference:** Robbins, Monro, A Stochastic Approximation Method, 1951.
    """

    loss: Callable[[PyTree, PyTree[Array], Context], tuple[Float[Array, ""], Metrics]]
    tx: optax.GradientTransformation
    average: Any = None

    def __check_init__(self):
        check_parts(self.tx, loss=self.loss)

    def init(self, params, batch, key):
        del batch
        averaged = None if self.average is None else self.average.init(params)
        return GradientState(
            params, start(self.tx, params), averaged, jnp.zeros((), jnp.int32), key
        )

    def step(self, state, batch):
        number = state.step + 1
        averaged = jax.lax.stop_gradient(state.averaged) if self.average is not None else None
        context = Context(jax.random.fold_in(state.key, number), number, averaged)
        loss, metrics, gradient = value_aux_gradient(
            lambda params: self.loss(params, batch, context), state.params
        )
        params, opt_state, finite = descend(self.tx, loss, gradient, state.opt_state, state.params)
        averaged = state.averaged
        if self.average is not None:
            averaged = keep(finite, self.average.update(averaged, params, number), averaged)
        after = GradientState(params, opt_state, averaged, number, state.key)
        return after, {**metrics, "loss": loss, "finite": finite}


def check_parts(tx: Any, **functions: Any) -> None:
    """Raise `TypeError` unless `tx` is a gradient transformation and the others are callable."""
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"tx must be an optax transformation, got {tx!r}")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")


def start(tx: optax.GradientTransformation, params: PyTree) -> PyTree[Array]:
    """The optimizer's state for the floating-point leaves of `params`."""
    return tx.init(checks.split_point("params", params)[0])


def value_aux_gradient(
    fun: Callable[[PyTree], tuple[Float[Array, ""], Any]], params: PyTree
) -> tuple[Float[Array, ""], Any, PyTree[Array]]:
    """Value, further outputs and gradient of a function in the floating-point leaves of `params`.

    In `shard_map` the gradient is each device's own, as that of `tree.value_and_gradient`.
    """
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    inner = lambda arrays: fun(eqx.combine(arrays, rest))
    if loops.in_shard_map():
        collectives.reject_unchecked_sums(lambda arrays: inner(arrays)[0], arrays)
        value = jax.eval_shape(lambda arrays: inner(arrays)[0], arrays)
        arrays = loops.vary(arrays, loops.varying_axes(value))
    (value, aux), gradient = jax.value_and_grad(inner, has_aux=True)(arrays)
    gradient = jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, gradient)
    return value, aux, gradient


def descend(
    tx: optax.GradientTransformation,
    loss: Float[Array, ""],
    gradient: PyTree[Array],
    opt_state: PyTree[Array],
    params: PyTree,
) -> tuple[PyTree, PyTree[Array], Bool[Array, ""]]:
    """Parameters and optimizer's state after a step, those before it where loss or gradient is not
    finite, and whether they are."""
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    finite = jnp.isfinite(loss) & tree.all_finite(gradient)
    told = optax.with_extra_args_support(tx)
    updates, moved = told.update(gradient, opt_state, arrays, value=loss)
    new = keep(finite, optax.apply_updates(arrays, updates), arrays)
    return eqx.combine(new, rest), keep(finite, moved, opt_state), finite


def keep(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Array leaves of `new` where the condition holds, else of `old`."""
    new, rest = eqx.partition(new, eqx.is_array)
    return eqx.combine(tree.where(condition, new, eqx.filter(old, eqx.is_array)), rest)
