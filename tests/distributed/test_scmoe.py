"""Mixtures of experts against a loop over tokens, on one device and on many."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import drawn
from jax.sharding import AbstractMesh

from jaxopt_ext import distributed as dd
from jaxopt_ext.catalog.cases.mixture import reference
from jaxopt_ext.distributed import scmoe

DIM, HEADS, EXPERTS, NODES = 4, 2, 8, 8
KEY = jax.random.key(3)
PAIRS = {
    "top1": functools.partial(dd.TopKMoE, k=1),
    "top2": dd.TopKMoE,
    "shared": dd.SharedExpertMoE,
    "position1": functools.partial(dd.ScMoEPair, position=1),
    "position2": dd.ScMoEPair,
    "position3": functools.partial(dd.ScMoEPair, position=3, shared_gate=True),
    "k2": functools.partial(dd.ScMoEPair, k=2),
    "double": dd.DGMoEPair,
}
X = np.random.default_rng(0).normal(size=(NODES, 2, 4, DIM))


def _made(name, factor, hidden):
    options = {"hidden": hidden, "capacity_factor": factor}
    return lambda: PAIRS[name](DIM, HEADS, EXPERTS, key=KEY, **options)


def build(name, factor=1.25, hidden=5):
    """The same numbers, whatever the factor."""
    return drawn(_made(name, factor, hidden), scale=0.7)


@functools.cache
def _forward(name, factor):
    network = dd.Network.clients(NODES)
    run = jax.jit(lambda p, x: dd.expert_parallel(p, x, network))
    return run(build(name, factor), jnp.asarray(X))


# With 0.5 there is one place at each expert, with 1.5 there are two: some choices are dropped.
CHEAP = [("double", 1.5)]
ALL = [(name, factor) for name in PAIRS for factor in (0.5, 1.5, 8.0)]


@pytest.mark.parametrize(
    ("name", "factor"),
    [*CHEAP, *(pytest.param(*c, marks=pytest.mark.slow) for c in ALL if c not in CHEAP)],
)
def test_equals_a_loop_over_tokens(name, factor):
    y, aux = _forward(name, factor)
    wanted, loss = reference(build(name, factor), X)
    np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(aux, loss, rtol=1e-9)


def test_drops_are_there_to_be_tested():
    ample, tight, tighter = (reference(build("double", f), X)[0] for f in (8.0, 1.5, 0.5))
    assert np.max(np.abs(ample - tight)) > 0.1
    assert np.max(np.abs(tight - tighter)) > 0.1


def _on(devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("nodes",))
    return dd.Network.clients(NODES, mesh, "nodes")


DEVICES = pytest.mark.parametrize(
    "devices", [4, *(pytest.param(d, marks=pytest.mark.slow) for d in (1, 8))]
)


@DEVICES
def test_devices_equal_simulation_and_send_what_they_say(devices):
    network, pair = _on(devices), build("double", 1.5)
    run = jax.jit(lambda p, x: dd.expert_parallel(p, x, network))
    compiled = run.lower(pair, jnp.asarray(X)).compile()
    for a, b in zip(_forward("double", 1.5), compiled(pair, jnp.asarray(X)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    if devices > 1:  # two choices, there and back, E places of each of the device's nodes
        size = 4 * (NODES // devices) * EXPERTS * pair.experts.capacity(8, 1) * DIM * 8
        assert dd.collective_bytes(compiled)["all-to-all"] == size


def _gradients(network):
    """Of a scalar of output and auxiliary loss, in every parameter and in x."""

    def score(arguments):
        y, aux = dd.expert_parallel(*arguments, network)
        return jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y) + 1e3 * aux

    return jax.jit(jax.grad(score))((build("double"), jnp.asarray(X)))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4, 8])
def test_derivatives_on_devices_equal_those_of_the_simulation(devices):
    wanted, found = _gradients(dd.Network.clients(NODES)), _gradients(_on(devices))
    for a, b in zip(*map(jax.tree.leaves, (wanted, found)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def _single(make):
    """The shapes of what `make` returns, its floating numbers in single precision."""
    single = lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a
    return jax.eval_shape(lambda: jax.tree.map(single, make()))


def _report(name):
    mesh = AbstractMesh((NODES,), ("nodes",))  # no device is needed
    network = dd.Network.clients(NODES, mesh, "nodes")
    x = jax.ShapeDtypeStruct((NODES, 1, 64, DIM), jnp.float32)
    pair = _single(lambda: build(name, 1.0, hidden=4 * DIM))
    return dd.overlap_report(jax.jit(lambda p, x: dd.expert_parallel(p, x, network)).trace(pair, x))


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("top2", set()),
        ("shared", {"shared_expert"}),
        ("position1", {"attention_1", "mlp", "attention_2", "shared_expert"}),
        ("position2", {"mlp", "attention_2", "shared_expert"}),
        ("position3", {"attention_2", "shared_expert"}),
    ],
)
def test_what_may_run_beside_the_talk(name, beside):
    there, back = _report(name)
    for talk in (there, back):
        assert talk.beside == beside
        choices = 2 if name == "top2" else 1
        assert talk.bytes == choices * 64 * DIM * 4
    assert "experts" in there.after
    assert "experts" in back.before
    # Projections and scores of attention, perceptrons of 16 d^2 for each token, and the gate.
    tokens, d = 64, DIM
    attention = tokens * (8 * d**2 + 4 * tokens * d)
    parts = {"mlp": tokens * 16 * d**2, "shared_expert": tokens * 16 * d**2}
    parts |= {"attention_1": attention, "attention_2": attention}
    shared = parts["shared_expert"] * (name != "top2")
    gate = 2 * tokens * d * EXPERTS + 2 * tokens * d * (name == "position3")
    routed = tokens * 16 * d**2 * (2 if name == "top2" else 1)
    total = 2 * attention + parts["mlp"] + shared + gate + routed
    free = sum(parts[part] for part in beside) + 2 * tokens * d * (name == "position3")
    np.testing.assert_allclose(there.independent, free / total, rtol=1e-6)


def test_half_of_the_talk_of_two_gates_is_early():
    early, late = ([t.beside for t in _report("double")][i] for i in (0, 1))
    assert early == {"mlp", "attention_2"}
    assert late == set()


route = jax.jit(scmoe.route, static_argnums=(1, 2))


def test_positions_are_given_in_the_order_of_tokens_first_choices_first():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.3, 0.4, 0.3], [0.7, 0.2, 0.1]])
    routing = route(np.log(probabilities), 2, 2)
    np.testing.assert_array_equal(routing.experts, [[0, 1], [0, 2], [1, 0], [0, 1]])
    np.testing.assert_array_equal(routing.positions, [[0, 1], [1, 0], [0, 3], [2, 2]])
    np.testing.assert_array_equal(routing.kept, routing.positions < 2)
    np.testing.assert_allclose(routing.gates[0], [0.5 / 0.8, 0.3 / 0.8], rtol=1e-12)
    single = route(np.log(probabilities), 1, 2)
    np.testing.assert_allclose(single.gates[:, 0], [0.5, 0.6, 0.4, 0.7], rtol=1e-12)
    other = route(np.log(probabilities), 1, 2, avoid=routing.experts[:, 0])
    np.testing.assert_array_equal(other.experts[:, 0], routing.experts[:, 1])
    np.testing.assert_allclose(other.gates[0], [0.3], rtol=1e-12)
    assert routing.positions.dtype == jnp.int32


def test_places_without_a_token_are_zero_and_have_no_derivative():
    routing = route(np.eye(4)[:2] * 5, 1, 2)  # token 0 to expert 0, token 1 to expert 1
    x = np.arange(1.0, 7.0).reshape(2, 3)
    packed = jax.jit(lambda x: scmoe.dispatch(x, routing, 2))(x)
    wanted = np.zeros((4, 2, 3))
    wanted[0, 0], wanted[1, 0] = x
    np.testing.assert_array_equal(packed, wanted)
    slope = jax.jit(jax.grad(lambda done: jnp.sum(scmoe.combine(done, routing))))(packed)
    assert np.count_nonzero(slope) == np.count_nonzero(slope[:2, 0]) == 6
    full = route(np.zeros((3, 2)), 1, 1)  # ties go to the first; two are dropped
    np.testing.assert_array_equal(
        jax.jit(scmoe.combine)(np.ones((2, 1, 1)), full), [[0.5], [0], [0]]
    )


@pytest.mark.slow
def test_auxiliary_loss_is_of_means_over_nodes():
    network = dd.Network.clients(2)
    logits = np.log([[[0.9, 0.1]], [[0.1, 0.9]]])  # each node alone is skewed
    routing = jax.vmap(lambda l: route(l, 1, 1))(logits)
    np.testing.assert_allclose(
        jax.jit(lambda r: scmoe.balance_loss(r, network))(routing), 0.01, rtol=1e-12
    )
    first, network = jax.tree.map(lambda a: a[:1], routing), dd.Network.clients(1)
    alone = jax.jit(lambda r: scmoe.balance_loss(r, network))(first)
    np.testing.assert_allclose(alone, 0.01 * 2 * 0.9, rtol=1e-12)


@pytest.mark.slow
def test_auxiliary_loss_balances_a_skewed_gate():
    network, key = dd.Network.clients(1), jax.random.key(0)
    tokens = jax.random.normal(key, (1, 256, 8)) + 1.0
    skew = jnp.zeros((8, 4)).at[:, 0].set(1.0)

    def routed(weight):
        return jax.vmap(lambda v: scmoe.route(v @ weight, 1, 1))(tokens)

    def load(weight):
        counts = np.bincount(np.asarray(routed(weight).experts).ravel(), minlength=4)
        return counts.max() / counts.mean()

    optimizer = optax.adam(0.05)

    @jax.jit
    def train(weight):
        def step(carry, _):
            weight, state = carry
            slope = jax.grad(lambda w: scmoe.balance_loss(routed(w), network)[0])(weight)
            change, state = optimizer.update(slope, state)
            return (weight + change, state), None

        return jax.lax.scan(step, (weight, optimizer.init(weight)), length=200)[0][0]

    start = skew + 0.1 * jax.random.normal(key, skew.shape)
    assert load(start) > 3
    assert load(train(start)) < 1.5


def test_gates_are_single_precision_and_noise_needs_a_key():
    gate = scmoe.Gate(DIM, 3, noisy=True, key=KEY)
    v = jnp.ones((2, DIM), jnp.bfloat16)
    assert gate(v).dtype == jnp.float32
    noisy = gate(v, KEY)
    spread = np.asarray(noisy - gate(v)) / np.log(2)  # softplus(0)
    drawn = jax.random.normal(KEY, (2, 3), jnp.float32)
    np.testing.assert_allclose(spread, drawn, rtol=1e-4, atol=1e-5)
    plain = scmoe.Gate(DIM, 3, key=KEY)
    np.testing.assert_array_equal(plain(v, KEY), plain(v))


def _pair(**options):
    return jax.eval_shape(lambda: dd.ScMoEPair(DIM, HEADS, 4, key=KEY, **options))


BAD = {
    "k": (lambda: _pair(k=5), "4, got 5"),
    "position": (lambda: _pair(position=4), "got 4"),
    "capacity": (lambda: _pair(capacity_factor=0.0), "capacity_factor"),
    "no place": (lambda: scmoe.route(jnp.zeros((2, 2)), 1, 0), "capacity"),
    "k of route": (lambda: scmoe.route(jnp.zeros((2, 2)), 3, 1), "got 3"),
    "heads": (lambda: dd.ScMoEPair(DIM, 3, 4, key=KEY), "3 heads"),
    "one expert": (lambda: dd.DGMoEPair(DIM, HEADS, 1, key=KEY), "1, got 2"),
    "experts": (
        lambda: dd.expert_parallel(_pair(), jnp.zeros((3, 1, 2, DIM)), dd.Network.clients(3)),
        "4 experts .* 3 nodes",
    ),
    "nodes": (
        lambda: dd.expert_parallel(_pair(), jnp.zeros((3, 1, 2, DIM)), dd.Network.clients(2)),
        r"\(2, .*\(3, 1, 2, 4\)",
    ),
    "axes": (lambda: _pair()(jnp.zeros((2, DIM))), r"\(2, 4\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises(case):
    call, said = BAD[case]
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("chips", ["v5e:2x4", "v5e:16x16"])
def test_compiles_for_a_pod_and_sends_what_it_says(chips):
    from aot import topology

    devices = np.array(topology(chips).devices).reshape(-1)
    n = len(devices)
    mesh = jax.sharding.Mesh(devices, ("nodes",))
    network = dd.Network.clients(n, mesh, "nodes")
    nodes = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("nodes"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    place = lambda tree, where: jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=where), tree
    )
    pair = jax.eval_shape(lambda: dd.ScMoEPair(128, 2, n, capacity_factor=1.0, key=KEY))
    spread = place(pair.experts, nodes)
    pair = eqx.tree_at(lambda p: p.experts, place(pair, everywhere), spread)
    x = jax.ShapeDtypeStruct((n, 1, n, 128), jnp.float32, sharding=nodes)
    compiled = jax.jit(lambda p, x: dd.expert_parallel(p, x, network)).lower(pair, x).compile()
    assert dd.collective_bytes(compiled)["all-to-all"] == 2 * n * 128 * 4


@pytest.mark.slow
def test_on_tpu_the_shortcut_leaves_compute_between_sending_and_arrival():
    """Only with asynchronous all-to-alls, which that compiler does not use by itself."""
    from aot import topology

    devices = np.array(topology("v5e:2x4").devices).reshape(-1)
    mesh = jax.sharding.Mesh(devices, ("nodes",))
    network = dd.Network.clients(8, mesh, "nodes")
    nodes = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("nodes"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((8, 4, 512, 512), jnp.float32, sharding=nodes)
    between = {}
    for name, make in {"shortcut": dd.ScMoEPair, "top2": dd.TopKMoE}.items():
        pair = _single(lambda make=make: make(512, 4, 8, key=KEY))
        place = lambda tree, where: jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree
        )
        pair = eqx.tree_at(lambda p: p.experts, place(pair, everywhere), place(pair.experts, nodes))
        lowered = jax.jit(lambda p, x: dd.expert_parallel(p, x, network)).lower(pair, x)
        options = {"xla_tpu_enable_async_all_to_all": True}
        text = lowered.compile(compiler_options=options).as_text()
        lines = text[text.index("\nENTRY") :].splitlines()
        start = next(i for i, line in enumerate(lines) if " all-to-all-start(" in line)
        done = next(i for i, line in enumerate(lines) if " all-to-all-done(" in line)
        between[name] = sum("convolution" in line for line in lines[start:done])
    assert between["shortcut"] > between["top2"] == 0
