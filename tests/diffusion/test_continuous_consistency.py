"""Consistency models in continuous time, and the circle that they live on."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import numpy_draws

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import objectives

KEY = jax.random.key(0)
WIDTH = 0.5
RNG = np.random.default_rng(0)
W, U, A = RNG.normal(size=(3, 3)), RNG.normal(size=(3, 3)), RNG.normal(size=3)
X = np.random.default_rng(1).normal(size=(5, 3))
TIMES = np.array([0.01, 0.5, 1.5, 1.56])
CONTEXT = training.Context(jax.random.key(1), jnp.ones((), jnp.int32), None)


class Net(eqx.Module):
    """A network that numpy knows as `outputs`."""

    inner: jax.Array
    outer: jax.Array
    rate: jax.Array

    def __call__(self, x, node, condition=0.0):
        return self.outer @ jnp.tanh(self.inner @ x + self.rate * node.t + condition)


def net(dtype=None):
    return Net(*(jnp.array(a, dtype) for a in (W, U, A)))


def outputs(x, t):
    return U @ np.tanh(W @ x + A * t)


def value(x, t):
    return math.cos(t) * x - WIDTH * math.sin(t) * outputs(x / WIDTH, t)


MODEL = diffusion.ConsistencyModel(net(), WIDTH)
TANGENT = jax.jit(jax.vmap(diffusion.consistency_tangent, (None, 0, 0, 0, 0)))


class Exact(eqx.Module):
    """F of data N(0, c^2), whose paths are known."""

    c: float

    def __call__(self, x, node):
        x = WIDTH * x
        cos, sin = jnp.cos(node.t), jnp.sin(node.t)
        end = self.c * x / jnp.sqrt(self.c**2 * cos**2 + WIDTH**2 * sin**2)
        return (cos * x - end) / (WIDTH * sin)


def test_the_tangent_is_the_derivative_along_the_path():
    x, v = RNG.normal(size=(2, 4, 3))
    found_output, found = map(np.asarray, TANGENT(MODEL, x, TIMES, v, np.ones(4)))
    values = np.asarray(jax.jit(jax.vmap(MODEL))(x, TIMES))
    h = 1e-3
    for i, t in enumerate(TIMES):
        along = lambda s, i=i, t=t: value(x[i] + s * v[i], t + s)
        slope = (8 * (along(h) - along(-h)) - along(2 * h) + along(-2 * h)) / (12 * h)
        np.testing.assert_allclose(found[i], math.cos(t) * slope, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found_output[i], outputs(x[i] / WIDTH, t), rtol=1e-12)
        np.testing.assert_allclose(values[i], value(x[i], t), rtol=1e-12)
    # Without what is warmed up, the other part.
    cold = np.asarray(TANGENT(MODEL, x, TIMES, v, np.zeros(4))[1])
    outs = np.stack([outputs(a / WIDTH, t) for a, t in zip(x, TIMES, strict=True)])
    wanted = -(np.cos(TIMES)[:, None] ** 2) * (WIDTH * outs - v)
    np.testing.assert_allclose(cold, wanted, rtol=1e-10, atol=1e-12)
    half = TANGENT(MODEL, x, TIMES, v, np.full(4, 0.25))[1]
    np.testing.assert_allclose(half, 0.75 * cold + 0.25 * found, rtol=1e-9, atol=1e-12)


def test_single_precision_at_the_noisy_end():
    model = diffusion.ConsistencyModel(net(jnp.float32), WIDTH)
    x, v = RNG.normal(size=(2, 1, 3)).astype(np.float32)
    t = np.array([math.atan(80 / WIDTH)], np.float32)
    output, tangent = TANGENT(model, x, t, v, np.ones(1, np.float32))
    assert output.dtype == tangent.dtype == jnp.float32
    assert np.all(np.isfinite(tangent))
    wanted = TANGENT(MODEL, *(np.asarray(a, float) for a in (x, t, v)), np.ones(1))[1]
    np.testing.assert_allclose(tangent, wanted, rtol=1e-3, atol=1e-5)


def test_paths_of_a_normal_law_have_no_tangent():
    c = 0.8
    model = diffusion.ConsistencyModel(Exact(c), WIDTH)
    x = RNG.normal(size=(3, 3))
    t = np.array([0.1, 0.7, 1.4])
    variance = c**2 * np.cos(t) ** 2 + WIDTH**2 * np.sin(t) ** 2
    rate = (WIDTH**2 - c**2) * np.cos(t) * np.sin(t) / variance  # of d log x / dt
    v = rate[:, None] * x
    tangent = TANGENT(model, x, t, v, np.ones(3))[1]
    np.testing.assert_allclose(tangent, 0, atol=1e-12)
    turned = np.asarray(TANGENT(model, x, t, -v, np.ones(3))[1])
    assert np.min(np.abs(turned).max(axis=1)) > 1e-3


def test_samples_of_the_exact_model():
    """In one step and in more the law is that of the data."""
    c = 0.8
    model = diffusion.ConsistencyModel(Exact(c), WIDTH)

    @jax.jit
    def draws(key):
        some = [model.sample(key, (20_000, 2), times) for times in (None, (1.57, 1.2, 0.6, 0.2))]
        noise = WIDTH * jax.random.normal(jax.random.split(key, 1)[0], (3,))
        single = model.sample(key, (2, 3), (1.3,), dtype=jnp.float32)
        end = MODEL(jnp.ones(3), 0.0)
        return some, (MODEL.sample(key, (3,), (1.3,)), noise), single, end

    some, (found, noise), single, end = jax.tree.map(np.asarray, draws(KEY))
    for made in some:
        np.testing.assert_allclose(np.cov(made.T), c**2 * np.eye(2), atol=0.025)
        np.testing.assert_allclose(np.mean(made, axis=0), 0, atol=0.025)
    np.testing.assert_allclose(found, value(noise, 1.3), rtol=1e-10)
    assert single.dtype == jnp.float32
    np.testing.assert_array_equal(end, 1)


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (diffusion.VariancePreserving(), (0.05, 0.5, 0.95)),
        (diffusion.VarianceExploding(), (0.05, 1.0, 20.0)),
    ],
    ids=["vp", "ve"],
)
def test_a_teacher_goes_to_the_circle_and_back(schedule, times):
    """Data of any prediction, on its own schedule and on the circle."""
    base = lambda x, node: jnp.tanh(x + jnp.log(node.sigma))
    predictions = (
        diffusion.Preconditioned(WIDTH),
        diffusion.Preconditioned(0.9),
        diffusion.Noise(),
        diffusion.Data(),
        diffusion.TrigVelocity(WIDTH),
    )
    circle = diffusion.TrigFlow(WIDTH)
    x = jnp.array(RNG.normal(size=3))

    @eqx.filter_jit
    def both(schedule, x, a, b):
        """Data and noise before and after, on the circle and off it, and F."""

        def of(predicts):
            old = diffusion.Denoiser(base, predicts)
            new = diffusion.trigflow_teacher(old, schedule, WIDTH)
            noisy = x * b.alpha / a.alpha
            before = old.data(x, a), old.noise(x, a), old.data(x, a)
            f = WIDTH * jnp.sin(b.t) * new.network(noisy / WIDTH, b)
            return before, (new.data(noisy, b), new.noise(noisy, b), new.data(x, a)), noisy, f

        return [of(predicts) for predicts in predictions]

    there = schedule.nodes(np.array(times))
    t = circle.time_at(np.log(there.alpha / there.sigma))
    np.testing.assert_allclose(t, np.arctan(there.sigma / there.alpha / WIDTH), rtol=1e-12)
    here = circle.nodes(t)
    np.testing.assert_allclose(here.sigma / here.alpha, there.sigma / there.alpha, rtol=1e-10)
    for i in range(3):
        a, b = (diffusion.Node(*(jnp.array(v[i]) for v in nodes)) for nodes in (there, here))
        found = jax.tree.map(np.asarray, both(schedule, x, a, b))
        for before, after, noisy, f in found:
            np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)
            wanted = math.cos(t[i]) * noisy - before[0]
            np.testing.assert_allclose(f, wanted, rtol=1e-6, atol=1e-7)
    # Minus that of EDM, in the same input.
    level = diffusion.Node(2.0, 1.0, 2.0)

    @jax.jit
    def beside(x):
        old, new = diffusion.Preconditioned(WIDTH), diffusion.TrigVelocity(WIDTH)
        seen, node = old.inputs(x, level)
        f = base(seen, node)
        outs = old.data(f, x, node), new.data(-f, x, node)
        return (new.inputs(x, level), seen), outs

    ((ours, where), seen), outs = jax.tree.map(np.asarray, beside(x))
    np.testing.assert_allclose(ours, seen, rtol=1e-12)
    np.testing.assert_allclose(where.t, math.atan(4.0), rtol=1e-12)
    np.testing.assert_allclose(*outs, rtol=1e-12)


@pytest.mark.slow
def test_samplers_on_the_circle():
    """DDIM and Heun give there what they give on the teacher's own schedule."""
    mixture = diffusion.GaussianMixture([[-1.0, 0.0], [0.5, 0.5]], [0.3, 0.4])
    own, circle = diffusion.VarianceExploding(), diffusion.TrigFlow(WIDTH)
    teacher = diffusion.trigflow_teacher(mixture.denoiser(), own, WIDTH)
    x = 20.0 * jax.random.normal(KEY, (4, 2))
    ends = {}
    for sampler, steps in ((diffusion.DDIM(), 12), (diffusion.Heun(), 60)):
        levels = np.geomspace(20.0, 0.02, steps + 1)
        t = np.arctan(levels / WIDTH)
        wanted = diffusion.sample(mixture.denoiser(), sampler, own, levels, x).value
        found = diffusion.sample(teacher, sampler, circle, t, x * math.cos(t[0])).value
        ends[steps] = np.max(np.abs(found / math.cos(t[-1]) - wanted))
    assert ends[12] < 1e-9
    assert ends[60] < 2e-3


def test_the_loss_of_the_slope_is_plain():
    """Targets and weights of the circle."""
    predicts = diffusion.TrigVelocity(WIDTH)
    data, noise = RNG.normal(size=(2, 3))
    t = 0.9
    node = diffusion.TrigFlow(WIDTH).nodes(np.asarray(t))
    wanted = (math.cos(t) * WIDTH * noise - math.sin(t) * data) / WIDTH
    x = math.cos(t) * data + math.sin(t) * WIDTH * noise

    @jax.jit
    def every(x, data, noise, node):
        target = objectives.target(predicts, data, noise, node)
        back = predicts.data(target, x, node), predicts.noise(target, x, node)
        return target, back, objectives.output_weight(diffusion.EDMWeighting(WIDTH), predicts, node)

    target, back, weight = jax.tree.map(np.asarray, every(x, data, noise, node))
    np.testing.assert_allclose(target, wanted, rtol=1e-12)
    np.testing.assert_allclose(back, (data, noise), rtol=1e-10)
    np.testing.assert_allclose(weight, 1, rtol=1e-12)


class Fixed(diffusion.AbstractLevels):
    """One level for all."""

    t: float

    def draw(self, key, size, dtype):
        rho = jnp.full(size, WIDTH * math.tan(self.t), dtype)
        return diffusion.Node(rho, jnp.ones_like(rho), rho)


@pytest.fixture(scope="module")
def slopes():
    """Values, metrics and gradients of losses, from one program."""
    x = jnp.array(X)
    other = Net(*(jnp.array(a) for a in (U, W, A)))
    teacher = diffusion.Denoiser(other, diffusion.TrigVelocity(WIDTH))
    late = training.Context(CONTEXT.key, jnp.array(3), None)

    def of(loss, model=MODEL, context=CONTEXT):
        (value, metrics), slope = eqx.filter_value_and_grad(loss, has_aux=True)(model, x, context)
        return value, metrics, jnp.concatenate([a.ravel() for a in jax.tree.leaves(slope)])

    ours = lambda **options: diffusion.ContinuousConsistencyLoss(
        **{"bound": None, "warmup_steps": 0, "levels": Fixed(0.8), **options}
    )
    head = diffusion.WeightedConsistency(MODEL, 2)
    head = eqx.tree_at(lambda h: h.bias, head, jnp.array(0.7))

    @jax.jit
    def every():
        found = {}
        for name, from_ in (("data", None), ("teacher", teacher)):
            found[name] = of(ours(teacher=from_))
            for h in (1e-2, 1e-4):
                found[f"{name} {h}"] = of(diffusion.DiscreteConsistencyLoss(from_, h, Fixed(0.8)))
        found["norm"] = of(ours(bound=diffusion.TangentNorm(0.1), warmup_steps=4), context=late)
        found["clip"] = of(ours(bound=diffusion.TangentClip(0.2)))
        found["weighted"] = of(ours(), head)
        return found

    return jax.tree.map(np.asarray, every())


def test_the_gradient_is_that_of_small_steps(slopes):
    for name in ("data", "teacher"):
        wanted = slopes[name][2]
        for h, rtol in ((1e-2, 0.1), (1e-4, 1e-3)):
            found = slopes[f"{name} {h}"][2]
            assert np.linalg.norm(found - wanted) < rtol * np.linalg.norm(wanted)
            cosine = found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)
        assert cosine > 1 - 1e-6
    assert np.linalg.norm(slopes["data"][2] - slopes["teacher"][2]) > 0.1


def test_the_loss_is_a_loop_of_numpy(slopes):
    x = X
    z = WIDTH * np.asarray(jax.random.normal(jax.random.split(CONTEXT.key)[1], (5, 3)))
    t, h = 0.8, 1e-3
    totals = np.zeros(4)
    for data, noise in zip(x, z, strict=True):
        noisy = math.cos(t) * data + math.sin(t) * noise
        v = math.cos(t) * noise - math.sin(t) * data
        along = lambda s, noisy=noisy, v=v: value(noisy + s * v, t + s)
        g = (8 * (along(h) - along(-h)) - along(2 * h) + along(-2 * h)) / (12 * h) * math.cos(t)
        cold = -(math.cos(t) ** 2) * (WIDTH * outputs(noisy / WIDTH, t) - v)
        late = 0.25 * cold + 0.75 * g
        bounded = late / (np.linalg.norm(late) + 0.1)
        squares = g @ g / 3, bounded @ bounded / 3, np.sum(np.clip(g, -0.2, 0.2) ** 2) / 3
        totals += np.array([*squares, math.exp(0.7) * squares[0] - 0.7]) / 5
    names = ("data", "norm", "clip", "weighted")
    np.testing.assert_allclose([slopes[name][0] for name in names], totals, rtol=1e-8)
    np.testing.assert_allclose(slopes["data"][1]["tangent"] ** 2, totals[0], rtol=1e-8)
    # The last slope is that in the bias: that of e^w s - w.
    wanted = math.exp(0.7) * totals[0] - 1
    np.testing.assert_allclose(slopes["weighted"][2][-1], wanted, rtol=1e-8)
    np.testing.assert_allclose(
        slopes["weighted"][2][:21], math.exp(0.7) * slopes["data"][2], rtol=1e-8
    )


def test_guidance_as_an_input():
    """The teacher is a function of the condition, which the network sees too."""
    x, strength = jnp.array(X), np.linspace(0.0, 2.0, 5)
    seen = lambda scale: diffusion.Denoiser(
        lambda x, node: net()(x, node, scale), diffusion.TrigVelocity(WIDTH)
    )
    make = lambda teacher: diffusion.ContinuousConsistencyLoss(teacher, None, 0, Fixed(0.8))
    fixed = diffusion.ConsistencyModel(lambda x, node: net()(x, node, 0.5), WIDTH)

    @jax.jit
    def every():
        losses = (
            make(seen)(MODEL, (x, strength), CONTEXT)[0],
            make(seen)(MODEL, (x, jnp.full(5, 0.5)), CONTEXT)[0],
            make(seen(0.5))(fixed, x, CONTEXT)[0],
        )
        made = MODEL.sample(KEY, (3,), (1.3,), condition=0.5), fixed.sample(KEY, (3,), (1.3,))
        return losses, made

    (guided, found, wanted), made = every()
    # With one strength for all it is the loss of that teacher and network.
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert abs(float(guided) - float(found)) > 1e-6
    np.testing.assert_allclose(*made, rtol=1e-10)


def test_double_norm():
    with numpy_draws():
        layer = diffusion.DoubleNorm(4, 3, groups=2, key=KEY)
        single = diffusion.DoubleNorm(4, 3, key=KEY)
    hidden, condition = RNG.normal(size=(4, 5, 5)), RNG.normal(size=3)
    w, b = np.asarray(layer.scale.weight), np.asarray(layer.scale.bias)
    u, c = np.asarray(layer.shift.weight), np.asarray(layer.shift.bias)
    scaled = lambda v: (v / np.sqrt(np.mean(v**2)))[:, None, None]
    groups = hidden.reshape(2, -1)
    normal = groups - groups.mean(axis=1, keepdims=True)
    normal = (normal / groups.std(axis=1, keepdims=True)).reshape(hidden.shape)
    wanted = normal * scaled(w @ condition + b) + scaled(u @ condition + c)

    @jax.jit
    def call(h, k):
        return jax.jvp(layer, (h, k), (h, k)), single(h[:, 0, 0], k)

    (found, moved), vector = jax.tree.map(np.asarray, call(hidden, condition))
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-3)
    assert np.all(np.isfinite(moved))
    assert vector.shape == (4,)


@numpy_draws()
def test_bad_input():
    with pytest.raises(ValueError, match="sigma_data"):
        diffusion.ConsistencyModel(net(), 0.0)
    with pytest.raises(ValueError, match="sigma_data"):
        diffusion.TrigVelocity(-1.0)
    with pytest.raises(ValueError, match="start"):
        diffusion.TrigFlow(0.5, start=2.0)
    for times in ((1.0, 1.2), (2.0,), (), (1.0, 0.0)):
        with pytest.raises(ValueError, match="times"):
            MODEL.sample(KEY, (3,), times)
    with pytest.raises(ValueError, match="constant"):
        diffusion.TangentNorm(0.0)
    with pytest.raises(ValueError, match="bound"):
        diffusion.TangentClip(0.0)
    with pytest.raises(ValueError, match="warmup_steps"):
        diffusion.ContinuousConsistencyLoss(warmup_steps=-1)
    with pytest.raises(TypeError, match="bound"):
        diffusion.ContinuousConsistencyLoss(bound=0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="teacher"):
        diffusion.DiscreteConsistencyLoss(3)
    with pytest.raises(ValueError, match="step_size"):
        diffusion.DiscreteConsistencyLoss(step_size=0.0)
    with pytest.raises(TypeError, match="denoiser"):
        diffusion.trigflow_teacher(net(), diffusion.TrigFlow(), WIDTH)  # pyright: ignore
    with pytest.raises(ValueError, match="groups"):
        diffusion.DoubleNorm(4, 3, groups=3, key=KEY)
    for teacher in (
        diffusion.Denoiser(net()),
        diffusion.Denoiser(net(), diffusion.TrigVelocity(1)),
    ):
        loss = diffusion.ContinuousConsistencyLoss(teacher)
        with pytest.raises(ValueError, match="TrigVelocity"):
            loss(MODEL, jnp.ones((2, 3)), CONTEXT)
