r"""Magnitude-preserving networks, and how they are trained: EDM2.

With `Preconditioned(sigma_data)`, `UncertaintyLoss`, Adam at the rate of `inverse_sqrt_schedule`,
`forced_normalisation` after every update, and two averages that `posthoc_average` combines.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ..core import checks
from .denoiser import Denoiser
from .magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    pixel_norm,
)
from .networks import AbstractNetwork, Keep, Through, log_ratio, one_hot
from .objectives import LogNormal, output_errors, output_weight
from .schedules import Node
from .weightings import EDMWeighting

BALANCE, CLIP = 0.3, 256.0


class MPEmbedding(eqx.Module):
    """Features of the level, and of the class, mixed to a condition.

    **Arguments:**

    - `size`: of the condition.
    - `features`: number of features of the level.
    - `num_classes`: number of labels, if there are any.
    - `key`: random key.
    - `dtype`: of the weights.
    """

    fourier: MPFourier
    noise: MPLinear
    label: MPLinear | None
    num_classes: int | None = eqx.field(static=True)

    def __init__(self, size: int, features: int, num_classes: int | None, *, key, dtype=None):
        keys = jax.random.split(key, 3)
        self.fourier = MPFourier(features, key=keys[0], dtype=dtype)
        self.noise = MPLinear(features, size, key=keys[1], dtype=dtype)
        self.label = (
            None if num_classes is None else MPLinear(num_classes, size, key=keys[2], dtype=dtype)
        )
        self.num_classes = num_classes

    def __call__(self, level: Float[Array, ""], label: Any, dtype: Any) -> Float[Array, " size"]:
        condition = self.noise(self.fourier(level).astype(dtype))
        labels = one_hot(label, self.num_classes, dtype)
        if self.label is not None:
            condition = mp_sum(condition, self.label(labels * math.sqrt(labels.size)), 0.5)
        return mp_silu(condition)


class Dropping(NamedTuple):
    """What blocks are told while they are trained with dropout.

    **Attributes:**

    - `condition`: the condition.
    - `key`: of this sample; each block makes one of its own of it.
    """

    condition: Float[Array, " size"]
    key: PRNGKeyArray


def _told(condition):
    """The condition, and the key if anything is to be dropped."""
    return condition if isinstance(condition, Dropping) else (condition, None)


def dropped(x: Array, rate: float, key: PRNGKeyArray | None, place: int) -> Array:
    """Each entry is zero with probability `rate` and else divided by `1 - rate`; without a key
    nothing is done. Blocks of one network differ in `place`.

    **Reference:** Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, Dropout: A Simple Way
    to Prevent Neural Networks from Overfitting, 2014.
    """
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


class MPLayer(eqx.Module):
    """A residual block of two linear layers on a normalized vector; the condition scales what is
    between them, by a gain that starts at zero."""

    first: MPLinear
    second: MPLinear
    modulation: MPLinear
    gain: Float[Array, ""]
    dropout: float = eqx.field(static=True)
    place: int = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        condition: int,
        dropout: float = 0.0,
        place: int = 0,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        keys = jax.random.split(key, 3)
        self.dropout, self.place = dropout, place
        self.first = MPLinear(width, width, key=keys[0], dtype=dtype)
        self.second = MPLinear(width, width, key=keys[1], dtype=dtype)
        self.modulation = MPLinear(condition, width, key=keys[2], dtype=dtype)
        self.gain = jnp.zeros((), self.first.weight.dtype)

    def __call__(self, hidden, condition):
        condition, key = _told(condition)
        hidden = pixel_norm(hidden)
        y = self.first(mp_silu(hidden))
        y = mp_silu(y * (self.modulation(condition, self.gain) + 1))
        y = self.second(dropped(y, self.dropout, key, self.place))
        return jnp.clip(mp_sum(hidden, y, BALANCE), -CLIP, CLIP)


class EDM2MLP(AbstractNetwork):
    """A magnitude-preserving perceptron with residual layers; a one stands beside the sample in
    place of biases, and the output has a gain that starts at zero.

    **Arguments:**

    - `shape`: of a sample.
    - `width`, `depth`: size and number of the blocks, of two layers each.
    - `num_classes`: number of labels, if there are any.
    - `features`: of the level.
    - `level`: the node's level of noise.
    - `dropout`: part of the values between a block's layers that `DenoisingLoss` and
      `UncertaintyLoss` drop.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` or `TypeError` for a width or depth that is none, or a dropout outside
    of [0, 1).

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    embedding: MPEmbedding
    first: MPLinear
    blocks: tuple[MPLayer, ...]
    last: MPLinear
    gain: Float[Array, ""]
    level: Callable[[Node], Array]
    dropout_key: PRNGKeyArray | None

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        depth: int = 2,
        num_classes: int | None = None,
        features: int = 64,
        level: Callable[[Node], Array] = log_ratio,
        dropout: float = 0.0,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        checks.count("width", width)
        checks.count("depth", depth)
        _check_dropout(dropout)
        keys = jax.random.split(key, depth + 3)
        size = math.prod(shape)
        self.shape, self.level = tuple(shape), level
        self.embedding = MPEmbedding(width, features, num_classes, key=keys[0], dtype=dtype)
        self.first = MPLinear(size + 1, width, key=keys[1], dtype=dtype)
        self.blocks = tuple(
            MPLayer(width, width, dropout, place, key=key, dtype=dtype)
            for place, key in enumerate(keys[3:])
        )
        self.last = MPLinear(width, size, key=keys[2], dtype=dtype)
        self.gain = jnp.zeros((), self.last.weight.dtype)
        self.dropout_key = None

    def dropping(self, key):
        return _dropping(self, key)

    def stem(self, x, node, label=None):
        condition = _condition(self, x, node, label)
        seen = jnp.concatenate([x.reshape(-1), jnp.ones(1, x.dtype)])
        return self.first(seen), condition

    def head(self, hidden, condition):
        del condition
        return self.last(hidden, self.gain).reshape(self.shape)


def _check_dropout(rate):
    checks.interval("dropout", rate, 0.0, 1.0, open_high=True)


def _dropping(network, key):
    key_of = lambda network: network.dropout_key
    return eqx.tree_at(key_of, network, key, is_leaf=lambda leaf: leaf is None)


def _condition(network, x, node, label):
    condition = network.embedding(network.level(node), label, x.dtype)
    key = network.dropout_key
    return condition if key is None else Dropping(condition, key)


def halved(x: Float[Array, "c h w"]) -> Float[Array, "c h/2 w/2"]:
    """Means of two by two pixels."""
    channels, height, width = x.shape
    return jnp.mean(x.reshape(channels, height // 2, 2, width // 2, 2), axis=(2, 4))


def doubled(x: Float[Array, "c h w"]) -> Float[Array, "c 2h 2w"]:
    """Each pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class MPAttention(eqx.Module):
    """Attention between the pixels of an image, whose queries, keys and values are normalized in
    each head, mixed with the image."""

    project: MPConv
    out: MPConv
    heads: int = eqx.field(static=True)

    def __init__(self, channels: int, heads: int, *, key: PRNGKeyArray, dtype: Any = None):
        keys = jax.random.split(key)
        self.project = MPConv(channels, 3 * channels, 1, key=keys[0], dtype=dtype)
        self.out = MPConv(channels, channels, 1, key=keys[1], dtype=dtype)
        self.heads = heads

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, "c h w"]:
        parts = self.project(x).reshape(self.heads, -1, 3, x.shape[1] * x.shape[2])
        q, k, v = jnp.moveaxis(normalize(parts, 1), 2, 0)
        scores = jnp.einsum("hcq,hck->hqk", q, k) / math.sqrt(q.shape[1])
        y = jnp.einsum("hqk,hck->hcq", jax.nn.softmax(scores, axis=-1), v)
        return mp_sum(x, self.out(y.reshape(x.shape)), BALANCE)


class MPBlock(eqx.Module):
    """A magnitude-preserving residual block of an image, at its resolution, half or twice of it.

    On the descending side the image is normalized pixel by pixel, and its channels are changed
    before that; on the ascending side they are changed behind the residual.

    **Arguments:**

    - `inputs`, `outputs`: numbers of channels.
    - `condition`: size of the condition.
    - `ascending`: the side.
    - `resample`: what is done to the image first; `halved`, `doubled` or `None`.
    - `heads`: of attention behind the block; 0 for none.
    - `dropout`, `place`: as in `dropped`, of the values between the two convolutions.
    - `key`: random key.
    - `dtype`: of the weights.
    """

    first: MPConv
    second: MPConv
    modulation: MPLinear
    gain: Float[Array, ""]
    skip: MPConv | None
    attention: MPAttention | None
    ascending: bool = eqx.field(static=True)
    resample: Callable[[Array], Array] | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    place: int = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int,
        *,
        ascending: bool,
        resample: Callable[[Array], Array] | None = None,
        heads: int = 0,
        dropout: float = 0.0,
        place: int = 0,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        keys = jax.random.split(key, 5)
        inner = inputs if ascending else outputs
        self.first = MPConv(inner, outputs, 3, key=keys[0], dtype=dtype)
        self.second = MPConv(outputs, outputs, 3, key=keys[1], dtype=dtype)
        self.modulation = MPLinear(condition, outputs, key=keys[2], dtype=dtype)
        self.gain = jnp.zeros((), self.first.weight.dtype)
        change = inputs != outputs
        self.skip = MPConv(inputs, outputs, 1, key=keys[3], dtype=dtype) if change else None
        self.attention = MPAttention(outputs, heads, key=keys[4], dtype=dtype) if heads else None
        self.ascending, self.resample = ascending, resample
        self.dropout, self.place = dropout, place

    def __call__(self, x, condition):
        condition, key = _told(condition)
        x = x if self.resample is None else self.resample(x)
        if not self.ascending:
            x = x if self.skip is None else self.skip(x)
            x = pixel_norm(x)
        y = self.first(mp_silu(x))
        scale = self.modulation(condition, self.gain) + 1
        y = dropped(mp_silu(y * scale[:, None, None]), self.dropout, key, self.place)
        y = self.second(y)
        if self.ascending and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, y, BALANCE)
        if self.attention is not None:
            x = self.attention(x)
        return jnp.clip(x, -CLIP, CLIP)


class MPJoin(eqx.Module):
    """A block of the ascending side: what was kept last stands beside what comes in, each counting
    half."""

    block: MPBlock

    def __call__(self, hidden, condition):
        x, kept = hidden
        return self.block(mp_cat(x, kept[-1], 0.5), condition), kept[:-1]


class EDM2UNet(AbstractNetwork):
    """The magnitude-preserving U-Net.

    Each resolution of the descending side hands all it computed to the ascending side. The hidden
    value is an image and the tuple of what was kept.

    **Arguments:**

    - `shape`: of a sample, with or without a leading axis of channels.
    - `channels`: at each resolution, halved from one to the next.
    - `blocks`: number of blocks at each resolution of the descending side; the ascending side has
      one more.
    - `attention`: attention at the lowest resolution and in the middle.
    - `heads`: of attention.
    - `num_classes`: number of labels, if there are any.
    - `level`: the node's level of noise.
    - `dropout`: part of the values between a block's convolutions that `DenoisingLoss` and
      `UncertaintyLoss` drop.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` for sides that cannot be halved that often, channels that are no whole
    number of heads, or a dropout outside of [0, 1).

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    embedding: MPEmbedding
    first: MPConv
    blocks: tuple[Any, ...]
    last: MPConv
    gain: Float[Array, ""]
    level: Callable[[Node], Array]
    dropout_key: PRNGKeyArray | None

    def __init__(
        self,
        shape: tuple[int, ...] = (1, 8, 8),
        channels: tuple[int, ...] = (8, 16),
        blocks: int = 1,
        attention: bool = False,
        heads: int = 1,
        num_classes: int | None = None,
        level: Callable[[Node], Array] = log_ratio,
        dropout: float = 0.0,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        images = (1, *shape) if len(shape) == 2 else tuple(shape)
        checks.count("blocks", blocks)
        _check_dropout(dropout)
        halvings = len(channels) - 1
        if len(images) != 3 or any(side % 2**halvings for side in images[1:]):
            raise ValueError(f"sides of {shape} cannot be halved {halvings} times")
        if attention and channels[-1] % heads:
            raise ValueError(f"channels must be a multiple of the {heads} heads, got {channels}")
        keys = iter(jax.random.split(key, 5 + len(channels) * (2 * blocks + 3)))
        size, lowest = 4 * channels[0], len(channels) - 1
        at = lambda i: heads if attention and i == lowest else 0
        places = itertools.count()

        def make(inputs, outputs, **options):
            drops = {"dropout": dropout, "place": next(places)}
            return MPBlock(inputs, outputs, size, key=next(keys), dtype=dtype, **drops, **options)

        self.shape, self.level = tuple(shape), level
        self.embedding = MPEmbedding(size, channels[0], num_classes, key=next(keys), dtype=dtype)
        self.first = MPConv(images[0] + 1, channels[0], key=next(keys), dtype=dtype)
        now, kept, parts = channels[0], [channels[0]], []
        for i, count in enumerate(channels):
            if i:
                parts.append(Keep(make(now, now, ascending=False, resample=halved)))
                kept.append(now)
            for _ in range(blocks):
                parts.append(Keep(make(now, count, ascending=False, heads=at(i))))
                now = count
                kept.append(now)
        for middle in (at(lowest), 0):
            parts.append(Through(make(now, now, ascending=True, heads=middle)))
        for i, count in reversed(list(enumerate(channels))):
            if i < lowest:
                parts.append(Through(make(now, now, ascending=True, resample=doubled)))
            for _ in range(blocks + 1):
                parts.append(MPJoin(make(now + kept.pop(), count, ascending=True, heads=at(i))))
                now = count
        self.blocks = tuple(parts)
        self.last = MPConv(now, images[0], key=next(keys), dtype=dtype)
        self.gain = jnp.zeros((), self.last.weight.dtype)
        self.dropout_key = None

    def dropping(self, key):
        return _dropping(self, key)

    def stem(self, x, node, label=None):
        condition = _condition(self, x, node, label)
        images = x.reshape(-1, *self.shape[-2:])
        x = self.first(jnp.concatenate([images, jnp.ones_like(images[:1])]))
        return (x, (x,)), condition

    def head(self, hidden, condition):
        del condition
        return self.last(hidden[0], self.gain).reshape(self.shape)


class WithUncertainty(eqx.Module):
    """A denoiser and what is trained beside it: the logarithm of its squared error, as a function
    of the level. Only `denoiser` is of use afterwards.

    **Arguments:**

    - `denoiser`: the denoiser.
    - `features`: number of features of the level.
    - `key`: random key.
    - `dtype`: of the weights.
    """

    denoiser: Denoiser
    fourier: MPFourier
    linear: MPLinear

    def __init__(
        self, denoiser: Denoiser, features: int = 128, *, key: PRNGKeyArray, dtype: Any = None
    ):
        keys = jax.random.split(key)
        self.denoiser = denoiser
        self.fourier = MPFourier(features, key=keys[0], dtype=dtype)
        self.linear = MPLinear(features, 1, key=keys[1], dtype=dtype)

    def log_error(self, node: Node) -> Float[Array, ""]:
        """$u$ at one level."""
        return self.linear(self.fourier(log_ratio(node)))[0]


class UncertaintyLoss(eqx.Module):
    r"""$\mathbb E\, \frac{w(\sigma)}{e^{u(\sigma)}} |x_0 - \hat x_0|^2 + u(\sigma)$ with
    $\log\sigma$ normal, $w = 1/c_{out}^2$ and a trained $u$: at its minimum every level counts the
    same.

    The model is a `WithUncertainty`; a batch is an array of samples, or a pair of samples and
    labels.

    **Arguments:**

    - `sigma_data`: the standard deviation of the data.
    - `mean`, `std`: of $\log\sigma$.

    **Returns:** the loss, and the metric `denoising`, its first part without $e^u$.

    **Raises:** `ValueError` if `sigma_data` or `std` is not positive.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """

    sigma_data: float = 0.5
    mean: float = -0.4
    std: float = 1.0

    def __check_init__(self):
        checks.positive("sigma_data", self.sigma_data)
        checks.positive("std", self.std)

    def __call__(self, model: WithUncertainty, batch: Any, context: Any) -> tuple[Array, dict]:
        x, labels = batch if isinstance(batch, tuple) else (batch, None)
        level_key, key = jax.random.split(context.key)
        nodes = LogNormal(self.mean, self.std).draw(level_key, len(x), x.dtype)
        errors = output_errors(model.denoiser, x, labels, nodes, key)
        weights = output_weight(EDMWeighting(self.sigma_data), model.denoiser.predicts, nodes)
        weighted = weights.astype(errors.dtype) * errors
        logs = jax.vmap(model.log_error)(nodes)
        return jnp.mean(weighted * jnp.exp(-logs) + logs), {"denoising": jnp.mean(weighted)}


def inverse_sqrt_schedule(
    peak: float = 1e-2, reference: float = 70_000, ramp: float = 0
) -> optax.Schedule:
    r"""The rate $\eta_t = \frac{\eta}{\sqrt{\max(t/t_{ref}, 1)}} \min(t/t_{ramp}, 1)$, an `optax`
    schedule.

    **Arguments:**

    - `peak`: $\eta$.
    - `reference`: $t_{ref}$, steps before the rate falls.
    - `ramp`: $t_{ramp}$, steps in which it rises from zero; 0 for none.

    **Raises:** `ValueError` for a number out of range.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """
    checks.positive("peak", peak)
    checks.positive("reference", reference)
    checks.nonnegative("ramp", ramp)

    def rate(count):
        t = jnp.asarray(count, jnp.zeros(()).dtype)
        fall = peak / jnp.sqrt(jnp.maximum(t / reference, 1))
        return fall * jnp.minimum(t / ramp, 1) if ramp else fall

    return rate


def edm2_optimizer(
    peak: float = 1e-2, reference: float = 70_000, ramp: float = 0
) -> optax.GradientTransformation:
    r"""Adam with $\beta = (0.9, 0.99)$ at the rate of `inverse_sqrt_schedule`; entries of the
    gradient that are not finite count as zero.

    `training.GradientStep` leaves a batch with such entries out altogether.

    **Arguments:**

    - `peak`, `reference`, `ramp`: of the schedule.

    **Reference:** Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the
    Training Dynamics of Diffusion Models, 2024, arXiv:2312.02696.
    """
    finite = lambda updates, params: jax.tree.map(
        lambda g: jnp.where(jnp.isfinite(g), g, 0), updates
    )
    adam = optax.adam(inverse_sqrt_schedule(peak, reference, ramp), 0.9, 0.99)
    return optax.chain(optax.stateless(finite), adam)
