"""Mixing weights that change from round to round, on the edges of one network.

A schedule is a function from the number of a round, which may be traced, to the weights that
`Network.mix` takes: `network.mix(x, schedule(r))`. Edges that are absent in a round have weight
zero. `TimeVarying` repeats a table of weights; any other function will do.
"""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core import checks, loops
from .network import Network, Weights


class TimeVarying(eqx.Module):
    """Round r mixes with row r modulo T of two tables.

    **Arguments:**

    - `own`: diagonals, shape `(T, n)`.
    - `table`: weights of the neighbours, shape `(T, n, k)`, as `Network.weights` orders them.
    """

    own: Float[Array, "T n"] = eqx.field(converter=jnp.asarray)
    table: Float[Array, "T n k"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        if self.own.ndim != 2 or self.table.ndim != 3 or self.table.shape[:2] != self.own.shape:
            raise ValueError(
                f"own and table must have shapes (T, n) and (T, n, k), got {self.own.shape} and "
                f"{self.table.shape}"
            )

    @staticmethod
    def of(network: Network, matrices: Iterable[Any]) -> "TimeVarying":
        """A schedule of matrices, sparse or dense, on the edges of a network."""
        own, table = zip(*map(network.weights, matrices), strict=True)
        return TimeVarying(jnp.stack(own), jnp.stack(table))

    @property
    def period(self) -> int:
        """T."""
        return self.own.shape[0]

    def __call__(self, round: int | Int[Array, ""]) -> Weights:
        """The weights of a round."""
        r = round % self.period
        own, table = (
            jax.lax.dynamic_index_in_dim(a, r, keepdims=False) for a in (self.own, self.table)
        )
        return own, table


def one_peer_exponential(network: Network) -> TimeVarying:
    """In round t node i keeps one half and takes one half of node $i + 2^{t \\bmod \\log_2 n}$.

    After $\\log_2 n$ rounds every node holds the exact mean. The matrices are doubly stochastic
    but not symmetric.

    **Arguments:**

    - `network`: on the graph `exponential(n)`, n a power of two.

    **Reference:** Ying, Yuan, Chen, Hu, Pan, Yin, Exponential Graph is Provably Efficient for
    Decentralized Deep Training, 2021, arXiv:2110.13363.
    """
    n = network.size
    if n < 2 or n & (n - 1):
        raise ValueError(f"the number of nodes must be a power of two and at least 2, got {n}")
    nodes, half = np.arange(n), np.full(2 * n, 0.5)

    def matrix(hop):
        places = np.tile(nodes, 2), np.concatenate([nodes, (nodes + hop) % n])
        return scipy.sparse.coo_array((half, places), shape=(n, n)).tocsr()

    return TimeVarying.of(network, (matrix(1 << t) for t in range(n.bit_length() - 1)))


def random_matching(network: Network, key: PRNGKeyArray, *, passes: int = 4) -> Weights:
    """Weights of a round in which pairs of neighbours meet and average; the others keep theirs.

    Every edge draws a number; an edge whose number is the least at both of its ends is taken, and
    so again among the nodes that are left. `lambda r: random_matching(network, fold_in(key, r))` is
    a schedule; its matrices are symmetric and doubly stochastic.

    **Arguments:**

    - `key`: of the round.
    - `passes`: how often pairs are looked for; a few come close to a matching that cannot grow.
    """
    checks.count("passes", passes)
    tables = network._graph()
    neighbors, mask = jnp.asarray(tables.neighbors), jnp.asarray(tables.mask)
    nodes = jnp.arange(network.size)
    if not neighbors.shape[1]:
        return jnp.ones(network.size), jnp.zeros(mask.shape)
    draw = lambda e: jax.random.uniform(jax.random.fold_in(key, e))
    numbers = jax.vmap(jax.vmap(draw))(jnp.asarray(tables.edges))

    def once(_, taken):
        free = ~jnp.any(taken, axis=1)
        open_ = mask & free[:, None] & free[neighbors]
        best = jnp.argmin(jnp.where(open_, numbers, 2.0), axis=1)
        partner = jnp.where(jnp.any(open_, axis=1), neighbors[nodes, best], nodes)
        meet = (partner[partner] == nodes) & (partner != nodes)
        return taken.at[nodes, best].max(meet)

    taken = loops.fori_loop(0, passes, once, jnp.zeros_like(mask))
    table = 0.5 * taken.astype(numbers.dtype)
    return 1 - jnp.sum(table, axis=1), table


def b_connectivity(network: Network, schedule: TimeVarying) -> int:
    """The smallest B such that any B rounds in a row, of the schedule repeated for ever, join all
    nodes: the union of their edges of non-zero weight is strongly connected.

    **Raises:** `ValueError` if not even a whole period does.
    """
    tables, period = network._graph(), schedule.period
    n = network.size
    present = np.asarray(schedule.table) != 0

    def joined(support):
        rows, columns = np.nonzero(support)
        places = rows, tables.neighbors[rows, columns]
        graph = scipy.sparse.coo_array((np.ones(len(rows)), places), shape=(n, n))
        return scipy.sparse.csgraph.connected_components(graph, connection="strong")[0] == 1

    largest = 1
    for start in range(period):
        support, length = present[start].copy(), 1
        while not joined(support):
            if length == period:
                raise ValueError("the graphs of a whole period together are disconnected")
            support |= present[(start + length) % period]
            length += 1
        largest = max(largest, length)
    return largest
