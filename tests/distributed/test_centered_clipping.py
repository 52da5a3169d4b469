"""Robust SGD against a loop in numpy, and what momentum and clipping are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxopt_ext import distributed as dd
from jaxopt_ext.distributed import attacks, robust

N, D, ROUNDS = 7, 3, 9
RNG = np.random.default_rng(0)
TARGETS = RNG.normal(size=(N, ROUNDS, D)) + np.arange(N)[:, None, None] / 3
BAD = (5, 6)
FAULTY = np.arange(N) >= 5
STEP, BETA, TAU, PASSES, EPSILON = 0.3, 0.8, 0.7, 3, 2.0


def loss(x, target):
    return 0.5 * jnp.sum((jnp.concatenate([x["a"], x["b"]]) - target) ** 2)


def start(dtype):
    return {"a": jnp.zeros((N, 1), dtype), "b": jnp.zeros((N, D - 1), dtype)}


def ran(algorithm, dtype=jnp.float64):
    targets = jnp.asarray(TARGETS, dtype)
    network = dd.Network.clients(N)
    result = dd.run(algorithm, network, start(dtype), lambda r: targets[:, r], ROUNDS)
    return np.concatenate([result.params["a"], result.params["b"]], axis=1)


def clipped_mean(rows, v, there):
    for _ in range(PASSES):
        gaps = [(row - v) * min(1, TAU / np.linalg.norm(row - v)) for row in rows[there]]
        v = v + np.sum(gaps, axis=0) / len(rows)
    return v


def recursion(aggregate, attacked, arrived=lambda r: np.ones(N, bool)):
    x, v, momentum = np.zeros(D), np.zeros(D), None
    for r in range(ROUNDS):
        g = x - TARGETS[:, r]
        momentum = g if r == 0 else BETA * momentum + (1 - BETA) * g
        sent = momentum.copy()
        if attacked:
            sent[FAULTY] = -EPSILON * np.mean(momentum[~FAULTY], axis=0)
        v = aggregate(sent, v, arrived(r))
        x = x - STEP * v
    return x


def test_equals_the_recursion():
    bad = {"attack": attacks.InnerProduct(2, EPSILON), "faulty": BAD}
    rule = robust.CenteredClip(TAU, PASSES)
    found = ran(dd.RobustSGD(loss, STEP, rule, BETA, **bad))
    wanted = np.tile(recursion(clipped_mean, True), (N, 1))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.slow
def test_rules_that_gather_and_messages_that_do_not_arrive():
    def present(key, n):
        return jax.random.bernoulli(key, 0.7, (n,))

    masks = []
    for r in range(ROUNDS):
        key = jax.random.split(jax.random.fold_in(jax.random.key(0), r), 3)[0]
        masks.append(np.asarray(present(key, N)))
    assert not all(mask.all() for mask in masks)
    lost = {"arrived": present}
    median = lambda rows, v, there: np.median(rows[there], axis=0)
    found = ran(dd.RobustSGD(loss, STEP, robust.CenteredClip(TAU, PASSES), BETA, **lost))
    wanted = recursion(clipped_mean, False, masks.__getitem__)
    np.testing.assert_allclose(found, np.tile(wanted, (N, 1)), rtol=1e-12)
    bad = {"attack": attacks.InnerProduct(2, EPSILON), "faulty": BAD}
    found = ran(dd.RobustSGD(loss, STEP, robust.CoordinateMedian(), BETA, **bad, **lost))
    wanted = recursion(median, True, masks.__getitem__)
    np.testing.assert_allclose(found, np.tile(wanted, (N, 1)), rtol=1e-12)


def test_without_clipping_it_is_momentum_on_the_mean():
    found = ran(dd.RobustSGD(loss, STEP, robust.CenteredClip(jnp.inf), BETA), jnp.float32)
    assert found.dtype == np.float32
    wanted = recursion(lambda rows, v, there: np.mean(rows, axis=0), False)
    np.testing.assert_allclose(found, np.tile(wanted, (N, 1)), rtol=1e-4)


@pytest.mark.slow
def test_rules_over_a_mesh_equal_all_rows_at_once():
    rules = {
        "mean": robust.Mean(),
        "clipping": robust.CenteredClip(1.0, 3),
        "trimmed": robust.TrimmedMean(2),
    }
    rows = RNG.normal(size=(8, 5))
    rows[1, 2] = np.nan
    rows, state = jnp.asarray(rows), jnp.asarray(RNG.normal(size=5))
    mask = jnp.arange(8) != 1
    mesh = Mesh(np.array(jax.devices()[:4]), ("nodes",))
    network = dd.Network.clients(8, mesh, "nodes")

    def over(x, _, key):
        found = {
            n: rule.aggregate_over(network, x, state, None, key, mask) for n, rule in rules.items()
        }
        found["clipped, all"] = rules["clipping"].aggregate_over(network, x, state)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, x.shape), found)

    found = jax.jit(network.parallel(over))(rows, rows, jax.random.key(0))

    @jax.jit
    def at_once(rows):
        found = {name: rule.aggregate(rows, state, mask=mask) for name, rule in rules.items()}
        return found | {"clipped, all": rules["clipping"].aggregate(rows, state)}

    wanted = at_once(rows)
    for name, row in wanted.items():
        np.testing.assert_allclose(found[name], np.tile(row, (8, 1)), rtol=1e-12, err_msg=name)
    with pytest.raises(ValueError, match="m = 4"):
        robust.TrimmedMean(2).aggregate_over(dd.Network.clients(4), rows[:4])
    with pytest.raises(ValueError, match="mask must have shape"):
        robust.Mean().aggregate_over(dd.Network.clients(8), rows, mask=mask[:3])


def test_a_worker_sends_as_often_as_the_rule_looks():
    params, network = start(jnp.float32), dd.Network.clients(N)
    bits = lambda rule: dd.RobustSGD(loss, STEP, rule).bits_per_round(params, network)
    assert bits(robust.Mean()) == bits(robust.CoordinateMedian()) == 32 * D
    assert bits(robust.CenteredClip(1.0, 5)) == 5 * 32 * D


def test_the_radius():
    np.testing.assert_allclose(dd.clipping_radius(2.0, 0.9), 1.5 * 2 * np.sqrt(0.1 / 1.9))
    np.testing.assert_allclose(dd.clipping_radius(2.0, 0.0, 1.0), 2)
    with pytest.raises(ValueError, match="momentum"):
        dd.clipping_radius(1.0, 1.0)


def test_what_does_not_fit_is_refused():
    rule, attack = robust.Mean(), attacks.SignFlip(2)
    with pytest.raises(ValueError, match="momentum must be in"):
        dd.RobustSGD(loss, STEP, rule, 1.0)
    with pytest.raises(ValueError, match="tau"):
        robust.CenteredClip(0.0)
    with pytest.raises(TypeError, match="aggregator must be an object"):
        dd.RobustSGD(loss, STEP, jnp.mean)
    with pytest.raises(ValueError, match="go together"):
        dd.RobustSGD(loss, STEP, rule, attack=attack)
    with pytest.raises(ValueError, match="must be numbers"):
        dd.RobustSGD(loss, STEP, rule, attack=attack, faulty=FAULTY)
    with pytest.raises(ValueError, match="different numbers"):
        dd.RobustSGD(loss, STEP, rule, attack=attack, faulty=[5, 5])
    with pytest.raises(ValueError, match=r"among 0, ..., 6, got \(6, 7\)"):
        ran(dd.RobustSGD(loss, STEP, rule, attack=attack, faulty=[7, 6]))
    with pytest.raises(ValueError, match="1 nodes are faulty"):
        ran(dd.RobustSGD(loss, STEP, rule, attack=attack, faulty=[1]))


@pytest.mark.slow
def test_rare_events_and_momentum():
    """No attacker: gradients are informative once in ten times, and medians never see it."""
    n, p, seeds = 15, 0.1, 4
    network = dd.Network.clients(n)
    square = lambda x, xi: 0.5 * (x - xi) ** 2
    spread = np.sqrt((1 - p) / p)

    def average(rule, beta, key):
        algorithm = dd.RobustSGD(square, 0.01, rule, beta)
        draw = lambda k: jnp.where(jax.random.bernoulli(k, p, (n,)), 1 / p, 0.0)
        first = draw(key)
        state = algorithm.init(jnp.zeros(n), first, network, key)

        def one(state, r):
            k = jax.random.fold_in(key, r)
            state = algorithm.round(state, draw(k), network, k)
            return state, state.params[0]

        return jnp.mean(jax.lax.scan(one, state, jnp.arange(6000))[1][3000:])

    keys = jax.random.split(jax.random.key(1), seeds)

    def over_seeds(rule_of, betas):
        each = lambda beta: jax.vmap(lambda k: average(rule_of(beta), beta, k))(keys)
        return np.mean(jax.jit(jax.vmap(each))(jnp.asarray(betas)), axis=1)

    betas = [0.0, 0.9, 0.99]
    clipping = over_seeds(lambda b: robust.CenteredClip(dd.clipping_radius(spread, b)), betas)
    np.testing.assert_allclose(clipping, [0.5, 0.97, 1.0], atol=0.06)
    np.testing.assert_allclose(over_seeds(lambda b: robust.Mean(), betas), 1, atol=0.05)
    for rule in (robust.CoordinateMedian(), robust.Krum(0), robust.GeometricMedian()):
        without, some, _ = over_seeds(lambda b, rule=rule: rule, betas)
        assert abs(without) < 0.02
        assert 0.7 < some < 0.98


D_PUSHED, N_PUSHED, F_PUSHED = 50, 25, 5


def pushed(rule_of, attack, steps=2000, step=0.02, seeds=2):
    """Root mean square of x over the last half, by momentum: on $\\|x\\|^2/2$ with noise of N(0, I)
    in the gradients of 25 workers, of whom five are bad."""
    network = dd.Network.clients(N_PUSHED)
    bad = {"attack": attack, "faulty": range(N_PUSHED - F_PUSHED, N_PUSHED)}
    square = lambda x, xi: jnp.sum(x * x / 2 + xi * x)

    def one(beta, key):
        algorithm = dd.RobustSGD(square, step, rule_of(beta), beta, **bad)
        noise = lambda k: jax.random.normal(k, (N_PUSHED, D_PUSHED))
        state = algorithm.init(jnp.zeros((N_PUSHED, D_PUSHED)), noise(key), network, key)

        def again(state, r):
            k = jax.random.fold_in(key, r)
            state = algorithm.round(state, noise(k), network, k)
            return state, jnp.mean(state.params[0] ** 2)

        return jnp.sqrt(jnp.mean(jax.lax.scan(again, state, jnp.arange(steps))[1][steps // 2 :]))

    betas, keys = jnp.asarray([0.0, 0.9, 0.99]), jax.random.split(jax.random.key(7), seeds)
    each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return np.mean(jax.jit(each)(betas, keys), axis=1)


def clipping(beta):
    return robust.CenteredClip(dd.clipping_radius(np.sqrt(D_PUSHED), beta))


RULES = {
    "clipping": clipping,
    "median": lambda _: robust.CoordinateMedian(),
    "trimmed mean": lambda _: robust.TrimmedMean(F_PUSHED),
    "geometric median": lambda _: robust.GeometricMedian(),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_momentum_divides_what_a_push_within_the_noise_does(rule):
    """Bad workers send the mean less 1.5 deviations, round after round."""
    found = pushed(rule, attacks.ALIE(F_PUSHED, 1.5))
    # With averages over ten and a hundred rounds, the noise is 0.229 and 0.071 of what it was.
    np.testing.assert_allclose(found[1] / found[0], np.sqrt(0.1 / 1.9), rtol=0.2)
    assert found[2] < 0.6 * found[1]
    assert 0.2 < found[0] < 0.45


@pytest.mark.slow
def test_a_thousand_times_the_mean_backwards():
    attack = attacks.InnerProduct(F_PUSHED, 1000.0)
    found = pushed(clipping, attack)
    assert np.all(found < np.array([0.5, 0.15, 0.06]))
    assert not np.all(pushed(lambda _: robust.Mean(), attack, steps=400) < 1e3)
