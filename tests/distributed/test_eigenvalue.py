"""Eigenvalues by nodes against dense loops that know how old each message is."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

from jaxopt_ext import distributed as dd

RNG = np.random.default_rng(0)
SIZE, NODES = 23, 5
MATRIX = np.diag(RNG.uniform(2, 4, SIZE)) - np.eye(SIZE, k=1) - np.eye(SIZE, k=-1)
MATRIX[0, 9] = MATRIX[9, 0] = -0.5  # blocks 0 and 1 or 2 meet again
PARTS = dd.partition(MATRIX, NODES)
NETWORK = dd.Network.simulated(PARTS.graph)
VALUES = np.linalg.eigvalsh(MATRIX)
START = RNG.normal(size=SIZE)


def test_partition_keeps_the_matrix():
    assert nx.is_connected(PARTS.graph)
    assert PARTS.block_size == 5
    np.testing.assert_allclose(PARTS.join(PARTS.split(START)), START)
    blocks = PARTS.blocks(NETWORK)
    around, _ = NETWORK.neighbor_table()
    u = PARTS.split(START)
    u = np.asarray(u)
    pool = np.concatenate([u[:, None], u[np.asarray(around)]], axis=1).reshape(NODES, -1)
    columns = np.asarray(blocks.columns).reshape(NODES, -1)
    met = np.take_along_axis(pool, columns, axis=1).reshape(blocks.columns.shape)
    product = np.sum(np.asarray(blocks.values) * met, -1)
    np.testing.assert_allclose(PARTS.join(product), MATRIX @ START, atol=1e-12)
    assert int(blocks.mask.sum()) == SIZE
    circles = np.abs(MATRIX).sum(1).max()
    np.testing.assert_allclose(PARTS.step_size, 0.75 / circles)
    assert circles >= VALUES[-1]


@pytest.mark.always(1)
@pytest.mark.parametrize("linear", [False, True], ids=["free", "model"])
def test_equals_a_dense_loop_in_which_numbers_travel_an_edge_a_round(linear):
    m, rounds = PARTS.block_size, 12
    maps = RNG.normal(size=(NODES, m, 3)) if linear else np.tile(np.eye(m), (NODES, 1, 1))
    model = (lambda p, features: features @ p) if linear else None
    theta = RNG.normal(size=(NODES, maps.shape[2]))
    solver = dd.OwnerEigensolver(m, PARTS.step_size, model)
    blocks = PARTS.blocks(NETWORK)
    batch = (blocks, jnp.asarray(maps)) if linear else blocks
    state = dd.run(solver, NETWORK, jnp.asarray(theta), batch, rounds, progress=False).state

    far = dict(nx.all_pairs_shortest_path_length(PARTS.graph))
    real = np.asarray(blocks.mask)
    products, squares = [], []
    for t in range(rounds):
        u = np.einsum("imd,id->im", maps, theta) * real
        r = np.asarray(PARTS.split(MATRIX @ np.asarray(PARTS.join(u))))
        products.append(np.sum(u * r, 1))
        squares.append(np.sum(u * u, 1))
        value = np.zeros(NODES)
        for i in range(NODES):
            heard = [(t - far[i][j], j) for j in range(NODES) if far[i][j] <= t]
            value[i] = sum(products[s][j] for s, j in heard) / sum(squares[s][j] for s, j in heard)
        slope = 2 * (r - value[:, None] * u) * real
        theta = theta - PARTS.step_size * np.einsum("imd,im->id", maps, slope)
    if not linear:
        assert not real.all()  # what only fills up a block stays as it is
    np.testing.assert_allclose(state.params, theta, atol=1e-12)
    np.testing.assert_allclose(state.estimate, value, atol=1e-12)


@pytest.mark.slow
def test_finds_the_smallest_eigenvalue_whatever_is_late_or_lost():
    solver = dd.OwnerEigensolver(PARTS.block_size, PARTS.step_size, links=dd.DelayedLinks(3, 0.3))
    result = dd.run(
        solver,
        NETWORK,
        PARTS.split(START),
        PARTS.blocks(NETWORK),
        1500,
        record_every=1500,
        progress=False,
    )
    estimates = np.asarray(result.state.estimate)
    np.testing.assert_allclose(estimates, VALUES[0], rtol=1e-10)
    status = dd.eigen_status(
        lambda u: jnp.asarray(MATRIX) @ u, PARTS.join(result.params), result.state.estimate
    )
    assert status.spread < 1e-10
    assert status.residual < 1e-7
    np.testing.assert_allclose(status.value, estimates.mean())


@pytest.mark.always(1)
@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
def test_replicated_equals_a_dense_loop(late):
    n, rounds, kappa, gain, rate = 6, 15, 2.0, 0.4, 0.05
    matrix = MATRIX[:n, :n]
    graph = dd.ring(NODES)
    network, mixing = dd.Network.simulated(graph), dd.metropolis(graph).toarray()
    # A message that always arrives at once is one that is not late.
    links = dd.DelayedLinks(0) if late else None
    solver = dd.ReplicatedEigensolver(
        lambda u: jnp.asarray(matrix) @ u, lambda p: p, optax.sgd(rate), kappa, gain, links
    )
    u = RNG.normal(size=(NODES, n))
    batch = jnp.zeros((NODES, 1))
    state = dd.run(solver, network, jnp.asarray(u), batch, rounds, progress=False).state
    quotient = lambda u: np.einsum("in,nm,im->i", u, matrix, u) / np.sum(u * u, 1)
    estimate = quotient(u)
    for _ in range(rounds):
        r = quotient(u)
        slope = 2 * (u @ matrix - r[:, None] * u) / np.sum(u * u, 1, keepdims=True)
        factor = 1 + kappa * (r - estimate) / (1 + estimate**2)
        u = u - rate * factor[:, None] * slope
        estimate = mixing @ estimate + gain * (r - estimate)
    np.testing.assert_allclose(state.params, u, atol=1e-12)
    np.testing.assert_allclose(state.estimate, estimate, atol=1e-12)
    np.testing.assert_allclose(state.quotient, r, atol=1e-12)
    assert solver.bits_per_round(jnp.asarray(u), network) == 2 * 64


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_networks_find_the_ground_state_of_an_oscillator(lost):
    points = np.linspace(-5, 5, 300, dtype=np.float32)
    h = points[1] - points[0]
    where = jnp.asarray(points)

    def matvec(u):
        padded = jnp.pad(u, 1)
        return (2 * u - padded[2:] - padded[:-2]) / h**2 + where**2 * u

    def model(p):
        return jnp.tanh(where[:, None] * p["in"] + p["bias"]) @ p["out"]

    keys = jax.random.split(jax.random.key(0), 3)
    normal = lambda key, scale: scale * jax.random.normal(key, (8, 16), jnp.float32)
    params = {
        name: normal(key, scale)
        for name, key, scale in zip(("in", "bias", "out"), keys, (1.0, 1.0, 0.3), strict=True)
    }
    solver = dd.ReplicatedEigensolver(
        matvec,
        model,
        optax.adam(optax.cosine_decay_schedule(2e-2, 1500)),
        links=dd.DelayedLinks(10 if lost else 0, lost),
    )
    network = dd.Network.simulated(dd.ring(8))
    batch = jnp.zeros((8, 1), jnp.float32)
    state = dd.run(solver, network, params, batch, 1500, record_every=500, progress=False).state
    dense = np.asarray(jax.jacfwd(matvec)(jnp.zeros(300, jnp.float32)), np.float64)
    smallest = np.linalg.eigvalsh(dense)[0]
    assert state.estimate.dtype == jnp.float32
    assert np.all(np.asarray(state.quotient) > smallest * (1 - 1e-3))
    np.testing.assert_allclose(state.estimate, smallest, rtol=5e-3)


def test_bad_input_is_named():
    solver = dd.OwnerEigensolver(PARTS.block_size + 1, 0.1)
    params, batch = PARTS.split(START), PARTS.blocks(NETWORK)
    plain = lambda **options: dd.ReplicatedEigensolver(
        lambda u: u, lambda p: p, optax.sgd(0.1), **options
    )
    cases = [
        (lambda: solver.init(params, batch, NETWORK, jax.random.key(0)), "blocks have 5 rows"),
        (lambda: dd.OwnerEigensolver(5, 0.0), "step_size"),
        (lambda: dd.partition(np.triu(MATRIX), 3), "not symmetric"),
        (lambda: dd.partition(MATRIX, 24), "cannot cut"),
        (lambda: dd.partition(np.eye(6), 2), "falls apart"),
        (lambda: plain(coupling=-1.0), "coupling"),
        (lambda: plain(gain=0.0), "gain"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    # A block, and a table of three numbers of each node, to each neighbour.
    solver = dd.OwnerEigensolver(PARTS.block_size, 0.1)
    bits = NETWORK.max_degree * (5 * 64 + NODES * (64 + 64 + 32))
    assert solver.bits_per_round(params, NETWORK) == bits
