"""Weighed consistency: updates by hand, the saddle against cvxpy, relatives, faults."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext import training
from jaxopt_ext.training import AdaWAC, PairBatch

N, D = 40, 5
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(N, D)), RNG.normal(size=N)
C = 0.4 * RNG.normal(size=(N, 3, D)) * np.exp(0.5 * RNG.normal(size=(N, 1, 1)))


def supervised(x, view, label):
    """Half a squared error; features whose difference over a pair is a square root of the other."""
    a, c, sign = view
    return (a @ x - label) ** 2 / 2, sign * (c @ x)


def half_square(first, second):
    return jnp.sum((first - second) ** 2) / 2


def batch_of(index):
    a, b, c = jnp.asarray(A)[index], jnp.asarray(B)[index], jnp.asarray(C)[index]
    half = jnp.full(index.shape, 0.5)
    return PairBatch((a, c, half), b, (a, c, -half), b, index)


def losses(x):
    return (A @ x - B) ** 2 / 2, np.sum((C @ x) ** 2, axis=1) / 2


def method(tx=None, **options):
    tx = optax.sgd(lambda t: 0.3 / jnp.sqrt(t + 1)) if tx is None else tx
    return AdaWAC(supervised, tx, N, half_square, **options)


def test_an_update_by_hand():
    log = jnp.log(jnp.full((1, 2), 0.5))
    found = jnp.exp(training.entropic_update(log, jnp.array([[2.0, 1.0]]), 1.0))
    np.testing.assert_allclose(found[0, 0], np.e / (1 + np.e), rtol=1e-12)
    far = log.astype(jnp.float32)
    update = jax.jit(training.entropic_update)
    for sign in (1, -1):  # 300 wins in a row, and as many defeats
        for _ in range(300):
            far = update(far, np.array([[sign, 0]], np.float32), 1.0)
    np.testing.assert_allclose(jnp.exp(far), 0.5, rtol=1e-4)


def test_steps_are_a_loop_of_numpy():
    index = jnp.asarray(RNG.permutation(N)[:12].reshape(3, 4), jnp.int32)
    index = jnp.concatenate([index, index[:1, ::-1]])
    extra = lambda x, batch: jnp.sum(x**2) + 0 * jnp.sum(batch.label1)
    ours = method(optax.sgd(0.1), extra_loss=extra, extra_weight=0.25, weight_step=0.7)
    fit = training.fit(ours, jnp.ones(D), jax.vmap(batch_of)(index), progress=False)
    x, weights = np.ones(D), np.full((N, 2), 0.5)
    for rows in np.asarray(index):
        ce, ac = (found[rows] for found in losses(x))
        weights[rows] *= np.exp(0.7 * np.stack([ce, ac], axis=1))
        weights[rows] /= weights[rows].sum(axis=1, keepdims=True)
        slopes = [
            weights[i, 0] * A[i] * (A[i] @ x - B[i]) + weights[i, 1] * C[i].T @ (C[i] @ x)
            for i in rows
        ]
        x = x - 0.1 * (0.75 * np.mean(slopes, axis=0) + 0.25 * 2 * x)
    np.testing.assert_allclose(fit.params, x, rtol=1e-10)
    np.testing.assert_allclose(fit.state.weights, weights, rtol=1e-10)


def test_the_saddle():
    """The gap of the average iterate to cvxpy's optimum, its slope, and who wins where."""
    import cvxpy as cp

    x = cp.Variable(D)
    ce = cp.square(A @ x - B) / 2
    ac = cp.hstack([cp.sum_squares(C[i] @ x) / 2 for i in range(N)])
    best = cp.Problem(cp.Minimize(cp.sum(cp.maximum(ce, ac)) / N)).solve(solver=cp.CLARABEL)
    ours, marks = method(), (300, 3000, 12_000)

    @eqx.filter_jit
    def path(key):
        draw = lambda t: jax.random.choice(jax.random.fold_in(key, t), N, (4,), replace=False)

        def body(carry, t):
            state, mean = carry
            state, _ = ours.step(state, batch_of(draw(t).astype(jnp.int32)))
            mean = mean + (state.params - mean) / (t + 1)
            at = jnp.asarray(marks) - 1
            return (state, mean), jnp.where(jnp.any(t == at), mean, 0)

        state = ours.init(jnp.zeros(D), batch_of(jnp.arange(4)), key)
        carry, means = jax.lax.scan(body, (state, jnp.zeros(D)), jnp.arange(marks[-1]))
        return carry, means[jnp.asarray(marks) - 1]

    (state, _), means = path(jax.random.key(0))
    gaps = [training.saddle_value(*losses(np.asarray(mean))) - best for mean in means]
    assert 0 < gaps[-1] <= 1e-3
    assert np.log(gaps[-1] / gaps[0]) / np.log(marks[-1] / marks[0]) <= -0.5
    last = training.saddle_value(*losses(np.asarray(state.params))) - best
    assert last > gaps[-1]
    first, second = losses(x.value)
    clear = np.abs(first - second) > 0.02 * np.maximum(first, second)
    assert clear.sum() > 30
    wins = np.asarray(state.weights[:, 0]) > 0.5
    np.testing.assert_array_equal(wins[clear], (first > second)[clear])


BATCH = batch_of(jnp.asarray([7, 3, 20, 11]))


def one_step(*methods, states=None):
    """The state behind one step of each, and its metrics; one program for all."""
    key = jax.random.key(0)
    states = [ours.init(jnp.ones(D), BATCH, key) for ours in methods] if states is None else states
    run = eqx.filter_jit(
        lambda states: [m.step(s, BATCH) for m, s in zip(methods, states, strict=True)]
    )
    return run(states)


def relative(cls, **options):
    return cls(supervised, optax.sgd(0.1), N, consistency=half_square, **options)


def moved_by(weights):
    """Where a step with these weights in the mean goes."""
    rows = np.asarray(BATCH.index)
    x = np.ones(D)
    ce = A[rows] * (A[rows] @ x - B[rows])[:, None]
    ac = np.einsum("nij,ni->nj", C[rows], C[rows] @ x)
    return x - 0.1 * np.mean(weights[:, :1] * ce + weights[:, 1:] * ac, axis=0)


def test_relatives():
    ce = losses(np.ones(D))[0][np.asarray(BATCH.index)]
    none = np.zeros(4)
    pair = lambda weights: np.stack([weights, none], axis=1)
    tilted = np.exp(ce - ce.max())
    tilted /= tilted.sum()
    own = np.zeros((N, 2))
    own[:, 0], own[[3, 11]] = 1, [0, 1]
    found = one_step(
        relative(training.Reweight),
        relative(training.FixedWeights),
        relative(training.FixedWeights, weights=own),
        relative(training.Trim, ratio=0.5),
        relative(training.Trim, keep=lambda label: label > 0),
    )
    large = 2.0 * (ce >= np.sort(ce)[2])
    kept = np.asarray(BATCH.label1) > 0
    assert 0 < kept.sum() < 4
    each = [
        pair(4 * tilted),
        np.full((4, 2), 0.5),
        own[np.asarray(BATCH.index)],
        pair(large),
        pair(kept * 4 / kept.sum()),
    ]
    for (after, metrics), weights in zip(found, each, strict=True):
        assert metrics["finite"]
        np.testing.assert_allclose(after.params, moved_by(weights), rtol=1e-10)


@pytest.mark.slow
def test_relatives_with_a_memory():
    """Losses of the step before are what weights are multiplied by."""
    ce = losses(np.ones(D))[0][np.asarray(BATCH.index)]
    tilted = np.exp(ce - ce.max())
    tilted /= tilted.sum()
    pair = lambda weights: np.stack([weights, np.zeros(4)], axis=1)
    ((state, _),) = one_step(relative(training.Reweight))
    again = dataclasses.replace(state, params=jnp.ones(D))
    methods = relative(training.Reweight), relative(training.DroReweight, entropy=0.5)
    for (after, _), power in zip(one_step(*methods, states=[again] * 2), (2, 1.5), strict=True):
        weights = tilted**power / np.sum(tilted**power)
        np.testing.assert_allclose(after.params, moved_by(pair(4 * weights)), rtol=1e-8)


def test_dice():
    logits = RNG.normal(size=(4, 6, 3))
    labels = RNG.integers(0, 2, size=(4, 6))  # the third class is nowhere
    loss = training.DiceLoss(lambda params, view: params * view, 3)
    batch = PairBatch(*map(jnp.asarray, (logits[:2], labels[:2], logits[2:], labels[2:])), None)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    q = np.eye(3)[labels]
    terms = [
        1
        - (2 * np.sum(p[..., c] * q[..., c]) + 1e-5)
        / (np.sum(p[..., c] ** 2) + np.sum(q[..., c] ** 2) + 1e-5)
        for c in range(3)
    ]
    loss_of = jax.jit(loss)
    np.testing.assert_allclose(loss_of(1.0, batch), np.mean(terms), rtol=1e-12)
    sure = jnp.where(jnp.asarray(q, bool), 100.0, -100.0)
    empty = PairBatch(sure[:2], batch.label1, sure[2:], batch.label2, None)
    assert abs(float(loss_of(1.0, empty))) < 1e-12  # a class that is nowhere costs nothing


def test_views_and_consistency():
    def augment(key, x, y):
        shift = jax.random.randint(key, (), 0, 5)
        return jnp.roll(x, shift), jnp.roll(y, shift)

    x = np.arange(8.0)[:, None] * 10 + np.arange(5)
    views = jax.jit(lambda key, x, index: training.pair_augment(key, x, index, augment))
    made = jax.tree.map(np.asarray, views(jax.random.key(0), (x, x + 1), np.arange(8)))
    np.testing.assert_array_equal(made.label1, made.view1 + 1)  # labels go along
    np.testing.assert_array_equal(made.label2, made.view2 + 1)
    np.testing.assert_array_equal(np.sort(made.view2, axis=1), x)
    shifts = lambda view: set((np.asarray(view[:, 0]) % 10).tolist())
    assert len(shifts(made.view1)) > 1
    assert np.any(made.view1 != made.view2)
    found = training.MeanSquare(3.0)({"a": jnp.ones(2), "b": jnp.zeros(2)}, {"a": 0, "b": 2})
    np.testing.assert_allclose(found, 3 * (2 + 8) / 4)


@pytest.mark.parametrize("index", [[0, 1, 2, N], [0, 1, 1, 2], [0, 1, 2, -1]])
def test_rows_that_are_not_in_the_table(index):
    ours, index = OURS, jnp.asarray(index)
    with pytest.raises(ValueError, match="twice" if index[-1] == 2 else "index"):
        ours.init(jnp.ones(D), BATCH._replace(index=index), jax.random.key(0))
    state = ours.init(jnp.ones(D), BATCH, jax.random.key(0))
    after, found = STEP(ours, state, BATCH._replace(index=index))
    assert not found["finite"]
    np.testing.assert_array_equal(after.params, state.params)
    np.testing.assert_array_equal(after.log_weights, state.log_weights)
    with pytest.raises(ValueError, match=r"twice|index"):
        training.fit(
            ours, jnp.ones(D), jax.tree.map(lambda a: a[None], BATCH)._replace(index=index[None])
        )


OURS = method()
STEP = eqx.filter_jit(lambda ours, state, batch: ours.step(state, batch))


def test_bad_input():
    for options, match in [
        ({"weight_step": 0.0}, "weight_step"),
        ({"extra_weight": 1.5}, "extra_weight"),
        ({"extra_loss": 3}, "extra_loss"),
    ]:
        with pytest.raises((ValueError, TypeError), match=match):
            method(**options)
    with pytest.raises(ValueError, match="num_samples"):
        AdaWAC(supervised, optax.sgd(0.1), 0)
    with pytest.raises(ValueError, match="scale"):
        training.MeanSquare(-1.0)
    with pytest.raises(TypeError, match="PairBatch"):
        method().init(jnp.ones(D), jnp.ones(3), jax.random.key(0))
    make = lambda cls, **options: cls(supervised, optax.sgd(0.1), N, **options)
    with pytest.raises(ValueError, match="ratio"):
        make(training.Trim, ratio=0.0)
    with pytest.raises(ValueError, match="weights"):
        make(training.FixedWeights, weights=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="entropy"):
        make(training.DroReweight, entropy=2.0)
    with pytest.raises(ValueError, match="num_classes"):
        training.DiceLoss(lambda params, view: view, 0)
