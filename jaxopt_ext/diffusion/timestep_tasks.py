r"""Levels of noise as tasks that share one network: how far they conflict, and weights that no task
loses by.

The times are cut into groups; the loss of each is one objective, its gradient one row.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import Scalar, checks, gram as programs, loops, scalar_field
from ..training import Context, Drawn, GradientStep, fit
from ..training.step import split
from .objectives import DenoisingLoss, UniformTime


class ExactWeights(eqx.Module):
    r"""$\min_{w \in \Delta} |\sum_k w_k g_k|^2 + r \sum_k w_k^2$ from the gradients' Gram matrix,
    by an exact method of active sets.

    **Arguments:**

    - `regularizer`: $r$, non-negative.

    **Raises:** `ValueError` if it is negative.
    """

    regularizer: Scalar = scalar_field(0.0)

    def __check_init__(self):
        checks.nonnegative("regularizer", self.regularizer)

    def __call__(self, gram: Float[Array, "k k"]) -> Float[Array, " k"]:
        """The weights."""
        shift = self.regularizer.astype(gram.dtype) * jnp.eye(len(gram), dtype=gram.dtype)
        return programs.min_norm_weights(gram + shift)


class SoftmaxWeights(eqx.Module):
    r"""The same problem in $\beta$ with $w = \mathrm{softmax}(\beta)$, by gradient steps from equal
    weights.

    **Arguments:**

    - `regularizer`: $r$, non-negative.
    - `num_steps`: gradient steps.
    - `step_size`: their size, for a Gram matrix scaled to a mean diagonal of one.

    **Raises:** `ValueError` if a number is out of range.
    """

    regularizer: Scalar = scalar_field(0.0)
    num_steps: int = eqx.field(static=True, default=100)
    step_size: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.nonnegative("regularizer", self.regularizer)
        checks.count("num_steps", self.num_steps)
        checks.positive("step_size", self.step_size)

    def __call__(self, gram: Float[Array, "k k"]) -> Float[Array, " k"]:
        """The weights."""
        matrix = gram + self.regularizer.astype(gram.dtype) * jnp.eye(len(gram), dtype=gram.dtype)
        size = jnp.mean(jnp.diagonal(matrix))
        matrix = matrix / jnp.where(size > 0, size, 1)

        def step(_, beta):
            w = jax.nn.softmax(beta)
            slope = 2 * matrix @ w
            return beta - self.step_size.astype(beta.dtype) * w * (slope - w @ slope)

        beta = loops.fori_loop(0, self.num_steps, step, jnp.zeros_like(gram, shape=len(gram)))
        return jax.nn.softmax(beta)


class UnifiedGradientWeights(eqx.Module):
    r"""A loss whose gradient is $\sum_k w_k g_k$ over groups of times, with the weights of the
    point of least norm in the gradients' hull: along it no group's loss grows.

    It costs a gradient for each group beside that of the step.

    **Arguments:**

    - `loss`: a `DenoisingLoss` with `UniformTime` levels, which are cut into groups.
    - `groups`: number of groups.
    - `weights`: from the Gram matrix of the groups' gradients to weights; `ExactWeights()` or
      `SoftmaxWeights()`.

    **Returns:** $\sum_k w_k L_k$, and the largest weight as the metric `largest_weight`.

    **Raises:** `TypeError` if levels are not `UniformTime`; `ValueError` for fewer than one group.

    **Reference:** Hang, Gu, Li, Bao, Chen, Hu, Geng, Guo, Efficient Diffusion Training via Min-SNR
    Weighting Strategy, 2023, arXiv:2303.09556.
    """

    loss: DenoisingLoss
    groups: int = eqx.field(static=True)
    weights: Callable[[Array], Array] = eqx.field(default_factory=ExactWeights)

    def __check_init__(self):
        _check(self.loss, self.groups)

    def __call__(self, model: PyTree, batch: Any, context: Any) -> tuple[Array, dict]:
        _, gradients = group_gradients(self.loss, self.groups, model, batch, context)
        gradients = jax.lax.stop_gradient(gradients)
        weights = jax.lax.stop_gradient(self.weights(programs.gram(gradients)))
        losses = group_losses(self.loss, self.groups, model, batch, context)
        return jnp.vdot(weights, losses), {"largest_weight": jnp.max(weights)}


def _check(loss, groups):
    levels = getattr(loss, "levels", None)
    if not isinstance(levels, UniformTime):
        raise TypeError(f"loss must be a DenoisingLoss with UniformTime levels, got {loss!r}")
    checks.count("groups", groups)


def _of_groups(fun, loss, groups, dtype):
    """A function of the loss of each group, in a batch."""
    parts = loss.levels.parts(groups)
    lows, highs = (jnp.asarray(ends, dtype) for ends in np.transpose([p.interval for p in parts]))
    ends = lambda loss: (loss.levels.low, loss.levels.high)

    def one(low, high):
        return fun(eqx.tree_at(ends, loss, (low, high), is_leaf=lambda leaf: leaf is None))

    return jax.vmap(one)(lows, highs)


def group_losses(
    loss: DenoisingLoss, groups: int, model: PyTree, batch: Any, context: Context
) -> Float[Array, " groups"]:
    """The loss of each group of times, from those of the least noise on; with the same draws in
    each.

    **Arguments:**

    - `loss`: a `DenoisingLoss` with `UniformTime` levels.
    - `groups`: number of groups.
    - `model`, `batch`, `context`: as of the loss.
    """
    _check(loss, groups)
    dtype = jax.tree.leaves(batch)[0].dtype
    return _of_groups(lambda loss: loss(model, batch, context)[0], loss, groups, dtype)


def group_gradients(
    loss: DenoisingLoss, groups: int, model: PyTree, batch: Any, context: Context
) -> tuple[Float[Array, " groups"], PyTree[Array]]:
    """The loss of each group of times and its gradient, stacked on a leading axis.

    **Arguments:**

    - `loss`: a `DenoisingLoss` with `UniformTime` levels.
    - `groups`: number of groups.
    - `model`, `batch`, `context`: as of the loss.
    """
    _check(loss, groups)
    arrays, rest = split(model)
    dtype = jax.tree.leaves(batch)[0].dtype

    def one(loss):
        value = lambda arrays: loss(eqx.combine(arrays, rest), batch, context)[0]
        return jax.value_and_grad(value)(arrays)

    return _of_groups(one, loss, groups, dtype)


class TaskConflict(eqx.Module):
    """What `task_conflict` found.

    **Attributes:**

    - `cosines`: of the groups' gradients; negative where a step for one is a step against another.
    - `losses`: of the groups, before.
    - `changes`: entry i, j is what group j's loss has gained after training on group i alone;
      negative on the diagonal, positive where it has been unlearned.
    """

    cosines: Float[Array, "groups groups"]
    losses: Float[Array, " groups"]
    changes: Float[Array, "groups groups"]


def task_conflict(
    model: PyTree,
    loss: DenoisingLoss,
    data: Float[Array, "n ..."],
    tx: optax.GradientTransformation,
    *,
    groups: int = 5,
    num_steps: int = 100,
    batch_size: int = 64,
    key: PRNGKeyArray,
) -> TaskConflict:
    """Train on each group of times alone, from the same start, and look at all.

    **Arguments:**

    - `model`: the start, trained or not.
    - `loss`: a `DenoisingLoss` with `UniformTime` levels.
    - `data`: samples to train on and to look at; the losses are those of all of them, with the same
      draws before and after.
    - `tx`: what trains.
    - `groups`: number of groups.
    - `num_steps`, `batch_size`: of the training on each.
    - `key`: random key.

    **Raises:** `TypeError` if levels are not `UniformTime`.
    """
    _check(loss, groups)
    look_key, draw_key, train_key = jax.random.split(key, 3)
    context = Context(look_key, jnp.ones((), jnp.int32), None)
    data = jnp.asarray(data)
    batches = Drawn(data, batch_size, draw_key)

    return _conflict(model, loss, tx, groups, num_steps, data, batches, context, train_key)


@eqx.filter_jit
def _conflict(model, loss, tx, groups, num_steps, data, batches, context, train_key):
    losses, gradients = group_gradients(loss, groups, model, data, context)
    products = programs.gram(gradients)
    norms = jnp.sqrt(jnp.diagonal(products))
    cosines = products / (norms[:, None] * norms)

    def train(loss_of_group):
        method = GradientStep(loss_of_group, tx)
        tuned = fit(method, model, batches, num_steps, key=train_key).params
        return group_losses(loss, groups, tuned, data, context)

    after = _of_groups(train, loss, groups, data.dtype)
    return TaskConflict(cosines, losses, after - losses)
