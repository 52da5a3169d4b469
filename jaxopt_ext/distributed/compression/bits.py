"""Codes of few bits, side by side in bytes."""

import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8


def width(values: int) -> int:
    """Bits that tell this many values apart: $\\lceil \\log_2 n \\rceil$, 0 for one value."""
    return max(values - 1, 0).bit_length()


def word(dtype) -> int:
    """Bits of one number of this type."""
    return 8 * jnp.dtype(dtype).itemsize


def pack(codes: Int[Array, " k"], bits: int) -> UInt8[Array, " bytes"]:
    """Codes below $2^b$ as $\\lceil kb/8 \\rceil$ bytes, the lowest bit of each code first.

    **Arguments:**

    - `codes`: integers of any type, $0 \\le c < 2^b$.
    - `bits`: $b$, at most the width of the type of `codes`.
    """
    places = jnp.arange(bits, dtype=codes.dtype)
    return jnp.packbits(((codes[:, None] >> places) & 1).astype(jnp.uint8).reshape(-1))


def unpack(packed: UInt8[Array, " bytes"], count: int, bits: int, dtype=jnp.int32):
    """The first `count` codes of `bits` bits that `pack` packed, as integers of `dtype`."""
    if not bits:
        return jnp.zeros(count, dtype)
    each = jnp.unpackbits(packed, count=count * bits).reshape(count, bits).astype(dtype)
    return jnp.sum(each << jnp.arange(bits, dtype=dtype), axis=1, dtype=dtype)
