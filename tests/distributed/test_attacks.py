"""Attacks against their formulas, and against the rules that they are made for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh, PartitionSpec as P

from jaxopt_ext.distributed import attacks, robust

G, F, D = 20, 5, 6
GOOD = np.random.default_rng(0).normal(size=(G, D)) + 0.5
OWN = np.random.default_rng(1).normal(size=(F, D))
MEAN, DEVIATION = GOOD.mean(axis=0), GOOD.std(axis=0, ddof=1)
ATTACKS = {
    "sign": attacks.SignFlip(F, 2.0),
    "mean": attacks.InnerProduct(F),
    "alie": attacks.ALIE(F),
    "alie 1.5": attacks.ALIE(F, 1.5),
    "gaussian": attacks.Gaussian(F, 3.0),
    "nan": attacks.NonFinite(F),
    "infinity": attacks.NonFinite(F, -np.inf),
    "search": attacks.LineSearch(F, attacks.against_deviation, robust.TrimmedMean(F)),
    "mimic": attacks.Mimic(F, warmup=3),
}
WANTED = {
    "sign": -2 * OWN,
    "mean": np.tile(-0.1 * MEAN, (F, 1)),
    "alie": np.tile(MEAN - scipy.stats.norm.ppf(0.6) * DEVIATION, (F, 1)),
    "alie 1.5": np.tile(MEAN - 1.5 * DEVIATION, (F, 1)),
    "nan": np.full((F, D), np.nan),
    "infinity": np.full((F, D), -np.inf),
    "mimic": np.tile(GOOD[0], (F, 1)),
}


def everything(good, own, key):
    mimic = ATTACKS["mimic"]
    states = {"mimic": mimic.observe(mimic.init(good[0], key), good)}
    return {name: a(good, key, states.get(name), own) for name, a in ATTACKS.items()}


def test_each_sends_its_formula(dtype):
    args = jnp.asarray(GOOD, dtype), jnp.asarray(OWN, dtype), jax.random.key(0)
    out = jax.jit(everything)(*args)
    assert {a.dtype for a in out.values()} == {jnp.dtype(dtype)}
    assert {a.shape for a in out.values()} == {(F, D)}
    for name, wanted in WANTED.items():
        tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
        np.testing.assert_allclose(out[name], wanted, atol=tolerance, err_msg=name)
    assert len(np.unique(out["gaussian"])) == F * D


def test_the_factor_of_alie():
    assert abs(attacks.ALIE(5).quantile(20) - 0.2533) < 1e-4  # s = 8 of 20
    assert attacks.ALIE(1).quantile(19) < 0  # few bad nodes: kept, not clipped
    assert attacks.ALIE(2).quantile(4) == scipy.stats.norm.ppf(0.5)


def test_noise_has_its_scale():
    noise = attacks.Gaussian(400, 3.0)(jnp.zeros((400, 50)), jax.random.key(3))
    assert scipy.stats.kstest(np.ravel(noise), "norm", args=(0, 3)).pvalue > 1e-3


def test_pytrees_are_raveled():
    tree = lambda a: {"a": jnp.asarray(a[:, :4].reshape(-1, 2, 2)), "b": jnp.asarray(a[:, 4:])}
    out = attacks.SignFlip(F, 2.0)(tree(GOOD), own=tree(OWN))
    assert out["a"].shape == (F, 2, 2)
    np.testing.assert_allclose(out["b"], -2 * OWN[:, 4:])
    # Without own messages, the mean of the good ones.
    np.testing.assert_allclose(attacks.SignFlip(F)(tree(GOOD))["b"], np.tile(-MEAN[4:], (F, 1)))


def test_labels_flip_back():
    flip, labels = attacks.LabelFlip(10), np.arange(30).reshape(3, 10) % 10
    faulty = np.array([False, True, False])
    once = flip(labels, faulty)
    np.testing.assert_array_equal(once[1], 9 - labels[1])
    np.testing.assert_array_equal(once[::2], labels[::2])
    np.testing.assert_array_equal(flip(once, faulty), labels)
    np.testing.assert_array_equal(flip(flip(labels)), labels)
    assert once.dtype == labels.dtype


@pytest.mark.slow
def test_mimic_finds_the_direction_of_most_variance():
    rng = np.random.default_rng(4)
    axis = np.eye(D)[2]
    places = rng.permutation(np.linspace(-3, 3, G))  # each node has its own
    rounds = places[:, None] * axis + 0.3 * rng.normal(size=(12, G, D)) + 5 * np.eye(D)[4]
    mimic = attacks.Mimic(F, warmup=8)

    @jax.jit
    def run(rounds, key):
        def step(state, good):
            state = mimic.observe(state, good)
            return state, mimic(good, key, state)

        return jax.lax.scan(step, mimic.init(rounds[0, 0], key), rounds)

    state, sent = run(jnp.asarray(rounds), jax.random.key(0))

    # The same by hand.
    v = np.asarray(mimic.init(jnp.zeros(D), jax.random.key(0)).direction)
    mean = np.zeros(D)
    for t in range(8):
        a = t / (t + 1)
        mean = a * mean + (1 - a) * rounds[t].mean(axis=0)
        gaps = rounds[t] - mean
        v = a * v + (1 - a) * gaps.T @ gaps @ v
        v /= np.linalg.norm(v)
    np.testing.assert_allclose(state.direction, v, atol=1e-9)
    np.testing.assert_allclose(state.mean, mean, atol=1e-9)
    assert abs(v[2]) > 0.95
    for t in range(12):
        chosen = 0 if t < 8 else np.argmax(np.abs(rounds[t] @ v))
        np.testing.assert_allclose(sent[t], np.tile(rounds[t, chosen], (F, 1)))
    # Nodes that agree say nothing about a direction.
    same = mimic.observe(mimic.init(jnp.zeros(D), jax.random.key(0)), jnp.ones((G, D)))
    assert np.all(np.isfinite(same.direction))


@pytest.mark.slow
def test_a_line_search_does_more_harm_than_fixed_factors():
    rules = [robust.TrimmedMean(F), robust.Krum(F), robust.GeometricMedian(), robust.Mean()]
    good = jnp.asarray(GOOD)

    def run(good):
        for rule in rules:
            for direction in (attacks.against_deviation, attacks.against_mean):
                search = attacks.LineSearch(F, direction, lambda rows, r=rule: r(rows))

                def harm(c, rule=rule, direction=direction):
                    bad = jnp.mean(good, axis=0) + c * direction(good)
                    rows = jnp.concatenate([good, jnp.broadcast_to(bad, (F, D))])
                    return jnp.linalg.norm(rule(rows) - jnp.mean(good, axis=0))

                bad = search(good)[0]
                found = rule(jnp.concatenate([good, jnp.broadcast_to(bad, (F, D))]))
                yield (
                    jnp.linalg.norm(found - jnp.mean(good, axis=0)),
                    jax.vmap(harm)(jnp.linspace(0, 4, 9)),
                    bad,
                )

    cases = jax.jit(lambda good: list(run(good)))(good)
    for found, fixed, _ in cases:
        assert found > 0
        assert found >= 0.97 * np.max(fixed)
    # The mean breaks as far as the search goes: it doubles its factor each time, 1 + 2 + 4 + ...
    np.testing.assert_allclose(cases[-1][2], MEAN - (2**15 - 1) * MEAN, rtol=1e-9)


@pytest.mark.slow
def test_in_shard_map_with_its_check():
    rng = np.random.default_rng(5)
    good = jnp.asarray(rng.normal(size=(4, G, D)), jnp.float32)
    own = jnp.asarray(rng.normal(size=(4, F, D)), jnp.float32)
    one = lambda g, o, k: jax.tree.map(lambda a: a[None], everything(g[0], o[0], k[0]))
    keys = jax.random.split(jax.random.key(0), 4)
    mesh = Mesh(np.array(jax.devices()[:4]), ("i",))
    spread = jax.shard_map(one, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    found = jax.jit(spread)(good, own, keys)
    wanted = jax.jit(jax.vmap(everything))(good, own, keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_bad_input_is_refused():
    good = jnp.asarray(GOOD)
    bad = {
        "majority": (lambda: attacks.InnerProduct(21)(good), "f = 21, m = 41"),
        "no deviation": (lambda: attacks.ALIE(1)(good[:1]), "two good rows"),
        "no factor": (lambda: attacks.ALIE(0)(good[:2]), "m = 2"),
        "direction": (
            lambda: attacks.LineSearch(1, attacks.against_deviation, robust.Mean())(good[:1]),
            "two good rows",
        ),
        "own": (lambda: attacks.SignFlip(2)(good, own=good), r"\(2, 6\)"),
        "key": (lambda: attacks.Gaussian(2)(good), "key"),
        "first direction": (lambda: attacks.Mimic(2).init(good[0]), "key"),
        "state": (lambda: attacks.Mimic(2)(good), "state"),
        "f": (lambda: attacks.SignFlip(-1), "f must be at least 0"),
        "scale": (lambda: attacks.SignFlip(1, 0.0), "scale"),
        "epsilon": (lambda: attacks.InnerProduct(1, -1.0), "epsilon"),
        "finite": (lambda: attacks.NonFinite(1, 3.0), "finite"),
        "classes": (lambda: attacks.LabelFlip(1), "num_classes"),
        "faulty": (lambda: attacks.LabelFlip(3)(np.arange(3), np.ones(2, bool)), "faulty"),
        "trials": (lambda: attacks.LineSearch(1, attacks.against_mean, robust.Mean(), 0), "trials"),
    }
    for call, words in bad.values():
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="integers"):
        attacks.LabelFlip(3)(np.ones(3))
    with pytest.raises(TypeError, match="rule"):
        attacks.LineSearch(1, attacks.against_mean, "mean")
