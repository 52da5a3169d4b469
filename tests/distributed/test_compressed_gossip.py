"""Compressors and rules of error feedback under algorithms that mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd
from jaxopt_ext.distributed import compression as cc

N, D = 8, 10
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(N, D, D)) / np.sqrt(D), RNG.normal(size=(N, D))
OPTIMUM = np.linalg.lstsq(A.reshape(-1, D), B.reshape(-1), rcond=None)[0]
DATA = jnp.asarray(A), jnp.asarray(B)
RING = dd.ring(N)
TOP = cc.TopK(2)


def loss(x, batch):
    return 0.5 * jnp.sum((batch[0] @ x - batch[1]) ** 2)


def compressed(*parts, algorithm=dd.GradientTracking, step_size=0.1):
    return dd.CompressedGossip(algorithm(loss, step_size), cc.ChocoGossip(*parts))


def run(algorithm, rounds, network=None):
    network = dd.Network.simulated(RING) if network is None else network
    start = network.replicate(jnp.zeros(D))
    return dd.run(algorithm, network, start, DATA, rounds, progress=False, record_every=rounds)


CASES = {
    "top k, EF21": compressed(TOP, 0.6),
    "top k, error control": compressed(TOP, 0.3, cc.ErrorControl(), step_size=0.03),
    "quantized, EF21": compressed(cc.Scaled(cc.QSGD(2)), 0.6),
    "adapt then combine": compressed(TOP, 0.6, algorithm=dd.AdaptThenCombineTracking),
}


@pytest.mark.always(1)
@pytest.mark.parametrize("algorithm", CASES.values(), ids=CASES.keys())
def test_tracking_reaches_the_exact_optimum(algorithm):
    params = run(algorithm, 1500).params
    np.testing.assert_allclose(params, np.tile(OPTIMUM, (N, 1)), atol=1e-9)


def test_equals_a_loop():
    """C-GT with the copies of all nodes."""
    w, gamma, step = dd.metropolis(RING).toarray(), 0.4, 0.05
    gradient = lambda x: np.einsum("nij,ni->nj", A, np.einsum("nij,nj->ni", A, x) - B)

    def told(x, copy):
        gap = x - copy
        kept = np.argsort(-np.abs(gap), axis=1, kind="stable")[:, :2]
        sent = np.zeros_like(gap)
        np.put_along_axis(sent, kept, np.take_along_axis(gap, kept, axis=1), axis=1)
        copy = copy + sent
        return x + gamma * (w @ copy - copy), copy

    x, hx, hy = np.zeros((3, N, D))
    y = old = gradient(x)
    for _ in range(7):
        (mixed, hx), (tracked, hy) = told(x, hx), told(y, hy)
        x = mixed - step * y
        new = gradient(x)
        y, old = tracked + new - old, new
    found = run(compressed(TOP, gamma, step_size=step), 7)
    np.testing.assert_allclose(found.params, x, atol=1e-12)
    np.testing.assert_allclose(found.state.inner.tracker, y, atol=1e-12)
    np.testing.assert_allclose(y.mean(axis=0), gradient(x).mean(axis=0), atol=1e-12)


@pytest.mark.slow
def test_all_said_at_once_is_the_algorithm_itself():
    found = run(compressed(cc.Identity(), 1.0, cc.NoFeedback()), 5).params
    np.testing.assert_allclose(found, run(dd.GradientTracking(loss, 0.1), 5).params, atol=1e-13)


@pytest.mark.always(1)
@pytest.mark.parametrize("feedback", [cc.EF14(), cc.NoFeedback()])
def test_any_rule_keeps_the_mean_gradient_in_the_trackers(feedback):
    found = run(compressed(cc.QSGD(4), 0.3, feedback, step_size=0.03), 50)
    gradients = jax.vmap(jax.grad(loss))(found.params, DATA)
    np.testing.assert_allclose(
        found.state.inner.tracker.mean(axis=0), gradients.mean(axis=0), atol=1e-12
    )
    assert np.abs(found.params - OPTIMUM).max() < 0.5


@pytest.mark.slow
def test_packed_messages_cross_the_mesh():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:N]), ("nodes",))
    d, network = 1000, dd.Network.on_mesh(RING, mesh, "nodes")
    squares = lambda x, b: jnp.sum((x - b) ** 2)
    shape = jax.ShapeDtypeStruct((N, d), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sent = {}
    for name, compressor in {"top": cc.TopK(20), "signs": cc.ScaledSign()}.items():
        algorithm = dd.CompressedGossip(
            dd.GradientTracking(squares, 0.1), cc.ChocoGossip(compressor, 0.1)
        )

        def once(params, batch, key, algorithm=algorithm):
            state = algorithm.init(params, batch, network, key)
            return algorithm.round(state, batch, network, key)

        compiled = jax.jit(network.parallel(once)).lower(shape, shape, key).compile()
        sent[name] = dd.collective_bytes(compiled)
        bits = algorithm.bits_per_round(shape, network)
        assert sent[name] == {"collective-permute": bits // 8}
    # Two neighbours, two variables; places of ten bits, and signs in bytes with one number.
    assert sent["top"] == {"collective-permute": 2 * 2 * (20 * 4 + 25)}
    assert sent["signs"] == {"collective-permute": 2 * 2 * (125 + 4)}


def test_bad_input():
    network = dd.Network.simulated(RING)
    gossip = cc.ChocoGossip(TOP, 0.1)
    with pytest.raises(TypeError, match="algorithm"):
        dd.CompressedGossip(gossip, gossip)
    with pytest.raises(TypeError, match="feedback"):
        cc.ChocoGossip(TOP, 0.1, TOP)
    noisy = dd.GradientTracking(loss, 0.1, dd.GaussianNoise(1.0))
    with pytest.raises(ValueError, match="channel"):
        run(dd.CompressedGossip(noisy, gossip), 1)
    by_hand = dd.VRADGT(loss, dd.Harmonic(8.0))
    with pytest.raises(TypeError, match="neighbors"):
        run(dd.CompressedGossip(by_hand, gossip), 1)
    server = dd.EF21SGD(loss, 0.1, TOP)
    with pytest.raises(ValueError, match="whole models"):
        dd.CompressedGossip(server, gossip).bits_per_round(jnp.zeros((N, D)), network)
