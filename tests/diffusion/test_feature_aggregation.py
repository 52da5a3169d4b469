"""Aggregated networks against their members and against numpy; what training changes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import numpy_draws

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import feature_aggregation, networks

KEY = jax.random.key(0)
NODE = diffusion.Node(*(jnp.array(v, jnp.float32) for v in (0.7, 1.0, 0.7)))
F32 = jnp.float32
ZERO = np.zeros(())
MAKE = {
    "mlp": functools.partial(diffusion.MLPDenoiser, (4, 4), 8, 1),
    "unet": functools.partial(diffusion.UNetDenoiser, (4, 4), (4, 8)),
    "transformer": functools.partial(diffusion.TransformerDenoiser, (4, 4), 2, 8, 1, 2),
}


def normal(*shape):
    return jnp.array(np.random.default_rng(0).normal(size=shape).astype(F32))


def shaken(tree, seed):
    """With weights drawn, those that start at zero too."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    rng = np.random.default_rng(seed)
    draw = lambda a: (np.asarray(a) + 0.3 * rng.normal(size=a.shape)).astype(a.dtype)
    return eqx.combine(jax.tree.map(lambda a: jnp.array(draw(a)), arrays), rest)


@numpy_draws()
def pair(name, **options):
    return tuple(shaken(MAKE[name](key=KEY, dtype=F32, **options), seed) for seed in (1, 2))


@numpy_draws(5)
def create(nets, **options):
    return diffusion.AggregatedNetwork.create(nets, key=KEY, hidden=4, **options)


def trained(network, seed=3):
    """With aggregators that are no longer uniform."""
    mask = diffusion.aggregator_filter(network)
    own, rest = eqx.partition(network, mask)
    return eqx.combine(shaken(own, seed), rest)


@pytest.mark.parametrize(
    "name", [n if n == "mlp" else pytest.param(n, marks=pytest.mark.slow) for n in MAKE]
)
def test_one_hot_weights_give_a_model_and_copies_give_it_for_any(name):
    nets = pair(name)
    copies, merged, single = (trained(create(n)) for n in ((nets[1],) * 2, nets, nets[:1]))
    count = len(nets[0].blocks)

    def chosen(edge):
        choice = diffusion.LevelChoice((edge,))
        return diffusion.AggregatedNetwork(nets, (choice,) * count, choice, choice, sinusoidal)

    sinusoidal = diffusion.Sinusoidal(2)
    x = normal(4, 4)

    @eqx.filter_jit
    def outputs(nets, copies, merged, single, x, node):
        alone = tuple(net(x, node) for net in nets)
        picked = tuple(chosen(edge)(x, node) for edge in (9.0, -9.0))
        picked = (*picked, single(x, node))
        return alone, picked, copies(x, node), merged(x, node)

    found = outputs(nets, copies, merged, single, x, NODE)
    alone, picked, same, mixed = jax.tree.map(np.asarray, found)
    for a, b in zip((*alone, alone[0]), picked, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(same, alone[1], rtol=2e-5, atol=2e-5)
    distances = [np.max(np.abs(mixed - a)) for a in alone]
    assert min(distances) > 1e-2


class Skipping(diffusion.AbstractNetwork):
    """A network on images of one channel whose blocks scale; the last ones see what was kept."""

    shape: tuple[int, ...] = eqx.field(static=True)
    blocks: tuple
    scale: float

    def stem(self, x, node, label=None):
        return (self.scale * x[None], ()), node

    def head(self, hidden, condition):
        return hidden[0][0]


class Scale(eqx.Module):
    """Times a number, as is the sum of two images that stand one on the other."""

    factor: float

    def __call__(self, x, condition):
        return self.factor * (x if len(x) == 1 else x[:1] - 2 * x[1:])


def test_merged_features_are_what_is_kept():
    """Two models of two kept and two joined features, half of each, against numpy."""
    factors = np.array([[1.5, -0.5, 2.0, 0.3, 1.1], [0.2, 0.7, -1.0, 0.8, 2.0]])
    kinds = networks.Keep, networks.Keep, networks.Join, networks.Join
    make = lambda f: Skipping(
        (2, 3), tuple(k(Scale(float(c))) for k, c in zip(kinds, f[1:], strict=True)), float(f[0])
    )
    half = diffusion.UniformAggregator()
    nets, level = tuple(map(make, factors)), diffusion.Sinusoidal(1)
    net = diffusion.AggregatedNetwork(nets, (half,) * 4, half, half, level)
    x = np.arange(6.0).reshape(2, 3)
    start, a, b, c, d = np.mean(factors, axis=0)
    one, two = a * start * x, b * a * start * x
    three = c * (two - 2 * two)
    found = eqx.filter_jit(net)(jnp.array(x), NODE)
    np.testing.assert_allclose(found, d * (three - 2 * one), rtol=1e-6)


def test_images_have_weights_at_pixels():
    with numpy_draws():
        fresh = diffusion.FeatureAggregator(2, 3, 4, 2, 5, key=KEY, dtype=F32)

    @eqx.filter_jit
    def maps(aggregator, features, label):
        label = jax.nn.one_hot(label, 5, dtype=F32)
        return aggregator.maps(features, feature_aggregation.Told(ZERO, jnp.ones(2, F32), label))

    features, moved = normal(2, 3, 4, 4), shaken(fresh, 0)
    found = lambda aggregator, label: np.asarray(maps(aggregator, features, jnp.array(label)))
    np.testing.assert_array_equal(found(fresh, 1), np.full((2, 1, 4, 4), 0.5))
    one, other = found(moved, 1), found(moved, -1)
    np.testing.assert_allclose(np.sum(one, axis=0), 1, atol=1e-6)
    assert np.min(np.std(one, axis=(2, 3))) > 1e-3
    assert np.max(np.abs(one - other)) > 1e-4  # the class counts


@pytest.mark.slow
def test_a_fold_by_hand_with_what_is_kept():
    """The U-Net's merged features go into both models and are what later blocks join."""
    nets = pair("unet", num_classes=3)
    net = trained(create(nets))
    x, label = jax.random.normal(KEY, (4, 4), F32), jnp.array(1)
    found, maps, unlabelled = eqx.filter_jit(
        lambda net, x: (
            net(x, NODE, label),
            diffusion.attention_maps(net, x, NODE, label),
            diffusion.attention_maps(net, x, NODE),
        )
    )(net, x)
    for a in maps:
        np.testing.assert_allclose(np.sum(a, axis=0), 1, atol=1e-6)
        assert a.shape[:2] == (2, 1)
        assert np.min(np.std(a, axis=(2, 3))) > 1e-5  # places differ
    assert len(maps) == len(net.blocks) + 2
    assert max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(maps, unlabelled, strict=True)) > 1e-4
    join = lambda parts, a: sum(
        np.asarray(w) * np.asarray(f) for w, f in zip(a, parts, strict=True)
    )

    @eqx.filter_jit
    def stems(x):
        return [n.stem(x, NODE, label) for n in nets]

    begun = stems(x)
    h, kept = join([s[0][0] for s in begun], maps[0]), []
    run = eqx.filter_jit(lambda block, hidden, condition: block(hidden, condition))
    for i in range(len(nets[0].blocks)):
        hidden = jnp.array(h), tuple(map(jnp.asarray, kept))
        both = [run(n.blocks[i], hidden, s[1]) for n, s in zip(nets, begun, strict=True)]
        h = join([b[0] for b in both], maps[i + 1])
        kind = type(nets[0].blocks[i]).__name__
        kept = [*kept, h] if kind == "Keep" else kept[:-1] if kind == "Join" else kept
    assert not kept
    ends = [n.head((jnp.array(h), ()), None) for n in nets]
    np.testing.assert_allclose(found, join(ends, maps[-1][:, 0]), rtol=1e-4, atol=1e-4)


def test_training_moves_aggregators_alone():
    nets = pair("mlp", num_classes=3)
    net = create(nets, groups=4)
    model = diffusion.Denoiser(net, diffusion.Preconditioned(0.5))
    mask = diffusion.aggregator_filter(model)
    loss = diffusion.DenoisingLoss(
        diffusion.LogNormal(), diffusion.EDMWeighting(0.5), label_dropout=0.1
    )
    average = diffusion.PowerFunctionAverage(0.1)
    method = training.GradientStep(loss, optax.adam(0.05), average, trainable=mask)
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(8, 16, 4, 4)), F32)
    labels = jnp.array(rng.integers(0, 3, size=(8, 16)))
    fit = training.fit(method, model, (x, labels), key=KEY, progress=False, piece=8)
    own, frozen = (lambda m: eqx.filter(m, mask)), (lambda m: eqx.filter(m, mask, inverse=True))
    arrays = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    for done in (fit.params, fit.state.averaged):
        for a, b in zip(arrays(frozen(done)), arrays(frozen(model)), strict=True):
            np.testing.assert_array_equal(a, b)
    moved = [
        np.max(np.abs(np.asarray(a) - np.asarray(b)))
        for a, b in zip(*map(arrays, map(own, (fit.params, model))), strict=True)
    ]
    assert min(moved) > 1e-3
    # Two moments of each trained number and one counter: none of a frozen one.
    sizes = lambda leaves: sum(leaf.size for leaf in leaves)
    assert sizes(arrays(fit.state.opt_state)) == 2 * sizes(arrays(own(model))) + 1
    at = lambda u: diffusion.Node(*(jnp.array(v, F32) for v in (u, 1.0, u)))
    each = eqx.filter_jit(diffusion.attention_maps)
    first = np.asarray(x)[0, 0]
    maps = lambda net, u: jax.tree.map(np.asarray, each(net, jnp.array(first), at(u)))
    found = [np.stack(maps(fit.params.network, u)[:2]) for u in (0.1, 5.0)]
    assert np.max(np.abs(found[0] - found[1])) > 1e-3  # levels differ
    assert np.max(np.std(found[0], axis=2)) > 1e-3  # places differ
    for a in maps(net, 0.1):
        np.testing.assert_array_equal(a, 0.5)


def test_what_needs_no_training():
    nets = pair("mlp")
    x = normal(3, 4, 4)
    average = eqx.filter_jit(diffusion.average_weights)
    soup = average(nets, (0.25, 0.75))
    weights = [np.asarray(n.first.weight, np.float64) for n in nets]
    wanted = 0.25 * weights[0] + 0.75 * weights[1]
    np.testing.assert_allclose(soup.first.weight, wanted, rtol=1e-5, atol=1e-6)
    same = average((nets[0],) * 3)
    jax.tree.map(
        np.testing.assert_array_equal, *(eqx.filter(n, eqx.is_array) for n in (same, nets[0]))
    )

    @eqx.filter_jit
    def both(nets, x):
        mean = diffusion.AveragedOutputs(nets, (0.25, 0.75))
        return [net(x, NODE) for net in nets], mean(x, NODE)

    outputs, mean = jax.tree.map(np.asarray, both(nets, x))
    np.testing.assert_allclose(mean, 0.25 * outputs[0] + 0.75 * outputs[1], rtol=1e-5, atol=1e-6)


def test_uniform_weights_are_a_mean():
    features = jnp.arange(6.0).reshape(3, 2)
    maps = diffusion.UniformAggregator().maps(features, None)
    np.testing.assert_allclose(np.sum(maps * features, 0), [2, 3])


@numpy_draws()
def test_bad_input():
    nets = pair("mlp")
    create = functools.partial(diffusion.AggregatedNetwork.create, key=KEY)
    with pytest.raises(ValueError, match="at least one"):
        create(())
    with pytest.raises(TypeError, match="AbstractNetwork"):
        create((abs,))
    with pytest.raises(ValueError, match="number of blocks"):
        create((nets[0], diffusion.MLPDenoiser((4, 4), 8, 2, key=KEY, dtype=F32)))
    with pytest.raises(ValueError, match="stem"):
        create((nets[0], diffusion.MLPDenoiser((4, 4), 9, 1, key=KEY, dtype=F32)))
    wide = diffusion.MLPDenoiser((4, 4), 9, 1, key=KEY, dtype=F32)
    grown = eqx.tree_at(lambda n: n.blocks, nets[0], (Shift(),))
    with pytest.raises(ValueError, match="block 0"):
        create((nets[0], grown))
    with pytest.raises(ValueError, match="shape"):
        create((nets[0], diffusion.MLPDenoiser((4, 3), 8, 1, key=KEY)))
    with pytest.raises(ValueError, match="classes"):
        create((nets[0], diffusion.MLPDenoiser((4, 4), 8, 1, 5, key=KEY)))
    with pytest.raises(ValueError, match="classes"):
        create(pair("mlp", num_classes=3), num_classes=4)
    uniform = diffusion.UniformAggregator()
    with pytest.raises(ValueError, match="aggregators"):
        diffusion.AggregatedNetwork(nets, (), uniform, uniform, diffusion.Sinusoidal(1))
    with pytest.raises(ValueError, match="one sample"):
        diffusion.attention_maps(create(nets), jnp.ones((2, 4, 4), F32), NODE)
    with pytest.raises(ValueError, match="rise"):
        diffusion.LevelChoice((1.0, 0.0))
    told = feature_aggregation.Told(jnp.zeros(()), jnp.zeros(0), jnp.zeros(0))
    with pytest.raises(ValueError, match="edges"):
        diffusion.LevelChoice((1.0,)).maps(jnp.ones((3, 2)), told)
    with pytest.raises(ValueError, match="groups"):
        diffusion.GroupAggregator(2, 8, 4, 1, 3, key=KEY)
    with pytest.raises(ValueError, match="hidden"):
        diffusion.FeatureAggregator(2, 8, 0, 1, key=KEY)
    with pytest.raises(ValueError, match="sum to one"):
        diffusion.average_weights(nets, (0.5, 0.6))
    with pytest.raises(ValueError, match="structure"):
        diffusion.average_weights((nets[0], wide))
    with pytest.raises(ValueError, match="sum to one"):
        diffusion.AveragedOutputs(nets, (1.0,))


class Shift(eqx.Module):
    """Features of another type."""

    def __call__(self, hidden, condition):
        return hidden.astype(jnp.float64)
