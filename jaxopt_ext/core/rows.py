"""Tables of samples: pytrees of arrays stacked on the leading axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from . import loops, tree


def check(data: PyTree[Array]) -> None:
    """Raise `ValueError` unless the leaves have a common leading axis of at least 1."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"data must be arrays with a common leading axis, got shapes {shapes}")
    if shapes[0][0] == 0:
        raise ValueError(f"data must have rows, got shapes {shapes}")


def count(data: PyTree[Array]) -> int:
    """The number of rows."""
    return jnp.shape(jax.tree.leaves(data)[0])[0]


def take(data: PyTree[Array], indices: Int[Array, " b"]) -> PyTree[Array]:
    """Some of the rows."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], data)


def first(data: PyTree[Array]) -> PyTree[Array]:
    """Zeros like the first row."""
    row = lambda data: jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], data)
    return tree.zeros_of(jax.eval_shape(row, data))


def mean(
    total: Callable[[PyTree[Array]], PyTree[Array]], data: PyTree[Array], chunk: int | None
) -> PyTree[Array]:
    """The mean over rows of what `total` sums over a part of them, part by part.

    Memory is that of one part, also for derivatives; those in the data pass over all of them once
    for each part.

    **Arguments:**

    - `total`: maps some of the rows to the sum of something over them.
    - `data`: all rows.
    - `chunk`: how many of them to look at together; `None` for all.
    """
    n = count(data)
    chunk = n if chunk is None else min(chunk, n)
    data = jax.tree.map(jnp.asarray, data)
    times, left = divmod(n, chunk)
    if times == 1 and left == 0:
        return tree.scale(total(data), 1 / n)

    def part(begin, size):
        cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, begin, size)
        return total(jax.tree.map(cut, data))

    @jax.checkpoint
    def add(carry, i):
        return jax.tree.map(jnp.add, carry, part(begin + i * chunk, chunk))

    # The first part tells what is added up: what is left over, if anything is.
    begin = left or chunk
    carry = part(0, begin)
    steps = jnp.arange(times if left else times - 1, dtype=jnp.int32)
    carry, _ = loops.scan(lambda carry, i: (add(carry, i), None), carry, steps)
    return tree.scale(carry, 1 / n)


_LONG = 4096


def total(x: Array) -> Array:
    """The sum over the leading axis; of long rows by a product, since compilers for CPUs walk down
    column after column of a reduction, up to a hundred times slower."""
    plain = lambda x: jnp.sum(x, axis=0)
    narrow = not jnp.issubdtype(x.dtype, jnp.inexact) or x.real.dtype.itemsize < 4
    if narrow or x.size < _LONG * len(x) or tree.is_spread(x):
        return plain(x)
    ones = lambda x: jnp.tensordot(jnp.ones(len(x), x.dtype), x, 1, precision="highest")
    return jax.lax.platform_dependent(x, cpu=ones, default=plain)


def average(x: Array) -> Array:
    """The mean over the leading axis, as `total`."""
    return total(x) / len(x)
