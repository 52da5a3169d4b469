"""The contract of samplers and their driver."""

import abc
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ..core import checks, loops
from ..core.closure import hoist
from ..core.solution import Status
from .denoiser import AbstractDenoiser, Sample, combine
from .schedules import AbstractSchedule, Node, Times
from .segments import Segments, cut, segments


class AbstractSampler(eqx.Module):
    """A plan of coefficients, a start and a step.

    All numbers of a run are made on the host before it, as a table with a row for each step, so
    that steps of different orders are one compiled program. Earlier outputs of the model that a
    step needs are its memory; where there is no history yet, the table holds zeros.

    **Attributes:**

    - `stochastic`: whether it draws noise.
    - `reaches_zero`: whether the last time may be one without noise, $\\sigma = 0$, where the model
      is never evaluated.
    """

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return False

    @property
    def reaches_zero(self) -> bool:
        """Whether the last time may be one without noise."""
        return False

    @property
    def stepper(self) -> "AbstractSampler":
        """What `start` and `step` are taken of by `sample`: this, or one that leaves out what is in
        the plan already, so that a run with other numbers is the same program."""
        return self

    def unguided(self, table: PyTree) -> tuple["AbstractSampler", PyTree]:
        """The sampler that says where the model is called, and its table: this, unless it guides
        another."""
        return self, table

    def evaluations(self, num_steps: int) -> int:
        """Model evaluations of a run of so many steps, one in each if not told otherwise."""
        return num_steps

    @abc.abstractmethod
    def plan(self, schedule: AbstractSchedule, times: Times) -> PyTree[np.ndarray]:
        """Arrays with a row for each step between two `times`, in double precision; see `ends`."""

    def start(self, model: AbstractDenoiser, x: Sample, node: Node) -> Any:
        """The memory before the first step, at whose beginning `node` stands.

        A method of one step has none.
        """
        del model, x, node
        return ()

    @abc.abstractmethod
    def step(
        self,
        model: AbstractDenoiser,
        x: Sample,
        memory: Any,
        row: PyTree[Array],
        key: PRNGKeyArray,
    ) -> tuple[Sample, Any]:
        """The sample and the memory after a step; the numbers in `row` are scalars."""


def ends(schedule: AbstractSchedule, times: Times) -> tuple[Node, Node]:
    """The nodes where steps between falling `times` begin, and where they end."""
    nodes = schedule.nodes(times)
    return Node(*(a[:-1] for a in nodes)), Node(*(a[1:] for a in nodes))


class Sampled(eqx.Module):
    """What `sample` returns.

    **Attributes:**

    - `value`: the sample.
    - `evaluations`: how often the model was evaluated; an array where the run decided that.
    - `path`: the points behind each step, on a leading axis, or `None`.
    - `status`: a `Status` from drivers that may stop before the end, `converged` at the end; else
      `None`.
    - `rounds`: of drivers that evaluate many steps at once, how often one after the other; else
      `None`.
    """

    value: Sample
    evaluations: int | Int[Array, "*n"]
    path: Any = None
    status: Status | None = None
    rounds: Int[Array, "*n"] | None = None


def sample(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    x: Sample,
    *,
    key: PRNGKeyArray | None = None,
    denoise: bool = False,
    trace: bool = False,
    checkpoint: bool = False,
) -> Sampled:
    """Move noise to data.

    Coefficients are computed on the host in double precision; the steps are one compiled scan that
    is not traced again for new numbers. Derivatives flow to `x` and to the model's leaves and
    closed-over arrays.

    **Arguments:**

    - `model`: a `Denoiser`, or one that wraps it.
    - `sampler`: how to step, `DDIM()` say.
    - `schedule`: the noise schedule that the model was trained with.
    - `times`: falling times, from `diffusion.grids` say; one step between each two.
    - `x`: the noisy start at `times[0]`, a pytree of floating-point arrays; see `prior`.
    - `key`: random key for stochastic samplers.
    - `denoise`: end with the predicted data at the last time, for one more evaluation; where no
      noise is left there they are what the last step gives.
    - `trace`: record the path.
    - `checkpoint`: reverse mode keeps the samples between steps only, and evaluates the model once
      more.

    **Returns:** a `Sampled`.

    **Raises:** `ValueError` if times do not fall, leave the schedule's range, or a stochastic
    sampler gets no key; `TypeError` if `x` does not hold floating-point arrays.
    """
    x, key, times = prepare(model, sampler, schedule, times, x, key)
    plan = Plan(schedule.nodes(times), sampler.plan(schedule, times))
    denoise = denoise and bool(schedule.sigma(times[-1]) > 0)
    options = {"denoise": denoise, "trace": trace, "checkpoint": checkpoint}
    value, path = follow(model, sampler, plan, x, key, **options)
    return Sampled(value, sampler.evaluations(len(times) - 1) + denoise, path)


class Plan(NamedTuple):
    """All numbers of a run.

    **Attributes:**

    - `nodes`: where steps begin and end, one more than there are steps.
    - `rows`: the sampler's table; a step may have more than one.
    """

    nodes: Node
    rows: PyTree[Array]


def plan_run(sampler: AbstractSampler, schedule: AbstractSchedule, times: Times) -> Plan:
    """The plan of a run, from the host; raises what `sample` raises of these three."""
    checks.instance("sampler", sampler, AbstractSampler, "DDIM()")
    checks.instance("schedule", schedule, AbstractSchedule, "VariancePreserving()")
    times = check_times(schedule, times, to_zero=sampler.reaches_zero)
    return Plan(schedule.nodes(times), sampler.plan(schedule, times))


def follow(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    plan: Plan,
    x: Sample,
    key: PRNGKeyArray,
    *,
    denoise: bool = False,
    trace: bool = False,
    checkpoint: bool = False,
) -> tuple[Sample, Any]:
    """The sample at the end of a plan, and the path or `None`; options as in `sample`."""
    model, sampler = hoist(model), hoist(sampler.stepper)
    first, last = (jax.tree.map(lambda a: a[i], plan.nodes) for i in (0, -1))  # noqa: B023
    parts = segments(model, sampler, x, first, plan.rows, last)
    plan = as_numbers(plan, x)
    return _run(model, sampler, x, plan, key, denoise, trace, checkpoint, parts)


def prepare(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    x: Sample,
    key: PRNGKeyArray | None,
) -> tuple[Sample, PRNGKeyArray, Times]:
    """Start, key and times of a run, checked; raises what `sample` raises."""
    if not isinstance(model, AbstractDenoiser):
        raise TypeError(f"model must be a Denoiser, got {type(model).__name__}")
    if not isinstance(sampler, AbstractSampler):
        raise TypeError(f"sampler must be an AbstractSampler, got {type(sampler).__name__}")
    times = check_times(schedule, times, to_zero=sampler.reaches_zero)
    if sampler.stochastic and key is None:
        raise ValueError(f"{type(sampler).__name__} draws noise: pass a key")
    key = jax.random.key(0) if key is None else key
    return checks.inexact_tree("x", x), key, times


def check_times(schedule: AbstractSchedule, times: Times, *, to_zero: bool = False) -> Times:
    """`times` in double precision; `ValueError` unless they fall and lie within the schedule's, or,
    where `to_zero` allows it, end without noise."""
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) < 0):
        raise ValueError(f"times must be a vector that falls, of at least two, got {times}")
    inner = times[:-1] if to_zero and schedule.sigma(times[-1]) == 0 else times
    low, high = schedule.end * (1 - 1e-9), schedule.start * (1 + 1e-9)
    if inner[-1] < low or times[0] > high:
        raise ValueError(
            f"times must lie within [{schedule.end}, {schedule.start}], got {times[-1], times[0]}"
        )
    return times


def as_numbers(table: PyTree[np.ndarray], x: Sample) -> PyTree[Array]:
    """Numbers of the host in the real type of `x`; whole numbers and truth values stay."""
    real = jnp.finfo(jnp.result_type(*jax.tree.leaves(x))).dtype

    def leaf(a):
        floating = jnp.issubdtype(jnp.result_type(a), jnp.floating)
        return jnp.asarray(a, real) if floating else jnp.asarray(a)

    return jax.tree.map(leaf, table)


def memoryless(model: AbstractDenoiser, sampler: AbstractSampler, plan: Plan, like: Sample) -> Plan:
    """The plan in the type of `like`; `ValueError` if the sampler remembers outputs."""
    plan = as_numbers(plan, like)
    node = jax.tree.map(lambda a: a[0], plan.nodes)
    if jax.tree.leaves(jax.eval_shape(lambda x: sampler.start(model, x, node), like)):
        raise ValueError(f"sampler must have no memory, got {sampler!r}")
    return plan


@eqx.filter_jit
def _run(model, sampler, x, plan, key, denoise, trace, checkpoint, parts: Segments):
    def step(model, carry, now):
        x, memory = carry
        new = sampler.step(model, x, memory, *now)
        new = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, carry)
        return new, new[0] if trace else None

    first, last = (jax.tree.map(lambda a: a[i], plan.nodes) for i in (0, -1))  # noqa: B023
    rows = plan.rows, jax.random.split(key, parts.num_steps)
    carry = x, sampler.start(cut(model, parts.start), x, first)
    done, paths = 0, []
    for length, depths in parts.steps:
        now = jax.tree.map(lambda a, i=done, n=length: a[i : i + n], rows)
        one = functools.partial(step, cut(model, depths))
        # A scan keeps a step from being merged with its repetition.
        one = jax.checkpoint(one, prevent_cse=False) if checkpoint else one
        carry, path = loops.scan(one, carry, now)
        paths.append(path)
        done += length
    x, _ = carry
    if denoise:
        x = cut(model, parts.last).data(x, last)
    return x, jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *paths)


def prior(schedule: AbstractSchedule, like: Sample, key: PRNGKeyArray, time: Any = None) -> Sample:
    """Noise of the size that the schedule has at a time, where it starts if none is given,
    $\\sigma_T z$, shaped like `like`."""
    size = float(schedule.sigma(np.asarray(schedule.start if time is None else time)))
    return combine((size, gaussian(like, key)))


def noisy(data: Sample, node: Node, key: PRNGKeyArray) -> Sample:
    """$\\alpha x_0 + \\sigma z$: the data at a level of noise."""
    return combine((node.alpha, data), (node.sigma, gaussian(data, key)))


def gaussian(like: Sample, key: PRNGKeyArray) -> Sample:
    """Standard normal numbers, shaped like `like`; each leaf has a key of its own."""
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, max(1, len(leaves)))
    return treedef.unflatten(
        [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=False)]
    )
