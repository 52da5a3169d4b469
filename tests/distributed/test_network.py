"""Graphs, mixing matrices, schedules and networks against networkx and dense algebra."""

import functools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from aot import topology, usual_program
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
    "tree": dd.binary_tree(7),
    "barbell": dd.barbell(3, 2),
    "regular": dd.random_regular(10, 3, seed=1),
    "geometric": dd.random_geometric(12, 0.4),
}
EACH = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())


def test_sizes_and_degrees():
    assert dd.torus(4, 4).number_of_edges() == 32
    assert sorted(dict(dd.grid(3, 4).degree).values()) == 4 * [2] + 6 * [3] + 2 * [4]
    assert sorted(dd.grid(3, 4)[5]) == [1, 4, 6, 9]
    assert dict(dd.hypercube(3).degree) == dict.fromkeys(range(8), 3)
    assert sorted(dd.exponential(8).neighbors(0)) == [1, 2, 4, 6, 7]
    assert set(dict(dd.torus(3, 4).degree).values()) == {4}
    assert nx.is_connected(GRAPHS["random"])
    assert set(dict(GRAPHS["regular"].degree).values()) == {3}
    assert nx.is_tree(GRAPHS["tree"])
    assert nx.diameter(dd.binary_tree(15)) == 6
    assert nx.diameter(GRAPHS["barbell"]) == 5
    edges = dd.edge_list(GRAPHS["torus"]).tolist()
    assert edges == sorted([min(e), max(e)] for e in GRAPHS["torus"].edges)


@pytest.mark.always(8)
@EACH
@pytest.mark.parametrize("weights", [dd.metropolis, dd.max_degree, dd.laplacian, dd.best_constant])
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


@pytest.mark.always(4)
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
    assert network.max_degree == adjacency.sum(axis=1).max()
    # What is the same at all nodes stays so, to the last bit.
    same = jnp.broadcast_to(jnp.asarray(x[:1], jnp.float32), x.shape)
    np.testing.assert_array_equal(network.mix(same), same)


MORE = {
    "complete8": dd.complete(8),
    "star8": dd.star(8),
    "random8": dd.erdos_renyi(8, 0.4, seed=3),
}
X = np.random.default_rng(0).normal(size=(8, 3))
WEIGHTS = np.array([0.0, 1, 0, 2, 1, 1, 0.5, 0])
ORDER = np.array([3, 3, 0, 7, 5, 1, 2, 6])  # two nodes get the same, and 4's goes nowhere
# Sums over devices have another order, and normal draws are rounded as the compiler likes.
CLOSE = {"mean", "weighted", "masked", "draws", "noisy", "received"}


def everything(network, x, _, key):
    """Each method of a network on a graph of eight nodes."""
    around, mask = network.neighbors(x)
    numbers, _ = network.neighbor_table()
    draws = jax.vmap(jax.random.normal)(network.keys(key))
    draw = jax.vmap(jax.vmap(jax.random.uniform))
    first = jnp.arange(8) % 3  # traced, so that no index is known to the compiler
    i, j = network.pick(network.local(first), 4), network.pick(network.local(first), 2)
    matching = dd.random_matching(network, key)
    parts = jnp.broadcast_to(x[:, :1, None], (*x.shape[:1], 2, 16)) + jnp.arange(16.0)
    return {
        "mix": network.mix(x),
        "complex": network.mix(x + 1j * x[:, ::-1]),
        "single": network.mix(x.astype(jnp.float32)),
        "lossy": network.mix(x, dd.lose_edges(network, key, 0.5)),
        "matched": network.mix(x, matching),
        "noisy": network.mix(x, channel=dd.GaussianNoise(0.3), key=key),
        "received": jnp.where(
            mask[..., None], dd.receive(network, x, dd.GaussianNoise(0.3), key)[0], 0
        ),
        "around": around,
        "numbers": numbers,
        "edges": jnp.where(mask, network.edge_table(), -1),
        "edge_draws": jnp.where(mask, draw(network.edge_keys(key)), 0),
        "link_draws": jnp.where(mask, draw(network.edge_keys(key, directed=True)), 0),
        "largest": network.neighbor_reduce(largest, x, chunk=2),
        "sum": network.neighbor_sum(x),
        "index": network.index(),
        "degrees": network.degrees(),
        "draws": draws,
        **server(network, x, parts, i, j),
    }


def server(network, x, parts, i, j):
    """What clients can do too."""
    weights = network.local(jnp.asarray(WEIGHTS))
    hurt = x.at[:, 0].set(jnp.where(weights == 0, jnp.nan, x[:, 0]))
    return {
        "mean": network.mean(x),
        "weighted": network.mean(hurt, weights),
        "masked": network.mean(x, weights != 0),
        "first": jnp.broadcast_to(network.gather(x)[:1], x.shape),
        "exchange": network.exchange(x, i, j),
        "flags": network.exchange(x > 0, i, j),
        "put": network.put(x, j, jnp.arange(3.0)),
        "turned": network.all_to_all(parts, 1, 0),
        "permuted": network.permute(x, ORDER + 0 * i),
        "permuted parts": network.permute(parts > 3, ORDER + 0 * i),
        "squared": jnp.broadcast_to(network.at(j, lambda row: row**2, x), x.shape),
    }


def largest(own, around, mask):
    return jnp.maximum(
        own, jnp.max(jnp.where(mask[:, None], around, -jnp.inf), axis=0, initial=-jnp.inf)
    )


def outputs(network, fun):
    run = jax.jit(network.parallel(lambda x, b, key: fun(network, x, b, key)))
    return run(network.place(jnp.asarray(X)), network.place(jnp.asarray(X)), jax.random.key(1))


@functools.cache
def simulated_outputs(name):
    return outputs(dd.Network.simulated({**GRAPHS, **MORE}[name]), everything)


def compare(expected, found):
    for name in expected:
        tolerance = 1e-14 if name in CLOSE else 0
        # Where all weights are one constant, on a ring, the last bit of a float32 may differ.
        tolerance = 3e-7 if name == "single" else tolerance
        np.testing.assert_allclose(
            expected[name], found[name], rtol=0, atol=tolerance, err_msg=name
        )


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "devices"),
    [("random8", 8)]
    + [
        pytest.param(name, devices, marks=SLOW)
        for name in ("ring", "hypercube", "complete8", "star8", "random8")
        for devices in (1, 2, 4, 8)
    ],
)
def test_every_method_on_a_mesh(name, devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("n",))
    meshed = dd.Network.on_mesh({**GRAPHS, **MORE}[name], mesh, "n")
    compare(simulated_outputs(name), outputs(meshed, everything))


def test_every_method_by_hand():
    graph, found = MORE["random8"], simulated_outputs("random8")
    edges = dd.edge_list(graph)
    around = {i: sorted(graph.neighbors(i)) for i in range(8)}
    np.testing.assert_allclose(found["complex"], dd.metropolis(graph) @ (X + 1j * X[:, ::-1]))
    for i in range(8):
        real = found["edges"][i] >= 0
        assert sorted(found["numbers"][i][real].tolist()) == around[i]
        np.testing.assert_array_equal(found["around"][i], X[found["numbers"][i]])
        for j, e in zip(found["numbers"][i][real], found["edges"][i][real], strict=True):
            assert set(edges[e].tolist()) == {i, int(j)}
        np.testing.assert_array_equal(found["largest"][i], X[[i, *around[i]]].max(axis=0))
    # An edge draws once, its two directions each for itself.
    for kind, count in (("edge_draws", len(edges)), ("link_draws", 2 * len(edges))):
        assert len(np.unique(found[kind])) == count + 1
    assert len(np.unique(found["noisy"] - found["mix"])) == X.size
    # Loss and matchings keep the mean; each node meets one other at most.
    for kind in ("lossy", "matched"):
        np.testing.assert_allclose(found[kind].mean(axis=0), X.mean(axis=0))
        assert not np.allclose(found[kind], X)
    partner = [
        np.nonzero(np.all(np.isclose(found["matched"], row), axis=1))[0] for row in found["matched"]
    ]
    assert {len(p) for p in partner} <= {1, 2}
    # Of the nodes left alone no two are neighbours.
    alone = [i for i in range(8) if len(partner[i]) == 1]
    assert not graph.subgraph(alone).edges
    on = WEIGHTS > 0
    weighted = WEIGHTS[on] @ X[on] / WEIGHTS.sum()
    np.testing.assert_allclose(found["weighted"], np.tile(weighted, (8, 1)))
    np.testing.assert_allclose(found["masked"], np.tile(X[on].mean(axis=0), (8, 1)))
    swapped = X.copy()
    swapped[[1, 2]] = X[[2, 1]]
    np.testing.assert_array_equal(found["exchange"], swapped)
    np.testing.assert_array_equal(found["flags"], swapped > 0)
    put = X.copy()
    put[2] = [0, 1, 2]
    np.testing.assert_array_equal(found["put"], put)
    np.testing.assert_array_equal(found["squared"], np.tile(X[2] ** 2, (8, 1)))
    parts = X[:, :1, None] + np.zeros((8, 2, 1)) + np.arange(16.0)
    turned = np.stack([np.concatenate([p[:, 2 * j : 2 * j + 2] for p in parts]) for j in range(8)])
    np.testing.assert_array_equal(found["turned"], turned)
    np.testing.assert_array_equal(found["permuted"], X[ORDER])
    np.testing.assert_array_equal(found["permuted parts"], (parts > 3)[ORDER])


@pytest.mark.always(1)
@pytest.mark.parametrize("devices", [4, 1, 8])
def test_clients_know_the_server_only(devices):
    def fun(network, x, _, key):
        first = network.local(jnp.arange(8) % 3)
        parts = jnp.broadcast_to(x[:, :1, None], (*x.shape[:1], 2, 16)) + jnp.arange(16.0)
        return server(network, x, parts, network.pick(first, 4), network.pick(first, 2))

    expected = simulated_outputs("random8")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("n",))
    clients = dd.Network.clients(8, mesh, "n") if devices > 1 else dd.Network.clients(8)
    found = outputs(clients, fun)
    compare({name: expected[name] for name in found}, found)
    assert clients.max_degree == 1
    for call in (clients.mix, clients.neighbors, clients.neighbor_sum):
        with pytest.raises(TypeError, match="clients have no neighbours"):
            call(jnp.zeros((8, 3)))
    for call in (clients.degrees, clients.neighbor_table, clients.edge_table):
        with pytest.raises(TypeError, match="clients have no neighbours"):
            call()


@pytest.mark.slow
def test_the_check_of_shard_map_may_be_on():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("n",))
    P = jax.sharding.PartitionSpec
    network = dd.Network.on_mesh(MORE["random8"], mesh, "n")
    key = jax.random.key(1)

    def fun(x):
        return everything(network, x, None, key)

    checked = jax.shard_map(fun, mesh=mesh, in_specs=P("n"), out_specs=P("n"))
    found = jax.jit(checked)(jnp.asarray(X))
    compare(simulated_outputs("random8"), found)


def test_no_message_is_held_longer_than_needed():
    network = dd.Network.simulated(dd.random_regular(512, 17))
    x = jax.ShapeDtypeStruct((512, 10_000), jnp.float32)
    model = 4 * 512 * 10_000
    temporary = lambda fun: usual_program(fun, x).memory_analysis().temp_size_in_bytes
    assert temporary(lambda x: network.mix(x)) < model
    assert temporary(lambda x: network.neighbor_sum(x)) < model
    reduced = temporary(lambda x: network.neighbor_reduce(largest, x, chunk=100))
    assert reduced < 4 * model


def test_mixing_on_a_pod_holds_no_message():
    chips = topology("v5e:4x4").devices
    mesh = jax.sharding.Mesh(np.array(chips), ("n",))
    network = dd.Network.on_mesh(dd.complete(16), mesh, "n")
    nodes = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("n"))
    x = jax.ShapeDtypeStruct((16, 100_000), jnp.float32, sharding=nodes)
    mix = network.parallel(lambda x, _, key: network.mix(x))
    compiled = jax.jit(lambda x: mix(x, x, 0)).lower(x).compile()
    assert dd.collective_bytes(compiled) == {"collective-permute": 15 * 400_000}
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 400_000


def test_a_permutation_on_a_pod_sends_each_value_twice():
    chips = topology("v5e:4x4").devices
    mesh = jax.sharding.Mesh(np.array(chips), ("n",))
    network = dd.Network.clients(16, mesh, "n")
    spec = jax.sharding.PartitionSpec
    place = lambda where: jax.sharding.NamedSharding(mesh, where)
    x = jax.ShapeDtypeStruct((16, 100_000), jnp.float32, sharding=place(spec("n")))
    order = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=place(spec()))
    permute = network.parallel(lambda x, _, order: network.permute(x, order))
    compiled = jax.jit(lambda x, order: permute(x, x, order)).lower(x, order).compile()
    assert dd.collective_bytes(compiled) == {"all-to-all": 2 * 400_000}


def test_large_sparse_networks():
    graph = dd.random_regular(4096, 4)
    network = dd.Network.simulated(graph)
    assert network.tables.neighbors.shape == (4096, 4)
    assert dd.metropolis(graph).nnz == 5 * 4096
    # Of a random regular graph the gap is near that of the infinite tree.
    assert 0.9 * (1 - 2 * np.sqrt(3) / 5 - 0.2) < dd.spectral_gap(dd.metropolis(graph))


@pytest.mark.always(1)
@pytest.mark.parametrize("devices", [4, 1, 8])
def test_time_varying_weights_are_dense_products(devices):
    graph = MORE["random8"]
    rng = np.random.default_rng(2)
    support = nx.to_numpy_array(graph, nodelist=range(8)) + np.eye(8)
    # Neither symmetric nor stochastic, some edges absent, some nodes that keep nothing.
    matrices = rng.normal(size=(3, 8, 8)) * support * (rng.uniform(size=(3, 8, 8)) < 0.7)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("n",))
    network = dd.Network.on_mesh(graph, mesh, "n") if devices > 1 else dd.Network.simulated(graph)
    schedule = dd.TimeVarying.of(network, matrices)
    assert schedule.period == 3
    rounds = jax.jit(network.parallel(lambda x, _, r: network.mix(x, schedule(r))))
    x = network.place(jnp.asarray(X))
    for r in range(5):
        np.testing.assert_allclose(rounds(x, x, r), matrices[r % 3] @ X, atol=1e-12)


def test_absent_edges_bring_no_nan():
    network = dd.Network.simulated(dd.path(3))
    weights = network.weights(np.diag([1.0, 1, 1]))
    x = jnp.asarray([[1.0], [jnp.nan], [2.0]])
    np.testing.assert_array_equal(network.mix(x, weights), x)


def test_one_peer_exponential_graph_reaches_the_mean():
    network = dd.Network.simulated(dd.exponential(16))
    schedule = dd.one_peer_exponential(network)
    x = start = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)))
    for r in range(4):
        assert not np.allclose(x, start.mean(axis=0), atol=1e-3)
        x = network.mix(x, schedule(r))
    np.testing.assert_allclose(x, np.tile(start.mean(axis=0), (16, 1)), atol=1e-12)
    assert dd.b_connectivity(network, schedule) == 4  # from round 1 it is long to the next ring
    later = dd.TimeVarying(schedule.own[1:], schedule.table[1:])
    with pytest.raises(ValueError, match="disconnected"):
        dd.b_connectivity(network, later)


def test_joint_connectivity():
    network = dd.Network.simulated(dd.path(4))

    def matrix(*edges):
        w = np.eye(4)
        for i, j in edges:
            w[[i, j], [i, j]] -= 0.5
            w[[i, j], [j, i]] += 0.5
        return w

    schedule = dd.TimeVarying.of(
        network, [matrix((0, 1)), matrix((1, 2)), matrix((2, 3)), np.eye(4)]
    )
    assert dd.b_connectivity(network, schedule) == 4
    schedule = dd.TimeVarying.of(network, [matrix((0, 1), (2, 3)), matrix((1, 2))])
    assert dd.b_connectivity(network, schedule) == 2


def test_row_stochastic_neighbourhoods():
    graph = dd.star(5)
    w = dd.closed_neighborhood(graph)
    np.testing.assert_allclose(w.sum(axis=1), 1)
    with pytest.raises(ValueError, match=r"doubly stochastic|symmetric"):
        dd.Network.simulated(graph, w)
    network = dd.Network.simulated(graph)
    x = np.random.default_rng(0).normal(size=(5, 2))
    mixed = network.mix(jnp.asarray(x), network.weights(w))
    np.testing.assert_allclose(mixed, w @ x, atol=1e-12)
    with pytest.raises(ValueError, match="only 13 lie on edges"):
        network.weights(np.ones((5, 5)))


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
        (lambda: dd.random_geometric(30, 0.01), "no connected graph"),
        (lambda: dd.random_regular(5, 3), "no graph of 5 nodes"),
        (lambda: dd.random_regular(6, 1), "no connected graph"),
        (lambda: dd.barbell(1), "clique"),
        (lambda: dd.weighted_laplacian(ring, np.ones(3)), r"shape \(4,\)"),
        (lambda: dd.weighted_laplacian(ring, -np.ones(4)), "non-negative"),
        (lambda: dd.Network.clients(4, mesh, "n"), "do not spread evenly over 3"),
        (lambda: dd.Network.clients(3, mesh), "axes"),
        (lambda: dd.Network.clients(0), "n must be"),
        (lambda: dd.one_peer_exponential(dd.Network.simulated(dd.ring(6))), "power of two"),
        (lambda: dd.GaussianNoise(-1.0), "scale"),
        (
            lambda: dd.Network.simulated(ring).mix(jnp.zeros(4), channel=dd.GaussianNoise(1.0)),
            "draws from a key",
        ),
        (lambda: dd.DelayedLinks(-1), "max_delay"),
        (lambda: dd.Network.clients(3).all_to_all(jnp.zeros((3, 4))), "do not divide"),
        (lambda: dd.Network.clients(3).permute(jnp.zeros((3, 4)), jnp.zeros(2, int)), r"\(3,\)"),
        (lambda: dd.GradientTracking(lambda w, b: 0.0, 0.0), "step_size must be positive"),
        (lambda: dd.EXTRA(lambda w, b: 0.0, -1.0), "step_size must be positive"),
        (lambda: dd.EXTRA(lambda w, b: 0.0, np.nan), "step_size must be positive"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    network = dd.Network.simulated(ring)
    algorithm = dd.GradientTracking(lambda w, b: jnp.sum(w * b), 0.1)
    with pytest.raises(ValueError, match=r"params must be stacked over 4 nodes.*replicate"):
        dd.run(algorithm, network, jnp.zeros(3), jnp.zeros((4, 3)), 1)
    said = str(dd.run(algorithm, network, jnp.zeros((4, 3)), jnp.ones((4, 3)), 2)).splitlines()
    assert said == ["2 rounds", "distance of the nodes from their mean 0"]
    with pytest.raises(ValueError, match="batches must be stacked"):
        dd.run(algorithm, network, jnp.zeros((4, 3)), jnp.zeros((3, 3)), 1)
    with pytest.raises(ValueError, match="num_rounds"):
        dd.run(algorithm, network, jnp.zeros((4, 3)), jnp.zeros((4, 3)), -1)


def test_means_of_long_rows():
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(4, 5, 1000)) + 1e3
    weights = np.array([0.5, 0.0, 2.0, 1.0])
    network = dd.Network.clients(4)
    cases = (rows, 1e-12), (np.float32(rows), 1e-6), (rows + 1j * rows[::-1], 1e-12)
    for x, rtol in cases:
        plain = network.mean(jnp.asarray(x))
        assert plain.dtype == x.dtype
        np.testing.assert_allclose(plain, np.broadcast_to(x.mean(axis=0), x.shape), rtol=rtol)
        gone = jnp.asarray(x).at[1].set(jnp.nan)
        found = network.mean(gone, jnp.asarray(weights))[3]
        np.testing.assert_allclose(found, np.tensordot(weights, x, 1) / weights.sum(), rtol=rtol)
    assert np.all(network.mean(jnp.ones((4, 5000), int)) == 1)
