"""Blocks that are differential equations in depth: closed forms, plain reverse mode, counts."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from drawn import drawn, numpy_draws

from jaxopt_ext import diffusion
from jaxopt_ext.diffusion import beyond_u

KEY = jax.random.key(0)
LEVEL = diffusion.Node(*(jnp.array(v) for v in (0.5, 1.0, 0.5)))
BLOCKS = {"second": diffusion.SecondOrderBlock, "first": diffusion.FirstOrderBlock}


class Spring(eqx.Module):
    """h'' = -w^2 h."""

    frequency: jax.Array

    def __call__(self, state, tau, condition):
        del tau, condition
        return -(self.frequency**2) * state[0]


def spring(solver, duration=1.5):
    w = jnp.array([0.7, 1.9])
    return diffusion.SecondOrderBlock(Spring(w), lambda h: jnp.sin(h), duration, solver)


HIDDEN = jnp.array([0.3, -1.2])


def swung(duration=1.5):
    w, h, v = np.array([0.7, 1.9]), np.asarray(HIDDEN), np.sin(HIDDEN)
    return np.cos(w * duration) * h + np.sin(w * duration) / w * v


def errors(*solvers):
    every = jax.jit(lambda hidden: [spring(solver)(hidden, None) for solver in solvers])
    return [np.max(np.abs(np.asarray(found) - swung())) for found in every(HIDDEN)]


def test_a_spring_swings_and_the_error_falls_with_the_order():
    steps = [
        diffusion.CheckpointedSteps(n, method)
        for method in (diffusion.RK4(), diffusion.Midpoint())
        for n in (6, 12)
    ]
    adaptive = diffusion.DormandPrince(1e-9, 1e-9)
    *fixed, adjoint, plain, last = errors(
        *steps, diffusion.AdjointSteps(12), diffusion.CheckpointedSteps(12), adaptive
    )
    for (few, many), order in zip((fixed[:2], fixed[2:]), (4, 2), strict=True):
        assert abs(np.log2(few / many) - order) < 0.4
        assert many < 0.05
    assert adjoint == plain
    assert last < 1e-6


def test_first_order_is_the_exponential_of_a_matrix_and_depth_and_condition_are_seen():
    matrix = np.array([[0.2, -1.0], [0.4, -0.3]])
    field = lambda state, tau, condition: matrix @ state[0] + 3 * tau**2 * condition
    block = diffusion.FirstOrderBlock(field, 0.8, diffusion.CheckpointedSteps(24))
    found = eqx.filter_jit(block)(HIDDEN, jnp.zeros(2))
    np.testing.assert_allclose(found, scipy.linalg.expm(0.8 * matrix) @ HIDDEN, atol=1e-7)
    still = lambda state, tau, condition: 3 * tau**2 * condition + 0 * state[0]
    block = diffusion.FirstOrderBlock(still, 0.8)
    found = eqx.filter_jit(block)(HIDDEN, 2 * jnp.ones(2))
    np.testing.assert_allclose(found, np.asarray(HIDDEN) + 2 * 0.8**3, atol=1e-12)


def test_no_field_and_no_velocity_is_the_identity():
    zero = lambda state, tau, condition: jnp.zeros_like(state[0])
    block = diffusion.SecondOrderBlock(zero, jnp.zeros_like)
    np.testing.assert_array_equal(block(HIDDEN, None), HIDDEN)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_derivatives_of_steps_are_those_of_plain_reverse_mode():
    solver = diffusion.CheckpointedSteps(5, diffusion.Euler())
    with numpy_draws():
        block = diffusion.SecondOrderBlock.dense(4, 3, solver, key=KEY)
    hidden, told = jnp.array([0.4, -1.3, 0.2, 1.1]), jnp.array([0.1, -0.5, 0.8])

    def plain(block, h, c):
        v, d = block.velocity(h), block.duration / 5
        step = lambda s, i: ((s[0] + d * s[1], s[1] + d * block.field(s, i * d, c)), None)
        return jax.lax.scan(step, (h, v), jnp.arange(5.0))[0][0]

    @eqx.filter_jit
    def slopes(args):
        slope = lambda fun: eqx.filter_grad(lambda args: jnp.sum(jnp.cos(fun(*args))))(args)
        return slope(plain), slope(lambda block, h, c: block(h, c))

    wanted, found = map(flat, slopes((block, hidden, told)))
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


def test_derivatives_of_the_adjoint_converge_to_those_of_the_closed_form():
    def closed(w, h, duration):
        return jnp.sum(jnp.cos(w * duration) * h + jnp.sin(w * duration) / w * jnp.sin(h))

    def through(solver):
        def value(w, h, duration):
            args = Spring(w), None, duration
            return jnp.sum(solver(beyond_u._second_order, args, (h, jnp.sin(h)))[0])

        return value

    at = jnp.array([0.7, 1.9]), HIDDEN, jnp.array(1.5)
    slope = lambda fun: flat(jax.jit(jax.grad(fun, (0, 1, 2)))(*at))
    wanted = slope(closed)
    few, many = (
        np.max(np.abs(slope(through(diffusion.AdjointSteps(n))) - wanted)) for n in (6, 12)
    )
    assert 3.5 < np.log2(few / many) < 5.5
    adaptive = slope(through(diffusion.DormandPrince(1e-9, 1e-9)))
    np.testing.assert_allclose(adaptive, wanted, atol=1e-6)


def memory(make, num_steps):
    solver = make(num_steps, diffusion.Euler())
    block = diffusion.FirstOrderBlock(lambda state, tau, c: jnp.tanh(c @ state[0]), solver=solver)
    loss = lambda h, c: jnp.sum(block(h, c))
    h, c = (jax.ShapeDtypeStruct(shape, jnp.float64) for shape in ((8, 64), (8, 8)))
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(h, c).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_adjoint_does_not_grow_with_the_steps():
    few, many = (memory(diffusion.AdjointSteps, n) for n in (4, 400))
    assert many < few + 8 * 500  # the numbers of the steps
    assert memory(diffusion.CheckpointedSteps, 400) > few + 20 * 8 * 64 * 8


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def check(network, x):
    """Levels matter, types are kept, and all that is trained has a derivative."""
    levels = np.array([0.1, 2.0], np.float32)
    nodes = diffusion.Node(levels, np.ones_like(levels), levels)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def both(network):
        out = network(jnp.array(np.stack([x, x])), nodes)
        return jnp.sum(jnp.cos(out)), out

    (_, out), slope = both(network)
    assert out.shape == (2, *x.shape)
    assert out.dtype == jnp.float32
    out = np.asarray(out)
    assert np.max(np.abs(out[0] - out[1])) > 1e-3
    for path, leaf in jax.tree.leaves_with_path(slope):
        name = jax.tree_util.keystr(path)
        assert leaf.dtype == jnp.float32
        assert "frequencies" in name or np.any(np.asarray(leaf)), name


@pytest.mark.parametrize("name", BLOCKS)
def test_perceptrons_see_levels_and_keep_types(name):
    solver = diffusion.CheckpointedSteps(2, diffusion.Euler())
    make = functools.partial(diffusion.ContinuousMLP, (2, 3), 4, 1, BLOCKS[name], solver)
    with numpy_draws():
        network = make(key=KEY, dtype=jnp.float32)
    check(network, normal(2, 3))


@numpy_draws()
def unet(dynamics, solver, attention, shape=(2, 2)):
    network = diffusion.ContinuousUNet(
        shape, (2, 3), attention, dynamics, solver, key=KEY, dtype=jnp.float32
    )
    return eqx.tree_at(lambda n: n.last.weight, network, replace_fn=lambda w: w + jnp.cos(w + 1))


def test_shapes_and_types_of_unets():
    solver = diffusion.CheckpointedSteps(1, diffusion.Euler())
    counts = []

    def make_and_call(x):
        network = diffusion.ContinuousUNet(solver=solver, key=KEY, dtype=jnp.float32)
        counts.append(diffusion.parameter_count(network))
        return network(x, LEVEL)

    out = jax.eval_shape(make_and_call, jax.ShapeDtypeStruct((3, 1, 8, 8), jnp.float32))
    assert (out.shape, out.dtype) == ((3, 1, 8, 8), jnp.float32)
    assert counts == [17916]


@pytest.mark.slow
def test_unets_are_continuous_and_see_levels():
    solver = diffusion.CheckpointedSteps(1, diffusion.Euler())
    network = unet(diffusion.FirstOrderBlock, solver, False)
    x = jax.random.normal(KEY, (2, 2), jnp.float32)
    call = eqx.filter_jit(lambda network, node: network(x, node))
    low, high = (call(network, diffusion.Node(s, jnp.ones_like(s), s)) for s in jnp.array([0.1, 2]))
    assert low.shape == (2, 2)
    assert np.max(np.abs(low - high)) > 1e-3
    # Durations almost zero leave the hidden values alone.
    still = eqx.tree_at(
        lambda n: [b.raw_duration for b in (n.blocks[0].block, n.blocks[2].block)],
        network,
        replace_fn=lambda raw: raw - 40,
    )
    merged = still.blocks[-1].block
    still = eqx.tree_at(
        lambda n: n.blocks[-1].block.block.raw_duration, still, replace_fn=lambda raw: raw - 40
    )
    first = still.first(x[None])
    below = still.blocks[1].block(first, None)
    seen = jnp.concatenate([jnp.repeat(jnp.repeat(below, 2, 1), 2, 2), first])
    last = still.last(jax.nn.silu(still.norm(jnp.tensordot(merged.weight, seen, 1))))
    found = call(still, LEVEL)
    np.testing.assert_allclose(found, last[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_unets_keep_types_and_have_derivatives(name):
    network = unet(BLOCKS[name], None, False, (4, 4))
    check(network, normal(4, 4))


@pytest.mark.slow
def test_attention_at_the_lowest_resolution():
    network = unet(diffusion.SecondOrderBlock, None, True, (4, 4))
    assert network.blocks[2].block.field.attention is not None
    assert network.blocks[0].block.field.attention is None
    out = network(jnp.array(normal(4, 4)), LEVEL)
    assert np.all(np.isfinite(out))


def test_counts_are_exact():
    width, told, size = 5, 64, 6
    network = lambda n: drawn(
        lambda: diffusion.ContinuousMLP(
            (2, 3), width, solver=diffusion.CheckpointedSteps(n), key=KEY
        )
    )
    stem, head = (size + told) * width + width, width * size + size
    field = (2 * width * width + width) + ((width + 1) * width + width) + (told * width + width)
    velocity, duration = width * width + width, 1  # frequencies are not trained
    wanted = stem + head + field + velocity + duration
    assert diffusion.parameter_count(network(1)) == wanted
    one, two, three = (diffusion.flop_count(network(n), (2, 3)) for n in (1, 2, 3))
    # Weights are shared along the depth, operations are not.
    products = 4 * 2 * (2 * width * width + (width + 1) * width + told * width)
    assert products < two - one < 1.3 * products
    assert abs((three - two) - (two - one)) < 0.01 * products
    plain = drawn(lambda: diffusion.MLPDenoiser((8, 8), key=KEY))
    assert abs(diffusion.flop_count(plain, (8, 8)) / 498e3 - 1) < 0.01


@numpy_draws()
def test_bad_input():
    with pytest.raises(ValueError, match="num_steps"):
        diffusion.CheckpointedSteps(0)
    with pytest.raises(ValueError, match="num_steps"):
        diffusion.AdjointSteps(0)
    with pytest.raises(TypeError, match="RK4"):
        diffusion.AdjointSteps(2, "rk4")  # type: ignore
    with pytest.raises(ValueError, match="duration"):
        spring(None, 0.0)
    with pytest.raises(TypeError, match="solver"):
        spring("rk4")
    with pytest.raises(ValueError, match="rtol"):
        diffusion.DormandPrince(0.0)
    precise = spring(diffusion.DormandPrince(1e-7, 1e-7))
    with pytest.raises(ValueError, match="1e-5"):
        precise(HIDDEN.astype(jnp.float32), None)
    with pytest.raises(ValueError, match="halved"):
        diffusion.ContinuousUNet((3, 4), key=KEY)
    with pytest.raises(ValueError, match="width"):
        diffusion.ContinuousMLP((4, 4), width=0, key=KEY)
    adaptive = diffusion.ContinuousMLP((2, 2), 2, solver=diffusion.DormandPrince(), key=KEY)
    with pytest.raises(ValueError, match="counted"):
        diffusion.flop_count(adaptive, (2, 2))
