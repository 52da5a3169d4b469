"""Every online learner in the catalogue keeps the contract of online learners."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import catalog
from jaxopt_ext.core import loops

ROWS = catalog.rows(catalog.LearnerRow)
EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
CHECKS = ("scan", "twice", "length", "vmap", "dtypes", "nonfinite", "regret", "renew", "shard_map")
ROUNDS, SEEDS = 40, 3
RATE = 0.7  # the power of the rounds with which regret may grow


def _skip(row, check):
    if row.reason(check):
        pytest.skip(row.reason(check))


def _point(dtype):
    return {"a": jnp.zeros(2, dtype), "b": jnp.zeros((), dtype)}


def _gradients(dtype, shape=(SEEDS, ROUNDS)):
    """Of one sign most of the time, so that there is something to learn."""
    rng = np.random.default_rng(5)
    draw = lambda *size: (rng.normal(size=(*shape, *size)) + 0.7).astype(dtype)
    return {"a": draw(2), "b": draw()}


def _play(learner, gradients):
    """Decisions, each made before its gradient is seen, and the last state.

    What is seen ahead is the gradient of the round before, the same for each question.
    """

    def round(carry, gradient):
        state, before = carry
        decision = learner.act(state, lambda _: before)
        again = learner.act(state, lambda _: before)
        return (learner.observe(state, gradient), gradient), (decision, again)

    first = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), gradients)
    (state, _), (decisions, again) = loops.scan(round, (learner.init(first), first), gradients)
    return decisions, again, state


@functools.cache
def _run(row):
    return jax.jit(jax.vmap(functools.partial(_play, row.example())))


@functools.cache
def _batch(row):
    return jax.tree.map(np.asarray, _run(row)(_gradients(jnp.float64)))


@functools.cache
def _single(row):
    """One decision, one gradient seen, one epoch begun."""
    learner = row.example()
    act = jax.jit(lambda state, before: learner.act(state, lambda _: before))
    observe = jax.jit(lambda state, gradient: learner.observe(state, gradient))
    return act, observe, jax.jit(lambda state: learner.renew(state))


def _close(found, wanted, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_there_are_rows_and_known_opt_outs():
    assert ROWS
    for row in ROWS:
        assert set(row.opt_outs) <= set(CHECKS), row.name


@EACH
def test_a_scan_over_a_batch_is_a_loop(row):
    _skip(row, "scan")
    learner, gradients = row.example(), jax.tree.map(lambda a: a[1], _gradients(jnp.float64))
    act, observe, _ = _single(row)
    before = _point(jnp.float64)
    state, decisions = learner.init(before), []
    for t in range(ROUNDS):
        decisions.append(act(state, before))
        before = jax.tree.map(lambda a, t=t: a[t], gradients)
        state = observe(state, before)
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *decisions)
    found, _, last = jax.tree.map(lambda a: a[1], _batch(row))
    _close((found, last), (stacked, state), rtol=1e-12, atol=1e-12)
    assert any(np.max(np.abs(a[-1])) > 1e-2 for a in jax.tree.leaves(stacked))


@EACH
def test_asked_twice_it_decides_the_same(row):
    _skip(row, "twice")
    decisions, again, _ = _batch(row)
    _close(decisions, again, rtol=0, atol=0)


@EACH
def test_no_decision_is_longer_than_the_radius(row):
    """Against the dual norm, which is the most that a decision of length one can lose."""
    _skip(row, "length")
    learner, (decisions, _, _) = row.example(), _batch(row)
    gradients, dual_norm = _gradients(jnp.float64), jax.jit(lambda g: learner.dual_norm(g))
    for s, t in itertools.product(range(SEEDS), range(0, ROUNDS, 8)):
        decision, direction = jax.tree.map(lambda a, s=s, t=t: a[s, t], (decisions, gradients))
        for g in (direction, decision, jax.tree.map(np.sign, decision)):
            loss = abs(sum(np.vdot(g[name], decision[name]) for name in g))
            assert loss <= (1 + 1e-9) * learner.radius * float(dual_norm(g))


@EACH
def test_types_are_kept(row):
    _skip(row, "dtypes")
    for dtype in (jnp.float32, jnp.float64):
        found = jax.eval_shape(
            functools.partial(_play, row.example()), _gradients(dtype, (ROUNDS,))
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


@EACH
def test_a_bad_gradient_shows(row):
    _skip(row, "nonfinite")
    gradients = _gradients(jnp.float64)
    gradients["a"][0, 3, 0] = np.nan
    decisions = jax.tree.map(np.asarray, _run(row)(gradients)[0])
    assert np.all(np.isfinite(decisions["a"][0, :4]))
    assert np.all(np.isnan(decisions["a"][0, 4:, 0]))
    found, wanted = jax.tree.map(lambda a: a[1:], (decisions, _batch(row)[0]))
    _close(found, wanted, rtol=1e-12)


@EACH
def test_regret_grows_slower_than_the_rounds(row):
    """Against the best fixed decision, the loss of a constant gradient and that of noise."""
    _skip(row, "regret")
    learner, rounds = row.example(), 2000
    gradients = _gradients(jnp.float64, (2, rounds))
    for a in gradients.values():
        a[0] = 1.0
    decisions = jax.tree.map(np.asarray, _run(row)(gradients)[0])
    sizes = jax.jit(jax.vmap(lambda g: learner.dual_norm(g)))
    for run in range(2):
        g, d = (jax.tree.map(lambda a, run=run: a[run], x) for x in (gradients, decisions))
        losses = (np.sum(g["a"] * d["a"], axis=1) + g["b"] * d["b"]).cumsum()
        sums = jax.tree.map(lambda a: np.cumsum(a, 0), g)
        best = -np.asarray(learner.radius) * np.asarray(sizes(sums))
        regret = losses - best
        assert regret[99] > 0
        assert regret[-1] < regret[99] * (rounds / 100) ** RATE


@EACH
def test_an_epoch_begins_with_the_decision_that_ended_the_last(row):
    _skip(row, "renew")
    _, _, state = _batch(row)
    state = jax.tree.map(lambda a: a[0], state)
    act, _, renew = _single(row)
    zero = _point(jnp.float64)
    _close(act(renew(state), zero), act(state, zero), rtol=1e-12)


@EACH
def test_in_shard_map_each_device_learns_by_itself(row):
    _skip(row, "shard_map")
    mesh = jax.sharding.Mesh(jax.devices()[:SEEDS], ("seeds",))
    spec = jax.sharding.PartitionSpec("seeds")
    one = lambda gradients: jax.tree.map(
        lambda a: a[None],
        _play(row.example(), jax.tree.map(lambda a: a[0], gradients)),
    )
    found = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec))(
        _gradients(jnp.float64)
    )
    _close(found, _batch(row), rtol=1e-12, atol=1e-12)
