"""The contract of samplers and their driver."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ..core import checks, loops
from ..core.closure import hoist
from .denoiser import Denoiser, Sample
from .schedules import AbstractSchedule, Node, Times


class AbstractSampler(eqx.Module):
    """Coefficients for every step, and a step.

    **Attributes:**

    - `evaluations_per_step`: how often a step evaluates the model.
    - `stochastic`: whether it draws noise.
    """

    @property
    @abc.abstractmethod
    def evaluations_per_step(self) -> int:
        """Model evaluations of one step."""

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return False

    @abc.abstractmethod
    def coefficients(self, here: Node, there: Node) -> PyTree[np.ndarray]:
        """Arrays with one entry for each step from `here` to `there`, in double precision."""

    @abc.abstractmethod
    def step(
        self,
        model: Denoiser,
        x: Sample,
        here: Node,
        there: Node,
        coefficients: PyTree,
        key: PRNGKeyArray,
    ) -> Sample:
        """One step; what it is given of nodes and coefficients are scalars."""


class Sampled(eqx.Module):
    """What `sample` returns.

    **Attributes:**

    - `value`: the sample.
    - `evaluations`: how often the model was evaluated.
    - `path`: the points behind each step, on a leading axis, or `None`.
    """

    value: Sample
    evaluations: int = eqx.field(static=True)
    path: Any = None


def sample(
    model: Denoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    x: Sample,
    *,
    key: PRNGKeyArray | None = None,
    denoise: bool = False,
    trace: bool = False,
) -> Sampled:
    """Move noise to data.

    Coefficients are computed on the host in double precision; the steps are one compiled scan that
    is not traced again for new numbers. Derivatives flow to `x` and to the model's leaves and
    closed-over arrays.

    **Arguments:**

    - `model`: a `Denoiser`.
    - `sampler`: how to step, `DDIM()` say.
    - `schedule`: the noise schedule that the model was trained with.
    - `times`: falling times, from `diffusion.grids` say; one step between each two.
    - `x`: the noisy start at `times[0]`, a pytree of floating-point arrays; see `prior`.
    - `key`: random key for stochastic samplers.
    - `denoise`: end with the predicted data at the last time, for one more evaluation.
    - `trace`: record the path.

    **Returns:** a `Sampled`.

    **Raises:** `ValueError` if times do not fall, leave the schedule's range, or a stochastic
    sampler gets no key; `TypeError` if `x` does not hold floating-point arrays.
    """
    if not isinstance(model, Denoiser):
        raise TypeError(f"model must be a Denoiser, got {type(model).__name__}")
    if not isinstance(sampler, AbstractSampler):
        raise TypeError(f"sampler must be an AbstractSampler, got {type(sampler).__name__}")
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) < 0):
        raise ValueError(f"times must be a vector that falls, of at least two, got {times}")
    low, high = schedule.end * (1 - 1e-9), schedule.start * (1 + 1e-9)
    if times[-1] < low or times[0] > high:
        raise ValueError(
            f"times must lie within [{schedule.end}, {schedule.start}], got {times[-1], times[0]}"
        )
    if sampler.stochastic and key is None:
        raise ValueError(f"{type(sampler).__name__} draws noise: pass a key")
    x = checks.inexact_tree("x", x)
    nodes = schedule.nodes(times)
    here, there = Node(*(a[:-1] for a in nodes)), Node(*(a[1:] for a in nodes))
    table = here, there, sampler.coefficients(here, there)
    real = jnp.finfo(jnp.result_type(*jax.tree.leaves(x))).dtype
    table = jax.tree.map(lambda a: jnp.asarray(a, real), table)
    key = jax.random.key(0) if key is None else key
    value, path = _run(hoist(model), sampler, x, table, key, denoise, trace)
    steps = len(times) - 1
    return Sampled(value, steps * sampler.evaluations_per_step + denoise, path)


@eqx.filter_jit
def _run(model, sampler, x, table, key, denoise, trace):
    def step(carry, row):
        x, key = carry
        key, now = jax.random.split(key)
        new = sampler.step(model, x, *row, now)
        new = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, x)
        return (new, key), new if trace else None

    (x, _), path = loops.scan(step, (x, key), table)
    if denoise:
        last = jax.tree.map(lambda a: a[-1], table[1])
        x = model.data(x, last)
    return x, path


def prior(schedule: AbstractSchedule, like: Sample, key: PRNGKeyArray) -> Sample:
    """Noise of the size that the schedule starts with, $\\sigma_T z$, shaped like `like`."""
    size = float(schedule.sigma(np.asarray(schedule.start)))
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, max(1, len(leaves)))
    draws = [
        size * jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=False)
    ]
    return treedef.unflatten(draws)
