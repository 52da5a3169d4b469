"""Quadratics on sparse graphs, and blocks of them that are forests: solved exactly by messages."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float, Int

from ..core import checks, loops
from .coordinate_model import AbstractBlock, AbstractCoordinateModel, gather, scatter_add
from .curvature import AbstractCurvature

Table = Int[Array, "d k"]


def _padded(x: Array, fill: Any) -> Array:
    """With one more entry, for the neighbour that is none."""
    return jnp.append(x, jnp.asarray(fill, x.dtype))


class GraphQuadratic(eqx.Module):
    """$f(x) = \\tfrac12 x^\\top A x - b^\\top x$ with a sparse symmetric $A$.

    It is kept as a table of the neighbours of each coordinate, padded to the largest degree;
    `from_matrix` makes one.

    **Arguments:**

    - `diagonal`: $A_{ii}$, shape `(d,)`.
    - `neighbors`: integers of shape `(d, k)`; the padding is `d`.
    - `weights`: $A_{ij}$ for them, shape `(d, k)`; zero in the padding.
    - `linear`: $b$, shape `(d,)`.

    **Raises:** `ValueError` if shapes do not fit.
    """

    diagonal: Float[Array, " d"] = eqx.field(converter=jnp.asarray)
    neighbors: Table = eqx.field(converter=jnp.asarray)
    weights: Float[Array, "d k"] = eqx.field(converter=jnp.asarray)
    linear: Float[Array, " d"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        shapes = [jnp.shape(a) for a in (self.diagonal, self.neighbors, self.weights, self.linear)]
        d = shapes[0][-1:]
        if not (shapes[1] == shapes[2] and shapes[1][-2:-1] == d and shapes[3][-1:] == d):
            raise ValueError(
                "diagonal and linear must be (d,), neighbors and weights (d, k), got "
                f"{shapes[0]}, {shapes[3]}, {shapes[1]}, {shapes[2]}"
            )

    @classmethod
    def from_matrix(cls, matrix: Any, linear: Any) -> "GraphQuadratic":
        """From $A$ and $b$.

        **Arguments:**

        - `matrix`: $A$, symmetric, an array of shape `(d, d)`, a `scipy.sparse` matrix or a `CSR`
          of `jaxopt_ext_kernels`; its pattern is read, so it cannot be traced.
        - `linear`: $b$, shape `(d,)`.

        **Raises:** `ValueError` if it is not square or not symmetric.
        """
        sparse: Any = matrix.to_scipy() if hasattr(matrix, "to_scipy") else matrix
        sparse = sparse if scipy.sparse.issparse(sparse) else np.asarray(sparse)
        sparse = scipy.sparse.csr_matrix(sparse)
        shape: Any = sparse.shape
        if shape[0] != shape[1]:
            raise ValueError(f"matrix must be square, got shape {shape}")
        sparse.eliminate_zeros()
        skew, size = abs(sparse - sparse.T).max(), abs(sparse).max()
        if skew > 1e3 * np.finfo(sparse.dtype).eps * size:
            raise ValueError(f"matrix must be symmetric, entries differ by {skew:.3g}")
        d, diagonal = shape[0], sparse.diagonal()
        off: Any = scipy.sparse.csr_matrix(sparse - scipy.sparse.diags(diagonal))
        off.eliminate_zeros()
        off.sort_indices()
        degree = np.diff(off.indptr)
        width = max(1, int(degree.max(initial=0)))
        neighbors, weights = np.full((d, width), d, np.int32), np.zeros((d, width), sparse.dtype)
        rows = np.repeat(np.arange(d), degree)
        places = np.arange(off.nnz) - off.indptr[rows]
        neighbors[rows, places], weights[rows, places] = off.indices, off.data
        return cls(diagonal, neighbors, weights, linear)

    def product(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """$A x$."""
        near = _padded(x, 0)[self.neighbors]
        return self.diagonal * x + jnp.sum(self.weights * near, axis=1)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        return 0.5 * jnp.vdot(x, self.product(x)) - jnp.vdot(self.linear, x)

    def coordinate_model(self) -> AbstractCoordinateModel:
        """With its product kept."""
        return _GraphModel(self)

    def curvature_bound(self) -> AbstractCurvature:
        """Its Hessian."""
        return GraphCurvature(self)


class _GraphModel(AbstractCoordinateModel):
    fun: GraphQuadratic

    def predictions(self, w):
        return self.fun.product(w)

    def partial(self, w, z, j):
        return z[j] - self.fun.linear[j]

    def gradient(self, w, z):
        return z - self.fun.linear

    def move(self, z, j, move):
        return self.block(j[None]).move(z, move[None])

    def value(self, w, z):
        return 0.5 * jnp.vdot(w, z) - jnp.vdot(self.fun.linear, w)

    def block(self, indices):
        return _GraphBlock(self.fun, indices)


class _GraphBlock(AbstractBlock):
    """The block's rows alone are read."""

    fun: GraphQuadratic
    indices: Int[Array, " s"]

    def _rows(self):
        d = self.fun.diagonal.size
        near = self.fun.neighbors.at[self.indices].get(mode="fill", fill_value=d)
        return gather(self.fun.diagonal, self.indices), near, gather(self.fun.weights, self.indices)

    def partial(self, w, z):
        return gather(z - self.fun.linear, self.indices)

    def move(self, z, move):
        diagonal, near, weights = self._rows()
        z = scatter_add(z, self.indices, diagonal * move)
        return z.at[near].add((weights * move[:, None]).astype(z.dtype), mode="drop")

    def value(self, w, z, move):
        w = scatter_add(w, self.indices, move)
        return 0.5 * jnp.vdot(w, self.move(z, move)) - jnp.vdot(self.fun.linear, w)


class GraphCurvature(AbstractCurvature):
    """The matrix of a quadratic on a graph."""

    fun: GraphQuadratic

    def diagonal(self):
        return jnp.where(self.fun.diagonal > 0, self.fun.diagonal, 1)

    def block(self, indices):
        d = self.fun.diagonal.size
        near = self.fun.neighbors.at[indices].get(mode="fill", fill_value=d)
        there = (near[:, :, None] == indices) & (indices < d)
        off = jnp.sum(gather(self.fun.weights, indices)[:, :, None] * there, axis=1)
        return off + jnp.diag(gather(self.fun.diagonal, indices))

    def row_sums(self):
        sums = jnp.abs(self.fun.diagonal) + jnp.sum(jnp.abs(self.fun.weights), axis=1)
        return jnp.where(sums > 0, sums, 1)

    def product(self, v):
        return self.fun.product(v)


class ForestSolver(eqx.Module):
    """Solves $A_{bb} x_b = r_b$ where the graph of $A_{bb}$ is a forest, by two sweeps of messages:
    elimination from the leaves to the roots and substitution back, $O(d k)$ in all for degrees of
    at most $k$. These are the messages of Gaussian belief propagation, each sent once.

    **Arguments:**

    - `quadratic`: holds $A$.
    """

    quadratic: GraphQuadratic

    def __call__(self, block: Bool[Array, " d"], rhs: Float[Array, " d"]) -> Float[Array, " d"]:
        """The solution, zero outside of the block.

        **Arguments:**

        - `block`: which coordinates are in it, shape `(d,)`.
        - `rhs`: $r$, shape `(d,)`.

        **Raises:** `ValueError` if the block holds a cycle; where `block` is being traced, the
        solution is NaN instead.
        """
        x, left = _solve_forest(self.quadratic, jnp.asarray(block), jnp.asarray(rhs))
        if not checks.is_traced(left) and bool(jnp.any(left)):
            cycle = np.flatnonzero(np.asarray(left))[:5].tolist()
            raise ValueError(f"the block holds a cycle, among or between the coordinates {cycle}")
        return jnp.where(jnp.any(left), jnp.nan, x)


@jax.jit
def _solve_forest(fun, block, rhs):
    """The solution, and the coordinates that no leaf led to."""
    d, nobody = block.size, jnp.asarray(block.size, jnp.int32)
    near = _padded(block, False)[fun.neighbors] & block[:, None]
    degree = jnp.sum(near, axis=1, dtype=jnp.int32)
    leaf = block & (degree <= 1)
    queue = jnp.sort(jnp.where(leaf, jnp.arange(d, dtype=jnp.int32), nobody))
    dtype = jnp.result_type(fun.diagonal, rhs)
    pivots = _padded(fun.diagonal.astype(dtype), 1)
    right = _padded(jnp.where(block, rhs, 0).astype(dtype), 0)

    def eliminate(k, carry):
        queue, end, degree, gone, pivots, right, parents, entries = carry
        i = queue[k]
        row = jnp.minimum(i, d - 1)
        others = fun.neighbors[row]
        alive = near[row] & ~gone[others] & (i < d)
        place = jnp.argmax(alive)
        has = alive[place]
        p = jnp.where(has, others[place], nobody)
        entry = jnp.where(has, fun.weights[row, place], 0).astype(dtype)
        ratio = entry / pivots[i]
        pivots = pivots.at[p].add(-ratio * entry)
        right = right.at[p].add(-ratio * right[i])
        degree = degree.at[p].add(-1, mode="drop")
        ready = has & (degree[jnp.minimum(p, d - 1)] == 1)
        queue = queue.at[jnp.where(ready, end, d)].set(p, mode="drop")
        gone = gone.at[i].set(True)
        parents, entries = parents.at[k].set(p), entries.at[k].set(entry)
        return queue, end + ready, degree, gone, pivots, right, parents, entries

    start = (
        queue,
        jnp.sum(leaf, dtype=jnp.int32),
        degree,
        jnp.zeros(d + 1, bool),
        pivots,
        right,
        jnp.full(d, nobody),
        jnp.zeros(d, dtype),
    )
    queue, _, _, gone, pivots, right, parents, entries = loops.fori_loop(0, d, eliminate, start)

    def substitute(k, x):
        k = d - 1 - k
        i = queue[k]
        value = (right[i] - entries[k] * x[parents[k]]) / pivots[i]
        return x.at[jnp.where(i < d, i, d + 1)].set(value, mode="drop")

    x = loops.fori_loop(0, d, substitute, jnp.zeros(d + 1, dtype))
    return x[:d], block & ~gone[:d]


def forest_solver(matrix: Any) -> ForestSolver:
    """The exact solver of blocks of $A$ whose graph is a forest: `forest_solver(A)(block, rhs)`.

    **Arguments:**

    - `matrix`: $A$, as in `GraphQuadratic.from_matrix`, or a `GraphQuadratic`.

    **Returns:** a `ForestSolver`.

    **Reference:** Nutini, Laradji, Schmidt, Let's Make Block Coordinate Descent Converge Faster:
    Faster Greedy Rules, Message-Passing, Active-Set Complexity, and Superlinear Convergence, 2022,
    arXiv:1712.08859.
    """
    if not isinstance(matrix, GraphQuadratic):
        matrix = GraphQuadratic.from_matrix(matrix, np.zeros(matrix.shape[0]))
    return ForestSolver(matrix)


def greedy_forest(
    scores: Float[Array, " d"], neighbors: Table, allowed: Bool[Array, " d"] | None = None
) -> Bool[Array, " d"]:
    """A forest of high scores: go through the coordinates from the highest score down and add each
    unless two of its neighbours are in one tree already. Ties go to the lowest index.

    **Arguments:**

    - `scores`: shape `(d,)`.
    - `neighbors`: shape `(d, k)`, padded with `d`, as in `GraphQuadratic`.
    - `allowed`: which coordinates to consider at all; all by default.

    **Returns:** which coordinates are in it, shape `(d,)`; every coordinate left out closes a
    cycle.
    """
    d = neighbors.shape[0]
    order = jnp.argsort(-scores, stable=True)
    allowed = jnp.ones(d, bool) if allowed is None else allowed
    nobody = jnp.asarray(d, jnp.int32)

    def visit(k, carry):
        inside, parent, size = carry
        i = order[k].astype(jnp.int32)
        others = jnp.where(inside[neighbors[i]], neighbors[i], nobody).astype(jnp.int32)
        roots = loops.while_loop(lambda r: jnp.any(parent[r] != r), lambda r: parent[r], others)
        ranked = jnp.sort(roots)
        cyclic = jnp.any((ranked[1:] == ranked[:-1]) & (ranked[1:] < d))
        add = allowed[i] & ~cyclic
        # The smaller trees hang on the largest, so that ways to a root stay short.
        trees = jnp.append(roots, i)
        top = trees[jnp.argmax(size[trees])]
        trees = jnp.where(add, trees, nobody)
        total = jnp.sum(jnp.where(trees < d, size[trees], 0), dtype=jnp.int32)
        parent = parent.at[trees].set(jnp.where(trees < d, top, nobody))
        size = size.at[jnp.where(add, top, d + 1)].set(total, mode="drop")
        return inside.at[i].set(add), parent, size

    start = (
        jnp.zeros(d + 1, bool),
        jnp.arange(d + 1, dtype=jnp.int32),
        jnp.ones(d + 1, jnp.int32).at[d].set(0),
    )
    return loops.fori_loop(0, d, visit, start)[0][:d]


def forest_blocks(
    quadratic: GraphQuadratic, scores: Float[Array, " d"] | None = None
) -> list[np.ndarray]:
    """A partition into forests, greedily: each coordinate goes into the first forest in which it
    closes no cycle, the highest score first.

    **Arguments:**

    - `quadratic`: holds the graph.
    - `scores`: shape `(d,)`; the diagonal by default.

    **Returns:** the indices of each block, for `GivenBlocks`.
    """
    scores = quadratic.diagonal if scores is None else jnp.asarray(scores)
    left, blocks = jnp.ones(scores.size, bool), []
    while bool(jnp.any(left)):
        block = _greedy_forest(scores, quadratic.neighbors, left)
        blocks.append(np.flatnonzero(np.asarray(block)))
        left = left & ~block
    return blocks


_greedy_forest = jax.jit(greedy_forest)


def red_black_blocks(quadratic: GraphQuadratic) -> list[np.ndarray]:
    """The two colours of a graph without odd cycles; no two neighbours share one.

    **Arguments:**

    - `quadratic`: holds the graph.

    **Returns:** the indices of both, for `GivenBlocks`; coordinates without neighbours are red.

    **Raises:** `ValueError` if a cycle is odd.
    """
    neighbors = np.asarray(quadratic.neighbors)
    d = neighbors.shape[0]
    colour = np.full(d + 1, -1)
    for root in range(d):
        if colour[root] >= 0:
            continue
        colour[root], front = 0, np.array([root])
        while front.size:
            near = np.unique(neighbors[front])
            fresh = near[(near < d) & (colour[near] < 0)]
            colour[fresh] = 1 - colour[front[0]]
            front = fresh
    rows, columns = np.nonzero(neighbors < d)
    clash = colour[rows] == colour[neighbors[rows, columns]]
    if clash.any():
        i = int(rows[np.argmax(clash)])
        raise ValueError(f"the graph has an odd cycle, through coordinate {i}: no two colours fit")
    blocks: Sequence[np.ndarray] = [np.flatnonzero(colour[:d] == c) for c in (0, 1)]
    return [block for block in blocks if block.size]
