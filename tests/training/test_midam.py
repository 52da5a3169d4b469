"""Bags: steps against numpy, the saddle function, what the table holds, batches, faults."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_ext import training
from jaxopt_ext.training import MIDAM, AttentionPooling, BagBatch, SmoothedMax

N, B, D, TAU = 8, 5, 3, 0.4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, B, D))
LABELS = np.array([0, 1, 0, 1, 1, 0, 0, 1])
ALL = BagBatch(
    jnp.asarray(X), jnp.ones((N, B), bool), jnp.asarray(LABELS), jnp.arange(N, dtype=jnp.int32)
)
STEP = eqx.filter_jit(lambda method, state, batch: method.step(state, batch))


def linear(w, x):
    return w[0] @ x


def attention(w, x):
    return w[0] @ x, w[1] @ x


SCORES = {SmoothedMax: linear, AttentionPooling: attention}
WEIGHTS = jnp.asarray(RNG.normal(size=(2, D)))


def method(kind=SmoothedMax, tx=None, **options):
    pooling = SmoothedMax(TAU) if kind is SmoothedMax else kind()
    tx = optax.sgd(0.1) if tx is None else tx
    return MIDAM(SCORES[kind], tx, N, pooling, **options)


def start(ours):
    return ours.init(WEIGHTS, ALL, jax.random.key(0))


def raw(kind, w, x):
    """f1 of some instances, and its derivative in w, as written."""
    e = np.exp(x @ w[0] / (TAU if kind is SmoothedMax else 1))
    if kind is SmoothedMax:
        slope = np.stack([np.mean(e[:, None] * x, axis=0) / TAU, np.zeros(D)])
        return np.array([np.mean(e)]), slope[None]
    delta = x @ w[1]
    first = np.stack([np.mean((e * delta)[:, None] * x, 0), np.mean(e[:, None] * x, 0)])
    second = np.stack([np.mean(e[:, None] * x, 0), np.zeros(D)])
    return np.array([np.mean(e * delta), np.mean(e)]), np.stack([first, second])


def outer(kind, s):
    if kind is SmoothedMax:
        return TAU * np.log(s[0]), np.array([TAU / s[0]])
    h = 1 / (1 + np.exp(-s[0] / s[1]))
    return h, h * (1 - h) * np.array([1 / s[1], -s[0] / s[1] ** 2])


@pytest.mark.parametrize(
    ("kind", "gamma", "lagged"),
    [
        (SmoothedMax, 0.6, False),
        (AttentionPooling, (0.3, 0.7), False),
        pytest.param(SmoothedMax, 0.6, True, marks=pytest.mark.slow),
        pytest.param(AttentionPooling, 0.5, True, marks=pytest.mark.slow),
    ],
)
def test_steps_are_a_loop_of_numpy(kind, gamma, lagged):
    ours = method(kind, gamma=gamma, lagged=lagged, dual_step=0.3, margin=0.7, coupling=1.5)
    w, a, b, alpha, table = np.asarray(WEIGHTS), 0.0, 0.0, 0.0, {}
    state = start(ours)
    for _ in range(4):
        rows = np.concatenate(
            [RNG.permutation(np.flatnonzero(c == LABELS))[:2] for c in (1, 0)]
        ).astype(np.int32)
        few = np.stack([X[i][RNG.permutation(B)[:3]] for i in rows])
        mask = np.ones((4, 3), bool)
        mask[1, 2] = False
        batch = BagBatch(*map(jnp.asarray, (few, mask, LABELS[rows], rows)))
        state, found = STEP(ours, state, batch)
        gw, ga, gb, h = 0, 0, 0, {0: [], 1: []}
        for i, x, m in zip(rows, few, mask, strict=True):
            f, slope = raw(kind, w, x[m])
            before = table.get(i, f)
            table[i] = (1 - np.asarray(gamma)) * before + np.asarray(gamma) * f
            s, slopes = outer(kind, before if lagged else table[i])
            h[LABELS[i]].append(s)
            pull = 2 * (s - a) - 1.5 * alpha if LABELS[i] else 2 * (s - b) + 1.5 * alpha
            gw = gw + pull * np.einsum("k,kij->ij", slopes, slope) / 2
            ga, gb = ga - 2 * (s - a) / 2 * LABELS[i], gb - 2 * (s - b) / 2 * (1 - LABELS[i])
        w, a, b = w - 0.1 * gw, a - 0.1 * ga, b - 0.1 * gb
        gap = 0.7 + np.mean(h[0]) - np.mean(h[1])
        alpha = max(0, alpha + 0.3 * (gap - alpha))
        np.testing.assert_allclose(found["gap"], gap, rtol=1e-10)
        np.testing.assert_allclose(state.params, w, rtol=1e-10)
        np.testing.assert_allclose([state.primal.a, state.primal.b, state.alpha], [a, b, alpha])
    for i in range(N):
        assert bool(state.visited[i]) == (i in table)
        if i in table:
            row = jax.tree.map(lambda leaf, i=i: leaf[i], state.table)
            np.testing.assert_allclose(ours.pooling.outer(row), outer(kind, table[i])[0])


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", [SmoothedMax, AttentionPooling])
def test_whole_bags_without_memory_are_the_objective(kind):
    def objective(primal, alpha):
        w, a, b = primal
        e = jnp.exp(X @ w[0] / (TAU if kind is SmoothedMax else 1))
        if kind is SmoothedMax:
            h = TAU * jnp.log(jnp.mean(e, axis=1))
        else:
            h = jax.nn.sigmoid(jnp.sum(e * (X @ w[1]), axis=1) / jnp.sum(e, axis=1))
        good, bad = h[LABELS == 1], h[LABELS == 0]
        gap = 1 + jnp.mean(bad) - jnp.mean(good)
        value = jnp.mean((good - a) ** 2) + jnp.mean((bad - b) ** 2) + alpha * gap - alpha**2 / 2
        return value, h

    ours = method(kind, optax.sgd(1.0), gamma=1.0)
    state = start(ours)
    moved = training.midam.Primal(WEIGHTS, jnp.asarray(0.3), jnp.asarray(-0.2))
    state = eqx.tree_at(lambda s: (s.primal, s.alpha), state, (moved, jnp.asarray(0.4)))
    after, found = STEP(ours, state, ALL)
    (value, h), slope = jax.jit(jax.value_and_grad(objective, has_aux=True))(moved, 0.4)
    np.testing.assert_allclose(found["loss"], value, rtol=1e-12)
    for a, b, c in zip(*map(jax.tree.leaves, (moved, after.primal, slope)), strict=True):
        np.testing.assert_allclose(a - b, c, atol=1e-12)
    predicted = eqx.filter_jit(ours.predict)(WEIGHTS, ALL.instances, ALL.mask)
    np.testing.assert_allclose(predicted, h, rtol=1e-12)


def test_the_saddle_function():
    h, loss = RNG.normal(size=N), jax.jit(training.auc_margin_loss)
    good, bad = h[LABELS == 1], h[LABELS == 0]
    a, b, c = good.mean(), bad.mean(), 0.8
    alpha = max(0, c + b - a)
    found = loss(h, LABELS, a, b, alpha, c, 1.0)
    np.testing.assert_allclose(found, good.var() + bad.var() + alpha**2 / 2, rtol=1e-12)
    found = loss(h, LABELS, a, b, c + b - a, c, 2.0)
    pairs = np.mean((c - good[:, None] + bad) ** 2)
    np.testing.assert_allclose(found, pairs, rtol=1e-12)
    up = lambda shift: loss(h, LABELS, a, b, alpha + shift, c, 1.0)
    assert up(0.1) < up(0.0) > up(-0.1)


def sampler(size, lengths=(4,) * 4, **options):
    rows = RNG.normal(size=(sum(lengths), D))
    options = {"key": jax.random.key(0), **options}
    return training.BagSampler(rows, lengths, [1, 0, 1, 0], 1, 1, size, **options), rows


@pytest.mark.slow
def test_a_few_instances():
    """f1 is without bias, h is not; the table's error is that of a moving average."""
    few, rows = sampler(2)
    ours, gamma = MIDAM(linear, optax.set_to_zero(), 4, SmoothedMax(TAU), gamma=0.3), 0.3

    @eqx.filter_jit
    def walk(few):
        state = ours.init(WEIGHTS, few(jnp.asarray(0)), jax.random.key(0))

        def body(state, t):
            batch = few(t)
            fresh = jax.vmap(ours.inner, (None, 0, 0))(WEIGHTS, batch.instances, batch.mask)
            state, _ = ours.step(state, batch)
            return state, (batch.index, fresh, state.table)

        return jax.lax.scan(body, state, jnp.arange(8000))[1]

    index, fresh, table = map(np.asarray, walk(few))
    bags = np.exp(rows.reshape(4, 4, D) @ np.asarray(WEIGHTS[0]) / TAU)
    for i in range(4):
        of_bag = np.exp(fresh[index == i])
        full = bags[i].mean()
        error = of_bag.std() / np.sqrt(len(of_bag))
        assert abs(of_bag.mean() - full) < 5 * error
        biased = TAU * np.log(of_bag)
        assert biased.mean() < TAU * np.log(full) - 5 * biased.std() / np.sqrt(len(biased))
        late = np.exp(table[1000:, i][np.any(index[1000:] == i, axis=1)])
        ratio = np.mean((late - full) ** 2) / of_bag.var()
        np.testing.assert_allclose(ratio, gamma / (2 - gamma), rtol=0.1)


def test_bags_of_different_sizes():
    lengths = (1, 3, 2, 5)
    few, rows = sampler(3, lengths)
    bag = np.repeat(np.arange(4), lengths)
    batches = jax.jit(jax.vmap(few))(jnp.arange(64))
    seen = set()
    for x, mask, labels, index in zip(*map(np.asarray, batches), strict=True):
        np.testing.assert_array_equal(labels, [1, 0])
        assert index[0] in (0, 2)
        assert index[1] in (1, 3)
        for instances, there, i in zip(x, mask, index, strict=True):
            assert there.sum() == min(3, lengths[i])
            found = [int(np.flatnonzero((rows == r).all(axis=1))[0]) for r in instances[there]]
            assert len(set(found)) == len(found)
            assert all(bag[j] == i for j in found)
            seen |= set(found)
    assert seen == set(range(11))
    assert jax.eval_shape(sampler(None, lengths)[0], 0).mask.shape == (2, 5)


def test_large_scores_in_single_precision():
    ours = method(gamma=0.5, tx=optax.sgd(1e-3))
    batch = ALL._replace(instances=jnp.asarray(300 * X.astype(np.float32)))
    state = ours.init(WEIGHTS.astype(jnp.float32), batch, jax.random.key(0))
    for _ in range(2):
        state, found = STEP(ours, state, batch)
        assert found["finite"]
        assert state.params.dtype == jnp.float32


def test_values_of_other_poolings():
    pooled = eqx.filter_jit(lambda pooling, *bag: pooling.outer(pooling.inner(*bag)))
    score = lambda pooling: pooled(pooling, jnp.array([1.0, 5, 9]), jnp.array([True, True, False]))
    assert score(training.MeanPooling()) == 3
    assert score(training.MaxPooling()) == 5


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("pooling", "reduce"), [(training.MaxPooling(), jnp.max), (training.MeanPooling(), jnp.mean)]
)
def test_steps_of_other_poolings(pooling, reduce):
    ours = MIDAM(linear, optax.sgd(1.0), N, pooling, gamma=1.0)
    after, _ = STEP(ours, start(ours), ALL)

    def loss(w):
        h = reduce(X @ w[0], axis=1)
        return training.auc_margin_loss(h, ALL.labels, *np.zeros(3))

    np.testing.assert_allclose(WEIGHTS - after.params, jax.jit(jax.grad(loss))(WEIGHTS), rtol=1e-10)


def test_bad_input():
    for options, match in [
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": 1.5}, "gamma"),
        ({"gamma": (0.5, 0.5)}, "two rates"),
        ({"dual_step": 0.0}, "dual_step"),
        ({"margin": -1.0}, "margin"),
        ({"coupling": 0.0}, "coupling"),
    ]:
        with pytest.raises((ValueError, TypeError), match=match):
            method(**options)
    with pytest.raises(ValueError, match="tau"):
        SmoothedMax(0.0)
    with pytest.raises(TypeError, match="pooling"):
        MIDAM(linear, optax.sgd(0.1), N, 3)  # pyright: ignore[reportArgumentType]
    ours, key = method(), jax.random.key(0)
    one = ALL._replace(labels=np.ones_like(LABELS))
    other = ALL._replace(labels=LABELS + 1)
    twice = ALL._replace(index=np.array([0, 0, *range(2, N)], np.int32))
    empty = ALL._replace(mask=np.arange(N)[:, None] != 2 * np.ones(B))
    state = start(ours)
    for batch, match in [
        (one, "both classes"),
        (other, "0 or 1"),
        (twice, "twice"),
        (empty, "no instances"),
    ]:
        with pytest.raises(ValueError, match=match):
            ours.init(WEIGHTS, batch, key)
        after, found = STEP(ours, state, batch)
        assert not found["finite"]
        np.testing.assert_array_equal(after.params, WEIGHTS)
        assert after.alpha == 0
        assert not np.any(after.visited)
    with pytest.raises(TypeError, match="BagBatch"):
        ours.init(WEIGHTS, X, key)
    for lengths, labels, match in [
        ([2, 3], [0, 1], "add up to 4"),
        ([2, 2], [0, 2], "zeros and ones"),
        ([2, 2], [0, 0], "positives"),
    ]:
        with pytest.raises(ValueError, match=match):
            training.BagSampler(X[0, :4], lengths, labels, 1, 1, key=key)
