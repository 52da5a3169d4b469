"""Block-wise compression of flat vectors: 4-bit quantization, and the largest entries per block."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

LEVELS = 15


class Quantized4Bit(NamedTuple):
    """A vector of d entries as 4-bit codes, two a byte, with the range of each bucket.

    Byte i holds entry i in its low half and entry i + ceil(d/2) in its high half, so that packing
    moves contiguous runs.
    """

    codes: UInt8[Array, " half"]
    low: Float[Array, " buckets"]
    high: Float[Array, " buckets"]


def empty_4bit(size: int, bucket_size: int, dtype) -> Quantized4Bit:
    """The zero vector of this many entries, quantized."""
    zeros = jnp.zeros(math.ceil(size / bucket_size), dtype)
    return Quantized4Bit(jnp.zeros(math.ceil(size / 2), jnp.uint8), zeros, zeros)


def quantize_4bit(
    x: Float[Array, " d"], bucket_size: int, key: Key[Array, ""] | None = None
) -> Quantized4Bit:
    r"""Quantize each bucket of consecutive entries to 16 levels between its minimum and maximum.

    With u = (max - min) / 15 the code of an entry is ⌊(x - min)/u + 1/2⌋: the nearest level, off
    by at most u/2. With a key, ⌊(x - min)/u + U[0, 1)⌋: one of the two neighbouring levels, equal
    to x in expectation. A constant bucket gets code 0 and is exact.

    **Arguments:**

    - `x`: a flat vector.
    - `bucket_size`: entries per bucket; the last bucket may be shorter.
    - `key`: for stochastic rounding.

    **Reference:** Modoranu et al., MicroAdam: Accurate Adaptive Optimization with Low Space
    Overhead and Provable Convergence, 2024, arXiv:2405.15593.
    """
    size = x.shape[0]
    if size == 0:
        return empty_4bit(size, bucket_size, x.dtype)
    # Repeating the last entry leaves the range of its bucket as it is.
    buckets = jnp.pad(x, (0, -size % bucket_size), mode="edge").reshape(-1, bucket_size)
    low, high = jnp.min(buckets, axis=1), jnp.max(buckets, axis=1)
    unit = (high - low) / LEVELS
    # A constant bucket has unit 0: its entries equal the minimum, so any divisor gives code 0.
    unit = jnp.where(unit > 0, unit, 1)
    offset = 0.5 if key is None else jax.random.uniform(key, buckets.shape, x.dtype)
    levels = jnp.floor((buckets - low[:, None]) / unit[:, None] + offset)
    codes = jnp.clip(levels, 0, LEVELS).astype(jnp.uint8).reshape(-1)[:size]
    half = math.ceil(size / 2)
    upper = jnp.pad(codes[half:], (0, 2 * half - size))
    return Quantized4Bit(codes[:half] | (upper << 4), low, high)


def dequantize_4bit(
    quantized: Quantized4Bit, size: int, bucket_size: int
) -> Float[Array, " {size}"]:
    """The vector that the codes stand for: min + code (max - min)/15, bucket by bucket.

    **Arguments:**

    - `quantized`: as `quantize_4bit` returns it.
    - `size`: number of entries of the vector.
    - `bucket_size`: as it was when quantizing.
    """
    codes, low, high = quantized
    both = jnp.concatenate([codes & 15, codes >> 4])[:size]
    levels = jnp.pad(both.astype(low.dtype), (0, -size % bucket_size)).reshape(-1, bucket_size)
    unit = (high - low) / LEVELS
    return (low[:, None] + levels * unit[:, None]).reshape(-1)[:size]


def topk_counts(size: int, block_size: int, fraction: float) -> tuple[int, int, int]:
    """How `topk_blocks` cuts a vector.

    **Returns:** the number of full blocks, how many entries each keeps, and how many the shorter
    last block keeps (0 if there is none).
    """
    full, rest = divmod(size, block_size)
    return full, math.ceil(fraction * block_size), math.ceil(fraction * rest)


def index_dtype(block_size: int):
    """The smallest integer type that counts within a block."""
    return jnp.int16 if block_size <= jnp.iinfo(jnp.int16).max + 1 else jnp.int32


def topk_blocks(
    x: Float[Array, " d"], block_size: int, fraction: float
) -> tuple[Int[Array, " k"], Float[Array, " k"]]:
    """The entries of largest magnitude of each block of consecutive entries.

    **Arguments:**

    - `x`: a flat vector.
    - `block_size`: entries per block, B; the last block may be shorter.
    - `fraction`: each block of B' entries keeps ⌈fraction B'⌉, so at least one.

    **Returns:** positions relative to the start of their block (int16 if they fit, else int32), and
    the entries there. `block_positions` gives absolute positions.
    """
    full, many, few = topk_counts(x.shape[0], block_size, fraction)
    cut = full * block_size
    pieces = []
    if full:
        _, top = jax.lax.top_k(jnp.abs(x[:cut]).reshape(full, block_size), many)
        pieces.append(top.reshape(-1))
    if few:
        pieces.append(jax.lax.top_k(jnp.abs(x[cut:]), few)[1])
    if not pieces:
        return jnp.zeros(0, index_dtype(block_size)), x
    relative = jnp.concatenate(pieces).astype(index_dtype(block_size))
    return relative, x[block_positions(relative, x.shape[0], block_size, fraction)]


def block_positions(
    relative: Int[Array, "*rows k"], size: int, block_size: int, fraction: float
) -> Int[Array, "*rows k"]:
    """Absolute positions of the entries that `topk_blocks` chose."""
    full, many, few = topk_counts(size, block_size, fraction)
    block = jnp.minimum(jnp.arange(full * many + few, dtype=jnp.int32) // many, full)
    return relative.astype(jnp.int32) + block * block_size
