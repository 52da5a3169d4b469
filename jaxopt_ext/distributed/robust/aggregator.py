"""The contract of aggregators."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ...core import checks
from ..network import Network
from .rows import ravel_row, ravel_rows


class AbstractAggregator(eqx.Module):
    """A rule that makes one row of many, some of which may be bad.

    Subclasses say what they make of a matrix, `combine`; how many bad rows they withstand,
    `tolerates`; and what they cannot do, `check`.
    """

    def aggregate(
        self,
        rows: PyTree[Array],
        state: PyTree[Array] | None = None,
        pivot: PyTree[Array] | None = None,
        key: PRNGKeyArray | None = None,
        mask: Bool[Array, " m"] | None = None,
    ) -> PyTree[Array]:
        """One row.

        **Arguments:**

        - `rows`: real floating-point leaves stacked on a leading axis of $m$; a row is raveled
          across the leaves.
        - `state`: what the rule returned the round before, for rules that look at it.
        - `pivot`: the row of the node that aggregates, for rules that look at it.
        - `key`: for rules that draw.
        - `mask`: which rows are there, all if `None`. A rule that keeps too few of them for its $f$
          returns NaN.

        **Returns:** one row, in the types of the leaves.

        **Raises:** `ValueError` if $m$ is too small for the rule, if shapes do not fit, or if the
        pivot or key that it needs is missing; `TypeError` on leaves that are not real
        floating-point.
        """
        matrix, unravel = ravel_rows(rows)
        m = matrix.shape[0]
        self._enough(m)
        if mask is None:
            mask = jnp.ones(m, bool)
        else:
            mask = _mask(mask, m)
            matrix = jnp.where(mask[:, None], matrix, jnp.nan)
        state = None if state is None else ravel_row("state", state, rows)
        pivot = None if pivot is None else ravel_row("pivot", pivot, rows)
        return unravel(self.combine(matrix, state, pivot, key, mask))

    def aggregate_over(
        self,
        network: Network,
        rows: PyTree[Array],
        state: PyTree[Array] | None = None,
        pivot: PyTree[Array] | None = None,
        key: PRNGKeyArray | None = None,
        mask: Bool[Array, " n"] | None = None,
    ) -> PyTree[Array]:
        """One row of those that the nodes of a network hold, known at all nodes.

        The nodes gather all rows, unless means over the network will do for the rule.

        **Arguments:**

        - `network`: where the nodes live, $n$ of them.
        - `rows`: those of the local nodes, stacked.
        - `state`, `pivot`, `key`: see `aggregate`; the same at all nodes.
        - `mask`: of all nodes, the same at all of them.

        **Returns:** one row, not stacked.

        **Raises:** see `aggregate`.
        """
        matrix, unravel = ravel_rows(rows)
        self._enough(network.size)
        if mask is not None:
            mask = _mask(mask, network.size)
            matrix = jnp.where(network.local(mask)[:, None], matrix, jnp.nan)
        state = None if state is None else ravel_row("state", state, rows)
        pivot = None if pivot is None else ravel_row("pivot", pivot, rows)
        return unravel(self.combine_over(network, matrix, state, pivot, key, mask))

    def combine_over(
        self,
        network: Network,
        x: Float[Array, "local d"],
        state: Float[Array, " d"] | None,
        pivot: Float[Array, " d"] | None,
        key: PRNGKeyArray | None,
        mask: Bool[Array, " n"] | None,
    ) -> Float[Array, " d"]:
        """`combine` for the rows of a network; all are there if the mask is `None`."""
        mask = jnp.ones(network.size, bool) if mask is None else mask
        return self.combine(network.gather(x), state, pivot, key, mask)

    @property
    def exchanges(self) -> int:
        """How often each node of a network sends a row for one result."""
        return 1

    def _enough(self, m):
        checks.count("the number of rows", m)
        self.check(m)

    def __call__(self, rows, state=None, pivot=None, key=None, mask=None):
        """See `aggregate`."""
        return self.aggregate(rows, state, pivot, key, mask)

    @abc.abstractmethod
    def combine(
        self,
        x: Float[Array, "m d"],
        state: Float[Array, " d"] | None,
        pivot: Float[Array, " d"] | None,
        key: PRNGKeyArray | None,
        mask: Bool[Array, " m"],
    ) -> Float[Array, " d"]:
        """One row of a matrix; the rows that the mask drops are NaN."""

    @abc.abstractmethod
    def tolerates(self, m: int) -> int:
        """How many of `m` rows may hold anything, so that the result is still near the others."""

    def check(self, m: int) -> None:
        """Raise `ValueError` if `m` rows are too few."""


def _mask(mask, m):
    if jnp.shape(mask) != (m,):
        raise ValueError(f"mask must have shape {(m,)}, got {jnp.shape(mask)}")
    return jnp.asarray(mask, bool)


def require(ok: bool, rule: AbstractAggregator, what: str, m: int) -> None:
    """Raise with the numbers unless `m` rows will do."""
    if not ok:
        raise ValueError(f"{rule} needs {what}, got m = {m}")
