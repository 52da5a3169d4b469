"""A graph with a value at each node."""

from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np

from ..distributed.graphs import check_graph
from .figure import axes, numbers

# The layout by distances costs n³ and shows symmetries; beyond this size springs must do.
_LARGE = 200


def network(
    graph: nx.Graph,
    values: Any,
    *,
    positions: Mapping[int, Any] | None = None,
    label: str = "value",
    ax: Any = None,
) -> Any:
    """A graph, its nodes coloured by value, with a colour bar.

    Nodes are laid out by `networkx`, the same graph always in the same way. A node whose value is
    not finite is light gray.

    **Arguments:**

    - `graph`: connected and undirected, on nodes 0, ..., n - 1, as `distributed` makes them.
    - `values`: shape `(n,)`, value i of node i. Parameters of a `distributed.Run` are stacked on
      a leading axis of nodes: pass one of their coordinates, or a distance.
    - `positions`: `(x, y)` of each node, any layout of `networkx`; by distances in the graph if
      `None`, by springs if there are more than 200 nodes.
    - `label`: of the colour bar.
    - `ax`: axes to draw on; a new figure's if `None`.

    **Returns:** the axes.

    **Raises:** `ValueError` on values of another shape, on a node without a position, and on a
    graph that is no such one; `TypeError` on what is no undirected graph or not real;
    `ImportError` without matplotlib.
    """
    check_graph(graph)
    values, n = numbers("values", values), graph.number_of_nodes()
    if values.shape != (n,):
        raise ValueError(f"values must have shape ({n},), got {values.shape}")
    if positions is None:
        large = n > _LARGE
        positions = nx.spring_layout(graph, seed=0) if large else nx.kamada_kawai_layout(graph)
    if missing := [i for i in range(n) if i not in positions]:
        raise ValueError(f"no position for nodes {missing[:5]}")
    place = numbers("positions", [positions[i] for i in range(n)])
    if place.shape != (n, 2):
        raise ValueError(f"positions must be pairs, together ({n}, 2), got {place.shape}")

    ax = axes(ax)
    from matplotlib.collections import LineCollection

    edges = np.asarray(graph.edges, dtype=int).reshape(-1, 2)
    ax.add_collection(LineCollection(list(place[edges]), colors="gray", linewidths=1, zorder=1))
    size = float(np.clip(6000 / n, 10, 200))
    nodes = ax.scatter(*place.T, s=size, edgecolors="black", linewidths=0.5, zorder=2)
    nodes.set_array(np.ma.masked_invalid(values))  # behind `scatter`, which leaves out the masked
    nodes.set_cmap(nodes.get_cmap().with_extremes(bad="lightgray"))
    ax.figure.colorbar(nodes, ax=ax, label=label)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax
