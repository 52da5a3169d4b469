"""Tracking over noisy links against loops in numpy and closed recursions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd
from jaxopt_ext.core import loops
from jaxopt_ext.distributed import compression as cc

N, D, ROUNDS = 6, 3, 12
RNG = np.random.default_rng(0)
H = np.stack([np.diag(RNG.uniform(0.5, 2, D)) for _ in range(N)])
C = RNG.normal(size=(N, D))
START = RNG.normal(size=(N, D))
NOISE = RNG.normal(size=(ROUNDS, N, D))  # of gradients
GRAPH = dd.erdos_renyi(N, 0.5, seed=2)
W = np.asarray(dd.metropolis(GRAPH) @ np.eye(N))
OPTIMUM = np.linalg.solve(H.sum(axis=0), C.sum(axis=0))


def loss(x, batch):
    h, c = batch
    return 0.5 * x @ h @ x - c @ x


def gradient(x, c=C):
    return np.einsum("nij,nj->ni", H, x) - c


def harmonic(k, a=4.0, offset=20.0):
    return a / (k + offset)


def link(x):
    """A link with an error that numpy can make alike: it depends on what was sent."""
    return x + 0.1 * np.sin(5 * x)


def channel(key, message):
    return jax.tree.map(lambda a: a + 0.1 * jnp.sin(5 * a), message)


def aggregated(stochastic, consensus=4.0, ratio=1.0):
    """x and z of both variables, edge by edge."""
    x, s = START.copy(), np.zeros((N, D))
    zx, zs = np.tile(x, (N, 1, 1)), np.zeros((N, N, D))  # [receiver, sender]
    old, h = None, None
    for k in range(ROUNDS):
        alpha = harmonic(k)
        beta = 1.0 if k == 0 else min(1, ratio * alpha)
        c = C - NOISE[k] if stochastic else C
        if not stochastic or k == 0:
            h = gradient(x, c)
        else:
            keep = 1 - min(1, 2 * harmonic(k - 1))
            h = gradient(x, c) + keep * (h - gradient(old, c))
        new_s, new_x = np.empty_like(s), np.empty_like(x)
        for i in range(N):
            pull_s = sum(W[i, j] * (zs[i, j] - s[i]) for j in GRAPH.neighbors(i))
            pull_x = sum(W[i, j] * (zx[i, j] - x[i]) for j in GRAPH.neighbors(i))
            new_s[i] = s[i] + pull_s + h[i]
            new_x[i] = x[i] + consensus * alpha * pull_x - alpha * (new_s[i] - s[i])
        for i in range(N):
            for j in GRAPH.neighbors(i):
                for z, new, before in ((zx, new_x, x), (zs, new_s, s)):
                    sent = (new[j] - (1 - beta) * before[j]) / beta
                    z[i, j] = (1 - beta) * z[i, j] + beta * link(sent)
        old, x, s = x, new_x, new_s
    return x, s


def robust():
    x, s = START.copy(), np.zeros((N, D))
    for k in range(ROUNDS):
        gain = (1 + k / 50) ** -0.6
        off = W - np.diag(np.diag(W))
        total = off.sum(axis=1, keepdims=True)
        step = gain * (off @ link(s) - total * s) + gradient(x)
        x = x + gain * (off @ link(x) - total * x) - harmonic(k) * step
        s = s + step
    return x, s


STEP = dd.Harmonic(4.0, 20.0)


@pytest.fixture(scope="module")
def found():
    network = dd.Network.simulated(GRAPH)
    methods = {
        "deterministic": dd.VRADGT(loss, STEP, channel),
        "stochastic": dd.VRADSGT(loss, STEP, channel),
        "robust": dd.RobustTracking(loss, STEP, channel),
    }

    def run(params, h, c, noise):
        def through(name):
            algorithm = methods[name]
            key = jax.random.key(0)

            def one(state, k):
                batch = (h, c - noise[k] if name == "stochastic" else c)
                return algorithm.round(state, batch, network, key), None

            start = algorithm.init(params, (h, c), network, key)
            return loops.scan(one, start, jnp.arange(ROUNDS))[0]

        return {name: through(name) for name in methods}

    @jax.jit
    def both(*args):
        return run(*args), run(*(a.astype(jnp.float32) for a in args))

    return both(jnp.asarray(START), jnp.asarray(H), jnp.asarray(C), jnp.asarray(NOISE))


@pytest.mark.always(2)
@pytest.mark.parametrize("name", ["deterministic", "stochastic", "robust"])
def test_equals_a_loop_over_edges(found, name):
    x, s = robust() if name == "robust" else aggregated(name == "stochastic")
    wide, slim = found[0][name], found[1][name]
    np.testing.assert_allclose(wide.params, x, atol=1e-12)
    np.testing.assert_allclose(wide.total, s, atol=1e-12)
    assert {a.dtype for a in jax.tree.leaves(slim)} == {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }
    # What a link rounds off is divided by beta, and the link's own slope is 1.5.
    np.testing.assert_allclose(slim.params, x, atol=2e-3)


def test_without_noise_what_is_held_is_exact():
    network = dd.Network.simulated(GRAPH)
    algorithm = dd.VRADSGT(loss, STEP)
    numbers, mask = map(np.asarray, network.neighbor_table())
    noise = jnp.asarray(NOISE)

    @jax.jit
    def run(params, h, c):
        key = jax.random.key(0)

        def one(state, k):
            state = algorithm.round(state, (h, c - noise[k]), network, key)
            return state, (state.held, state.params, state.total)

        return loops.scan(one, algorithm.init(params, (h, c), network, key), jnp.arange(ROUNDS))[1]

    (zx, zs), x, s = run(jnp.asarray(START), jnp.asarray(H), jnp.asarray(C))
    for z, v in ((zx, x), (zs, s)):
        np.testing.assert_allclose(
            np.asarray(z)[:, mask], np.asarray(v)[:, numbers[mask]], atol=1e-12
        )


@pytest.mark.slow
def test_the_error_of_a_link_obeys_its_recursion():
    """Whatever is sent, and in single precision, over 2000 edges at once."""
    runs, rounds = 2000, 60
    network = dd.Network.simulated(dd.path(2))
    aggregation = dd.VarianceReducedAggregation(dd.GaussianNoise(1.0))
    gains = jnp.asarray([1.0, *(min(1, 8 / (k + 40)) for k in range(1, rounds))], jnp.float32)
    values = jnp.asarray(
        np.cumsum(np.random.default_rng(1).normal(size=(rounds + 1, 2, 1)), axis=0)
    )
    values = jnp.broadcast_to(values, (rounds + 1, 2, runs)).astype(jnp.float32)

    @jax.jit
    def run(values, gains):
        def one(z, k):
            key = jax.random.fold_in(jax.random.key(1), k)
            z = aggregation.exchange(z, values[k + 1], values[k], gains[k], network, key)
            return z, z[:, 0] - values[k + 1][::-1]

        start = aggregation.init(values[0], network)
        return loops.scan(one, start, jnp.arange(rounds))[1]

    errors = np.asarray(run(values, gains))
    variance, wanted = 0.0, []
    for beta in np.asarray(gains, float):
        variance = (1 - beta) ** 2 * variance + beta**2
        wanted.append(variance)
    np.testing.assert_allclose(np.mean(errors**2, axis=(1, 2)), wanted, rtol=0.1)
    # Each direction draws its own noise.
    assert abs(np.corrcoef(errors[-1])[0, 1]) < 0.1


@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_on_a_mesh(packed):
    """8 nodes on 8 devices equal the simulation; quantized messages travel as codes."""
    nodes, d = 8, 10
    rng = np.random.default_rng(3)
    h = jnp.asarray(np.stack([np.diag(rng.uniform(0.5, 2, d)) for _ in range(nodes)]), jnp.float32)
    batch = h, jnp.asarray(rng.normal(size=(nodes, d)), jnp.float32)
    links = dd.Quantized(cc.Grid(0.1, 11)) if packed else dd.GaussianNoise(0.1)
    algorithm = dd.VRADGT(loss, dd.Harmonic(4.0), links)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("nodes",))
    meshed = dd.Network.on_mesh(dd.ring(nodes), mesh, "nodes")
    start = jnp.zeros((nodes, d), jnp.float32)
    one, many = (
        dd.run(algorithm, network, start, batch, 10, progress=False)
        for network in (dd.Network.simulated(dd.ring(nodes)), meshed)
    )
    for a, b in zip(*map(jax.tree.leaves, (one.state, many.state)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)  # a rounding may fall the other way
    assert np.all(np.isfinite(many.params))
    key = jax.random.key(0)
    once = lambda state, batch, key: algorithm.round(state, batch, meshed, key)
    compiled = jax.jit(meshed.parallel(once)).lower(many.state, batch, key).compile()
    size = 14 if packed else 40  # ten numbers of 11 bits or 4 bytes
    assert dd.collective_bytes(compiled) == {"collective-permute": 2 * 2 * size}
    bits = algorithm.bits_per_round(start, meshed)
    assert bits == 2 * 2 * 10 * (11 if packed else 32)


@pytest.mark.slow
def test_laplace_noise_has_its_variance():
    noise = dd.LaplaceNoise(0.5)(jax.random.key(0), {"a": jnp.zeros(4000), "b": jnp.ones(4000)})
    for leaf, mean in ((noise["a"], 0), (noise["b"], 1)):
        assert abs(np.mean(leaf) - mean) < 0.06
        np.testing.assert_allclose(np.var(leaf), 0.5, rtol=0.15)
        np.testing.assert_allclose(np.mean(np.abs(leaf - mean)), 0.5, rtol=0.08)
    assert abs(np.corrcoef(noise["a"], noise["b"])[0, 1]) < 0.08


@pytest.mark.slow
def test_the_error_falls_as_one_over_k():
    """Ring of 10, unit noise on all links; with it on gradients too, and without any. Without the
    aggregation, or its gains, the same step sizes leave more."""
    nodes, d, rounds = 10, 5, 10_000
    network = dd.Network.simulated(dd.ring(nodes))

    @jax.jit
    @jax.vmap
    def run(key):
        draw, walk = jax.random.split(key)
        one, two, three = jax.random.split(draw, 3)
        h = jax.vmap(jnp.diag)(jax.random.uniform(one, (nodes, d), minval=0.5, maxval=2))
        c = jax.random.normal(two, (nodes, d))
        optimum = jnp.linalg.solve(jnp.sum(h, axis=0), jnp.sum(c, axis=0))
        step = dd.Harmonic(8.0, 40.0)
        methods = {
            "links": dd.VRADGT(loss, step, dd.GaussianNoise(1.0)),
            "gradients too": dd.VRADSGT(loss, step, dd.GaussianNoise(1.0)),
            "none": dd.VRADGT(loss, step),
            "no aggregation": dd.RobustTracking(
                loss,
                step,
                dd.GaussianNoise(1.0),
                dd.Harmonic(32.0, 40.0),
                dd.PowerGain(exponent=0.0),
            ),
            "two timescales": dd.RobustTracking(loss, step, dd.GaussianNoise(1.0)),
            "plain": dd.GradientTracking(loss, 0.05, dd.GaussianNoise(1.0)),
        }

        def errors(name):
            algorithm = methods[name]

            def one(state, k):
                key = jax.random.fold_in(walk, k)
                noise = jax.random.normal(jax.random.fold_in(three, k), (nodes, d))
                batch = (h, c - noise if name == "gradients too" else c)
                state = algorithm.round(state, batch, network, key)
                return state, jnp.mean(jnp.sum((state.params - optimum) ** 2, axis=1))

            start = algorithm.init(jnp.zeros((nodes, d)), (h, c), network, key)
            return loops.scan(one, start, jnp.arange(rounds))[1]

        return {name: errors(name) for name in methods}

    found = run(jax.random.split(jax.random.key(5), 8))
    for name in ("links", "gradients too"):
        curve = np.mean(found[name], axis=0)
        early, late = curve[800:1200].mean(), curve[8000:].mean()
        slope = np.log(late / early) / np.log(9000 / 1000)
        assert -1.2 < slope < -0.8, (name, slope)
        assert late < 8e-3, (name, late)
    assert np.max(found["none"][:, -1]) < 1e-10
    last = {name: np.mean(curves[:, 8000:]) for name, curves in found.items()}
    assert 1.2 * last["links"] < last["no aggregation"], last
    assert 10 * last["links"] < last["two timescales"], last
    assert last["plain"] > 100, last


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="step_size"):
        dd.VRADGT(loss, 0.1)
    with pytest.raises(TypeError, match="channel"):
        dd.VRADSGT(loss, STEP, 1.0)
    with pytest.raises(TypeError, match="compressor"):
        dd.Quantized(0.1)
    for wrong in (
        lambda: dd.VRADGT(loss, STEP, consensus=0.0),
        lambda: dd.VRADSGT(loss, STEP, ratio=-1.0),
        lambda: dd.Harmonic(0.0),
        lambda: dd.PowerGain(exponent=-1.0),
        lambda: dd.LaplaceNoise(-1.0),
        lambda: dd.Quantized(cc.RandK(2, unbiased=True, shared_seed=True)),
    ):
        with pytest.raises(ValueError, match=r"must be|shared key"):
            wrong()
