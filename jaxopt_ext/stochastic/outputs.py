"""Which iterate a stochastic method returns."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import Scalar, checks, scalar_field, tree


class AbstractOutput(eqx.Module):
    """A rule that is shown the iterates $x_0, \\dots, x_{K-1}$ as they are left, and chooses."""

    @abc.abstractmethod
    def init(self, x: PyTree[Array]) -> Any:
        """The record before the first iterate."""

    @abc.abstractmethod
    def observe(
        self,
        record: Any,
        x: PyTree[Array],
        size: Float[Array, ""],
        weight: Float[Array, ""],
        key: PRNGKeyArray,
    ) -> Any:
        """Show an iterate, with the norm of its residual (infinite if unknown) and its weight."""

    @abc.abstractmethod
    def read(
        self, record: Any, x: PyTree[Array], size: Float[Array, ""]
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        """What is returned behind the last iterate, $x_K$, and the norm of its residual, infinite
        if unknown."""

    def choose(
        self,
        record: Any,
        x: PyTree[Array],
        error: Float[Array, ""],
        size: Float[Array, ""],
        tol: Float[Array, ""],
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        """What a solve returns, and its error: the last iterate if its error passed."""
        chosen, known = self.read(record, x, size)
        return tree.where(error <= tol, (x, error), (chosen, known))


def finished(
    output: AbstractOutput,
    x: PyTree[Array],
    state: Any,
    size: Float[Array, ""],
    tol: Float[Array, ""],
) -> tuple[PyTree[Array], Any]:
    """The `finish` of a solver whose state has a `record` of the output and an `error`.

    **Arguments:**

    - `size`: the norm of the residual at `x`, infinite if unknown.
    """
    if isinstance(output, Last):
        return x, state
    chosen, error = output.choose(state.record, x, state.error, size, tol)
    return chosen, eqx.tree_at(lambda s: s.error, state, error)


class Last(AbstractOutput):
    """The last iterate."""

    def init(self, x):
        return None

    def observe(self, record, x, size, weight, key):
        return None

    def read(self, record, x, size):
        return x, size


class _Mean(NamedTuple):
    mean: PyTree[Array]
    total: Float[Array, ""]
    count: Float[Array, ""]


class Average(AbstractOutput):
    """The mean of the iterates, iterate $k$ with a weight in proportion to $(k + 1)^p$.

    **Arguments:**

    - `power`: $p \\ge 0$; 0 for the plain mean.
    """

    power: Scalar = scalar_field(0.0)

    def __check_init__(self):
        checks.nonnegative("power", self.power)

    def init(self, x):
        zero = jnp.zeros((), tree.real_dtype(x))
        return _Mean(jax.tree.map(jnp.zeros_like, x), zero, zero)

    def observe(self, record, x, size, weight, key):
        count = record.count + 1
        weight = count ** self.power.astype(count.dtype)
        total = record.total + weight
        gap = jax.tree.map(jnp.subtract, x, record.mean)
        return _Mean(tree.axpy(record.mean, weight / total, gap), total, count)

    def read(self, record, x, size):
        return record.mean, jnp.full_like(size, jnp.inf)


class _Pick(NamedTuple):
    x: PyTree[Array]
    size: Float[Array, ""]
    total: Float[Array, ""]


class RandomIterate(AbstractOutput):
    """One of the iterates at random, in proportion to the weights that the method gives them:
    uniform, unless it says otherwise. A reservoir of one: no other is kept."""

    def init(self, x):
        zero = jnp.zeros((), tree.real_dtype(x))
        return _Pick(x, zero + jnp.inf, zero)

    def observe(self, record, x, size, weight, key):
        total = record.total + weight.astype(record.total.dtype)
        taken = jax.random.uniform(key, (), total.dtype) * total < weight
        x, size = tree.where(taken, (x, size.astype(total.dtype)), (record.x, record.size))
        return _Pick(x, size, total)

    def read(self, record, x, size):
        return record.x, record.size.astype(size.dtype)


class LeastGradient(AbstractOutput):
    """The iterate with the smallest residual among those where the method knows it; the last, if it
    knows none."""

    def init(self, x):
        return x, jnp.full((), jnp.inf, tree.real_dtype(x))

    def observe(self, record, x, size, weight, key):
        best, least = record
        size = size.astype(least.dtype)
        return tree.where(size < least, (x, size), (best, least))

    def read(self, record, x, size):
        best, least = record
        less = least < size
        return tree.where(less, best, x), jnp.where(less, least.astype(size.dtype), size)
