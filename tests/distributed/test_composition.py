"""Runs and schedules of events as parts of other programs: under `jit`, `grad` of `vmap`, and in
`shard_map` with its check on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_ext import distributed as dd
from jaxopt_ext.core import loops, tree

N, D, DEVICES = 4, 3, 4
DATA = jnp.asarray(np.random.default_rng(0).normal(size=(DEVICES, N, D)))
NETWORK = dd.Network.simulated(dd.ring(N))
W = dd.metropolis(dd.ring(N)).toarray()
OPTIONS = {"progress": False, "record_every": 2}


def loss(x, batch):
    return 0.5 * jnp.sum((x - batch) ** 2)


def learn(data, scale, rounds=5, **options):
    """Five rounds of which pairs are recorded; scale is in the loss, and in the batches."""
    algorithm = dd.GradientTracking(lambda x, b: scale * loss(x, b), 0.2)
    start = NETWORK.replicate(jnp.zeros(D, data.dtype))
    metric = lambda x: jnp.mean(x**2)
    batches = lambda r: data * (1 + scale * r.astype(data.dtype) / 10)
    return dd.run(algorithm, NETWORK, start, batches, rounds, metric=metric, **(OPTIONS | options))


def by_hand(data, scale, rounds=5):
    batch = lambda r: data * (1 + scale * r / 10)
    gradient = lambda x, r: scale * (x - batch(r))
    x, old = np.zeros((N, D)), gradient(np.zeros((N, D)), 0)
    tracker, records = old, []
    for r in range(rounds):
        x = W @ x - 0.2 * tracker
        new = gradient(x, r)
        tracker, old = W @ tracker + new - old, new
        if r % 2 or r == rounds - 1:
            records.append(np.mean(x**2))
    return x, np.array(records)


def score(data, scale):
    found = learn(data, scale)
    return jnp.sum(jnp.sin(found.params)) + jnp.sum(found.history)


@pytest.fixture(scope="module")
def together():
    """What needs no mesh, in one program."""

    def everything(data, scale):
        total = lambda scale: jnp.sum(jax.vmap(lambda d: score(d, scale))(data))
        found = learn(data[0], scale)
        return {"params": found.params, "history": found.history, "slope": jax.grad(total)(scale)}

    return jax.jit(everything)(DATA, 0.7)


def test_a_run_inside_of_jit(together):
    params, history = by_hand(np.asarray(DATA[0]), 0.7)
    np.testing.assert_allclose(together["params"], params, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(together["history"], history, rtol=1e-12)
    outside = learn(DATA[0], 0.7)
    np.testing.assert_allclose(outside.params, params, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(outside.history, history, rtol=1e-12)


def test_the_gradient_of_a_vmap_by_a_shared_leaf(together):
    def total(scale):
        ends = [by_hand(np.asarray(data), scale) for data in DATA]
        return sum(np.sum(np.sin(x)) + np.sum(records) for x, records in ends)

    slope = (total(0.7 + 1e-5) - total(0.7 - 1e-5)) / 2e-5
    np.testing.assert_allclose(together["slope"], slope, rtol=1e-7)


@pytest.mark.slow
def test_grad_alone():
    """Without `jit` a tracer may hide in the loss."""
    slope = jax.grad(lambda scale: score(DATA[0], scale))(0.7)
    ahead, behind = (score(DATA[0], 0.7 + s) for s in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)


def test_a_transformation_writes_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="checkpoint"):
        jax.eval_shape(lambda d: learn(d, 0.7, checkpoint=tmp_path / "state").params, DATA[0])


EVENTS = dd.poisson_events(jax.random.key(0), dd.ring(N), 3.0, edge_rates=1.0, node_rates=1.0)


def meet(event, rows, data, common, key):
    """Neighbours average, a node steps by itself, and all is counted."""
    (x, y), (a, _) = rows, data
    noise = 0.1 * jax.random.normal(key, x.shape, x.dtype)
    alone = lambda: (x - 0.3 * (x - a) + noise, y)
    both = lambda: ((x + y) / 2, (x + y) / 2)
    return loops.cond(event.kind == dd.Kind.EDGE, both, alone), common + 1


def gossip(data):
    start, count = jnp.zeros((N, D), data.dtype), jnp.zeros((), jnp.int32)
    return dd.run_events(meet, NETWORK, start, EVENTS, data=data, common=count)[:2]


@pytest.mark.slow
def test_each_device_runs_its_own_network():
    """In `shard_map` with its check on: data of each device, a start and a scale for all."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:DEVICES]), ("runs",))

    def device(data, scale):
        found = learn(data[0], scale)
        rows = found.params, found.history, gossip(data[0])
        return jax.tree.map(lambda a: a[None], rows)

    specs = {"in_specs": (P("runs"), P()), "out_specs": P("runs")}
    (params, history, gossiped) = jax.jit(jax.shard_map(device, mesh=mesh, **specs))(DATA, 0.7)
    for i, data in enumerate(DATA):
        x, records = by_hand(np.asarray(data), 0.7)
        np.testing.assert_allclose(params[i], x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(history[i], records, rtol=1e-12)
    alone = jax.jit(gossip)(DATA[2])
    np.testing.assert_allclose(gossiped[0][2], alone[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(gossiped[1], len(EVENTS))
    assert np.ptp(gossiped[0], axis=0).min() > 1e-6


class _MeanInTheLoss(dd.AbstractNetworkAlgorithm):
    """Each node descends on a function of the mean over all."""

    def init(self, params, batch, network, key):
        return _State(params)

    def round(self, state, batch, network, key):
        energy = lambda x: jnp.sum(network.mean(x) ** 2 + (x - batch) ** 2)
        gradient = tree.gradient(energy, state.params)
        return _State(state.params - 0.1 * gradient)


class _State(eqx.Module):
    params: jax.Array


@pytest.mark.slow
def test_a_round_may_differentiate_a_mean_where_the_check_is_on():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:DEVICES]), ("nodes",))
    networks = [
        dd.Network.clients(N),
        *(dd.Network.clients(N, mesh, "nodes", check_vma=on) for on in (True, False)),
    ]
    go = lambda n: dd.run(_MeanInTheLoss(), n, n.place(DATA[0]), DATA[1], 2, progress=False).params
    expected = go(networks[0])
    with pytest.raises(ValueError, match="check_vma"):
        go(networks[2])
    np.testing.assert_allclose(go(networks[1]), expected, rtol=1e-12)


@pytest.mark.slow
def test_a_loss_with_an_ordinary_loop_runs_on_a_mesh():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:DEVICES]), ("nodes",))

    def looped(x, batch):
        return jax.lax.scan(lambda c, ab: (c + (ab[0] - ab[1]) ** 2, None), 0.0, (x, batch))[0] / 2

    ends = []
    for fun, network in (
        (looped, dd.Network.on_mesh(dd.ring(N), mesh, "nodes")),
        (loss, NETWORK),
    ):
        start = network.replicate(jnp.zeros(D))
        ends.append(dd.run(dd.GradientTracking(fun, 0.2), network, start, DATA[0], 5, **OPTIONS))
    np.testing.assert_allclose(ends[0].params, ends[1].params, rtol=1e-12, atol=1e-12)
