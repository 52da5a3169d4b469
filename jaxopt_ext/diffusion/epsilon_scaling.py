"""Epsilon scaling: predicted noise made smaller, against exposure bias.

While sampling, a network sees its own imperfect points instead of noisy data. Errors of its
predictions widen these, it answers with more noise, and the gap grows over the steps.
"""

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks, loops
from ..core.closure import hoist
from .denoiser import AbstractDenoiser, Sample, combine
from .sampler import AbstractSampler, as_numbers, noisy, prior, sample
from .schedules import AbstractSchedule, Node, Times


class AbstractScale(eqx.Module):
    """A divisor of the predicted noise at each level."""

    @abc.abstractmethod
    def at(self, node: Node) -> Float[Array, ""]:
        """$\\lambda$ at a node."""


class ConstantScale(AbstractScale):
    """One divisor for all levels.

    **Arguments:**

    - `value`: $\\lambda > 0$. The authors' for 100 steps of DDPM: 1.017 (CIFAR-10), 1.006 (LSUN
      tower and ImageNet, 64 pixels), 1.005 (FFHQ, 128), 1.004 (ImageNet, 128); fewer steps need
      more.

    **Raises:** `ValueError` if `value` is not positive.
    """

    value: Float[Array, ""] | float

    def __check_init__(self):
        checks.positive("value", self.value)

    def at(self, node):
        return self.value


class TabulatedScale(AbstractScale):
    """A divisor for each step of a run; between the steps' times, where stages lie, it is linear.

    **Arguments:**

    - `values`: $\\lambda > 0$ of each step, in the order of the run, shape `(N,)`.
    - `times`: the falling times of the run, shape `(N + 1,)`.

    **Raises:** `ValueError` if shapes do not fit, times do not fall or values are not positive.
    """

    values: Float[Array, " N"]
    begins: Float[np.ndarray, " N"]

    def __init__(self, values, times):
        times = np.asarray(times, np.float64)
        if times.ndim != 1 or len(times) < 2 or not np.all(np.diff(times) < 0):
            raise ValueError(f"times must be a vector that falls, of at least two, got {times}")
        self.begins = times[:-1]
        self.values = values if checks.is_traced(values) else jnp.asarray(values)
        if self.values.shape != self.begins.shape:
            raise ValueError(
                f"values must have shape {self.begins.shape}, one for each step, got "
                f"{self.values.shape}"
            )
        checks.positive("values", self.values)

    def at(self, node):
        values = jnp.asarray(self.values)
        begins = jnp.asarray(self.begins[::-1], values.dtype)
        return jnp.interp(jnp.asarray(node.t, values.dtype), begins, values[::-1])


def linear_scale(
    slope: float | Float[Array, ""], intercept: float | Float[Array, ""], times: Times
) -> TabulatedScale:
    """The divisor $\\lambda(t) = k t + b$ of the step t, which is counted from the data: 0 for the
    last of a run.

    With mean m over N steps, $b = m - k (N - 1)/2$.

    **Arguments:**

    - `slope`, `intercept`: k and b.
    - `times`: the falling times of the run.

    **Raises:** `ValueError` if times do not fall, or $\\lambda$ is not positive at a step.
    """
    index = np.arange(len(times) - 1)[::-1]
    return TabulatedScale(slope * index + intercept, times)


class EpsilonScaled(AbstractDenoiser):
    """A model whose predicted noise is divided by $\\lambda$ in every use,

    $$\\hat\\epsilon' = \\hat\\epsilon / \\lambda_t, \\qquad
    \\hat x_0' = \\tfrac{1}{\\alpha} \\big(x - \\sigma \\hat\\epsilon'\\big),$$

    which for variance-exploding models is $D' = x - (x - D)/\\lambda$. Meant for $\\lambda$ a
    little above 1, where it brings points back to the size that the network was trained on; needs
    no training. With 1 it is the model. It goes around guidance and inside of thresholding:
    `Thresholded(EpsilonScaled(Guided(...), 1.01))`.

    It repairs what is too wide, of whatever cause: with an exact model the error of few steps too;
    with one that errs otherwise it can do harm.

    **Arguments:**

    - `model`: the model.
    - `scale`: a number, `linear_scale(k, b, times)` or `TabulatedScale(values, times)`; see
      `fit_scale`.

    **Raises:** `TypeError` if `model` is no denoiser; `ValueError` if a number is not positive.

    **Reference:** Ning, Li, Su, Salah, Ertugrul, Elucidating the Exposure Bias in Diffusion Models,
    2024, arXiv:2308.15321.
    """

    model: AbstractDenoiser
    scale: AbstractScale

    def __init__(self, model: AbstractDenoiser, scale: AbstractScale | float | Float[Array, ""]):
        if not isinstance(model, AbstractDenoiser):
            raise TypeError(f"model must be a Denoiser, got {model!r}")
        self.model = model
        self.scale = scale if isinstance(scale, AbstractScale) else ConstantScale(scale)

    def noise(self, x, node):
        divisor = self.scale.at(node)
        return jax.tree.map(lambda e: e / jnp.asarray(divisor, e.dtype), self.model.noise(x, node))

    def data(self, x, node):
        # From the data, so that the model itself comes out to the last digit where nothing is
        # scaled.
        divisor = self.scale.at(node)
        return combine(((1 - 1 / divisor) / node.alpha, x), (1 / divisor, self.model.data(x, node)))


class NormGap(NamedTuple):
    """Mean norms of the predicted noise at the beginning of each step, over $\\sqrt d$."""

    sampled: Float[Array, " N"]
    """At the points of a run."""
    forward: Float[Array, " N"]
    """At noisy data, of the model without scaling."""

    @property
    def gap(self) -> Float[Array, " N"]:
        """How much more noise is predicted while sampling."""
        return self.sampled - self.forward

    @property
    def ratio(self) -> Float[Array, " N"]:
        """The divisor at each step that would bring a run to the norms of noisy data."""
        return self.sampled / self.forward


def noise_norm_gap(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    data: Sample,
    key: PRNGKeyArray,
) -> NormGap:
    """Exposure bias seen without labels: $E\\|\\hat\\epsilon(\\hat x_t, t)\\|$ over a run of the
    sampler and $E\\|\\hat\\epsilon(x_t, t)\\|$ over noisy data, at each step.

    They are equal for an exact model, but for the error of the steps.

    **Arguments:**

    - `model`: the model, scaled or not.
    - `sampler`, `schedule`, `times`: the run.
    - `data`: samples on the leading axis; as many are drawn.
    - `key`: random key.

    **Reference:** Ning, Li, Su, Salah, Ertugrul, Elucidating the Exposure Bias in Diffusion Models,
    2024, arXiv:2308.15321.
    """
    first, run, noising = jax.random.split(key, 3)
    data = checks.inexact_tree("data", data)
    start = prior(schedule, data, first, times[0])
    done = sample(model, sampler, schedule, times, start, key=run, trace=True)
    points = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), start, done.path)
    nodes = as_numbers(schedule.nodes(np.asarray(times)[:-1]), data)
    plain = model.model if isinstance(model, EpsilonScaled) else model
    return NormGap(
        _norms(hoist(model), points, nodes),
        _norms_of_data(hoist(plain), data, nodes, noising),
    )


@eqx.filter_jit
def _norms(model, points, nodes):
    return loops.scan(lambda _, now: ((), _norm(model.noise(*now))), (), (points, nodes))[1]


@eqx.filter_jit
def _norms_of_data(model, data, nodes, key):
    def step(_, now):
        node, key = now
        return (), _norm(model.noise(noisy(data, node, key), node))

    return loops.scan(step, (), (nodes, jax.random.split(key, len(nodes.t))))[1]


def _norm(e: Sample) -> Float[Array, ""]:
    """Mean over the leading axis of norms over $\\sqrt d$."""
    leaves = [a.reshape(len(a), -1) for a in jax.tree.leaves(e)]
    whole = jnp.concatenate(leaves, 1)
    return jnp.mean(jnp.sqrt(jnp.mean(whole**2, 1)))


def exposure_bias(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    data: Sample,
    key: PRNGKeyArray,
    *,
    draws: int = 64,
) -> Float[Array, " N"]:
    """How much wider than noisy data a run is that begins at noisy data,

    $$\\delta_t = \\big(\\operatorname{sd}(\\hat x_t \\mid x_0) - \\sigma_t\\big)^2,$$

    behind each step. The deviation is that of a coordinate over draws of noise, in the mean square
    over coordinates and data. A run from afar forgets where it began and is as wide as the data
    are: begin near.

    **Arguments:**

    - `model`, `sampler`, `schedule`: the run.
    - `times`: falling, the first of them the level s at which data are noised.
    - `data`: samples on the leading axis.
    - `key`: random key.
    - `draws`: for each sample of the data.

    **Raises:** `ValueError` if `draws` is below 2.

    **Reference:** Ning, Li, Su, Salah, Ertugrul, Elucidating the Exposure Bias in Diffusion Models,
    2024, arXiv:2308.15321.
    """
    checks.count("draws", draws, 2)
    noising, run = jax.random.split(key)
    data = checks.inexact_tree("data", data)
    count = len(jax.tree.leaves(data)[0])
    many = jax.tree.map(lambda a: jnp.repeat(a, draws, 0), data)
    nodes = as_numbers(schedule.nodes(np.asarray(times)), data)
    start = noisy(many, jax.tree.map(lambda a: a[0], nodes), noising)
    path = sample(model, sampler, schedule, times, start, key=run, trace=True).path

    def variances(a):
        split = a.reshape(len(a), count, draws, -1)
        return jnp.var(split, 2, ddof=1).reshape(len(a), -1)

    square = jnp.concatenate([variances(a) for a in jax.tree.leaves(path)], 1)
    return (jnp.sqrt(jnp.mean(square, 1)) - nodes.sigma[1:]) ** 2


class FittedScale(NamedTuple):
    """What `fit_scale` found."""

    uniform: float
    """The best of the candidates."""
    scores: Float[np.ndarray, " candidates"]
    """What each of them reached; smaller is better."""
    linear: TabulatedScale
    """The line $k t + b$ with k from the ratio of norms and the mean `uniform`."""


def fit_scale(
    model: AbstractDenoiser,
    sampler: AbstractSampler,
    schedule: AbstractSchedule,
    times: Times,
    data: Sample,
    key: PRNGKeyArray,
    *,
    candidates: Sequence[float] | Float[np.ndarray, " candidates"] | None = None,
    distance: Callable[[Sample, Sample], Float[Array, ""]] | None = None,
) -> FittedScale:
    """Choose the divisor of `EpsilonScaled` for a sampler and a grid of times.

    First a constant, by search; then the slope k of $\\lambda(t) = k t + b$, by least squares
    through the ratio of the two norms of `noise_norm_gap`, with b such that the mean is the
    constant. What is reported afterwards belongs on other keys and other data.

    **Arguments:**

    - `model`, `sampler`, `schedule`, `times`: the run.
    - `data`: samples on the leading axis, for validation.
    - `key`: random key; all candidates get the same noise.
    - `candidates`: divisors; 1, 1.002, ..., 1.04 if not given.
    - `distance`: `(samples, data) -> scalar`, a distance of laws; the mean absolute gap of norms if
      not given.

    **Raises:** `ValueError` if a candidate is not positive, or there is none.

    **Reference:** Ning, Li, Su, Salah, Ertugrul, Elucidating the Exposure Bias in Diffusion Models,
    2024, arXiv:2308.15321.
    """
    tried = np.asarray(np.linspace(1.0, 1.04, 21) if candidates is None else candidates, float)
    if tried.ndim != 1 or not tried.size:
        raise ValueError(f"candidates must be a vector of numbers, got {candidates}")
    checks.positive("candidates", tried)

    def score(value):
        scaled = EpsilonScaled(model, jnp.asarray(value))
        if distance is None:
            found = noise_norm_gap(scaled, sampler, schedule, times, data, key)
            return jnp.mean(jnp.abs(found.gap))
        first, run, _ = jax.random.split(key, 3)
        start = prior(schedule, data, first, times[0])
        return distance(sample(scaled, sampler, schedule, times, start, key=run).value, data)

    scores = np.array([score(value) for value in tried], float)
    uniform = float(tried[np.argmin(scores)])
    ratio = noise_norm_gap(model, sampler, schedule, times, data, key).ratio
    index = np.arange(len(ratio))[::-1]
    slope = np.polyfit(index, np.asarray(ratio, float), 1)[0] if len(ratio) > 1 else 0.0
    linear = linear_scale(slope, uniform - slope * index.mean(), times)
    return FittedScale(uniform, scores, linear)
