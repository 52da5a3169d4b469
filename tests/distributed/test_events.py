"""Schedules against their laws, and runs of rules against plain loops."""

import re

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from aot import usual_program
from scipy import stats

from jaxopt_ext import distributed as dd
from jaxopt_ext.distributed import Kind

GRAPH = dd.erdos_renyi(8, 0.4, seed=3)
EDGES = dd.edge_list(GRAPH)
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(8, 3))


def host(events):
    return jax.tree.map(np.asarray, events)


def test_poisson_clocks():
    rates = np.arange(1, len(EDGES) + 1) / 10
    events = host(dd.poisson_events(KEY, GRAPH, 500.0, node_rates=0.5, edge_rates=rates))
    assert np.all(np.diff(events.time) >= 0)
    assert events.time[0] >= 0
    assert events.time[-1] <= 500
    for e, rate in enumerate(rates):
        mine = (events.kind == Kind.EDGE) & (events.tag == e)
        assert abs(mine.sum() - 500 * rate) < 5 * np.sqrt(500 * rate)
        assert np.all(np.stack([events.i, events.j], 1)[mine] == EDGES[e])
    node = events.kind == Kind.NODE
    np.testing.assert_array_equal(events.i[node], events.j[node])
    for i in range(8):
        times = events.time[node & (events.i == i)]
        assert abs(len(times) - 250) < 80
        assert stats.kstest(np.diff(times), "expon", args=(0, 2.0)).pvalue > 1e-4
    again = host(dd.poisson_events(KEY, GRAPH, 500.0, node_rates=0.5, edge_rates=rates))
    assert all(map(np.array_equal, jax.tree.leaves(events), jax.tree.leaves(again)))
    other = dd.poisson_events(jax.random.key(1), GRAPH, 500.0, node_rates=0.5, edge_rates=rates)
    assert len(other) != len(events) or not np.array_equal(other.time, events.time)


def test_time_since_a_node_was_touched():
    clocks = dd.poisson_events(KEY, GRAPH, 10.0)
    failures = dd.link_failures(KEY, GRAPH, 10.0, failure_rate=0.3, repair_rate=1.0)
    delayed, _ = dd.with_delays(KEY, dd.merge(clocks, failures), 0.5)
    for schedule in (clocks, delayed):
        events, last = host(schedule), np.zeros(8)
        for m in range(len(events)):
            kind, i, j, t = events.kind[m], events.i[m], events.j[m], events.time[m]
            np.testing.assert_allclose(events.since_i[m], t - last[i], atol=1e-12)
            np.testing.assert_allclose(events.since_j[m], t - last[j], atol=1e-12)
            if kind in (Kind.NODE, Kind.EDGE, Kind.SEND):
                last[i] = t
            if kind in (Kind.NODE, Kind.EDGE, Kind.ARRIVE):
                last[j] = t


def test_links_fail_and_are_repaired():
    options = {"failure_rate": 0.5, "repair_rate": 1.5}
    failures = dd.link_failures(KEY, GRAPH, 400.0, **options)
    clocks = dd.poisson_events(jax.random.key(5), GRAPH, 400.0, node_rates=0.0)
    events = host(dd.without_failed(dd.merge(failures, clocks), GRAPH))
    down, lost = {}, 0.0
    for m in range(len(events)):
        tag, kind = events.tag[m], events.kind[m]
        if kind == Kind.EDGE:
            assert tag not in down
        elif kind == Kind.DOWN:
            assert tag not in down
            down[tag] = events.time[m]
        else:
            lost += events.time[m] - down.pop(tag)
    np.testing.assert_allclose(lost / (400 * len(EDGES)), 0.25, atol=0.03)
    met = (events.kind == Kind.EDGE).sum()
    np.testing.assert_allclose(met / len(clocks), 0.75, atol=0.03)
    with pytest.raises(ValueError, match="tokens"):
        dd.without_failed(dd.random_walks(KEY, GRAPH, 50.0), GRAPH)


def test_messages_take_time():
    clocks = dd.poisson_events(KEY, GRAPH, 200.0)
    delayed, slots = dd.with_delays(KEY, clocks, 0.3)
    events, waiting, delays = host(delayed), {}, []
    for m in range(len(events)):
        kind, tag = events.kind[m], events.tag[m]
        message = events.i[m], events.j[m]
        if kind == Kind.SEND:
            assert tag not in waiting
            assert 0 <= tag < slots
            waiting[tag] = (*message, events.time[m])
        elif kind == Kind.ARRIVE:
            *sent, time = waiting.pop(tag)
            assert tuple(sent) == message
            delays.append(events.time[m] - time)
    assert not waiting
    assert stats.kstest(delays, "expon", args=(0, 0.3)).pvalue > 1e-4
    assert (events.kind == Kind.NODE).sum() == (np.asarray(clocks.kind) == Kind.NODE).sum()
    upwards = np.mean((events.i < events.j)[events.kind == Kind.SEND])
    assert abs(upwards - 0.5) < 0.1


def test_tokens_walk_along_edges():
    events = host(dd.random_walks(KEY, GRAPH, 4000.0, num_tokens=2, start=[3, 5]))
    degrees = np.array([GRAPH.degree[i] for i in range(8)])
    for token, start in ((0, 3), (1, 5)):
        mine = events.tag == token
        i, j = events.i[mine], events.j[mine]
        assert i[0] == start
        np.testing.assert_array_equal(i[1:], j[:-1])
        assert all(GRAPH.has_edge(a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True))
        visits = np.bincount(j, minlength=8) / len(j)
        np.testing.assert_allclose(visits, degrees / degrees.sum(), atol=0.03)
    lazy = dd.lazy(dd.metropolis(GRAPH))
    events = host(dd.random_walks(KEY, GRAPH, 8000.0, transition=lazy))
    counts = np.zeros((8, 8))
    np.add.at(counts, (events.i, events.j), 1)
    np.testing.assert_allclose(counts / counts.sum(axis=1)[:, None], lazy.toarray(), atol=0.07)


def rule(event, rows, data, common, key):
    """Pull towards the data, average, or hand a token over that adds up what it sees."""
    x, y = rows
    noise = 0.01 * jax.random.uniform(key, x.shape, x.dtype)
    middle = (x + y) / 2
    pairs = [
        rows,
        (x + (data[0] - x) / 8 + noise, y),
        (middle, middle),
        (x, y + common / 64),
    ]
    new = jax.lax.switch(event.kind, [lambda pair=pair: pair for pair in pairs])
    return new, jnp.where(event.kind == Kind.TOKEN, common + y, common)


def schedule():
    clocks = dd.poisson_events(KEY, GRAPH, 8.0)
    return dd.merge(clocks, dd.random_walks(KEY, GRAPH, 8.0, num_tokens=2))


def run(network, blocks, x=X):
    def fun(x, data, key):
        common = jnp.zeros(x.shape[1])
        for block in range(blocks.time.shape[0]):
            x, common, _ = dd.run_events(
                rule, network, x, blocks[block], data=data, common=common, key=key
            )
        return x, jnp.broadcast_to(common, x.shape)

    place = lambda a: network.place(jnp.asarray(a))
    return jax.jit(network.parallel(fun))(place(x), place(np.ones_like(x)), KEY)


@pytest.fixture(scope="module")
def simulated():
    return run(dd.Network.simulated(GRAPH), schedule().blocks(500))


def test_a_run_is_the_plain_loop(simulated):
    events, x, token = host(schedule()), X.copy(), np.zeros(3)
    assert len(events) < 500
    assert set(events.kind.tolist()) == {Kind.NODE, Kind.EDGE, Kind.TOKEN}
    for m in range(len(events)):
        i, j = events.i[m], events.j[m]
        if events.kind[m] == Kind.NODE:
            noise = jax.random.uniform(jax.random.fold_in(KEY, m), (3,))
            x[i] += (1 - x[i]) / 8 + 0.01 * np.asarray(noise)
        elif events.kind[m] == Kind.EDGE:
            x[[i, j]] = (x[i] + x[j]) / 2
        else:
            before = x[j].copy()
            x[j] += token / 64
            token = token + before
    np.testing.assert_allclose(simulated[0], x, atol=1e-12)
    np.testing.assert_allclose(simulated[1][0], token, atol=1e-12)


@pytest.mark.slow
def test_blocks_and_meshes_give_the_same(simulated):
    blocks = schedule().blocks(100)
    assert blocks.time.shape[1] == 100
    again = run(dd.Network.simulated(GRAPH), blocks)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("n",))
    meshed = run(dd.Network.on_mesh(GRAPH, mesh, "n"), schedule().blocks(500))
    for found in (again, meshed):
        for a, b in zip(simulated, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_delayed_messages_wait_in_the_buffer():
    clocks = dd.poisson_events(KEY, GRAPH, 5.0)
    delayed, slots = dd.with_delays(KEY, clocks, 0.3)

    def send(event, rows, data, common, key):
        x, y, message = rows
        sent, arrived = event.kind == Kind.SEND, event.kind == Kind.ARRIVE
        y = jnp.where(arrived, (y + message) / 2, y)
        x = jnp.where(event.kind == Kind.NODE, x + 1, jnp.where(event.i == event.j, y, x))
        return (x, y, jnp.where(sent, x, message)), common + arrived

    network = dd.Network.simulated(GRAPH)
    run = jax.jit(
        lambda x: dd.run_events(
            send, network, x, delayed, common=jnp.zeros((), int), buffer=jnp.zeros((slots, 3))
        )
    )
    found, count, _ = run(jnp.asarray(X))
    events, x, waiting = host(delayed), X.copy(), {}
    for m in range(len(events)):
        i, j, tag = events.i[m], events.j[m], events.tag[m]
        if events.kind[m] == Kind.NODE:
            x[i] += 1
        elif events.kind[m] == Kind.SEND:
            waiting[tag] = x[i].copy()
        else:
            x[j] = (x[j] + waiting[tag]) / 2
    np.testing.assert_allclose(found, x, atol=1e-12)
    assert count == (events.kind == Kind.ARRIVE).sum()


@pytest.mark.slow
def test_an_event_copies_no_state():
    network = dd.Network.clients(4096)
    events = schedule()[:7]
    x = jax.ShapeDtypeStruct((4096, 100), jnp.float32)
    start = jnp.zeros(100, jnp.float32)

    def fun(x, events):
        def held(event, rows, *rest):
            new, common = rule(event, rows[:2], *rest)
            return (*new, rows[2] + rows[0]), common

        return dd.run_events(
            held, network, x, events, data=x, common=start, buffer=jnp.zeros_like(x), key=KEY
        )

    program = usual_program(fun, x, events)
    assert program.memory_analysis().temp_size_in_bytes < 4 * 4096 * 100
    # One copy of the argument, which stays what it was, and none for each event.
    copies = re.findall(r"f32\[4096,100\]\S* copy\(", program.as_text())
    assert len(copies) <= 2, copies


def test_bad_input_is_named():
    cases = [
        (lambda: dd.poisson_events(KEY, GRAPH, 0.0), "horizon"),
        (lambda: dd.poisson_events(KEY, GRAPH, 1.0, node_rates=-1.0), "node_rates"),
        (
            lambda: dd.poisson_events(KEY, GRAPH, 1.0, edge_rates=np.ones(3)),
            "edge_rates must be one",
        ),
        (lambda: dd.poisson_events(KEY, nx.Graph([(0, 1), (2, 3)]), 1.0), "disconnected"),
        (lambda: dd.random_walks(KEY, GRAPH, 1.0, transition=np.ones((8, 8))), "row-stochastic"),
        (lambda: dd.with_delays(KEY, schedule(), -1.0), "delay"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
