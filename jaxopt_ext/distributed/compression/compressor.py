"""The contract of compressors."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...core import checks
from .bits import word

Shape = PyTree[Any]
"""Arrays or `jax.ShapeDtypeStruct`s; a tuple of integers stands for one float32 array."""


def structs(shape: Shape) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types, without the numbers.

    **Raises:** `TypeError` where a leaf has neither, or is not real floating-point.
    """
    if isinstance(shape, tuple) and all(isinstance(n, int | np.integer) for n in shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.tree.map(_struct, shape)


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        what = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
        raise TypeError(f"compressors take real floating-point arrays, got {what}")
    return jax.ShapeDtypeStruct(leaf.shape, dtype)


def _whole(leaves: list[jax.ShapeDtypeStruct]) -> list[jax.ShapeDtypeStruct]:
    size = sum(leaf.size for leaf in leaves)
    return [jax.ShapeDtypeStruct((size,), jnp.result_type(*(leaf.dtype for leaf in leaves)))]


class AbstractCompressor(eqx.Module):
    """A map $C$ of vectors whose value can be told in few bits.

    Subclasses say how one leaf of $d \\ge 1$ entries is told: `encode`, `decode`, `leaf_bits`, and
    one of `leaf_delta` and `leaf_omega`.

    **Attributes:**

    - `per_leaf`: each leaf is a vector of its own, or all leaves together are one; static.
    """

    per_leaf: bool = eqx.field(static=True, default=True, kw_only=True)
    random: ClassVar[bool] = False
    """Whether `compress` needs a key."""
    ravels: ClassVar[bool] = True
    """Whether `encode` gets leaves as vectors."""

    @property
    def shared_key(self) -> bool:
        """Whether `decompress` needs the key that `compress` had, so that sender and receivers
        must agree on it; such messages of one key may be averaged instead of their meanings."""
        return False

    @property
    def linear(self) -> bool:
        """Whether messages, those of one key if they have one, may be averaged as they are."""
        return self.shared_key

    # What a compressor says of one leaf.

    @abc.abstractmethod
    def encode(self, x: Float[Array, "..."], key: PRNGKeyArray | None, state: Any) -> Any:
        """The message of one leaf: a pytree of arrays of static shape."""

    @abc.abstractmethod
    def decode(
        self, message: Any, like: jax.ShapeDtypeStruct, key: PRNGKeyArray | None
    ) -> Float[Array, "..."]:
        """What it means, in any shape of `like.size` entries."""

    @abc.abstractmethod
    def leaf_bits(self, like: jax.ShapeDtypeStruct) -> int:
        """Bits of the message of one leaf, as the field counts them."""

    def leaf_delta(self, like: jax.ShapeDtypeStruct) -> float | None:
        """$\\delta$ of one leaf; `None` if the compressor does not contract."""
        return None

    def leaf_omega(self, like: jax.ShapeDtypeStruct) -> float | None:
        """$\\omega$ of one leaf; `None` if the compressor is biased."""
        return None

    def leaf_init(self, like: jax.ShapeDtypeStruct, key: PRNGKeyArray | None) -> Any:
        """What a leaf remembers from message to message."""
        return None

    def leaf_advance(self, state: Any, message: Any) -> Any:
        """What it remembers after a message."""
        return state

    # What everybody calls.

    def init(self, x: Shape, key: PRNGKeyArray | None = None) -> PyTree[Array]:
        """The memory before the first message; empty for all but a few compressors."""
        leaves = self._structs(x)
        return tuple(
            self.leaf_init(leaf, k)
            for leaf, k in zip(leaves, self._keys(key, len(leaves)), strict=True)
        )

    def compress(
        self, x: PyTree[Array], key: PRNGKeyArray | None = None, state: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        """The message that tells $C(x)$.

        **Arguments:**

        - `x`: real floating-point arrays.
        - `key`: for compressors that draw.
        - `state`: from `init` or `advance`; without one, as if nothing had been sent before.

        **Returns:** a pytree of arrays, as small in memory as `bits` says, but for the unused bits
        of a last byte.

        **Raises:** `TypeError` on leaves that are not real floating-point; `ValueError` if the
        compressor draws and has no key.
        """
        wanted = self._structs(x)
        leaves = jax.tree.leaves(x)
        if not self.per_leaf:
            parts = [jnp.ravel(leaf).astype(wanted[0].dtype) for leaf in leaves]
            leaves = [jnp.concatenate(parts)]
        if self.random and key is None and state is None:
            raise ValueError(f"{type(self).__name__} draws at random and needs a key")
        states = (None,) * len(leaves) if state is None else state
        keys = self._keys(key, len(leaves))
        return tuple(
            self.encode(jnp.ravel(leaf) if self.ravels else jnp.asarray(leaf), k, s)
            if leaf.size
            else None
            for leaf, k, s in zip(leaves, keys, states, strict=True)
        )

    def decompress(
        self, message: PyTree[Array], shape: Shape, key: PRNGKeyArray | None = None
    ) -> PyTree[Array]:
        """$C(x)$, in the shapes and types of `shape`.

        **Arguments:**

        - `message`: from `compress`.
        - `shape`: what $x$ looks like: arrays or `jax.ShapeDtypeStruct`s.
        - `key`: the key that `compress` had, where `shared_key`; not looked at otherwise.

        **Raises:** `ValueError` if the key is needed and missing.
        """
        tree = structs(shape)
        likes = jax.tree.leaves(tree)
        if self.shared_key and key is None:
            raise ValueError(f"{type(self).__name__} needs the key of compress to decompress")
        vectors = likes if self.per_leaf else _whole(likes)
        keys = self._keys(key, len(vectors))
        values = [
            self.decode(m, like, k) if like.size else jnp.zeros(like.shape, like.dtype)
            for m, like, k in zip(message, vectors, keys, strict=True)
        ]
        if not self.per_leaf:
            ends = np.cumsum([like.size for like in likes])[:-1]
            values = jnp.split(values[0], ends)
        shaped = [
            value.reshape(like.shape).astype(like.dtype)
            for value, like in zip(values, likes, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(tree), shaped)

    def advance(self, state: PyTree[Array], message: PyTree[Array]) -> PyTree[Array]:
        """The memory after a message, which receivers can follow, since they see it too."""
        return tuple(
            s if m is None else self.leaf_advance(s, m) for s, m in zip(state, message, strict=True)
        )

    def __call__(
        self, x: PyTree[Array], key: PRNGKeyArray | None = None, state: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        """$C(x)$ itself."""
        return self.decompress(self.compress(x, key, state), x, key)

    def bits(self, shape: Shape) -> int:
        """Bits of a message, as the field counts them."""
        return sum(self.leaf_bits(like) for like in self._structs(shape) if like.size)

    def delta(self, shape: Shape) -> float | None:
        """$\\delta$ with $E\\|C(x) - x\\|^2 \\le (1 - \\delta)\\|x\\|^2$ for all $x$ of this shape;
        `None` if there is none."""
        found = [self.leaf_delta(like) for like in self._structs(shape) if like.size]
        return None if None in found else min(found, default=1.0)

    def omega(self, shape: Shape) -> float | None:
        """$\\omega$ with $E\\,C(x) = x$ and $E\\|C(x) - x\\|^2 \\le \\omega\\|x\\|^2$ for all $x$
        of this shape; `None` if $C$ is biased."""
        found = [self.leaf_omega(like) for like in self._structs(shape) if like.size]
        return None if None in found else max(found, default=0.0)

    def _structs(self, shape: Shape) -> list[jax.ShapeDtypeStruct]:
        leaves = jax.tree.leaves(structs(shape))
        checks.count("the number of leaves", len(leaves))
        return leaves if self.per_leaf else _whole(leaves)

    def _keys(self, key: PRNGKeyArray | None, count: int):
        return [None] * count if key is None else list(jax.random.split(key, count))


def count_of(k: int | float, size: int) -> int:
    """How many of `size` entries are kept: an int as it is, a float as that part, rounded up."""
    # 0.07 * 100 is a little above 7, which must not make eight of it.
    wanted = int(np.ceil(round(k * size, 6))) if isinstance(k, float) else k
    return min(max(wanted, 1), size)


def check_count(name: str, k: int | float) -> None:
    """Raise unless `k` is an int $\\ge 1$ or a float in $(0, 1]$."""
    if isinstance(k, float):
        checks.interval(name, k, 0, 1, open_low=True)
    else:
        checks.count(name, k)


class Identity(AbstractCompressor):
    """$C(x) = x$: everything is sent; $\\delta = 1$, $\\omega = 0$."""

    @property
    def linear(self):
        return True

    def encode(self, x, key, state):
        return x

    def decode(self, message, like, key):
        return message

    def leaf_bits(self, like):
        return like.size * word(like.dtype)

    def leaf_delta(self, like):
        return 1.0

    def leaf_omega(self, like):
        return 0.0


class Scaled(AbstractCompressor):
    """An unbiased compressor $C$ made a contraction, $C(x)/(1 + \\omega)$, with
    $\\delta = 1/(1 + \\omega)$.

    The message is that of $C$.

    **Arguments:**

    - `compressor`: an unbiased one; its `per_leaf` counts.

    **Raises:** `ValueError` if it is biased.

    **Reference:** Richtárik, Sokolov, Fatkhullin, EF21: A New, Simpler, Theoretically Better, and
    Practically Faster Error Feedback, 2021, arXiv:2106.05203.
    """

    compressor: AbstractCompressor

    def __init__(self, compressor: AbstractCompressor):
        checks.instance("compressor", compressor, AbstractCompressor, "QSGD(4)")
        self.compressor = compressor
        self.per_leaf = compressor.per_leaf
        if compressor.omega((4, 4)) is None:
            raise ValueError(f"Scaled needs an unbiased compressor, got {compressor}")

    @property
    def random(self):
        return self.compressor.random

    @property
    def ravels(self):
        return self.compressor.ravels

    @property
    def shared_key(self):
        return self.compressor.shared_key

    @property
    def linear(self):
        return self.compressor.linear

    def encode(self, x, key, state):
        return self.compressor.encode(x, key, state)

    def decode(self, message, like, key):
        return self.compressor.decode(message, like, key) * self.leaf_delta(like)

    def leaf_bits(self, like):
        return self.compressor.leaf_bits(like)

    def leaf_delta(self, like):
        return 1 / (1 + self.compressor.leaf_omega(like))
