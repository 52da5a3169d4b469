"""EControl and its relatives against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_ext import distributed as dd
from jaxopt_ext.core import loops
from jaxopt_ext.distributed import compression as cc

N, D, K, STEP, ETA, ROUNDS = 4, 8, 2, 0.1, 0.2, 30
RNG = np.random.default_rng(0)
H = np.stack([np.diag(RNG.uniform(0.3, 1, D)) for _ in range(N)])
C = RNG.normal(size=(N, D))
OPTIMUM = np.linalg.solve(H.sum(axis=0), C.sum(axis=0))
GUESS = RNG.normal(size=(N, D))
BATCH = (jnp.asarray(H), jnp.asarray(C))


def loss(x, batch):
    h, c = batch
    return 0.5 * x @ h @ x - c @ x


def gradient(x):
    return np.einsum("nij,j->ni", H, x) - C


def top(x, k=K):
    kept = np.argsort(-np.abs(x), axis=1, kind="stable")[:, :k]
    out = np.zeros_like(x)
    np.put_along_axis(out, kept, np.take_along_axis(x, kept, axis=1), axis=1)
    return out


def econtrol(x, eta=ETA):
    e, h = np.zeros((N, D)), gradient(x)
    for _ in range(ROUNDS):
        g = gradient(x)
        sent = top(eta * e + g - h)
        e = e + g - h - sent
        h = h + sent
        x = x - STEP * h.mean(axis=0)
    return x


def ef21(x, b=1.0):
    v, h = gradient(x), gradient(x)
    for _ in range(ROUNDS):
        v = (1 - b) * v + b * gradient(x)
        h = h + top(v - h)
        x = x - STEP * h.mean(axis=0)
    return x


def ef14(x):
    e = np.zeros((N, D))
    for _ in range(ROUNDS):
        p = e + STEP * gradient(x)
        e = p - top(p)
        x = x - top(p).mean(axis=0)
    return x


def referenced(x, h):
    e = np.zeros((N, D))
    for _ in range(ROUNDS):
        p = e + gradient(x) - h
        e = p - top(p)
        x = x - STEP * (top(p) + h).mean(axis=0)
    return x


def plain(x):
    for _ in range(ROUNDS):
        x = x - STEP * top(gradient(x)).mean(axis=0)
    return x


def double(x):
    e, h = np.zeros((N, D)), gradient(x)
    for _ in range(ROUNDS):
        g = gradient(x)
        p = e + g - h
        e = p - top(p)
        x = x - STEP * (top(p) + h).mean(axis=0)
        h = h + top(g - h)
    return x


def descent(x):
    for _ in range(ROUNDS):
        x = x - STEP * gradient(x).mean(axis=0)
    return x


TOP = cc.TopK(K)
METHODS = {
    "EControl": (dd.EControl(loss, STEP, TOP, ETA), econtrol),
    "default eta": (dd.EControl(loss, STEP, TOP), lambda x: econtrol(x, K / D)),
    "no control": (dd.EControl(loss, STEP, TOP, 0.0), ef21),
    "everything": (dd.EControl(loss, STEP, cc.Identity(), ETA), descent),
    "EF21": (dd.EF21SGD(loss, STEP, TOP), ef21),
    "EF21 with momentum": (dd.EF21SGDM(loss, STEP, TOP), lambda x: ef21(x, 0.1)),
    "EF14": (dd.EF14SGD(loss, STEP, TOP), ef14),
    "ideal": (
        dd.ECIdeal(loss, STEP, TOP, jnp.asarray(OPTIMUM)),
        lambda x: referenced(x, gradient(OPTIMUM)),
    ),
    "approximate": (
        dd.ECApproximate(loss, STEP, TOP, jnp.asarray(GUESS)),
        lambda x: referenced(x, GUESS),
    ),
    "none": (dd.CompressedSGD(loss, STEP, TOP), plain),
    "double": (dd.DoubleEC(loss, STEP, TOP), double),
}


def walk(algorithm, network, batch_of, rounds, dtype=None):
    """States after each round, the first one before it: a function of the start."""

    def fun(params, batch, key):
        state = algorithm.init(params, batch_of(batch, 0), network, key)

        def one(state, r):
            new = algorithm.round(state, batch_of(batch, r), network, jax.random.fold_in(key, r))
            return new, state

        last, states = loops.scan(one, state, jnp.arange(rounds))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), states, last)

    return fun


@pytest.fixture(scope="module")
def found():
    network = dd.Network.clients(N)
    same = lambda batch, r: batch
    single = {"EControl"}

    def run(params, batch):
        last = lambda a: walk(a, network, same, ROUNDS)
        cast = lambda x: jax.tree.map(lambda a: a.astype(jnp.float32), x)
        key = jax.random.key(0)
        wide = {name: last(a)(params, batch, key) for name, (a, _) in METHODS.items()}
        slim = {n: last(METHODS[n][0])(cast(params), cast(batch), key) for n in single}
        return jax.tree.map(lambda a: a[-1], (wide, slim))

    return jax.jit(run)(jnp.ones((N, D)), BATCH)


@pytest.mark.parametrize("name", METHODS)
def test_equals_a_loop(found, name):
    wanted = np.tile(METHODS[name][1](np.ones(D)), (N, 1))
    wide, slim = found
    np.testing.assert_allclose(wide[name].params, wanted, atol=1e-11)
    if name in slim:
        assert {a.dtype for a in jax.tree.leaves(slim[name])} == {jnp.dtype(jnp.float32)}
        np.testing.assert_allclose(slim[name].params, wanted, atol=1e-4)


def test_ends_of_the_family(found):
    wide = found[0]
    np.testing.assert_array_equal(wide["everything"].sender.error, 0)
    np.testing.assert_allclose(wide["no control"].params, wide["EF21"].params, atol=1e-12)
    np.testing.assert_allclose(wide["no control"].sender.copy, wide["EF21"].sender.copy, atol=1e-12)


def test_what_is_left_moves_as_stochastic_gradient_descent():
    """x - gamma mean(e) is moved by the mean gradients alone, for any compressor."""
    network, rounds = dd.Network.clients(N), 200
    noise = jnp.asarray(np.random.default_rng(1).normal(size=(rounds, N, D)))
    batch_of = lambda batch, r: (batch[0], batch[1] + noise[r])
    compressors = {"top": TOP, "random": cc.RandK(K), "shared": cc.RandK(K, shared_seed=True)}

    def run(params, batch):
        return {
            name: walk(dd.EControl(loss, 0.05, c), network, batch_of, rounds)(
                params, batch, jax.random.key(2)
            )
            for name, c in compressors.items()
        }

    for name, states in jax.jit(run)(jnp.ones((N, D)), BATCH).items():
        x, e = np.asarray(states.params[:, 0]), np.asarray(states.sender.error)
        g = np.einsum("nij,tj->tni", H, x[:-1]) - C - noise
        moved = x - 0.05 * e.mean(axis=1)
        np.testing.assert_allclose(np.diff(moved, axis=0), -0.05 * g.mean(axis=1), atol=1e-12)
        assert np.max(np.abs(e)) > 0.1, name


@pytest.mark.slow
def test_with_one_of_fifty_numbers_what_converges_what_stalls_and_what_diverges():
    """Whatever the step size; without control, or with too much of it."""
    nodes, d, delta = 10, 50, 0.02
    network, top, key = dd.Network.clients(nodes), cc.TopK(1), jax.random.key(0)
    h = jnp.asarray(np.random.default_rng(7).uniform(0.1, 1, (nodes, d)))
    c = jnp.asarray(np.random.default_rng(8).normal(size=(nodes, d)))
    optimum = c.sum(axis=0) / h.sum(axis=0)
    diagonal = lambda x, batch: 0.5 * jnp.sum(batch[0] * x**2) - batch[1] @ x
    methods = {
        "EControl": lambda gamma: dd.EControl(diagonal, gamma, top),
        "EF21": lambda gamma: dd.EF21SGD(diagonal, gamma, top),
        "EF14": lambda gamma: dd.EF14SGD(diagonal, gamma, top),
        "none": lambda gamma: dd.CompressedSGD(diagonal, gamma, top),
        "too much": lambda gamma: dd.EControl(diagonal, gamma, top, 5 * delta),
    }

    def left(name, gamma):
        algorithm = methods[name](gamma)
        state = algorithm.init(jnp.zeros((nodes, d)), (h, c), network, key)
        one = lambda _, state: algorithm.round(state, (h, c), network, key)
        return jnp.sum((jax.lax.fori_loop(0, 4000, one, state).params[0] - optimum) ** 2)

    steps = jnp.asarray([1.0, 0.3, 0.1, 0.03])
    found = {name: jax.jit(jax.vmap(lambda g, n=name: left(n, g)))(steps) for name in methods}
    assert np.all(found["EControl"] < 1e-20)
    assert np.all(found["EF21"] < 1e-20)
    # Proportional to the step size, as the error that is kept back.
    assert np.all(found["EF14"] > 10 * steps), found["EF14"]
    assert np.all(np.diff(found["EF14"]) < 0)
    assert np.all(found["none"] > 3), found["none"]
    assert not np.any(found["too much"] < 1e10)


@pytest.mark.parametrize(
    ("compressor", "sent"),
    [
        # Three values of 8 bytes and three positions of five bits from each of 8 nodes.
        pytest.param(cc.TopK(3), {"all-gather": 8 * (3 * 8 + 2)}, id="packed"),
        pytest.param(
            cc.RandK(3, shared_seed=True),
            {"all-reduce": 3 * 8},
            id="shared seed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            cc.ScaledSign(), {"all-gather": 8 * (8 + 4)}, id="signs", marks=pytest.mark.slow
        ),
    ],
)
def test_on_a_mesh_messages_travel_packed(compressor, sent):
    nodes, d = 8, 30
    rng = np.random.default_rng(3)
    h = jnp.asarray(np.stack([np.diag(rng.uniform(0.3, 1, d)) for _ in range(nodes)]))
    batch = h, jnp.asarray(rng.normal(size=(nodes, d)))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("nodes",))
    meshed, simulated = dd.Network.clients(nodes, mesh, "nodes"), dd.Network.clients(nodes)
    algorithm = dd.EControl(loss, 0.05, compressor)
    start = jnp.ones((nodes, d))
    many = dd.run(algorithm, meshed, start, batch, 10, progress=False)
    one = dd.run(algorithm, simulated, start, batch, 10, progress=False)
    for a, b in zip(*map(jax.tree.leaves, (one.state, many.state)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    for shared in (many.params, many.state.memory):
        np.testing.assert_array_equal(shared, np.tile(shared[:1], (nodes, 1)))
    key = jax.random.key(0)
    once = lambda state, batch, key: algorithm.round(state, batch, meshed, key)
    compiled = jax.jit(meshed.parallel(once)).lower(many.state, batch, key).compile()
    assert dd.collective_bytes(compiled) == sent
    total = sum(sent.values()) * (1 if "all-reduce" in sent else 1 / nodes)
    bits = algorithm.bits_per_round(start, meshed)
    assert bits <= 8 * total < bits + 8


def transformed(gradients, tx):
    def one(state, g):
        out, state = tx.update(g, state)
        return state, out

    state, outputs = loops.scan(one, tx.init(gradients[0]), gradients)
    return outputs, state.sender.error


def test_the_transformation_equals_a_loop():
    gradients = np.random.default_rng(4).normal(size=(N, 12, D))
    e, h, wanted = np.zeros((N, D)), np.zeros((N, D)), []
    for g in gradients.swapaxes(0, 1):
        sent = top(ETA * e + g - h)
        e, h = e + g - h - sent, h + sent
        wanted.append(h.mean(axis=0))
    tx = dd.error_controlled(TOP, ETA, "workers")
    run = jax.jit(jax.vmap(lambda g: transformed(g, tx), axis_name="workers"))
    outputs, error = run(jnp.asarray(gradients))
    for worker in outputs:
        np.testing.assert_allclose(worker, wanted, atol=1e-12)
    np.testing.assert_allclose(error, e, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_the_transformation_in_shard_map_with_its_check(shared):
    gradients = jnp.asarray(np.random.default_rng(5).normal(size=(N, 6, D)))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:N]), ("workers",))
    tx = dd.error_controlled(cc.RandK(K, shared_seed=shared), ETA, "workers")

    def one(g):
        outputs, error = transformed(g[0], tx)
        return outputs, error[None]

    mapped = jax.shard_map(one, mesh=mesh, in_specs=P("workers"), out_specs=(P(), P("workers")))
    outputs, error = jax.jit(mapped)(gradients)
    run = jax.jit(jax.vmap(lambda g: transformed(g, tx), axis_name="workers"))
    wanted, errors = run(gradients)
    np.testing.assert_allclose(outputs, wanted[0], atol=1e-12)
    np.testing.assert_allclose(error, errors, atol=1e-12)
    # What a worker draws is its own, or everybody's.
    assert (np.count_nonzero(outputs[0]) == K) == shared


def test_bits_and_bad_input():
    params = jax.ShapeDtypeStruct((N, D), jnp.float32)
    network = dd.Network.clients(N)
    message = K * (32 + 3)
    assert METHODS["EF21"][0].bits_per_round(params, network) == message
    assert METHODS["double"][0].bits_per_round(params, network) == 2 * message
    for wrong in (
        lambda: dd.EControl(loss, STEP, TOP, 1.0),
        lambda: dd.EControl(loss, STEP, TOP, -0.1),
        lambda: dd.EControl(loss, 0.0, TOP),
        lambda: dd.EF21SGDM(loss, STEP, TOP, 0.0),
        lambda: dd.error_controlled(TOP, 1.0),
    ):
        with pytest.raises(ValueError, match=r"eta|step_size|momentum"):
            wrong()
    for method in (dd.EControl, dd.EF14SGD, dd.EF21SGD, dd.CompressedSGD, dd.DoubleEC):
        with pytest.raises(TypeError, match="compressor"):
            method(loss, STEP, "top-k")
