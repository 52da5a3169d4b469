"""Trajectory models: identities of the jump, the exact map of a Gaussian, laws of what is drawn."""

import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import drawn, numpy_draws

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import Node
from jaxopt_ext.training import Context

VE = diffusion.VarianceExploding(start=20.0, end=0.02)
CONTEXT = Context(jax.random.key(1), jnp.ones((), int), None)
MEAN, SCALE = np.array([0.7, -0.3]), 0.5


class Gauss(diffusion.AbstractTrajectory):
    """The exact map of N(mean, scale^2), all of whose levels have alpha = 1; `bend` spoils it."""

    bend: jax.Array

    def jump(self, x, node, target):
        ratio = jnp.sqrt((SCALE**2 + target.sigma**2) / (SCALE**2 + node.sigma**2))
        wrong = self.bend * (node.sigma - target.sigma)
        return MEAN + ratio * (x - MEAN) + wrong

    def data(self, x, node):
        return MEAN + SCALE**2 / (SCALE**2 + node.sigma**2) * (x - MEAN)

    def noise(self, x, node):
        return (x - self.data(x, node)) / node.sigma


EXACT = Gauss(jnp.zeros(()))


def level(t):
    t = jnp.array(t, float)
    return Node(t, jnp.ones_like(t), t)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def model(shape=(2,), network=None, seed=0, draws=numpy_draws):
    with draws(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        if network is None:
            network = diffusion.MLPDenoiser(shape, 16, 1, key=keys[0])
        network = diffusion.TrajectoryNetwork(network, key=keys[1])
        weight = 0.3 * jax.random.normal(keys[2], network.weight.shape)
    network = eqx.tree_at(lambda n: n.weight, network, weight)
    return diffusion.TrajectoryModel(network, diffusion.Preconditioned(0.8))


def test_a_jump_is_the_identity_at_its_own_level_and_its_slope_is_the_denoiser():
    random, x = model(), jnp.array([0.3, -0.8])
    vp = diffusion.VariancePreserving()

    def slope(t):
        same = random.jump(x, level(t), level(t)) - x
        out = jax.jvp(lambda s: random.jump(x, level(t), level(s)), (t,), (jnp.ones(()),))[1]
        return same, out - (x - random.data(x, level(t))) / t

    cast = lambda a: jnp.array(np.asarray(a, np.float32)) if eqx.is_inexact_array(a) else a
    narrow = jax.tree.map(cast, random)
    only = random.denoiser()
    node, target = (jax.tree.map(jnp.array, vp.nodes(t)) for t in (0.8, 0.5))

    @eqx.filter_jit
    def outputs(random, narrow, x, levels, node, target):
        here = level(jnp.float32(0.3))
        only = random.denoiser()
        return {
            "slopes": jax.vmap(slope)(levels),
            "narrow": narrow.jump(x.astype(jnp.float32), here, here),
            "same": random.jump(x, node, node),
            "jump": random.jump(x, node, target),
            "towards": random.towards(x, node, target),
            "data": (only.data(x, node), random.data(x, node)),
            "noise": (only.noise(x, node), random.noise(x, node)),
        }

    levels = jnp.array([0.01, 0.4, 3.0, 15.0])
    found = jax.tree.map(np.asarray, outputs(random, narrow, x, levels, node, target))
    same, gap = found["slopes"]
    np.testing.assert_allclose(same, 0, atol=1e-12)
    np.testing.assert_allclose(gap, 0, atol=1e-8)
    np.testing.assert_allclose(found["narrow"], x, atol=1e-6)
    # On any schedule: g(x, t, t) stays put, and a model that denoises only jumps by DDIM.
    np.testing.assert_allclose(found["same"], x, atol=1e-12)
    ours = diffusion.sample(only, diffusion.GammaSampler(), vp, np.array([0.8, 0.5]), x).value
    node, target, x = jax.tree.map(np.asarray, (node, target, x))
    ddim = lambda data: target.alpha * data + target.sigma * (x - node.alpha * data) / node.sigma
    np.testing.assert_allclose(ours, ddim(found["data"][0]), rtol=1e-10)
    np.testing.assert_allclose(found["jump"], ddim(found["towards"]), rtol=1e-10)
    np.testing.assert_allclose(*found["data"], rtol=1e-12)
    np.testing.assert_allclose(*found["noise"], rtol=1e-10)


@pytest.mark.always(1)
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_new_second_level_changes_nothing_and_batches_are_seen_to(name):
    if name == "mlp":
        network, shape = model().network.network, (2,)
    else:
        make = functools.partial(diffusion.TransformerDenoiser, (4, 4), 2, 8, 1, 2)
        network, shape = drawn(lambda: make(key=CONTEXT.key), scale=0.5), (4, 4)
    with numpy_draws(4):
        two = diffusion.TrajectoryNetwork(network, key=CONTEXT.key)
    x = jnp.array(normal(3, *shape))
    random = model(shape, network)

    @jax.jit
    def run(x):
        go = lambda x, s: random.jump(x, level(2.0), level(s))
        first = two(x, level(2.0), level(0.5)) - network(x, level(2.0))
        return first, go(x, 0.5), go(x[1], 0.5), go(x, 1.0), random.data(x, level(2.0))

    new, batch, single, other, data = map(np.asarray, run(x))
    x = np.asarray(x)
    np.testing.assert_allclose(new, 0, atol=1e-12)
    np.testing.assert_allclose(single, batch[1], rtol=1e-9)
    # g itself depends on where the jump goes.
    assert np.abs((batch - x / 4) / 0.75 - (other - x / 2) / 0.5).max() > 1e-3
    assert np.abs((batch - x / 4) / 0.75 - data).max() > 1e-3


def test_of_an_exact_map_every_number_of_jumps_ends_alike():
    x = jnp.array(20 * normal(5, 2))
    ratio = np.sqrt((SCALE**2 + 0.02**2) / (SCALE**2 + 400))
    wanted = MEAN + ratio * (np.asarray(x) - MEAN)
    for n in (1, 2, 7):
        out = diffusion.sample(EXACT, diffusion.GammaSampler(), VE, diffusion.karras(VE, n), x)
        np.testing.assert_allclose(out.value, wanted, rtol=1e-10)
        assert out.evaluations == n


@pytest.mark.always(1)
@pytest.mark.parametrize("gamma", [0.4, 1.0])
def test_of_an_exact_map_samples_have_the_law(gamma):
    num, times = 20_000, diffusion.karras(VE, 4)
    x = jnp.array(MEAN + np.sqrt(SCALE**2 + 400) * normal(num, 2))
    sampler = diffusion.GammaSampler(gamma)
    out = diffusion.sample(EXACT, sampler, VE, times, x, key=jax.random.key(1), trace=True)
    for t, x in zip(times[1:], np.asarray(out.path), strict=True):
        variance = SCALE**2 + t**2
        assert np.all(np.abs(x.mean(0) - MEAN) < 4 * np.sqrt(variance / num))
        np.testing.assert_allclose(np.cov(x.T) / variance, np.eye(2), atol=0.04)
    # With gamma = 1 all but the last jump end where the schedule does.
    row = diffusion.GammaSampler(1.0).plan(VE, times)
    np.testing.assert_allclose(row[1].sigma, 0.02, rtol=1e-9)


def gauss_losses(num_steps, bends=(0.0,), **options):
    """Of the exact map and of bent ones."""
    options = {"teacher": EXACT, **options}
    loss = diffusion.CTMLoss(VE, diffusion.karras(VE, num_steps), **options)
    batch = jnp.array(MEAN + SCALE * normal(4000, 2, seed=2))
    one = lambda bend, batch, context: loss(Gauss(bend), batch, context)[0]
    every = jax.jit(jax.vmap(one, (0, None, None)))
    return np.asarray(every(jnp.array(bends), batch, CONTEXT))


SHORT = {"spans": diffusion.UniformSpans(1), "targets": diffusion.LastTarget()}


def test_the_exact_map_has_no_loss_but_the_solvers_error():
    exact, bent = gauss_losses(40, (0.0, 0.05), **SHORT)
    assert exact < 1e-7
    assert bent > 100 * exact


@pytest.mark.slow
def test_the_solvers_error_has_its_order():
    """Heun's error of one step is of third order, its square of sixth."""
    few, bent = gauss_losses(20, (0.0, 0.05), **SHORT)
    (many,) = gauss_losses(40, **SHORT)
    assert 35 < few / many < 110
    assert bent > 100 * few


@pytest.mark.slow
def test_exact_jumps_for_a_teacher_leave_no_loss():
    jumps = {"solver": diffusion.GammaSampler()}
    for other in ({}, jumps, {"targets": diffusion.NearestTarget()}):
        assert gauss_losses(6, teacher=None, **{**jumps, **other}) < 1e-20
    exact, bent = gauss_losses(6, (0.0, 0.05), teacher=None)
    assert exact < 1e-20
    assert bent > 1e-6


def test_places_in_the_grid():
    loss = diffusion.CTMLoss(VE, diffusion.karras(VE, 5))
    batch = jnp.zeros((500, 2))
    plan = jax.tree.map(jnp.array, loss.plan)
    each = jax.vmap(lambda key: loss._draw(EXACT, batch, plan, key)[:3])
    nodes = jax.jit(lambda key: each(jax.random.split(key, 400)))(jax.random.key(0))
    times = diffusion.karras(VE, 5)[::-1]
    here, middle, there = (5 - np.searchsorted(times, np.asarray(n.t) - 1e-9) for n in nodes)
    span = middle - here
    assert np.all(span == span[:, :1])
    counts = np.bincount(span[:, 0], minlength=6)[1:]
    np.testing.assert_allclose(counts / 400, np.arange(1, 6) / 15, atol=0.1)
    one = span[:, 0] == 2
    assert set(here[one].ravel()) == {0, 1, 2, 3}
    assert there.max() == 5
    assert np.all(there >= middle)
    np.testing.assert_allclose(
        np.mean(there[here == 0]), np.mean((middle + 5)[here == 0] / 2), 0.02
    )


def test_gradients_flow_through_the_average_but_not_to_it(monkeypatch):
    spans = diffusion.UniformSpans(1)  # so that a jump is left on both sides
    loss = diffusion.CTMLoss(VE, diffusion.karras(VE, 5), EXACT, spans=spans)
    ours, average = np.array([0.2, -0.1]), np.array([-0.3, 0.25])
    batch, draw, seen = jnp.array(normal(4, 2, seed=2)), diffusion.CTMLoss._draw, []

    def kept(self, *args):
        seen.append(draw(self, *args))
        return seen[-1]

    monkeypatch.setattr(diffusion.CTMLoss, "_draw", kept)

    def ask(ours, average):
        context = Context(CONTEXT.key, CONTEXT.step, Gauss(average))
        return loss(Gauss(ours), batch, context)[0], seen.pop()

    both = jax.value_and_grad(ask, (0, 1), has_aux=True)
    (found, drawn), (gradient, none) = jax.jit(both)(jnp.array(ours), jnp.array(average))
    assert not np.any(np.asarray(none))

    def jump(bend, x, sigma, target):
        ratio = np.sqrt((SCALE**2 + target**2) / (SCALE**2 + sigma**2))
        return MEAN + ratio * (x - MEAN) + bend * (sigma - target)

    here, middle, there = (np.asarray(n.sigma)[:, None] for n in drawn[:3])
    noisy, taught = np.asarray(drawn.noisy), np.asarray(drawn.taught)
    assert np.any(middle > there)
    assert np.any(there > 0.02)

    def value(ours, target):
        """By hand: `target` is what the goal's side is computed with."""
        estimate = jump(average, jump(ours, noisy, here, there), there, 0.02)
        goal = jump(average, jump(target, taught, middle, there), there, 0.02)
        return np.mean((estimate - goal) ** 2)

    np.testing.assert_allclose(found, value(ours, ours), rtol=1e-9)
    moved = lambda e: value(ours + e, ours)
    wanted = [(moved(e) - moved(-e)) / 2e-5 for e in 1e-5 * np.eye(2)]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6)


@pytest.mark.slow
def test_weights_balance_gradients_and_players_see_their_own():
    critic = eqx.nn.MLP(2, "scalar", 8, 1, key=jax.random.key(9))
    both = diffusion.WithCritic(model(), critic)
    batch = jax.random.normal(jax.random.key(2), (16, 2))
    times = diffusion.karras(VE, 4)
    term = diffusion.denoising_term(VE, 0.8)
    make = lambda **options: diffusion.CTMLoss(VE, times, denoising=term, **options)
    ask = lambda loss, both, step: loss(both, batch, Context(CONTEXT.key, step, None))
    full = make(adversary=diffusion.HingeAdversary(start_step=3))
    run = jax.jit(lambda step: ask(full, both, step))
    (loss, found), (early, _) = run(jnp.array(4)), run(jnp.array(3))
    parts = found["consistency"] + found["denoising_weight"] * found["denoising"]
    np.testing.assert_allclose(early, parts, rtol=1e-9)
    parts += found["deceiving_weight"] * found["deceiving"] + found["critic"]
    np.testing.assert_allclose(loss, parts, rtol=1e-9)
    assert 0.01 <= found["deceiving_weight"] <= 10

    # The weight, from gradients of plain losses; with fixed weights those are differences.
    layer = lambda m: m.trajectory.network.network.last
    arrays, rest = eqx.partition(both, eqx.is_inexact_array)
    step = jnp.array(4)

    @jax.jit
    def gradients(arrays):
        go = lambda w: lambda a: ask(make(denoising_weight=w), eqx.combine(a, rest), step)[0]
        plain, more = (jax.grad(go(w))(arrays) for w in (0.0, 1.0))
        fixed = diffusion.HingeAdversary(weight=2.0)
        lone = make(denoising_weight=0.0, adversary=fixed)
        played = jax.grad(lambda a: ask(lone, eqx.combine(a, rest), step)[0])(arrays)
        return plain, jax.tree.map(jnp.subtract, more, plain), played

    plain, extra, played = gradients(arrays)
    size = lambda g: np.sqrt(sum(float(jnp.sum(a**2)) for a in jax.tree.leaves(layer(g))))
    np.testing.assert_allclose(
        found["denoising_weight"], size(plain) / (size(extra) + 1e-4), rtol=1e-6
    )
    # The critic's gradient is that of the hinge alone, the model's does not hold it.
    assert all(np.all(a == 0) for a in jax.tree.leaves(plain.critic))
    assert any(np.any(a != 0) for a in jax.tree.leaves(played.critic))
    lower = make(denoising_weight=0.0, adversary=diffusion.HingeAdversary(weight=0.0))
    alone = jax.jit(jax.grad(lambda a: ask(lower, eqx.combine(a, rest), step)[0]))(arrays)
    for a, b in zip(*map(jax.tree.leaves, (alone.trajectory, plain.trajectory)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(*map(jax.tree.leaves, (alone.critic, played.critic)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_levels_of_the_denoising_term():
    levels = diffusion.denoising_term(VE, 0.5).levels
    nodes = jax.jit(lambda key: levels.draw(key, 8001, jnp.float32))(jax.random.key(0))
    sigma = np.asarray(nodes.sigma)
    log = np.log(sigma[:4001])
    assert abs(log.mean() + 1.2) < 0.1
    assert abs(log.std() - 1.2) < 0.1
    ramp = (sigma[4001:] ** (1 / 7) - 20 ** (1 / 7)) / (0.02 ** (1 / 7) - 20 ** (1 / 7))
    assert -1e-4 < ramp.min() < 0.01
    assert 0.69 < ramp.max() < 0.7001
    assert abs(ramp.mean() - 0.35) < 0.02
    assert nodes.sigma.dtype == jnp.float32


@pytest.mark.slow
def test_a_distilled_model_jumps_in_one_step():
    """A few hundred steps bring one jump near to the flow, where a step of DDIM is far."""
    exact = diffusion.GaussianMixture(jnp.array(MEAN)[None], jnp.array([SCALE]))
    times, tx = diffusion.karras(VE, 8), optax.adam(3e-3)
    losses = (
        diffusion.CTMLoss(VE, times, exact.denoiser(), spans=diffusion.UniformSpans(3)),
        diffusion.consistency_distillation_loss(VE, times, exact.denoiser()),
    )
    x = MEAN + jnp.sqrt(SCALE**2 + 400) * jax.random.normal(jax.random.key(0), (200, 2))
    wanted = EXACT.jump(x, level(20.0), level(0.02))
    error = lambda model: float(
        jnp.sqrt(jnp.mean((model.jump(x, level(20.0), level(0.02)) - wanted) ** 2))
    )
    batches = training.Fresh(lambda key: exact.sample(key, 64), jax.random.key(1))
    for loss in losses:
        step = training.GradientStep(loss, tx, diffusion.ExponentialAverage(0.98))
        first = model(draws=contextlib.nullcontext)
        fit = training.fit(step, first, batches, 300, progress=False, piece=300)
        assert np.all(fit.metrics["finite"])
        assert error(fit.params) < 0.5 * min(error(first), 0.5)


@numpy_draws()
def test_features_and_bad_input():
    x, y = jnp.ones((3, 2)), jnp.zeros((3, 2))
    np.testing.assert_allclose(diffusion.SquaredDistance(lambda x: 2 * x)(x, y), 4 * np.ones(3))
    with pytest.raises(ValueError, match="no more noise"):
        model().jump(x, level(0.5), level(0.6))
    with pytest.raises(ValueError, match="gamma"):
        diffusion.GammaSampler(1.1)
    times = diffusion.karras(VE, 4)
    with pytest.raises(ValueError, match="not draw noise"):
        diffusion.CTMLoss(VE, times, solver=diffusion.GammaSampler(0.5))
    loss = diffusion.CTMLoss(VE, times, EXACT, solver=diffusion.DPMSolverPP())
    with pytest.raises(ValueError, match="no memory"):
        loss(EXACT, x, CONTEXT)
    with pytest.raises(ValueError, match="fall"):
        diffusion.CTMLoss(VE, times[::-1])
    with pytest.raises(TypeError, match="TrajectoryModel"):
        diffusion.CTMLoss(VE, times)(model().denoiser(), x, CONTEXT)
    loss = diffusion.CTMLoss(VE, times, adversary=diffusion.HingeAdversary(1.0))
    with pytest.raises(TypeError, match="WithCritic"):
        jax.eval_shape(lambda x: loss(EXACT, x, CONTEXT), x)
    with pytest.raises(TypeError, match="network"):
        diffusion.TrajectoryNetwork(eqx.nn.Linear(2, 2, key=jax.random.key(0)), key=CONTEXT.key)
    with pytest.raises(ValueError, match="max_span"):
        diffusion.WeightedSpans(0)
    with pytest.raises(ValueError, match="low"):
        diffusion.AdaptiveWeight(low=2.0, high=1.0)
