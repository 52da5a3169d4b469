"""Asynchronous acceleration against a loop of matrix exponentials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from jaxopt_ext import distributed as dd
from jaxopt_ext.distributed import Kind

N, D = 6, 3
GRAPH = dd.erdos_renyi(N, 0.5, seed=2)
NETWORK = dd.Network.simulated(GRAPH)
RNG = np.random.default_rng(1)
BASES = np.linalg.qr(RNG.normal(size=(N, D, D)))[0]
H = BASES @ (np.array([1.0, 3.0, 10.0])[:, None] * BASES.transpose(0, 2, 1))
C = RNG.normal(size=(N, D))
OPTIMUM = np.linalg.solve(H.sum(0), C.sum(0))
SMOOTH, CONVEX = 10.0, 1.0
KEY = jax.random.key(0)


def loss(x, batch):
    return 0.5 * x @ batch[0] @ x - batch[1] @ x


def batch(dtype=jnp.float64):
    return jnp.asarray(H, dtype), jnp.asarray(C, dtype)


def dense(start, events, chi_1):
    """The paper's recursion, with the time of each node's last event."""
    nu = CONVEX / 2
    big = np.sqrt(SMOOTH / nu)
    eta, alpha, theta = 1 / (8 * big), 1 / (4 * big), big / 2
    flow = np.zeros((6, 6))
    flow[0, :2], flow[1, :2] = (-eta, eta), (eta, -eta)
    flow[2, 2:4] = -alpha, alpha
    flow[3, [1, 2, 4]] = -theta * nu, -theta, -theta
    flow[4, 4:], flow[5, 4:] = (-alpha, alpha), (eta, -eta)
    state, last = np.zeros((N, 6, D)), np.zeros(N)
    state[:, 0] = state[:, 1] = start
    for m in range(len(events)):
        i, j, time = int(events.i[m]), int(events.j[m]), float(events.time[m])
        for node in {i, j}:
            state[node] = expm(flow * (time - last[node])) @ state[node]
            last[node] = time
        if events.kind[m] == Kind.NODE:
            x, fast, _, slope, *_ = state[i]
            jump = H[i] @ x - C[i] - nu * x - slope
            state[i, 0] = x - jump / (4 * SMOOTH)
            state[i, 1] = fast - jump / (4 * np.sqrt(SMOOTH * nu))
            state[i, 3] = slope + (1 / (4 * big) + 1) * jump
        elif events.kind[m] == Kind.EDGE:
            message = state[i, 2] + state[i, 4] - state[j, 2] - state[j, 4]
            for node, sign in ((i, -1), (j, 1)):
                state[node, 4] += sign * 0.5 * message
                state[node, 5] += sign * 2 * chi_1 * big * message
    return state


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_equals_a_loop_of_exponentials(dtype):
    events, chi_1 = dd.dadao_events(KEY, GRAPH, 6.0)
    start = RNG.normal(size=(N, D))
    algorithm = dd.DADAO(loss, events.blocks(50), SMOOTH, CONVEX, chi_1)
    rounds = algorithm.events.time.shape[0]
    result = dd.run(
        algorithm, NETWORK, jnp.asarray(start, dtype), batch(dtype), rounds + 2, progress=False
    )
    expected = dense(start, jax.tree.map(np.asarray, events), chi_1)
    assert result.state.vectors.dtype == dtype
    np.testing.assert_array_equal(result.params, result.state.vectors[:, 0])
    tolerance = 1e-10 if dtype == jnp.float64 else 2e-4
    np.testing.assert_allclose(result.state.vectors, expected, rtol=tolerance, atol=tolerance)


GRAPHS = [dd.ring(N), dd.star(N)]


@pytest.mark.slow
def test_graphs_follow_each_other():
    graphs = GRAPHS
    events, chi_1 = dd.dadao_events(KEY, graphs, 40.0, dwell=4.0)
    known = {tuple(edge) for graph in graphs for edge in dd.edge_list(graph).tolist()}
    first = np.asarray(events.kind == Kind.EDGE)
    pairs = np.stack([events.i, events.j], 1)[first]
    assert {tuple(pair) for pair in pairs.tolist()} == known
    in_star = np.asarray(events.time)[first] % 8 >= 4
    assert np.all(pairs[in_star].min(axis=1) == 0)
    each = [dd.chi_1(dd.weighted_laplacian(g, dd.communication_rates(g))) for g in graphs]
    np.testing.assert_allclose(chi_1, max(each))
    assert np.all(np.diff(np.asarray(events.time)) >= 0)


@pytest.mark.slow
def test_finds_the_optimum_of_graphs_that_change():
    events, chi_1 = dd.dadao_events(KEY, GRAPHS, 400.0, dwell=4.0)
    algorithm = dd.DADAO(loss, events.blocks(-(-len(events) // 4)), SMOOTH, CONVEX, chi_1)
    network = dd.Network.clients(N)
    result = dd.run(algorithm, network, jnp.zeros((N, D)), batch(), 4, progress=False)
    np.testing.assert_allclose(result.params, np.tile(OPTIMUM, (N, 1)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_ring_of_ten(dtype):
    rng, n = np.random.default_rng(0), 10
    bases = np.linalg.qr(rng.normal(size=(n, n, n)))[0]
    matrices = bases @ (np.geomspace(1, 10, n)[:, None] * bases.transpose(0, 2, 1))
    linear = rng.normal(size=(n, n))
    optimum = np.linalg.solve(matrices.sum(0), linear.sum(0))
    events, chi_1 = dd.dadao_events(KEY, dd.ring(n), 600.0)
    algorithm = dd.DADAO(loss, events.blocks(len(events)), 10.0, 1.0, chi_1)
    data = jnp.asarray(matrices, dtype), jnp.asarray(linear, dtype)
    network = dd.Network.simulated(dd.ring(n))
    result = dd.run(algorithm, network, jnp.zeros((n, n), dtype), data, 1, progress=False)
    error = np.mean(np.sum((result.params - optimum) ** 2, axis=1))
    assert error < (1e-12 if dtype == jnp.float64 else 1e-9)


def test_rates_are_those_of_the_theory():
    for graph in (GRAPH, dd.ring(10), dd.complete(5)):
        rates = dd.communication_rates(graph)
        matrix = dd.weighted_laplacian(graph, rates)
        np.testing.assert_allclose(dd.chi_1(matrix) * dd.chi_2(matrix), 0.5)
        events, _ = dd.dadao_events(KEY, graph, 100.0)
        expected = 100 * np.sum(rates)
        talks = int(np.sum(np.asarray(events.kind) == Kind.EDGE))
        assert abs(talks - expected) < 3 * np.sqrt(expected)
    # On a star with rates r, lambda_2 is r and the resistance of an edge 1 / r: n - 1 in all.
    np.testing.assert_allclose(np.sum(dd.communication_rates(dd.star(7))), 6.0)


@pytest.mark.slow
def test_best_rates_of_a_barbell():
    pytest.importorskip("cvxpy")
    graph = dd.barbell(3)
    rates = dd.optimal_rates(graph, num_trials=4)
    matrix = dd.weighted_laplacian(graph, rates)
    np.testing.assert_allclose(dd.chi_1(matrix) * dd.chi_2(matrix), 0.5)
    assert np.sum(rates) < 0.9 * np.sum(dd.communication_rates(graph))
    # By symmetry three numbers describe the rates: the bridge, its neighbours, the far edges.
    edges = dd.edge_list(graph).tolist()
    kinds = [2 if e == [2, 3] else 1 if 2 in e or 3 in e else 0 for e in edges]
    grid = np.linspace(0.02, 3, 25)
    best = min(
        np.sum(dd.communication_rates(graph, w / w.sum()))
        for a in grid
        for b in grid
        for w in [np.array([a, b, 1.0])[kinds]]
    )
    assert np.sum(rates) < 1.03 * best


def test_running_average_is_the_mean_of_the_rounds():
    algorithm = dd.GradientTracking(loss, 0.02)
    start, data = jnp.asarray(RNG.normal(size=(N, D))), batch()
    options = {"record_every": 1, "progress": False, "metric": lambda x: x}
    rounds = np.asarray(dd.run(algorithm, NETWORK, start, data, 7, **options).history)
    average = dd.RunningAverage(algorithm, 2)
    means = np.asarray(dd.run(average, NETWORK, start, data, 7, **options).history)
    np.testing.assert_allclose(means[-1], rounds[2:].mean(0), atol=1e-13)
    np.testing.assert_allclose(means[1], rounds[1], atol=1e-13)
    bits = [a.bits_per_round(start, NETWORK) for a in (average, algorithm)]
    assert bits[0] == bits[1] > 0


def test_bad_input_is_named():
    events, chi_1 = dd.dadao_events(KEY, GRAPH, 1.0)
    blocks = events.blocks(10)
    cases = [
        (lambda: dd.DADAO(loss, blocks, 1.0, 0.0, chi_1), "strong_convexity"),
        (lambda: dd.DADAO(loss, blocks, 1.0, 2.0, chi_1), "exceeds"),
        (lambda: dd.DADAO(loss, blocks, 1.0, 0.1, -1.0), "chi_1"),
        (lambda: dd.DADAO(loss, events, 1.0, 0.1, 1.0), "blocks"),
        (lambda: dd.communication_rates(GRAPH, np.ones(GRAPH.number_of_edges())), "sum to one"),
        (lambda: dd.communication_rates(dd.path(3), [1.0, 0.0]), "join all"),
        (lambda: dd.dadao_events(KEY, [GRAPH, dd.ring(4)], 1.0), "nodes"),
        (lambda: dd.dadao_events(KEY, GRAPH, 0.0), "horizon"),
        (lambda: dd.RunningAverage(dd.EXTRA(loss, 0.1), -1), "burn_in"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    # One message to the other end in each meeting.
    algorithm = dd.DADAO(loss, events.blocks(len(events)), 1.0, 0.1, chi_1)
    met = np.asarray(events.kind) == Kind.EDGE
    ends = np.concatenate([np.asarray(events.i)[met], np.asarray(events.j)[met]])
    params = jnp.zeros((N, D))
    assert algorithm.bits_per_round(params, NETWORK) == np.bincount(ends).max() * D * 64
