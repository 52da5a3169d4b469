"""Graphs, mixing matrices, schedules and networks against networkx and dense algebra."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxopt_ext import distributed as dd
from jaxopt_ext.distributed.network import colour_edges

GRAPHS = {
    "one": dd.ring(1),
    "two": dd.ring(2),
    "ring": dd.ring(8),
    "path": dd.path(5),
    "torus": dd.torus(3, 4),
    "star": dd.star(6),
    "complete": dd.complete(5),
    "hypercube": dd.hypercube(3),
    "exponential": dd.exponential(10),
    "random": dd.erdos_renyi(12, 0.3, seed=1),
}
EACH = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())


def test_sizes_and_degrees():
    assert dd.torus(4, 4).number_of_edges() == 32
    assert dict(dd.hypercube(3).degree) == dict.fromkeys(range(8), 3)
    assert sorted(dd.exponential(8).neighbors(0)) == [1, 2, 4, 6, 7]
    assert set(dict(dd.torus(3, 4).degree).values()) == {4}
    assert nx.is_connected(GRAPHS["random"])


@EACH
@pytest.mark.parametrize("weights", [dd.metropolis, dd.max_degree, dd.laplacian])
def test_mixing_matrices(graph, weights):
    sparse = weights(graph)
    w = sparse.toarray()
    np.testing.assert_allclose(w, w.T, atol=1e-12)
    np.testing.assert_allclose(w.sum(axis=0), 1, atol=1e-12)
    outside = (nx.to_numpy_array(graph, nodelist=range(len(w))) == 0) & ~np.eye(len(w), dtype=bool)
    assert np.all(w[outside] == 0)
    assert 0 < dd.spectral_gap(w) <= 1 + 1e-12
    assert np.linalg.eigvalsh(dd.lazy(sparse).toarray())[0] > -1e-12


def test_metropolis_by_hand():
    w = dd.metropolis(dd.star(4)).toarray()
    np.testing.assert_allclose(w[0], [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(np.diag(w), [0.25, 0.75, 0.75, 0.75])


@EACH
def test_simulated_network_is_dense_algebra(graph):
    n = graph.number_of_nodes()
    network = dd.Network.simulated(graph)
    x = np.random.default_rng(0).normal(size=(n, 3))
    adjacency = nx.to_numpy_array(graph, nodelist=range(n))
    np.testing.assert_allclose(network.mix(jnp.asarray(x)), dd.metropolis(graph) @ x, atol=1e-12)
    np.testing.assert_allclose(network.neighbor_sum(jnp.asarray(x)), adjacency @ x, atol=1e-12)
    np.testing.assert_array_equal(network.degrees(), adjacency.sum(axis=1))
    np.testing.assert_allclose(network.mean(jnp.asarray(x)), np.tile(x.mean(axis=0), (n, 1)))


@pytest.mark.parametrize("name", ["ring", "hypercube", "complete8", "star8", "random8"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_every_method_on_a_mesh(name, devices):
    more = {
        "complete8": dd.complete(8),
        "star8": dd.star(8),
        "random8": dd.erdos_renyi(8, 0.4, seed=3),
    }
    graph = {**GRAPHS, **more}[name]
    simulated = dd.Network.simulated(graph)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("n",))
    meshed = dd.Network.on_mesh(graph, mesh, "n")

    def everything(network):
        def fun(x, _, key):
            around, mask = network.neighbors(x)
            kept = jnp.where(mask[..., None], around, 0)
            draws = jax.vmap(jax.random.normal)(network.keys(key))
            return {
                "mix": network.mix(x),
                "around": kept,
                "sum": network.neighbor_sum(x),
                "index": network.index(),
                "degrees": network.degrees(),
                "draws": draws,
                "mean": network.mean(x),
                "first": jnp.broadcast_to(network.gather(x)[:1], x.shape),
            }

        x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)))
        return jax.jit(network.parallel(fun))(network.place(x), network.place(x), jax.random.key(1))

    a, b = everything(simulated), everything(meshed)
    for name in a:
        tolerance = 1e-14 if name == "mean" else 0
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40, unique=True))
def test_colouring_is_proper_and_uses_the_largest_degree(edges):
    colours = colour_edges(edges)
    for end in (0, 1):
        seen = [(edge[end], colour) for edge, colour in zip(edges, colours, strict=True)]
        assert len(seen) == len(set(seen))
    if edges:
        degree = max(max(np.bincount([e[end] for e in edges])) for end in (0, 1))
        assert max(colours) + 1 == degree


def test_bad_input_is_named():
    ring = dd.ring(4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("n",))
    broken = dd.metropolis(ring).toarray() + 0.01
    lopsided = dd.metropolis(ring).toarray()
    lopsided = lopsided + np.array([[0, 0.1, 0, -0.1], [0, 0, 0, 0], [0] * 4, [0] * 4])
    stranger = 0.25 * np.ones((4, 4))
    cases = [
        (lambda: dd.Network.simulated(nx.Graph([(0, 1), (2, 3)])), "disconnected"),
        (lambda: dd.Network.simulated(nx.empty_graph(0)), "no nodes"),
        (lambda: dd.Network.simulated(nx.Graph([(1, 2)])), "numbered 0 to 1"),
        (lambda: dd.Network.simulated(ring, broken), "not doubly stochastic"),
        (lambda: dd.Network.simulated(ring, lopsided), "doubly stochastic|symmetric"),
        (lambda: dd.Network.simulated(ring, stranger), "share no edge"),
        (lambda: dd.Network.simulated(ring, np.full((4, 4), np.nan)), "finite"),
        (lambda: dd.Network.simulated(ring, np.eye(3)), r"shape \(4, 4\)"),
        (lambda: dd.Network.on_mesh(ring, mesh, "n"), "do not spread evenly over 3"),
        (lambda: dd.Network.on_mesh(ring, mesh, "m"), "not 'm'"),
        (lambda: dd.ring(0), "n must be at least 1"),
        (lambda: dd.erdos_renyi(5, 1.5), "probability"),
        (lambda: dd.erdos_renyi(30, 0.0), "no connected graph"),
        (lambda: dd.GradientTracking(lambda w, b: 0.0, 0.0), "step_size must be positive"),
        (lambda: dd.EXTRA(lambda w, b: 0.0, -1.0), "step_size must be positive"),
        (lambda: dd.EXTRA(lambda w, b: 0.0, np.nan), "step_size must be positive"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    network = dd.Network.simulated(ring)
    algorithm = dd.GradientTracking(lambda w, b: jnp.sum(w * b), 0.1)
    with pytest.raises(ValueError, match="params must be stacked over 4 nodes"):
        dd.run(algorithm, network, jnp.zeros(3), jnp.zeros((4, 3)), 1)
    with pytest.raises(ValueError, match="batches must be stacked"):
        dd.run(algorithm, network, jnp.zeros((4, 3)), jnp.zeros((3, 3)), 1)
    with pytest.raises(ValueError, match="num_rounds"):
        dd.run(algorithm, network, jnp.zeros((4, 3)), jnp.zeros((4, 3)), -1)
