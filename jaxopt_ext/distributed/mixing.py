"""Mixing matrices: symmetric, doubly stochastic weights on the edges of a graph."""

from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Float

from .graphs import check_graph

Matrix = Float[np.ndarray, "n n"]


def _adjacency(graph: nx.Graph) -> Matrix:
    check_graph(graph)
    unweighted: Any = None  # which networkx takes, though its types say text
    nodes = range(graph.number_of_nodes())
    return nx.to_numpy_array(graph, nodelist=nodes, weight=unweighted)


def _with_diagonal(weights: Matrix) -> Matrix:
    return weights + np.diag(1 - weights.sum(axis=1))


def metropolis(graph: nx.Graph) -> Matrix:
    """$w_{ij} = 1 / (1 + \\max(d_i, d_j))$ on edges.

    **Reference:** Xiao, Boyd, Lall, Distributed Average Consensus with Time-Varying Metropolis
    Weights, 2006.
    """
    adjacency = _adjacency(graph)
    degree = adjacency.sum(axis=1)
    return _with_diagonal(adjacency / (1 + np.maximum(degree[:, None], degree[None, :])))


def max_degree(graph: nx.Graph) -> Matrix:
    """$w_{ij} = 1 / (1 + d_{\\max})$ on edges."""
    adjacency = _adjacency(graph)
    return _with_diagonal(adjacency / (1 + adjacency.sum(axis=1).max()))


def laplacian(graph: nx.Graph) -> Matrix:
    """$I - L / \\lambda_{\\max}(L)$; the smallest eigenvalue is 0."""
    adjacency = _adjacency(graph)
    if len(adjacency) == 1:
        return np.ones((1, 1))
    matrix = np.diag(adjacency.sum(axis=1)) - adjacency
    return np.eye(len(matrix)) - matrix / np.linalg.eigvalsh(matrix)[-1]


def lazy(mixing: Matrix) -> Matrix:
    """$(I + W) / 2$, whose eigenvalues are not negative."""
    return 0.5 * (np.eye(len(mixing)) + mixing)


def spectral_gap(mixing: Matrix) -> float:
    """$1 - \\rho$ with $\\rho$ the second largest eigenvalue in magnitude."""
    if len(mixing) == 1:
        return 1.0
    return float(1 - np.sort(np.abs(np.linalg.eigvalsh(mixing)))[-2])


def check_mixing(graph: nx.Graph, mixing: Matrix) -> None:
    """Raise `ValueError` unless `mixing` is symmetric, doubly stochastic and lives on `graph`."""
    n = graph.number_of_nodes()
    if mixing.shape != (n, n):
        raise ValueError(f"the mixing matrix must have shape {(n, n)}, got {mixing.shape}")
    if not np.all(np.isfinite(mixing)):
        raise ValueError("the mixing matrix must be finite, got NaN or infinity")
    sums = mixing.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > 1e-6 or np.abs(mixing.sum(axis=0) - 1).max() > 1e-6:
        raise ValueError(
            f"the mixing matrix is not doubly stochastic: row {worst} has sum {sums[worst]:.6g}"
        )
    if np.abs(mixing - mixing.T).max() > 1e-6:
        raise ValueError("the mixing matrix is not symmetric")
    strangers = (_adjacency(graph) == 0) & ~np.eye(n, dtype=bool) & (np.abs(mixing) > 1e-12)
    if strangers.any():
        i, j = np.argwhere(strangers)[0]
        raise ValueError(
            f"the mixing matrix has weight {mixing[i, j]:.3g} between {i} and {j}, "
            "which share no edge"
        )
