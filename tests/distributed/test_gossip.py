"""Spectra against closed forms, and accelerated gossip against its exact contraction."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from jaxopt_ext import distributed as dd

GRAPHS = {
    "ring": dd.ring(16),
    "path": dd.path(12),
    "barbell": dd.barbell(4, 2),
    "tree": dd.binary_tree(15),
    "random": dd.random_regular(16, 3, seed=2),
}
EACH = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())


def dense(graph, weights=None):
    n = graph.number_of_nodes()
    matrix = np.zeros((n, n))
    edges = dd.edge_list(graph)
    for (i, j), w in zip(edges, np.ones(len(edges)) if weights is None else weights, strict=True):
        e = np.zeros(n)
        e[i], e[j] = 1, -1
        matrix += w * np.outer(e, e)
    return matrix


def test_eigenvalues_of_a_ring():
    for n in (8, 601):
        expected = 1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(n) / n)
        if n == 8:
            values = np.linalg.eigvalsh(dd.metropolis(dd.ring(n)).toarray())
            np.testing.assert_allclose(values, np.sort(expected), atol=1e-6)
        gap = 1 - np.sort(np.abs(expected))[-2]
        np.testing.assert_allclose(dd.spectral_gap(dd.metropolis(dd.ring(n))), gap, rtol=1e-6)
        second, last = dd.laplacian_spectrum(dd.ring(n))
        waves = np.sort(2 - 2 * np.cos(2 * np.pi * np.arange(n) / n))
        np.testing.assert_allclose([second, last], waves[[1, -1]], rtol=1e-6)


@pytest.mark.always(3)
@EACH
def test_spectra(graph):
    rates = np.random.default_rng(0).uniform(0.5, 2, graph.number_of_edges())
    for weights in (None, rates):
        matrix, sparse = dense(graph, weights), dd.weighted_laplacian(graph, weights)
        np.testing.assert_allclose(sparse.toarray(), matrix, atol=1e-12)
        values, inverse = np.linalg.eigvalsh(matrix), np.linalg.pinv(matrix)
        np.testing.assert_allclose(dd.chi(sparse), values[-1] / values[1])
        np.testing.assert_allclose(dd.chi_1(sparse), 1 / values[1])
        i, j = dd.edge_list(graph).T
        resistance = inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]
        np.testing.assert_allclose(dd.chi_2(sparse), resistance.max() / 2)
    gap = dd.spectral_gap(dd.best_constant(graph))
    values = np.linalg.eigvalsh(dense(graph))
    np.testing.assert_allclose(gap, 1 - (values[-1] - values[1]) / (values[-1] + values[1]))
    assert gap >= max(dd.spectral_gap(w(graph)) for w in (dd.laplacian, dd.max_degree)) - 1e-12


def test_large_spectra(monkeypatch):
    graph = dd.path(700)  # poorly connected: Lanczos alone would not do
    second = 2 - 2 * np.cos(np.pi / 700)
    np.testing.assert_allclose(dd.laplacian_spectrum(graph)[0], second, rtol=1e-6)
    monkeypatch.setattr("jaxopt_ext.distributed.mixing._INVERTED", 0)
    np.testing.assert_allclose(dd.chi_2(graph), 0.5)
    np.testing.assert_allclose(dd.chi_2(dd.ring(600)), 0.5 * 599 / 600)


@pytest.mark.always(2)
@EACH
def test_chebyshev_contracts_as_its_polynomial(graph):
    values, vectors = np.linalg.eigh(dense(graph))
    network, chi = dd.Network.simulated(graph), values[-1] / values[1]
    q = (np.sqrt(chi) - 1) / (np.sqrt(chi) + 1)
    spectrum = dd.laplacian_spectrum(graph)
    x = jnp.asarray(np.stack([vectors[:, 1], vectors[:, -1], np.ones(len(values))], axis=1))
    for steps in (0, 1, 2, 7):
        y = dd.chebyshev_gossip(network, x, steps, spectrum)
        factor = 2 * q**steps / (1 + q ** (2 * steps))
        np.testing.assert_allclose(
            np.linalg.norm(y[:, :2], axis=0), [factor, factor], rtol=1e-5, err_msg=str(steps)
        )
        np.testing.assert_allclose(y[:, 2], 1, atol=1e-13)


def test_chebyshev_on_a_complete_graph_is_one_exact_step():
    network = dd.Network.simulated(dd.complete(6))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    for steps in (1, 3):
        y = dd.chebyshev_gossip(network, x, steps, (6.0, 6.0))
        np.testing.assert_allclose(y, np.tile(x.mean(axis=0), (6, 1)), atol=1e-12)


def test_chebyshev_in_single_precision_never_overflows():
    network = dd.Network.simulated(dd.ring(16))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
    y = dd.chebyshev_gossip(network, x, 2000, dd.laplacian_spectrum(dd.ring(16)))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.tile(x.mean(axis=0), (16, 1)), atol=1e-4)


@pytest.mark.always(2)
@EACH
def test_fast_mix_is_its_recursion_and_fast(graph):
    w = dd.metropolis(graph).toarray()
    lam = 1 - dd.spectral_gap(w)
    root = np.sqrt(1 - lam**2)
    eta = (1 - root) / (1 + root)
    x = old = new = np.random.default_rng(0).normal(size=(len(w), 2))
    for _ in range(30):
        new, old = (1 + eta) * w @ new - eta * old, new
    network = dd.Network.simulated(graph)
    y = dd.fast_mix(network, jnp.asarray(x), 30, lam)
    np.testing.assert_allclose(y, new, atol=1e-12)
    np.testing.assert_allclose(y.mean(axis=0), x.mean(axis=0), atol=1e-12)


@pytest.mark.slow
def test_gossip_on_a_mesh_equals_simulation():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("n",))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)))
    spectrum, lam = dd.laplacian_spectrum(GRAPHS["random"]), 0.9

    def both(network):
        def fun(x, _, key):
            return dd.chebyshev_gossip(network, x, 5, spectrum), dd.fast_mix(network, x, 5, lam)

        return jax.jit(network.parallel(fun))(network.place(x), network.place(x), 0)

    expected = both(dd.Network.simulated(GRAPHS["random"]))
    found = both(dd.Network.on_mesh(GRAPHS["random"], mesh, "n"))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


def test_bad_input_is_named():
    network = dd.Network.simulated(dd.ring(4))
    x = jnp.zeros((4, 2))
    cases = [
        (lambda: dd.chebyshev_gossip(network, x, -1, (1.0, 2.0)), "num_steps"),
        (lambda: dd.chebyshev_gossip(network, x, 2, (0.0, 2.0)), "spectrum"),
        (lambda: dd.fast_mix(network, x, 2, 1.0), "contraction"),
        (lambda: dd.laplacian_spectrum(nx.empty_graph(1)), "one node"),
        (lambda: dd.chi_2(nx.empty_graph(1)), "no edges"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
