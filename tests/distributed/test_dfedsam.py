"""Decentralized federated learning against numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd

RNG = np.random.default_rng(5)
N, D = 6, 3
NETWORK = dd.Network.simulated(dd.ring(N))
W = dd.metropolis(dd.ring(N)).toarray()
ROOTS = RNG.normal(size=(N, D, D))
A = ROOTS @ ROOTS.swapaxes(1, 2) / D + np.eye(D)
START = RNG.normal(size=(N, D))


def quadratic(x, matrix):
    """The one sample of a client is its matrix; x has two leaves."""
    x = jnp.concatenate([x["a"], x["b"]])
    return 0.5 * x @ matrix[0] @ x


def split(x):
    return {"a": x[..., :1], "b": x[..., 1:]}


def joined(x):
    return np.concatenate([np.asarray(x["a"]), np.asarray(x["b"])], axis=-1)


def run(algorithms, number, loss_batch=None, start=None, network=NETWORK, dtype=jnp.float64):
    """All in one program: parameters after so many rounds."""
    batch = jnp.asarray(A[:, None], dtype) if loss_batch is None else loss_batch
    start = split(jnp.asarray(START, dtype)) if start is None else start

    @jax.jit
    def all_of_them():
        ends = []
        for algorithm in algorithms:
            step = lambda state, key: (algorithm.round(state, batch, network, key), None)  # noqa: B023
            state = algorithm.init(start, batch, network, jax.random.key(0))
            state, _ = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), number))
            ends.append(state.params)
        return ends

    return all_of_them()


def numpy_loop(number, steps, rho, rate, decay, momentum, weight_decay, power):
    x = START.copy()
    for t in range(number):
        velocity = np.zeros_like(x)
        for _ in range(steps):
            g = np.einsum("nij,nj->ni", A, x)
            worst = x + rho * g / np.linalg.norm(g, axis=1, keepdims=True)
            g = np.einsum("nij,nj->ni", A, worst) + weight_decay * x
            velocity = momentum * velocity + g
            x = x - rate * decay**t * velocity
        x = np.linalg.matrix_power(W, power) @ x
    return x


def test_equals_numpy_loops():
    options = {"batch_size": None, "momentum": 0.5, "weight_decay": 0.1, "decay": 0.9}
    bare = {"batch_size": None, "weight_decay": 0.0, "decay": 1.0}
    loss = quadratic
    methods = [
        dd.dfedsam(loss, 0.05, 1, rho=0.3, **bare),
        dd.dfedsam(loss, 0.05, 3, rho=0.3, **options),
        dd.dfedsam_mgs(loss, 0.05, 3, rho=0.3, gossip_steps=4, **options),
        dd.dfedavg(loss, 0.05, 3, **options),
        dd.dfedavg(loss, 0.05, 1, **bare),
        dd.fedsam(loss, 0.05, 2, rho=0.3, **bare),
        dd.fedavg(loss, 0.05, 2, **bare),
    ]
    results = run(methods, 4)
    expected = [
        numpy_loop(4, 1, 0.3, 0.05, 1, 0, 0, 1),
        numpy_loop(4, 3, 0.3, 0.05, 0.9, 0.5, 0.1, 1),
        numpy_loop(4, 3, 0.3, 0.05, 0.9, 0.5, 0.1, 4),
        numpy_loop(4, 3, 0.0, 0.05, 0.9, 0.5, 0.1, 1),
        numpy_loop(4, 1, 0.0, 0.05, 1, 0, 0, 1),
        numpy_loop(4, 2, 0.3, 0.05, 1, 0, 0, 500),
        numpy_loop(4, 2, 0.0, 0.05, 1, 0, 0, 500),
    ]
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(joined(result), wanted, rtol=1e-9, atol=1e-12)
    single = run(methods[1:3], 4, dtype=jnp.float32)
    for result, wanted in zip(single, expected[1:3], strict=True):
        assert result["a"].dtype == jnp.float32
        np.testing.assert_allclose(joined(result), wanted, rtol=1e-4, atol=1e-5)


def regression(x, sample):
    rows, targets = sample
    return jnp.mean((rows @ x - targets) ** 2)


def padded():
    """Clients of 1 to 6 samples; what is padded would be seen."""
    clients = [
        (RNG.normal(size=(count, D)), RNG.normal(size=count) + 3) for count in range(1, N + 1)
    ]
    data = dd.Padded.of(clients)
    np.testing.assert_array_equal(data.count, range(1, N + 1))
    hidden = jnp.arange(N)[None] >= data.count[:, None]
    return clients, dd.Padded((data.data[0], jnp.where(hidden, jnp.nan, data.data[1])), data.count)


@pytest.mark.slow
def test_without_a_radius_it_is_averaging_and_minibatches_are_real_samples():
    _, batch = padded()
    start = jnp.asarray(START)
    options = {"batch_size": 4, "momentum": 0.9}
    still, plain, sharp = run(
        [
            dd.dfedsam(regression, 0.02, 5, rho=0.0, **options),
            dd.dfedavg(regression, 0.02, 5, **options),
            dd.dfedsam(regression, 0.02, 5, rho=0.5, **options),
        ],
        3,
        batch,
        start,
    )
    np.testing.assert_array_equal(still, plain)  # NaN anywhere would not be equal to itself
    assert np.all(np.isfinite(still))
    assert np.abs(sharp - plain).max() > 1e-3


@pytest.mark.slow
def test_a_minibatch_is_drawn_from_all_samples_alike():
    """The gradient of a linear loss tells what was drawn."""
    count = 3
    data = jnp.asarray(np.eye(5))
    local, loss = dd.LocalSGD(1.0, 1, 1), lambda x, b: b[0] @ x
    once = lambda key: local.run(loss, jnp.zeros(5), data, jnp.asarray(count), key)
    ends = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(0), 900))
    share = -np.asarray(ends).mean(axis=0)
    np.testing.assert_array_equal(share[count:], 0)
    np.testing.assert_allclose(share[:count], 1 / 3, atol=0.06)


def test_the_radius_is_of_all_leaves_and_zero_gradients_stay():
    seen = []

    def once(rho, factor):
        local = dd.LocalSAM(rho, 1.0, 1)
        # Quartic: the step, x - x_new = grad(x + e), tells e.
        loss = lambda x, b: factor * sum(jnp.sum(leaf**4) for leaf in x.values()) / 4
        return local.run(loss, split(jnp.asarray(START[0])), jnp.zeros(1), None, jax.random.key(0))

    factors = jnp.asarray([1.0, 7.0])
    ends = jax.jit(jax.vmap(once, (None, 0)))(0.3, factors)
    for i, factor in enumerate(np.asarray(factors)):
        moved = START[0] - joined(ends)[i]
        seen.append(np.cbrt(moved / factor) - START[0])
    cubes = START[0] ** 3
    np.testing.assert_allclose(seen[0], 0.3 * cubes / np.linalg.norm(cubes), rtol=1e-6)
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-6)
    flat = dd.LocalSAM(0.3, 1.0, 2).run(
        lambda x, b: 0.0 * jnp.sum(x), jnp.ones(2), jnp.zeros(1), None, jax.random.key(0)
    )
    np.testing.assert_array_equal(flat, 1)


def test_chebyshev_is_closer_than_plain_gossip_and_bits():
    spectrum = dd.laplacian_spectrum(dd.ring(N))
    x = jnp.asarray(START)
    distance = lambda averaging: dd.consensus_distance(averaging.average(NETWORK, x))
    plain, fast, server = jax.jit(
        lambda: [
            distance(averaging)
            for averaging in (
                dd.MultipleGossip(3),
                dd.ChebyshevAverage(3, spectrum),
                dd.ServerAverage(),
            )
        ]
    )()
    expected = np.linalg.matrix_power(W, 3) @ START
    spread = np.sqrt(((expected - expected.mean(axis=0)) ** 2).sum() / N)
    np.testing.assert_allclose(plain, spread)
    assert fast < plain / 2
    assert server < 1e-12
    model = 64 * D
    for algorithm, bits in (
        (dd.dfedsam(quadratic, 0.1, 5), 2 * model),
        (dd.dfedsam_mgs(quadratic, 0.1, 5), 8 * model),
        (dd.fedavg(quadratic, 0.1, 5), model),
    ):
        assert algorithm.bits_per_round(x, NETWORK) == bits
    local = dd.LocalSGD(0.1, 1)
    fast = dd.DecentralizedFederated(quadratic, local, dd.ChebyshevAverage(3, spectrum))
    assert fast.bits_per_round(x, NETWORK) == 6 * model


def test_bad_input():
    for bad in (
        lambda: dd.LocalSGD(-0.1, 5),
        lambda: dd.LocalSGD(0.1, 0),
        lambda: dd.LocalSAM(-1.0, 0.1, 5),
        lambda: dd.LocalSGD(0.1, 5, momentum=1.0),
        lambda: dd.MultipleGossip(0),
        lambda: dd.dfedavg(quadratic, 0.1, 5, decay=0.0),
        lambda: dd.Padded.of([np.zeros((0, 2))]),
        lambda: dd.Padded.of([(np.zeros((2, 2)), np.zeros(3))]),
    ):
        with pytest.raises(ValueError, match=r"must|needs"):
            bad()
    with pytest.raises(TypeError, match="LocalSGD"):
        dd.DecentralizedFederated(quadratic, 0.1)
    _, batch = padded()
    with pytest.raises(ValueError, match="batch_size"):
        dd.LocalSGD(0.1, 1).run_all(
            regression, jnp.asarray(START), batch, jax.random.split(jax.random.key(0), N)
        )


@pytest.mark.slow
def test_sampled_clients():
    """The server's mean is that of the drawn clients, by their samples, and everybody holds it."""
    n, rounds = 6, 4
    targets, counts = RNG.normal(size=(n, 2)), np.arange(1.0, n + 1)
    squares = lambda x, b: 0.5 * jnp.sum((x - b[0]) ** 2)
    averaging = dd.ServerAverage(2, counts)
    algorithm = dd.DecentralizedFederated(squares, dd.LocalSGD(0.3, 2), averaging, 1.0)
    network, x = dd.Network.clients(n), np.zeros(2)
    seen, taken = set(), []
    for r in range(rounds):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), r), n)
        drawn = np.asarray(jax.random.permutation(key, n)) < 2
        trained = targets + 0.7**2 * (x - targets)
        x = np.average(trained[drawn], axis=0, weights=counts[drawn])
        seen.update(np.flatnonzero(drawn).tolist())
        taken.append(drawn.sum())
    found = dd.run(
        algorithm, network, jnp.zeros((n, 2)), jnp.asarray(targets)[:, None], rounds, progress=False
    )
    np.testing.assert_allclose(found.params, np.tile(x, (n, 1)), rtol=1e-6)
    assert taken == [2] * rounds
    assert len(seen) > 2
    some = dd.fedavg(squares, 0.3, 2, participants=3)
    assert (
        some.averaging.participants
        == 3
        == dd.fedsam(squares, 0.3, 2, participants=3).averaging.participants
    )
    with pytest.raises(ValueError, match="cannot take part"):
        dd.ServerAverage(7).average(network, jnp.zeros((n, 2)), jax.random.key(0))
    with pytest.raises(ValueError, match="weights must have shape"):
        dd.ServerAverage(None, counts[:3]).average(network, jnp.zeros((n, 2)))
    with pytest.raises(ValueError, match="key"):
        dd.ServerAverage(2).average(network, jnp.zeros((n, 2)))
