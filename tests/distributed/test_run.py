"""The driver: data of a function of the round, metrics, checkpoints."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd
from jaxopt_ext.core import checkpoint as files
from jaxopt_ext.distributed.algorithm import AbstractNetworkAlgorithm

N, D = 8, 3
GRAPH = dd.ring(N)
DATA = np.random.default_rng(0).normal(size=(5, N, D))


def mesh(devices=8):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("n",))


NETWORKS = {k: dd.Network.on_mesh(GRAPH, mesh(k), "n") for k in (4, 8)}
NETWORKS[1] = dd.Network.simulated(GRAPH)


def loss(x, batch):
    return 0.5 * jnp.sum((x - batch) ** 2)


def batches_of(data, shift):
    def batches(r):
        return data[r % 5] + jnp.asarray(shift)[r % 5]

    return batches


ALGORITHM = dd.DecentralizedGradient(loss, 0.1)


def run(network, batches, rounds=7, **options):
    params = network.replicate(jnp.zeros(D))
    return dd.run(ALGORITHM, network, params, batches, rounds, progress=False, **options)


@pytest.mark.always(1)
@pytest.mark.parametrize("devices", [8, 1])
def test_functions_of_the_round(devices, trace_count):
    network = NETWORKS[devices]
    shift = np.arange(5.0)
    w, expected = dd.metropolis(GRAPH).toarray(), np.zeros((N, D))
    for r in range(7):
        expected = w @ expected - 0.1 * (expected - DATA[r % 5] - shift[r % 5])
    batches = batches_of(jnp.asarray(DATA), shift)
    np.testing.assert_allclose(run(network, batches).params, expected, atol=1e-12)
    run(network, batches, 6)
    with trace_count() as traces:
        run(network, batches, 6)
    few = traces.count
    with trace_count() as traces:
        run(network, batches_of(jnp.asarray(DATA) + 1, shift), 6)
    assert traces.count > few  # what is counted is there to be counted


def test_data_of_a_function_are_arguments_where_the_nodes_live():
    from jaxopt_ext.distributed.run import _lifted

    network = dd.Network.on_mesh(GRAPH, mesh(), "n")
    key = jax.random.key(0)
    own = jnp.ones((N, 500))
    table = np.ones((7, 2))

    def batches(r):
        noise = jax.random.normal(jax.random.fold_in(key, r), (N, D))
        return {"noise": noise, "own": own, "drawn": jnp.asarray(DATA)[r], "common": table[0, 0]}

    lifted = _lifted(batches, network)
    spec = jax.sharding.PartitionSpec
    found = {a.shape: a.sharding.spec for a in lifted.data if a.ndim}
    assert found[N, 500] == spec("n")
    assert found[5, N, D] == spec(None, "n")
    jaxpr = jax.make_jaxpr(lambda f, r: f(r))(lifted, jnp.asarray(3, jnp.int32))
    assert not [c for c in jaxpr.consts if np.size(c) > 1]
    for a, b in zip(*map(jax.tree.leaves, (lifted(3), batches(jnp.asarray(3)))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)


def test_a_run_with_new_arrays_is_not_traced_again(trace_count):
    network = dd.Network.simulated(GRAPH)

    def go(target, data):
        metric = lambda x: jnp.sum((x - target) ** 2)
        start, batch = network.replicate(jnp.zeros(D)), jnp.asarray(data)
        options = {"metric": metric, "progress": False, "record_every": 2}
        return dd.run(ALGORITHM, network, start, batch, 4, **options)

    first, second = jnp.asarray(DATA[1, 0]), jnp.asarray(DATA[2, 0])
    go(first, DATA[0])
    with trace_count() as traces:
        found = go(second, 3 * DATA[0])
    assert traces.count == 0
    x, w = np.zeros((N, D)), dd.metropolis(GRAPH).toarray()
    for r in range(4):
        x = w @ x - 0.1 * (x - 3 * DATA[0])
        if r % 2:
            wanted = np.sum((x - DATA[2, 0]) ** 2)
            np.testing.assert_allclose(found.history[r // 2], wanted, rtol=1e-12)


def test_a_changed_metric_is_seen():
    class Target:
        def __init__(self):
            self.value, self.table = 1.0, np.ones(2)

        def distance(self, x):
            return jnp.max(x) * 0 + self.value

    target, table, level = Target(), np.ones(2), 1.0

    def last(metric):
        network = dd.Network.simulated(GRAPH)
        return float(run(network, jnp.asarray(DATA[0]), 1, metric=metric).history[-1])

    metrics = {
        "a method": target.distance,
        "an object": lambda x: jnp.max(x) * 0 + target.value,
        "an array written to": lambda x: jnp.max(x) * 0 + table[0],
        "a number": lambda x: jnp.max(x) * 0 + level,
        "an array that numpy reads": lambda x: jnp.max(x) * 0 + np.sum(table) / 2,
    }
    assert [last(metric) for metric in metrics.values()] == [1] * 5
    target.value = table[:] = level = 2.0
    assert [last(metric) for metric in metrics.values()] == [2] * 5


def test_a_metric_may_read_the_state():
    network = dd.Network.simulated(GRAPH)
    algorithm = dd.GradientTracking(loss, 0.1)
    params, batch = network.replicate(jnp.zeros(D)), jnp.asarray(DATA[0])
    options = {"progress": False, "record_every": 2}
    whole = dd.run(algorithm, network, params, batch, 6, state_metric=lambda s: s, **options)
    np.testing.assert_array_equal(whole.history.tracker[-1], whole.state.tracker)
    assert whole.history.params.shape == (3, N, D)
    part = dd.run(algorithm, network, params, batch, 6, metric=lambda p: p, **options)
    np.testing.assert_array_equal(part.history, whole.history.params)
    with pytest.raises(ValueError, match="not both"):
        dd.run(algorithm, network, params, batch, 6, metric=len, state_metric=len)


class Everything(AbstractNetworkAlgorithm):
    """A state of all kinds of leaves."""

    def init(self, params, batch, network, key):
        return State(params, params["x"].astype(jnp.bfloat16), network.keys(key), network.index())

    def round(self, state, batch, network, key):
        key = jax.vmap(lambda k: jax.random.fold_in(k, 1))(state.key)
        noise = jax.vmap(lambda k: jax.random.normal(k, (D,)))(key)
        params = network.mix({"x": state.params["x"] + noise})
        return State(params, params["x"].astype(jnp.bfloat16), key, state.count + 1)


class State(eqx.Module):
    params: dict
    small: jax.Array
    key: jax.Array
    count: jax.Array


def numbers(state):
    key = jax.random.key_data(state.key)
    return jax.tree.leaves((state.params, state.small.astype(jnp.float32), key, state.count))


@pytest.mark.slow
def test_resumes_on_other_devices_bit_for_bit(tmp_path):
    def go(network, rounds, **options):
        params = network.replicate({"x": jnp.zeros(D)})
        options = {"progress": False, "record_every": 2, "metric": lambda p: p["x"][0], **options}
        return dd.run(Everything(), network, params, jnp.zeros(N), rounds, **options)

    whole = go(NETWORKS[8], 6)
    for rounds, network in zip((2, 4, 6), (NETWORKS[8], NETWORKS[4], NETWORKS[8]), strict=True):
        resumed = go(network, rounds, checkpoint=tmp_path / "state")
    for a, b in zip(numbers(whole.state), numbers(resumed.state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.history, resumed.history)
    assert resumed.state.params["x"].sharding == whole.state.params["x"].sharding
    # One device rounds normal draws in its own way: from there on it is close.
    single = go(NETWORKS[1], 6)
    np.testing.assert_allclose(single.params["x"], whole.params["x"], atol=1e-12)


def test_the_devices_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    import sys

    driver = sys.modules["jaxopt_ext.distributed.run"]
    advance, save, started = driver._advance, files.save, threading.Event()
    pieces, waited = [], []

    def watched(*args):
        pieces.append(1)
        if len(pieces) == 2:
            started.set()
        return advance(*args)

    def slow(path, tree):
        waited.append(started.wait(timeout=60))
        save(path, tree)

    monkeypatch.setattr(driver, "_advance", watched)
    monkeypatch.setattr(files, "save", slow)
    batch = jnp.asarray(DATA[0])
    network = dd.Network.simulated(GRAPH)
    result = run(network, batch, 6, record_every=3, checkpoint=tmp_path / "state")
    assert waited == [True, True]
    monkeypatch.undo()
    again = run(network, batch, 6, record_every=3, checkpoint=tmp_path / "state")
    np.testing.assert_array_equal(result.params, again.params)


def test_a_failed_write_is_raised(tmp_path, monkeypatch):
    def broken(path, tree):
        raise OSError("disk full")

    monkeypatch.setattr(files, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        run(dd.Network.simulated(GRAPH), jnp.asarray(DATA[0]), 1, checkpoint=tmp_path / "state")


def test_bits_per_round():
    params = {"a": jnp.zeros((N, 3), jnp.float32), "b": jnp.zeros((N, 2), jnp.bfloat16)}
    star = dd.Network.simulated(dd.star(N))
    assert ALGORITHM.bits_per_round(params, star) == (N - 1) * (3 * 32 + 2 * 16)
    assert ALGORITHM.bits_per_round(params, dd.Network.clients(N)) == 3 * 32 + 2 * 16
    assert dd.GradientTracking(loss, 0.1).bits_per_round(params, star) == 2 * (N - 1) * 128
