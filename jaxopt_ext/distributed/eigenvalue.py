"""The smallest eigenvalue of a matrix by nodes whose messages are late or lost."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import scipy.sparse
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import checks, tree
from .algorithm import AbstractNetworkAlgorithm
from .links import DelayedLinks
from .mixing import Sparse
from .network import Network

Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]


class EigenStatus(NamedTuple):
    """What `eigen_status` returns.

    **Attributes:**

    - `value`: the mean of the nodes' estimates.
    - `spread`: the largest estimate less the smallest.
    - `residual`: $\\|A u - \\lambda u\\| / \\|u\\|$: some eigenvalue is as near as that to `value`.
    """

    value: Float[Array, ""]
    spread: Float[Array, ""]
    residual: Float[Array, ""]


def eigen_status(
    matvec: Matvec, vector: Float[Array, " n"], estimates: Float[Array, " nodes"]
) -> EigenStatus:
    """How far the nodes are.

    **Arguments:**

    - `matvec`: $u \\mapsto A u$.
    - `vector`: u.
    - `estimates`: the nodes' eigenvalues.
    """
    value = jnp.mean(estimates)
    residual = jnp.linalg.norm(matvec(vector) - value * vector) / jnp.linalg.norm(vector)
    return EigenStatus(value, jnp.max(estimates) - jnp.min(estimates), residual)


class _ReplicatedState(eqx.Module):
    params: PyTree[Array]
    quotient: Float[Array, " local"]
    """Each node's Rayleigh quotient, of the parameters before the round."""
    estimate: Float[Array, " local"]
    optimizer: Any
    links: Any
    count: Int[Array, " local"]


class ReplicatedEigensolver(AbstractNetworkAlgorithm):
    """Each node fits a network to the eigenvector of the smallest eigenvalue, and gossip makes them
    agree on the value.

    With $u_i$ from node i's parameters $\\theta_i$ and $R_i = u_i^\\top A u_i / u_i^\\top u_i$,
    each round is a step of an optimizer on

    $$R_i + \\frac\\kappa2 \\frac{(R_i - \\ell_i)^2}{1 + \\ell_i^2}, \\qquad \\text{and} \\qquad
      \\ell_i \\leftarrow \\sum_j W_{ij} \\ell_j + \\gamma (R_i - \\ell_i) .$$

    Late messages count as they are; of a neighbour that was never heard, the own value does. Every
    $R_i$ is an upper bound of the smallest eigenvalue, whatever the networks do, and so is the
    least: the state's `quotient` has them, `estimate` has $\\ell$.

    Batches are not looked at.

    **Arguments:**

    - `matvec`: $u \\mapsto A u$, A symmetric; every node has it.
    - `model`: `params -> u`, of one node.
    - `optimizer`: of `optax`.
    - `coupling`: $\\kappa \\ge 0$.
    - `gain`: $\\gamma$, in (0, 1].
    - `links`: what becomes of messages; they are in time if `None`.

    **Raises:** `ValueError` on a coupling or gain out of range.

    **Reference:** Katende, Decentralized Neural Networks for Robust and Scalable Eigenvalue
    Computation, 2024.
    """

    matvec: Matvec
    model: Callable[[PyTree[Array]], Float[Array, " n"]]
    optimizer: optax.GradientTransformation
    coupling: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    gain: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.5)
    links: DelayedLinks | None = None

    def __check_init__(self):
        checks.nonnegative("coupling", self.coupling)
        checks.interval("gain", self.gain, 0, 1, open_low=True)

    def rayleigh(self, params: PyTree[Array]) -> Float[Array, ""]:
        """R of one node."""
        u = self.model(params)
        return jnp.vdot(u, self.matvec(u)) / jnp.vdot(u, u)

    def init(self, params, batch, network, key):
        quotient = jax.vmap(self.rayleigh)(params)
        links = None if self.links is None else self.links.init(quotient, network)
        count = jnp.zeros_like(network.index(), jnp.int32)
        optimizer = jax.vmap(self.optimizer.init)(params)
        return _ReplicatedState(params, quotient, quotient, optimizer, links, count)

    def round(self, state, batch, network, key):
        def improve(params, estimate, optimizer):
            def objective(params):
                quotient = self.rayleigh(params)
                gap = (quotient - estimate) ** 2 / (1 + estimate**2)
                return quotient + self.coupling.astype(gap.dtype) / 2 * gap

            quotient = self.rayleigh(params)
            updates, optimizer = self.optimizer.update(
                tree.gradient(objective, params), optimizer, params
            )
            return optax.apply_updates(params, updates), quotient, optimizer

        estimate = state.estimate
        params, quotient, optimizer = jax.vmap(improve)(state.params, estimate, state.optimizer)
        if self.links is None:
            links, mixed = None, network.mix(estimate)
        else:
            links, known, sent = self.links.exchange(
                state.links, estimate, state.count[0], network, key
            )
            table = network.local(jnp.asarray(network._graph().weights, known.dtype))
            # Of a neighbour that was never heard, the own value counts.
            apart = jnp.where(sent >= 0, known - estimate[:, None], 0)
            mixed = estimate + jnp.sum(table * apart, axis=1)
        estimate = mixed + self.gain.astype(mixed.dtype) * (quotient - estimate)
        return _ReplicatedState(params, quotient, estimate, optimizer, links, state.count + 1)

    def bits_per_round(self, params, network):
        """One number to each neighbour."""
        return network.max_degree * 8 * tree.real_dtype(params).itemsize


class Blocks(eqx.Module):
    """The rows of a sparse matrix, by owner.

    **Attributes:**

    - `columns`: of each row's entries, `(nodes, m, w)`, in the own block followed by those of the
      neighbours, in the order of the network's table.
    - `values`: of the entries, `(nodes, m, w)`.
    - `mask`: `(nodes, m)`, which rows are real: blocks are padded to one length.
    """

    columns: Int[Array, "nodes m w"]
    values: Float[Array, "nodes m w"]
    mask: Bool[Array, "nodes m"]


class Partition(NamedTuple):
    """What `partition` returns.

    **Attributes:**

    - `matrix`: the matrix, sparse.
    - `starts`: node i owns rows `starts[i]` to `starts[i + 1]`.
    - `graph`: nodes whose blocks meet in an entry.
    """

    matrix: scipy.sparse.csr_array
    starts: Int[np.ndarray, " nodes_and_end"]
    graph: nx.Graph

    @property
    def block_size(self) -> int:
        """m, the longest block."""
        return int(np.diff(self.starts).max())

    @property
    def step_size(self) -> float:
        """Three quarters of one over the bound of the eigenvalues by Gershgorin's circles."""
        return 0.75 / float(np.max(abs(self.matrix).sum(axis=1)))

    def blocks(self, network: Network, dtype: Any = None) -> Blocks:
        """Each node's rows, for a network on `graph`."""
        tables, m = network._graph(), self.block_size
        matrix, starts, nodes = self.matrix, self.starts, len(self.graph)
        counts = np.diff(matrix.indptr)
        width = max(int(counts.max(initial=0)), 1)
        rows = np.repeat(np.arange(starts[-1]), counts)
        place = np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], counts)
        owner = np.searchsorted(starts, rows, side="right") - 1
        other = np.searchsorted(starts, matrix.indices, side="right") - 1
        slots = np.zeros((nodes, nodes), np.int32)  # the own block comes first
        i, k = np.nonzero(tables.mask)
        slots[i, tables.neighbors[i, k]] = k + 1
        columns, values = np.zeros((nodes, m, width), np.int32), np.zeros((nodes, m, width))
        where = owner, rows - starts[owner], place
        columns[where] = slots[owner, other] * m + matrix.indices - starts[other]
        values[where] = matrix.data
        mask = np.arange(m) < np.diff(starts)[:, None]
        return Blocks(jnp.asarray(columns), jnp.asarray(values, dtype), jnp.asarray(mask))

    def split(self, vector: Float[Array, " n"]) -> Float[Array, "nodes m"]:
        """A vector as blocks, padded with zeros."""
        entries = np.asarray(vector)
        blocks = np.zeros((len(self.graph), self.block_size), entries.dtype)
        for i, (first, last) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            blocks[i, : last - first] = entries[first:last]
        return jnp.asarray(blocks)

    def join(self, blocks: Float[Array, "nodes m"]) -> Float[Array, " n"]:
        """The vector of some blocks."""
        lengths = np.diff(self.starts)
        return jnp.concatenate([blocks[i, :length] for i, length in enumerate(lengths)])


def partition(matrix: Any, num_nodes: int) -> Partition:
    """Cut the rows of a matrix into blocks of about the same length, one for each node.

    **Arguments:**

    - `matrix`: symmetric, sparse or dense.
    - `num_nodes`: N.

    **Raises:** `ValueError` if the matrix is not symmetric, N exceeds its size, or the blocks do
    not hang together.
    """
    matrix = Sparse(matrix).astype(np.float64)
    checks.count("num_nodes", num_nodes)
    n = matrix.shape[0]
    if matrix.shape != (n, n) or num_nodes > n:
        raise ValueError(f"cannot cut a matrix {matrix.shape} into {num_nodes} blocks of rows")
    if np.abs((matrix - matrix.T).data).max(initial=0) > 1e-9 * np.abs(matrix.data).max(initial=0):
        raise ValueError("the matrix is not symmetric")
    matrix.sort_indices()
    starts = np.linspace(0, n, num_nodes + 1).astype(int)
    rows, columns = matrix.nonzero()
    ends = [np.searchsorted(starts, a, side="right") - 1 for a in (rows, columns)]
    graph = nx.empty_graph(num_nodes)
    pairs = np.unique(np.stack(ends, axis=1)[ends[0] != ends[1]], axis=0)
    graph.add_edges_from(map(tuple, pairs.tolist()))
    if not nx.is_connected(graph):
        raise ValueError("the matrix falls apart: some blocks of rows share no entry with others")
    return Partition(matrix, starts, graph)


class _Table(eqx.Module):
    """What a node knows of all: $u_j^\\top (A u)_j$ and $u_j^\\top u_j$, and of which round."""

    product: Float[Array, "local nodes"]
    square: Float[Array, "local nodes"]
    stamp: Int[Array, "local nodes"]


class _OwnerState(eqx.Module):
    params: PyTree[Array]
    estimate: Float[Array, " local"]
    table: _Table
    links: Any
    count: Int[Array, " local"]


class OwnerEigensolver(AbstractNetworkAlgorithm):
    """Each node owns a block of the eigenvector of the smallest eigenvalue and the same rows of A,
    and talks to those whose blocks its rows meet.

    Besides its block, a message holds a table of $a_j = u_j^\\top (A u)_j$ and
    $b_j = u_j^\\top u_j$ of all nodes j, of which the newest are kept, so that they flood the
    graph. In a round node i takes in what has arrived, computes $r = A_{i \\cdot} u$ from the
    blocks that it knows, renews $a_i$ and $b_i$, and goes on

    $$\\ell_i = \\frac{\\sum_j a_j}{\\sum_j b_j}, \\qquad
      u_i \\leftarrow u_i - 2 \\alpha (r - \\ell_i u_i) .$$

    Only eigenpairs stay where they are, whatever the delays. Without these it comes to the smallest
    if $\\alpha < 1 / (\\lambda_{\\max} - \\lambda_1)$ and the start has a part in its direction.
    Of a multiple one the value is found, not a certain vector. The norm of u grows slowly. In
    single precision the error is about 1e-6 of $\\lambda_{\\max}$: shift A where $\\lambda_1$ is
    much smaller.

    Batches are `Blocks`, or with a model pairs of them and what the model takes.

    **Arguments:**

    - `block_size`: m, as `Partition` has it.
    - `step_size`: $\\alpha$, `Partition.step_size` for one.
    - `model`: `(params, features) -> block` of one node, with features from the batch, and then
      $\\theta_i \\leftarrow \\theta_i - 2 \\alpha J^\\top (r - \\ell_i u_i)$; the parameters are
      the block itself if `None`.
    - `links`: what becomes of messages; they are in time if `None`.

    **Raises:** `ValueError` if blocks have another length.

    **Reference:** Katende, Decentralized Neural Networks for Robust and Scalable Eigenvalue
    Computation, 2024.
    """

    block_size: int = eqx.field(static=True)
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    model: Callable[[PyTree[Array], PyTree[Array]], Float[Array, " m"]] | None = None
    links: DelayedLinks | None = None

    def __check_init__(self):
        checks.count("block_size", self.block_size)
        checks.positive("step_size", self.step_size)

    def _read(self, params, batch):
        """Blocks of the matrix, blocks of the vector, and how the parameters make these."""
        blocks, features = batch, None
        if self.model is not None:
            blocks, features = batch
        model = (lambda p, _: p) if self.model is None else self.model

        def vectors(params):
            made = jax.vmap(model)(params, features)
            return jnp.where(blocks.mask, made, 0)

        u, pullback = jax.vjp(vectors, params)
        if u.shape[1] != self.block_size:
            raise ValueError(f"blocks have {u.shape[1]} rows, not {self.block_size}")
        return blocks, u, pullback

    def init(self, params, batch, network, key):
        _, u, _ = self._read(params, batch)
        shape = len(u), network.size
        nothing = jnp.zeros(shape, u.dtype)
        table = _Table(nothing, nothing, jnp.full(shape, -1, jnp.int32))
        links = None if self.links is None else self.links.init((u, table), network)
        count = jnp.zeros_like(network.index(), jnp.int32)
        return _OwnerState(params, jnp.zeros(len(u), u.dtype), table, links, count)

    def round(self, state, batch, network, key):
        blocks, u, pullback = self._read(state.params, batch)
        count, links = state.count[0], None
        if self.links is None:
            (around, tables), heard = network.neighbors((u, state.table))
        else:
            links, (around, tables), sent = self.links.exchange(
                state.links, (u, state.table), count, network, key
            )
            heard = (sent >= 0) & network.neighbor_table()[1]
        table = _newest(state.table, tables, heard)

        # What has not been heard of counts as zero.
        known = jnp.where(heard[..., None], around, 0)
        pool = jnp.concatenate([u[:, None], known], axis=1).reshape(len(u), -1)
        taken = jax.vmap(lambda row, columns: row[columns])(pool, blocks.columns)
        r = jnp.sum(blocks.values.astype(u.dtype) * taken, axis=-1)
        place = jnp.arange(len(u)), network.index()
        table = _Table(
            table.product.at[place].set(jnp.sum(u * r, axis=1)),
            table.square.at[place].set(jnp.sum(u * u, axis=1)),
            table.stamp.at[place].set(count),
        )
        total = jnp.sum(table.square, axis=1)
        estimate = jnp.sum(table.product, axis=1) / jnp.where(total > 0, total, 1)
        (gradient,) = pullback(2 * (r - estimate[:, None] * u))
        params = tree.axpy(state.params, -self.step_size, gradient)
        return _OwnerState(params, estimate, table, links, state.count + 1)

    def bits_per_round(self, params, network):
        """A block and three numbers of each node, to each neighbour."""
        number = 8 * tree.real_dtype(params).itemsize
        table = network.size * (2 * number + 32)
        return network.max_degree * (self.block_size * number + table)


def _newest(own, around, heard):
    """Of each node's entries, those of the latest stamp, among the own ones and the neighbours'."""
    stamps = jnp.where(heard[..., None], around.stamp, -1)
    stamps = jnp.concatenate([own.stamp[:, None], stamps], axis=1)
    best = jnp.argmax(stamps, axis=1)[:, None]

    def leaf(mine, theirs):
        both = jnp.concatenate([mine[:, None], theirs], axis=1)
        return jnp.take_along_axis(both, best, axis=1).squeeze(1)

    return jax.tree.map(leaf, own, around)
