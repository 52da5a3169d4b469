"""Compressors that send every entry, roughly."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ...core import Scalar, checks
from .bits import pack, unpack, width, word
from .compressor import AbstractCompressor


class QuantizedMessage(NamedTuple):
    """A scale, and one packed code for each entry."""

    scale: Float[Array, ""]
    codes: UInt8[Array, " bytes"]


def _unit(x):
    """The largest magnitude, or 1 where that is of no use as a divisor: squares and sums of
    entries over it neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(x))
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


class ScaledSign(AbstractCompressor):
    """Signs, times the mean magnitude: $C(x) = \\frac{\\|x\\|_1}{d} s(x)$ with $s(0) = +1$.

    The squared error is exactly $\\|x\\|^2 - \\|x\\|_1^2/d$, so that $\\delta = 1/d$ in the worst
    case, and about $2/\\pi$ for normal entries. A message is one bit an entry and one number. One
    NaN makes all of it NaN.

    **Arguments:**

    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Karimireddy, Rebjock, Stich, Jaggi, Error Feedback Fixes SignSGD and other
    Gradient Compression Schemes, 2019, arXiv:1901.09847.
    """

    def encode(self, x, key, state):
        unit = _unit(x)
        return QuantizedMessage(
            unit * jnp.mean(jnp.abs(x / unit)), pack((x < 0).astype("uint8"), 1)
        )

    def decode(self, message, like, key):
        negative = unpack(message.codes, like.size, 1)
        return jnp.where(negative == 1, -message.scale, message.scale)

    def leaf_bits(self, like):
        return like.size + word(like.dtype)

    def leaf_delta(self, like):
        return 1 / like.size


class QSGD(AbstractCompressor):
    """Stochastic rounding to $s$ levels of the norm,

    $$C(x)_i = \\|x\\| \\, \\mathrm{sign}(x_i) \\, \\lfloor s|x_i|/\\|x\\| + u_i \\rfloor / s,
      \\qquad u_i \\sim U[0, 1).$$

    Unbiased with $\\omega = \\min(d/s^2, \\sqrt d/s)$. A message is one of $2s + 1$ codes an entry
    and one number; no entropy coding. A NaN or an infinity makes all of it NaN.

    **Arguments:**

    - `levels`: $s \\ge 1$; static.
    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Alistarh, Grubic, Li, Tomioka, Vojnovic, QSGD: Communication-Efficient SGD via
    Gradient Quantization and Encoding, 2017, arXiv:1610.02132.
    """

    levels: int = eqx.field(static=True)
    random = True

    def __check_init__(self):
        checks.count("levels", self.levels)
        if self.levels >= 2**30:
            raise ValueError(f"levels must be below 2**30, got {self.levels}")

    def encode(self, x, key, state):
        unit = _unit(x)
        norm = unit * jnp.linalg.norm(x / unit)
        ratio = jnp.abs(x) / jnp.where(norm > 0, norm, 1)
        u = jax.random.uniform(key, x.shape, x.dtype)
        level = jnp.clip(jnp.floor(self.levels * ratio + u), 0, self.levels)
        code = jnp.where(x < 0, -level, level).astype(jnp.int32) + self.levels
        return QuantizedMessage(norm, pack(code, width(2 * self.levels + 1)))

    def decode(self, message, like, key):
        code = unpack(message.codes, like.size, width(2 * self.levels + 1)) - self.levels
        return message.scale * (code.astype(like.dtype) / self.levels)

    def leaf_bits(self, like):
        return like.size * width(2 * self.levels + 1) + word(like.dtype)

    def leaf_omega(self, like):
        d, s = like.size, self.levels
        return min(d / s**2, math.sqrt(d) / s)


class Natural(AbstractCompressor):
    """Random rounding of each entry to a neighbouring power of two, without bias;
    $\\omega = 1/8$.

    A message is sign and exponent of each entry: 9 bits in float32, 12 in float64. Subnormal
    numbers are rounded to zero or to the least normal one. Entries whose upper neighbour would be
    infinite are rounded down; NaN and infinities come out as NaN.

    **Arguments:**

    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Horváth, Ho, Horváth, Sahu, Canini, Richtárik, Natural Compression for
    Distributed Deep Learning, 2019, arXiv:1905.10988.
    """

    random = True

    def encode(self, x, key, state):
        info = jnp.finfo(x.dtype)
        integer = jnp.dtype(f"uint{info.bits}")
        raw = jax.lax.bitcast_convert_type(x, integer)
        mantissa = raw & integer.type(2**info.nmant - 1)
        exponent = (raw >> integer.type(info.nmant)) & integer.type(2**info.nexp - 1)
        # The mantissa is the part of the way to the next power of two.
        draw = jax.random.bits(key, x.shape, integer) & integer.type(2**info.nmant - 1)
        up = (draw < mantissa) & (exponent < 2**info.nexp - 2)
        exponent = exponent + up.astype(integer)
        return pack(exponent | ((raw >> integer.type(info.bits - 1)) << info.nexp), 1 + info.nexp)

    def decode(self, message, like, key):
        info = jnp.finfo(like.dtype)
        integer = jnp.dtype(f"uint{info.bits}")
        code = unpack(message, like.size, 1 + info.nexp, integer)
        exponent = code & integer.type(2**info.nexp - 1)
        sign = (code >> integer.type(info.nexp)) << integer.type(info.bits - 1)
        raw = sign | (exponent << integer.type(info.nmant))
        value = jax.lax.bitcast_convert_type(raw, like.dtype)
        return jnp.where(exponent == 2**info.nexp - 1, jnp.nan, value)

    def leaf_bits(self, like):
        return like.size * (1 + jnp.finfo(like.dtype).nexp)

    def leaf_omega(self, like):
        return 1 / 8


class Grid(AbstractCompressor):
    """Dithered rounding to a grid, $C(x)_i = h \\lfloor x_i/h + u_i \\rfloor$ with
    $u_i \\sim U[0, 1)$.

    Unbiased, with an absolute error, $E\\|C(x) - x\\|^2 \\le d h^2/4$, and so with neither
    $\\delta$ nor $\\omega$. A message is $b$ bits an entry. An entry outside of the range
    $|x_i| < (2^{b-1} - 1) h$ comes out as NaN, because a clipped one would be a silent bias.

    **Arguments:**

    - `step`: $h > 0$.
    - `num_bits`: $b$, from 2 to 32; static.
    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Roberts, Picture Coding Using Pseudo-Random Noise, 1962.
    """

    step: Scalar = eqx.field(converter=checks.scalar)
    num_bits: int = eqx.field(static=True, default=32)
    random = True

    def __check_init__(self):
        checks.positive("step", self.step)
        checks.count("num_bits", self.num_bits, 2)
        checks.interval("num_bits", self.num_bits, 2, 32)

    def encode(self, x, key, state):
        u = jax.random.uniform(key, x.shape, x.dtype)
        level = jnp.floor(x / self.step.astype(x.dtype) + u)
        half = 2 ** (self.num_bits - 1)
        inside = jnp.abs(level) < float(half)
        code = jnp.where(inside, level, 0).astype(jnp.int32)
        # Two's complement has one code to spare.
        code = jnp.where(inside, code, np.int32(-half)).astype(jnp.uint32)
        return pack(code, self.num_bits)

    def decode(self, message, like, key):
        code = unpack(message, like.size, self.num_bits, jnp.uint32)
        spare = 32 - self.num_bits
        level = jax.lax.bitcast_convert_type(code << spare, jnp.int32) >> spare
        value = level.astype(like.dtype) * self.step.astype(like.dtype)
        return jnp.where(level == np.int32(-(2 ** (self.num_bits - 1))), jnp.nan, value)

    def leaf_bits(self, like):
        return like.size * self.num_bits
