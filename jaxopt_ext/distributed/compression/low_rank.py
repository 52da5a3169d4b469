"""Compressors that send factors of a matrix."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...core import checks
from .bits import word
from .compressor import AbstractCompressor

HIGHEST = jax.lax.Precision.HIGHEST


class LowRankMessage(NamedTuple):
    """Factors of $P Q'$."""

    left: Float[Array, "n r"]
    right: Float[Array, "m r"]


class _WarmStart(eqx.Module):
    right: Float[Array, "m r"]
    key: PRNGKeyArray


def matrix_shape(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Rows and columns of a leaf as a matrix: one axis is the rows, the others the columns."""
    return shape[axis], math.prod(shape) // shape[axis]


def as_matrix(x: Float[Array, "..."], axis: int) -> Float[Array, "n m"]:
    """A leaf as a matrix whose rows are this axis, usually that of the outputs."""
    return jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def from_matrix(matrix: Float[Array, "n m"], shape: tuple[int, ...], axis: int):
    """Inverse of `as_matrix`."""
    moved = (shape[axis], *shape[:axis], *shape[axis % len(shape) + 1 :])
    return jnp.moveaxis(matrix.reshape(moved), 0, axis)


def orthonormal(a: Float[Array, "n r"]) -> Float[Array, "n r"]:
    """Orthonormal columns that span those of `a`; finite columns of length one also where `a` is
    zero. Half precision is lifted to float32 for it."""
    wide = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    return jnp.linalg.qr(wide)[0].astype(a.dtype)


def alive(right: Float[Array, "m r"], fresh: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Columns of norm zero, from which no iteration returns, and columns that are not finite,
    replaced by fresh ones."""
    largest = jnp.max(jnp.abs(right), axis=0)
    return jnp.where((largest > 0) & jnp.isfinite(largest), right, fresh)


class LowRank(AbstractCompressor):
    """Rank-$r$ factors of each matrix by power iteration,

    $$P = \\mathrm{orthonormal}(M Q), \\qquad Q^+ = M' P, \\qquad C(M) = P Q^{+\\prime} = P P' M.$$

    A leaf with two or more axes is a matrix; a leaf with fewer is sent as it is. The memory is
    $Q$: the next message starts from the last $Q^+$, so that a matrix that changes slowly is soon
    told as well as by its singular vectors. Columns of $Q^+$ that vanish are drawn again. Without
    a memory $Q$ is drawn from the key for each message, and then $\\delta = r/\\min(n, m)$; what
    a memory makes of it depends on the past.

    **Arguments:**

    - `rank`: $r \\ge 1$, cut to $\\min(n, m)$; static.
    - `power_iterations`: how often $P$ and $Q$ are computed; static.
    - `axis`: the axis of a leaf that is the rows of its matrix, that of the outputs; static.

    `init` needs the key. Its $Q$ should be the same at all nodes, so that means of messages can be
    built factor by factor.

    **Raises:** `ValueError` for `per_leaf=False`, since a vector has no rank.

    **Reference:** Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization, 2019, arXiv:1905.13727.
    """

    rank: int = eqx.field(static=True)
    power_iterations: int = eqx.field(static=True, default=1)
    axis: int = eqx.field(static=True, default=0)
    random = True
    ravels = False

    def __check_init__(self):
        checks.count("rank", self.rank)
        checks.count("power_iterations", self.power_iterations)
        _whole_matrices(self)

    def _sizes(self, like) -> tuple[int, int, int]:
        n, m = matrix_shape(like.shape, self.axis)
        return n, m, min(self.rank, n, m)

    def _draw(self, like, key):
        _, m, r = self._sizes(like)
        return jax.random.normal(key, (m, r), like.dtype)

    def leaf_init(self, like, key):
        if like.ndim < 2 or not like.size:
            return None
        if key is None:
            raise ValueError("LowRank draws its first factor and needs a key")
        first, later = jax.random.split(key)
        return _WarmStart(self._draw(like, first), later)

    def leaf_advance(self, state, message):
        if state is None:
            return None
        now, later = jax.random.split(state.key)
        right = message.right
        fresh = jax.random.normal(now, right.shape, right.dtype)
        return _WarmStart(alive(right, fresh), later)

    def encode(self, x, key, state):
        if x.ndim < 2:
            return x
        matrix = as_matrix(x, self.axis)
        right = self._draw(x, key) if state is None else state.right
        left = right
        for _ in range(self.power_iterations):
            left = orthonormal(jnp.matmul(matrix, right, precision=HIGHEST))
            right = jnp.matmul(matrix.T, left, precision=HIGHEST)
        return LowRankMessage(left, right)

    def decode(self, message, like, key):
        if like.ndim < 2:
            return message
        product = jnp.matmul(message.left, message.right.T, precision=HIGHEST)
        return from_matrix(product, like.shape, self.axis)

    def leaf_bits(self, like):
        if like.ndim < 2:
            return like.size * word(like.dtype)
        n, m, r = self._sizes(like)
        return r * (n + m) * word(like.dtype)

    def leaf_delta(self, like):
        if like.ndim < 2:
            return 1.0
        n, m, r = self._sizes(like)
        return r / min(n, m)


class UnbiasedLowRank(AbstractCompressor):
    """A random projection, $C(M) = (M Q) Q'/r$ with normal $Q$ of $r$ columns. Unbiased with
    $\\omega = (m + 1)/r$.

    Sender and receivers draw the same $Q$ from one key, so that only $M Q$ travels, and the mean
    of messages is the message of the mean. A leaf with fewer than two axes is sent as it is.

    **Arguments:**

    - `rank`: $r \\ge 1$; static.
    - `axis`: the axis of a leaf that is the rows of its matrix; static.

    **Raises:** `ValueError` for `per_leaf=False`, since a vector has no rank.

    **Reference:** Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization, 2019, arXiv:1905.13727.
    """

    rank: int = eqx.field(static=True)
    axis: int = eqx.field(static=True, default=0)
    random = True
    ravels = False

    def __check_init__(self):
        checks.count("rank", self.rank)
        _whole_matrices(self)

    @property
    def shared_key(self):
        return True

    def _draw(self, like, key):
        m = matrix_shape(like.shape, self.axis)[1]
        return jax.random.normal(key, (m, self.rank), like.dtype)

    def encode(self, x, key, state):
        if x.ndim < 2:
            return x
        return jnp.matmul(as_matrix(x, self.axis), self._draw(x, key), precision=HIGHEST)

    def decode(self, message, like, key):
        if like.ndim < 2:
            return message
        product = jnp.matmul(message, self._draw(like, key).T, precision=HIGHEST) / self.rank
        return from_matrix(product, like.shape, self.axis)

    def leaf_bits(self, like):
        if like.ndim < 2:
            return like.size * word(like.dtype)
        return self.rank * matrix_shape(like.shape, self.axis)[0] * word(like.dtype)

    def leaf_omega(self, like):
        if like.ndim < 2:
            return 0.0
        return (matrix_shape(like.shape, self.axis)[1] + 1) / self.rank


class Atomo(AbstractCompressor):
    """Some of the singular triples, drawn so that the message is unbiased (spectral ATOMO),

    $$C(M) = \\sum_{i \\in S} \\frac{\\sigma_i}{p_i} u_i v_i', \\qquad
      p_i = \\Pr(i \\in S) = \\min(1, c\\, \\sigma_i), \\qquad \\sum_i p_i = r .$$

    Of all unbiased choices of r triples on average these probabilities have the least variance,
    $\\sum_i \\sigma_i^2 (1/p_i - 1)$, which is at most $\\omega = k/r - 1$ of
    $\\|M\\|^2$ for $k = \\min(n, m)$, and nothing for a matrix of rank r. One number spaced
    along the sum of the $p_i$ picks exactly r triples, so that messages are of one size; triples
    are orthogonal, and how the draws depend on each other does not matter. A leaf with fewer than
    two axes is sent as it is.

    It costs a singular value decomposition of each leaf, and messages cannot be averaged as they
    are, where `LowRank` needs neither.

    **Arguments:**

    - `rank`: $r \\ge 1$, cut to $\\min(n, m)$; static.
    - `axis`: the axis of a leaf that is the rows of its matrix; static.

    **Raises:** `ValueError` for `per_leaf=False`, since a vector has no rank.

    **Reference:** Wang, Sievert, Charles, Liu, Wright, Papailiopoulos, ATOMO:
    Communication-efficient Learning via Atomic Sparsification, 2018, arXiv:1806.04090.
    """

    rank: int = eqx.field(static=True)
    axis: int = eqx.field(static=True, default=0)
    random = True
    ravels = False

    def __check_init__(self):
        checks.count("rank", self.rank)
        _whole_matrices(self)

    def encode(self, x, key, state):
        if x.ndim < 2:
            return x
        matrix = as_matrix(x, self.axis)
        wide = matrix.astype(jnp.promote_types(x.dtype, jnp.float32))
        left, values, right = jnp.linalg.svd(wide, full_matrices=False)
        rank = min(self.rank, len(values))
        chance = inclusion(values, rank)
        marks = jax.random.uniform(key, dtype=chance.dtype) + jnp.arange(rank)
        found = jnp.searchsorted(jnp.cumsum(chance), marks, side="right")
        chosen = jnp.minimum(found, len(values) - 1)
        factor = values[chosen] / chance[chosen]
        return LowRankMessage(
            (left[:, chosen] * factor).astype(x.dtype), right[chosen].T.astype(x.dtype)
        )

    def decode(self, message, like, key):
        if like.ndim < 2:
            return message
        product = jnp.matmul(message.left, message.right.T, precision=HIGHEST)
        return from_matrix(product, like.shape, self.axis)

    def leaf_bits(self, like):
        if like.ndim < 2:
            return like.size * word(like.dtype)
        n, m = matrix_shape(like.shape, self.axis)
        return min(self.rank, n, m) * (n + m) * word(like.dtype)

    def leaf_omega(self, like):
        if like.ndim < 2:
            return 0.0
        k = min(matrix_shape(like.shape, self.axis))
        return k / min(self.rank, k) - 1


def inclusion(values: Float[Array, " k"], count: int) -> Float[Array, " k"]:
    """$\\min(1, c\\, \\sigma_i)$ with sum `count`, for values that do not increase; where too few
    are not zero, these have one, and the others like shares of what is left."""
    k = len(values)
    whole = jnp.arange(k)
    tail = jnp.cumsum(values[::-1])[::-1]
    # The first places at which what is left may be shared in proportion.
    fits = (count - whole) * values <= tail
    first = jnp.argmax(fits)
    rest = tail[first]
    share = jnp.where(rest > 0, values / jnp.where(rest > 0, rest, 1), 1 / (k - first))
    return jnp.where(whole < first, 1, jnp.minimum((count - first) * share, 1))


def _whole_matrices(compressor) -> None:
    if not compressor.per_leaf:
        raise ValueError(f"{type(compressor).__name__} needs matrices: per_leaf must be True")
