"""Links that lose and delay messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd
from jaxopt_ext.core import loops

GRAPH = dd.erdos_renyi(8, 0.4, seed=3)


def test_lost_edges_leave_doubly_stochastic_weights():
    network = dd.Network.simulated(GRAPH)
    numbers, mask = map(np.asarray, network.neighbor_table())
    keys = jax.random.split(jax.random.key(0), 400)
    own, table = jax.vmap(lambda key: dd.lose_edges(network, key, 0.25))(keys)
    w = np.zeros((400, 8, 8))
    w[:, np.arange(8), np.arange(8)] = own
    for i in range(8):
        w[:, i, numbers[i][mask[i]]] = table[:, i, mask[i]]
    np.testing.assert_allclose(w, w.transpose(0, 2, 1), atol=1e-15)
    np.testing.assert_allclose(w.sum(axis=1), 1, atol=1e-14)
    kept = np.asarray(table)[:, mask] != 0
    assert abs(kept.mean() - 0.75) < 0.03
    assert kept.mean(axis=0).min() > 0.6  # each edge, and not one more than the others
    np.testing.assert_allclose(dd.lose_edges(network, keys[0], 1.0)[0], 1.0)
    np.testing.assert_array_equal(dd.lose_edges(network, keys[0], 0.0)[1], network.tables.weights)


def rounds(network, links, count, key):
    """What is known, and since when, in each round in which node i sends i + 100 t."""

    def fun(x, _, key):
        def one(state, t):
            state, known, sent = links.exchange(
                state, x + 100.0 * t, t, network, jax.random.fold_in(key, t)
            )
            return state, (known, sent)

        _, (known, sent) = loops.scan(one, links.init(x, network), jnp.arange(count))
        return jnp.swapaxes(known, 0, 1), jnp.swapaxes(sent, 0, 1)

    x = network.place(jnp.arange(8.0))
    return map(np.asarray, jax.jit(network.parallel(fun))(x, x, key))


def test_delayed_links():
    network = dd.Network.simulated(GRAPH)
    numbers, mask = map(np.asarray, network.neighbor_table())
    known, sent = rounds(network, dd.DelayedLinks(3, 0.2), 300, jax.random.key(0))
    for i, k in zip(*np.nonzero(mask), strict=True):
        stamp, t = sent[i, :, k], np.arange(300)
        here = stamp >= 0
        np.testing.assert_array_equal(known[i, here, k], numbers[i, k] + 100 * stamp[here])
        np.testing.assert_array_equal(known[i, ~here, k], i)  # what it starts from
        assert np.all(np.diff(stamp) >= 0)
        assert np.all(stamp <= t)
    age = (np.arange(300)[:, None] - sent)[mask[:, None].repeat(300, 1)]
    # The newest of messages that arrive with probability 0.8 (a + 1) / 4 by age a < 3.
    late, expected = 1.0, []
    for a in range(3):
        arrived = 0.8 * (a + 1) / 4
        expected.append(late * arrived)
        late *= 1 - arrived
    found = [np.mean(age == a) for a in range(3)]
    np.testing.assert_allclose(found, expected, atol=0.03)

    known, sent = rounds(network, dd.DelayedLinks(0), 3, jax.random.key(0))
    assert np.all(sent == np.arange(3)[None, :, None])
    _, sent = rounds(network, dd.DelayedLinks(2, 1.0), 9, jax.random.key(0))
    assert np.all(sent == -1)


@pytest.mark.slow
def test_delayed_links_on_a_mesh_equal_simulation():
    links, key = dd.DelayedLinks(2, 0.3), jax.random.key(3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("n",))
    mask = np.asarray(dd.Network.simulated(GRAPH).neighbor_table()[1])
    expected = rounds(dd.Network.simulated(GRAPH), links, 12, key)
    found = rounds(dd.Network.on_mesh(GRAPH, mesh, "n"), links, 12, key)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.swapaxes(1, 2)[mask], b.swapaxes(1, 2)[mask])
