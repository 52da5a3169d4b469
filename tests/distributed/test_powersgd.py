"""PowerSGD against a loop in numpy over workers, matrices and columns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_ext import distributed as dd
from jaxopt_ext.core import loops

WORKERS, STEPS = 4, 5
SHAPES = {"conv": (6, 2, 2), "bias": (5,), "first": (10, 4), "second": (6, 4), "scale": ()}
RNG = np.random.default_rng(0)
GRADIENTS = {name: RNG.normal(size=(STEPS, WORKERS, *shape)) for name, shape in SHAPES.items()}
VARIANTS = {
    "plain": {},
    "iterated": {"power_iterations": 2},
    "forgetful": {"error_feedback": False},
    "late and rarely": {"start": 2, "min_compression": 1.25},
    "alternate": {"alternate": True},
    "alternate twice": {"alternate": True, "power_iterations": 2},
    "last axis": {"channel_axis": -1},
}


QUICK = ("plain", "alternate")
EACH = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]
)


def gram_schmidt(a):
    out = np.zeros_like(a)
    for j in range(a.shape[1]):
        v = a[:, j] - out[:, :j] @ (out[:, :j].T @ a[:, j])
        out[:, j] = v / np.linalg.norm(v)
    return out


def in_numpy(left, right, compressed, options):
    """What every worker gets in each step, and the errors that are left.

    `left` and `right` are the first factors of each matrix.
    """
    options = {"power_iterations": 1, "alternate": False, "start": 0, **options}
    axis = options.get("channel_axis", 0)
    feedback = options.get("error_feedback", True)
    outputs = {name: [] for name in SHAPES}
    errors = {name: 0.0 for name in compressed}
    left, right = dict(left), dict(right)
    for step in range(STEPS):
        for name in SHAPES:
            g = GRADIENTS[name][step]
            if name not in compressed or step < options["start"]:
                outputs[name].append(g.mean(axis=0))
                continue
            rows = np.moveaxis(g, axis + 1 if axis >= 0 else axis, 1)
            matrices = rows.reshape(WORKERS, rows.shape[1], -1)
            whole = matrices + errors[name]
            total = 0.0
            for it in range(options["power_iterations"]):
                rest = whole - total if options["alternate"] else whole
                count = (step) * options["power_iterations"] + it
                if not options["alternate"]:
                    left[name] = gram_schmidt(np.mean([d @ right[name] for d in rest], axis=0))
                    right[name] = np.mean([d.T @ left[name] for d in rest], axis=0)
                    total = left[name] @ right[name].T
                elif count % 2 == 0:
                    left[name] = gram_schmidt(left[name])
                    right[name] = np.mean([d.T @ left[name] for d in rest], axis=0)
                    total = total + left[name] @ right[name].T
                else:
                    right[name] = gram_schmidt(right[name])
                    left[name] = np.mean([d @ right[name] for d in rest], axis=0)
                    total = total + left[name] @ right[name].T
            if feedback:
                errors[name] = whole - total
            outputs[name].append(np.moveaxis(total.reshape(rows.shape[1:]), 0, axis))
    return {name: np.stack(values) for name, values in outputs.items()}, errors


def transformation(options, workers=True):
    return dd.powersgd(2, "workers" if workers else None, **options)


def steps(tx, gradients):
    """Outputs and last state of one worker, from gradients `(steps, ...)`."""

    def one(state, g):
        out, state = tx.update(g, state)
        return state, out

    start = tx.init(jax.tree.map(lambda a: a[0], gradients))
    state, outputs = loops.scan(one, start, gradients)
    return outputs, state


@functools.cache
def found(quick):
    """Variants with K workers, and one worker with the mean gradient in single precision."""

    def run(gradients):
        by_worker = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), gradients)
        many = lambda tx: jax.vmap(lambda g: steps(tx, g), axis_name="workers")(by_worker)
        mean = jax.tree.map(lambda a: jnp.mean(a, axis=1).astype(jnp.float32), gradients)
        return {
            name: (
                many(transformation(options)),
                steps(transformation(options, False), mean) if name == "plain" else None,
            )
            for name, options in VARIANTS.items()
            if (name in QUICK) == quick
        }

    return jax.jit(run)({name: jnp.asarray(g) for name, g in GRADIENTS.items()})


def compressed_by(options):
    """Names of matrices, in the order of their stacks: by shape, in the order of the leaves."""
    if "min_compression" in options:
        return ["first"]  # 40 / (2 * 14) is more, 24 / (2 * 10) is less
    if "channel_axis" in options:
        return ["conv", "first", "second"]
    return ["conv", "second", "first"]  # the first two are 6 x 4


def first_factors(options):
    """The factors before the first step, by name."""
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    memory = transformation(options, False).init(params)
    by_name = lambda stacks: dict(
        zip(compressed_by(options), [np.asarray(a) for s in stacks for a in s], strict=False)
    )
    return by_name(memory.left), by_name(memory.right)


@EACH
def test_equals_a_loop(name):
    options = VARIANTS[name]
    names = compressed_by(options)
    wanted, errors = in_numpy(*first_factors(options), names, options)
    (outputs, state), alone = found(name in QUICK)[name]
    for leaf in SHAPES:
        for worker in range(WORKERS):
            np.testing.assert_allclose(outputs[leaf][worker], wanted[leaf], atol=1e-10)
        if alone is not None:  # linearity
            assert alone[0][leaf].dtype == jnp.float32
            np.testing.assert_allclose(alone[0][leaf], wanted[leaf], atol=1e-4)
    if options.get("error_feedback", True):
        left = [e[:, i] for e in state.error for i in range(e.shape[1])]
        assert len(left) == len(names)
        for matrix, e in zip(names, left, strict=True):
            np.testing.assert_allclose(e, errors[matrix], atol=1e-10)
    else:
        assert state.error == ()


def test_nothing_is_lost():
    """Outputs, and the mean of what is not sent, are all that was to be sent."""
    for name in ("plain", "alternate"):
        outputs, state = found(True)[name][0]
        sums = [np.sum(GRADIENTS[leaf], axis=0).mean(axis=0) for leaf in ("second", "conv")]
        sent = [np.sum(outputs[leaf][0], axis=0) for leaf in ("second", "conv")]
        left = np.stack([np.mean(state.error[s][:, i], axis=0) for s, i in ((0, 1), (0, 0))])
        sums, sent = (np.stack([a.reshape(6, 4) for a in x]) for x in (sums, sent))
        np.testing.assert_allclose(sent + left, sums, atol=1e-10)


@pytest.mark.slow
def test_a_constant_matrix():
    """Warm starts find its singular vectors, cold ones do not; feedback sends all of it."""
    left, right = (np.linalg.qr(np.random.default_rng(1).normal(size=(n, 32)))[0] for n in (64, 32))
    values = 1 / np.arange(1, 33)
    matrix = left * values @ right.T
    schemes = {
        "warm": dd.powersgd(2, error_feedback=False),
        "cold": dd.powersgd(2, warm_start=False, error_feedback=False),
        "fed back": dd.powersgd(2),
        # As long as it is zero there is nothing to start from.
        "zero first": dd.powersgd(2, error_feedback=False),
    }
    constant = jnp.broadcast_to(jnp.asarray(matrix), (400, 64, 32))
    late = constant.at[:3].set(0)

    @jax.jit
    def run(constant, late):
        inputs = {name: late if name == "zero first" else constant for name in schemes}
        return {name: steps(tx, inputs[name])[0] for name, tx in schemes.items()}

    out = run(constant, late)
    best = np.sqrt(np.sum(values[2:] ** 2))
    gap = lambda a: np.linalg.norm(np.asarray(a) - matrix, axis=(-2, -1))
    warm = gap(out["warm"][:10]) / best
    assert warm[0] > 1.1
    assert warm[4] < 1.02  # within 1% on most draws
    assert warm[9] < 1.001
    assert np.mean(gap(out["cold"][:100])) / best > 1.2
    assert gap(np.mean(out["fed back"], axis=0)) < 0.03 * np.linalg.norm(values)
    assert gap(np.mean(out["warm"], axis=0)) > 0.3 * np.linalg.norm(values)
    assert np.all(np.asarray(out["zero first"][:3]) == 0)
    assert gap(out["zero first"][14]) / best < 1.001


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"].T) @ params["v"].T + params["b"] - y) ** 2)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="both factors"),
        pytest.param({"alternate": True, "start": 1}, id="alternate", marks=pytest.mark.slow),
    ],
)
def test_on_a_mesh_it_sends_factors(options):
    """8 nodes on 8 devices equal the simulation, and what they send is small."""
    nodes, shapes = 8, {"w": (12, 16), "v": (6, 12), "b": (6,)}
    rng = np.random.default_rng(2)
    start = {name: jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    batch = tuple(jnp.asarray(rng.normal(size=(nodes, 5, width)), jnp.float32) for width in (16, 6))
    optimizer = optax.chain(dd.sum_momentum(0.9), optax.scale(-0.02))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("nodes",))
    meshed = dd.Network.on_mesh(dd.ring(nodes), mesh, "nodes")
    simulated = dd.Network.simulated(dd.ring(nodes))
    key = jax.random.key(0)
    plain = 4 * (2 * (12 + 16) + 2 * (6 + 12) + 6)
    algorithm = dd.PowerSGD(loss, optimizer, 2, **options)
    one, many = (
        dd.run(algorithm, network, network.replicate(start), batch, 4, progress=False)
        for network in (simulated, meshed)
    )
    for a, b in zip(*map(jax.tree.leaves, (one.state, many.state)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a in map(np.asarray, jax.tree.leaves(many.params)):
        np.testing.assert_array_equal(a, np.broadcast_to(a[:1], a.shape))
    bits = algorithm.bits_per_round(many.params, meshed)
    if options:
        assert bits == 8 * (plain - 24) // 2 + 8 * 24
        return
    once = lambda state, batch, key: algorithm.round(state, batch, meshed, key)
    compiled = jax.jit(meshed.parallel(once)).lower(many.state, batch, key).compile()
    assert dd.collective_bytes(compiled) == {"all-reduce": plain}
    assert bits == 8 * plain


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_in_shard_map_with_its_check(name):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:WORKERS]), ("workers",))
    tx = transformation(VARIANTS[name])

    def one(gradients):
        outputs, state = steps(tx, jax.tree.map(lambda a: a[:, 0], gradients))
        return outputs, jax.tree.map(lambda a: a[None], state.error)

    spec = P(None, "workers")
    mapped = jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=(P(), P("workers")))
    outputs, error = jax.jit(mapped)({n: jnp.asarray(g) for n, g in GRADIENTS.items()})
    wanted, state = found(True)[name][0]
    first = jax.tree.map(lambda a: a[0], wanted)
    pairs = zip(*map(jax.tree.leaves, ((outputs, error), (first, state.error))), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.slow
def test_odd_leaves():
    rng = np.random.default_rng(3)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    gradient = {
        "complex": normal(4, 3) + 1j * normal(4, 3),
        "hollow": jnp.zeros((0, 3)),
        "none": None,
        "half": normal(5, 2).astype(jnp.bfloat16),
    }
    tx = dd.powersgd(3)
    state = tx.init(gradient)
    assert {a.dtype for a in state.error} == {jnp.dtype(jnp.complex128), jnp.dtype(jnp.float32)}
    out, _ = jax.jit(tx.update)(gradient, state)
    assert jax.tree.map(jnp.dtype, out) == jax.tree.map(jnp.dtype, gradient)
    # As many columns as the matrix has: exact, but for the rounding of the message.
    np.testing.assert_allclose(out["complex"], gradient["complex"], atol=1e-12)
    np.testing.assert_allclose(
        out["half"].astype(float), gradient["half"].astype(float), rtol=0.02, atol=0.02
    )
    assert dd.powersgd(1).init({}).right == ()


def test_momentum():
    tx, v = dd.sum_momentum(0.9), 0.0
    state = tx.init(jnp.zeros(2))
    for g in (1.0, 2.0, -3.0):
        out, state = tx.update(jnp.full(2, g), state)
        v = 0.9 * v + g
        np.testing.assert_allclose(out, g + v)


def test_bad_input_is_refused():
    for wrong in (
        {"rank": 0},
        {"rank": 1, "power_iterations": 0},
        {"rank": 1, "start": -1},
        {"rank": 1, "alternate": True, "warm_start": False},
        {"rank": 1, "min_compression": -1.0},
    ):
        with pytest.raises(ValueError, match=r"must be|needs"):
            dd.powersgd(**wrong)
        with pytest.raises(ValueError, match=r"must be|needs"):
            dd.PowerSGD(loss, optax.sgd(0.1), **wrong)
    with pytest.raises(ValueError, match="decay"):
        dd.sum_momentum(1.0)
