"""Training of models that know whole trajectories of the probability flow."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, loops, tree
from ..training.step import Context
from .denoiser import AbstractDenoiser, combine
from .heun import Heun
from .objectives import AbstractLevels, DenoisingLoss, LogNormal
from .sampler import AbstractSampler, Plan, gaussian, memoryless, plan_run
from .schedules import AbstractSchedule, Times
from .trajectories import AbstractTrajectory, GammaSampler, TrajectoryModel, jump
from .weightings import EDMWeighting


class AbstractSpans(eqx.Module):
    """A law of the number of steps that the teacher takes."""

    max_span: eqx.AbstractVar[int | None]

    def __check_init__(self):
        if self.max_span is not None:
            checks.count("max_span", self.max_span)

    @abc.abstractmethod
    def weights(self, spans: np.ndarray) -> np.ndarray:
        """Of spans 1, 2, .., up to a factor."""

    def logits(self, num_steps: int) -> np.ndarray:
        """Logarithms of the probabilities of spans 1 to the largest, up to a constant."""
        high = num_steps if self.max_span is None else min(self.max_span, num_steps)
        return np.log(self.weights(np.arange(1, high + 1)))


class WeightedSpans(AbstractSpans):
    """A span is drawn as often as it is long.

    **Arguments:**

    - `max_span`: the largest; all steps of the grid if not given.

    **Raises:** `ValueError` if it is below 1.
    """

    max_span: int | None = eqx.field(static=True, default=None)

    def weights(self, spans):
        return np.asarray(spans, np.float64)


class UniformSpans(AbstractSpans):
    """All spans are as likely.

    **Arguments:**

    - `max_span`: the largest; all steps of the grid if not given.

    **Raises:** `ValueError` if it is below 1.
    """

    max_span: int | None = eqx.field(static=True, default=None)

    def weights(self, spans):
        return np.ones(len(spans))


class AbstractTargets(eqx.Module):
    """A law of the levels that jumps lead to."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, first: Int[Array, " n"], last: int) -> Int[Array, " n"]:
        """Places in the grid, from where the teacher's steps end, `first`, to `last`."""


class AnyTarget(AbstractTargets):
    """Uniform over what is left of the grid, both ends included: soft consistency."""

    def draw(self, key, first, last):
        return jax.random.randint(key, first.shape, first, last + 1)


class LastTarget(AbstractTargets):
    """Always the end of the grid: global consistency, that of consistency models."""

    def draw(self, key, first, last):
        return jnp.full_like(first, last)


class NearestTarget(AbstractTargets):
    """Where the teacher's steps end: local consistency."""

    def draw(self, key, first, last):
        return first


class KarrasLevels(AbstractLevels):
    r"""Levels whose $1/\rho$-th power is uniform on a part of the schedule's, from its noisy end.

    **Arguments:**

    - `schedule`: the noise schedule.
    - `high`: the part, in (0, 1].
    - `rho`: $\rho$.

    **Raises:** `ValueError` for arguments out of range.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    schedule: AbstractSchedule
    high: float = 0.7
    rho: float = 7.0

    def __check_init__(self):
        checks.interval("high", self.high, 0.0, 1.0, open_low=True)
        checks.positive("rho", self.rho)

    def draw(self, key, size, dtype):
        ends = np.array([self.schedule.start, self.schedule.end])
        first, last = np.exp(-self.schedule.log_snr(ends) / self.rho).tolist()
        ramp = self.high * jax.random.uniform(key, (size,), dtype)
        log_snr = -self.rho * jnp.log(first + ramp * (last - first))
        return self.schedule.nodes(self.schedule.time_at(log_snr))


class MixedLevels(AbstractLevels):
    """The first half of a batch has levels of one law, the second those of another.

    **Arguments:**

    - `first`, `second`: the laws.
    """

    first: AbstractLevels
    second: AbstractLevels

    def draw(self, key, size, dtype):
        keys = jax.random.split(key)
        half = size - size // 2
        one = self.first.draw(keys[0], half, dtype)
        other = self.second.draw(keys[1], size // 2, dtype)
        join = lambda a, b: jnp.concatenate([jnp.asarray(a, dtype), jnp.asarray(b, dtype)])
        return jax.tree.map(join, one, other)


class SquaredDistance(eqx.Module):
    """The mean square of the difference of two samples, or of their features.

    **Arguments:**

    - `features`: from samples `(n, ...)` to features `(n, ...)`; the samples themselves if left
      out.
    """

    features: Callable[[Float[Array, "n ..."]], Float[Array, "n ..."]] | None = None

    def __call__(self, x: Float[Array, "n ..."], y: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """One distance for each pair."""
        look = (lambda x: x) if self.features is None else self.features
        gap = (look(x) - look(y)) ** 2
        return jnp.mean(gap, axis=tuple(range(1, gap.ndim)))


def last_layer(model: TrajectoryModel) -> PyTree:
    """The last layer of a `TrajectoryNetwork`'s network."""
    network: Any = model.network
    return network.network.last


class AdaptiveWeight(eqx.Module):
    r"""$|\nabla L_{main}| / (|\nabla L_{other}| + 10^{-4})$ with gradients in one layer, clipped;
    it has no derivative.

    **Arguments:**

    - `where`: from the model to that layer.
    - `low`, `high`: the weight is clipped to these.

    **Raises:** `ValueError` unless `0 <= low < high`.

    **Reference:** Esser, Rombach, Ommer, Taming Transformers for High-Resolution Image Synthesis,
    2021, arXiv:2012.09841.
    """

    where: Callable[[Any], PyTree] = last_layer
    low: float = 0.0
    high: float = 1e4

    def __check_init__(self):
        checks.nonnegative("low", self.low)
        if not self.low < self.high:
            raise ValueError(f"need low < high, got {self.low} and {self.high}")

    def __call__(self, main: Callable, other: Callable, model: Any) -> Float[Array, ""]:
        """The weight of `other`, a function of the model as `main` is."""
        model = _fixed(model)
        layer, rest = eqx.partition(self.where(model), eqx.is_inexact_array)
        put = lambda layer: eqx.tree_at(self.where, model, eqx.combine(layer, rest))
        size = lambda fun: tree.norm(tree.gradient(lambda layer: fun(put(layer)), layer))
        return jnp.clip(size(main) / (size(other) + 1e-4), self.low, self.high)


class HingeAdversary(eqx.Module):
    r"""An adversarial term, $-\mathbb E\, d(\hat x)$ of the model and $\mathbb E\,(1 - d(x))_+ +
    \mathbb E\,(1 + d(\hat x))_+$ of the critic d, each without derivative in the other's weights.

    Both are descended in one step; `optax.multi_transform` gives them optimizers of their own.

    **Arguments:**

    - `weight`: of the model's term, a number or an `AdaptiveWeight`.
    - `start_step`: both terms are zero up to this step.

    **Raises:** `ValueError` for negative numbers.
    """

    weight: Any = AdaptiveWeight(low=0.01, high=10.0)
    start_step: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        _check_weight(self.weight)
        checks.count("start_step", self.start_step, minimum=0)


class WithCritic(eqx.Module):
    """A trajectory model and the critic it is trained against.

    **Arguments:**

    - `trajectory`: the model.
    - `critic`: from one sample to a number.
    """

    trajectory: AbstractTrajectory
    critic: Callable[[Array], Float[Array, ""]]


class _Jumps(NamedTuple):
    """Places of a batch in the grid, data with noise there, and where a teacher leads to."""

    here: Any
    middle: Any
    there: Any
    noisy: Array
    taught: Array


class CTMLoss(eqx.Module):
    r"""Consistency along trajectories, from two sides of a teacher's steps,

    $$\mathbb E\, d\big(\bar G(G(x_t, t, s), s, t_{min}),\;
      \bar G(G^-(x_u, u, s), s, t_{min})\big) + \lambda L_{DSM} + \lambda' L_{GAN},$$

    where $x_t$ are data with noise, the teacher's h steps lead from there to $x_u$, $t \ge u \ge s
    \ge t_{min}$ are levels of a grid, $G^-$ is G without derivative, and $\bar G$ is the average of
    G over training, whose weights have none: the gradient flows through what it is given. h is
    drawn once for a batch, t and s for each sample.

    It is a loss for `training.GradientStep` with an `ExponentialAverage(0.999)`: `loss(model,
    batch, context)`, where the model is a `TrajectoryModel` or `WithCritic`; without an average
    $\bar G$ is $G^-$. Metrics are `consistency` and, if there are such terms, `denoising`,
    `denoising_weight`, `deceiving`, `deceiving_weight` and `critic`.

    **Arguments:**

    - `schedule`, `times`: the noise schedule and the grid, `karras(schedule, 17)`.
    - `teacher`: a denoiser; without one the model is its own teacher, without derivative.
    - `solver`: takes the teacher's steps; it must have no memory and draw no noise. `Heun()` if
      left out; if there is no teacher either, $x_u$ is one jump of the model. `GammaSampler()` is h
      jumps of it.
    - `spans`: law of h, `WeightedSpans()` or `UniformSpans()`.
    - `targets`: law of s, `AnyTarget()`, `LastTarget()` or `NearestTarget()`.
    - `distance`: d, `(estimates, targets) -> (n,)`; `SquaredDistance(features)`.
    - `denoising`: $L_{DSM}$, a `DenoisingLoss` of $g(x, t, t)$, or `None`; `denoising_term` makes
      that of the paper.
    - `denoising_weight`: $\lambda$, a number or an `AdaptiveWeight`.
    - `adversary`: $L_{GAN}$, a `HingeAdversary` or `None`; it needs a model `WithCritic`.
    - `averaged_target`: whether the average also stands for $G^-$.

    **Raises:** `TypeError` for arguments of other kinds, and for a model without trajectories or
    without the critic that is asked for; `ValueError` if times do not fall, weights are negative,
    or the solver has a memory or draws noise.

    **Reference:** Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon, Consistency
    Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion, 2024,
    arXiv:2310.02279.
    """

    plan: Plan
    teacher: AbstractDenoiser | None
    solver: AbstractSampler
    leaps: bool = eqx.field(static=True)
    spans: AbstractSpans
    targets: AbstractTargets
    distance: Callable[[Array, Array], Float[Array, " n"]]
    denoising: DenoisingLoss | None
    denoising_weight: Any
    adversary: HingeAdversary | None
    averaged_target: bool = eqx.field(static=True)

    def __init__(
        self,
        schedule: AbstractSchedule,
        times: Times,
        teacher: AbstractDenoiser | None = None,
        solver: AbstractSampler | None = None,
        spans: AbstractSpans | None = None,
        targets: AbstractTargets | None = None,
        distance: Callable[[Array, Array], Float[Array, " n"]] | None = None,
        denoising: DenoisingLoss | None = None,
        denoising_weight: Any = None,
        adversary: HingeAdversary | None = None,
        averaged_target: bool = False,
    ):
        self.leaps = teacher is None and solver is None
        if solver is None:
            solver = GammaSampler() if self.leaps else Heun()
        self.plan = plan_run(solver, schedule, times)
        if solver.stochastic:
            raise ValueError(f"solver must not draw noise, got {solver!r}")
        spans = WeightedSpans() if spans is None else spans
        targets = AnyTarget() if targets is None else targets
        checks.instance("spans", spans, AbstractSpans, "WeightedSpans()")
        checks.instance("targets", targets, AbstractTargets, "AnyTarget()")
        for name, value, kind, example in (
            ("teacher", teacher, AbstractDenoiser, "Denoiser(network)"),
            ("denoising", denoising, DenoisingLoss, "denoising_term(schedule, 0.5)"),
            ("adversary", adversary, HingeAdversary, "HingeAdversary()"),
        ):
            if value is not None:
                checks.instance(name, value, kind, example)
        weight = AdaptiveWeight() if denoising_weight is None else denoising_weight
        _check_weight(weight)
        self.teacher, self.solver, self.spans, self.targets = teacher, solver, spans, targets
        self.distance = SquaredDistance() if distance is None else distance
        self.denoising, self.denoising_weight = denoising, weight
        self.adversary, self.averaged_target = adversary, averaged_target

    def __call__(
        self, model: Any, batch: Float[Array, "n ..."], context: Context
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Loss and metrics."""
        keys = jax.random.split(context.key)
        generator, critic = _players(model)
        fixed = _fixed(generator)
        average = fixed if context.averaged is None else _fixed(_players(context.averaged)[0])
        solver_plan = memoryless(fixed, self.solver, self.plan, batch[0])
        jumps = self._draw(fixed, batch, solver_plan, keys[0])
        end = jax.tree.map(lambda a: a[-1], solver_plan.nodes)

        def ends(first, x, node):
            """The end of the trajectory, through a jump to the target."""
            one = lambda x, node, there: average.jump(first.jump(x, node, there), there, end)
            return jax.vmap(one)(x, node, jumps.there)

        inner = average if self.averaged_target else fixed
        goal = jax.lax.stop_gradient(ends(inner, jumps.taught, jumps.middle))
        estimate = lambda model: ends(model, jumps.noisy, jumps.here)
        consistency = lambda model: jnp.mean(self.distance(estimate(model), goal))

        loss = consistency(generator)
        metrics = {"consistency": loss}
        if self.denoising is not None:
            loss_of, told = self.denoising, Context(keys[1], context.step, None)
            denoising = lambda model: loss_of(model.denoiser(), batch, told)[0]
            value = denoising(generator)
            weight = _weight(self.denoising_weight, consistency, denoising, generator)
            loss = loss + weight * value
            metrics |= {"denoising": value, "denoising_weight": weight}
        if self.adversary is not None:
            if critic is None:
                raise TypeError(f"model must be WithCritic(trajectory, critic), got {model!r}")
            judge, fake = jax.vmap(_fixed(critic)), estimate(generator)
            deceiving = lambda model: -jnp.mean(judge(estimate(model)))
            weight = _weight(self.adversary.weight, consistency, deceiving, generator)
            value = -jnp.mean(judge(fake))
            real, false = (jax.vmap(critic)(x) for x in (batch, jax.lax.stop_gradient(fake)))
            hinge = jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + false))
            on = jnp.asarray(context.step > self.adversary.start_step, batch.dtype)
            loss = loss + on * (weight * value + hinge)
            metrics |= {"deceiving": value, "deceiving_weight": weight, "critic": hinge}
        return loss, metrics

    def _draw(self, fixed, batch, plan, key):
        keys = jax.random.split(key, 5)
        last, num = len(plan.nodes.t) - 1, len(batch)
        logits = jnp.asarray(self.spans.logits(last), batch.dtype)
        # One for the batch, so that as many steps of the teacher are taken.
        span = 1 + jax.random.categorical(keys[0], logits).astype(jnp.int32)
        begin = jax.random.randint(keys[1], (num,), 0, last + 1 - span)
        target = self.targets.draw(keys[2], begin + span, last)
        at = lambda table, i: jax.tree.map(lambda a: a[i], table)
        here, middle, there = (at(plan.nodes, i) for i in (begin, begin + span, target))
        add = lambda x, noise, node: combine((node.alpha, x), (node.sigma, noise))
        noisy = jax.vmap(add)(batch, gaussian(batch, keys[3]), here)
        teacher = fixed if self.teacher is None else _fixed(self.teacher)
        if self.leaps:
            taught = jax.vmap(lambda *args: jump(teacher, *args))(noisy, here, middle)
        else:

            def step(k, x):
                rows = at(plan.rows, begin + k)
                one = lambda x, row: self.solver.step(teacher, x, (), row, keys[4])[0]
                return jax.vmap(one)(x, rows)

            taught = loops.fori_loop(0, span, step, noisy)
        return _Jumps(here, middle, there, noisy, jax.lax.stop_gradient(taught))


def denoising_term(schedule: AbstractSchedule, sigma_data: float) -> DenoisingLoss:
    """The denoising loss of `CTMLoss`: half of the levels `LogNormal()`, half `KarrasLevels`.

    **Arguments:**

    - `schedule`: the noise schedule.
    - `sigma_data`: standard deviation of the data.

    **Reference:** Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon, Consistency
    Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion, 2024,
    arXiv:2310.02279.
    """
    levels = MixedLevels(LogNormal(), KarrasLevels(schedule))
    return DenoisingLoss(levels, EDMWeighting(sigma_data))


def consistency_distillation_loss(
    schedule: AbstractSchedule,
    times: Times,
    teacher: AbstractDenoiser,
    solver: AbstractSampler | None = None,
    distance: Callable[[Array, Array], Float[Array, " n"]] | None = None,
) -> CTMLoss:
    """What a consistency model is distilled by: one step of the teacher, every target the end, the
    average stands on the other side.

    **Arguments:**

    - `schedule`, `times`, `teacher`, `solver`, `distance`: as in `CTMLoss`.

    **Reference:** Song, Dhariwal, Chen, Sutskever, Consistency Models, 2023, arXiv:2303.01469.
    """
    spans, targets = UniformSpans(1), LastTarget()
    return CTMLoss(schedule, times, teacher, solver, spans, targets, distance, averaged_target=True)


def _fixed(module):
    """The module without derivative."""
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def _players(model):
    model, critic = (
        (model.trajectory, model.critic)
        if isinstance(model, WithCritic)
        else (
            model,
            None,
        )
    )
    checks.instance("model", model, AbstractTrajectory, "TrajectoryModel(network)")
    return model, critic


def _check_weight(weight):
    if not isinstance(weight, AdaptiveWeight):
        checks.nonnegative("weight", weight)


def _weight(weight, main, other, model):
    if isinstance(weight, AdaptiveWeight):
        return jax.lax.stop_gradient(weight(main, other, model))
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return jnp.asarray(weight, arrays[0].dtype)
