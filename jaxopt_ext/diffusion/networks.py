r"""Small networks for denoisers.

A network maps `(x, node)` to something like `x`, for one sample or for a batch on a leading axis.
It is a fold: `stem` gives the first hidden value and a condition, each of `blocks` maps a hidden
value to the next under that condition, `head` gives the output. The level of noise enters as one
number, $\tfrac14 \log(\sigma/\alpha)$ or what is asked for.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core import checks
from ..core.constants import Untrained
from .schedules import Node


def log_ratio(node: Node) -> Float[Array, ""]:
    r"""$\tfrac14 \log(\sigma/\alpha)$: the level of noise, whatever the schedule."""
    return 0.25 * (jnp.log(node.sigma) - jnp.log(node.alpha))


def time(node: Node) -> Float[Array, ""]:
    """The node's time."""
    return jnp.asarray(node.t)


class AbstractNetwork(eqx.Module):
    """A network in blocks, for one sample; batches are seen to by the call.

    **Attributes:**

    - `shape`: of a sample.
    - `blocks`: modules, each `(hidden, condition) -> hidden`.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    blocks: eqx.AbstractVar[tuple[Any, ...]]

    @abc.abstractmethod
    def stem(self, x: Array, node: Node, label: Int[Array, ""] | None = None) -> tuple[Any, Any]:
        """The hidden value before the first block, and what all blocks are told."""

    @abc.abstractmethod
    def head(self, hidden: Any, condition: Any) -> Array:
        """The output, shaped like a sample."""

    def dropping(self, key: PRNGKeyArray) -> "AbstractNetwork":
        """The network as it is while it is trained: with what this key makes it drop, if it drops
        anything."""
        del key
        return self

    def __call__(self, x: Array, node: Node, label: Int[Array, "*n"] | None = None) -> Array:
        """The output for one sample or a batch; `label` is a class, or -1 for none, where the
        network knows classes, one for all or one each."""
        missing = x.ndim - len(self.shape)
        if x.shape[missing:] != self.shape or missing not in (0, 1):
            raise ValueError(
                f"x must be a sample of shape {self.shape} or a batch, got shape {x.shape}"
            )
        if missing == 0:
            hidden, condition = self.stem(x, node, label)
            for block in self.blocks:
                hidden = block(hidden, condition)
            return self.head(hidden, condition)
        axes = jax.tree.map(lambda a: 0 if jnp.ndim(a) else None, (node, label))
        return jax.vmap(self, (0, *axes))(x, node, label)


class Labelled(eqx.Module):
    """A network with its label filled in, for a `Denoiser`.

    **Arguments:**

    - `network`: `(x, node, label) -> output`.
    - `label`: a class, or one for each sample.
    """

    network: Callable[..., Array]
    label: Int[Array, "*n"]

    def __call__(self, x: Array, node: Node) -> Array:
        return self.network(x, node, self.label)


class FourierFeatures(eqx.Module):
    r"""$(\cos f_i u, \sin f_i u)_i$ with random frequencies $f_i = 2\pi b z_i$, $z_i$ normal, which
    are not trained.

    **Arguments:**

    - `size`: number of frequencies; there are twice as many features.
    - `bandwidth`: $b$.
    - `key`: random key.
    - `dtype`: of the frequencies.

    **Raises:** `ValueError` if a number is not positive.

    **Reference:** Tancik et al., Fourier Features Let Networks Learn High Frequency Functions in
    Low Dimensional Domains, 2020, arXiv:2006.10739.
    """

    _frequencies: Untrained

    def __init__(self, size: int, bandwidth: float = 1.0, *, key: PRNGKeyArray, dtype: Any = None):
        checks.count("size", size)
        checks.positive("bandwidth", bandwidth)
        normal = jax.random.normal(key, (size,), _default(dtype))
        self._frequencies = Untrained(2 * math.pi * bandwidth * normal)

    @property
    def frequencies(self) -> Float[Array, " size"]:
        """$f_i$."""
        return self._frequencies.value

    @property
    def size(self) -> int:
        """Number of features."""
        return 2 * self._frequencies.bits.shape[0]

    def __call__(self, u: Float[Array, ""]) -> Float[Array, " features"]:
        angles = self.frequencies * u
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


class Sinusoidal(eqx.Module):
    r"""$(\cos f_i u, \sin f_i u)_i$ with $f_i = M^{-i/n}$, $i = 0..n-1$.

    **Arguments:**

    - `frequencies_count`: $n$; there are twice as many features.
    - `max_period`: $M$.

    **Raises:** `ValueError` if a number is not positive.

    **Reference:** Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762.
    """

    frequencies_count: int = eqx.field(static=True)
    max_period: float = eqx.field(static=True, default=1e4)

    def __check_init__(self):
        checks.count("frequencies_count", self.frequencies_count)
        checks.positive("max_period", self.max_period)

    @property
    def size(self) -> int:
        """Number of features."""
        return 2 * self.frequencies_count

    def __call__(self, u: Float[Array, ""]) -> Float[Array, " features"]:
        n = self.frequencies_count
        angles = jnp.asarray(self.max_period ** (-np.arange(n) / n), u.dtype) * u
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


def _default(dtype):
    return jnp.zeros(()).dtype if dtype is None else dtype


def zeroed(layer: Any) -> Any:
    """The layer with zero weights."""
    arrays, rest = eqx.partition(layer, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(jnp.zeros_like, arrays), rest)


def one_hot(label: Int[Array, ""] | None, num_classes: int | None, dtype: Any) -> Array:
    """A one in the place of the label, no one for the label -1 or `None`."""
    if num_classes is None:
        if label is not None:
            raise ValueError("the network was made without classes, got a label")
        return jnp.zeros(0, dtype)
    return jax.nn.one_hot(-1 if label is None else label, num_classes, dtype=dtype)


class ResidualLayer(eqx.Module):
    r"""$h + \mathrm{silu}(W h + b)$; the condition is not looked at."""

    linear: eqx.nn.Linear

    def __call__(self, hidden, condition):
        del condition
        return hidden + jax.nn.silu(self.linear(hidden))


class MLPDenoiser(AbstractNetwork):
    """A perceptron with residual layers, which sees a sample as a vector beside the features of
    its level and a one for its class.

    **Arguments:**

    - `shape`: of a sample.
    - `width`, `depth`: size and number of the residual layers.
    - `num_classes`: number of labels, if there are any.
    - `embedding`: features of the level, with a `size`; 32 random frequencies of bandwidth 1 if not
      given.
    - `level`: the node's level of noise.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` or `TypeError` for a width or depth that is none.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    embedding: Any
    first: eqx.nn.Linear
    blocks: tuple[ResidualLayer, ...]
    last: eqx.nn.Linear
    level: Callable[[Node], Array]
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 256,
        depth: int = 3,
        num_classes: int | None = None,
        embedding: Any = None,
        level: Callable[[Node], Array] = log_ratio,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        checks.count("width", width)
        checks.count("depth", depth)
        dtype = _default(dtype)
        embedding_key, *keys = jax.random.split(key, depth + 3)
        if embedding is None:
            embedding = FourierFeatures(32, key=embedding_key, dtype=dtype)
        linear = lambda a, b, key: eqx.nn.Linear(a, b, dtype=dtype, key=key)
        size = math.prod(shape)
        self.shape, self.embedding, self.level = tuple(shape), embedding, level
        self.first = linear(size + embedding.size + (num_classes or 0), width, keys[0])
        self.blocks = tuple(ResidualLayer(linear(width, width, key)) for key in keys[2:])
        self.last = linear(width, size, keys[1])
        self.num_classes = num_classes

    def stem(self, x, node, label=None):
        features = self.embedding(self.level(node)).astype(x.dtype)
        labels = one_hot(label, self.num_classes, x.dtype)
        seen = jnp.concatenate([x.reshape(-1), features, labels])
        return jax.nn.silu(self.first(seen)), None

    def head(self, hidden, condition):
        del condition
        return self.last(hidden).reshape(self.shape)


def conv3x3(
    weight: Float[Array, "out in 3 3"], x: Float[Array, "in h w"], stride: int = 1
) -> Float[Array, "out h2 w2"]:
    """A convolution with a border of one zero.

    On CPUs it is one product with shifted copies of the image: XLA's own convolution is many times
    slower there inside of a loop.

    **Arguments:**

    - `weight`: one 3 x 3 kernel for each output and input channel.
    - `x`: an image, channels first.
    - `stride`: 1 or 2.
    """

    def patches(weight, x):
        _, height, width = x.shape
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
        shifted = [
            padded[:, i : i + height : stride, j : j + width : stride]
            for i in range(3)
            for j in range(3)
        ]
        stacked = jnp.stack(shifted, axis=1)
        flat = stacked.reshape(-1, stacked.shape[2] * stacked.shape[3])
        return (weight.reshape(weight.shape[0], -1) @ flat).reshape(-1, *stacked.shape[2:])

    def convolution(weight, x):
        window = (stride, stride), ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x[None], weight, *window)[0]

    return jax.lax.platform_dependent(weight, x, cpu=patches, default=convolution)


class Conv3x3(eqx.Module):
    """`conv3x3` with a bias.

    **Arguments:**

    - `inputs`, `outputs`: numbers of channels.
    - `stride`: 1 or 2.
    - `key`: random key.
    - `dtype`: of the weights.
    """

    weight: Float[Array, "out in 3 3"]
    bias: Float[Array, "out 1 1"]
    stride: int = eqx.field(static=True)

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, key: PRNGKeyArray, dtype: Any = None
    ):
        dtype = _default(dtype)
        bound = 1 / math.sqrt(9 * inputs)
        self.weight = jax.random.uniform(key, (outputs, inputs, 3, 3), dtype, -bound, bound)
        self.bias = jnp.zeros((outputs, 1, 1), dtype)
        self.stride = stride

    def __call__(self, x: Float[Array, "in h w"]) -> Float[Array, "out h2 w2"]:
        return conv3x3(self.weight, x, self.stride) + self.bias


def group_norm(channels: int, dtype: Any) -> eqx.nn.GroupNorm:
    """Norms of groups of four channels or so."""
    return eqx.nn.GroupNorm(math.gcd(channels, max(1, channels // 4)), channels, dtype=dtype)


class ConvolutionBlock(eqx.Module):
    """A residual block of two convolutions, the second of which starts at zero; the condition
    scales and shifts what is between them."""

    norms: tuple[eqx.nn.GroupNorm, eqx.nn.GroupNorm]
    convolutions: tuple[Conv3x3, Conv3x3]
    modulation: eqx.nn.Linear
    skip: Any

    def __init__(self, inputs: int, outputs: int, condition: int, *, key, dtype=None):
        keys = jax.random.split(key, 4)
        self.norms = group_norm(inputs, dtype), group_norm(outputs, dtype)
        self.convolutions = (
            Conv3x3(inputs, outputs, key=keys[0], dtype=dtype),
            zeroed(Conv3x3(outputs, outputs, key=keys[1], dtype=dtype)),
        )
        self.modulation = eqx.nn.Linear(condition, 2 * outputs, dtype=dtype, key=keys[2])
        self.skip = (
            eqx.nn.Linear(inputs, outputs, use_bias=False, dtype=dtype, key=keys[3])
            if inputs != outputs
            else None
        )

    def __call__(self, x, condition):
        h = self.convolutions[0](jax.nn.silu(self.norms[0](x)))
        scale, shift = jnp.split(self.modulation(condition)[:, None, None], 2)
        h = self.convolutions[1](jax.nn.silu(self.norms[1](h) * (1 + scale) + shift))
        if self.skip is not None:
            x = jnp.tensordot(self.skip.weight, x, 1)
        return x + h


class PixelAttention(eqx.Module):
    """Attention between the pixels of an image, added to it."""

    norm: eqx.nn.GroupNorm
    attention: eqx.nn.MultiheadAttention

    def __init__(self, channels: int, heads: int = 1, *, key, dtype=None):
        self.norm = group_norm(channels, dtype)
        self.attention = eqx.nn.MultiheadAttention(heads, channels, dtype=dtype, key=key)

    def __call__(self, x, condition):
        del condition
        tokens = self.norm(x).reshape(x.shape[0], -1).T
        return x + self.attention(tokens, tokens, tokens).T.reshape(x.shape)


class Keep(eqx.Module):
    """A block of the descending side: what comes out is kept for the ascending side."""

    block: Any

    def __call__(self, hidden, condition):
        x, kept = hidden
        x = self.block(x, condition)
        return x, (*kept, x)


class Join(eqx.Module):
    """A block of the ascending side: what was kept last stands beside what comes in."""

    block: Any

    def __call__(self, hidden, condition):
        x, kept = hidden
        return self.block(jnp.concatenate([x, kept[-1]]), condition), kept[:-1]


class Through(eqx.Module):
    """A block that leaves alone what was kept."""

    block: Any

    def __call__(self, hidden, condition):
        x, kept = hidden
        return self.block(x, condition), kept


class Down(eqx.Module):
    """Half the resolution, by a convolution."""

    convolution: Conv3x3

    def __call__(self, x, condition):
        del condition
        return self.convolution(x)


class Up(eqx.Module):
    """Twice the resolution: each pixel four times, then a convolution."""

    convolution: Conv3x3 | eqx.nn.Identity

    def __call__(self, x, condition):
        del condition
        return self.convolution(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


class UNetDenoiser(AbstractNetwork):
    """Convolutions on a descending and an ascending side, with what the first computed handed over
    to the second at each resolution.

    The hidden value is an image and the tuple of what was kept. Descending blocks are `Keep`,
    ascending ones `Join`, one for each; the others are `Through`.

    **Arguments:**

    - `shape`: of a sample, with or without a leading axis of channels.
    - `channels`: at each resolution, halved from one to the next.
    - `convolution_blocks`: number of blocks at each resolution and side.
    - `attention`: attention between pixels in the middle.
    - `num_classes`: number of labels, if there are any.
    - `embedding`: features of the level; 16 random frequencies if not given.
    - `level`: the node's level of noise.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` for sides that cannot be halved that often.

    **Reference:** Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image
    Segmentation, 2015, arXiv:1505.04597.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    embedding: Any
    condition: eqx.nn.Linear
    first: Conv3x3
    blocks: tuple[Any, ...]
    norm: eqx.nn.GroupNorm
    last: Conv3x3
    level: Callable[[Node], Array]
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...] = (1, 8, 8),
        channels: tuple[int, ...] = (8, 16),
        convolution_blocks: int = 1,
        attention: bool = False,
        num_classes: int | None = None,
        embedding: Any = None,
        level: Callable[[Node], Array] = log_ratio,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        images = channels_first("shape", shape)
        checks.count("convolution_blocks", convolution_blocks)
        halvings = len(channels) - 1
        if any(side % 2**halvings for side in images[1:]):
            raise ValueError(f"sides of {shape} cannot be halved {halvings} times")
        dtype = _default(dtype)
        keys = iter(jax.random.split(key, 5 + 4 * len(channels) * (convolution_blocks + 1)))
        if embedding is None:
            embedding = FourierFeatures(16, key=next(keys), dtype=dtype)
        size = 4 * channels[0]
        make = lambda a, b: ConvolutionBlock(a, b, size, key=next(keys), dtype=dtype)
        conv = lambda a, b, stride=1: Conv3x3(a, b, stride, key=next(keys), dtype=dtype)
        blocks, now = [], channels[0]
        for i, count in enumerate(channels):
            if i:
                blocks.append(Through(Down(conv(now, now, 2))))
            for _ in range(convolution_blocks):
                blocks.append(Keep(make(now, count)))
                now = count
        if attention:
            blocks.append(Through(PixelAttention(now, key=next(keys), dtype=dtype)))
        blocks.append(Through(make(now, now)))
        for i, count in reversed(list(enumerate(channels))):
            for _ in range(convolution_blocks):
                blocks.append(Join(make(now + count, count)))
                now = count
            if i:
                blocks.append(Through(Up(conv(now, now))))
        self.shape, self.embedding, self.level = tuple(shape), embedding, level
        inputs = embedding.size + (num_classes or 0)
        self.condition = eqx.nn.Linear(inputs, size, dtype=dtype, key=next(keys))
        self.first = conv(images[0], channels[0])
        self.blocks = tuple(blocks)
        self.norm = group_norm(now, dtype)
        self.last = zeroed(conv(now, images[0]))
        self.num_classes = num_classes

    def stem(self, x, node, label=None):
        return image_stem(self, x, node, label)

    def head(self, hidden, condition):
        del condition
        return image_head(self, hidden)


def image_stem(network: Any, x: Array, node: Node, label: Int[Array, ""] | None) -> tuple[Any, Any]:
    """The stem of U-Nets: a convolution, nothing kept yet, and a layer of level and label."""
    features = network.embedding(network.level(node)).astype(x.dtype)
    labels = one_hot(label, network.num_classes, x.dtype)
    condition = jax.nn.silu(network.condition(jnp.concatenate([features, labels])))
    return (network.first(x.reshape(-1, *network.shape[-2:])), ()), condition


def image_head(network: Any, hidden: Any) -> Array:
    """The head of U-Nets: a norm and a convolution."""
    return network.last(jax.nn.silu(network.norm(hidden[0]))).reshape(network.shape)


def channels_first(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with an axis of channels; raises `ValueError` for one that is no image's."""
    if len(shape) not in (2, 3):
        raise ValueError(f"{name} must be (channels, height, width) or two sides, got {shape}")
    return (1, *shape) if len(shape) == 2 else tuple(shape)


class TransformerBlock(eqx.Module):
    """Attention and a perceptron between tokens, each scaled, shifted and gated by the condition;
    the gates start at zero.

    **Reference:** Peebles, Xie, Scalable Diffusion Models with Transformers, 2023,
    arXiv:2212.09748.
    """

    attention: eqx.nn.MultiheadAttention
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    modulation: eqx.nn.Linear

    def __init__(self, width: int, heads: int, *, key: PRNGKeyArray, dtype: Any = None):
        keys = jax.random.split(key, 4)
        linear = lambda a, b, key: eqx.nn.Linear(a, b, dtype=dtype, key=key)
        self.attention = eqx.nn.MultiheadAttention(heads, width, dtype=dtype, key=keys[0])
        self.inner, self.outer = (
            linear(width, 4 * width, keys[1]),
            linear(4 * width, width, keys[2]),
        )
        self.modulation = zeroed(linear(width, 6 * width, keys[3]))

    def __call__(self, hidden, condition):
        parts = jnp.split(self.modulation(condition), 6)
        h = _layer_norm(hidden) * (1 + parts[0]) + parts[1]
        hidden = hidden + parts[2] * self.attention(h, h, h)
        h = _layer_norm(hidden) * (1 + parts[3]) + parts[4]
        inner = jax.nn.gelu(jax.vmap(self.inner)(h))
        return hidden + parts[5] * jax.vmap(self.outer)(inner)


def _layer_norm(x):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


class TransformerDenoiser(AbstractNetwork):
    """A transformer over square patches of an image.

    **Arguments:**

    - `shape`: of a sample, with or without a leading axis of channels.
    - `patch`: side of a patch; each is a token.
    - `width`, `depth`, `heads`: size of a token, number of blocks and of heads of attention.
    - `num_classes`: number of labels, if there are any.
    - `embedding`: features of the level; 32 random frequencies if not given.
    - `level`: the node's level of noise.
    - `key`: random key.
    - `dtype`: of the weights.

    **Raises:** `ValueError` for sides that are no whole number of patches, or a width that is none
    of heads.

    **Reference:** Peebles, Xie, Scalable Diffusion Models with Transformers, 2023,
    arXiv:2212.09748.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    embedding: Any
    condition: tuple[eqx.nn.Linear, eqx.nn.Linear]
    first: eqx.nn.Linear
    position: Float[Array, "tokens width"]
    blocks: tuple[TransformerBlock, ...]
    modulation: eqx.nn.Linear
    last: eqx.nn.Linear
    level: Callable[[Node], Array]
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...] = (1, 8, 8),
        patch: int = 2,
        width: int = 64,
        depth: int = 6,
        heads: int = 4,
        num_classes: int | None = None,
        embedding: Any = None,
        level: Callable[[Node], Array] = log_ratio,
        *,
        key: PRNGKeyArray,
        dtype: Any = None,
    ):
        channels, height, side = channels_first("shape", shape)
        for name, value in (("patch", patch), ("width", width), ("depth", depth), ("heads", heads)):
            checks.count(name, value)
        if height % patch or side % patch:
            raise ValueError(f"sides of {shape} are no multiples of the patch, {patch}")
        if width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, got {width}")
        dtype = _default(dtype)
        keys = iter(jax.random.split(key, depth + 7))
        if embedding is None:
            embedding = FourierFeatures(32, key=next(keys), dtype=dtype)
        linear = lambda a, b: eqx.nn.Linear(a, b, dtype=dtype, key=next(keys))
        tokens, size = (height // patch) * (side // patch), channels * patch**2
        self.shape, self.patch, self.embedding, self.level = tuple(shape), patch, embedding, level
        self.condition = (
            linear(embedding.size + (num_classes or 0), width),
            linear(width, width),
        )
        self.first = linear(size, width)
        self.position = 0.02 * jax.random.normal(next(keys), (tokens, width), dtype)
        self.blocks = tuple(
            TransformerBlock(width, heads, key=next(keys), dtype=dtype) for _ in range(depth)
        )
        self.modulation = zeroed(linear(width, 2 * width))
        self.last = zeroed(linear(width, size))
        self.num_classes = num_classes

    def stem(self, x, node, label=None):
        features = self.embedding(self.level(node)).astype(x.dtype)
        labels = one_hot(label, self.num_classes, x.dtype)
        first, second = self.condition
        condition = jax.nn.silu(first(jnp.concatenate([features, labels])))
        condition = jax.nn.silu(second(condition))
        p, (height, width) = self.patch, self.shape[-2:]
        x = x.reshape(-1, height // p, p, width // p, p).transpose(1, 3, 0, 2, 4)
        tokens = x.reshape(self.position.shape[0], -1)
        return jax.vmap(self.first)(tokens) + self.position, condition

    def head(self, hidden, condition):
        scale, shift = jnp.split(self.modulation(condition), 2)
        tokens = jax.vmap(self.last)(_layer_norm(hidden) * (1 + scale) + shift)
        p, (height, width) = self.patch, self.shape[-2:]
        x = tokens.reshape(height // p, width // p, -1, p, p).transpose(2, 0, 3, 1, 4)
        return x.reshape(self.shape)
