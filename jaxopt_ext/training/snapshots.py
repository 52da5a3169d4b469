"""Snapshots of what is trained, taken on the way."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from ..core import checks
from .step import AbstractTrainingStep


def averaged(state: Any) -> PyTree:
    """The averages of a state that has some, else its parameters."""
    found = getattr(state, "averaged", None)
    return state.params if found is None else found


class SnapshotState(eqx.Module):
    """State of `Snapshots`: that of the method, the snapshots so far, steps done."""

    inner: Any
    snapshots: PyTree[Array]
    step: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The parameters."""
        return self.inner.params

    @property
    def opt_state(self) -> PyTree[Array]:
        """The state of the optimizer."""
        return self.inner.opt_state

    @property
    def averaged(self) -> PyTree:
        """The average, or the averages, if the method has any."""
        return getattr(self.inner, "averaged", None)


class Snapshots(AbstractTrainingStep):
    """Another training step, with snapshots after every so many steps.

    They come back in `fit(...).state.snapshots`, stacked on a leading axis of `count`: the first is
    of step `every`, the second of step `2 * every`; those that were not reached are zero. They are
    part of the state, so a resumed run has them all.

    **Arguments:**

    - `method`: the training step.
    - `every`: steps between snapshots.
    - `count`: how many there is room for; later steps leave none.
    - `of`: from the method's state to the pytree whose arrays are kept: the averages if there are
      any, else the parameters, if not given.

    **Raises:** `TypeError` if `method` is no training step; `ValueError` for a number below 1.
    """

    method: AbstractTrainingStep
    every: int = eqx.field(static=True)
    count: int = eqx.field(static=True)
    of: Callable[[Any], PyTree] = averaged

    def __check_init__(self):
        checks.instance("method", self.method, AbstractTrainingStep, "GradientStep(loss, tx)")
        checks.count("every", self.every)
        checks.count("count", self.count)

    def check(self, batch):
        self.method.check(batch)

    def init(self, params, batch, key):
        state = self.method.init(params, batch, key)
        room = lambda leaf: jnp.zeros((self.count, *leaf.shape), leaf.dtype)
        arrays = eqx.filter(self.of(state), eqx.is_array)
        return SnapshotState(state, jax.tree.map(room, arrays), jnp.zeros((), jnp.int32))

    def step(self, state, batch):
        inner, metrics = self.method.step(state.inner, batch)
        number = state.step + 1
        # One row is written in place at each step, mostly with what it held; choosing between two
        # whole tables would copy them.
        due = number % self.every == 0
        place = number // self.every - due
        fits = place < self.count

        def write(table, leaf):
            old = jax.lax.dynamic_index_in_dim(table, place, keepdims=False)
            new = jnp.where(due & fits, leaf, old)
            return jax.lax.dynamic_update_index_in_dim(table, new, place, 0)

        taken = eqx.filter(self.of(inner), eqx.is_array)
        snapshots = jax.tree.map(write, state.snapshots, taken)
        return SnapshotState(inner, snapshots, number), metrics
