"""Compressors that send some entries and drop the others."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ...core import checks
from .bits import pack, unpack, width, word
from .compressor import AbstractCompressor, check_count, count_of


class SparseMessage(NamedTuple):
    """Entries, and where they stand, as packed codes."""

    values: Float[Array, " k"]
    indices: UInt8[Array, " bytes"]


def _scatter(values, indices, size, dtype):
    return jnp.zeros(size, dtype).at[indices].set(values, unique_indices=True)


class TopK(AbstractCompressor):
    """The $k$ entries of largest magnitude; of equals the first. $\\delta = k/d$.

    A message is $k$ values and $k$ positions of $\\lceil\\log_2 d\\rceil$ bits. NaN counts as
    largest, and so is sent.

    **Arguments:**

    - `k`: how many, or a float in $(0, 1]$: that part of the $d$ entries, rounded up; static.
    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Stich, Cordonnier, Jaggi, Sparsified SGD with Memory, 2018, arXiv:1809.07599.
    """

    k: int | float = eqx.field(static=True)

    def __check_init__(self):
        check_count("k", self.k)

    def encode(self, x, key, state):
        indices = jax.lax.top_k(jnp.abs(x), count_of(self.k, x.size))[1]
        return SparseMessage(x[indices], pack(indices, width(x.size)))

    def decode(self, message, like, key):
        indices = unpack(message.indices, count_of(self.k, like.size), width(like.size))
        return _scatter(message.values, indices, like.size, like.dtype)

    def leaf_bits(self, like):
        return count_of(self.k, like.size) * (word(like.dtype) + width(like.size))

    def leaf_delta(self, like):
        return count_of(self.k, like.size) / like.size


class BlockTopK(AbstractCompressor):
    """The $k$ entries of largest magnitude in each block of $B$ consecutive entries.
    $\\delta = k/B$.

    It needs no sort of the whole vector, and positions of $\\lceil\\log_2 B\\rceil$ bits only. A
    shorter last block sends $k$ entries too, with zeros for those that it does not have.

    **Arguments:**

    - `k`: how many of a block, or a float in $(0, 1]$: that part of it, rounded up; static.
    - `block_size`: $B$, cut to $d$ if larger; static.
    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Stich, Cordonnier, Jaggi, Sparsified SGD with Memory, 2018, arXiv:1809.07599, for
    each block.
    """

    k: int | float = eqx.field(static=True)
    block_size: int = eqx.field(static=True)

    def __check_init__(self):
        check_count("k", self.k)
        checks.count("block_size", self.block_size)

    def _sizes(self, d: int) -> tuple[int, int, int]:
        size = min(self.block_size, d)
        return math.ceil(d / size), size, count_of(self.k, size)

    def encode(self, x, key, state):
        blocks, size, k = self._sizes(x.size)
        padding = (0, blocks * size - x.size)
        values = jnp.pad(x, padding).reshape(blocks, size)
        magnitude = jnp.pad(jnp.abs(x), padding, constant_values=-1).reshape(blocks, size)
        indices = jax.lax.top_k(magnitude, k)[1]
        values = jnp.take_along_axis(values, indices, axis=1)
        return SparseMessage(values.reshape(-1), pack(indices.reshape(-1), width(size)))

    def decode(self, message, like, key):
        blocks, size, k = self._sizes(like.size)
        indices = unpack(message.indices, blocks * k, width(size)).reshape(blocks, k)
        indices = (indices + size * jnp.arange(blocks, dtype=indices.dtype)[:, None]).reshape(-1)
        return _scatter(message.values, indices, blocks * size, like.dtype)[: like.size]

    def leaf_bits(self, like):
        blocks, size, k = self._sizes(like.size)
        return blocks * k * (word(like.dtype) + width(size))

    def leaf_delta(self, like):
        _, size, k = self._sizes(like.size)
        return k / size


class RandK(AbstractCompressor):
    """$k$ entries drawn uniformly without replacement. $\\delta = k/d$; `unbiased`, they are
    multiplied with $d/k$, and $\\omega = d/k - 1$.

    **Arguments:**

    - `k`: how many, or a float in $(0, 1]$: that part of the $d$ entries, rounded up; static.
    - `unbiased`: whether to scale; static.
    - `shared_seed`: whether the receivers have the key of the sender. Then only values travel, and
      with one key at all nodes the mean of messages is the message of the mean; static.
    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Stich, Cordonnier, Jaggi, Sparsified SGD with Memory, 2018, arXiv:1809.07599.
    """

    k: int | float = eqx.field(static=True)
    unbiased: bool = eqx.field(static=True, default=False)
    shared_seed: bool = eqx.field(static=True, default=False)
    random = True

    def __check_init__(self):
        check_count("k", self.k)

    @property
    def shared_key(self):
        return self.shared_seed

    def _draw(self, key, size: int):
        return jax.random.permutation(key, size)[: count_of(self.k, size)].astype(jnp.int32)

    def encode(self, x, key, state) -> Any:
        indices = self._draw(key, x.size)
        if self.shared_seed:
            return x[indices]
        return SparseMessage(x[indices], pack(indices, width(x.size)))

    def decode(self, message, like, key):
        k = count_of(self.k, like.size)
        if self.shared_seed:
            values, indices = message, self._draw(key, like.size)
        else:
            values, indices = message.values, unpack(message.indices, k, width(like.size))
        scale = like.size / k if self.unbiased else 1.0
        return _scatter(values * scale, indices, like.size, like.dtype)

    def leaf_bits(self, like):
        place = 0 if self.shared_seed else width(like.size)
        return count_of(self.k, like.size) * (word(like.dtype) + place)

    def leaf_delta(self, like):
        k = count_of(self.k, like.size)
        return None if self.unbiased and k < like.size else k / like.size

    def leaf_omega(self, like):
        k = count_of(self.k, like.size)
        return like.size / k - 1 if self.unbiased or k == like.size else None


class RandBlock(AbstractCompressor):
    """$k$ consecutive entries, from a place drawn uniformly; the last entry is followed by the
    first. $\\delta = k/d$.

    It reads and writes memory in order, where `RandK` does not.

    **Arguments:**

    - `k`: how many, or a float in $(0, 1]$: that part of the $d$ entries, rounded up; static.
    - `shared_seed`: whether the receivers have the key of the sender. Then the place does not
      travel, and with one key at all nodes the mean of messages is the message of the mean; static.
    - `per_leaf`: see `AbstractCompressor`.

    **Reference:** Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization, 2019, arXiv:1905.13727.
    """

    k: int | float = eqx.field(static=True)
    shared_seed: bool = eqx.field(static=True, default=False)
    random = True

    def __check_init__(self):
        check_count("k", self.k)

    @property
    def shared_key(self):
        return self.shared_seed

    def _draw(self, key, size: int):
        return jax.random.randint(key, (), 0, size, jnp.int32)

    def encode(self, x, key, state) -> Any:
        place = self._draw(key, x.size)
        values = jnp.roll(x, -place)[: count_of(self.k, x.size)]
        if self.shared_seed:
            return values
        return SparseMessage(values, pack(place[None], width(x.size)))

    def decode(self, message, like, key):
        if self.shared_seed:
            values, place = message, self._draw(key, like.size)
        else:
            values, place = message.values, unpack(message.indices, 1, width(like.size))[0]
        rest = jnp.zeros(like.size - values.size, like.dtype)
        return jnp.roll(jnp.concatenate([values, rest]), place)

    def leaf_bits(self, like):
        place = 0 if self.shared_seed else width(like.size)
        return count_of(self.k, like.size) * word(like.dtype) + place

    def leaf_delta(self, like):
        return count_of(self.k, like.size) / like.size
