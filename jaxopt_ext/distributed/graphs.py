"""Undirected graphs of nodes that may talk, as `networkx` graphs on 0, ..., n - 1."""

from typing import Any

import networkx as nx

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


def ring(n: int) -> nx.Graph:
    """A cycle."""
    checks.count("n", n)
    return nx.path_graph(n) if n < 3 else nx.cycle_graph(n)


def path(n: int) -> nx.Graph:
    """A line."""
    checks.count("n", n)
    return nx.path_graph(n)


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


def erdos_renyi(n: int, probability: float, *, seed: int = 0) -> nx.Graph:
    """The first connected draw of the random graph, from seeds `seed`, `seed + 1`, ...

    **Raises:** `ValueError` if a hundred draws are all disconnected.
    """
    checks.count("n", n)
    checks.interval("probability", probability, 0, 1)
    for offset in range(100):
        graph = nx.erdos_renyi_graph(n, probability, seed=seed + offset)
        if nx.is_connected(graph):
            return graph
    raise ValueError(f"no connected graph in 100 draws with n={n}, probability={probability}")
