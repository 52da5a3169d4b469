"""Mixing matrices: symmetric, doubly stochastic weights on the edges of a graph.

Convention everywhere: $x_i \\leftarrow \\sum_j W_{ij} x_j$. Matrices are sparse, of
`scipy.sparse`; `.toarray()` makes one dense. Functions that take one take dense ones too.
"""

from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from ..core import checks
from .graphs import check_graph, edge_list

Sparse = scipy.sparse.csr_array
Matrix = Any  # sparse of any format, or dense

# The types that scipy's functions declare are narrower than what they take.
_csr: Any = scipy.sparse.csr_array
_linalg: Any = scipy.sparse.linalg

# Up to this size all eigenvalues of a dense copy cost less than a few of the sparse matrix.
_DENSE = 512
_INVERTED = 4096


def _degrees(graph: nx.Graph, edges: np.ndarray) -> np.ndarray:
    return np.bincount(edges.reshape(-1), minlength=graph.number_of_nodes())


def _symmetric(n: int, edges: np.ndarray, weights: np.ndarray) -> Sparse:
    """Zero diagonal, `weights` at both places of each edge."""
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    return scipy.sparse.coo_array((np.tile(weights, 2), (rows, columns)), shape=(n, n)).tocsr()


def _with_diagonal(weights: Sparse) -> Sparse:
    return (weights + scipy.sparse.diags_array(1 - weights.sum(axis=1))).tocsr()


def metropolis(graph: nx.Graph) -> Sparse:
    """$w_{ij} = 1 / (1 + \\max(d_i, d_j))$ on edges.

    **Reference:** Xiao, Boyd, Lall, Distributed Average Consensus with Time-Varying Metropolis
    Weights, 2006.
    """
    check_graph(graph)
    edges = edge_list(graph)
    ends = _degrees(graph, edges)[edges]
    return _with_diagonal(_symmetric(len(graph), edges, 1 / (1 + ends.max(axis=1))))


def max_degree(graph: nx.Graph) -> Sparse:
    """$w_{ij} = 1 / (1 + d_{\\max})$ on edges."""
    check_graph(graph)
    edges = edge_list(graph)
    weight = 1 / (1 + _degrees(graph, edges).max())
    return _with_diagonal(_symmetric(len(graph), edges, np.full(len(edges), weight)))


def laplacian(graph: nx.Graph) -> Sparse:
    """$I - L / \\lambda_{\\max}(L)$; the smallest eigenvalue is 0."""
    return _descent(graph, lambda second, last: 1 / last)


def best_constant(graph: nx.Graph) -> Sparse:
    """$I - 2 L / (\\lambda_2 + \\lambda_n)$, of all $I - a L$ the one with the largest gap.

    **Reference:** Xiao, Boyd, Fast Linear Iterations for Distributed Averaging, 2004.
    """
    return _descent(graph, lambda second, last: 2 / (second + last))


def _descent(graph, step) -> Any:
    matrix = weighted_laplacian(graph)
    identity = _csr(scipy.sparse.eye_array(len(graph)))
    if len(graph) == 1:
        return identity
    return (identity - step(*laplacian_spectrum(matrix)) * matrix).tocsr()


def closed_neighborhood(graph: nx.Graph) -> Sparse:
    """$w_{ij} = 1 / (1 + d_i)$ for neighbours and $j = i$: each node's plain average of what it
    sees.

    Rows sum to one, columns only on regular graphs, so that this is no matrix for a `Network` on
    others: give it to `mix` as `network.weights(closed_neighborhood(graph))`. It moves the mean
    towards nodes of large degree.
    """
    check_graph(graph)
    edges = edge_list(graph)
    adjacency = _symmetric(len(graph), edges, np.ones(len(edges)))
    closed = adjacency + scipy.sparse.eye_array(len(graph))
    return _csr(scipy.sparse.diags_array(1 / (1 + _degrees(graph, edges))) @ closed)


def lazy(mixing: Matrix) -> Sparse:
    """$(I + W) / 2$, whose eigenvalues are not negative."""
    mixing = _csr(mixing)
    return (0.5 * (scipy.sparse.eye_array(mixing.shape[0]) + mixing)).tocsr()


def weighted_laplacian(graph: nx.Graph, weights: Any = None) -> Sparse:
    """$L = \\sum_e w_e (e_i - e_j)(e_i - e_j)^\\top$.

    **Arguments:**

    - `weights`: shape `(edges,)`, not negative, in the order of `edge_list`; ones if `None`.
    """
    check_graph(graph)
    edges = edge_list(graph)
    weights = np.ones(len(edges)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(edges),):
        raise ValueError(f"weights must have shape {(len(edges),)}, got {weights.shape}")
    checks.nonnegative("weights", weights)
    adjacency = _symmetric(len(graph), edges, weights)
    return (scipy.sparse.diags_array(adjacency.sum(axis=1)) - adjacency).tocsr()


def spectral_gap(mixing: Matrix) -> float:
    """$1 - \\|W - \\tfrac1n 11^\\top\\|_2$ of a symmetric doubly stochastic matrix: one less the
    second largest eigenvalue in magnitude."""
    mixing = _csr(mixing)
    n = mixing.shape[0]
    if n == 1:
        return 1.0
    if n <= _DENSE:
        return float(1 - np.sort(np.abs(np.linalg.eigvalsh(mixing.toarray())))[-2])
    rest = _linalg.LinearOperator(
        (n, n), matvec=lambda x: mixing @ x - np.mean(x), dtype=np.float64
    )
    values = _linalg.eigsh(rest, k=1, which="LM", return_eigenvectors=False, v0=_start(n))
    return float(1 - np.abs(values[0]))


def laplacian_spectrum(laplacian: Matrix | nx.Graph) -> tuple[float, float]:
    """$\\lambda_2$ and $\\lambda_{\\max}$ of a Laplacian, or of a graph's.

    **Raises:** `ValueError` on a single node, whose only eigenvalue is zero.
    """
    if isinstance(laplacian, nx.Graph):
        laplacian = weighted_laplacian(laplacian)
    matrix = _csr(laplacian).astype(np.float64)
    n = matrix.shape[0]
    if n == 1:
        raise ValueError("the Laplacian of one node has no second eigenvalue")
    if n <= _DENSE:
        values = np.linalg.eigvalsh(matrix.toarray())
        return float(values[1]), float(values[-1])
    options = {"k": 1, "which": "LA", "return_eigenvectors": False, "v0": _start(n)}
    last = float(_linalg.eigsh(matrix, **options)[0])
    rest = _linalg.LinearOperator(
        (n, n), matvec=lambda x: last * (x - np.mean(x)) - matrix @ x, dtype=np.float64
    )
    try:  # fast where a graph is well connected, and then it does not factor sparsely
        return last - float(_linalg.eigsh(rest, maxiter=50, **options)[0]), last
    except _linalg.ArpackNoConvergence:
        options |= {"k": 2, "which": "LM", "sigma": -1e-3 * last}  # no singular matrix to factor
        return float(np.max(_linalg.eigsh(matrix.tocsc(), **options))), last


def _start(n: int) -> np.ndarray:
    """The same start each time, so that spectra are repeated to the last bit."""
    return np.random.default_rng(0).normal(size=n)


def chi(laplacian: Matrix | nx.Graph) -> float:
    """$\\lambda_{\\max}(L) / \\lambda_2(L)$, the condition number of a graph."""
    second, last = laplacian_spectrum(laplacian)
    return last / second


def chi_1(laplacian: Matrix | nx.Graph) -> float:
    """$1 / \\lambda_2(\\Lambda)$, the inverse connectivity: the time to mix where
    $\\Lambda = \\sum_e r_e (e_i - e_j)(e_i - e_j)^\\top$ and edge e acts at rate $r_e$."""
    return 1 / laplacian_spectrum(laplacian)[0]


def chi_2(laplacian: Matrix | nx.Graph) -> float:
    """$\\tfrac12 \\max_{ij} (e_i - e_j)^\\top \\Lambda^+ (e_i - e_j)$ over the edges: half of the
    largest effective resistance."""
    if isinstance(laplacian, nx.Graph):
        laplacian = weighted_laplacian(laplacian)
    matrix = _csr(laplacian).astype(np.float64)
    n = matrix.shape[0]
    if n == 1:
        raise ValueError("one node has no edges")
    upper = scipy.sparse.triu(matrix, k=1).tocoo()
    present = upper.data != 0
    edges = np.stack([upper.row[present], upper.col[present]], axis=1)
    if n <= _INVERTED:
        # On the mean, which no edge sees, any number will do: one of the size of the others.
        inverse = np.linalg.inv(matrix.toarray() + matrix.diagonal().max() / n)
        i, j = edges.T
        return float(np.max(inverse[i, i] + inverse[j, j] - 2 * inverse[i, j])) / 2
    # Potentials with the last node grounded: differences are those of the pseudo-inverse.
    solve = _linalg.splu(matrix[:-1, :-1].tocsc()).solve
    largest = 0.0
    for piece in np.array_split(edges, -(-len(edges) // 256)):
        charge = np.zeros((n, len(piece)))
        charge[piece[:, 0], np.arange(len(piece))] = 1
        charge[piece[:, 1], np.arange(len(piece))] -= 1
        largest = max(largest, float(np.max(np.sum(charge[:-1] * solve(charge[:-1]), axis=0))))
    return largest / 2


def check_mixing(graph: nx.Graph, mixing: Any) -> Sparse:
    """The matrix, sparse. Raises `ValueError` unless it is symmetric, doubly stochastic and lives
    on `graph`."""
    n = graph.number_of_nodes()
    if np.shape(mixing) != (n, n):
        raise ValueError(f"the mixing matrix must have shape {(n, n)}, got {np.shape(mixing)}")
    mixing = _csr(mixing).astype(np.float64)
    if not np.all(np.isfinite(mixing.data)):
        raise ValueError("the mixing matrix must be finite, got NaN or infinity")
    sums = mixing.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > 1e-6 or np.abs(mixing.sum(axis=0) - 1).max() > 1e-6:
        raise ValueError(
            f"the mixing matrix is not doubly stochastic: row {worst} has sum {sums[worst]:.6g}"
        )
    if np.abs((mixing - mixing.T).data).max(initial=0) > 1e-6:
        raise ValueError("the mixing matrix is not symmetric")
    edges = edge_list(graph)
    support = _symmetric(n, edges, np.ones(len(edges))) + scipy.sparse.eye_array(n)
    outside = (mixing - mixing.multiply(support)).tocoo()
    strangers = np.abs(outside.data) > 1e-12
    if strangers.any():
        where = int(np.argmax(strangers))
        i, j, weight = outside.row[where], outside.col[where], outside.data[where]
        raise ValueError(
            f"the mixing matrix has weight {weight:.3g} between {i} and {j}, which share no edge"
        )
    return mixing
