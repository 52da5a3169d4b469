"""Samplers that run backwards: from a sample to the noise that it comes from, and back."""

import abc
import math
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core import loops
from ..core.closure import hoist
from .denoiser import AbstractDenoiser, Sample, combine
from .sampler import (
    AbstractSampler,
    Sampled,
    as_numbers,
    check_times,
    ends,
    prepare,
)
from .schedules import AbstractSchedule, Node, Times


class Chain(NamedTuple):
    """Where a run stands.

    **Attributes:**

    - `value`: the point.
    - `memory`: what the sampler remembers besides, a second point for `BDIA` and `EDICT`.
    """

    value: Sample
    memory: Any


class AbstractInvertible(AbstractSampler):
    """A sampler without noise whose steps can be undone.

    **Attributes:**

    - `opening`: how many first steps make up the memory from the start alone. They are left out
      between a sample and its code, which holds the memory instead.
    """

    @property
    def opening(self) -> int:
        """How many first steps are left out of codes."""
        return 0

    @abc.abstractmethod
    def undo(
        self, model: AbstractDenoiser, x: Sample, memory: Any, row: PyTree[Array]
    ) -> tuple[Sample, Any]:
        """The sample and the memory before the step of `row`, from those after it."""

    @abc.abstractmethod
    def enter(self, model: AbstractDenoiser, x: Sample, row: PyTree[Array]) -> tuple[Sample, Any]:
        """A sample and a memory after the last step, whose row is given, for a sample alone."""

    def growth(self, num_steps: int) -> float:
        """Logarithm of the factor by which so many steps undone enlarge errors of rounding."""
        del num_steps
        return 0.0


def invert(
    model: AbstractDenoiser,
    sampler: AbstractInvertible,
    schedule: AbstractSchedule,
    times: Times,
    value: Sample,
    memory: Any,
) -> Chain:
    """Undo a whole run, from its last state to the noise.

    **Arguments:**

    - `model`, `sampler`, `schedule`, `times`: those of the run, guidance included.
    - `value`: the sample at `times[-1]`.
    - `memory`: the memory there; for `BDIA` the point at `times[-2]`, which `sample` records with
      `trace`.

    **Returns:** the `Chain` at `times[0]`, whose `value` is the noise.

    **Raises:** `TypeError` if the sampler cannot be undone; `ValueError` as `sample` does, or if a
    hyperparameter makes it impossible. Warns if rounding would grow beyond half of the digits.
    """
    rows, _ = _rows(model, sampler, schedule, times, value, sampler.reaches_zero)
    _warn(sampler, len(times) - 1, value)
    return _undo_all(hoist(model), sampler, Chain(value, memory), rows)


def encode(
    model: AbstractDenoiser,
    sampler: AbstractInvertible,
    schedule: AbstractSchedule,
    times: Times,
    value: Sample,
) -> Chain:
    """The code of a sample, from which `decode` makes it again.

    To edit, decode with another condition. Where the model's own flow runs away from the sample,
    as a trained one may from data that are not like its own, so does the code.

    **Arguments:**

    - `model`, `sampler`, `schedule`, `times`: as in `sample`; the last time must be noisy.
    - `value`: a sample at `times[-1]`, data say.

    **Returns:** a `Chain` near `times[0]`.

    **Raises:** as `invert`.
    """
    rows, last = _rows(model, sampler, schedule, times, value, False)
    _warn(sampler, len(times) - 1 - sampler.opening, value)
    return _encode(hoist(model), sampler, value, rows, last)


def decode(
    model: AbstractDenoiser,
    sampler: AbstractInvertible,
    schedule: AbstractSchedule,
    times: Times,
    code: Chain,
) -> Chain:
    """The sample of a code, and the memory behind it; see `encode`.

    **Arguments:**

    - `model`, `sampler`, `schedule`, `times`: as in `encode`.
    - `code`: what that returned.

    **Raises:** as `invert`.
    """
    rows, _ = _rows(model, sampler, schedule, times, code.value, False)
    return _decode(hoist(model), sampler, code, rows)


def sample_reversible(
    model: AbstractDenoiser,
    sampler: AbstractInvertible,
    schedule: AbstractSchedule,
    times: Times,
    x: Sample,
) -> Sampled:
    """`sample`, with a derivative whose memory does not grow with the number of steps: on the way
    back each point is recovered by undoing the step.

    It is the derivative of the discrete run, up to the rounding of what is undone; one more
    evaluation for each step than by keeping all points. Reverse mode only.

    **Arguments:** as in `sample`; the sampler's steps must be undone exactly, as those of `BDIA`
    with `gamma` at or near 1.

    **Raises:** as `invert`.

    **Reference:** Zhang, Lewis, Kleijn, Exact Diffusion Inversion via Bi-directional Integration
    Approximation, 2024, arXiv:2307.10829 (the inversion).
    """
    _invertible(sampler)
    x, _, times = prepare(model, sampler, schedule, times, x, None)
    _warn(sampler, len(times) - 1, x)
    begin, rows = as_numbers((schedule.nodes(times[0]), sampler.plan(schedule, times)), x)
    value = _run(hoist(model), sampler, x, begin, rows)
    return Sampled(value, sampler.evaluations(len(times) - 1))


def _invertible(sampler):
    if not isinstance(sampler, AbstractInvertible):
        raise TypeError(f"sampler must be an AbstractInvertible, got {type(sampler).__name__}")


def _rows(model, sampler, schedule, times, x, to_zero):
    """The table of a run and its last row."""
    _invertible(sampler)
    prepare(model, sampler, schedule, times, x, None)
    times = check_times(schedule, times, to_zero=to_zero)
    rows = as_numbers(sampler.plan(schedule, times), x)
    return rows, jax.tree.map(lambda a: a[-1], rows)


def _warn(sampler, num_steps, x):
    epsilon = jnp.finfo(jnp.result_type(*jax.tree.leaves(x))).eps
    growth = sampler.growth(num_steps)
    if growth > -0.5 * math.log(epsilon):
        warnings.warn(
            f"{num_steps} steps undone enlarge rounding errors by exp({growth:.3g}), more than "
            f"half of the digits of numbers with spacing {epsilon:.2g}",
            stacklevel=3,
        )


def _same_types(new, old):
    return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, old)


def _forward(model, sampler, state, rows):
    def step(state, row):
        return _same_types(sampler.step(model, *state, row, jax.random.key(0)), state), None

    return loops.scan(step, tuple(state), rows)[0]


def _backward(model, sampler, state, rows):
    def step(state, row):
        return _same_types(sampler.undo(model, *state, row), state), None

    return loops.scan(step, tuple(state), rows, reverse=True)[0]


@eqx.filter_jit
def _undo_all(model, sampler, state, rows):
    return Chain(*_backward(model, sampler, state, rows))


@eqx.filter_jit
def _encode(model, sampler, x, rows, last):
    rows = jax.tree.map(lambda a: a[sampler.opening :], rows)
    return Chain(*_backward(model, sampler, sampler.enter(model, x, last), rows))


@eqx.filter_jit
def _decode(model, sampler, state, rows):
    rows = jax.tree.map(lambda a: a[sampler.opening :], rows)
    return Chain(*_forward(model, sampler, state, rows))


@eqx.filter_jit
def _run(model, sampler, x, begin, rows):
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    # Devices of a mesh each have their own derivatives; where they share a leaf, these are summed
    # by what makes it theirs.
    axes = loops.varying_axes((arrays, x))
    model, x = eqx.combine(loops.vary(arrays, axes), rest), loops.vary(x, axes)
    return _reversible((model, x), sampler, begin, rows)


@eqx.filter_custom_vjp
def _reversible(model_and_x, sampler, begin, rows):
    model, x = model_and_x
    return _forward(model, sampler, (x, sampler.start(model, x, begin)), rows)[0]


@_reversible.def_fwd
def _reversible_forward(perturbed, model_and_x, sampler, begin, rows):
    del perturbed
    model, x = model_and_x
    state = _forward(model, sampler, (x, sampler.start(model, x, begin)), rows)
    return state[0], state


@_reversible.def_bwd
def _reversible_backward(state, cotangent, perturbed, model_and_x, sampler, begin, rows):
    model, x = model_and_x
    theta, rest = eqx.partition(model, perturbed[0])

    def one(theta, state, row):
        new = sampler.step(eqx.combine(theta, rest), *state, row, jax.random.key(0))
        return _same_types(new, state)

    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    pull = jax.tree.map(
        lambda c, a: jnp.zeros_like(a) if c is None else c,
        cotangent,
        state[0],
        is_leaf=lambda leaf: leaf is None,
    )

    def step(carry, row):
        state, pulls, share = carry
        before = _same_types(sampler.undo(model, *state, row), state)
        _, back = jax.vjp(lambda theta, before: one(theta, before, row), theta, before)
        more, pulls = back(pulls)
        return (before, pulls, combine((1, share), (1, more))), None

    carry = state, (pull, zeros(state[1])), zeros(theta)
    (_, pulls, share), _ = loops.scan(step, carry, rows, reverse=True)
    start = lambda theta, x: (x, sampler.start(eqx.combine(theta, rest), x, begin))
    more, pull = jax.vjp(start, theta, x)[1](pulls)
    grads = combine((1, share), (1, more)), pull
    return eqx.combine(grads, jax.tree.map(lambda _: None, model_and_x))


class DDIMInversion(AbstractInvertible):
    """DDIM, undone as if the noise had not changed along the step: what exact inversion is measured
    against,

    $$z_i \\approx \\tfrac{\\alpha_i}{\\alpha_{i-1}} z_{i-1}
    + \\big(\\sigma_i - \\tfrac{\\alpha_i}{\\alpha_{i-1}} \\sigma_{i-1}\\big)\\,
    e(z_{i-1}, i - 1).$$

    **Reference:** Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021,
    arXiv:2105.05233.
    """

    @property
    def reaches_zero(self):
        return False

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        return here, there, *transfer(here, there), *transfer(there, here)

    def step(self, model, x, memory, row, key):
        here, _, keep, move, _, _ = row
        return combine((keep, x), (move, model.noise(x, here))), memory

    def undo(self, model, x, memory, row):
        _, there, _, _, keep, move = row
        return combine((keep, x), (move, model.noise(x, there))), memory

    def enter(self, model, x, row):
        return x, ()


def transfer(here: Node, there: Node):
    """How DDIM's move from one level to another, either way, weighs the point and its noise."""
    keep = there.alpha / here.alpha
    return keep, there.sigma - here.sigma * keep
