"""Undirected graphs of nodes that may talk, as `networkx` graphs on 0, ..., n - 1."""

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Int

from ..core import checks


def _relabel(graph: nx.Graph) -> nx.Graph:
    return nx.convert_node_labels_to_integers(graph, ordering="sorted")


def check_graph(graph: nx.Graph) -> None:
    """Raise unless `graph` is undirected, on nodes 0, ..., n - 1, without loops, and connected."""
    if not isinstance(graph, nx.Graph) or graph.is_directed():
        raise TypeError(f"expected an undirected networkx graph, got {type(graph).__name__}")
    n = graph.number_of_nodes()
    if n == 0:
        raise ValueError("the graph has no nodes")
    if set(graph.nodes) != set(range(n)):
        raise ValueError(f"nodes must be numbered 0 to {n - 1}, got {sorted(graph.nodes)[:5]}...")
    if nx.number_of_selfloops(graph):
        raise ValueError("the graph has edges from a node to itself")
    if not nx.is_connected(graph):
        parts = nx.number_connected_components(graph)
        raise ValueError(f"the graph is disconnected: it has {parts} components")


def edge_list(graph: nx.Graph) -> Int[np.ndarray, "edges 2"]:
    """The edges $(i, j)$, $i < j$, in ascending order: their number in it is an edge's number."""
    edges = np.sort(np.asarray(graph.edges, np.int32).reshape(-1, 2), axis=1)
    return edges[np.lexsort(edges.T[::-1])]


def ring(n: int) -> nx.Graph:
    """A cycle."""
    checks.count("n", n)
    return nx.path_graph(n) if n < 3 else nx.cycle_graph(n)


def path(n: int) -> nx.Graph:
    """A line."""
    checks.count("n", n)
    return nx.path_graph(n)


def grid(rows: int, columns: int) -> nx.Graph:
    """A grid that ends at its sides; node `(i, j)` has number `i * columns + j`."""
    checks.count("rows", rows)
    checks.count("columns", columns)
    return _relabel(nx.grid_2d_graph(rows, columns))


def torus(rows: int, columns: int) -> nx.Graph:
    """A periodic grid; node `(i, j)` has number `i * columns + j`."""
    checks.count("rows", rows)
    checks.count("columns", columns)
    periodic: Any = (rows > 2, columns > 2)  # networkx takes a pair, its types do not know
    return _relabel(nx.grid_2d_graph(rows, columns, periodic=periodic))


def star(n: int) -> nx.Graph:
    """Node 0 in the middle, n nodes in all."""
    checks.count("n", n)
    return nx.star_graph(n - 1)


def complete(n: int) -> nx.Graph:
    """All pairs."""
    checks.count("n", n)
    return nx.complete_graph(n)


def hypercube(dimension: int) -> nx.Graph:
    """$2^d$ nodes, joined where their numbers differ in one bit."""
    checks.count("dimension", dimension, minimum=0)
    n = 2**dimension
    graph = nx.empty_graph(n)
    graph.add_edges_from((i, i ^ (1 << b)) for i in range(n) for b in range(dimension))
    return graph


def exponential(n: int) -> nx.Graph:
    """Node i is joined to $i \\pm 2^k$ modulo n."""
    checks.count("n", n)
    graph = nx.empty_graph(n)
    power = 1
    while power < n:
        graph.add_edges_from((i, (i + power) % n) for i in range(n) if (i + power) % n != i)
        power *= 2
    return graph


def binary_tree(n: int) -> nx.Graph:
    """Node i is joined to its parent $\\lfloor (i - 1) / 2 \\rfloor$; node 0 is the root."""
    checks.count("n", n)
    graph = nx.empty_graph(n)
    graph.add_edges_from((i, (i - 1) // 2) for i in range(1, n))
    return graph


def barbell(clique: int, bridge: int = 0) -> nx.Graph:
    """Two complete graphs of `clique` nodes, joined by a path of `bridge` nodes between them."""
    checks.count("clique", clique, minimum=2)
    checks.count("bridge", bridge, minimum=0)
    return nx.barbell_graph(clique, bridge)


def _connected(draw: Callable[[int], nx.Graph], seed: int, described: str) -> nx.Graph:
    for offset in range(100):
        graph = draw(seed + offset)
        if nx.is_connected(graph):
            return graph
    raise ValueError(f"no connected graph in 100 draws with {described}")


def random_regular(n: int, degree: int, *, seed: int = 0) -> nx.Graph:
    """The first connected draw of a graph whose nodes all have `degree` neighbours, from seeds
    `seed`, `seed + 1`, ...

    **Raises:** `ValueError` if there is no such graph, or a hundred draws are all disconnected.
    """
    checks.count("n", n)
    checks.count("degree", degree, minimum=0)
    if degree >= n or n * degree % 2:
        raise ValueError(f"there is no graph of {n} nodes that all have {degree} neighbours")
    draw = lambda seed: nx.random_regular_graph(degree, n, seed=seed)
    return _connected(draw, seed, f"n={n}, degree={degree}")


def random_geometric(n: int, radius: float, *, seed: int = 0) -> nx.Graph:
    """Points drawn in the unit square, joined if nearer than `radius`; the first connected draw
    from seeds `seed`, `seed + 1`, ... The points are node attributes `pos`.

    **Raises:** `ValueError` if a hundred draws are all disconnected.
    """
    checks.count("n", n)
    checks.positive("radius", radius)
    draw = lambda seed: nx.random_geometric_graph(n, radius, seed=seed)
    return _connected(draw, seed, f"n={n}, radius={radius}")


def erdos_renyi(n: int, probability: float, *, seed: int = 0) -> nx.Graph:
    """The first connected draw of the random graph, from seeds `seed`, `seed + 1`, ...

    **Raises:** `ValueError` if a hundred draws are all disconnected.
    """
    checks.count("n", n)
    checks.interval("probability", probability, 0, 1)
    draw = lambda seed: nx.erdos_renyi_graph(n, probability, seed=seed)
    return _connected(draw, seed, f"n={n}, probability={probability}")
