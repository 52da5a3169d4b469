"""Gossip learning on clocks, against a loop over its events."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd

N, D = 5, 3
RNG = np.random.default_rng(2)
TARGETS = RNG.normal(size=(N, 1, D))
START = RNG.normal(size=(N, D))
EVENTS = dd.poisson_events(jax.random.key(1), dd.path(N), 4.0, node_rates=0.3)
LOCAL = dd.LocalSGD(0.1, 2)


def loss(x, batch):
    return 0.5 * jnp.sum((x - batch[0]) ** 2)


def run(algorithm, rounds=None):
    network = dd.Network.simulated(dd.path(N))
    rounds = algorithm.events.time.shape[0] if rounds is None else rounds
    return dd.run(
        algorithm, network, jnp.asarray(START), jnp.asarray(TARGETS), rounds, progress=False
    ).params


@pytest.mark.parametrize(
    "average", [dd.PlainAverage(), dd.VarianceCorrected()], ids=["plain", "corrected"]
)
def test_equals_a_loop(average):
    events = EVENTS.blocks(8)
    found = run(dd.AsynchronousGossipLearning(loss, LOCAL, events, average))
    x, kinds, upwards = START.copy(), set(), set()
    for m in range(len(EVENTS)):
        i, j, kind = int(EVENTS.i[m]), int(EVENTS.j[m]), int(EVENTS.kind[m])
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), m // 8), m)
        up = bool(jax.random.bernoulli(jax.random.split(key)[0]))
        kinds.add(kind)
        to, model = i, x[i]
        if kind == dd.Kind.EDGE:
            to = j if up else i
            model = (x[i] + x[j]) / 2
            upwards.add(up)
            if isinstance(average, dd.VarianceCorrected):
                spread = (x[i].var() + x[j].var()) / 2 / model.var()
                model = model.mean() + np.sqrt(spread) * (model - model.mean())
        x[to] = TARGETS[to, 0] + 0.9**2 * (model - TARGETS[to, 0])
    np.testing.assert_allclose(found, x, rtol=1e-10)
    assert kinds == {dd.Kind.NODE, dd.Kind.EDGE}
    assert upwards == {False, True}


@pytest.mark.slow
def test_nothing_happens_after_the_last_block_and_blocks_do_not_matter():
    whole = run(dd.AsynchronousGossipLearning(loss, LOCAL, EVENTS.blocks(len(EVENTS))), 1)
    later = run(dd.AsynchronousGossipLearning(loss, LOCAL, EVENTS.blocks(len(EVENTS))), 3)
    np.testing.assert_array_equal(whole, later)


def test_what_travels():
    like = jax.ShapeDtypeStruct((N, D), jnp.float32)
    network = dd.Network.simulated(dd.path(N))
    blocks = EVENTS.blocks(8)
    edges = np.asarray(blocks.kind) == dd.Kind.EDGE
    most = max(
        np.sum((np.asarray(end)[b] == node)[edges[b]])
        + np.sum((np.asarray(blocks.j)[b] == node)[edges[b]])
        for b in range(len(edges))
        for node in range(N)
        for end in [blocks.i]
    )
    bits = dd.AsynchronousGossipLearning(loss, LOCAL, blocks).bits_per_round(like, network)
    assert bits == most * D * 32
    with pytest.raises(ValueError, match="in blocks"):
        dd.AsynchronousGossipLearning(loss, LOCAL, EVENTS)
    with pytest.raises(TypeError, match="local"):
        dd.AsynchronousGossipLearning(loss, loss, blocks)
