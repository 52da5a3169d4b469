"""Stale attacks: closed forms, the definition in numpy, independence in the program, a mesh."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxopt_ext import training
from jaxopt_ext.training import (
    FGSM,
    PGD,
    Branch,
    ConcurrentAdversarial,
    NoAttack,
    RandomTargetFGSM,
    SequentialAdversarial,
    SplitBatchNorm,
)

B, D, STEPS = 4, 3, 7
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, B, D))
Y = RNG.integers(0, 2, size=(STEPS, B))
W = jnp.asarray(RNG.normal(size=D))
KEY = jax.random.key(0)


def logistic(w, x, y, branch):
    """Labels 0 and 1."""
    del branch
    return jnp.mean(jnp.logaddexp(0.0, -(2 * y - 1) * (x @ w)))


def attacked(attack, x=X[0], y=Y[0], key=KEY):
    loss = lambda x, y: logistic(W, x, y, Branch.ADVERSARIAL)
    return np.asarray(jax.jit(lambda x, y, key: attack(loss, x, y, key))(x, y, key))


def test_fast_gradient_signs_in_closed_form():
    signs = (2 * Y[0] - 1)[:, None]
    found = attacked(FGSM(0.3, bounds=None))
    np.testing.assert_allclose(found, X[0] + 0.3 * np.sign(-signs * np.asarray(W)), rtol=1e-12)
    found = attacked(FGSM(0.3, 2, None))
    away = -signs * np.asarray(W) / np.linalg.norm(W)
    np.testing.assert_allclose(found, X[0] + 0.3 * away, rtol=1e-12)
    found = attacked(FGSM(0.3, bounds=(-0.5, 0.5)), np.clip(X[0], -0.5, 0.5))
    assert np.max(np.abs(found)) <= 0.5
    flat = jax.jit(lambda x: FGSM(0.3, 2, None)(lambda x, y: jnp.sum(0 * x), x, Y[0], KEY))(X[0])
    np.testing.assert_array_equal(flat, X[0])


@pytest.mark.parametrize("norm", [2, math.inf])
def test_projected_ascent_stays_in_ball_and_range(norm):
    x = np.clip(X[0], -1, 1)
    found = attacked(PGD(0.4, 0.15, 6, norm, (-1.0, 1.0)), x)
    assert np.max(np.abs(found)) <= 1
    away = np.linalg.norm(found - x, ord=norm, axis=1)
    assert np.all(away <= 0.4 * (1 + 1e-12))
    loss = jax.jit(lambda x: logistic(W, x, Y[0], None))
    assert loss(found) > loss(x)
    # Without a range the ascent of a linear score ends at the corner that one step goes to.
    far = attacked(PGD(0.4, 0.3, 40, norm, None))
    np.testing.assert_allclose(far, attacked(FGSM(0.4, norm, None)), rtol=1e-8, atol=1e-8)


def test_random_targets():
    centers = jnp.asarray(RNG.normal(size=(D, 5)))

    def cross_entropy(x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ centers, y))

    x, y = RNG.uniform(size=(6, D)), np.array([0, 1, 2, 3, 4, 0])
    once = RandomTargetFGSM(0.1, 5, noise_probability=0.0)
    noisy = RandomTargetFGSM(0.1, 5, noise_probability=0.8, steps=3, step_size=0.01)

    @jax.jit
    @jax.vmap
    def made(key):
        return [
            attack(cross_entropy, jnp.asarray(x), jnp.asarray(y), key) for attack in (once, noisy)
        ]

    single, several = map(np.asarray, made(jax.random.split(KEY, 200)))
    p = np.exp(x @ np.asarray(centers))
    p /= p.sum(axis=1, keepdims=True)
    slopes = (p[None] - np.eye(5)[:, None]) @ np.asarray(centers).T  # targets, samples, inputs
    wanted = np.clip(x - 0.1 * np.sign(slopes), 0, 1)
    same = np.all(np.abs(single[:, None] - wanted) < 1e-12, axis=-1)  # draws, targets, samples
    assert np.all(same.any(axis=1))
    for i in range(6):
        others = [t for t in range(5) if t != y[i]]
        assert same[:, others, i].any(axis=0).all()
        if not any(np.allclose(wanted[y[i], i], wanted[t, i]) for t in others):
            assert not same[:, y[i], i].any()
    assert np.all(np.abs(several - x) <= 0.1 + 1e-12)
    assert several.min() >= 0
    assert several.max() <= 1
    assert len(np.unique(several[:, 0, 0])) > 50  # noise, where it leaves the cube open


def slope(w, x, y):
    signs = 2 * y - 1
    return np.mean((-signs / (1 + np.exp(signs * (x @ w))))[:, None] * x, axis=0)


def by_definition(staleness, eps, steps):
    """Parameters of the first steps of the definition, with plain gradient descent."""
    path = [np.asarray(W)]
    for t in range(steps):
        old = path[max(t - staleness, 0)]
        bad = X[t] + eps * np.sign(-(2 * Y[t] - 1)[:, None] * old)
        step = 0.3 * slope(path[-1], X[t], Y[t]) + 0.7 * slope(path[-1], bad, Y[t])
        path.append(path[-1] - 0.5 * step)
    return path


def fit(method, num_steps=STEPS, **options):
    return training.fit(method, W, (X, Y), num_steps, piece=STEPS, progress=False, **options)


def concurrent(staleness=1, eps=2.0, tx=None, **options):
    options = {"weights": (0.3, 0.7), **options}
    tx = optax.sgd(0.5) if tx is None else tx
    return ConcurrentAdversarial(
        logistic, FGSM(eps, bounds=None), tx, staleness=staleness, **options
    )


def test_attacks_are_as_old_as_they_say():
    for staleness in (1, 3):
        found = fit(concurrent(staleness))
        wanted = by_definition(staleness, 2.0, STEPS - staleness)
        np.testing.assert_allclose(found.params, wanted[-1], rtol=1e-10)
        np.testing.assert_array_equal(found.metrics["loss"] == 0, np.arange(STEPS) < staleness)
    sequential = SequentialAdversarial(logistic, FGSM(2.0, bounds=None), optax.sgd(0.5), (0.3, 0.7))
    found = fit(sequential, STEPS - 1).params
    np.testing.assert_allclose(found, by_definition(0, 2.0, STEPS - 1)[-1], rtol=1e-10)
    assert np.max(np.abs(found - by_definition(1, 2.0, STEPS - 1)[-1])) > 1e-3


def test_without_an_attack_it_is_plain_training():
    tx = optax.sgd(0.5, momentum=0.9)
    plain = training.GradientStep(lambda w, batch, context: (logistic(w, *batch, None), {}), tx)
    wanted = fit(plain, STEPS - 2).params
    ours = concurrent(2, 0.0, tx, weights=(0.5, 0.5))
    np.testing.assert_allclose(fit(ours).params, wanted, rtol=1e-13)


def deep(params, x, y, branch):
    del branch
    x = jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]) @ params[2]
    return jnp.mean((x - y) ** 2)


def depths(jaxpr, inputs):
    """Of each output of a program the products on its longest chain, and the inputs it sees."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    nothing = (0, frozenset())
    join = lambda parts: (
        max((depth for depth, _ in parts), default=0),
        frozenset().union(*(seen for _, seen in parts)),
    )
    for eqn in jaxpr.eqns:
        parts = [nothing if isinstance(v, Literal) else known.get(v, nothing) for v in eqn.invars]
        inner = [p for p in eqn.params.values() if isinstance(p, Jaxpr | ClosedJaxpr)]
        if len(inner) == 1 and eqn.primitive.name in ("pjit", "jit", "custom_jvp_call"):
            out = depths(getattr(inner[0], "jaxpr", inner[0]), parts)
        else:
            depth, seen = join(parts)
            out = [(depth + (eqn.primitive.name == "dot_general"), seen)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, out, strict=True))
    return [nothing if isinstance(v, Literal) else known.get(v, nothing) for v in jaxpr.outvars]


def chains(method):
    """For each leaf of the state after a step, by its path: products in a row, and what it saw."""
    params = [jnp.ones((D, D)), jnp.ones((D, D)), jnp.ones(D)]
    batch = jnp.asarray(X[0]), jnp.asarray(Y[0])
    state = method.init(params, batch, KEY)
    step = lambda state, batch: method.step(state, batch)[0]
    jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(state, batch)
    paths = lambda tree: [
        jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    inputs = [(0, frozenset([path])) for path in paths((state, batch))]
    return dict(zip(paths(shapes), depths(jaxpr.jaxpr, inputs), strict=True))


def test_the_two_parts_of_a_step_are_independent():
    attack = FGSM(0.1, bounds=None)
    ours = chains(ConcurrentAdversarial(deep, attack, optax.sgd(0.1)))
    usual = chains(SequentialAdversarial(deep, attack, optax.sgd(0.1)))
    plain = chains(ConcurrentAdversarial(deep, NoAttack(), optax.sgd(0.1)))
    new = {"[1][0]", "[1][1]"}
    for path in (".params[0]", ".params[1]", ".params[2]"):
        assert not ours[path][1] & new  # the gradient does not see the batch that is attacked
        assert ours[path][1] & {"[0].ring[2]"}
    made, turn = ours[".ring[2]"], {"[0].ring[0]", "[0].ring[1]"}
    assert new <= made[1]
    assert not made[1] & turn  # nor the attack the batch that is trained on
    longest = lambda found: max(depth for depth, _ in found.values())
    assert longest(ours) <= longest(plain) + 1  # down to the inputs, not the first weights
    assert longest(usual) >= 2 * longest(plain) - 1


def test_two_devices_take_one_step_together():
    ours = concurrent(2)
    mesh = jax.make_mesh((2,), ("role",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.PartitionSpec()
    batch = lambda t: (jnp.asarray(X[t]), jnp.asarray(Y[t]))
    together = jax.jit(
        jax.shard_map(
            lambda state, batch: ours.step_on(state, batch, "role"),
            mesh=mesh,
            in_specs=whole,
            out_specs=whole,
        )
    )
    alone = eqx.filter_jit(ours.step)
    a = b = ours.init(W, batch(0), KEY)
    for t in range(5):
        a, found = together(a, batch(t))
        b, wanted = alone(b, batch(t))
        np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-10)
    for x, y in zip(*map(jax.tree.leaves, ((a.params, a.ring), (b.params, b.ring))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10)
    four = jax.make_mesh((4,), ("role",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="two devices, got 4"):
        jax.shard_map(
            lambda state, batch: ours.step_on(state, batch, "role"),
            mesh=four,
            in_specs=whole,
            out_specs=whole,
        )(b, batch(0))


class Normed(eqx.Module):
    norm: SplitBatchNorm
    w: jax.Array


def test_statistics_of_branches_do_not_mix():
    params = Normed(SplitBatchNorm(D, decay=0.5), W)

    def loss(params, x, y, branch):
        return logistic(params.w, params.norm(x, branch), y, branch)

    def observe(params, x, branch):
        return eqx.tree_at(lambda p: p.norm, params, params.norm.observe(x, branch))

    ours = SequentialAdversarial(
        loss,
        FGSM(0.5, bounds=None),
        optax.sgd(0.1, momentum=0.9),
        augment=lambda key, x: x + 3 + 0 * jax.random.normal(key),
        observe=observe,
    )
    assert len(ours.weights) == 3
    state = ours.init(params, (X[0], Y[0]), KEY)
    state, _ = eqx.filter_jit(ours.step)(state, (jnp.asarray(X[0]), jnp.asarray(Y[0])))
    norm = state.params.norm
    mean, variance = X[0].mean(0), X[0].var(0)
    np.testing.assert_allclose(norm.mean[Branch.CLEAN], mean / 2, rtol=1e-12)
    np.testing.assert_allclose(norm.variance[Branch.CLEAN], (1 + variance) / 2, rtol=1e-12)
    np.testing.assert_allclose(norm.mean[Branch.AUGMENTED], (mean + 3) / 2, rtol=1e-12)
    score = lambda x, y: loss(params, x, y, Branch.ADVERSARIAL)
    bad = jax.jit(lambda x: FGSM(0.5, bounds=None)(score, x, Y[0], KEY))(X[0])
    bad, norm = jax.tree.map(np.asarray, (bad, norm))
    np.testing.assert_allclose(norm.mean[Branch.ADVERSARIAL], bad.mean(0) / 2, rtol=1e-12)
    assert np.all(np.any(norm.scale != 1, axis=1))  # each branch learns its own
    centered = (X[1] - mean / 2) / np.sqrt((1 + variance) / 2 + 1e-5)
    wanted = centered * norm.scale[Branch.CLEAN] + norm.shift[Branch.CLEAN]
    np.testing.assert_allclose(eqx.filter_jit(norm.evaluate)(X[1]), wanted, rtol=1e-10)


def test_bad_input():
    for make, match in [
        (lambda: FGSM(-0.1), "eps"),
        (lambda: FGSM(0.1, 1), "norm"),
        (lambda: FGSM(0.1, bounds=(1.0, 0.0)), "bounds"),
        (lambda: PGD(0.1, -1.0, 3), "step"),
        (lambda: PGD(0.1, 0.1, 0), "steps"),
        (lambda: RandomTargetFGSM(0.1, 1), "num_classes"),
        (lambda: RandomTargetFGSM(0.1, 3, noise_probability=2.0), "noise_probability"),
        (lambda: concurrent(staleness=0), "staleness"),
        (lambda: concurrent(weights=(1.0,)), "weights"),
        (lambda: concurrent(weights=(1.0, -1.0)), "weights"),
        (lambda: concurrent(augment=lambda key, x: x), "weights"),
        (lambda: ConcurrentAdversarial(logistic, 3, optax.sgd(0.1)), "attack"),
        (lambda: SplitBatchNorm(3, decay=1.0), "decay"),
    ]:
        with pytest.raises((ValueError, TypeError), match=match):
            make()
    bounded = ConcurrentAdversarial(logistic, FGSM(0.1), optax.sgd(0.1))
    with pytest.raises(ValueError, match="within"):
        fit(bounded)
    with pytest.raises(TypeError, match="pair"):
        bounded.init(W, X[0], KEY)
