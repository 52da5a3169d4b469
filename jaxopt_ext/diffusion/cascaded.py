r"""Two predictions of the data and their blend: a network of the noise, a second one of the data
behind it, which can carry a metric of images.

A distance of images is of use to a network that predicts data. To one that predicts noise it does
harm: where noise is high the data that follow from it are poor, and the gradient of their distance
disturbs the noise. In a cascade the two are networks of their own.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import Scalar, checks, scalar_field
from .denoiser import AbstractDenoiser, AbstractPrediction, Data, Denoiser, Noise, combine
from .networks import AbstractNetwork
from .objectives import AbstractLevels, target
from .schedules import Node

Rows = Float[Array, "n d"]


class AbstractShare(eqx.Module):
    """How much of a blend is its second prediction."""

    @abc.abstractmethod
    def __call__(self, logits: Rows) -> Float[Array, "n #d"]:
        """The share $r$ of each sample, or of each of its coordinates."""


class LearnedShare(AbstractShare):
    """One for each sample, the logistic function of the mean of the network's second output."""

    def __call__(self, logits):
        return jax.nn.sigmoid(jnp.mean(logits, axis=1, keepdims=True))


class PixelShare(AbstractShare):
    """One for each coordinate, the logistic function of the network's second output."""

    def __call__(self, logits):
        return jax.nn.sigmoid(logits)


class FixedShare(AbstractShare):
    """One number: 0 is the first prediction alone, 1 the second alone.

    **Arguments:**

    - `value`: in [0, 1].

    **Raises:** `ValueError` if it is not.
    """

    value: float = eqx.field(static=True)

    def __check_init__(self):
        checks.interval("value", self.value, 0.0, 1.0)

    def __call__(self, logits):
        return jnp.full_like(logits[:, :1], self.value)


class AbstractInputs(eqx.Module):
    """What the second network of a cascade sees."""

    @abc.abstractmethod
    def __call__(self, clean: Array, x: Array, node: Node) -> tuple[Array, ...]:
        """One array or two, shaped like `x`, from the first network's data and the noisy sample."""


class CleanInput(AbstractInputs):
    """The data that follow from the first network, alone."""

    def __call__(self, clean, x, node):
        del x, node
        return (clean,)


class NoisyInput(AbstractInputs):
    r"""The noisy sample alone, scaled to $x / \sqrt{\alpha^2 s_d^2 + \sigma^2}$: no cascade.

    **Arguments:**

    - `sigma_data`: $s_d$, the size of the data.

    **Raises:** `ValueError` if it is not positive.
    """

    sigma_data: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        checks.positive("sigma_data", self.sigma_data)

    def __call__(self, clean, x, node):
        del clean
        size = jnp.sqrt((node.alpha * self.sigma_data) ** 2 + node.sigma**2)
        return (combine((1 / size, x)),)


class BothInputs(AbstractInputs):
    """What `CleanInput` and `NoisyInput` see.

    **Arguments:**

    - `sigma_data`: as in `NoisyInput`.

    **Raises:** as `NoisyInput`.
    """

    sigma_data: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        checks.positive("sigma_data", self.sigma_data)

    def __call__(self, clean, x, node):
        return clean, *NoisyInput(self.sigma_data)(clean, x, node)


class Predictions(NamedTuple):
    """What the networks say of a noisy sample.

    **Attributes:**

    - `output`: what is trained on the noise.
    - `first`: the data that follow from it, cut off to the range of data.
    - `second`: the data that are predicted as such.
    - `share`: $r$, the second's part of the blend.
    """

    output: Array
    first: Array
    second: Array
    share: Array

    def blend(self) -> Array:
        """$(1 - r) m_1 + r m_2$."""
        return self.first + self.share * (self.second - self.first)


class AbstractBlended(AbstractDenoiser):
    """A denoiser of two predictions. A step of a sampler is affine in the data, so blending data is
    blending the steps' means.

    **Attributes:**

    - `predicts`: what the trained output predicts.
    """

    predicts: eqx.AbstractVar[AbstractPrediction]

    @abc.abstractmethod
    def predictions(self, x: Float[Array, "..."], node: Node) -> Predictions:
        """Both predictions, for one sample or a batch."""

    def data(self, x, node):
        return self.predictions(x, node).blend()

    def noise(self, x, node):
        return Data().noise(self.data(x, node), x, node)


def _check(network, count, clip):
    checks.instance("network", network, AbstractNetwork, "MLPDenoiser((2, 8, 8), key=key)")
    if not network.shape or network.shape[0] % count:
        raise ValueError(
            f"the network's shape must begin with a multiple of {count} channels, got "
            f"{network.shape}"
        )
    if clip is not None:
        checks.positive("clip", clip)


def _cut(x, clip):
    return x if clip is None else jnp.clip(x, -clip, clip)


def _channels(network, count, seen, node):
    """Outputs of a network with `count` groups of channels, each `(n, d)`; groups that have nothing
    to see are zero."""
    like, size = seen[0], math.prod(network.shape) // count
    if size not in (like.size, math.prod(like.shape[1:])):
        raise ValueError(
            f"x must be a sample of {size} numbers, or a batch, for a network of shape "
            f"{network.shape}, got shape {like.shape}"
        )
    groups = [a.reshape(-1, size) for a in seen]
    groups += [jnp.zeros_like(groups[0])] * (count - len(groups))
    stacked = jnp.stack(groups, axis=1)
    outputs = network(stacked.reshape(-1, *network.shape), node).reshape(stacked.shape)
    return [outputs[:, i] for i in range(count)]


def _spread(share, rows, like):
    """A share for each coordinate."""
    return jnp.broadcast_to(share, rows.shape).reshape(like.shape)


class CascadedDenoiser(AbstractBlended):
    r"""Cas-DM: the data $m_\theta$ behind the noise that a first network predicts, the data
    $m_\phi$ that a second network makes of them, and their blend

    $$\hat x_0 = r\, m_\phi + (1 - r)\, m_\theta, \qquad
    (m_\phi, r) = \phi(\mathrm{stop}(m_\theta), x, t).$$

    No derivative goes from the second network to the first. Both are evaluated in each step; for
    the first alone, sample with `noise_model`, for the second alone with `FixedShare(1.0)`.

    **Arguments:**

    - `noise_model`: the first network with what it predicts, the noise as a rule.
    - `clean_network`: the second, with twice the channels of a sample: of shape `(2, 8, 8)` for
      samples `(8, 8)` or `(1, 8, 8)`. It sees one sample or two, and gives $m_\phi$ and the logits
      of $r$.
    - `inputs`: what it sees; `BothInputs()`, `CleanInput()` or `NoisyInput()`.
    - `share`: how $r$ comes; `LearnedShare()`, `PixelShare()` or `FixedShare(value)`.
    - `clip`: $m_\theta$ is cut off to [-clip, clip], since where there is much noise it is a
      quotient by little; `None` for data of no known range.

    **Raises:** `TypeError` if a network is none; `ValueError` for channels that are no multiple of
    two, a `clip` that is not positive and, when called, samples of another size.

    **Reference:** An, Yang, Wang, Li, Liu, Wang, Luo, Bring Metric Functions into Diffusion Models,
    2024, arXiv:2401.02414.
    """

    noise_model: Denoiser
    clean_network: AbstractNetwork
    inputs: AbstractInputs = eqx.field(default_factory=BothInputs)
    share: AbstractShare = eqx.field(default_factory=LearnedShare)
    clip: float | None = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        checks.instance("noise_model", self.noise_model, Denoiser, "Denoiser(network)")
        checks.instance("inputs", self.inputs, AbstractInputs, "BothInputs()")
        checks.instance("share", self.share, AbstractShare, "LearnedShare()")
        _check(self.clean_network, 2, self.clip)

    @property
    def predicts(self) -> AbstractPrediction:
        """What the first network predicts."""
        return self.noise_model.predicts

    def predictions(self, x, node):
        output = self.noise_model.network(*self.predicts.inputs(x, node))
        first = _cut(self.predicts.data(output, x, node), self.clip)
        # The second network must not teach the first.
        seen = self.inputs(jax.lax.stop_gradient(first), x, node)
        rows, logits = _channels(self.clean_network, 2, seen, node)
        second = rows.reshape(x.shape)
        return Predictions(output, first, second, _spread(self.share(logits), rows, x))


class DualDenoiser(AbstractBlended):
    r"""Dual diffusion: one network that predicts the noise, the data and the share of their blend.

    What `CascadedDenoiser` is measured against: the losses of the data reach the noise through the
    common weights.

    **Arguments:**

    - `network`: with three times the channels of a sample: of shape `(3, 8, 8)` for samples
      `(8, 8)`. It sees the noisy sample and zeros, and gives the noise, the data and the logits of
      $r$.
    - `predicts`: what the first output predicts.
    - `share`, `clip`: as in `CascadedDenoiser`.

    **Raises:** as `CascadedDenoiser`, for multiples of three.

    **Reference:** Benny, Wolf, Dynamic Dual-Output Diffusion Models, 2022, arXiv:2203.04304.
    """

    network: AbstractNetwork
    predicts: AbstractPrediction = Noise()
    share: AbstractShare = eqx.field(default_factory=LearnedShare)
    clip: float | None = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        checks.instance("predicts", self.predicts, AbstractPrediction, "Noise()")
        checks.instance("share", self.share, AbstractShare, "LearnedShare()")
        _check(self.network, 3, self.clip)

    def predictions(self, x, node):
        seen, level = self.predicts.inputs(x, node)
        output, rows, logits = _channels(self.network, 3, (seen,), level)
        output, second = output.reshape(x.shape), rows.reshape(x.shape)
        first = _cut(self.predicts.data(output, x, node), self.clip)
        return Predictions(output, first, second, _spread(self.share(logits), rows, x))


class PerceptualDistance(eqx.Module):
    r"""A distance of images in features of a frozen network, over layers $l$ and pixels $p$,

    $$d(x, y) = \sum_l w_l \operatorname{mean}_p |u_{lp}(x) - u_{lp}(y)|^2,$$

    with $u_{lp}$ the channels of layer $l$ at a pixel, scaled to length one, as LPIPS does, or as
    they are.

    **Arguments:**

    - `features`: from samples `(n, ...)` to an array `(n, channels, *pixels)`, without pixels too,
      or to a sequence of these.
    - `weights`: $w_l$, ones if not given.
    - `normalize`: scale channels to length one.

    **Returns:** a distance for each sample.

    **Raises:** `TypeError` if `features` is not a function; `ValueError` for a negative weight and,
    when called, for another number of weights than layers.

    **Reference:** Zhang, Isola, Efros, Shechtman, Wang, The Unreasonable Effectiveness of Deep
    Features as a Perceptual Metric, 2018, arXiv:1801.03924.
    """

    features: Callable[[Float[Array, "n ..."]], Any]
    weights: Sequence[float] | None = eqx.field(
        static=True, default=None, converter=lambda w: None if w is None else tuple(w)
    )
    normalize: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if not callable(self.features):
            raise TypeError(f"features must be a function, got {self.features!r}")
        for weight in self.weights or ():
            checks.nonnegative("weights", weight)

    def _layers(self, x):
        layers = self.features(x)
        layers = layers if isinstance(layers, tuple | list) else [layers]
        if not self.normalize:
            return layers
        # Blank patches have features of length zero; added inside, the root's slope stays finite.
        length = lambda u: jnp.sqrt(jnp.sum(u**2, axis=1, keepdims=True) + 1e-10)
        return [u / length(u) for u in layers]

    def __call__(self, x: Float[Array, "n ..."], y: Float[Array, "n ..."]) -> Float[Array, " n"]:
        ours, theirs = self._layers(x), self._layers(y)
        weights = (1.0,) * len(ours) if self.weights is None else self.weights
        if len(weights) != len(ours):
            raise ValueError(f"there are {len(weights)} weights for {len(ours)} layers")

        def layer(u, v):
            square = jnp.sum((u - v) ** 2, axis=1)
            return jnp.mean(square.reshape(len(square), -1), axis=1)

        parts = [w * layer(*pair) for w, *pair in zip(weights, ours, theirs, strict=True)]
        return sum(parts[1:], parts[0])


def _check_metric(levels, metric, weight):
    checks.instance("levels", levels, AbstractLevels, "UniformTime(schedule)")
    if metric is not None and not callable(metric):
        raise TypeError(f"metric must be a function, got {metric!r}")
    checks.nonnegative("metric_weight", weight)


def _drawn(levels, x, key):
    """Levels and noise; the same draws as `DenoisingLoss` makes of this key."""
    level_key, key = jax.random.split(key)
    noise_key, _ = jax.random.split(key)
    nodes = levels.draw(level_key, len(x), x.dtype)
    return nodes, jax.random.normal(noise_key, x.shape, x.dtype)


def _square(x, y):
    return jnp.mean((x - y) ** 2)


class CascadedLoss(eqx.Module):
    r"""The loss of two predictions and of their blend, for a `CascadedDenoiser` or a
    `DualDenoiser`,

    $$|\epsilon - \epsilon_\theta|^2 + |x_0 - m_\phi|^2 + w_d\, d(m_\phi, x_0)
    + w_\mu\, |x_0 - r \bar m_\phi - (1 - r) \bar m_\theta|^2,$$

    means over samples and coordinates, with a level and noise drawn for each sample; what has a bar
    is held fixed, so that the last term trains $r$ alone. That term is the error of the mean of the
    ancestral sampler's step, $\mu = A x_0 + B x_t$, over $A^2$, which is next to nothing where
    there is much noise. In a cascade the first network's gradient is that of the first term.

    Where the first network predicts something else than noise, the first term is the error of that.

    **Arguments:**

    - `levels`: `UniformTime(schedule)`, `DiscreteTimes(schedule)` or `LogNormal()`.
    - `metric`: $d$, from two batches of samples to a number for each or one for all;
      `PerceptualDistance`, say. None if not given.
    - `metric_weight`: $w_d$.
    - `mean_weight`: $w_\mu$.

    **Returns:** the loss, and its terms as the metrics `noise_error`, `clean_error`, `mean_error`
    and, with a metric, `distance`.

    **Raises:** `TypeError` if `levels` or `metric` is none, or the model has no two predictions;
    `ValueError` for a negative weight.

    **Reference:** An, Yang, Wang, Li, Liu, Wang, Luo, Bring Metric Functions into Diffusion Models,
    2024, arXiv:2401.02414.
    """

    levels: AbstractLevels
    metric: Callable[[Array, Array], Array] | None = None
    metric_weight: Scalar = scalar_field(0.1)
    mean_weight: Scalar = scalar_field(1.0)

    def __check_init__(self):
        _check_metric(self.levels, self.metric, self.metric_weight)
        checks.nonnegative("mean_weight", self.mean_weight)

    def __call__(
        self, model: AbstractBlended, batch: Float[Array, "n ..."], context: Any
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        checks.instance("model", model, AbstractBlended, "CascadedDenoiser(...)")
        nodes, noise = _drawn(self.levels, batch, context.key)

        def one(x, noise, node):
            noisy = combine((node.alpha, x), (node.sigma, noise))
            made = model.predictions(noisy, node)
            fixed = made._replace(
                first=jax.lax.stop_gradient(made.first), second=jax.lax.stop_gradient(made.second)
            )
            wanted = target(model.predicts, x, noise, node)
            errors = (
                _square(made.output, wanted),
                _square(made.second, x),
                _square(fixed.blend(), x),
            )
            return errors, made.second

        errors, second = jax.vmap(one)(batch, noise, nodes)
        noise_error, clean_error, mean_error = map(jnp.mean, errors)
        terms = {"noise_error": noise_error, "clean_error": clean_error, "mean_error": mean_error}
        total = noise_error + clean_error + self.mean_weight.astype(batch.dtype) * mean_error
        if self.metric is not None:
            terms["distance"] = jnp.mean(self.metric(second, batch))
            total = total + self.metric_weight.astype(batch.dtype) * terms["distance"]
        return total, terms


class MetricLoss(eqx.Module):
    r"""A metric in the training of one network, through the data that follow from its output,

    $$|\epsilon - \epsilon_\theta|^2 + w_d\, d(m_\theta, x_0).$$

    What a cascade is there to avoid.

    **Arguments:**

    - `levels`, `metric`, `metric_weight`: as in `CascadedLoss`.
    - `clip`: $m_\theta$ is cut off to [-clip, clip], or not.

    **Returns:** the loss, and its terms as the metrics `noise_error` and `distance`.

    **Raises:** as `CascadedLoss`; `ValueError` for a `clip` that is not positive.

    **Reference:** An, Yang, Wang, Li, Liu, Wang, Luo, Bring Metric Functions into Diffusion Models,
    2024, arXiv:2401.02414.
    """

    levels: AbstractLevels
    metric: Callable[[Array, Array], Array]
    metric_weight: Scalar = scalar_field(0.1)
    clip: float | None = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _check_metric(self.levels, self.metric, self.metric_weight)
        if self.clip is not None:
            checks.positive("clip", self.clip)

    def __call__(
        self, model: Denoiser, batch: Float[Array, "n ..."], context: Any
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        nodes, noise = _drawn(self.levels, batch, context.key)

        def one(x, noise, node):
            noisy = combine((node.alpha, x), (node.sigma, noise))
            output = model.network(*model.predicts.inputs(noisy, node))
            data = _cut(model.predicts.data(output, noisy, node), self.clip)
            return _square(output, target(model.predicts, x, noise, node)), data

        errors, data = jax.vmap(one)(batch, noise, nodes)
        error, distance = jnp.mean(errors), jnp.mean(self.metric(data, batch))
        terms = {"noise_error": error, "distance": distance}
        return error + self.metric_weight.astype(batch.dtype) * distance, terms
