"""MoNNA against a loop in numpy, and what its average does to far messages."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext import distributed as dd
from jaxopt_ext.distributed import attacks, monna, robust

N, F, D, ROUNDS = 7, 2, 3, 6
RNG = np.random.default_rng(3)
TARGETS = RNG.normal(size=(N, ROUNDS, D)) + np.arange(N)[:, None, None] / 3
BAD = (1, 5)
FAULTY = np.isin(np.arange(N), BAD)
HONEST = ~FAULTY
BETA, EPSILON = 0.8, 2.0
few = pytest.mark.filterwarnings("ignore:nothing is proven")


def loss(x, target):
    return 0.5 * jnp.sum((jnp.concatenate([x["a"], x["b"]]) - target) ** 2)


def mirrored(x, target):
    return loss(x, -target)


def ran(algorithm, dtype=jnp.float64, n=N, rounds=ROUNDS):
    targets = jnp.asarray(TARGETS[:n], dtype)
    start = {"a": jnp.zeros((n, 1), dtype), "b": jnp.zeros((n, D - 1), dtype)}
    network = dd.Network.simulated(dd.complete(n))
    batches = lambda r: targets[:, r]
    params = dd.run(algorithm, network, start, batches, rounds, progress=False).params
    return np.concatenate([params["a"], params["b"]], axis=1)


def nearest(rows, own, kept=N - F):
    order = np.argsort(np.linalg.norm(rows - own, axis=1), kind="stable")
    return np.mean(rows[order[:kept]], axis=0)


def drawn_to_own(rows, own, tau=0.5):
    gaps = [g * min(1, tau / max(np.linalg.norm(g), 1e-9)) for g in rows - own]
    return own + np.mean(gaps, axis=0)


def trimmed(rows, own):
    return np.mean(np.sort(rows, axis=0)[F:-F], axis=0)


def reversed_mean(good):
    return -EPSILON * np.mean(good, axis=0)


def talk(rows, rule, attack):
    rows = rows.copy()
    if attack is not None:
        rows[FAULTY] = attack(rows[HONEST])
    mixed = np.stack([rule(rows, own) for own in rows])
    if attack is not None:
        mixed[FAULTY] = rows[FAULTY]
    return mixed


def recursion(rule, attack, step, talks=1, clip=np.inf):
    x, momentum = np.zeros((N, D)), np.zeros((N, D))
    for r in range(ROUNDS):
        g = x - TARGETS[:, r]
        g = g * np.minimum(1, clip / np.linalg.norm(g, axis=1, keepdims=True))
        momentum = BETA * momentum + (1 - BETA) * g
        eta = step(r)
        if attack == "poisoned":
            wrong = np.mean((x + TARGETS[:, r])[HONEST], axis=0)
            bad = lambda good, wrong=wrong, eta=eta: np.mean(good, axis=0) - eta * wrong
        else:
            bad = attack
        x = x - eta * momentum
        for _ in range(talks):
            x = talk(x, rule, bad)
    return x


STEPS = dd.StaircaseStepSize(0.9, 2, 4.0)


def stairs(t):
    return 0.9 / (1 + 2 * (t // 2) / 4)


@few
def test_equals_the_recursion():
    bad = {"attack": attacks.InnerProduct(2, EPSILON), "faulty": BAD, "missing": 0}
    algorithm = dd.MoNNA(loss, STEPS, F, BETA, coordination_steps=2, clip=1.2, **bad)
    wanted = recursion(nearest, reversed_mean, stairs, 2, 1.2)
    np.testing.assert_allclose(ran(algorithm), wanted, rtol=1e-12)


@pytest.mark.always(1)
@few
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        pytest.param({}, nearest, id="labels flipped"),
        pytest.param({"rule": robust.CenteredClip(0.5)}, drawn_to_own, id="self-centered clipping"),
    ],
)
def test_poisoned_losses_and_other_rules(options, rule):
    algorithm = dd.MoNNA(loss, 0.5, F, BETA, faulty=BAD, missing=0, poisoned=mirrored, **options)
    wanted = recursion(rule, "poisoned", lambda t: 0.5)
    found = ran(algorithm, jnp.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@few
@pytest.mark.slow
def test_learn_equals_its_recursion():
    bad = {"attack": attacks.InnerProduct(2, EPSILON), "faulty": BAD, "missing": 0}
    x = np.zeros((N, D))
    for r in range(ROUNDS):
        g = talk(x - TARGETS[:, r], trimmed, reversed_mean)
        x = talk(x - 0.5 * g, trimmed, reversed_mean)
    np.testing.assert_allclose(ran(dd.LEARN(loss, 0.5, F, **bad)), x, rtol=1e-12)


@pytest.mark.slow
def test_without_bad_nodes_and_momentum_it_is_sgd_on_the_mean():
    x = np.zeros(D)
    for r in range(ROUNDS):
        x = x - 0.5 * np.mean(x - TARGETS[:, r], axis=0)
    np.testing.assert_allclose(ran(dd.MoNNA(loss, 0.5, 0, 0.0)), np.tile(x, (N, 1)), rtol=1e-12)


@few
def test_nodes_average_those_they_have_heard():
    n, f = 5, 1
    found = ran(dd.MoNNA(loss, 1.0, f, 0.0), n=n, rounds=1)
    sent = TARGETS[:n, 0]  # one step from zero
    heard = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        choices = [
            nearest(sent[[i, *some]], sent[i], n - 2 * f)
            for some in itertools.combinations(others, n - f - 1)
        ]
        gaps = [np.max(np.abs(found[i] - choice)) for choice in choices]
        heard.append(int(np.argmin(gaps)))
        assert min(gaps) < 1e-12
    assert len(set(heard)) > 1


def test_who_is_heard():
    n, missing = 8, 2
    network = dd.Network.simulated(dd.complete(n))
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: monna._arrivals(network, (5,), missing, key)))
    heard = np.asarray(draw(keys))
    assert np.all(heard.sum(axis=2) == n - missing)
    assert np.all(heard[:, np.arange(n), np.arange(n)])
    assert np.all(heard[:, :, 5])
    share = heard.mean(axis=0)
    others = ~np.eye(n, dtype=bool) & (np.arange(n) != 5)
    good = np.arange(n) != 5
    np.testing.assert_allclose(share[good][others[good]], 4 / 6, atol=0.04)
    np.testing.assert_allclose(share[5][others[5]], 5 / 7, atol=0.04)


@pytest.mark.slow
def test_far_messages_do_no_harm():
    """Variance and mean of the good nodes after an average, over many stacks."""
    n, f, d, count = 22, 2, 4, 1500
    rng = np.random.default_rng(0)
    good = rng.normal(size=(count, n - f, d)) * np.exp(rng.normal(size=(count, 1, d)))
    good[::3] += 8 * (np.arange(n - f) < (n - f) // 2)[:, None]  # two camps
    center, width = good.mean(axis=1), good.std(axis=1)
    push = rng.normal(size=(count, d)) * np.exp(2 * rng.normal(size=(count, 1)))
    bad = np.repeat((center + push * width)[:, None], f, axis=1)
    bad[1::4] = good[1::4, :f] + 0.5 * rng.normal(size=bad[1::4].shape)
    bad[2::4, 1] = center[2::4] - push[2::4] * width[2::4]
    bad[::50] = np.nan
    rows = np.concatenate([good, bad], axis=1)
    honest = jnp.arange(n) < n - f

    @jax.jit
    @jax.vmap
    def constants(rows):
        after = jax.vmap(lambda own: robust.NNA(f)(rows, pivot=own))(rows)
        return dd.reduction_constants(rows, after, honest), after[: n - f]

    (alpha, lam), after = constants(jnp.asarray(rows))
    assert np.all(np.isfinite(after))
    assert np.max(alpha) <= 9.88 * f / (n - f)
    assert np.max(lam) <= 9 * f / (n - f)
    worst = int(np.argmax(lam))
    assert lam[worst] > 0.01
    spread = lambda a: np.mean(np.sum((a - a.mean(axis=0)) ** 2, axis=1))
    before, now = good[worst], np.asarray(after[worst])
    np.testing.assert_allclose(alpha[worst], spread(now) / spread(before))
    moved = np.sum((now.mean(axis=0) - before.mean(axis=0)) ** 2)
    np.testing.assert_allclose(lam[worst], moved / spread(before))


@pytest.mark.slow
def test_a_rule_for_the_line_search():
    rows = RNG.normal(size=(N, D))
    found = jax.jit(dd.at_honest(robust.NNA(F), 5))(jnp.asarray(rows))
    wanted = np.mean([nearest(rows, own) for own in rows[:5]], axis=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_rule_for_the_line_search_where_messages_are_missing():
    """Bad rows come always, of the good ones the own and as many as are heard."""
    seen = dd.at_honest(robust.Mean(), 5, missing=F, key=jax.random.key(3))
    share = (N - F) * np.asarray(jax.jit(seen)(jnp.eye(N)))
    np.testing.assert_allclose(share[5:], 1.0)
    np.testing.assert_allclose(share.sum(), N - F)
    assert np.all(share[:5] >= 1 / 5)
    with pytest.raises(ValueError, match="a key is needed"):
        dd.at_honest(robust.NNA(F), 5, missing=1)


@pytest.mark.always(1)
@few
@pytest.mark.parametrize("n", [5, 6])
def test_its_own_rule_given_by_name_is_the_default(n):
    """With few good nodes too, where fewer than 2 f messages come."""
    network = dd.Network.simulated(dd.complete(n))
    targets = {"a": TARGETS[:n, 0, :1], "b": TARGETS[:n, 0, 1:]}
    algorithms = [dd.MoNNA(_distance, 0.1, F, rule=rule) for rule in (None, robust.NNA(F))]

    def once(algorithm, start, key):
        state = algorithm.init(start, targets, network, key)
        return algorithm.round(state, targets, network, key).params

    both = jax.jit(lambda start, key: [once(a, start, key) for a in algorithms])
    chex.assert_trees_all_equal(*both(jax.tree.map(np.zeros_like, targets), jax.random.key(0)))


def _distance(x, target):
    return 0.5 * sum(jnp.sum((x[k] - target[k]) ** 2) for k in x)


@few
def test_what_does_not_fit_is_refused():
    attack = attacks.SignFlip(2)
    assert dd.Network.simulated(dd.ring(5)).num_edges == 5
    star, clients = dd.Network.simulated(dd.star(N)), dd.Network.clients(N)
    with pytest.raises(ValueError, match=r"complete\(7\)"):
        dd.MoNNA(loss, 0.1, 1).init({"a": jnp.zeros((N, D))}, None, star, None)
    with pytest.raises(TypeError, match="clients"):
        dd.MoNNA(loss, 0.1, 1).init({"a": jnp.zeros((N, D))}, None, clients, None)
    with pytest.raises(ValueError, match="n > 2 f is needed, got n = 7, f = 4"):
        ran(dd.MoNNA(loss, 0.1, 4))
    with pytest.raises(ValueError, match="m = 4"):
        ran(dd.LEARN(loss, 0.1, 3))
    with pytest.raises(ValueError, match="missing must be at most"):
        ran(dd.MoNNA(loss, 0.1, 1, missing=2))
    with pytest.raises(ValueError, match="needs faulty nodes"):
        dd.MoNNA(loss, 0.1, 2, attack=attack)
    with pytest.raises(ValueError, match="2 nodes are faulty"):
        dd.MoNNA(loss, 0.1, 1, attack=attack, faulty=BAD)
    with pytest.raises(ValueError, match=r"among 0, \.\.\., 6"):
        ran(dd.MoNNA(loss, 0.1, 2, attack=attack, faulty=(1, 8)))
    with pytest.raises(ValueError, match="no attack"):
        dd.MoNNA(loss, 0.1, 2, attack=attack, faulty=BAD, poisoned=mirrored)
    with pytest.raises(ValueError, match="initial"):
        dd.StaircaseStepSize(0.0)


def test_it_warns_where_nothing_is_proven():
    with pytest.warns(UserWarning, match="n = 7 < 11 f = 11"):
        ran(dd.MoNNA(loss, 0.1, 1), rounds=0)
