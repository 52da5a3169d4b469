"""Messages on forests against dense solves and forests grown by hand."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from jaxopt_ext import minimize

D = 14


def random_matrix(rng, extra):
    """Of a random tree, and some more edges; diagonally dominant."""
    A = np.zeros((D, D))
    edges = [(i, int(rng.integers(0, i))) for i in range(1, D)]
    edges += [tuple(rng.choice(D, 2, replace=False)) for _ in range(extra)]
    for i, j in edges:
        A[i, j] = A[j, i] = rng.normal()
    np.fill_diagonal(A, np.abs(A).sum(1) + 10.0 ** rng.uniform(-3, 0, D))
    return A


def table(A, width):
    """The quadratic with its table as wide as others'."""
    fun = minimize.GraphQuadratic.from_matrix(A, np.zeros(D))
    more = width - fun.neighbors.shape[1]
    neighbors = np.pad(fun.neighbors, ((0, 0), (0, more)), constant_values=D)
    weights = np.pad(fun.weights, ((0, 0), (0, more)))
    return minimize.GraphQuadratic(fun.diagonal, neighbors, weights, fun.linear)


def grown_by_hand(A, scores):
    graph, inside = nx.Graph(), set()
    for i in np.argsort(-scores, kind="stable"):
        near = [j for j in inside if A[i, j] != 0]
        trees = [frozenset(nx.node_connected_component(graph, j)) for j in near]
        if len(set(trees)) == len(trees):
            inside.add(int(i))
            graph.add_node(int(i))
            graph.add_edges_from((int(i), j) for j in near)
    return np.isin(np.arange(D), sorted(inside))


def test_a_forest_is_grown_and_solved():
    rng = np.random.default_rng(0)
    mats = [random_matrix(rng, extra) for extra in range(12)]
    scores, rhs = rng.normal(size=(12, D)).round(1), rng.normal(size=(12, D))
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(table(A, D) for A in mats))

    def one(fun, scores, rhs):
        block = minimize.greedy_forest(scores, fun.neighbors)
        solver = minimize.forest_solver(fun)
        # Of a block that is everything the solution is NaN, unless that is a forest.
        return block, solver(block, rhs), solver(jnp.ones(D, bool), rhs)

    blocks, found, whole = jax.jit(jax.vmap(one))(stacked, scores, rhs)
    for A, s, r, block, x, all_of_it in zip(mats, scores, rhs, blocks, found, whole, strict=True):
        np.testing.assert_array_equal(block, grown_by_hand(A, s))
        wanted = np.zeros(D)
        wanted[block] = np.linalg.solve(A[np.ix_(block, block)], r[block])
        np.testing.assert_allclose(x, wanted, atol=1e-10)
        if nx.is_forest(nx.from_numpy_array(A - np.diag(np.diag(A)))):
            np.testing.assert_allclose(all_of_it, np.linalg.solve(A, r), atol=1e-10)
        else:
            assert np.isnan(all_of_it).all()


def test_partitions_of_a_lattice():
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 5))
    A = nx.laplacian_matrix(graph).toarray() + np.eye(20)
    fun = minimize.GraphQuadratic.from_matrix(A, np.ones(20))
    x = np.linspace(-1, 1, 20)
    np.testing.assert_allclose(fun(jnp.asarray(x)), 0.5 * x @ A @ x - x.sum())
    red, black = minimize.red_black_blocks(fun)
    assert sorted([*red, *black]) == list(range(20))
    assert not any(graph.subgraph(block).edges for block in (red, black))
    forests = minimize.forest_blocks(fun)
    assert sorted(np.concatenate(forests)) == list(range(20))
    assert all(nx.is_forest(graph.subgraph(block)) for block in forests)
    odd = minimize.GraphQuadratic.from_matrix(np.ones((3, 3)), np.ones(3))
    with pytest.raises(ValueError, match="odd cycle"):
        minimize.red_black_blocks(odd)
    with pytest.raises(ValueError, match=r"cycle.*\[0, 1, 2\]"):
        minimize.forest_solver(odd)(jnp.ones(3, bool), jnp.ones(3))
    with pytest.raises(ValueError, match="symmetric"):
        minimize.forest_solver(np.triu(np.ones((3, 3))))
    with pytest.raises(ValueError, match="square"):
        minimize.forest_solver(np.ones((3, 2)))
