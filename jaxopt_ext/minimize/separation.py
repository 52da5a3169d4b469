"""Separation oracles: which of very many half-spaces a point violates.

They are asked from the host, and answer with arrays of `numpy`: as many rows as there are.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, loops
from .bregman import AbstractRows, HalfSpaces


class Cuts(NamedTuple):
    """What an oracle found.

    - `rows`: the half-spaces, in the one form that each of them has.
    - `violation`: the largest violation over all half-spaces, `None` if only some were looked at.
    """

    rows: AbstractRows
    violation: float | None


class AbstractSeparation(eqx.Module):
    """Finds violated half-spaces, out of a family that is written down nowhere.

    **Attributes:**

    - `random`: each half-space, violated or not, is returned with some positive probability
      (property 2 of the paper); else every violated one is cut off by one that is returned
      (property 1).
    """

    random: ClassVar[bool]

    @abc.abstractmethod
    def separate(self, x: PyTree[Array], threshold: float, key: PRNGKeyArray) -> Cuts:
        """Half-spaces with $\\langle a, x\\rangle - b$ above the threshold."""

    @abc.abstractmethod
    def violation(self, x: PyTree[Array]) -> float:
        """The largest violation over all half-spaces, zero if there is none."""

    def check(self, x: PyTree[Array]) -> None:
        """Raise `ValueError` if `x` does not fit."""


def complete_graph(num_nodes: int) -> Int[np.ndarray, "e 2"]:
    """All pairs of nodes, $(0, 1), (0, 2), \\dots$, in the order of `numpy.triu_indices`."""
    return np.stack(np.triu_indices(num_nodes, 1), axis=1)


class FloydWarshall(eqx.Module):
    """All shortest paths of a dense graph, $O(n^3)$, compiled."""

    def __call__(self, lengths, edges, num_nodes):
        return _floyd_warshall(lengths, edges, num_nodes)


class Dijkstra(eqx.Module):
    """All shortest paths of a sparse graph by `scipy`, $O(n (m + n \\log n))$."""

    def __call__(self, lengths, edges, num_nodes):
        graph = scipy.sparse.csr_array((lengths, tuple(edges.T)), shape=(num_nodes, num_nodes))
        found = scipy.sparse.csgraph.dijkstra(graph, directed=False, return_predecessors=True)
        return found


def _floyd_warshall(lengths, edges, num_nodes):
    distances, before = _all_paths(jnp.asarray(lengths), jnp.asarray(edges), num_nodes)
    return np.asarray(distances), np.asarray(before)


@eqx.filter_jit
def _all_paths(lengths, edges, num_nodes):
    u, v = edges.T
    start = jnp.full((num_nodes, num_nodes), jnp.inf, lengths.dtype)
    start = start.at[u, v].set(lengths).at[v, u].set(lengths)
    start = start.at[jnp.arange(num_nodes), jnp.arange(num_nodes)].set(0)
    nodes = jnp.broadcast_to(jnp.arange(num_nodes, dtype=jnp.int32)[:, None], start.shape)

    def through(k, carry):
        distances, before = carry
        around = distances[:, k, None] + distances[k]
        shorter = around < distances
        return jnp.where(shorter, around, distances), jnp.where(shorter, before[k], before)

    return loops.fori_loop(0, num_nodes, through, (start, nodes))


class ShortestPathOracle(AbstractSeparation):
    """The cycle inequalities of a graph: no edge is longer than a path between its ends,
    $x_e \\le \\sum_{f \\in P} x_f$.

    For each edge that is, one shortest path. The search takes lengths below zero, which a point may
    have before the bounds are projected on, for zero.

    **Arguments:**

    - `num_nodes`: number of nodes $n$.
    - `edges`: the edges as pairs of nodes, shape `(e, 2)`; all pairs if `None`. Variables are in
      this order.
    - `search`: `FloydWarshall()` or `Dijkstra()`; by default that which suits the number of edges.

    **Raises:** `ValueError` for an edge that is a loop, is there twice, or has an end outside of
    the graph.
    """

    num_nodes: int = eqx.field(static=True)
    edges: np.ndarray
    search: FloydWarshall | Dijkstra
    random = False

    def __init__(self, num_nodes: int, edges: Any = None, search: Any = None):
        checks.count("num_nodes", num_nodes, minimum=2)
        self.num_nodes = num_nodes
        self.edges = complete_graph(num_nodes) if edges is None else _graph(edges, num_nodes)
        if search is None:
            search = FloydWarshall() if 8 * len(self.edges) > num_nodes**2 else Dijkstra()
        if not isinstance(search, FloydWarshall | Dijkstra):
            raise TypeError(f"search must be FloydWarshall() or Dijkstra(), got {search!r}")
        self.search = search

    def check(self, x):
        if x.shape[0] < len(self.edges):
            raise ValueError(f"{len(self.edges)} edges need as many variables, got {x.shape}")

    def _paths(self, x):
        """Lengths of edges, what is shorter, and the node before each on the way."""
        lengths = np.asarray(x)[: len(self.edges)]
        distances, before = self.search(np.maximum(lengths, 0), self.edges, self.num_nodes)
        return lengths, distances[tuple(self.edges.T)], before

    def violation(self, x):
        lengths, distances, _ = self._paths(x)
        return float(np.max(lengths - distances, initial=0))

    def separate(self, x, threshold, key):
        del key
        lengths, distances, before = self._paths(x)
        shorter = np.flatnonzero(lengths - distances > max(threshold, 0))
        number = np.zeros((self.num_nodes, self.num_nodes), np.int32)
        u, v = self.edges.T
        number[u, v] = number[v, u] = np.arange(len(self.edges))
        # All paths are walked back together, a step at a time.
        first, at = self.edges[shorter].T
        steps = []
        while np.any(at != first):
            back = np.where(at == first, at, before[first, at])
            steps.append(np.where(at == first, -1, number[back, at]))
            at = back
        path = np.stack(steps, axis=1) if steps else np.zeros((0, 2), np.int32)
        rows = path_rows(shorter, path, lengths.dtype)
        worst = _excess(rows, lengths)
        return Cuts(rows, float(np.max(worst, initial=0)))


def path_rows(edge: np.ndarray, path: np.ndarray, dtype: Any) -> HalfSpaces:
    """$x_e - \\sum_{f \\in P} x_f \\le 0$, each in one form: the edge, then its path in ascending
    order, then zeros.

    **Arguments:**

    - `edge`: shape `(k,)`.
    - `path`: edges of the paths, shape `(k, length)`; -1 behind the end of those that are shorter.
    """
    empty = np.iinfo(np.int32).max
    path = np.sort(np.where(path < 0, empty, path), axis=1)
    coefficient = np.concatenate([np.ones((len(edge), 1)), -1.0 * (path != empty)], axis=1)
    index = np.concatenate([edge[:, None], np.where(path == empty, 0, path)], axis=1)
    return HalfSpaces(index.astype(np.int32), coefficient.astype(dtype), np.zeros(len(edge), dtype))


def _excess(rows, x):
    return np.sum(rows.coefficient * x[rows.index], axis=1) - rows.bound


def _graph(edges, num_nodes):
    edges = np.asarray(edges)
    if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"edges must be pairs of integers, got {edges.dtype} {edges.shape}")
    if np.any((edges < 0) | (edges >= num_nodes)):
        raise ValueError(f"an edge has an end outside of the {num_nodes} nodes: {edges}")
    ordered = np.sort(edges, axis=1)
    if np.any(ordered[:, 0] == ordered[:, 1]) or len(np.unique(ordered, axis=0)) < len(edges):
        raise ValueError("an edge is a loop, or is there twice")
    return edges


class RandomTriangleOracle(AbstractSeparation):
    """Triangle inequalities $x_{ij} \\le x_{ik} + x_{kj}$ of a complete graph, drawn at random.

    **Arguments:**

    - `num_nodes`: number of nodes $n \\ge 3$; variables are in the order of `complete_graph`.
    - `num_samples`: how many triangles are drawn at a time, each giving three inequalities.

    **Raises:** `ValueError` for fewer than three nodes or less than one sample.
    """

    num_nodes: int = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)
    random = True

    def __check_init__(self):
        checks.count("num_nodes", self.num_nodes, minimum=3)
        checks.count("num_samples", self.num_samples)

    def check(self, x):
        ShortestPathOracle(self.num_nodes).check(x)

    def violation(self, x):
        return ShortestPathOracle(self.num_nodes).violation(x)

    def separate(self, x, threshold, key):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        n = self.num_nodes
        # Three different nodes, each triple as likely as the others.
        a = rng.integers(0, n, self.num_samples)
        b = (a + rng.integers(1, n, self.num_samples)) % n
        c = rng.integers(0, n - 2, self.num_samples)
        low, high = np.minimum(a, b), np.maximum(a, b)
        c = c + (c >= low)
        c = c + (c >= high)
        i, j, k = np.unique(np.sort(np.stack([a, b, c], axis=1), axis=1), axis=0).T
        number = lambda u, v: u * (2 * n - u - 1) // 2 + v - u - 1
        ij, ik, jk = number(i, j), number(i, k), number(j, k)
        edge = np.concatenate([ij, ik, jk])
        path = np.concatenate([np.stack(p, axis=1) for p in ((ik, jk), (ij, jk), (ij, ik))])
        lengths = np.asarray(x)
        rows = path_rows(edge, path, lengths.dtype)
        keep = _excess(rows, lengths) > threshold
        return Cuts(jax.tree.map(lambda a: a[keep], rows), None)


class ListOracle(AbstractSeparation):
    """Half-spaces that are in a list.

    **Arguments:**

    - `rows`: the list, `HalfSpaces` or `Pairs`.
    - `probability`: with which each is looked at; one is the deterministic oracle.

    **Raises:** `ValueError` for a probability outside of $(0, 1]$.
    """

    rows: AbstractRows
    probability: float = eqx.field(static=True, default=1.0)
    random = True  # at one too: what is not violated is returned if asked for

    def __check_init__(self):
        checks.interval("probability", self.probability, 0.0, 1.0, open_low=True)

    @classmethod
    def from_matrix(cls, A: Any, b: Any, probability: float = 1.0) -> "ListOracle":
        """$Ax \\le b$ for a matrix of numbers."""
        return cls(HalfSpaces.from_matrix(A, b), probability)

    def check(self, x):
        jax.eval_shape(self.rows.excess, x)
        if isinstance(self.rows, HalfSpaces):
            last = np.max(self.rows.index, initial=0)
            if last >= x.shape[0]:
                raise ValueError(f"a half-space has an entry {last}, but x has shape {x.shape}")

    def _excess(self, x) -> Float[np.ndarray, " k"]:
        return np.asarray(_excess_of(self.rows, x))

    def violation(self, x):
        return float(np.max(self._excess(x), initial=0))

    def separate(self, x, threshold, key):
        excess = self._excess(x)
        keep = excess > threshold
        if self.probability < 1:
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
            keep &= rng.random(keep.shape) < self.probability
        rows = jax.tree.map(lambda a: np.asarray(a)[keep], self.rows)
        whole = float(np.max(excess, initial=0)) if self.probability == 1 else None
        return Cuts(rows, whole)


@eqx.filter_jit
def _excess_of(rows, x):
    return rows.excess(x)


__all__ = [
    "AbstractSeparation",
    "Cuts",
    "Dijkstra",
    "FloydWarshall",
    "ListOracle",
    "RandomTriangleOracle",
    "ShortestPathOracle",
    "complete_graph",
    "path_rows",
]
