"""Averages of the weights along the way, which training goes on from at the end of each epoch."""

import abc
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import checks
from ._devices import on_each_device
from ._leafwise import next_count, require_params
from ._precision import widen


class AbstractAggregator(eqx.Module):
    """A running average of the weights.

    `before_step` says whether it looks at the weights before each step of the inner optimizer or
    after it.
    """

    before_step: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def init(self, params: PyTree[Array]) -> Any:
        """What is kept besides the average, which starts at `params`."""

    @abc.abstractmethod
    def update(
        self, average: PyTree[Array], params: PyTree[Array], state: Any
    ) -> tuple[PyTree[Array], Any]:
        """Take the weights into the average."""


def _blend(average, params, rate):
    # not optax.incremental_update: this form keeps an average that equals the weights as it is
    def blend(a, p):
        return a + jnp.asarray(rate, jnp.finfo(a.dtype).dtype) * (p.astype(a.dtype) - a)

    return jax.tree.map(blend, average, params)


def _float(count):
    return count.astype(jnp.result_type(float))


class RunningMean(AbstractAggregator):
    """Mean of the weights at the start of every step since the beginning of training.

    State: how many there were.
    """

    before_step: ClassVar[bool] = True

    def init(self, params):
        return jnp.zeros([], jnp.int32)

    def update(self, average, params, state):
        count = next_count(state)
        return _blend(average, params, 1 / _float(count)), count


class NormFilterState(NamedTuple):
    """State of `NormFilteredMean`.

    - `step`, `count`: weights seen and weights taken.
    - `distance_sum`, `distance_count`: of the distances since the last one taken.
    - `accepted`: whether the last weights were taken.
    """

    step: Int[Array, ""]
    count: Int[Array, ""]
    distance_sum: Float[Array, ""]
    distance_count: Int[Array, ""]
    accepted: Bool[Array, ""]


class NormFilteredMean(AbstractAggregator):
    """Mean of those weights that lie farther from the mean than is usual of late.

    **Arguments:**

    - `ord`: 1 or 2, the norm over all leaves.
    - `denominator`: `"accepted"` divides by the number of weights taken, so that the average is
      their exact mean; `"iteration"` by the number of weights seen.
    """

    ord: Literal[1, 2] = eqx.field(static=True, default=2)
    denominator: Literal["accepted", "iteration"] = eqx.field(static=True, default="accepted")
    before_step: ClassVar[bool] = True

    def __check_init__(self):
        if self.ord not in (1, 2):
            raise ValueError(f"ord must be 1 or 2, got {self.ord!r}")
        if self.denominator not in ("accepted", "iteration"):
            raise ValueError(
                f"denominator must be 'accepted' or 'iteration', got {self.denominator!r}"
            )

    def init(self, params):
        zero = jnp.zeros([], jnp.int32)
        return NormFilterState(zero, zero, jnp.zeros([], _norm_dtype(params)), zero, zero > 0)

    def update(self, average, params, state):
        dtype = state.distance_sum.dtype
        gap = jax.tree.map(lambda p, a: p.astype(a.dtype) - a, params, average)
        distance = optax.tree.norm(gap, ord=self.ord).astype(dtype)
        usual = state.distance_sum / jnp.maximum(state.distance_count, 1).astype(dtype)
        accepted = distance > usual
        step = next_count(state.step)
        count = jnp.where(accepted, next_count(state.count), state.count)
        divisor = count if self.denominator == "accepted" else step
        rate = jnp.where(accepted, 1 / _float(jnp.maximum(divisor, 1)), 0.0)
        return _blend(average, params, rate), NormFilterState(
            step,
            count,
            jnp.where(accepted, distance, state.distance_sum + distance),
            jnp.where(accepted, 1, state.distance_count + 1),
            accepted,
        )


def _norm_dtype(params):
    leaves = jax.tree.leaves(params)
    return jnp.finfo(jnp.result_type(*leaves)).dtype if leaves else jnp.float32


class ExponentialMean(AbstractAggregator):
    r"""Exponential moving average of the weights after every step, started at the first weights.

    $W^{ema} = a_t W^{ema} + (1 - a_t) W$; with $r = 1 - a$ and t counted from 0, the rate
    $1 - a_t$ is $r$, or with a warm-up

    - `"exp"`: $(1 - r) e^{-(1+t)/2000} + r$;
    - `"linear"`: $\max(r, 0.1 (1 - r)(1 - t/100))$.
    """

    decay: float | Float[Array, ""]
    warmup: Literal["exp", "linear"] | None = eqx.field(static=True, default=None)
    before_step: ClassVar[bool] = False

    def __check_init__(self):
        checks.interval("decay", self.decay, 0.0, 1.0, open_high=True)
        if self.warmup not in (None, "exp", "linear"):
            raise ValueError(f"decay_warmup must be None, 'exp' or 'linear', got {self.warmup!r}")

    def init(self, params):
        return jnp.zeros([], jnp.int32)

    def update(self, average, params, state):
        rate = 1 - self.decay
        if self.warmup == "exp":
            rate = (1 - rate) * jnp.exp(-(1 + _float(state)) / 2000) + rate
        elif self.warmup == "linear":
            rate = jnp.maximum(rate, 0.1 * (1 - rate) * (1 - _float(state) / 100))
        return _blend(average, params, rate), next_count(state)


class WeightSwitchState(NamedTuple):
    """State of `weight_switch`.

    - `count`: steps taken.
    - `average`: the averaged weights.
    - `aggregator`, `inner`: states of the two parts.
    """

    count: Int[Array, ""]
    average: PyTree[Array]
    aggregator: Any
    inner: optax.OptState


def weight_switch(
    inner: optax.GradientTransformation,
    aggregator: AbstractAggregator,
    steps_per_epoch: int,
    *,
    switch_every: int = 1,
    switch_start: int = 0,
    switch: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Average the weights at every step, and go on from the average at the end of epochs.

    The state of `inner` and the average itself go on untouched by the switch. Leaves that are not
    floating-point are not averaged. `averaged_params` reads the average.

    **Arguments:**

    - `inner`: the optimizer whose iterates are averaged.
    - `aggregator`: which average.
    - `steps_per_epoch`: updates in an epoch.
    - `switch_every`: epochs between switches; with `steps_per_epoch=1`, steps.
    - `switch_start`: number of epochs at the end of which there is no switch yet.
    - `switch`: `False` only keeps the average and leaves `inner`'s steps alone.

    **Returns:** a transformation whose last update before a switch leads to the average.

    **Raises:** `ValueError` or `TypeError` for counts that are not ints in range.
    """
    checks.count("steps_per_epoch", steps_per_epoch)
    checks.count("switch_every", switch_every)
    checks.count("switch_start", switch_start, 0)
    inner = optax.with_extra_args_support(inner)
    interval = steps_per_epoch * switch_every

    def init(params):
        average = jax.tree.map(jnp.copy, widen(params))
        return WeightSwitchState(
            jnp.zeros([], jnp.int32),
            average,
            aggregator.init(_floating(average)),
            inner.init(params),
        )

    def update(updates, state, params: Any = None, **extra_args):
        require_params(params, "weight_switch")
        updates, inner_state = inner.update(updates, state.inner, params, **extra_args)
        count = next_count(state.count)
        seen = params if aggregator.before_step else optax.apply_updates(params, updates)
        average, aggregated = aggregator.update(
            _floating(state.average), _floating(seen), state.aggregator
        )
        if switch:
            due = (count % interval == 0) & (count > switch_start * steps_per_epoch)

            def leave(a, p, u):
                if a is None:
                    return u
                return jnp.where(due, (a - p).astype(u.dtype), u)

            def land(a, p, u):
                # rounding: the average becomes what the weights will be
                if a is None or p.dtype != a.dtype:
                    return a
                return jnp.where(due, p + u, a)

            updates = jax.tree.map(leave, average, params, updates, is_leaf=_is_none)
            average = jax.tree.map(land, average, params, updates, is_leaf=_is_none)
        average = jax.tree.map(lambda a, p: p if a is None else a, average, seen, is_leaf=_is_none)
        return updates, WeightSwitchState(count, average, aggregated, inner_state)

    return on_each_device(optax.GradientTransformationExtraArgs(init, update))


def averaged_params(state: PyTree) -> PyTree[Array]:
    """The averaged weights kept in an optimizer's state.

    **Arguments:**

    - `state`: state of `weight_switch`, bare or inside `optax.chain` and other wrappers.

    **Returns:** the average, in float32 where the weights are narrower.

    **Raises:** `ValueError` if no average is kept, or more than one.
    """

    def is_switch(node):
        return isinstance(node, WeightSwitchState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_switch) if is_switch(node)]
    if len(found) != 1:
        raise ValueError(f"the state must hold one average of weights, found {len(found)}")
    return found[0].average


def _is_none(leaf):
    return leaf is None


def _floating(tree):
    return jax.tree.map(
        lambda leaf: leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else None, tree
    )
