"""Early exits against folds written out, and runs cut into segments against a loop of steps."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn, numpy_draws

from jaxopt_ext import diffusion, training
from jaxopt_ext.diffusion import early_exit, networks

KEY = jax.random.key(0)
SIZE, WIDTH, BLOCKS = 2, 5, 4
SCHEDULE = diffusion.VariancePreserving()
EXITS = diffusion.ExitSchedule((4, 3, 1), (0.3, 0.55))
TIME = diffusion.ScheduleTime(SCHEDULE)


@functools.cache
@numpy_draws()
def network_of_four():
    embedding = diffusion.Sinusoidal(2)
    return diffusion.MLPDenoiser(
        (SIZE,), WIDTH, BLOCKS, embedding=embedding, key=KEY, dtype=jnp.float64
    )


X = np.random.default_rng(0).normal(size=(3, SIZE))


def model(exits=EXITS, predicts=None):
    network = diffusion.EarlyExit(network_of_four(), exits, TIME)
    return diffusion.Denoiser(network, diffusion.Noise() if predicts is None else predicts)


def by_hand(x, sigma, alpha, depth):
    """The perceptron of so many blocks, in numpy."""
    silu = lambda a: a / (1 + np.exp(-a))
    apply = lambda layer, h: np.asarray(layer.weight) @ h + np.asarray(layer.bias)
    net = network_of_four()
    angles = 0.25 * np.log(sigma / alpha) / 1e4 ** (np.arange(2) / 2)
    hidden = silu(apply(net.first, np.concatenate([x, np.cos(angles), np.sin(angles)])))
    for block in net.blocks[:depth]:
        hidden = hidden + silu(apply(block.linear, hidden))
    return apply(net.last, hidden)


def depth_of(t):
    return 4 if t < 0.3 else 3 if t < 0.55 else 1


class ByHand(diffusion.AbstractDenoiser):
    """What `model()` is, from node to depth by hand; nodes must be numbers."""

    def noise(self, x, node):
        t, alpha, sigma = map(float, node)
        return np.array([by_hand(np.asarray(a), sigma, alpha, depth_of(t)) for a in x])

    def data(self, x, node):
        return diffusion.Noise().data(self.noise(x, node), x, node)


def test_depths_of_times():
    np.testing.assert_array_equal(
        EXITS.at(np.array([0.0, 0.29, 0.3, 0.5, 0.6, 1.0])), [4, 4, 3, 3, 1, 1]
    )
    found = jax.jit(EXITS.at)(jnp.linspace(0, 1, 11, dtype=jnp.float32))
    np.testing.assert_array_equal(found, [4, 4, 4, 3, 3, 3, 1, 1, 1, 1, 1])
    assert EXITS.fraction(np.array([0.0, 0.4, 0.9, 1.0]), 6) == pytest.approx(9 / 24)
    official = (28, 28, 24, 24, 20, 20, 16, 16, 12, 12)
    assert diffusion.graded_exits(28).depths == official
    totals = [sum(diffusion.graded_exits(6, grade).depths) for grade in range(1, 6)]
    assert sorted(totals, reverse=True) == totals
    assert totals[0] > totals[-1]
    assert diffusion.graded_exits(1, 5).depths == (1,) * 10


def test_a_grid_that_stops_at_edges_has_equally_many_steps_in_each_bin():
    exploding = diffusion.VarianceExploding()
    exits = diffusion.ExitSchedule((5, 4, 3, 2, 1))
    nodes = exploding.nodes(diffusion.karras(exploding, 40)[:-1])
    time = diffusion.KarrasTime(exploding.end, exploding.start)
    single = jax.tree.map(lambda a: jnp.array(a, jnp.float32), nodes)
    for found in (exits.at(time(nodes)), jax.jit(lambda n: exits.at(time(n)))(single)):
        # Times 1, 39/40, ..., 1/40: an edge belongs to the bin above it.
        np.testing.assert_array_equal(found, np.repeat([1, 2, 3, 4, 5], [9, 8, 8, 8, 7]))
    inner = SCHEDULE.nodes(np.linspace(0.1, 1, 7))
    np.testing.assert_allclose(TIME(inner), np.linspace(0.1, 1, 7), rtol=1e-10)
    flow = diffusion.RectifiedFlow()
    ends = diffusion.Node(*(np.array(a) for a in (1.0, 0.0, 1.0)))
    assert diffusion.ScheduleTime(flow)(ends) == pytest.approx(1 / flow.start)


def test_all_blocks_are_the_network_bit_for_bit():
    node = jax.tree.map(jnp.array, SCHEDULE.nodes(np.array(0.4)))
    whole = eqx.filter_jit(network_of_four())
    for exits in (diffusion.ExitSchedule((4,)), diffusion.ExitSchedule((4, 4))):
        cut = eqx.filter_jit(diffusion.EarlyExit(network_of_four(), exits, TIME))
        np.testing.assert_array_equal(cut(jnp.array(X), node), whole(jnp.array(X), node))


def test_a_level_decides_how_many_blocks():
    times = np.array([0.1, 0.5, 0.9])
    nodes = SCHEDULE.nodes(times)
    wanted = [by_hand(x, n[2], n[1], depth_of(n[0])) for x, *n in zip(X, *nodes, strict=True)]
    network, traced = model().network, jax.tree.map(jnp.array, nodes)
    call = eqx.filter_jit(lambda x, node: network(x, node))
    np.testing.assert_allclose(call(jnp.array(X), traced), wanted, rtol=1e-10)  # one for each
    for i in range(3):  # one for all
        found = call(jnp.array(X), jax.tree.map(lambda a, i=i: jnp.array(a[i]), nodes))
        np.testing.assert_allclose(np.asarray(found)[i], wanted[i], rtol=1e-10)
    # Guidance calls two models; networks behind a preconditioner see another time.
    guided = diffusion.Guided(model(), model(), 2.0)
    last = jax.tree.map(lambda a: a[2], nodes)
    found = eqx.filter_jit(guided.noise)(jnp.array(X), jax.tree.map(jnp.array, last))
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-10)
    seen = diffusion.Preconditioned(1.0).inputs(X, last)[1]
    assert network.depth_at(seen) == 1


SAMPLERS = {
    "DDIM": diffusion.DDIM(),
    "Heun": diffusion.Heun(),
    "DPM-Solver++(2M)": diffusion.DPMSolverPP(),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_in_segments_is_a_loop_of_steps(name):
    sampler, times = SAMPLERS[name], np.linspace(0.9, 0.1, 10)
    found = diffusion.sample(
        model(), sampler, SCHEDULE, times, jnp.array(X), denoise=True, trace=True
    )
    table, slow, x = sampler.plan(SCHEDULE, times), ByHand(), X
    memory = sampler.start(slow, x, SCHEDULE.nodes(times[0]))
    path = []
    for i in range(len(times) - 1):
        row = jax.tree.map(lambda a, i=i: a[i], table)
        x, memory = sampler.step(slow, x, memory, row, KEY)
        path.append(x)
    np.testing.assert_allclose(found.path, np.stack(path), rtol=1e-8, atol=1e-8)
    last = slow.data(x, SCHEDULE.nodes(times[-1]))
    np.testing.assert_allclose(found.value, last, rtol=1e-8, atol=1e-8)


def blocks_in(jaxpr):
    """Products with a square matrix, as often as loops run them; no conditional is seen."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += (WIDTH, WIDTH) in [v.aval.shape for v in equation.invars]
        assert equation.primitive.name != "cond"
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.core.jaxprs_in_params(equation.params):
            total += times * blocks_in(inner)
    return total


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_costs_the_blocks_of_its_schedule(name):
    times = np.array([0.95, 0.8, 0.7, 0.5, 0.45, 0.2, 0.1])
    run = lambda x: diffusion.sample(model(), SAMPLERS[name], SCHEDULE, times, x).value
    calls = [*times[:-1], *(times[1:] if name == "Heun" else ())]
    wanted = sum(map(depth_of, calls)), BLOCKS * len(calls)
    assert diffusion.block_evaluations(model(), SAMPLERS[name], SCHEDULE, times) == wanted
    if name != "Heun":  # where a step sees two depths, one of two branches is taken
        assert blocks_in(jax.make_jaxpr(run)(jnp.array(X)).jaxpr) == wanted[0]


def test_operations_that_the_compiler_counts():
    net = drawn(lambda: diffusion.MLPDenoiser((SIZE,), 64, 3, key=KEY))
    cut = diffusion.EarlyExit(net, diffusion.ExitSchedule((3, 2, 1)), TIME)
    arrays, rest = eqx.partition(cut, eqx.is_array)
    node = jax.tree.map(jnp.array, SCHEDULE.nodes(np.array(0.5)))

    def operations(n):
        fun = lambda arrays, x: eqx.combine(arrays, rest).at_depth(n)(x, node)
        return jax.jit(fun).lower(arrays, jnp.ones((8, SIZE))).compile().cost_analysis()["flops"]

    counts = [operations(n) for n in (1, 2, 3)]
    assert counts[2] - counts[1] == pytest.approx(counts[1] - counts[0], rel=0.05)
    assert counts[1] - counts[0] == pytest.approx(8 * 2 * 64**2, rel=0.1)


def test_loss_of_mixed_depths_is_a_loop_over_samples():
    """And blocks behind every sample's exit get no gradient."""
    loss = diffusion.EarlyExitLoss(squares)
    times = np.array([0.4, 0.5, 0.9])
    nodes = SCHEDULE.nodes(times)
    batch = jnp.array(X), jax.tree.map(jnp.array, nodes)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: loss(m, batch, None)[0]))(
        model()
    )
    outputs = [by_hand(x, n[2], n[1], depth_of(n[0])) for x, *n in zip(X, *nodes, strict=True)]
    np.testing.assert_allclose(value, np.mean(np.square(outputs)), rtol=1e-10)
    sizes = [np.max(np.abs(b.linear.weight)) for b in gradient.network.network.blocks]
    assert sizes[3] == 0
    assert min(sizes[:3]) > 1e-5


def squares(model, batch, context):
    del context
    x, nodes = batch
    return jnp.mean(jax.vmap(model.network)(x, nodes) ** 2), {}


UNETS = {
    "unet": lambda: diffusion.UNetDenoiser((2, 2), (2,), 2, key=KEY),
    "edm2": lambda: diffusion.EDM2UNet((4, 4), (4, 8), 1, heads=2, key=KEY),
}


def test_where_sides_join_the_map_that_merges_stays():
    with numpy_draws():
        block = networks.ConvolutionBlock(3, 2, 1, key=KEY)
    rng = np.random.default_rng(1)
    image, first, last = (
        rng.normal(size=(2, 4, 4)),
        rng.normal(size=(1,)),
        rng.normal(size=(1, 4, 4)),
    )
    found, kept = early_exit.skipped(networks.Join(block), (image, (first, last)))
    both = np.concatenate([image, last])
    wanted = np.einsum("oi,ihw->ohw", np.asarray(block.skip.weight), both)
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert len(kept) == 1
    assert kept[0] is first
    assert early_exit.skipped(block, image) is image


@pytest.mark.slow
@pytest.mark.parametrize("name", UNETS)
def test_ascending_sides_keep_what_merges_them(name):
    network = UNETS[name]()
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    shaken = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), arrays)
    network = eqx.combine(shaken, rest)
    places = early_exit.exit_blocks(network)
    assert all("Join" in type(network.blocks[i]).__name__ for i in places)
    exits = diffusion.ExitSchedule((len(places), 1))
    x = jax.random.normal(KEY, (2, *network.shape))
    nodes = jax.tree.map(jnp.array, SCHEDULE.nodes(np.array([0.2, 0.8])))
    exit_network = diffusion.EarlyExit(network, exits, TIME)

    def folded(network, x, node, depth):
        hidden, condition = network.stem(x, node)
        for i, block in enumerate(network.blocks):
            if i not in places[depth:]:
                hidden = block(hidden, condition)
                continue
            image, kept = hidden
            if name == "unet":
                merged = jnp.concatenate([image, kept[-1]])
                merged = jnp.einsum("oi,ihw->ohw", block.block.skip.weight, merged)
            else:
                merged = block.block.skip(diffusion.mp_cat(image, kept[-1], 0.5))
            hidden = merged, kept[:-1]
        return network.head(hidden, condition)

    @eqx.filter_jit
    def found(network, x):
        mixed, last = network(x, nodes), jax.tree.map(lambda a: a[1], nodes)
        whole = network.network(x[0], jax.tree.map(lambda a: a[0], nodes))
        return mixed, network.at_depth(1)(x[1], last), folded(network.network, x[1], last, 1), whole

    mixed, cut, wanted, whole = found(exit_network, x)
    np.testing.assert_allclose(mixed[1], wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(cut, wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(mixed[0], whole, rtol=1e-8, atol=1e-10)


class Conditioned(diffusion.AbstractNetwork):
    """A network with all that may be frozen, of one array each."""

    blocks: tuple
    embedding: jax.Array
    condition: tuple[jax.Array, jax.Array]
    last: jax.Array
    shape: tuple[int, ...] = eqx.field(static=True)

    def stem(self, x, node, label=None):
        raise NotImplementedError

    def head(self, hidden, condition):
        raise NotImplementedError


def test_the_embedding_stays_as_it_is():
    arrays = [jnp.full(1, i, jnp.float32) for i in range(6)]
    network = Conditioned(tuple(arrays[:2]), arrays[2], tuple(arrays[3:5]), arrays[5], (1,))
    start = diffusion.Denoiser(diffusion.EarlyExit(network, diffusion.ExitSchedule((2, 1)), TIME))
    chosen = diffusion.all_but_embedding({"model": start, "beside": arrays[0]})
    trained, fixed = training.step.split({"model": start, "beside": arrays[0]}, chosen)
    numbers = lambda part: sorted(int(a[0]) for a in jax.tree.leaves(part) if eqx.is_array(a))
    assert numbers(trained) == [0, 0, 1, 5]
    assert numbers(fixed) == [2, 3, 4]


def test_bad_input():
    for depths, edges in itertools.chain(
        [((), None), ((1, 2), None), ((0,), None)],
        (((2, 1), edges) for edges in ([], [0.0], [1.5], [0.2, 0.4])),
    ):
        with pytest.raises(ValueError, match=r"depths|edges"):
            diffusion.ExitSchedule(depths, edges)
    with pytest.raises(TypeError, match="depths"):
        diffusion.ExitSchedule((1.5,))
    with pytest.raises(ValueError, match="at most 4"):
        model(diffusion.ExitSchedule((5, 1)))
    with pytest.raises(TypeError, match="network"):
        diffusion.EarlyExit(lambda x, node: x, EXITS, TIME)
    with pytest.raises(TypeError, match="exits"):
        diffusion.EarlyExit(network_of_four(), (3, 2), TIME)
    with pytest.raises(TypeError, match="time"):
        diffusion.EarlyExit(network_of_four(), EXITS, 1.0)
    with pytest.raises(TypeError, match="function"):
        diffusion.EarlyExitLoss(3)
    plain = diffusion.Denoiser(network_of_four())
    with pytest.raises(TypeError, match="EarlyExit"):
        diffusion.EarlyExitLoss(squares)(plain, None, None)
    with pytest.raises(TypeError, match="EarlyExit"):
        diffusion.block_evaluations(plain, diffusion.DDIM(), SCHEDULE, np.array([0.5, 0.4]))
    with pytest.raises(ValueError, match="grade"):
        diffusion.graded_exits(6, 6)
    with pytest.raises(ValueError, match="low"):
        diffusion.KarrasTime(2.0, 1.0)
