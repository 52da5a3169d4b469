"""The contract of attacks."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ...core import checks
from ...core.rows import average
from ..robust.rows import ravel_rows


class AbstractAttack(eqx.Module):
    """What $f$ bad nodes send, who know the messages of all $m - f$ good ones.

    Subclasses say what they send for a matrix, `send`; those that remember rounds have `init` and
    `observe` too.

    **Attributes:**

    - `f`: the number of bad nodes, no more than the good ones; static.
    """

    f: eqx.AbstractVar[int]

    def __call__(
        self,
        good: PyTree[Array],
        key: PRNGKeyArray | None = None,
        state: Any = None,
        own: PyTree[Array] | None = None,
    ) -> PyTree[Array]:
        """The bad messages, $f$ rows.

        **Arguments:**

        - `good`: the good messages $H$ of this round, leaves stacked on a leading axis of $m - f$.
        - `key`: for attacks that draw.
        - `state`: from `init` or `observe`, which saw this round already.
        - `own`: $f$ rows, what the bad nodes would have sent had they been good, for attacks that
          look at it; the mean of the good ones stands for each if `None`.

        **Raises:** `ValueError` if $f > m/2$, if shapes do not fit, or if the key or state is
        missing; `TypeError` on leaves that are not real floating-point.
        """
        rows, unravel = ravel_rows(good)
        self.check(len(rows))
        shape = (self.f, rows.shape[1])
        if own is None:
            meant = jnp.broadcast_to(average(rows), shape)
        else:
            meant = ravel_rows(own)[0]
            if meant.shape != shape:
                raise ValueError(f"own must ravel to shape {shape}, got {meant.shape}")
        return unravel(self.send(rows, key, state, meant))

    @abc.abstractmethod
    def send(
        self,
        good: Float[Array, "g d"],
        key: PRNGKeyArray | None,
        state: Any,
        own: Float[Array, "f d"],
    ) -> Float[Array, "f d"]:
        """The bad rows for a matrix of good ones."""

    def check(self, good: int) -> None:
        """Raise `ValueError` if so many good nodes are too few."""
        checks.count("the number of good rows", good)
        if self.f > good:
            raise ValueError(f"f <= m/2 is needed, got f = {self.f}, m = {good + self.f}")

    def init(self, row: PyTree[Array], key: PRNGKeyArray | None = None) -> Any:
        """What the attack remembers before the first round; `row` is one message."""
        return None

    def observe(self, state: Any, good: PyTree[Array]) -> Any:
        """What it remembers of one more round."""
        return state

    def corrupt(
        self,
        messages: PyTree[Array],
        faulty: tuple[int, ...],
        key: PRNGKeyArray | None = None,
        state: Any = None,
        own: PyTree[Array] | None = None,
    ) -> tuple[PyTree[Array], Any]:
        """The messages of all nodes, with what the bad ones send in its place.

        **Arguments:**

        - `messages`: of all nodes, stacked.
        - `faulty`: the numbers of the bad nodes, $f$ of them.
        - `key`, `state`, `own`: as in a call, but for the state, which has not seen this round yet.

        **Returns:** the messages, and the state that has seen the round.

        **Raises:** `ValueError` if $f$ nodes are not faulty, and as in a call.
        """
        size = len(jax.tree.leaves(messages)[0])
        bad = np.asarray(faulty, int)
        honest = np.flatnonzero(honest_nodes(faulty, size))
        if len(bad) != self.f:
            raise ValueError(f"the attack has f = {self.f}, but {len(bad)} nodes are faulty")
        good = jax.tree.map(lambda a: a[honest], messages)
        state = self.observe(state, good)
        sent = self(good, key, state, own)
        return jax.tree.map(lambda a, b: a.at[bad].set(b), messages, sent), state


def nodes(faulty: Any) -> tuple[int, ...]:
    """Numbers of nodes in ascending order, as a static field holds them.

    **Raises:** `ValueError` unless they are different integers, none of them negative.
    """
    numbers = np.asarray(faulty)
    numbers = numbers.astype(int) if numbers.size == 0 else numbers
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"faulty must be numbers of nodes, got {faulty!r}")
    if len(set(numbers.tolist())) != len(numbers) or np.any(numbers < 0):
        raise ValueError(f"faulty must be different numbers of nodes, got {faulty!r}")
    return tuple(sorted(numbers.tolist()))


def honest_nodes(faulty: tuple[int, ...], n: int) -> Bool[np.ndarray, " n"]:
    """Which of `n` nodes are good.

    **Raises:** `ValueError` if a faulty one is not among them.
    """
    if any(i >= n for i in faulty):
        raise ValueError(f"faulty nodes must be among 0, ..., {n - 1}, got {faulty}")
    return ~np.isin(np.arange(n), faulty)


def repeated(row: Float[Array, " d"], f: int) -> Float[Array, "f d"]:
    """All bad nodes send one row."""
    return jnp.broadcast_to(row, (f, *row.shape))


def deviation(rows: Float[Array, "g d"]) -> Float[Array, " d"]:
    """Standard deviation of each coordinate over the rows, with $g - 1$ in its denominator."""
    return jnp.std(rows, axis=0, ddof=1)
