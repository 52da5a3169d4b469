"""Distributed SGD against numpy loops, closed forms and the landscapes where it differs."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

from jaxopt_ext import distributed as dd

RNG = np.random.default_rng(3)


def rounds(algorithm, network, params, batch, key, number, every=1):
    """The states after each `every` rounds, in one scan."""

    def one(state, r):
        return algorithm.round(state, batch, network, jax.random.fold_in(key, r)), None

    def stretch(state, rs):
        state, _ = jax.lax.scan(one, state, rs)
        return state, state.params

    state = algorithm.init(params, batch, network, key)
    return jax.lax.scan(stretch, state, jnp.arange(number).reshape(-1, every))[1]


# Decaying weights.


def quartic(x, c):
    return jnp.sum(x**4) / 4 - jnp.sum(x**2) / 2 + c @ x


def test_equals_a_numpy_loop_and_the_subspace_form():
    n, d, number, key = 6, 3, 200, jax.random.key(1)
    graph = dd.erdos_renyi(n, 0.5, seed=2)
    network = dd.Network.simulated(graph)
    c, start = RNG.normal(size=(n, d)), RNG.normal(size=(n, d))
    decays = dd.PowerDecay(0.1, 0.7), dd.PowerDecay(0.15, 0.2)
    algorithm = dd.DistributedSGD(quartic, *decays, noise_scale=0.3)
    L = nx.laplacian_matrix(graph, nodelist=range(n)).toarray().astype(float)

    def noise(r):  # new for each round and node
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, r), i))(jnp.arange(n))
        return jax.vmap(lambda k: optax.tree.random_like(k, jnp.zeros(d)))(keys)

    subspace = dd.SubspaceConstrainedSGD(
        jax.grad(lambda x: jnp.sum(jax.vmap(quartic)(x.reshape(n, d), jnp.asarray(c)))),
        np.kron(L, np.eye(d)),
        *decays,
    )

    @jax.jit
    def both(start):
        draws = jax.vmap(noise)(jnp.arange(number))
        single = start.astype(jnp.float32), jnp.asarray(c, jnp.float32)
        step = lambda carry, xi: (subspace.step(*carry, 0.3 * xi.reshape(-1)), None)
        flat = start.reshape(-1)
        last, count = jax.lax.scan(step, (flat, subspace.init(flat)), draws)[0]
        return (
            draws,
            rounds(algorithm, network, start, jnp.asarray(c), key, number, number)[0],
            rounds(algorithm, network, *single, key, number, number)[0],
            last.reshape(n, d),
            count,
        )

    draws, wide, single, flat, count = both(jnp.asarray(start))
    x = start.copy()
    for r in range(number):
        k = r + 1
        gradient = x**3 - x + c + 0.3 * np.asarray(draws[r])
        x = x - 0.15 * k**-0.2 * L @ x - 0.1 * k**-0.7 * gradient
    np.testing.assert_allclose(wide, x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(flat, x, rtol=1e-12, atol=1e-12)
    assert count == number
    assert single.dtype == jnp.float32  # its own draws, so that only the type is compared
    assert np.std(draws[:, 0] - draws[:, 1]) > 1  # nodes draw apart


def _saddle(x, tilt):
    return 0.5 * (x[0] ** 2 - x[1] ** 2) + x[1] ** 4 / 4 + tilt * x[0]


def _from_the_saddle(scales, keys, number, every):
    """Nodes `(len(scales), len(keys), records, 10, 2)`."""
    tilts = RNG.normal(size=10)
    network = dd.Network.simulated(dd.ring(10))

    def one(scale, key):
        algorithm = dd.DistributedSGD(
            _saddle, dd.PowerDecay(0.5, 0.8), dd.PowerDecay(0.25, 0.3), noise_scale=scale
        )
        start = jnp.tile(jnp.asarray([1.0, 0.0]), (10, 1))
        return rounds(
            algorithm, network, start, jnp.asarray(tilts - tilts.mean()), key, number, every
        )

    grid = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    return np.asarray(grid(jnp.asarray(scales), keys))


@pytest.mark.slow
def test_noise_leaves_the_saddle():
    paths = _from_the_saddle([0.0, 1.0], jax.random.split(jax.random.key(0), 3), 2000, 500)
    np.testing.assert_array_equal(paths[0, ..., 1], 0)
    assert np.abs(paths[0, :, -1, :, 0].mean(-1)).max() < 1e-3
    assert np.abs(paths[1, :, -1, :, 1]).min() > 0.8


@pytest.mark.slow
def test_ends_at_a_minimum_and_agrees_at_the_rate_of_the_paper():
    keys = jax.random.split(jax.random.key(1), 5)
    paths = _from_the_saddle([0.0, 0.1, 1.0], keys, 20_000, 2000)
    np.testing.assert_array_equal(paths[0, ..., 1], 0)
    final = np.abs(paths[1:, :, -1].mean(axis=-2))
    assert final[..., 1].min() > 0.98
    assert final[..., 1].max() < 1.02
    assert final[..., 0].max() < 0.02
    apart = np.linalg.norm(paths[0, 0] - paths[0, 0].mean(axis=1, keepdims=True), axis=(1, 2))
    slope = np.log(apart[-1] / apart[0]) / np.log(10)
    assert abs(slope + 0.5) < 0.05


def _to_the_median(algorithm, a, key, number):
    network = dd.Network.simulated(dd.ring(len(a)))
    start = jnp.zeros(len(a))
    return rounds(algorithm, network, start, jnp.asarray(a), key, number, number)[0]


@pytest.mark.slow
def test_finds_the_median_where_a_constant_step_keeps_a_bias():
    a = RNG.normal(size=11) * 2 + RNG.exponential(size=11) ** 2
    loss = lambda x, c: jnp.abs(x - c)
    decaying = dd.DistributedSGD(
        loss, dd.PowerDecay(0.5, 0.8), dd.PowerDecay(0.25, 0.3), noise_scale=1.0
    )
    keys = jax.random.split(jax.random.key(2), 4)
    noisy = jax.jit(jax.vmap(lambda key: _to_the_median(decaying, a, key, 40_000)))
    assert np.abs(noisy(keys).mean(axis=1) - np.median(a)).max() < 0.02
    constant = dd.DecentralizedGradient(loss, 0.05)
    biased = np.asarray(jax.jit(lambda key: _to_the_median(constant, a, key, 4000))(keys[0]))
    assert abs(biased - np.median(a)).max() > 0.05


def test_bad_decays_say_which_condition_they_break():
    ok = dd.PowerDecay(0.5, 0.8)
    for step, consensus, words in (
        (dd.PowerDecay(1, 1.2), ok, "at most 1"),
        (dd.PowerDecay(1, 0.5), dd.PowerDecay(1, 0.1), "above 1/2"),
        (ok, ok, "smaller"),
    ):
        with pytest.raises(ValueError, match=words):
            dd.DistributedSGD(quartic, step, consensus)
    with pytest.raises(ValueError, match="smaller"):
        dd.SubspaceConstrainedSGD(jnp.sin, np.eye(2), ok, ok)
    with pytest.raises(TypeError, match="PowerDecay"):
        dd.DistributedSGD(quartic, 0.1, ok)
    with pytest.raises(ValueError, match="coefficient"):
        dd.PowerDecay(-1.0, 0.6)
    graph = dd.ring(10)
    start = dd.consensus_decay(graph)
    largest = np.linalg.eigvalsh(nx.laplacian_matrix(graph).toarray().astype(float))[-1]
    np.testing.assert_allclose(start(jnp.asarray(8)), 8**-0.3 / largest, rtol=1e-6)
    dd.DistributedSGD(quartic, ok, start)


# Average-direction sharpness-aware minimization.


def test_expansion_leaves_the_cube_of_the_deviations():
    d, m = 3, 7
    T = RNG.normal(size=(d, d, d))

    def loss(x):
        return jnp.einsum("ijk,i,j,k", T, x, x, x) + jnp.sum(x**4) / 4

    w, deviations = RNG.normal(size=d), RNG.normal(size=(m, d)) / 5
    deviations -= deviations.mean(axis=0)
    scales = np.array([1.0, 0.5, 0.25])

    def errors(scale):
        apart = jnp.asarray(scale * deviations)
        seen = jnp.mean(jax.vmap(jax.grad(loss))(w + apart), axis=0)
        return seen - dd.average_direction_expansion(loss, jnp.asarray(w), apart)

    measured = jax.jit(jax.vmap(errors))(scales)
    cubes = np.mean(deviations**3, axis=0) * scales[:, None] ** 3
    np.testing.assert_allclose(measured, cubes, atol=1e-12)

    estimate = lambda key: dd.average_direction_gradient(
        loss, jnp.asarray(w), jnp.asarray(deviations), key, 2
    )
    draws = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 4000)))
    # The fourth moments of the normal law are all that the expansion leaves out here, which is 0.
    both = lambda w: (dd.average_direction_expansion(loss, w, deviations), jax.grad(loss)(w))
    expected, plain = map(np.asarray, jax.jit(both)(w))
    standard = draws.std(axis=0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - expected) < 5 * standard)
    assert np.all(np.abs(plain - expected) > 5 * standard)  # it would see a missing term


def test_diversity_moments_and_smoothness():
    m, d = 9, 4
    params = {"a": RNG.normal(size=(m, 1)), "b": RNG.normal(size=(m, d - 1))}
    flat = np.concatenate([params["a"], params["b"]], axis=1)
    covariance = np.cov(flat.T, ddof=0)
    few = jax.tree.map(lambda a: a[:4], params)
    x = RNG.normal(size=(5, d - 1))

    @jax.jit
    def measures(params, few):
        deviations, narrow = dd.weight_diversity(params), dd.weight_diversity(few)
        bounds = [dd.smoothing_bound(2.0, most, deviations) for most in (1e3, 1e-3)]
        moments = dd.predictive_moments(lambda p, x: x @ p["b"] + p["a"], params, x)
        trace = dd.trace_diversity(params)
        return deviations, trace, *bounds, dd.smoothing_bound(2.0, 1e3, narrow), *moments

    deviations, trace, bound, least_bound, bound_of_few, mean, variance = measures(params, few)
    np.testing.assert_allclose(trace, np.trace(covariance), rtol=1e-12)
    np.testing.assert_allclose(deviations["b"], params["b"] - params["b"].mean(axis=0), atol=1e-12)
    least = np.sqrt(np.linalg.eigvalsh(covariance)[0])
    np.testing.assert_allclose(bound, 2 / least, rtol=1e-6)
    assert least_bound == 1e-3
    assert bound_of_few == 1e3
    predictions = params["b"] @ x.T + params["a"]
    np.testing.assert_allclose(mean, predictions.mean(axis=0))
    np.testing.assert_allclose(variance, predictions.var(axis=0))


def test_descent_in_average_directions():
    """A quadratic in one direction, a quartic in the other: the averaged loss is known."""
    loss = lambda w, batch: batch * (w["x"] ** 2 + w["y"] ** 4 - w["y"] ** 2)
    radius = 0.5
    deviations = {"x": jnp.asarray([1.0, -1.0]), "y": jnp.asarray([radius, -radius])}
    start = {"x": jnp.asarray(1.0), "y": jnp.asarray(0.3)}

    @jax.jit
    def last(key):
        ends = []
        for options in ({"radius": radius}, {"deviations": deviations}):
            method = dd.AverageDirectionSAM(loss, 0.05, **options, num_samples=64)
            step = lambda state, _: method.step(state, jnp.asarray(1.0))  # noqa: B023
            state, metrics = jax.lax.scan(step, method.init(start, key), length=300)
            ends.append((state.params, metrics["loss"][-100:].mean()))
        return ends

    # E (y + e)^4 - (y + e)^2 = y^4 + (6 r^2 - 1) y^2 + ...: with r = 1/2 the only minimum is 0.
    for spread, (params, value) in zip((radius**2, 1.0), last(jax.random.key(0)), strict=True):
        assert abs(params["y"]) < 0.2
        assert abs(params["x"]) < 0.2
        np.testing.assert_allclose(value, spread + 3 * radius**4 - radius**2, atol=0.15)
    plain = dd.AverageDirectionSAM(loss, 0.05, radius=1e-3)
    state = plain.init(start, jax.random.key(0))
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: plain.step(s, 1.0), s, length=300))(
        state
    )
    np.testing.assert_allclose(state.params["y"], np.sqrt(0.5), atol=1e-3)


def test_schedules_of_the_step_and_of_the_labels():
    n, number, peak = 8, 20, 0.1
    network = dd.Network.simulated(dd.complete(n))
    ring = dd.metropolis(dd.ring(n))
    labels = dd.RandomRelabelling.of(network, dd.ring(n), ring, jax.random.key(4))
    algorithm = dd.DecentralizedSGD(quartic, dd.warmup_step_decay(peak, number, 5), labels)
    c, start = RNG.normal(size=(n, 2)), RNG.normal(size=(n, 2))
    last = jax.jit(
        lambda x: rounds(algorithm, network, x, jnp.asarray(c), jax.random.key(0), number, number)
    )(jnp.asarray(start))[0]
    rates = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1] + 8 * [0.1] + 4 * [0.01]
    order = lambda r: jax.random.permutation(jax.random.fold_in(jax.random.key(4), r), n)
    orders = np.asarray(jax.jit(jax.vmap(order))(np.arange(number)))
    x = start.copy()
    for rate, order in zip(rates, orders, strict=True):
        x = ring.toarray()[np.ix_(order, order)] @ x - peak * rate * (x**3 - x + c)
    np.testing.assert_allclose(last, x, rtol=1e-6)  # the schedule is of single precision
    assert len({tuple(o.tolist()) for o in orders}) > 10
    with pytest.raises(ValueError, match="complete"):
        dd.RandomRelabelling.of(
            dd.Network.simulated(dd.ring(n)), dd.ring(n), ring, jax.random.key(0)
        )


def test_bad_input_of_average_directions():
    with pytest.raises(ValueError, match="either"):
        dd.AverageDirectionSAM(quartic, 0.1)
    with pytest.raises(ValueError, match="even"):
        dd.average_direction_gradient(jnp.sum, jnp.ones(2), jnp.ones((2, 2)), jax.random.key(0), 3)
    with pytest.raises(ValueError, match="step_size"):
        dd.DecentralizedSGD(quartic, -1.0)
    with pytest.raises(ValueError, match="lipschitz"):
        dd.smoothing_bound(0.0, 1.0, jnp.ones((2, 1)))


def _valleys(x, tilt):
    """A sharp one at 0 and a flat one at 3."""
    sharp = -0.3 * jnp.exp(-((x / 0.3) ** 2) / 2)
    return sharp - jnp.exp(-(((x - 3) / 1.5) ** 2) / 2) + tilt * x


@pytest.mark.slow
def test_nodes_that_differ_leave_the_sharp_valley():
    m, number = 16, 6000
    tilts = jnp.cos(2 * jnp.pi * jnp.arange(m) / m)
    algorithm = dd.DecentralizedSGD(_valleys, 0.05)
    ends = [
        np.asarray(
            jax.jit(
                lambda key: rounds(algorithm, network, jnp.zeros(m), tilts, key, number, number)  # noqa: B023
            )(jax.random.key(0))[0]
        )
        for network in map(dd.Network.simulated, (dd.ring(m), dd.complete(m)))
    ]
    np.testing.assert_allclose(ends[0].mean(), 3.0, atol=0.02)
    np.testing.assert_allclose(ends[1].mean(), 0.06, atol=0.02)
    sam = dd.AverageDirectionSAM(
        _valleys, 0.05, deviations=dd.weight_diversity(jnp.asarray(ends[0])), num_samples=32
    )
    step = lambda state, _: (sam.step(state, 0.0)[0], None)
    last = jax.jit(
        lambda key: jax.lax.scan(step, sam.init(jnp.asarray(0.0), key), length=number)[0]
    )(jax.random.key(0))
    np.testing.assert_allclose(last.params, 3.0, atol=0.2)
