"""The driver of training steps: one scan over batches, and ways to make them."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ..core import checkpoint as files, checks, loops, rows
from ..core.closure import hoist
from ..core.progress import progress_bar
from .step import AbstractTrainingStep, Metrics

Batches = PyTree[Array] | Callable[[Int[Array, ""]], PyTree[Array]]


class Fit(eqx.Module):
    """What `fit` returns.

    **Attributes:**

    - `params`: the parameters after the last step.
    - `state`: the whole state.
    - `steps`: steps done, those before an interruption included.
    - `metrics`: what each step reported, stacked on a leading axis of steps; `metrics["finite"]`
      tells which batches left a trace.
    """

    params: PyTree
    state: Any
    steps: int
    metrics: Metrics

    def __str__(self) -> str:
        """What happened, in a line or two."""
        lines = [f"{self.steps} steps"]
        if self.steps:
            lines[0] += f", last loss {float(self.metrics['loss'][-1]):.3g}"
            if lost := int(np.sum(~np.asarray(self.metrics["finite"]))):
                lines.append(f"{lost} batches were not finite and left no trace")
        return "\n".join(lines)


class Shuffled(eqx.Module):
    """Batches of a table in random order, each row once in an epoch; a function of the step.

    It gives `(rows, index)`, for methods that keep a number for each sample. What is left of an
    epoch that is no whole batch is not seen in it. A step draws the epoch's order again, which
    costs $O(n)$.

    **Arguments:**

    - `data`: arrays with a common leading axis $n$.
    - `batch_size`: rows in a batch.
    - `key`: random key.

    **Raises:** `ValueError` if there are no common rows, or fewer than `batch_size`.
    """

    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)
    key: PRNGKeyArray

    def __check_init__(self):
        rows.check(self.data)
        checks.count("batch_size", self.batch_size)
        if self.batch_size > rows.count(self.data):
            raise ValueError(
                f"batch_size must be at most the number of rows, {rows.count(self.data)}, got "
                f"{self.batch_size}"
            )

    def __call__(self, step: Int[Array, ""]) -> tuple[PyTree[Array], Int[Array, " b"]]:
        n = rows.count(self.data)
        epoch, place = jnp.divmod(step, n // self.batch_size)
        order = jax.random.permutation(jax.random.fold_in(self.key, epoch), n).astype(jnp.int32)
        index = jax.lax.dynamic_slice_in_dim(order, place * self.batch_size, self.batch_size)
        return rows.take(self.data, index), index


class Drawn(eqx.Module):
    """Batches of rows of a table, drawn with replacement; a function of the step.

    **Arguments:**

    - `data`: arrays with a common leading axis.
    - `batch_size`: rows in a batch.
    - `key`: random key.

    **Raises:** `ValueError` if there are no common rows.
    """

    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)
    key: PRNGKeyArray

    def __check_init__(self):
        rows.check(self.data)
        checks.count("batch_size", self.batch_size)

    def __call__(self, step: Int[Array, ""]) -> PyTree[Array]:
        key = jax.random.fold_in(self.key, step)
        high = rows.count(self.data)
        return rows.take(self.data, jax.random.randint(key, (self.batch_size,), 0, high))


class Fresh(eqx.Module):
    """Batches that are never seen again; a function of the step.

    **Arguments:**

    - `draw`: from a random key to a batch.
    - `key`: random key.
    """

    draw: Callable[[PRNGKeyArray], PyTree[Array]]
    key: PRNGKeyArray

    def __call__(self, step: Int[Array, ""]) -> PyTree[Array]:
        return self.draw(jax.random.fold_in(self.key, step))


def fit(
    method: AbstractTrainingStep,
    params: PyTree,
    batches: Batches,
    num_steps: int | None = None,
    *,
    key: PRNGKeyArray | None = None,
    checkpoint: str | os.PathLike | None = None,
    piece: int = 100,
    progress: bool = True,
) -> Fit:
    """Train on a batch a step.

    Inside of `jit`, `vmap`, `grad` and `shard_map` it is a part of the program: one scan, without a
    bar or a checkpoint.

    **Arguments:**

    - `method`: the training step.
    - `params`: first parameters, any pytree; its floating-point arrays are trained.
    - `batches`: one for each step, stacked on the leading axis; or a function of the step's number
      from 0, traced once. Arrays that it closes over are arguments of the program.
    - `num_steps`: steps in all, those of a resumed run included; if not given, as many as there are
      stacked batches.
    - `key`: random key, `jax.random.key(0)` if not given.
    - `checkpoint`: a file that holds the state after each piece. If it exists, training goes on
      from there and ends bit for bit where it would have ended without the interruption.
    - `piece`: steps compiled into one program, between checkpoints and moves of the bar.
    - `progress`: show a bar if it takes longer than a second.

    **Raises:** `TypeError` if `method` is not a training step; `ValueError` for fewer batches than
    steps, for stacked batches that the method cannot be trained on, for a checkpoint of more steps
    than these, or of other shapes, and for one inside of a transformation.
    """
    if not isinstance(method, AbstractTrainingStep):
        raise TypeError(f"method must be a training step, got {method!r}")
    num_steps = _check_steps(batches, num_steps)
    checks.count("piece", piece)
    key = jax.random.key(0) if key is None else key
    if not callable(batches):
        method.check(batches)
        batches = jax.tree.map(jnp.asarray, batches)
    method, batches = hoist((method, batches))
    # In `jit` all that is computed is traced; `grad` and `vmap` alone trace what they are given.
    if checks.is_traced((jnp.zeros(()), method, batches, params, key)):
        if checkpoint is not None:
            raise ValueError("a fit inside of a JAX transformation cannot write a checkpoint")
        state = _start(method, params, batches, key)
        state, metrics = _scan(method, state, batches, 0, num_steps)
        return Fit(state.params, state, num_steps, metrics)
    state = _init(method, params, batches, key)
    done, pieces = 0, []
    path = None if checkpoint is None else pathlib.Path(checkpoint)
    if path is not None and path.exists():
        done, state, found = _resume(path, method, state, batches, num_steps)
        pieces.append(found)
    with progress_bar(num_steps, type(method).__name__, enabled=progress) as advance:
        advance(done)
        while done < num_steps:
            length = min(piece, num_steps - done)
            state, found = _advance(method, state, batches, jnp.asarray(done, jnp.int32), length)
            pieces.append(jax.device_get(found) if path is not None else found)
            done += length
            if path is not None:
                pieces = [_joined(pieces)]
                files.save(path, (done, _arrays(state), pieces[0]))
            if progress:
                advance(length, loss=found["loss"][-1])
    if not pieces:
        pieces.append(_scan(method, state, batches, 0, 0)[1])
    metrics = jax.tree.map(jnp.asarray, pieces[0] if len(pieces) == 1 else _joined(pieces))
    return Fit(state.params, state, done, metrics)


def _check_steps(batches, num_steps):
    if num_steps is not None:
        checks.count("num_steps", num_steps, minimum=0)
    if callable(batches):
        if num_steps is None:
            raise ValueError("num_steps must be given with batches that are a function of the step")
        return num_steps
    rows.check(batches)
    there = rows.count(batches)
    if num_steps is not None and num_steps > there:
        raise ValueError(f"there are {there} batches for {num_steps} steps")
    return there if num_steps is None else num_steps


def _batch(batches, step):
    return batches(step) if callable(batches) else rows.take(batches, step)


def _start(method, params, batches, key):
    return method.init(params, _batch(batches, jnp.zeros((), jnp.int32)), key)


def _arrays(state):
    return eqx.filter(state, eqx.is_array)


def _scan(method, state, batches, first, length) -> tuple[Any, Metrics]:
    arrays, rest = eqx.partition(state, eqx.is_array)

    def body(arrays, step):
        state, metrics = method.step(eqx.combine(arrays, rest), _batch(batches, step))
        return _arrays(state), metrics

    steps = first + jnp.arange(length, dtype=jnp.int32)
    metrics: Any
    arrays, metrics = loops.scan(body, arrays, steps)
    return eqx.combine(arrays, rest), metrics


_init = eqx.filter_jit(_start)
_advance = eqx.filter_jit(_scan)


def _joined(pieces):
    return jax.tree.map(lambda *parts: np.concatenate([*map(np.asarray, parts)]), *pieces)


def _resume(path, method, state, batches, num_steps):
    """Steps done, state and metrics of a file."""
    # The number of steps comes first in the file, since it decides the shape of the rest.
    done = files.load(path, 0)
    if done > num_steps:
        raise ValueError(f"{path} holds {done} steps, more than num_steps = {num_steps}")
    arrays, rest = eqx.partition(state, eqx.is_array)
    one = jax.eval_shape(
        lambda arrays: _scan(method, eqx.combine(arrays, rest), batches, 0, 1)[1], arrays
    )
    stacked = lambda s: np.zeros((done, *s.shape[1:]), s.dtype)
    try:
        done, found, metrics = files.load(path, (0, arrays, jax.tree.map(stacked, one)))
    except RuntimeError as error:
        raise ValueError(f"{path} holds another run: {error}") from error
    # Where nothing was placed, a placed array would be another program.
    place = lambda value, twin: (
        jax.device_put(value, twin.sharding) if twin.committed else jnp.asarray(value)
    )
    return done, eqx.combine(jax.tree.map(place, found, arrays), rest), metrics
