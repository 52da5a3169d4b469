"""Signum against a vote counted in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from jaxopt_ext import distributed as dd
from jaxopt_ext.core import loops

WORKERS, STEPS, DECAY = 4, 6, 0.8
RNG = np.random.default_rng(0)
GRADIENTS = {"a": RNG.normal(size=(WORKERS, STEPS, 3, 5)), "b": RNG.normal(size=(WORKERS, STEPS))}


def in_numpy(g):
    momentum, votes = np.zeros(g.shape[2:]), []
    for step in np.swapaxes(g, 0, 1):
        momentum = DECAY * momentum + (1 - DECAY) * step
        votes.append(np.sign(np.where(momentum < 0, -1, 1).sum(axis=0)))
    return np.stack(votes)


def walk(gradients):
    tx = dd.signum("workers", DECAY)

    def one(state, g):
        out, state = tx.update(g, state)
        return state, out

    start = tx.init(jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), gradients))
    return loops.scan(one, start, gradients)[1]


def test_equals_a_vote_on_a_mesh():
    mesh = Mesh(np.array(jax.devices()[:WORKERS]), ("workers",))
    one = lambda g: walk(jax.tree.map(lambda a: a[0], g))
    run = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=P("workers"), out_specs=P()))
    gradients = jax.tree.map(jnp.asarray, GRADIENTS)
    out = run(gradients)
    for name, g in GRADIENTS.items():
        np.testing.assert_array_equal(out[name], in_numpy(g))
    assert (np.asarray(out["a"]) == 0).any()  # draws
    # Sixteen bits and a flag from each worker.
    sent = dd.collective_bytes(run.lower(gradients).compile())
    assert sent == {"all-gather": WORKERS * 3}


def test_nan_stays_visible_and_zeros_vote():
    tx = dd.signum()
    update = jax.jit(lambda g: tx.update(g, tx.init(g))[0])
    np.testing.assert_array_equal(update(jnp.asarray([0.0, -2.0, 1.0])), [1, -1, 1])
    assert np.all(np.isnan(update(jnp.asarray([jnp.nan, 1.0, 1.0]))))
    with pytest.raises(ValueError, match="decay"):
        dd.signum(decay=1.0)
