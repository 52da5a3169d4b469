"""Sampling given a measurement: what guided samplers share, and their driver."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..core import checks, loops, tree
from ..core.closure import hoist
from .denoiser import AbstractDenoiser, Data, Sample, combine
from .measurement import AbstractMeasurement, Measured
from .sampler import AbstractSampler, Sampled, as_numbers, ends, gaussian, sample
from .schedules import AbstractSchedule, Node, Times

Advance = Callable[[AbstractDenoiser, Sample, PRNGKeyArray], tuple[Sample, Any]]


class AbstractGuidedSampler(AbstractSampler):
    """A sampler whose steps are drawn towards a measurement.

    It is a sampler itself: `guide` makes a step of it from one of `sampler`. Measurements are of
    one sample; `batch_ndim` leading axes of x count samples, each with its own y, or all with one.

    **Attributes:**

    - `measurement`: the `AbstractMeasurement` H.
    - `y`: what was measured.
    - `sampler`: whose steps are guided.
    - `batch_ndim`: how many leading axes count samples.
    """

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        measurement: ClassVar[AbstractMeasurement]
        y: ClassVar[Measured]
        sampler: ClassVar[AbstractSampler]
        batch_ndim: ClassVar[int]
    else:
        measurement: eqx.AbstractVar[AbstractMeasurement]
        y: eqx.AbstractVar[Measured]
        sampler: eqx.AbstractVar[AbstractSampler]
        batch_ndim: eqx.AbstractVar[int]

    def __check_init__(self):
        checks.instance("measurement", self.measurement, AbstractMeasurement, "Inpainting(mask)")
        checks.instance("sampler", self.sampler, AbstractSampler, "DDIM(eta=1.0)")
        checks.count("batch_ndim", self.batch_ndim, 0)

    @abc.abstractmethod
    def guide(
        self,
        model: AbstractDenoiser,
        x: Sample,
        here: Node,
        there: Node,
        advance: Advance,
        key: PRNGKeyArray,
    ) -> tuple[Sample, Any]:
        """The sample and the memory after a guided step; `advance(model, x, key)` is one of the
        sampler's. The measurement is in the types of x, and `y` has its leading axes."""

    def image(self, x: Sample) -> Sample:
        """What is measured of one sample without noise; itself unless said otherwise."""
        return x

    def finish(self, x: Sample, node: Node) -> Sample:
        """What is given back of the samples at the end; themselves unless said otherwise."""
        del node
        return x

    @property
    def stochastic(self):
        return self.sampler.stochastic

    @property
    def reaches_zero(self):
        return self.sampler.reaches_zero

    def evaluations(self, num_steps):
        return self.sampler.evaluations(num_steps)

    def unguided(self, table):
        inner, _, _ = table
        return self.sampler.unguided(inner)

    def plan(self, schedule, times):
        return self.sampler.plan(schedule, times), *ends(schedule, times)

    def start(self, model, x, node):
        self.fit(x)
        return self.sampler.start(model, x, node)

    def step(self, model, x, memory, row, key):
        inner, here, there = row
        x = loops.vary(x, loops.varying_axes((x, model, self)))
        advance = lambda model, x, key: self.sampler.step(model, x, memory, inner, key)
        return self.fit(x).guide(model, x, here, there, advance, key)

    def fit(self, x: Sample):
        """This with arrays in the type of x and y with its leading axes.

        **Raises:** `ValueError` if y or x does not fit the measurement.
        """
        lead = {a.shape[: self.batch_ndim] for a in jax.tree.leaves(x)}
        if len(lead) > 1 or any(len(shape) < self.batch_ndim for shape in lead):
            raise ValueError(
                f"x must have {self.batch_ndim} common leading axes, got shapes {lead}"
            )
        lead = lead.pop()
        single = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape[self.batch_ndim :], a.dtype), x
        )
        try:
            wanted = jax.eval_shape(lambda x: self.measurement.forward(self.image(x)), single)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the measurement does not fit samples shaped {checks.shapes_of(single)}: {error}"
            ) from error
        if jax.tree.structure(wanted) != jax.tree.structure(self.y):
            raise ValueError(f"y must be made like {wanted}, got {jax.tree.structure(self.y)}")
        real = tree.real_dtype(x)
        cast = lambda a: a.astype(real) if eqx.is_inexact_array(a) else a
        fitted = jax.tree.map(cast, self)
        spread = lambda y, shape: _spread(y, lead, shape.shape)
        y = jax.tree.map(spread, jax.tree.map(jnp.asarray, fitted.y), wanted)
        return eqx.tree_at(lambda s: s.y, fitted, y)

    def keys(self, key: PRNGKeyArray) -> PRNGKeyArray:
        """A key for each sample."""
        if self.batch_ndim == 0:
            return key
        return jax.random.split(key, jax.tree.leaves(self.y)[0].shape[: self.batch_ndim])

    def each(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """A function of one sample, mapped over the leading axes."""
        for _ in range(self.batch_ndim):
            fun = jax.vmap(fun)
        return fun


def _spread(y, lead, shape):
    try:
        return jnp.broadcast_to(y, (*lead, *shape))
    except ValueError as error:
        raise ValueError(
            f"y must have the shape of one measured sample, {shape}, or of all, "
            f"{(*lead, *shape)}, or broadcast against them, got {y.shape}"
        ) from error


class _Known(AbstractDenoiser):
    """A model whose answer at one point is there already; `asked` tells that it was wanted."""

    model: AbstractDenoiser
    x: Sample
    found: Sample
    asked: list[bool] = eqx.field(static=True)

    def _knows(self, x):
        same = len(jax.tree.leaves(x)) == len(jax.tree.leaves(self.x)) and all(
            a is b for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(self.x), strict=True)
        )
        if same:
            self.asked.append(True)
        return same

    def data(self, x, node):
        return self.found if self._knows(x) else self.model.data(x, node)

    def noise(self, x, node):
        return Data().noise(self.found, x, node) if self._knows(x) else self.model.noise(x, node)


def descent(
    model: AbstractDenoiser,
    x: Sample,
    node: Node,
    miss: Callable[[Sample], Array],
    advance: Advance,
    key: PRNGKeyArray,
) -> tuple[Sample, Any, Sample]:
    """A step of the sampler, its memory, and $\\nabla_x\\, \\text{miss}(\\hat x_0(x))$ at its
    beginning, with one evaluation of the model for both.

    **Raises:** `TypeError` if the sampler does not evaluate the model where its step begins.
    """
    data, pull = jax.vjp(lambda x: model.data(x, node), x)
    (slope,) = pull(tree.cast_like(tree.gradient(miss, data), data))
    known = _Known(model, x, data, [])
    new, memory = advance(known, x, key)
    if not known.asked:
        raise TypeError("guidance needs a sampler that evaluates the model where its steps begin")
    return new, memory, slope


def noised(
    measurement: AbstractMeasurement, x: Sample, y: Measured, node: Node, key: PRNGKeyArray
) -> Measured:
    """What one sample at this node would be measured as, $\\alpha y + \\sigma H z$."""
    return combine((node.alpha, y), (node.sigma, measurement.forward(gaussian(x, key))))


def posterior_sample(
    model: AbstractDenoiser,
    guided: AbstractGuidedSampler,
    schedule: AbstractSchedule,
    times: Times,
    x: Sample,
    *,
    key: PRNGKeyArray | None = None,
    denoise: bool = True,
    trace: bool = False,
) -> Sampled:
    """Samples that agree with a measurement.

    `sample` with a guided sampler, whose last word it asks for: a sampler of latents gives images.
    Derivatives flow to `x`, to the model and to the guided sampler's measurement and numbers.

    **Arguments:**

    - `model`: a `Denoiser`, or one that wraps it, of the prior.
    - `guided`: `MCG`, `PSLD`, `RePaint` or `DataProjection`, with measurement and measured.
    - `schedule`, `times`, `x`, `key`, `trace`: as in `sample`.
    - `denoise`: end with the predicted data at the last time, for one more evaluation.

    **Returns:** a `Sampled`.

    **Raises:** what `sample` raises; `TypeError` if `guided` is no guided sampler; `ValueError` if
    samples or what was measured do not fit the measurement.
    """
    checks.instance("guided", guided, AbstractGuidedSampler, "MCG(measurement, y)")
    guided = hoist(guided)
    out = sample(model, guided, schedule, times, x, key=key, denoise=denoise, trace=trace)
    (last,) = as_numbers((schedule.nodes(np.asarray(times)[-1]),), out.value)
    return Sampled(_finish(guided, out.value, last), out.evaluations, out.path)


@eqx.filter_jit
def _finish(guided: AbstractGuidedSampler, x: PyTree[Array], node: Node) -> PyTree[Array]:
    return guided.fit(x).finish(x, node)
