"""Nodes that see values only, beside one machine that sees the mean of their losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxopt_ext import distributed
from jaxopt_ext.minimize import SphereSmoothing

NODES, D = 8, 3
RNG = np.random.default_rng(3)
TRUE = np.array([1.0, -0.5, 0.8])
A = RNG.normal(size=(NODES, 4, D))
B = A @ TRUE + 0.3 * RNG.normal(size=(NODES, 4))
GRAPH = distributed.ring(NODES)
EIGENVALUES = 1 - np.linalg.eigvalsh(distributed.metropolis(GRAPH).toarray())[::-1]
GOSSIP = distributed.ChebyshevGossip((EIGENVALUES[1], EIGENVALUES[-1]))
SMOOTHING = SphereSmoothing(0.02, 30)


@jax.custom_jvp
def loss(x, batch):
    """A mean absolute deviation, which raises when somebody differentiates it."""
    rows, targets = batch
    return jnp.mean(jnp.abs(rows @ x - targets))


@loss.defjvp
def _raise(primals, tangents):
    raise AssertionError("a black box was differentiated")


def _run(rounds, **options):
    algorithm = distributed.DecentralizedZerothOrder(loss, SMOOTHING, 1.5, GOSSIP, 12, **options)
    network = distributed.Network.simulated(GRAPH)
    start = network.replicate(jnp.zeros(D))
    batch = jnp.asarray(A), jnp.asarray(B)
    return distributed.run(algorithm, network, start, batch, rounds, progress=False)


def test_nodes_equal_one_machine_on_the_mean():
    """In the same directions, and but for what the gossip leaves of differences."""
    rounds = 60
    algorithm = distributed.DecentralizedZerothOrder(loss, SMOOTHING, 1.5, GOSSIP, 12, True)
    network = distributed.Network.simulated(GRAPH)
    batch = jnp.asarray(A), jnp.asarray(B)
    keys = jax.random.split(jax.random.key(5), rounds)

    @jax.jit
    def spread(keys):
        state = algorithm.init(network.replicate(jnp.zeros(D)), batch, network, keys[0])
        step = lambda state, key: (algorithm.round(state, batch, network, key), None)
        return jax.lax.scan(step, state, keys)[0].params

    found = np.asarray(spread(keys))
    total = lambda x: np.mean(np.abs(A @ x - B))
    directions = jax.jit(jax.vmap(lambda k: SMOOTHING.sphere.draw(k, jnp.zeros(D), 30)[0]))(keys)
    x, v, weight, L = np.zeros(D), np.zeros(D), 0.0, D**0.5 * 1.5 / 0.02
    for each in np.asarray(directions):
        a = max(np.roots([L, -1, -weight]))
        y = (weight * x + a * v) / (weight + a)
        slopes = [(total(y + 0.02 * e) - total(y - 0.02 * e)) * e for e in each]
        v = v - a * D / 0.04 * np.mean(slopes, axis=0)
        x, weight = (weight * x + a * v) / (weight + a), weight + a
    np.testing.assert_allclose(found.mean(axis=0), x, atol=1e-3)
    np.testing.assert_allclose(found, np.tile(x, (NODES, 1)), atol=1e-3)
    assert np.linalg.norm(x) > 0.1


@pytest.mark.slow
def test_nodes_reach_the_best_of_a_linear_program():
    m = NODES * 4
    rows = np.block([[A.reshape(m, D), -np.eye(m)], [-A.reshape(m, D), -np.eye(m)]])
    cost = np.concatenate([np.zeros(D), np.full(m, 1 / m)])
    sides = np.concatenate([B.ravel(), -B.ravel()])
    bounds = [(None, None)] * D + [(0, None)] * m
    best = scipy.optimize.linprog(cost, rows, sides, bounds=bounds).fun
    params = np.asarray(_run(250).params)
    values = np.mean(np.abs(np.einsum("nij,kj->kni", A, params) - B), axis=(1, 2))
    assert np.all(values <= best + 0.02), values - best
    assert np.mean(np.abs(B)) > best + 0.05
    assert distributed.consensus_distance(params) < 1e-2


def test_bad_input():
    with pytest.raises(ValueError, match="lipschitz"):
        distributed.DecentralizedZerothOrder(loss, SMOOTHING, -1.0, GOSSIP, 2)
    with pytest.raises(ValueError, match="inner_steps"):
        distributed.DecentralizedZerothOrder(loss, SMOOTHING, 1.0, GOSSIP, 0)
    with pytest.raises(TypeError, match="gossip"):
        distributed.DecentralizedZerothOrder(loss, SMOOTHING, 1.0, 3, 2)
    with pytest.raises(TypeError, match="smoothing"):
        distributed.DecentralizedZerothOrder(loss, 0.1, 1.0, GOSSIP, 2)
    with pytest.raises(TypeError, match="shared"):
        distributed.DecentralizedZerothOrder(loss, SMOOTHING, 1.0, GOSSIP, 2, 1)
