"""Gossip while links change, against dense polynomials, loops and the potential of the proof."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from scipy.special import eval_chebyt

from jaxopt_ext import distributed as dd

N, STEPS = 10, 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3))
CHORDS = [(0, 4), (1, 6), (2, 7), (3, 9), (0, 6), (2, 5)]
GRAPH = nx.Graph([*dd.ring(N).edges, *CHORDS])
GRAPH = nx.relabel_nodes(GRAPH, {i: i for i in range(N)})
NETWORK = dd.Network.simulated(GRAPH)
SKELETON = dd.laplacian_spectrum(dd.ring(N))[0]
LARGEST = dd.laplacian_spectrum(GRAPH)[1]
SPECTRUM = (SKELETON / LARGEST, 1.0)


def laplacian(chords):
    matrix = np.zeros((N, N))
    for i, j in [*dd.ring(N).edges, *chords]:
        v = np.eye(N)[i] - np.eye(N)[j]
        matrix += np.outer(v, v)
    return matrix


def lost(rng, rounds):
    """Chords of each round; one is lost with probability one half, and none returns."""
    chords, left = list(rng.permutation(CHORDS)), []
    for _ in range(rounds):
        left.append(list(chords))
        if chords and rng.uniform() < 0.5:
            chords.pop()
    return left


def schedule(laplacians):
    return dd.laplacian_schedule(NETWORK, laplacians, LARGEST)[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_momentum_equals_a_dense_loop(dtype):
    matrices = [laplacian(chords) for chords in lost(np.random.default_rng(1), STEPS)]
    found = dd.accelerated_gossip(
        NETWORK, jnp.asarray(X, dtype), STEPS, SPECTRUM, schedule(matrices)
    )
    a, b = np.sqrt(LARGEST), np.sqrt(SKELETON)
    x = y = X
    for matrix in matrices:
        new = x - matrix @ x / LARGEST
        x = new + (a - b) / (a + b) * (new - y)
        y = new
    tolerance = 1e-12 if dtype == jnp.float64 else 2e-6
    assert found.dtype == dtype
    np.testing.assert_allclose(found, y, atol=tolerance)
    np.testing.assert_allclose(jnp.mean(found, 0), X.mean(0), atol=tolerance)


def test_restarts_are_polynomials_of_each_window():
    windows = [laplacian(CHORDS), laplacian(CHORDS[2:]), laplacian(CHORDS[:3])]
    matrices = [matrix for matrix in windows for _ in range(4)]
    gossip = dd.RestartedGossip(dd.ChebyshevGossip(SPECTRUM), 4)
    found = gossip(NETWORK, jnp.asarray(X), 10, schedule(matrices))
    low, high = SKELETON, LARGEST
    x, center = X, (high + low) / (high - low)
    for matrix, steps in zip(windows, (4, 4, 2), strict=True):
        values, vectors = np.linalg.eigh(matrix)
        reach = eval_chebyt(steps, center - 2 * values / (high - low)) / eval_chebyt(steps, center)
        x = vectors @ (reach[:, None] * (vectors.T @ x))
    np.testing.assert_allclose(found, x, atol=1e-12)
    np.testing.assert_allclose(jnp.mean(found, 0), X.mean(0), atol=1e-12)
    again = gossip(NETWORK, jnp.asarray(X), 4, schedule(matrices))
    again = gossip(NETWORK, again, 6, schedule(matrices), first=jnp.asarray(4))
    np.testing.assert_allclose(again, found, atol=1e-14)
    exact = dd.ChebyshevGossip((1.25, 1.25))  # on a complete graph of so equal weights
    everybody = dd.Network.simulated(dd.complete(5), np.full((5, 5), 0.25) - 0.25 * np.eye(5))
    mean = exact(everybody, jnp.asarray(X[:5]), 3)
    np.testing.assert_allclose(mean, np.tile(X[:5].mean(0), (5, 1)), atol=1e-12)


@pytest.mark.slow
def test_the_potential_never_grows_unless_links_return():
    sequences = [lost(np.random.default_rng(seed), STEPS) for seed in range(100)]
    back = [[CHORDS], [[]] * 5, [CHORDS] * (STEPS - 6)]
    sequences.append([chords for part in back for chords in part])
    matrices = np.array([[laplacian(c) for c in chords] for chords in sequences])
    tables = [schedule(rows) for rows in matrices]
    tables = jax.tree.map(lambda *rows: jnp.stack(rows), *tables)
    gossip = dd.NesterovGossip(SPECTRUM)

    def trace(weights):
        def one(state, k):
            descent = lambda x: x - NETWORK.mix(x, weights(k))
            return gossip.step(state, descent, k), state

        return jax.lax.scan(one, gossip.start(jnp.asarray(X)), jnp.arange(STEPS))[1]

    y, x = map(np.asarray, jax.jit(jax.vmap(trace))(tables))
    z = x + np.sqrt(LARGEST / SKELETON) * (x - y)
    energy = np.einsum("skid,skij,skjd->sk", y, matrices, y) / 2
    away = SKELETON / 2 * np.sum((z - X.mean(0)) ** 2, axis=(2, 3))
    rate = 1 - np.sqrt(SKELETON / LARGEST)
    potential = (energy + away) / rate ** np.arange(STEPS)
    ratio = potential[:, 1:] / potential[:, :-1]
    assert np.all(ratio[:100] < 1 + 1e-9)
    assert np.all(np.delete(ratio[100], 5) < 1 + 1e-9)
    assert ratio[100, 5] > 1.05  # where all links come back at once
    # What never grows is the potential, not the error.
    error = np.linalg.norm(y - X.mean(0), axis=(2, 3))
    assert np.all(error[:, -1] ** 2 * SKELETON / 2 < rate ** (STEPS - 1) * potential[:, 0])


@pytest.mark.slow
def test_nothing_crosses_the_bridge():
    n = 24
    graph, laplacians = dd.bridge_swap(n)
    rounds = len(laplacians)
    assert rounds >= n / 2 - 1
    for k, matrix in enumerate(laplacians):
        low, high = dd.laplacian_spectrum(matrix)
        assert high / low < 3 * n
        if k:
            change = (matrix != laplacians[k - 1]).toarray()
            # One bridge gives way to the next: all that changes has an end there.
            bridges = {2 if k == 1 else n - rounds + k - 1, n - rounds + k}
            assert set(np.argwhere(np.triu(change, 1))[:, 1]) == bridges
    network = dd.Network.simulated(graph)
    weights, largest = dd.laplacian_schedule(network, laplacians)
    token = jnp.eye(n)[:, 0]
    low = min(dd.laplacian_spectrum(matrix)[0] for matrix in laplacians)
    gossip = dd.NesterovGossip((low / largest, 1.0))

    @jax.jit
    def run(steps):
        def one(k, state):
            return gossip.step(state, lambda x: x - network.mix(x, weights(k)), k)

        return jax.lax.fori_loop(0, steps, one, gossip.start(token))[0]

    assert run(rounds)[1] == 0
    assert run(rounds)[0] != 0
    assert run(rounds + 1)[1] != 0  # the schedule begins anew


def test_optimizer_equals_a_dense_loop_and_finds_the_optimum():
    scales = RNG.uniform(0.5, 2, size=(N, 3))
    targets = RNG.normal(size=(N, 3))
    matrices = [laplacian(chords) for chords in lost(np.random.default_rng(2), 30)]
    weights = schedule(matrices)
    loss = lambda w, batch: 0.5 * jnp.sum(batch[0] * (w - batch[1]) ** 2)
    batch = jnp.asarray(scales), jnp.asarray(targets)

    def run(steps, rounds, gossip, schedule=None):
        algorithm = dd.AcceleratedDGD(loss, 0.5, 0.5, gossip, steps, schedule)
        return dd.run(algorithm, NETWORK, jnp.asarray(X), batch, rounds, progress=False).params

    found = run(3, 9, dd.PlainGossip(), weights)
    x = y = X
    for r in range(9):
        v = x - 0.5 * scales * (x - targets)
        for k in range(3):
            v = v - matrices[3 * r + k] @ v / LARGEST
        x = v + (1 - 0.5) / (1 + 0.5) * (v - y)
        y = v
    np.testing.assert_allclose(found, y, atol=1e-12)
    optimum = np.sum(scales * targets, 0) / np.sum(scales, 0)
    metropolis = dd.laplacian_spectrum(np.eye(N) - dd.metropolis(GRAPH))
    found = run(60, 60, dd.ChebyshevGossip(metropolis))
    np.testing.assert_allclose(found, np.tile(optimum, (N, 1)), atol=1e-9)


def test_bad_input_is_named():
    gossip = dd.NesterovGossip((0.1, 1.0))
    loss = lambda w, batch: jnp.sum(w)
    cases = [
        (lambda: dd.NesterovGossip((1.0, 0.5)), "spectrum must be"),
        (lambda: dd.ChebyshevGossip((0.0, 0.5)), "spectrum"),
        (lambda: dd.PlainGossip(0.0), "step_size"),
        (lambda: dd.RestartedGossip(gossip, 0), "period"),
        (lambda: dd.AcceleratedDGD(loss, 0.5, 0.5, gossip, 0), "inner_steps"),
        (lambda: dd.AcceleratedDGD(loss, 0.5, 3.0, gossip, 1), "strong_convexity must be"),
        (lambda: dd.laplacian_schedule(NETWORK, [np.eye(N)]), "no Laplacian"),
        (lambda: dd.laplacian_schedule(NETWORK, [laplacian(CHORDS)], 1.0), "lam_max"),
        (lambda: dd.bridge_swap(4), "n must be"),
        (lambda: dd.bridge_swap(9, 100), "rounds"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert dd.RestartedGossip.shortest_period((0.01, 1.0)) == 60
