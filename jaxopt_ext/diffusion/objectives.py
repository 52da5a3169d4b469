r"""Losses that train denoisers, and the levels of noise that they draw.

A loss is `(model, batch, context) -> (scalar, metrics)`, for `training.GradientStep`; the model is
a `Denoiser` of a network for one sample.
"""

import abc
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks
from .denoiser import (
    AbstractPrediction,
    Data,
    Denoiser,
    Noise,
    Preconditioned,
    Sample,
    Score,
    Velocity,
    combine,
)
from .networks import AbstractNetwork
from .schedules import AbstractSchedule, Node
from .weightings import AbstractWeighting


class AbstractLevels(eqx.Module):
    """A law of levels of noise."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, size: int, dtype: Any) -> Node:
        """`size` nodes; shapes `(size,)`."""


def _uniform(key, size, dtype, antithetic):
    """Uniform in [0, 1); with `antithetic` the second half is one minus the first."""
    if not antithetic:
        return jax.random.uniform(key, (size,), dtype)
    half = jax.random.uniform(key, (size - size // 2,), dtype)
    return jnp.concatenate([half, 1 - half[: size // 2]])


class UniformTime(AbstractLevels):
    """Times uniform between two.

    **Arguments:**

    - `schedule`: the noise schedule.
    - `low`, `high`: first and last time, `end` and `start` of the schedule if not given.
    - `antithetic`: the second half of a batch mirrors the first, which steadies the mean.

    **Raises:** `ValueError` unless times are in order and within the schedule's.
    """

    schedule: AbstractSchedule
    low: float | None = None
    high: float | None = None
    antithetic: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        low, high = self.interval
        if not self.schedule.end <= low < high <= self.schedule.start:
            raise ValueError(
                f"need times {self.schedule.end} <= low < high <= {self.schedule.start}, got "
                f"{low, high}"
            )

    @property
    def interval(self) -> tuple[float, float]:
        """First and last time."""
        low = self.schedule.end if self.low is None else self.low
        return low, self.schedule.start if self.high is None else self.high

    def parts(self, count: int) -> tuple["UniformTime", ...]:
        """This law cut into `count` intervals of one length, for losses of groups of times."""
        checks.count("count", count)
        edges = np.linspace(*self.interval, count + 1).tolist()
        edges[0], edges[-1] = self.interval
        cut = lambda low, high: UniformTime(self.schedule, low, high, self.antithetic)
        return tuple(map(cut, edges[:-1], edges[1:]))

    def draw(self, key, size, dtype):
        low, high = self.interval
        return self.schedule.nodes(low + (high - low) * _uniform(key, size, dtype, self.antithetic))


class LogNormal(AbstractLevels):
    r"""$\log\sigma$ normal, $\alpha = 1$; the time is $\sigma$.

    **Arguments:**

    - `mean`, `std`: of the logarithm.
    - `antithetic`: the second half of a batch mirrors the first about the mean.

    **Raises:** `ValueError` if `std` is not positive.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    mean: float = -1.2
    std: float = 1.2
    antithetic: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        checks.finite("mean", self.mean)
        checks.positive("std", self.std)

    def draw(self, key, size, dtype):
        z = jax.random.normal(key, (size,), dtype)
        if self.antithetic:
            half = size - size // 2
            z = jnp.concatenate([z[:half], -z[: size // 2]])
        sigma = jnp.exp(self.mean + self.std * z)
        return Node(sigma, jnp.ones_like(sigma), sigma)


class DiscreteTimes(AbstractLevels):
    """The steps 1 to N of a chain, each as likely as the others.

    Step i has the time i/N of the schedule's `start`, as in `DiscreteSchedule`.

    **Arguments:**

    - `schedule`: the noise schedule.
    - `num_steps`: N.
    - `antithetic`: the second half of a batch has the steps N + 1 - i.

    **Raises:** `ValueError` if `num_steps` is below 1.
    """

    schedule: AbstractSchedule
    num_steps: int = eqx.field(static=True, default=1000)
    antithetic: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        checks.count("num_steps", self.num_steps)

    def draw(self, key, size, dtype):
        n = self.num_steps
        # On the host, in double precision: near the data levels are differences.
        table = self.schedule.nodes(self.schedule.start * np.arange(1, n + 1) / n)
        index = jax.random.randint(key, (size,), 0, n)
        if self.antithetic:
            half = size - size // 2
            index = jnp.concatenate([index[:half], n - 1 - index[: size // 2]])
        return Node(*(jnp.asarray(column, dtype)[index] for column in table))


@functools.singledispatch
def target(predicts: AbstractPrediction, data: Sample, noise: Sample, node: Node) -> Sample:
    r"""What a network should have given for $\alpha x_0 + \sigma\epsilon$.

    Of a prediction that is not known here it is what the data follow from: they are affine in
    the output.

    **Arguments:**

    - `predicts`: what the network predicts.
    - `data`, `noise`: $x_0$ and $\epsilon$.
    - `node`: the level.
    """
    x = combine((node.alpha, data), (node.sigma, noise))
    zero = jax.tree.map(jnp.zeros_like, x)
    one = jax.tree.map(jnp.ones_like, x)
    skipped = predicts.data(zero, x, node)
    reached = predicts.data(one, x, node)
    return jax.tree.map(lambda d, s, r: (d - s) / (r - s), data, skipped, reached)


@target.register
def _(predicts: Noise, data, noise, node):
    return noise


@target.register
def _(predicts: Data, data, noise, node):
    return data


@target.register
def _(predicts: Velocity, data, noise, node):
    return combine((node.alpha, noise), (-node.sigma, data))


@target.register
def _(predicts: Score, data, noise, node):
    return combine((-1 / node.sigma, noise))


@target.register
def _(predicts: Preconditioned, data, noise, node):
    ratio = node.sigma / node.alpha
    size = predicts.sigma_data * jnp.sqrt(ratio**2 + predicts.sigma_data**2)
    return combine((ratio / size, data), (-(predicts.sigma_data**2) / size, noise))


@functools.singledispatch
def data_slope(predicts: AbstractPrediction, node: Node) -> Float[Array, ""]:
    """The derivative of the data in the network's output: the error of the data is so many times
    that of the output, up to its sign.

    **Arguments:**

    - `predicts`: what the network predicts.
    - `node`: the level.
    """
    zero = jnp.zeros_like(jnp.asarray(node.sigma))
    return predicts.data(zero + 1, zero, node) - predicts.data(zero, zero, node)


@data_slope.register
def _(predicts: Data, node):
    return jnp.ones_like(jnp.asarray(node.sigma))


@data_slope.register
def _(predicts: Noise, node):
    return node.sigma / node.alpha


@data_slope.register
def _(predicts: Velocity, node):
    return node.sigma / (node.alpha**2 + node.sigma**2)


@data_slope.register
def _(predicts: Score, node):
    return node.sigma**2 / node.alpha


@data_slope.register
def _(predicts: Preconditioned, node):
    ratio = node.sigma / node.alpha
    return ratio * predicts.sigma_data / jnp.sqrt(ratio**2 + predicts.sigma_data**2)


def output_weight(
    weighting: AbstractWeighting, predicts: AbstractPrediction, node: Node
) -> Float[Array, "*n"]:
    r"""The weight of the squared error of a network's output that a weighting of the data's means.

    Where there is no data left, $\alpha = 0$, it is 1, except for networks that predict the data.

    **Arguments:**

    - `weighting`: a function of $\log(\alpha/\sigma)$.
    - `predicts`: what the network predicts.
    - `node`: one level or several.
    """
    alpha, sigma = jnp.asarray(node.alpha), jnp.asarray(node.sigma)
    weight = weighting(jnp.log(alpha) - jnp.log(sigma))
    if isinstance(predicts, Data):
        return weight
    empty = alpha == 0
    some = node._replace(alpha=jnp.where(empty, 1, alpha))
    return jnp.where(empty, 1, weight * data_slope(predicts, some) ** 2)


class DenoisingLoss(eqx.Module):
    r"""$\mathbb E\, w(\lambda)\,|x_0 - \hat x_0(\alpha x_0 + \sigma\epsilon)|^2$, a mean over
    samples and coordinates, with a level and noise drawn for each sample.

    It is computed as the error of what the network predicts, times the weight that this means
    there: networks that are transforms of each other have one loss.

    A batch is an array of samples, or a pair of samples and labels, which the network is called
    with.

    **Arguments:**

    - `levels`: `UniformTime(schedule)`, `DiscreteTimes(schedule)` or `LogNormal()`.
    - `weighting`: a function of $\lambda = \log(\alpha/\sigma)$, the weight of the data's squared
      error; `MinSNR()`, say.
    - `label_dropout`: part of the labels that are replaced by -1, none, so that one network is
      conditional and unconditional.

    **Returns:** the loss, and no metrics. Where a weight is negative or not finite the loss is NaN,
    of which training says so and keeps no trace.

    **Raises:** `TypeError` if `levels` is no law of levels; `ValueError` for a dropout outside of
    $[0, 1]$.

    **Reference:** Kingma, Salimans, Poole, Ho, Variational Diffusion Models, 2021,
    arXiv:2107.00630.
    """

    levels: AbstractLevels
    weighting: Any
    label_dropout: float = 0.0

    def __check_init__(self):
        checks.instance("levels", self.levels, AbstractLevels, "LogNormal()")
        checks.interval("label_dropout", self.label_dropout, 0.0, 1.0)
        if not callable(self.weighting):
            raise TypeError(f"weighting must be a function, got {self.weighting!r}")

    def __call__(self, model: Denoiser, batch: Any, context: Any) -> tuple[Array, dict]:
        x, labels = batch if isinstance(batch, tuple) else (batch, None)
        level_key, key = jax.random.split(context.key)
        nodes = self.levels.draw(level_key, len(x), x.dtype)
        weights = output_weight(self.weighting, model.predicts, nodes)
        # A loss that is not finite is what training reports.
        weights = jnp.where(jnp.isfinite(weights) & (weights >= 0), weights, jnp.nan)
        errors = output_errors(model, x, labels, nodes, key, self.label_dropout)
        return jnp.mean(weights * errors), {}


def output_errors(
    model: Denoiser,
    x: Float[Array, "n ..."],
    labels: Array | None,
    nodes: Node,
    key: PRNGKeyArray,
    label_dropout: float = 0.0,
) -> Float[Array, " n"]:
    """The mean squared error of the network's output for each sample, with noise drawn, and with
    dropout where the network has any.

    **Arguments:**

    - `model`: whose network takes one sample.
    - `x`: samples.
    - `labels`: their labels, or `None`.
    - `nodes`: a level for each.
    - `key`: random key.
    - `label_dropout`: part of the labels that are replaced by -1.
    """
    noise_key, label_key = jax.random.split(key)
    network: Any = model.network
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    if labels is not None and label_dropout:
        dropped = jax.random.bernoulli(label_key, label_dropout, labels.shape)
        labels = jnp.where(dropped, -1, labels)

    # A key that networks without dropout leave alone, and the compiler with them.
    keys = jax.random.split(jax.random.fold_in(key, 2), len(x))

    def one(x, noise, node, label, key):
        trained = network.dropping(key) if isinstance(network, AbstractNetwork) else network
        noisy = combine((node.alpha, x), (node.sigma, noise))
        inputs = model.predicts.inputs(noisy, node)
        output = trained(*inputs) if label is None else trained(*inputs, label)
        return jnp.mean((output - target(model.predicts, x, noise, node)) ** 2)

    axes = 0, 0, 0, None if labels is None else 0, 0
    return jax.vmap(one, axes)(x, noise, nodes, labels, keys)
