"""What learns from minibatches gives the same numbers on a mesh, in every variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd

N, D = 8, 3
RNG = np.random.default_rng(11)
CLIENTS = [(RNG.normal(size=(2 + i, D)), RNG.normal(size=2 + i)) for i in range(N)]
START = {"w": jnp.asarray(RNG.normal(size=(N, D))), "b": jnp.asarray(RNG.normal(size=(N, 1)))}
LOCAL = dd.LocalSGD(0.05, 2, 3, momentum=0.5)


def loss(x, sample):
    rows, targets = sample
    return jnp.mean((rows @ x["w"] + x["b"] - targets) ** 2)


def relabelled(network):
    ring = dd.ring(N)
    labels = dd.RandomRelabelling.of(network, ring, dd.metropolis(ring), jax.random.key(2))
    return dd.DecentralizedSGD(mean_loss, 0.05, labels)


def mean_loss(x, client):
    """Over all samples, whatever is padded."""
    rows, targets = client.data
    errors = (rows @ x["w"] + x["b"] - targets) ** 2
    there = jnp.arange(len(targets)) < client.count
    return jnp.sum(jnp.where(there, errors, 0)) / client.count


SPECTRUM = dd.laplacian_spectrum(dd.ring(N))
CLOCKS = dd.poisson_events(jax.random.key(5), dd.path(N), 6.0).blocks(12)
METHODS = {
    "several gossip steps": (dd.ring, lambda _: dd.dfedsam_mgs(loss, 0.05, 2, batch_size=3)),
    "chebyshev": (
        dd.ring,
        lambda _: dd.DecentralizedFederated(loss, LOCAL, dd.ChebyshevAverage(3, SPECTRUM)),
    ),
    "server": (None, lambda _: dd.fedsam(loss, 0.05, 2, batch_size=3)),
    "relabelled": (dd.complete, relabelled),
    "weighted": (
        dd.path,
        lambda network: dd.GossipLearning(
            loss, LOCAL, weights=dd.sample_weights(network, jnp.arange(1.0, N + 1))
        ),
    ),
    "buffered": (dd.path, lambda _: dd.BufferedGossipLearning(loss, LOCAL, 3)),
    "drawn clients": (None, lambda _: dd.fedavg(loss, 0.05, 2, batch_size=3, participants=3)),
    "asynchronous": (dd.path, lambda _: dd.AsynchronousGossipLearning(loss, LOCAL, CLOCKS)),
    "parts": (dd.path, lambda _: dd.PartitionedGossip(loss, LOCAL, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_mesh_equals_simulation(method):
    graph, build = method
    ends = []
    for devices in (None, 8, 4):
        mesh = devices and jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("nodes",))
        if graph is None:
            network = dd.Network.clients(N, *((mesh, "nodes") if mesh else ()))
        elif mesh:
            network = dd.Network.on_mesh(graph(N), mesh, "nodes")
        else:
            network = dd.Network.simulated(graph(N))
        result = dd.run(
            build(network), network, START, dd.Padded.of(CLIENTS), 6, record_every=3, progress=False
        )
        ends.append(result.params)
    for end in ends[1:]:
        for a, b in zip(*map(jax.tree.leaves, (ends[0], end)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert np.abs(ends[0]["w"] - START["w"]).max() > 1e-2
