"""Walks against their kernels, runs against plain loops, covariances against other formulas."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
import scipy.linalg

from jaxopt_ext import distributed as dd

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N = 6
GRAPH = dd.erdos_renyi(N, 0.5, seed=2)
TARGET = RNG.uniform(0.5, 2, N)
TARGET /= TARGET.sum()
CHAIN = dd.metropolis_hastings(GRAPH, TARGET)


def metropolis(graph, target):
    matrix = np.zeros((len(graph),) * 2)
    for i in graph:
        for j in graph.neighbors(i):
            ratio = target[j] / target[i] / graph.degree[j]
            matrix[i, j] = min(1 / graph.degree[i], ratio)
        matrix[i, i] = 1 - matrix[i].sum()
    return matrix


def test_chains_are_their_matrices():
    expected = metropolis(GRAPH, TARGET)
    np.testing.assert_allclose(CHAIN.matrix(), expected, atol=1e-12)
    slower = CHAIN.lazy(0.25).matrix()
    np.testing.assert_allclose(slower, 0.25 * np.eye(N) + 0.75 * expected, atol=1e-12)
    adjacency = nx.to_numpy_array(GRAPH, nodelist=range(N))
    degrees = adjacency.sum(1)
    simple = dd.simple_random_walk(GRAPH)
    np.testing.assert_allclose(simple.matrix(), adjacency / degrees[:, None], atol=1e-12)
    np.testing.assert_allclose(simple.target, degrees / degrees.sum(), atol=1e-12)


@pytest.mark.slow
def test_kernel_on_the_karate_club():
    graph = nx.karate_club_graph()
    target = RNG.uniform(0.5, 2, len(graph))
    walk = dd.SelfRepellentWalk(dd.metropolis_hastings(graph, target), 3.0)
    matrix, target = metropolis(graph, target), target / target.sum()
    visits = RNG.dirichlet(np.full(len(graph), 0.3), size=len(graph)) + 1e-12
    logits = jax.vmap(walk.logits)(jnp.arange(len(graph)), jnp.asarray(visits))
    for i in range(len(graph)):
        expected = matrix[i] * (visits[i] / target) ** -3.0
        found = np.zeros(len(graph))
        np.add.at(found, np.asarray(walk.chain.neighbors[i]), jax.nn.softmax(logits[i]))
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-10)


def walk_many(walk, runs, steps):
    def one(key):
        start, key = jax.random.split(key)
        state = walk.init(jax.random.choice(start, walk.size, p=walk.chain.target))

        def step(state, key):
            state = walk.step(state, key)
            return state, (state.previous, state.node, state.visits)

        return jax.lax.scan(step, state, jax.random.split(key, steps))[1]

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, runs))


def test_without_repulsion_it_is_the_chain():
    runs, steps = 500, 100
    walk = dd.SelfRepellentWalk(CHAIN, 0.0, 0.7)
    previous, node, visits = map(np.asarray, walk_many(walk, runs, steps))
    np.testing.assert_array_equal(previous[:, 1:], node[:, :-1])
    counts = np.zeros((N, N))
    np.add.at(counts, (previous, node), 1)
    matrix = CHAIN.matrix()
    total = counts.sum(1, keepdims=True)
    spread = np.sqrt(total * matrix * (1 - matrix))
    assert np.all(np.abs(counts - total * matrix) <= 5 * spread + 1e-9)
    # Starts are drawn from the target, and so is each node.
    last = np.bincount(node[:, -1], minlength=N) / runs
    assert np.all(np.abs(last - TARGET) < 5 * np.sqrt(TARGET / runs))
    x = np.full(N, 1 / N)
    for m in range(steps):
        x = x + (m + 2) ** -0.7 * (np.eye(N)[node[0, m]] - x)
    np.testing.assert_allclose(visits[0, -1], x, atol=1e-12)


@pytest.mark.slow
def test_repulsion_makes_visits_even():
    spread = []
    for alpha in (0.0, 4.0):
        walk = dd.SelfRepellentWalk(CHAIN, alpha, 0.8)
        visits = np.asarray(walk_many(walk, 400, 3000)[2][:, -1])
        np.testing.assert_allclose(visits.mean(0), TARGET, atol=0.02)
        found = np.sum(np.var(visits, axis=0)) * 3001**0.8
        theory = np.trace(dd.visit_covariance(CHAIN.matrix(), TARGET, alpha, 0.8))
        np.testing.assert_allclose(found, theory, rtol=0.2)
        spread.append(found)
    assert spread[1] < spread[0] / 3


@pytest.mark.slow
def test_other_walks():
    walk = dd.NonBacktrackingWalk(dd.barbell(3, 1))
    previous, node, _ = map(np.asarray, walk_many(walk, 40, 100))
    assert np.all(previous[:, :-1] != node[:, 1:])  # no node of degree one
    degrees = np.array([3 - (i in (0, 1, 3, 5, 6)) for i in range(7)])
    np.testing.assert_allclose(
        np.bincount(node.reshape(-1)) / node.size, degrees / degrees.sum(), atol=0.03
    )
    end = dd.NonBacktrackingWalk(dd.path(2))
    assert int(end.step(end.step(end.init(0), KEY), KEY).node) == 0
    sampling = dd.IndependentSampling(TARGET)
    draw = jax.vmap(lambda key: sampling.step(sampling.init(), key).node)
    counts = np.bincount(draw(jax.random.split(KEY, 4000)), minlength=N)
    assert np.all(np.abs(counts - 4000 * TARGET) < 5 * np.sqrt(4000 * TARGET))


def loss(x, batch):
    return 0.5 * jnp.sum(batch[0] * (x - batch[1]) ** 2)


@pytest.mark.parametrize("heavy", [False, True], ids=["plain", "heavy ball"])
def test_equals_a_plain_loop(heavy):
    scales, targets = RNG.uniform(0.5, 2, (N, 3)), RNG.normal(size=(N, 3))
    method = dd.TokenHeavyBall if heavy else dd.TokenSGD
    algorithm = method(loss, dd.SelfRepellentWalk(CHAIN, 2.0), 0.8, 0.5)
    network, start = dd.Network.simulated(GRAPH), jnp.ones((N, 3))
    data = jnp.asarray(scales), jnp.asarray(targets)
    result = dd.run(
        algorithm,
        network,
        start,
        data,
        40,
        state_metric=lambda state: (state.walk.node[0], state.params),
        record_every=1,
        progress=False,
    )
    nodes, params = map(np.asarray, result.history)
    x, momentum = np.ones(3), np.zeros(3)
    for m in range(40):
        gradient = scales[nodes[m]] * (x - targets[nodes[m]])
        size = 0.5 * (m + 2) ** -0.8
        if heavy:
            x, momentum = x - size * momentum, momentum + size * (gradient - momentum)
        else:
            x = x - size * gradient
        np.testing.assert_allclose(params[m], np.tile(x, (N, 1)), atol=1e-12)
    assert len(set(nodes.tolist())) > 3
    steps = zip(nodes[:-1].tolist(), nodes[1:].tolist(), strict=True)
    assert all(i == j or GRAPH.has_edge(i, j) for i, j in steps)
    # A function gets the network's own chain.
    chain = dd.metropolis_hastings(GRAPH)
    seen = []
    method(loss, lambda own: seen.append(own) or dd.SelfRepellentWalk(own, 0.0)).init(
        start, data, network, KEY
    )
    np.testing.assert_allclose(seen[0].matrix(), chain.matrix(), atol=1e-12)
    np.testing.assert_allclose(seen[0].target, chain.target, atol=1e-12)
    bits = algorithm.bits_per_round(start, network)
    assert bits == (1 + heavy) * 3 * 64 + 32 * network.max_degree
    data = jax.tree.map(lambda a: a[:4], data)
    with pytest.raises(ValueError, match="a walk on 6 nodes"):
        dd.run(algorithm, dd.Network.simulated(dd.ring(4)), start[:4], data, 1, progress=False)


def long_run_covariance(matrix, target, values):
    """Of values at the nodes along the chain, by the fundamental matrix."""
    centred = values - target @ values
    ones = np.ones((len(target), 1)) * target
    fundamental = np.linalg.inv(np.eye(len(target)) - matrix + ones)
    weighted = centred * target[:, None]
    sums = weighted.T @ fundamental @ centred
    return sums + sums.T - weighted.T @ centred


@pytest.mark.always(1)
@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("exponent", [0.8, 1.0])
def test_covariance_of_visits(alpha, exponent):
    matrix = CHAIN.matrix()
    drift = -(alpha * matrix.T + (alpha + 1) * np.eye(N)) + 0.5 * (exponent == 1) * np.eye(N)
    noise = long_run_covariance(matrix, TARGET, np.eye(N))
    expected = scipy.linalg.solve_continuous_lyapunov(drift, -noise)
    found = dd.visit_covariance(matrix, TARGET, alpha, exponent)
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("a", "b"), [(0.8, 0.9), (0.8, 1.0), (0.9, 0.6), (1.0, 0.6), (0.7, 0.7), (1.0, 1.0)]
)
def test_covariance_of_the_iterates(a, b):
    matrix, alpha, d = CHAIN.matrix(), 3.0, 2
    field = RNG.normal(size=(N, d))
    field -= TARGET @ field
    jacobian = -np.array([[1.5, 0.3], [-0.2, 0.9]])
    shift = 0.5 * (b == 1)
    # The derivative of x -> stationary law, by differences.
    kernel = lambda x: matrix * (x / TARGET) ** -alpha

    def stationary(x):
        weights = kernel(x)
        flow = TARGET * (x / TARGET) ** -alpha * weights.sum(1)
        return flow / flow.sum()

    step = 1e-6
    slope = np.stack(
        [
            (stationary(TARGET + step * e) - stationary(TARGET - step * e)) / (2 * step)
            for e in np.eye(N)
        ],
        axis=1,
    )
    both = long_run_covariance(matrix, TARGET, np.concatenate([field, np.eye(N)], axis=1))
    cross, visits = field.T @ slope, slope - np.eye(N)
    if a < b:  # x is at rest, and its noise comes on top
        reduce = np.concatenate([np.eye(d), -cross @ np.linalg.inv(visits)], axis=1)
        noise, drift = reduce @ both @ reduce.T, jacobian
    elif a > b:
        noise, drift = both[:d, :d], jacobian
    else:
        noise, drift = both, np.block([[jacobian, cross], [np.zeros((N, d)), visits]])
    system = drift + shift * np.eye(len(drift))
    whole = np.kron(system, np.eye(len(system))) + np.kron(np.eye(len(system)), system)
    expected = np.linalg.solve(whole, -noise.reshape(-1)).reshape(noise.shape)[:d, :d]
    found = dd.asymptotic_covariance(matrix, TARGET, field, jacobian, alpha, a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_bad_input_is_named():
    walk = dd.SelfRepellentWalk(CHAIN, 1.0)
    field, jacobian = np.zeros((N, 1)), -np.eye(1)
    matrix = CHAIN.matrix()
    cases = [
        (lambda: dd.SelfRepellentWalk(CHAIN, -1.0), "alpha"),
        (lambda: dd.SelfRepellentWalk(CHAIN, 1.0, 0.5), "exponent"),
        (lambda: dd.TokenSGD(loss, walk, 1.1), "exponent"),
        (lambda: dd.TokenSGD(loss, walk, 1.0, 0.0), "scale"),
        (lambda: dd.metropolis_hastings(nx.Graph([(0, 1), (2, 3)])), "disconnected"),
        (lambda: dd.metropolis_hastings(GRAPH, np.ones(3)), "target must have"),
        (lambda: dd.Chain.of(matrix, np.full(N, 1 / N)), "reversible"),
        (lambda: dd.Chain.of(np.eye(2), np.full(2, 0.5)), "reach all"),
        (lambda: CHAIN.lazy(1.0), "stay"),
        (lambda: dd.visit_covariance(matrix, TARGET, 1.0, 0.4), "exponent"),
        (
            lambda: dd.asymptotic_covariance(matrix, TARGET, field, jacobian / 4, 1.0, 0.8, 1.0),
            "stable",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
