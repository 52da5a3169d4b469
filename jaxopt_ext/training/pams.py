"""Quantized super-resolution with ranges that are trained.

Activations are rounded to $q = 2^{b-1} - 1$ levels on each side of zero, up to a maximum $\\alpha$
that is a parameter of each layer; weights up to their own maximum. Both are simulated in floating
point; the integers are those of `jaxopt_ext_kernels.quantize`.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxopt_ext_kernels import int8_conv2d, quantize

from ..core import checks

FLOOR = 1e-6
"""Below this $\\alpha$ counts as this."""
SMALL = 1e-8
"""Added to the maximum of weights, which may all be zero."""


def _levels(bits: Any) -> Any:
    """$q$; bits that are traced are not checked."""
    if not checks.is_traced(bits) and not np.all(
        (np.asarray(bits) >= 2) & (np.asarray(bits) <= 24)
    ):
        raise ValueError(f"bits must be in [2, 24], got {bits}")
    return 2.0 ** (jnp.asarray(bits, jnp.float32) - 1) - 1


def pams_quantize(
    x: Float[Array, "*shape"], alpha: Float[Array, ""], bits: Any = 8, *, clip: bool = True
) -> Float[Array, "*shape"]:
    """$\\mathrm{round}(\\mathrm{clip}(x, -\\alpha, \\alpha)\\, q/\\alpha)\\, \\alpha/q$, half to
    even, with derivatives that look through the rounding:

    $$\\frac{\\partial}{\\partial x} = [|x| < \\alpha], \\qquad
      \\frac{\\partial}{\\partial \\alpha} = \\begin{cases} \\mathrm{sign}(x) & |x| \\ge \\alpha
      \\\\ \\mathrm{round}(x q/\\alpha)/q - x/\\alpha & |x| < \\alpha. \\end{cases}$$

    They are those of training, in both modes; the second derivatives are those of these formulas.

    **Arguments:**

    - `x`: of any shape. `alpha`: $\\alpha$; below $10^{-6}$ it counts as that.
    - `bits`: $b$, from 2 to 24; may be traced, so that one program serves several.
    - `clip`: whether what exceeds $\\alpha$ is cut; if not, it has levels beyond $q$, and the
      derivatives are those inside.

    **Raises:** `ValueError` for other bits.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """
    return _rounded(clip, x, jnp.asarray(alpha, x.dtype), _levels(bits).astype(x.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rounded(clip, x, alpha, q):
    alpha = jnp.maximum(alpha, FLOOR)
    x = jnp.clip(x, -alpha, alpha) if clip else x
    return jnp.round(x * (q / alpha)) * (alpha / q)


@_rounded.defjvp
def _rounded_jvp(clip, primals, tangents):
    x, alpha, q = primals
    x_dot, alpha_dot, _ = tangents  # at the floor alpha can still be moved
    a = jnp.maximum(alpha, FLOOR)
    inside = jnp.abs(x) < (a if clip else jnp.inf)
    slope = jnp.where(inside, jnp.round(x * (q / a)) / q - x / a, jnp.sign(x))
    return _rounded(clip, *primals), jnp.where(inside, x_dot, 0) + slope * alpha_dot


def quantize_weights(w: Float[Array, "*shape"], bits: Any = 8) -> Float[Array, "*shape"]:
    """$\\mathrm{round}(w q / m)\\, m / q$ with $m = \\max |w|$; the derivative is the identity, and
    the maximum has none.

    **Arguments:**

    - `w`: of any shape. `bits`: as for `pams_quantize`.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """
    fixed = jax.lax.stop_gradient(w)
    m = _largest(fixed)
    q = _levels(bits).astype(w.dtype)
    return w + (jnp.round(fixed * (q / m)) * (m / q) - fixed)


def _largest(w):
    return jnp.max(jnp.abs(w), initial=0) + SMALL


class AlphaEMA(eqx.Module):
    """The first range of a layer: a running mean of the batches' maxima,
    $\\alpha \\leftarrow \\rho \\alpha + (1 - \\rho)\\, \\mathrm{mean}_s \\max |x_s|$ over samples,
    which starts at the first of them. Used in the first epoch, in which nothing is clipped.

    The authors' code keeps the maximum of the last batch in that epoch: $\\rho = 0$.

    **Arguments:**

    - `decay`: $\\rho$ in [0, 1).
    - `initial`: $\\alpha$ before any batch.

    **Raises:** `ValueError` for another decay.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """

    alpha: Float[Array, ""]
    started: Any
    decay: float = eqx.field(static=True)

    def __init__(self, decay: float = 0.9997, initial: float = 10.0):
        checks.interval("decay", decay, 0, 1, open_high=True)
        checks.positive("initial", initial)
        self.alpha, self.started, self.decay = (
            jnp.asarray(initial, float),
            jnp.asarray(False),
            decay,
        )

    def update(self, x: Float[Array, "batch ..."]) -> "AlphaEMA":
        """After one more batch; `x` may also hold the samples' maxima."""
        maximum = jnp.mean(jnp.max(jnp.abs(x).reshape(x.shape[0], -1), axis=1))
        blend = self.decay * self.alpha + (1 - self.decay) * maximum
        alpha = jnp.where(self.started, blend, maximum).astype(self.alpha.dtype)
        new = jax.lax.stop_gradient(alpha), jnp.ones_like(self.started)
        return eqx.tree_at(lambda e: (e.alpha, e.started), self, new)


def attention_transfer(
    student: Float[Array, "batch channels height width"],
    teacher: Float[Array, "batch channels height width"],
) -> Float[Array, ""]:
    """$\\mathrm{mean}\\,(F(x) - F(y))^2$ where $F$ takes the mean of $x^2$ over the channels and
    scales it to norm one for each sample; the teacher has no derivative.

    **Arguments:**

    - `student`, `teacher`: features of as many pixels; channels may differ.

    **Raises:** `ValueError` if shapes do not fit.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """
    shapes = [x.shape[:1] + x.shape[2:] for x in (student, teacher)]
    if student.ndim != 4 or teacher.ndim != 4 or shapes[0] != shapes[1]:
        raise ValueError(f"shapes do not fit: {student.shape} and {teacher.shape}")

    def attention(x):
        energy = jnp.mean(x**2, axis=1).reshape(x.shape[0], -1)
        # In units of the largest, as squares of squares leave the range; no norm of zeros.
        largest = jax.lax.stop_gradient(jnp.max(energy, axis=1, keepdims=True))
        energy = energy / jnp.where(largest > 0, largest, 1)
        total = jnp.sum(energy**2, axis=1, keepdims=True)
        return energy / jnp.sqrt(jnp.where(largest > 0, total, 1))

    return jnp.mean((attention(student) - attention(jax.lax.stop_gradient(teacher))) ** 2)


class Conv2d(eqx.Module):
    """A convolution of odd kernels in full precision, zeros around the image, stride one.

    **Arguments:**

    - `in_channels`, `out_channels`, `kernel_size`: its shape.
    """

    weight: Float[Array, "out in kernel kernel"]
    bias: Float[Array, " out"]

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, key: PRNGKeyArray):
        checks.count("in_channels", in_channels)
        checks.count("out_channels", out_channels)
        checks.count("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        bound = (in_channels * kernel_size**2) ** -0.5
        w, b = jax.random.split(key)
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = jax.random.uniform(w, shape, minval=-bound, maxval=bound)
        self.bias = jax.random.uniform(b, (out_channels,), minval=-bound, maxval=bound)

    def __call__(self, x: Float[Array, "batch in height width"]):
        return _convolve(x, self.weight) + self.bias[:, None, None]


def _convolve(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), [(w.shape[-1] // 2,) * 2] * 2)


class QuantConv2d(eqx.Module):
    """A convolution whose input is quantized by a trained range $\\alpha$, and whose weights are by
    their maximum; the bias is not.

    Called, it simulates in floating point and can be trained; `integer` computes the same sums in
    integers, equal but for the rounding of the simulated ones.

    **Arguments:**

    - `weight`, `bias`: of shapes `(out, in, k, k)`, `k` odd, and `(out,)`.
    - `alpha`: the range $\\alpha$, by default the authors' 10.
    - `bits`: from 2 to 24 to simulate, to 8 to infer; may be an array, for one program.

    **Raises:** `ValueError` for a range that is not positive, an even kernel, or other bits.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """

    weight: Float[Array, "out in kernel kernel"]
    bias: Float[Array, " out"]
    alpha: Float[Array, ""]
    bits: Any

    def __init__(self, weight: Array, bias: Array, alpha: Any = 10.0, bits: Any = 8):
        checks.positive("alpha", alpha)
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
            raise ValueError(f"weight must be (out, in, k, k) with k odd, got {weight.shape}")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape {weight.shape[:1]}, got {bias.shape}")
        _levels(bits)
        self.weight, self.bias, self.bits = weight, bias, bits
        self.alpha = jnp.asarray(alpha, weight.dtype)

    def __call__(self, x: Float[Array, "batch in height width"], *, clip: bool = True):
        x = pams_quantize(x, self.alpha, self.bits, clip=clip)
        return _convolve(x, quantize_weights(self.weight, self.bits)) + self.bias[:, None, None]

    def integer(
        self, x: Float[Array, "batch in height width"], *, implementation=None
    ) -> Float[Array, "batch out height width"]:
        """By `jaxopt_ext_kernels.int8_conv2d`; `bits` must be a plain number here, at most 8."""
        alpha, m = jnp.maximum(self.alpha, FLOOR), _largest(self.weight)
        levels = quantize(x, alpha, self.bits), quantize(self.weight, m, self.bits)
        padding = self.weight.shape[-1] // 2
        sums = int8_conv2d(*levels, 1, padding, implementation=implementation)
        q = 2 ** (self.bits - 1) - 1
        return sums.astype(x.dtype) * ((alpha / q) * (m / q)) + self.bias[:, None, None]


class EDSR(eqx.Module):
    """A network for super-resolution: residual blocks without normalization, then pixels from
    channels.

    $y = \\mathrm{tail}(h + \\mathrm{body}(h))$ with $h = \\mathrm{head}(x)$; a block is
    $h + \\mathrm{conv}(\\mathrm{relu}(\\mathrm{conv}(h)))$; the tail is a convolution to
    `scale**2` times the channels, which become pixels, and one more.

    **Arguments:**

    - `blocks`, `features`: number of blocks and of their channels.
    - `scale`: pixels a side for each pixel.
    - `channels`: of the images.

    **Raises:** `ValueError` if one of them is below 1.

    **Reference:** Lim, Son, Kim, Nah, Lee, Enhanced Deep Residual Networks for Single Image
    Super-Resolution, 2017, arXiv:1707.02921.
    """

    head: Conv2d
    blocks: tuple[tuple[Any, Any], ...]
    last: Any
    up: Conv2d
    tail: Conv2d
    skip: Any
    bits: Any
    scale: int = eqx.field(static=True)

    def __init__(
        self, blocks: int, features: int, scale: int, channels: int = 1, *, key: PRNGKeyArray
    ):
        for name, value in (("blocks", blocks), ("features", features), ("scale", scale)):
            checks.count(name, value)
        keys = iter(jax.random.split(key, 2 * blocks + 4))
        conv = lambda a, b: Conv2d(a, b, 3, key=next(keys))
        self.head = conv(channels, features)
        self.blocks = tuple(
            (conv(features, features), conv(features, features)) for _ in range(blocks)
        )
        self.last = conv(features, features)
        self.up, self.tail = conv(features, features * scale**2), conv(features, channels)
        self.skip, self.bits, self.scale = None, None, scale

    def quantized(self, bits: Any = 8, alpha: float = 10.0) -> "EDSR":
        """The same with the body's convolutions and residuals on `bits` bits; the first and the
        last convolutions stay in full precision."""
        convert = lambda conv: QuantConv2d(conv.weight, conv.bias, alpha, bits)
        blocks = tuple((convert(a), convert(b)) for a, b in self.blocks)
        skip = jnp.full(len(blocks) + 1, alpha, self.head.weight.dtype)
        where = lambda e: (e.blocks, e.last, e.skip, e.bits)
        new = blocks, convert(self.last), skip, bits
        return eqx.tree_at(where, self, new, is_leaf=lambda x: x is None)

    @property
    def ranges(self) -> list[Float[Array, ""]]:
        """The trained ranges, in the order of `observe`."""
        convs = [*(conv for block in self.blocks for conv in block), self.last]
        return [*(conv.alpha for conv in convs), *self.skip]

    def with_ranges(self, ranges: list[Float[Array, ""]]) -> "EDSR":
        """With other ranges, in that order."""
        convs = lambda e: [*(conv for block in e.blocks for conv in block), e.last]
        count = len(convs(self))
        where = lambda e: [*(conv.alpha for conv in convs(e)), e.skip]
        return eqx.tree_at(where, self, [*ranges[:count], jnp.stack(ranges[count:])])

    def body_bytes(self) -> int:
        """Bytes of the body's weights, packed at their bits; biases, scales and ranges in 32."""
        convs = [*(conv for block in self.blocks for conv in block), self.last]
        wide = sum(4 * conv.bias.size for conv in convs)
        if self.bits is None:
            return wide + sum(4 * conv.weight.size for conv in convs)
        packed = sum(-(-conv.weight.size * int(self.bits) // 8) for conv in convs)
        return wide + packed + 4 * (2 * len(convs) + self.skip.size)

    def observe(self, x: Float[Array, "batch channels height width"], *, clip: bool = True):
        """The image, the body's features, and for each range the samples' maxima."""
        maxima, residuals = [], []

        def conv(layer, h):
            if isinstance(layer, Conv2d):
                return layer(h)
            maxima.append(h)
            return layer(h, clip=clip)

        def residual(h):
            if self.skip is None:
                return h
            residuals.append(h)
            alpha = self.skip[len(residuals) - 1]
            return pams_quantize(h, alpha, self.bits, clip=clip)

        h = first = self.head(x)
        for one, two in self.blocks:
            h = residual(h) + conv(two, jax.nn.relu(conv(one, h)))
        h = residual(first) + conv(self.last, h)
        y = self.up(h)
        b, c, m, n = y.shape
        s = self.scale
        y = y.reshape(b, c // s**2, s, s, m, n).transpose(0, 1, 4, 2, 5, 3)
        image = self.tail(y.reshape(b, c // s**2, m * s, n * s))
        largest = lambda h: jnp.max(jnp.abs(h).reshape(h.shape[0], -1), axis=1)
        return image, h, [largest(h) for h in [*maxima, *residuals]]

    def __call__(self, x: Float[Array, "batch channels height width"]):
        """The images, of `scale` times the height and width."""
        return self.observe(x)[0]
