"""The only place that knows where nodes live."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .graphs import check_graph
from .mixing import Matrix, check_mixing, metropolis


class _Tables(eqx.Module):
    """Neighbours of each node in ascending order, padded to the largest degree with the node
    itself at weight zero. Both kinds of network sum in this order and so agree."""

    own: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, "n k"]
    neighbors: Int[np.ndarray, "n k"]
    mask: Bool[np.ndarray, "n k"]


def _tables(graph: nx.Graph, mixing: Matrix | None) -> _Tables:
    check_graph(graph)
    mixing = metropolis(graph) if mixing is None else np.asarray(mixing, np.float64)
    check_mixing(graph, mixing)
    n = graph.number_of_nodes()
    width = max(dict(graph.degree).values()) if n > 1 else 0
    neighbors = np.tile(np.arange(n, dtype=np.int32)[:, None], (1, width))
    mask = np.zeros((n, width), bool)
    for i in range(n):
        around = sorted(graph.neighbors(i))
        neighbors[i, : len(around)] = around
        mask[i, : len(around)] = True
    weights = np.where(mask, mixing[np.arange(n)[:, None], neighbors], 0.0)
    return _Tables(np.diagonal(mixing).copy(), weights, neighbors, mask)


class Network(eqx.Module):
    """Nodes that hold values and talk to their neighbours only.

    Node values are pytrees stacked on a leading axis of *local* nodes: all of them on a simulated
    network, those of one device on a mesh. Algorithms do their local work with `vmap` and talk
    through these methods; run a round with `parallel`.

    Build one with `Network.simulated` or `Network.on_mesh`.
    """

    @staticmethod
    def simulated(graph: nx.Graph, mixing: Matrix | None = None) -> "Simulated":
        """All nodes on one device; mixing is a sparse product.

        **Arguments:**

        - `graph`: connected, undirected, nodes 0, ..., n - 1.
        - `mixing`: symmetric doubly stochastic matrix on the edges; Metropolis weights if `None`.

        **Raises:** `ValueError` on a disconnected graph or a matrix that is no such one.
        """
        return Simulated(_tables(graph, mixing))

    @staticmethod
    def on_mesh(graph: nx.Graph, mesh: Mesh, axis: str, mixing: Matrix | None = None) -> "OnMesh":
        """Nodes spread evenly over one axis of a device mesh, in order.

        Only values that cross devices travel. The edges are coloured so that each colour is one
        `ppermute`, in which a device sends and receives at most one node's value; with one node on
        each device there are as many as the largest degree.

        **Arguments:**

        - `graph`, `mixing`: see `simulated`.
        - `mesh`, `axis`: where the nodes live; the axis must divide their number.

        **Raises:** `ValueError` if the mesh has no such axis or the nodes do not spread evenly.
        """
        if axis not in mesh.axis_names:
            raise ValueError(f"the mesh has axes {mesh.axis_names}, not {axis!r}")
        tables = _tables(graph, mixing)
        return OnMesh(tables, mesh, axis, *_schedule(tables, mesh.shape[axis]))

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of nodes."""

    @abc.abstractmethod
    def index(self) -> Int[Array, " local"]:
        """Numbers of the local nodes."""

    @abc.abstractmethod
    def degrees(self) -> Int[Array, " local"]:
        """Number of neighbours of each local node."""

    @abc.abstractmethod
    def mix(self, x: PyTree[Array]) -> PyTree[Array]:
        """$\\sum_j w_{ij} x_j$ at each local node."""

    @abc.abstractmethod
    def neighbors(self, x: PyTree[Array]) -> tuple[PyTree[Array], Bool[Array, "local k"]]:
        """The neighbours' values on a second axis, and which of its entries are real."""

    @abc.abstractmethod
    def mean(self, x: PyTree[Array]) -> PyTree[Array]:
        """The mean over all nodes, at each local node. This talks to everybody."""

    @abc.abstractmethod
    def gather(self, x: PyTree[Array]) -> PyTree[Array]:
        """All nodes' values, stacked in order."""

    @abc.abstractmethod
    def parallel(self, fun: Callable[..., PyTree[Array]]) -> Callable[..., PyTree[Array]]:
        """`fun(state, batch, key)` run at the nodes: `state`, `batch` and the result are stacked
        over all nodes, `key` is common."""

    @abc.abstractmethod
    def place(self, x: PyTree[Array]) -> PyTree[Array]:
        """Put values stacked over all nodes where the nodes live."""

    def keys(self, key: PRNGKeyArray) -> PRNGKeyArray:
        """A key for each local node, the same wherever it lives."""
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(self.index())

    def neighbor_sum(self, x: PyTree[Array]) -> PyTree[Array]:
        """$\\sum_{j \\sim i} x_j$ at each local node."""
        around, mask = self.neighbors(x)
        return jax.tree.map(lambda a: _weighted(mask.astype(a.real.dtype), a), around)

    def replicate(self, x: PyTree[Array]) -> PyTree[Array]:
        """One value for all nodes, stacked and placed."""
        return self.place(
            jax.tree.map(lambda a: jnp.broadcast_to(a, (self.size, *jnp.shape(a))), x)
        )


def _weighted(weights: Float[Array, "local k"], values: Array) -> Array:
    """Sum over the second axis in a fixed order."""
    total = jnp.zeros((values.shape[0], *values.shape[2:]), values.dtype)
    for k in range(values.shape[1]):
        column = weights[:, k].reshape(-1, *([1] * (values.ndim - 2)))
        total = total + column * values[:, k]
    return total


def _mix(own, weights, x, around):
    def leaf(a, values):
        dtype = a.real.dtype
        mine = jnp.asarray(own, dtype).reshape(-1, *([1] * (a.ndim - 1)))
        return mine * a + _weighted(jnp.asarray(weights, dtype), values)

    return jax.tree.map(leaf, x, around)


class Simulated(Network):
    """All nodes on one device. See `Network.simulated`."""

    tables: _Tables

    @property
    def size(self):
        return len(self.tables.own)

    def index(self):
        return jnp.arange(self.size)

    def degrees(self):
        return jnp.sum(jnp.asarray(self.tables.mask), axis=1)

    def neighbors(self, x):
        around = jax.tree.map(lambda a: a[self.tables.neighbors], x)
        return around, jnp.asarray(self.tables.mask)

    def mix(self, x):
        return _mix(self.tables.own, self.tables.weights, x, self.neighbors(x)[0])

    def mean(self, x):
        return jax.tree.map(
            lambda a: jnp.broadcast_to(jnp.mean(a, axis=0, keepdims=True), a.shape), x
        )

    def gather(self, x):
        return x

    def parallel(self, fun):
        return fun

    def place(self, x):
        return x


class OnMesh(Network):
    """Nodes on a device mesh. See `Network.on_mesh`."""

    tables: _Tables
    mesh: Mesh = eqx.field(static=True)
    axis: str = eqx.field(static=True)
    rounds: tuple[tuple[tuple[int, int], ...], ...] = eqx.field(static=True)
    """For each colour, the pairs of sending and receiving device."""
    slots: Int[np.ndarray, "colours devices"]
    """Which local node each device sends in each colour."""
    sources: Int[np.ndarray, "n k"]
    """Where each neighbour's value lies: among local nodes, or behind them by colour."""

    @property
    def size(self):
        return len(self.tables.own)

    @property
    def nodes_per_device(self) -> int:
        """Number of nodes on each device."""
        return self.size // self.mesh.shape[self.axis]

    def _local(self, table):
        device = jax.lax.axis_index(self.axis)
        count = self.nodes_per_device
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), device * count, count)

    def index(self):
        return self._local(jnp.arange(self.size))

    def degrees(self):
        return jnp.sum(self._local(self.tables.mask), axis=1)

    def neighbors(self, x):
        device = jax.lax.axis_index(self.axis)
        sources = self._local(self.sources)

        def leaf(a):
            parts = [a]
            for colour, pairs in enumerate(self.rounds):
                slot = jnp.asarray(self.slots)[colour, device]
                sent = jax.lax.dynamic_slice_in_dim(a, slot, 1)
                parts.append(jax.lax.ppermute(sent, self.axis, pairs))
            return jnp.concatenate(parts)[sources]

        return jax.tree.map(leaf, x), self._local(self.tables.mask)

    def mix(self, x):
        own, weights = self._local(self.tables.own), self._local(self.tables.weights)
        return _mix(own, weights, x, self.neighbors(x)[0])

    def mean(self, x):
        def leaf(a):
            total = jax.lax.psum(jnp.sum(a, axis=0, keepdims=True), self.axis)
            return jnp.broadcast_to(total / self.size, a.shape)

        return jax.tree.map(leaf, x)

    def gather(self, x):
        return jax.tree.map(lambda a: jax.lax.all_gather(a, self.axis, tiled=True), x)

    def parallel(self, fun):
        nodes, common = PartitionSpec(self.axis), PartitionSpec()
        return jax.shard_map(
            fun,
            mesh=self.mesh,
            in_specs=(nodes, nodes, common),
            out_specs=nodes,
            check_vma=False,
        )

    def place(self, x):
        return jax.device_put(x, NamedSharding(self.mesh, PartitionSpec(self.axis)))


def _schedule(tables: _Tables, devices: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Colour the transfers between devices, and say where each value arrives."""
    n, width = tables.neighbors.shape
    if n % devices:
        raise ValueError(f"{n} nodes do not spread evenly over {devices} devices")
    count = n // devices
    # A value goes to a device once, however many nodes there wait for it.
    transfers = sorted(
        {
            (j, i // count)
            for i in range(n)
            for j in tables.neighbors[i][tables.mask[i]]
            if j // count != i // count
        }
    )
    colours = colour_edges([(j // count, device) for j, device in transfers])
    number = max(colours, default=-1) + 1
    rounds: list[list[tuple[int, int]]] = [[] for _ in range(number)]
    slots = np.zeros((number, devices), np.int32)
    arrival = {}
    for (j, device), colour in zip(transfers, colours, strict=True):
        rounds[colour].append((int(j // count), int(device)))
        slots[colour, j // count] = j % count
        arrival[j, device] = count + colour
    sources = np.zeros((n, width), np.int32)
    for i in range(n):
        for k, j in enumerate(tables.neighbors[i]):
            here = j // count == i // count
            sources[i, k] = j % count if here else arrival[j, i // count]
    return tuple(tuple(sorted(pairs)) for pairs in rounds), slots, sources


def colour_edges(edges: list[tuple[int, int]]) -> list[int]:
    """Colours for directed edges so that no two of one colour share their start or their end.

    Uses as many colours as the largest in- or out-degree, by Kőnig's theorem: where the free
    colours of the two ends differ, a path of alternating colours is flipped.
    """
    leaving: dict[int, dict[int, int]] = {}
    entering: dict[int, dict[int, int]] = {}

    def free(used):
        colour = 0
        while colour in used:
            colour += 1
        return colour

    for number, (u, v) in enumerate(edges):
        out, into = leaving.setdefault(u, {}), entering.setdefault(v, {})
        a, b = free(out), free(into)
        if a != b and a in into:
            # Flip the path from v that starts with colour a and alternates with b.
            chain, at_end, colour, node = [], True, a, v
            while True:
                edge = (entering if at_end else leaving)[node].get(colour)
                if edge is None:
                    break
                chain.append((edge, colour))
                node = edges[edge][0] if at_end else edges[edge][1]
                at_end, colour = not at_end, b if colour == a else a
            for edge, colour in chain:
                s, t = edges[edge]
                del leaving[s][colour], entering[t][colour]
            for edge, colour in chain:
                s, t = edges[edge]
                other = b if colour == a else a
                leaving[s][other] = entering[t][other] = edge
        out[a] = into[a] = number
    result = [0] * len(edges)
    for used in leaving.values():
        for colour, edge in used.items():
            result[edge] = colour
    return result
