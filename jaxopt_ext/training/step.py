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
    """State of `GradientStep`: the model, the optimizer's state, the average or the tuple of them,
    steps done."""

    params: PyTree
    opt_state: PyTree[Array]
    averaged: PyTree
    step: Int[Array, ""]
    key: PRNGKeyArray


class GradientStep(AbstractTrainingStep):
    r"""Plain training,

    $$\theta \leftarrow \Pi\big(\theta
      + u(\nabla_\theta \ell(\theta, \text{batch}, \text{context}))\big),$$

    with $u$ the optimizer's update and $\Pi$ a projection, if there is one.

    **Arguments:**

    - `loss`: `(model, batch, context) -> (scalar, metrics)`, with a dictionary of scalars, and
      `context` a `Context`.
    - `tx`: an `optax` transformation; it is told the loss as `value`, the gradient as `grad`, the
      functions `value_fn(params)`, `grad_fn(params)` and `hvp_fn(params, vector)` of this batch,
      and a `key`.
    - `average`: an object with `init(params) -> average` and `update(average, params, step) ->
      average`, where `step` counts from 1 and is that of the parameters; a tuple of these, of which
      losses see the first; or `None`.
    - `trainable`: which floating-point arrays of the model are trained, all if `None`: a function
      of a leaf, or a pytree of booleans, whole or a prefix, as `equinox.partition` takes it.
    - `after_update`: $\Pi$, from models to models.

    **Raises:** `TypeError` if `loss` is not a function or `tx` not a transformation.

    **Reference:** Robbins, Monro, A Stochastic Approximation Method, 1951.
    """

    loss: Callable[[PyTree, PyTree[Array], Context], tuple[Float[Array, ""], Metrics]]
    tx: optax.GradientTransformation
    average: Any = None
    trainable: Any = None
    after_update: Callable[[PyTree], PyTree] | None = None

    def __check_init__(self):
        functions = {} if self.after_update is None else {"after_update": self.after_update}
        check_parts(self.tx, loss=self.loss, **functions)

    def init(self, params, batch, key):
        del batch
        opt_state = start(self.tx, params, self.trainable)
        averaged = _each(lambda average: average.init(params), self.average)
        return GradientState(params, opt_state, averaged, jnp.zeros((), jnp.int32), key)

    def step(self, state, batch):
        number = state.step + 1
        first = state.averaged
        if isinstance(self.average, tuple):
            first = state.averaged[0] if self.average else None
        arrays, rest = eqx.partition(first, eqx.is_inexact_array)
        averaged = eqx.combine(jax.lax.stop_gradient(arrays), rest)
        context = Context(jax.random.fold_in(state.key, number), number, averaged)
        fun = lambda params: self.loss(params, batch, context)
        loss, metrics, gradient = value_aux_gradient(fun, state.params, self.trainable)
        told = _told(fun, state.params, self.trainable, gradient, context.key)
        params, opt_state, finite = descend(
            self.tx,
            loss,
            gradient,
            state.opt_state,
            state.params,
            trainable=self.trainable,
            told=told,
            after_update=self.after_update,
        )
        update = lambda average, old: made_if(
            finite, lambda: average.update(old, params, number), old
        )
        averaged = _each(update, self.average, state.averaged)
        after = GradientState(params, opt_state, averaged, number, state.key)
        return after, {**metrics, "loss": loss, "finite": finite}


def _each(fun, average, *states):
    """A function of the average, or of each of several."""
    if average is None:
        return None
    if isinstance(average, tuple):
        return tuple(map(fun, average, *states))
    return fun(average, *states)


def _told(fun, params, trainable, gradient, key):
    """What transformations may ask for besides the gradient, in the trained arrays."""
    _, rest = split(params, trainable)
    whole = lambda arrays: eqx.combine(arrays, rest)

    def value_fn(arrays, grad_fn=None, hvp_fn=None, key=None):
        # Line searches of optax hand on what is not theirs, and raise if it is not taken.
        del grad_fn, hvp_fn, key
        return fun(whole(arrays))[0]

    grad_fn = lambda arrays: value_aux_gradient(fun, whole(arrays), trainable)[2]

    def hvp_fn(arrays, vector):
        return jax.jvp(grad_fn, (arrays,), (vector,))[1]

    # The loss has the other keys.
    key = jax.random.fold_in(key, 1)
    return {
        "grad": gradient,
        "value_fn": value_fn,
        "grad_fn": grad_fn,
        "hvp_fn": hvp_fn,
        "key": key,
    }


def check_parts(tx: Any, **functions: Any) -> None:
    """Raise `TypeError` unless `tx` is a gradient transformation and the others are callable."""
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"tx must be an optax transformation, got {tx!r}")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")


def split(params: PyTree, trainable: Any = None) -> tuple[PyTree, PyTree]:
    """The floating-point arrays that are trained, and the rest."""
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    if trainable is None:
        return arrays, rest
    leaves = jax.tree.leaves(trainable)
    # A model of booleans can be called as well as a function can.
    if not (leaves and all(isinstance(leaf, bool) for leaf in leaves)):
        trainable = jax.tree.map(lambda leaf: bool(trainable(leaf)), arrays)
    arrays, fixed = eqx.partition(arrays, trainable)
    return arrays, eqx.combine(fixed, rest)


def start(tx: optax.GradientTransformation, params: PyTree, trainable: Any = None) -> PyTree[Array]:
    """The optimizer's state for the floating-point leaves of `params` that are trained."""
    return tx.init(split(checks.split_point("params", params)[0], trainable)[0])


def value_aux_gradient(
    fun: Callable[[PyTree], tuple[Float[Array, ""], Any]],
    params: PyTree,
    trainable: Any = None,
) -> tuple[Float[Array, ""], Any, PyTree[Array]]:
    """Value, further outputs and gradient of a function in the trained leaves of `params`.

    In `shard_map` the gradient is each device's own, as that of `tree.value_and_gradient`.
    """
    arrays, rest = split(params, trainable)
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
    *,
    trainable: Any = None,
    told: dict[str, Any] | None = None,
    after_update: Callable[[PyTree], PyTree] | None = None,
) -> tuple[PyTree, PyTree[Array], Bool[Array, ""]]:
    """Parameters and optimizer's state after a step, those before it where loss or gradient is not
    finite, and whether they are.

    **Arguments:**

    - `tx`: the transformation, which is told the loss as `value`.
    - `loss`, `gradient`: of the trained leaves.
    - `opt_state`, `params`: before the step.
    - `trainable`: which floating-point leaves are trained.
    - `told`: what else the transformation is told.
    - `after_update`: from the updated parameters to those that are kept.
    """
    arrays, rest = split(params, trainable)
    finite = jnp.isfinite(loss) & tree.all_finite(gradient)
    extra = optax.with_extra_args_support(tx)

    def moved():
        updates, state = extra.update(gradient, opt_state, arrays, value=loss, **(told or {}))
        new = eqx.combine(optax.apply_updates(arrays, updates), rest)
        return (new if after_update is None else after_update(new)), state

    params, opt_state = made_if(finite, moved, (params, opt_state))
    return params, opt_state, finite


def made_if(condition: Bool[Array, ""], make: Callable[[], PyTree], old: PyTree) -> PyTree:
    """Array leaves of `make()` where the condition holds, else of `old`, and the other leaves of
    `make()`.

    On CPUs nothing is made, and nothing copied, where it does not hold: a choice between two sets
    of parameters and moments costs a tenth of a small network's step. Elsewhere, and in `shard_map`
    where devices may differ in the condition and talk to each other, it is a choice.
    """
    if loops.in_shard_map():
        return keep(condition, make(), old)
    kept = eqx.filter(old, eqx.is_array)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    made, rest = eqx.partition(eqx.filter_eval_shape(make), is_shape)
    types = jax.tree.map(lambda a, b: jnp.promote_types(a.dtype, b.dtype), made, kept)
    cast = lambda arrays: jax.tree.map(lambda a, t: a.astype(t), arrays, types)

    new = lambda: cast(eqx.filter(make(), eqx.is_array))
    conditional = lambda: jax.lax.cond(condition, new, lambda: cast(kept))
    choice = lambda: tree.where(condition, new(), cast(kept))

    return eqx.combine(jax.lax.platform_dependent(cpu=conditional, default=choice), rest)


def keep(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Array leaves of `new` where the condition holds, else of `old`."""
    new, rest = eqx.partition(new, eqx.is_array)
    return eqx.combine(tree.where(condition, new, eqx.filter(old, eqx.is_array)), rest)
