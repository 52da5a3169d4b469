"""The only place that knows where nodes live."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import scipy.sparse
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, loops, rows
from .graphs import check_graph, edge_list
from .mixing import Matrix, check_mixing, metropolis

Weights = tuple[Float[Array, " n"], Float[Array, "n k"]]
"""A mixing matrix on the edges of a network: the diagonal, and a weight for each entry of its
table of neighbours."""

Channel = Callable[[PRNGKeyArray, PyTree[Array]], PyTree[Array]]
"""What a link makes of one node's message: `channel(key, message) -> received`."""

Index = int | Int[Array, ""]


class _Tables(eqx.Module):
    """Neighbours of each node, padded to the largest degree with the node itself at weight zero.

    In each column a node is the neighbour of at most one other: with one node on each device a
    column is one `ppermute`, and can be forgotten before the next. Both kinds of network sum
    column by column and so agree.
    """

    own: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, "n k"]
    neighbors: Int[np.ndarray, "n k"]
    mask: Bool[np.ndarray, "n k"]
    edges: Int[np.ndarray, "n k"]
    """The number of each edge in `edge_list`, the same at both ends."""
    num_edges: int = eqx.field(static=True)


def _tables(graph: nx.Graph, mixing: Any) -> _Tables:
    check_graph(graph)
    mixing = metropolis(graph) if mixing is None else mixing
    matrix = check_mixing(graph, mixing)
    n, edges = graph.number_of_nodes(), edge_list(graph)
    senders, receivers = np.concatenate([edges, edges[:, ::-1]]).T
    numbers = np.tile(np.arange(len(edges)), 2)
    width = int(np.bincount(receivers, minlength=n).max())
    columns = _columns(senders, receivers, n, width)
    neighbors = np.tile(np.arange(n, dtype=np.int32)[:, None], (1, width))
    mask, edge = np.zeros((n, width), bool), np.zeros((n, width), np.int32)
    neighbors[receivers, columns] = senders
    mask[receivers, columns] = True
    edge[receivers, columns] = numbers
    return _Tables(*_spread(matrix, neighbors, mask), neighbors, mask, edge, len(edges))


def _columns(senders, receivers, n: int, width: int) -> Int[np.ndarray, " edges"]:
    """A proper colouring of the directed edges with `width` colours."""
    # In rings, complete and exponential graphs the distance around a circle is one.
    distances, columns = np.unique((senders - receivers) % n, return_inverse=True)
    if len(distances) <= width:
        return columns
    return np.asarray(colour_edges(list(zip(senders.tolist(), receivers.tolist(), strict=True))))


def _spread(matrix: Any, neighbors, mask):
    """The diagonal of a matrix, and its entries at the neighbours."""
    n, width = neighbors.shape
    table = np.zeros((n, width))
    rows, columns = np.nonzero(mask)
    if len(rows):
        table[rows, columns] = matrix[rows, neighbors[rows, columns]]
    return matrix.diagonal(), table


class Network(eqx.Module):
    """Nodes that hold values and talk to their neighbours only.

    Node values are pytrees stacked on a leading axis of *local* nodes: all of them on a simulated
    network, those of one device on a mesh. Algorithms do their local work with `vmap` and talk
    through these methods; run a round with `parallel`. The methods give the same numbers wherever
    the nodes live; those of `mix` and `neighbor_sum` up to how a compiler rounds a fused sum.

    Build one with `Network.simulated`, `Network.on_mesh` or `Network.clients`.
    """

    tables: eqx.AbstractVar[_Tables | None]
    size: eqx.AbstractVar[int]
    """Number of nodes."""

    @staticmethod
    def simulated(graph: nx.Graph, mixing: Matrix | None = None) -> "Simulated":
        """All nodes on one device; mixing is a sparse product.

        **Arguments:**

        - `graph`: connected, undirected, nodes 0, ..., n - 1.
        - `mixing`: symmetric doubly stochastic matrix on the edges, from `scipy.sparse` or dense;
          Metropolis weights if `None`.

        **Raises:** `ValueError` on a disconnected graph or a matrix that is no such one.
        """
        return Simulated(_tables(graph, mixing), graph.number_of_nodes())

    @staticmethod
    def on_mesh(
        graph: nx.Graph,
        mesh: Mesh,
        axis: str,
        mixing: Matrix | None = None,
        *,
        check_vma: bool = False,
    ) -> "OnMesh":
        """Nodes spread evenly over one axis of a device mesh, in order.

        Only values that cross devices travel. The edges are coloured so that each colour is one
        `ppermute`, in which a device sends and receives at most one node's value; with one node on
        each device there are as many as the largest degree.

        **Arguments:**

        - `graph`, `mixing`: see `simulated`.
        - `mesh`, `axis`: where the nodes live; the axis must divide their number.
        - `check_vma`: whether `parallel` leaves the check of `jax.shard_map` on. All algorithms
          here trace with it, and a round may then differentiate what it sums over the nodes. It is
          off because a loss that runs on one device may not trace with it: a `jax.lax.scan` from
          zeros over a node's own data does not, that of `jaxopt_ext.core.loops` does.

        **Raises:** `ValueError` if the mesh has no such axis or the nodes do not spread evenly.
        """
        n = graph.number_of_nodes()
        devices = _devices(n, mesh, axis)
        tables = _tables(graph, mixing)
        return OnMesh(tables, n, mesh, axis, *_schedule(tables, devices), check_vma)

    @staticmethod
    def clients(
        n: int, mesh: Mesh | None = None, axis: str | None = None, *, check_vma: bool = False
    ) -> "Network":
        """Nodes that talk to a server only: `mean`, `gather`, `pick`, `permute` and `all_to_all`,
        and no neighbours. The server's state is replicated at every node.

        No table is held, so that there may be as many clients as memory holds values of.

        **Arguments:**

        - `n`: number of clients.
        - `mesh`, `axis`, `check_vma`: where they live, see `on_mesh`; on one device if `None`.

        **Raises:** `ValueError` as in `on_mesh`.
        """
        checks.count("n", n)
        if mesh is None:
            return Simulated(None, n)
        if axis is None:
            raise ValueError(f"clients on a mesh need one of its axes {mesh.axis_names}")
        _devices(n, mesh, axis)
        return OnMesh(None, n, mesh, axis, (), None, None, check_vma)

    @property
    def max_degree(self) -> int:
        """The largest number of neighbours; of clients, who talk to the server only, 1."""
        return 1 if self.tables is None else self.tables.mask.shape[1]

    @property
    def num_edges(self) -> int:
        """The number of edges, known where the network itself is traced."""
        return self._graph().num_edges

    @abc.abstractmethod
    def index(self) -> Int[Array, " local"]:
        """Numbers of the local nodes."""

    @abc.abstractmethod
    def local(self, table: Any) -> Array:
        """The local nodes' rows of an array with a row for each node, known everywhere."""

    @abc.abstractmethod
    def fold(
        self, fun: Callable[..., PyTree[Array]], start: PyTree[Array], x: PyTree[Array], *tables
    ) -> PyTree[Array]:
        """Look at the neighbours' values one after the other.

        `carry = fun(carry, values, mask, *columns)`, once for each column of the table of
        neighbours; `values` has the shape of `x`, and `mask`, of shape `(local,)`, says at which
        nodes it is a neighbour's; at the others it is the node's own. Nothing of the size of degree
        times model is held.

        **Arguments:**

        - `start`: the first carry.
        - `x`: what each node sends.
        - `tables`: arrays `(local, k, ...)` whose columns go to `fun` with the neighbours of the
          same column.
        """

    @abc.abstractmethod
    def neighbors(self, x: PyTree[Array]) -> tuple[PyTree[Array], Bool[Array, "local k"]]:
        """The neighbours' values on a second axis, and which of its entries are real; the others
        hold the node's own value. Their order is that of `neighbor_table`.

        This holds degree times model numbers: `fold`, `neighbor_sum` and `neighbor_reduce` do not.
        """

    @abc.abstractmethod
    def mean(
        self, x: PyTree[Array], weights: Float[Array, " local"] | None = None
    ) -> PyTree[Array]:
        """The mean over all nodes, at each local node. This talks to everybody.

        **Arguments:**

        - `weights`: of the local nodes, not negative: $\\sum_i w_i x_i / \\sum_i w_i$. A mask of
          those that take part is weights 0 and 1. The value of a node of weight zero is not looked
          at, be it NaN; if all are zero the mean is NaN.
        """

    @abc.abstractmethod
    def gather(self, x: PyTree[Array]) -> PyTree[Array]:
        """All nodes' values, stacked in order."""

    @abc.abstractmethod
    def pick(self, x: PyTree[Array], i: Index) -> PyTree[Array]:
        """Node i's value, not stacked, known everywhere; `i` may be traced.

        On a mesh this is one `psum` of one node's value, to which the other devices add zeros.
        """

    @abc.abstractmethod
    def at(
        self, i: Index, fun: Callable[[PyTree[Array]], PyTree[Array]], x: PyTree[Array]
    ) -> PyTree[Array]:
        """`fun` of node i's value, known everywhere; `i` may be traced.

        It is computed where the node lives, and what travels is the result, not the value. On a
        mesh the other devices meanwhile compute something of a node of theirs, which is not used.
        """

    @abc.abstractmethod
    def put(self, x: PyTree[Array], i: Index, value: PyTree[Array]) -> PyTree[Array]:
        """`x` with node i's value replaced by one that is known everywhere. No talk."""

    @abc.abstractmethod
    def all_to_all(
        self, x: PyTree[Array], split_axis: int = 0, concat_axis: int = 0
    ) -> PyTree[Array]:
        """Each node cuts its value into n parts along `split_axis` and sends part j to node j,
        which joins what it gets along `concat_axis` in the order of the senders.

        Axes count those of one node's value. On a mesh this is one `all_to_all`.

        **Raises:** `ValueError` if n does not divide the axis.
        """

    @abc.abstractmethod
    def permute(self, x: PyTree[Array], order: Int[Array, " n"]) -> PyTree[Array]:
        """Node i gets the value of node `order[i]`; `order` may be traced, and is known everywhere.

        On a mesh these are two `all_to_all`, each of as many bytes as the values have, for who
        sends to whom is not known when the program is compiled: a device gets one part of all
        values, puts the parts in order, and sends them where they belong. A value of fewer numbers
        than there are devices travels as one of so many.

        **Arguments:**

        - `order`: a permutation of 0, ..., n - 1; a node that stands in it twice sends to two.

        **Raises:** `ValueError` on another shape.
        """

    @abc.abstractmethod
    def parallel(self, fun: Callable[..., PyTree[Array]]) -> Callable[..., PyTree[Array]]:
        """`fun(state, batch, key)` run at the nodes: `state`, `batch` and the result are stacked
        over all nodes, `key` is common."""

    @abc.abstractmethod
    def place(self, x: PyTree[Array]) -> PyTree[Array]:
        """Put values stacked over all nodes where the nodes live."""

    @abc.abstractmethod
    def place_data(self, x: PyTree[Array]) -> PyTree[Array]:
        """Put arrays of any shape where the nodes live: cut along the first of their two leading
        axes that counts the nodes, whole at every device if neither does."""

    def degrees(self) -> Int[Array, " local"]:
        """Number of neighbours of each local node."""
        return jnp.sum(self.local(self._graph().mask), axis=1)

    def neighbor_table(self) -> tuple[Int[Array, "local k"], Bool[Array, "local k"]]:
        """The numbers of each local node's neighbours, and which of them are real; the others are
        the node itself."""
        tables = self._graph()
        return self.local(tables.neighbors), self.local(tables.mask)

    def edge_table(self) -> Int[Array, "local k"]:
        """The number of the edge to each neighbour in `edge_list`, the same at both ends."""
        return self.local(self._graph().edges)

    def keys(self, key: PRNGKeyArray) -> PRNGKeyArray:
        """A key for each local node, the same wherever it lives."""
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(self.index())

    def edge_keys(self, key: PRNGKeyArray, *, directed: bool = False) -> PRNGKeyArray:
        """A key for each entry of the table of neighbours, the same wherever the node lives.

        Both ends of an edge get the same one, or with `directed` one for each direction.
        """
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))
        keys = fold(key, self.edge_table())
        if not directed:
            return keys
        upwards = self.neighbor_table()[0] > self.index()[:, None]
        return jax.vmap(jax.vmap(jax.random.fold_in))(keys, upwards.astype(jnp.int32))

    def mix(
        self,
        x: PyTree[Array],
        weights: Weights | None = None,
        *,
        channel: Channel | None = None,
        key: PRNGKeyArray | None = None,
    ) -> PyTree[Array]:
        """$\\sum_j w_{ij} x_j$ at each local node.

        **Arguments:**

        - `weights`: this round's matrix on the edges of the network, `(own, table)` of shapes
          `(n,)` and `(n, k)` for *all* nodes, as `weights` makes it; may be traced. The network's
          own if `None`. A neighbour of weight zero travels on a mesh too, and is not looked at.
        - `channel`: what becomes of a message on its way, `channel(key, x_j) -> received` of one
          node's value; each direction of each edge draws from a key of its own.
        - `key`: for the channel; its draws are new for each key.
        """
        own, table = (self._graph().own, self._graph().weights) if weights is None else weights
        excess = self.local(_excess(own, table))
        own, table = self.local(own), self.local(table)
        # A compiler may fuse a product with the sum that follows. With one product for each sum,
        # as here, it does so alike in both kinds of network, and nodes that agree stay as they are.
        base = jax.tree.map(lambda a: jnp.where(column(own == 0, a), 0, a), x)

        tables = [table]
        if channel is not None:
            if key is None:
                raise ValueError("a channel draws from a key")
            tables.append(self.edge_keys(key, directed=True))

        def add(total, values, mask, weight, keys: Any = None):
            if channel is not None:
                values = jax.vmap(channel)(keys, values)

            def leaf(t, v, b):
                new = t + column(weight.astype(v.real.dtype), v) * (v - b)
                return jnp.where(column(weight == 0, v), t, new)

            return jax.tree.map(leaf, total, values, base)

        total = self.fold(add, base, x, *tables)
        return jax.tree.map(
            lambda t, b: t + column(excess.astype(b.real.dtype), b) * b, total, base
        )

    def local_weights(self) -> tuple[Float[Array, " local"], Float[Array, "local k"]]:
        """The network's own matrix at the local nodes: $w_{ii}$, and $w_{ij}$ in the order of
        `neighbor_table`, zero where that has no neighbour."""
        return self.local(self._graph().own), self.local(self._graph().weights)

    def neighbor_sum(self, x: PyTree[Array]) -> PyTree[Array]:
        """$\\sum_{j \\sim i} x_j$ at each local node."""

        def add(total, values, mask):
            return jax.tree.map(lambda t, v: t + jnp.where(column(mask, v), v, 0), total, values)

        return self.fold(add, jax.tree.map(jnp.zeros_like, x), x)

    def neighbor_reduce(
        self,
        rule: Callable[[Array, Array, Array], Array],
        x: PyTree[Array],
        *,
        chunk: int = 65536,
    ) -> PyTree[Array]:
        """A rule that works coordinate by coordinate over all neighbours, such as a median.

        It sees a piece of the model at a time, so that no more than degree times `chunk` numbers
        are held for each local node.

        **Arguments:**

        - `rule`: `(own, around, mask) -> new` of one node, with shapes `(c,)`, `(k, c)`, `(k,)` and
          `(c,)`; entries of `around` with `mask` false are not neighbours'. It must treat each
          coordinate alike and alone; coordinates beyond the last are zeros.
        - `chunk`: coordinates seen at once.
        """
        checks.count("chunk", chunk)
        self._graph()

        def leaf(a):
            flat = a.reshape(a.shape[0], -1)
            width = min(chunk, max(flat.shape[1], 1))
            pieces = -(-flat.shape[1] // width)
            padded = jnp.pad(flat, ((0, 0), (0, pieces * width - flat.shape[1])))

            def piece(p, out):
                own = jax.lax.dynamic_slice_in_dim(padded, p * width, width, axis=1)
                around, mask = self.neighbors(own)
                new = jax.vmap(rule)(own, around, mask).astype(a.dtype)
                return jax.lax.dynamic_update_slice_in_dim(out, new, p * width, axis=1)

            out = loops.fori_loop(0, pieces, piece, jnp.zeros_like(padded))
            return out[:, : flat.shape[1]].reshape(a.shape)

        return jax.tree.map(leaf, x)

    def exchange(self, x: PyTree[Array], i: Index, j: Index) -> PyTree[Array]:
        """What a meeting of nodes i and j brings: $x_j$ at i, $x_i$ at j, and their own value at
        all others. `i` and `j` may be traced, and need not share an edge.

        On a mesh two values travel to all devices (see `pick`), since who meets is not known when
        the program is compiled.
        """
        at_i, at_j = self.pick(x, i), self.pick(x, j)
        return self.put(self.put(x, i, at_j), j, at_i)

    def replicate(self, x: PyTree[Array]) -> PyTree[Array]:
        """One value for all nodes, stacked and placed."""
        return self.place(
            jax.tree.map(lambda a: jnp.broadcast_to(a, (self.size, *jnp.shape(a))), x)
        )

    def weights(self, matrix: Any) -> Weights:
        """A matrix as `mix` takes it.

        **Arguments:**

        - `matrix`: n x n, from `scipy.sparse` or dense, zero off the edges of the network. It need
          be neither symmetric nor doubly stochastic: that is for the algorithm to want.

        **Raises:** `ValueError` on another shape or a weight between nodes that share no edge.
        """
        tables = self._graph()
        matrix = scipy.sparse.csr_array(matrix)
        if matrix.shape != (self.size, self.size):
            raise ValueError(f"the matrix must have shape {(self.size,) * 2}, got {matrix.shape}")
        own, table = _spread(matrix, tables.neighbors, tables.mask)
        found = np.count_nonzero(own) + np.count_nonzero(table)
        if found != matrix.count_nonzero():
            raise ValueError(
                f"the matrix has {matrix.count_nonzero()} weights, of which only {found} lie on "
                "edges of the network"
            )
        return jnp.asarray(own), jnp.asarray(table)

    def _graph(self) -> _Tables:
        if self.tables is None:
            raise TypeError(
                "clients have no neighbours: they know `mean`, `gather`, `pick`, `permute` and "
                "`all_to_all`; build a network on a graph with Network.simulated or Network.on_mesh"
            )
        return self.tables


def column(per_node: Array, like: Array) -> Array:
    """One number for each node, shaped to act on a stacked array."""
    return per_node.reshape(-1, *([1] * (like.ndim - 1)))


def _excess(own: Any, table: Any) -> Any:
    """By how much each row's sum exceeds one; rounding is no excess."""
    kind = np if isinstance(table, np.ndarray) else jnp
    excess = own + kind.sum(table, axis=1) - 1
    rounding = (table.shape[1] + 2) * float(jnp.finfo(excess.dtype).eps)
    return kind.where(abs(excess) <= rounding, 0, excess)


def _sum_of_weighted(weights, x):
    product = column(jnp.asarray(weights, x.real.dtype), x) * x
    return rows.total(jnp.where(column(weights == 0, x), 0, product))


def _by_column(fun, start, pool, sources, tables):
    """`fold` over values that lie in `pool` where `sources` says, a column at a time."""

    def one(k, carry):
        rows, *columns = (
            jax.lax.dynamic_index_in_dim(table, k, axis=1, keepdims=False)
            for table in (sources, *tables)
        )
        return fun(carry, jax.tree.map(lambda a: a[rows], pool), *columns)

    width = sources.shape[1]
    if width > FEW:
        return loops.fori_loop(0, width, one, start)
    # Outside of a loop a compiler makes one pass over the values of all columns; inside it reads
    # and writes the carry for each.
    for k in range(width):
        start = one(k, start)
    return start


FEW = 4
"""Up to so many neighbours are looked at without a loop, which takes longer to compile."""


class Simulated(Network):
    """All nodes on one device. See `Network.simulated`."""

    tables: _Tables | None
    size: int = eqx.field(static=True)

    def index(self):
        return jnp.arange(self.size)

    def local(self, table):
        return jnp.asarray(table)

    def fold(self, fun, start, x, *tables):
        graph = self._graph()
        columns = jnp.asarray(graph.mask), *tables
        return _by_column(fun, start, x, jnp.asarray(graph.neighbors), columns)

    def neighbors(self, x):
        graph = self._graph()
        around = jax.tree.map(lambda a: a[jnp.asarray(graph.neighbors)], x)
        return around, jnp.asarray(graph.mask)

    def mean(self, x, weights=None):
        def leaf(a):
            if weights is None:
                average = rows.average(a)
            else:
                average = _sum_of_weighted(weights, a) / jnp.sum(weights).astype(a.real.dtype)
            return jnp.broadcast_to(average, a.shape)

        return jax.tree.map(leaf, x)

    def gather(self, x):
        return x

    def pick(self, x, i):
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), x)

    def at(self, i, fun, x):
        return fun(self.pick(x, i))

    def put(self, x, i, value):
        return jax.tree.map(
            lambda a, v: jax.lax.dynamic_update_index_in_dim(a, v.astype(a.dtype), i, 0), x, value
        )

    def all_to_all(self, x, split_axis=0, concat_axis=0):
        def leaf(a):
            parts = _parts(a, split_axis, self.size)
            return _join(jnp.swapaxes(parts, 0, 1), concat_axis)

        return jax.tree.map(leaf, x)

    def permute(self, x, order):
        _check_order(order, self.size)
        return jax.tree.map(lambda a: a[order], x)

    def parallel(self, fun):
        return fun

    def place(self, x):
        return x

    def place_data(self, x):
        return x


def _check_order(order: Array, n: int) -> None:
    if jnp.shape(order) != (n,):
        raise ValueError(f"order must have shape {(n,)}, got {jnp.shape(order)}")


def _parts(a: Array, axis: int, n: int) -> Array:
    """`(local, ...)` as `(local, n, ...)`: the parts of each value along one of its axes."""
    axis = range(a.ndim - 1)[axis] + 1
    if a.shape[axis] % n:
        raise ValueError(f"{n} nodes do not divide axis {axis - 1} of a value {a.shape[1:]}")
    cut = a.reshape(*a.shape[:axis], n, a.shape[axis] // n, *a.shape[axis + 1 :])
    return jnp.moveaxis(cut, axis, 1)


def _join(parts: Array, axis: int) -> Array:
    """`(local, n, ...)` as `(local, ...)`, joined along one axis of the parts."""
    axis = range(parts.ndim - 2)[axis] + 1
    parts = jnp.moveaxis(parts, 1, axis)
    return parts.reshape(
        *parts.shape[:axis], parts.shape[axis] * parts.shape[axis + 1], *parts.shape[axis + 2 :]
    )


class OnMesh(Network):
    """Nodes on a device mesh. See `Network.on_mesh`."""

    tables: _Tables | None
    size: int = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)
    axis: str = eqx.field(static=True)
    rounds: tuple[tuple[tuple[int, int], ...], ...] = eqx.field(static=True)
    """For each colour, the pairs of sending and receiving device."""
    slots: Int[np.ndarray, "colours devices"] | None
    """Which local node each device sends in each colour."""
    sources: Int[np.ndarray, "n k"] | None
    """Where each neighbour's value lies: among local nodes, or behind them by colour. `None` if
    there is one node on each device: then colours are columns of the table."""
    check_vma: bool = eqx.field(static=True, default=False)

    @property
    def nodes_per_device(self) -> int:
        """Number of nodes on each device."""
        return self.size // self.mesh.shape[self.axis]

    def local(self, table):
        device = jax.lax.axis_index(self.axis)
        count = self.nodes_per_device
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(table), device * count, count)

    def index(self):
        return self.local(jnp.arange(self.size))

    def _receive(self, x, colour):
        """What arrives in one colour."""
        pairs = self.rounds[colour]
        if self.sources is None:
            return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axis, pairs), x)
        slot = jnp.asarray(self.slots)[colour, jax.lax.axis_index(self.axis)]

        def leaf(a):
            sent = jax.lax.dynamic_slice_in_dim(a, slot, 1)
            return jax.lax.ppermute(sent, self.axis, pairs)

        return jax.tree.map(leaf, x)

    def _pool(self, x):
        """Local values, and behind them all that arrive."""
        parts = [self._receive(x, colour) for colour in range(len(self.rounds))]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), x, *parts)

    def _arrivals(self, x, mask):
        """Columns of neighbours' values, where colours are columns."""
        for colour in range(len(self.rounds)):
            here = mask[:, colour]
            arrived = self._receive(x, colour)
            yield jax.tree.map(lambda a, v: jnp.where(column(here, a), v, a), x, arrived)  # noqa: B023

    def fold(self, fun, start, x, *tables):
        mask = self.local(self._graph().mask)
        if self.sources is None:
            carry = start
            for k, values in enumerate(self._arrivals(x, mask)):
                carry = fun(carry, values, mask[:, k], *(table[:, k] for table in tables))
            return carry
        return _by_column(fun, start, self._pool(x), self.local(self.sources), (mask, *tables))

    def neighbors(self, x):
        mask = self.local(self._graph().mask)
        if self.sources is not None:
            sources = self.local(self.sources)
            return jax.tree.map(lambda a: a[sources], self._pool(x)), mask
        columns = list(self._arrivals(x, mask))
        if not columns:
            return jax.tree.map(lambda a: a[:, None][:, :0], x), mask
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *columns), mask

    def mean(self, x, weights=None):
        def leaf(a):
            if weights is None:
                part, total = rows.total(a), self.size
            else:
                part = _sum_of_weighted(weights, a)
                total = jax.lax.psum(jnp.sum(weights), self.axis).astype(a.real.dtype)
            return jnp.broadcast_to(jax.lax.psum(part, self.axis) / total, a.shape)

        return jax.tree.map(leaf, x)

    def gather(self, x):
        return jax.tree.map(lambda a: jax.lax.all_gather(a, self.axis, tiled=True), x)

    def _slot(self, i):
        """Where node i lies among the local nodes, and whether it does."""
        slot = i - jax.lax.axis_index(self.axis) * self.nodes_per_device
        return jnp.clip(slot, 0, self.nodes_per_device - 1), (
            (slot >= 0) & (slot < self.nodes_per_device)
        )

    def pick(self, x, i):
        return self.at(i, lambda value: value, x)

    def at(self, i, fun, x):
        slot, here = self._slot(i)
        mine = fun(jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, slot, keepdims=False), x))

        def leaf(a):
            return jax.lax.psum(jnp.where(here, a, jnp.zeros_like(a)), self.axis).astype(
                a.dtype  # of booleans, which are counted
            )

        return jax.tree.map(leaf, mine)

    def put(self, x, i, value):
        slot, here = self._slot(i)

        def leaf(a, v):
            mine = jax.lax.dynamic_index_in_dim(a, slot, keepdims=False)
            new = jnp.where(here, v.astype(a.dtype), mine)
            return jax.lax.dynamic_update_index_in_dim(a, new, slot, 0)

        return jax.tree.map(leaf, x, value)

    def all_to_all(self, x, split_axis=0, concat_axis=0):
        count, devices = self.nodes_per_device, self.mesh.shape[self.axis]

        def leaf(a):
            parts = _parts(a, split_axis, self.size)
            # (sender, device, receiver, ...) here becomes (device, sender, receiver, ...) there.
            parts = parts.reshape(count, devices, count, *parts.shape[2:])
            moved = jax.lax.all_to_all(jnp.swapaxes(parts, 0, 1), self.axis, 0, 0)
            moved = moved.reshape(self.size, count, *moved.shape[3:])
            return _join(jnp.swapaxes(moved, 0, 1), concat_axis)

        return jax.tree.map(leaf, x)

    def permute(self, x, order):
        _check_order(order, self.size)
        count, devices = self.nodes_per_device, self.mesh.shape[self.axis]

        def leaf(a):
            flat = a.reshape(count, math.prod(a.shape[1:]))
            width = -(-flat.shape[1] // devices)
            padded = jnp.pad(flat, ((0, 0), (0, devices * width - flat.shape[1])))
            # (node here, device, part) becomes (node, one, part) there, and goes back in order.
            parts = padded.reshape(count, devices, width)
            parts = jax.lax.all_to_all(parts, self.axis, 1, 0, tiled=True)[order]
            parts = jax.lax.all_to_all(parts, self.axis, 0, 1, tiled=True)
            return parts.reshape(count, devices * width)[:, : flat.shape[1]].reshape(a.shape)

        return jax.tree.map(leaf, x)

    def parallel(self, fun):
        nodes, common = PartitionSpec(self.axis), PartitionSpec()
        return jax.shard_map(
            fun,
            mesh=self.mesh,
            in_specs=(nodes, nodes, common),
            out_specs=nodes,
            check_vma=self.check_vma,
        )

    def place(self, x):
        return jax.device_put(x, NamedSharding(self.mesh, PartitionSpec(self.axis)))

    def place_data(self, x):
        def leaf(a):
            spec = PartitionSpec()
            if self.size in a.shape[:2]:
                spec = PartitionSpec(*[None] * a.shape.index(self.size), self.axis)
            return jax.device_put(a, NamedSharding(self.mesh, spec))

        return jax.tree.map(leaf, x)


def _devices(n: int, mesh: Mesh, axis: str) -> int:
    if axis not in mesh.axis_names:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, not {axis!r}")
    devices = mesh.shape[axis]
    if n % devices:
        raise ValueError(f"{n} nodes do not spread evenly over {devices} devices")
    return devices


def _schedule(tables: _Tables, devices: int) -> tuple[Any, Any, Any]:
    """Colour the transfers between devices, and say where each value arrives."""
    n, width = tables.neighbors.shape
    count = n // devices
    if count == 1:
        pairs = tuple(
            tuple(
                (int(tables.neighbors[i, k]), i) for i in np.nonzero(tables.mask[:, k])[0].tolist()
            )
            for k in range(width)
        )
        return pairs, None, None
    receivers, columns = np.nonzero(tables.mask)
    senders = tables.neighbors[receivers, columns]
    away = senders // count != receivers // count
    # A value goes to a device once, however many nodes there wait for it.
    transfers, which = np.unique(
        np.stack([senders[away], receivers[away] // count], axis=1), axis=0, return_inverse=True
    )
    colours = np.asarray(
        colour_edges([(int(j) // count, int(device)) for j, device in transfers]), np.int32
    )
    number = int(colours.max(initial=-1)) + 1
    rounds: list[list[tuple[int, int]]] = [[] for _ in range(number)]
    slots = np.zeros((number, devices), np.int32)
    for (j, device), colour in zip(transfers.tolist(), colours.tolist(), strict=True):
        rounds[colour].append((j // count, device))
        slots[colour, j // count] = j % count
    sources = (tables.neighbors % count).astype(np.int32)
    sources[receivers[away], columns[away]] = count + colours[which.reshape(-1)]
    return tuple(tuple(sorted(pairs)) for pairs in rounds), slots, sources


def colour_edges(edges: list[tuple[int, int]]) -> list[int]:
    """Colours for directed edges so that no two of one colour share their start or their end.

    Uses as many colours as the largest in- or out-degree, by Kőnig's theorem: where the free
    colours of the two ends differ, a path of alternating colours is flipped.
    """
    leaving: dict[int, dict[int, int]] = {}
    entering: dict[int, dict[int, int]] = {}
    taken: dict[tuple[bool, int], int] = {}  # colours in use at an end, as bits

    def free(end, node):
        used = taken.get((end, node), 0)
        return (~used & (used + 1)).bit_length() - 1

    for number, (u, v) in enumerate(edges):
        out, into = leaving.setdefault(u, {}), entering.setdefault(v, {})
        a, b = free(False, u), free(True, v)
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
            # Inside of the path both colours stay in use; its ends swap them.
            both = 1 << a | 1 << b
            taken[True, v] ^= both
            taken[at_end, node] = taken.get((at_end, node), 0) ^ both
        out[a] = into[a] = number
        taken[False, u] = taken.get((False, u), 0) | 1 << a
        taken[True, v] = taken.get((True, v), 0) | 1 << a
    result = [0] * len(edges)
    for used in leaving.values():
        for colour, edge in used.items():
            result[edge] = colour
    return result
