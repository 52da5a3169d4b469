"""The cone of non-decreasing vectors."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core import loops, tree
from .function import AbstractSet, require_array, require_real, unit_of


def segment_ids(starts: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Number of the segment of each entry, from the marks of first entries."""
    return jnp.cumsum(starts.at[0].set(True)) - 1


def centre(x: Float[Array, " n"]) -> Float[Array, ""]:
    """The middle of the range of `x`, as a constant: sums of entries less it keep their digits."""
    return jax.lax.stop_gradient(0.5 * jnp.max(x) + 0.5 * jnp.min(x))


def segment_means(x: Float[Array, " n"], ids: Int[Array, " n"]) -> Float[Array, " n"]:
    """Mean of `x` over each segment, at each segment's number."""
    sums = jax.ops.segment_sum(x, ids, x.size)
    counts = jax.ops.segment_sum(jnp.ones_like(x), ids, x.size)
    return sums / jnp.maximum(counts, 1)


class _Block(eqx.Module):
    """Sum of a block's entries, and the first of them."""

    sum: Float[Array, ""]
    first: Int[Array, ""]


def _violates(low: _Block, top: _Block, end: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether the mean of the top block, which ends before `end`, is not above that of `low`."""
    return low.sum * (end - top.first) >= top.sum * (top.first - low.first)


def _pool(x: Float[Array, " n"]) -> Bool[Array, " n"]:
    """Pool adjacent violators: which entries begin a block. At most $2n$ steps.

    The two topmost blocks of the stack are scalars of their own: the arrays are then never read
    before they are written to, and the loop works in them instead of copying them at each step.
    """
    n = x.size

    def step(carry):
        sums, firsts, low, top, height, i = carry
        push = (height == 0) | ~_violates(low, top, i)
        # where nothing is pushed this is beyond the end of the stack
        sums = jax.lax.dynamic_update_index_in_dim(sums, top.sum, height, 0)
        firsts = jax.lax.dynamic_update_index_in_dim(firsts, top.first, height, 0)
        new = _Block(x[jnp.minimum(i, n - 1)], i)
        under = jnp.maximum(height - 2, 0)
        popped = _Block(sums[under], firsts[under]), _Block(low.sum + top.sum, low.first)
        low, top = tree.where(push, (top, new), popped)
        grown = push.astype(i.dtype)
        return sums, firsts, low, top, height + 2 * grown - 1, i + grown

    def unfinished(carry):
        _, _, low, top, height, i = carry
        return (i < n) | ((height > 0) & _violates(low, top, i))

    zero = jnp.asarray(0, jnp.int32)
    first = _Block(x[0], zero)
    start = jnp.zeros(n, x.dtype), jnp.zeros(n, jnp.int32), first, first, zero, zero + 1
    _, firsts, _, top, height, _ = loops.while_loop(unfinished, step, start)
    used = jnp.where(jnp.arange(n) < height, firsts, n)
    return jnp.zeros(n, bool).at[used].set(True, mode="drop").at[top.first].set(True)


class Isotonic(AbstractSet):
    """$\\{x : x_1 \\le x_2 \\le \\dots \\le x_n\\}$ for a vector.

    The projection is constant on blocks found by pooling adjacent violators in $O(n)$ steps; its
    derivative averages over each block.

    **Reference:** Best, Chakravarti, Active Set Algorithms for Isotonic Regression, 1990.
    """

    convex = True

    def project(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        require_array("Isotonic", x, "a vector", 1)
        require_real("Isotonic", x)
        if x.size == 0:
            return x
        middle = centre(x)
        y = jax.lax.stop_gradient(x - middle)
        ids = segment_ids(_pool(y / unit_of(jnp.max(jnp.abs(y)))))
        return middle + segment_means(x - middle, ids)[ids]
