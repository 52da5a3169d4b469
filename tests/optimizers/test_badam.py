import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from aot import usual_program

from jaxopt_ext.optimizers.badam import badam, blocks_by_layer, value_and_block_grad

B1, B2, EPS = 0.9, 0.999, 1e-8


def tree(dtype=jnp.float64, seed=0):
    rng = np.random.default_rng(seed)
    layer = lambda m, n: {"weight": rng.normal(size=(m, n)), "bias": rng.normal(size=(n,))}
    params = {"layers": [layer(4, 5), layer(5, 3)], "scale": rng.normal()}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def gradients(steps, like):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(steps, *x.shape)), x.dtype), like)


def trajectory(tx, params, grads):
    """All iterates, stacked, and the blocks that moved."""

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            params, state = carry
            block = optax.tree.get(state, "block", jnp.int32(0))
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, block)

        return jax.lax.scan(step, (params, tx.init(params)), grads)

    (_, state), (iterates, blocks) = run(params, grads)
    return iterates, np.asarray(blocks), state


def numpy_badam(params, grads, labels, blocks, every, rates, decay, always=()):
    """One leaf at a time, float64, moments restarted whenever a block begins its turn."""
    leaves = [np.array(x, np.float64) for x in jax.tree.leaves(params)]
    grads = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
    out = [[] for _ in leaves]
    for t, block in enumerate(blocks):
        k = t % every + 1
        if k == 1:
            m = [np.zeros_like(x) for x in leaves]
            v = [np.zeros_like(x) for x in leaves]
        for i, label in enumerate(labels):
            if label == block or label in always:
                g = grads[i][t]
                m[i] = B1 * m[i] + (1 - B1) * g
                v[i] = B2 * v[i] + (1 - B2) * g**2
                step = (m[i] / (1 - B1**k)) / (np.sqrt(v[i] / (1 - B2**k)) + EPS)
                shrink = decay if leaves[i].ndim >= 2 else 0.0
                leaves[i] = leaves[i] - rates[t] * (step + shrink * leaves[i])
            out[i].append(np.array(leaves[i]))
    return [np.stack(x) for x in out]


LABELS = {"layers": [{"weight": 0, "bias": 0}, {"weight": 1, "bias": 1}], "scale": 2}


@pytest.mark.always(4)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize(
    ("order", "active"), [("random", ()), ("ascending", ()), ("descending", (0,))]
)
def test_equals_a_numpy_loop(packed, dtype, order, active):
    params, steps, every = tree(dtype), 27, 4
    schedule = lambda t: 0.1 / (1.0 + t)
    grads = gradients(steps, params)
    tx = badam(
        schedule,
        LABELS,
        switch_every=every,
        order=order,
        active_blocks=active,
        weight_decay=0.1,
        packed=packed,
    )
    got, blocks, _ = trajectory(tx, params, grads)
    rates = [float(schedule(t)) for t in range(steps)]
    expected = numpy_badam(
        params, grads, jax.tree.leaves(LABELS), blocks, every, rates, 0.1, active
    )
    tol = 1e-6 if dtype == jnp.float32 else 1e-12
    for a, b in zip(jax.tree.leaves(got), expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=10 * tol, atol=tol)


@pytest.mark.always(1)
@pytest.mark.parametrize("packed", [True, False])
def test_one_block_is_adamw(packed):
    params = tree(jnp.float32)
    grads = gradients(40, params)
    mask = lambda p: jax.tree.map(lambda x: x.ndim >= 2, p)
    tx = badam(1e-2, jax.tree.map(lambda _: 0, params), switch_every=40, weight_decay=0.05,
               packed=packed)  # fmt: skip
    got, _, _ = trajectory(tx, params, grads)
    want, _, _ = trajectory(optax.adamw(1e-2, weight_decay=0.05, mask=mask), params, grads)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_only_the_block_moves_and_orders_are_permutations():
    params, every, epochs = tree(), 3, 5
    steps = 3 * every * epochs
    grads = gradients(steps, params)
    got, blocks, _ = trajectory(badam(1e-2, LABELS, switch_every=every), params, grads)
    labels = jax.tree.leaves(LABELS)
    leaves = [np.concatenate([p[None], x]) for p, x in zip(
        jax.tree.leaves(params), jax.tree.leaves(got), strict=True)]  # fmt: skip
    for t in range(steps):
        for label, leaf in zip(labels, leaves, strict=True):
            assert np.array_equal(leaf[t], leaf[t + 1]) == (label != blocks[t])
    turns = blocks.reshape(epochs, 3, every)
    assert np.all(turns == turns[:, :, :1])
    assert all(sorted(epoch) == [0, 1, 2] for epoch in turns[:, :, 0].tolist())
    assert len({tuple(epoch) for epoch in turns[:, :, 0].tolist()}) > 1


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("order", "start", "expected"),
    [
        ("ascending", None, [0, 1, 2, 0, 1]),
        ("descending", None, [2, 1, 0, 2, 1]),
        ("ascending", 1, [1, 2, 0, 1, 2]),
        ("fixed", 2, [2, 2, 2, 2, 2]),
    ],
)
def test_orders(order, start, expected):
    params = tree()
    tx = badam(1e-2, LABELS, switch_every=2, order=order, start_block=start)
    _, blocks, _ = trajectory(tx, params, gradients(10, params))
    assert blocks[::2].tolist() == expected


@pytest.mark.slow
def test_packed_equals_masked_over_three_epochs_and_is_small():
    params = tree(jnp.float32)
    grads = gradients(3 * 3 * 5, params)
    runs = [
        trajectory(badam(1e-2, LABELS, switch_every=5, weight_decay=0.1, packed=p), params, grads)
        for p in (True, False)
    ]
    for a, b in zip(*(jax.tree.leaves(run[0]) for run in runs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    floats = [x for x in jax.tree.leaves(runs[0][2]) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert sum(x.size for x in floats) == 2 * 25
    counters = [x for x in jax.tree.leaves(runs[0][2]) if x.dtype == jnp.int32]
    assert sum(x.size for x in counters) == 5 + 3


@pytest.mark.slow
def test_descends_with_small_steps():
    rng = np.random.default_rng(0)
    A, b = jnp.asarray(rng.normal(size=(12, 6))), jnp.asarray(rng.normal(size=12))
    loss = lambda x: jnp.sum((A @ jnp.concatenate(x) - b) ** 2)
    tx = badam(1e-3, [0, 1, 2], switch_every=4)

    @jax.jit
    def run(x):
        def step(carry, _):
            x, state = carry
            value, grads = jax.value_and_grad(loss)(x)
            updates, state = tx.update(grads, state, x)
            return (optax.apply_updates(x, updates), state), value

        return jax.lax.scan(step, (x, tx.init(x)), length=240)[1]

    values = run([jnp.ones(2)] * 3)
    assert np.all(np.diff(values) < 0)


@pytest.mark.slow
def test_multi_steps_counts_optimizer_steps():
    params = tree()
    tx = optax.MultiSteps(badam(1e-2, LABELS, switch_every=2, order="ascending"), 3)
    _, blocks, _ = trajectory(tx.gradient_transformation(), params, gradients(18, params))
    assert blocks.tolist() == [0] * 6 + [1] * 6 + [2] * 6


@pytest.mark.slow
def test_predicates_first_match_wins_and_frozen_leaves():
    params = tree()
    blocks = [lambda p: p == "scale" or "layers/1" in p, lambda p: "layers" in p]
    tx = badam(1e-2, blocks, switch_every=1, order="ascending")
    got, _, _ = trajectory(tx, params, gradients(2, params))
    assert not np.array_equal(got["layers"][1]["bias"][0], params["layers"][1]["bias"])
    assert np.array_equal(got["layers"][0]["bias"][0], params["layers"][0]["bias"])
    assert np.array_equal(got["layers"][1]["bias"][1], got["layers"][1]["bias"][0])
    frozen = badam(1e-2, [lambda p: "layers" in p], strict=False)
    got, _, _ = trajectory(frozen, params, gradients(2, params))
    assert np.all(got["scale"] == params["scale"])
    with pytest.raises(ValueError, match="scale"):
        badam(1e-2, [lambda p: "layers" in p]).init(params)
    explicit = {"layers": 0, "scale": -1}
    got, _, _ = trajectory(badam(1e-2, explicit), params, gradients(2, params))
    assert np.all(got["scale"] == params["scale"])


@pytest.mark.slow
def test_bf16_parameters_keep_float32_state():
    params = tree(jnp.bfloat16)
    for packed in (True, False):
        tx = badam(1e-2, LABELS, packed=packed)
        state = tx.init(params)
        updates, state = jax.jit(tx.update)(params, state, params)
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
        inner = jax.tree.leaves(state.inner)
        assert all(x.dtype in (jnp.float32, jnp.int32) for x in inner)


def test_blocks_by_layer():
    params = {"head": {"w": 1.0, "b": 2.0}, "layers": [{"a": {"w": 1.0}, "n": 1.0}, {"w": 1.0}]}
    assert blocks_by_layer(params) == {
        "head": {"w": 0, "b": 0},
        "layers": [{"a": {"w": 1}, "n": 1}, {"w": 2}],
    }
    assert blocks_by_layer(params, depth=1) == {
        "head": {"w": 0, "b": 0},
        "layers": [{"a": {"w": 1}, "n": 1}, {"w": 1}],
    }
    assert blocks_by_layer([(1.0, 2.0), (3.0,)]) == [(0, 0), (1,)]
    assert blocks_by_layer(jnp.ones(3)) == 0


def forward(params, x):
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return jnp.sum(x**2) * params["scale"]


@pytest.mark.always(1)
@pytest.mark.parametrize("active", [(), (2,)])
def test_block_gradients(active):
    params, x = tree(), np.random.default_rng(2).normal(size=(6, 4))
    wanted, full = jax.jit(jax.value_and_grad(forward))(params, x)
    function = jax.jit(value_and_block_grad(forward, LABELS, active))
    for block in range(3):
        value, grads = function(params, block, x)
        np.testing.assert_allclose(value, wanted, rtol=1e-12)
        for label, g, f in zip(*map(jax.tree.leaves, (LABELS, grads, full)), strict=True):
            on = label == block or label in active
            np.testing.assert_allclose(g, f if on else np.zeros_like(f), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_block_gradient_does_no_work_for_the_others():
    params, x = tree(), jnp.ones((64, 4))

    def matmul_flops(function):
        return usual_program(function, params).cost_analysis()["flops"]

    function = value_and_block_grad(forward, LABELS)
    forwards = matmul_flops(lambda p: forward(p, x))
    full = matmul_flops(lambda p: jax.value_and_grad(forward)(p, x))
    head = matmul_flops(lambda p: function(p, 2, x))
    last = matmul_flops(lambda p: function(p, 1, x))
    assert head < forwards + 0.2 * (full - forwards)
    assert last < forwards + 0.7 * (full - forwards)


def test_bad_input():
    params = tree()
    with pytest.raises(ValueError, match="switch_every"):
        badam(1e-2, LABELS, switch_every=0)
    with pytest.raises(ValueError, match="learning_rate"):
        badam(-1.0, LABELS)
    with pytest.raises(ValueError, match="order"):
        badam(1e-2, LABELS, order="sideways")
    with pytest.raises(ValueError, match="labels"):
        badam(1e-2, [0, 2])
    with pytest.raises(TypeError, match="predicates"):
        badam(1e-2, ["layers"])
    with pytest.raises(ValueError, match="active_blocks"):
        badam(1e-2, [0, 1], active_blocks=(2,))
    with pytest.raises(ValueError, match="active_blocks"):
        badam(1e-2, [0, 1], active_blocks=(0, 1))
    with pytest.raises(ValueError, match="start_block"):
        badam(1e-2, [0, 1], start_block=0)
    with pytest.raises(ValueError, match="structure"):
        badam(1e-2, {"other": 0}).init(params)
    with pytest.raises(ValueError, match="no entries"):
        badam(1e-2, [0, 0]).init([jnp.ones(2), jnp.ones((0,))])
    with pytest.raises(ValueError, match="every block"):
        badam(1e-2, [lambda p: True, lambda p: False]).init(params)
    tx = badam(1e-2, LABELS, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(params, tx.init(params))
