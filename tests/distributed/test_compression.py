"""Compressors against numpy and their own bounds; error feedback against a loop in numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec as P

from jaxopt_ext import distributed as dd
from jaxopt_ext.distributed import compression as cc
from jaxopt_ext.distributed.compression.bits import pack, unpack, width

D, K, VECTORS, DRAWS = 24, 6, 50, 200
VECTOR = jax.ShapeDtypeStruct((D,), jnp.float32)
TREE = {
    "a": jax.ShapeDtypeStruct((6, 3, 2), jnp.float32),
    "b": jax.ShapeDtypeStruct((5,), jnp.float32),
    "c": jax.ShapeDtypeStruct((), jnp.float32),
}
COMPRESSORS = {
    "identity": cc.Identity(),
    "top-k": cc.TopK(K),
    "top part": cc.TopK(0.25, per_leaf=False),
    "block top-k": cc.BlockTopK(2, 7),
    "random k": cc.RandK(K),
    "unbiased random k": cc.RandK(K, unbiased=True),
    "shared random k": cc.RandK(0.25, unbiased=True, shared_seed=True, per_leaf=False),
    "random k in a block": cc.RandBlock(K),
    "sign": cc.ScaledSign(),
    "whole sign": cc.ScaledSign(per_leaf=False),
    "qsgd 1": cc.QSGD(1),
    "qsgd 5": cc.QSGD(5),
    "natural": cc.Natural(),
    "grid": cc.Grid(0.25, num_bits=12),
    "scaled qsgd": cc.Scaled(cc.QSGD(2)),
    "low rank": cc.LowRank(2),
    "unbiased low rank": cc.UnbiasedLowRank(2),
    "singular triples": cc.Atomo(2),
}
DRAWN = ["top-k", "block top-k", "random k", "unbiased random k", "shared random k"]
DRAWN += ["sign", "qsgd 5", "natural", "grid", "scaled qsgd"]
FEW = ["top part", "block top-k", "shared random k", "sign", "qsgd 5", "natural", "grid"]
FEW += ["scaled qsgd", "low rank", "unbiased low rank", "singular triples"]
NAMED = pytest.mark.parametrize("name", COMPRESSORS)


def vectors():
    """Of many kinds, and none so small that a grid would be all."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(VECTORS, D))
    x[5:10] *= np.exp(3 * rng.normal(size=(5, D)))
    x[10:15] *= rng.uniform(size=(5, D)) < 0.2
    x[15:20] = np.eye(D)[:5] * 3
    x[20:25] = 1.5
    x[25] = 0
    x[26:29] *= 1e25  # squares overflow
    x[29:32] *= 1e-25
    x[32] = np.arange(D)
    x[33] = 2.0 ** np.arange(-12, 12)
    return x.astype(np.float32)


@functools.cache
def draws(name):
    """C(x) for each vector, many times: (vectors, draws, d)."""
    compressor = COMPRESSORS[name]
    keys = jax.random.split(jax.random.key(1), (VECTORS, DRAWS))
    many = jax.vmap(jax.vmap(lambda x, key: compressor(x, key), (None, 0)))
    return np.asarray(jax.jit(many)(jnp.asarray(vectors()), keys), np.float64)


def squares(x):
    return np.sum(np.asarray(x, np.float64) ** 2, axis=-1)


@pytest.mark.parametrize("name", DRAWN)
def test_bounds_hold(name):
    compressor, x = COMPRESSORS[name], vectors().astype(np.float64)
    found = draws(name)
    loss = np.mean(squares(found - x[:, None]), axis=1)
    if name == "grid":
        inside = np.max(np.abs(x), axis=1) < 0.25 * (2**11 - 1)
        assert np.all(loss[inside] <= D * 0.25**2 / 4 * 1.1)
        assert np.all(np.isnan(found[np.max(np.abs(x), axis=1) > 0.25 * 2**11]).any(axis=-1))
        return
    delta, omega = compressor.delta(VECTOR), compressor.omega(VECTOR)
    assert (delta is None) != (omega is None)
    bound = 1 - delta if omega is None else omega
    slack = 1.25 if compressor.random else 1 + 1e-5  # few draws of a heavy tail
    assert np.all(loss <= slack * bound * squares(x) + 1e-12 * squares(x))
    assert np.all(found[25] == 0)


@pytest.mark.parametrize("name", [n for n in DRAWN if COMPRESSORS[n].random])
def test_unbiased(name):
    compressor, x = COMPRESSORS[name], vectors().astype(np.float64)
    if compressor.omega(VECTOR) is None and name != "grid":
        assert "scaled" in name or name in ("random k", "random k in a block")
        return
    usable = np.isfinite(draws(name)).all(axis=(1, 2))
    rng = np.random.default_rng(2)
    x, found = x[usable], draws(name)[usable]
    # A part of a step so small happens in no draw.
    least = 0.25 if name == "grid" else 1e-30
    scale = np.sqrt(squares(x)).clip(least)[:, None, None]
    for _ in range(3):
        error = np.sum((found - x[:, None]) / scale * rng.normal(size=D), axis=-1)
        deviation = np.std(error, axis=1, ddof=1) / math.sqrt(DRAWS)
        assert np.all(np.abs(np.mean(error, axis=1)) <= 5 * deviation + 1e-6)


def test_singular_triples():
    """Unbiased with the variance of the best probabilities, found by bisection."""
    rng, rank, draws_ = np.random.default_rng(4), 3, 4000
    matrix = rng.normal(size=(7, 5)) @ np.diag([8.0, 2, 1, 0.5, 0.1])
    compressor = cc.Atomo(rank)
    keys = jax.random.split(jax.random.key(3), draws_)
    found = jax.jit(jax.vmap(lambda k: compressor(jnp.asarray(matrix), k)))(keys)
    values = np.linalg.svd(matrix, compute_uv=False)
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if np.minimum(1, middle * values).sum() > rank else (middle, high)
    chance = np.minimum(1, low * values)
    variance = np.sum(values**2 * (1 / chance - 1))
    errors = np.sum((np.asarray(found) - matrix) ** 2, axis=(1, 2))
    np.testing.assert_allclose(errors.mean(), variance, rtol=0.1)
    assert variance <= compressor.omega((7, 5)) * np.sum(values**2)
    bias = np.linalg.norm(np.mean(found, axis=0) - matrix)
    assert bias < 4 * np.sqrt(variance / draws_)
    # What has the rank is told exactly, and one number of the message is wide enough for it.
    small = matrix[:, :2] @ rng.normal(size=(2, 5))
    np.testing.assert_allclose(compressor(jnp.asarray(small), keys[0]), small, atol=1e-12)
    np.testing.assert_array_equal(compressor(jnp.zeros((4, 4)), keys[0]), 0)
    message = compressor.compress(jnp.asarray(matrix, jnp.float32), keys[0])
    assert sum(8 * a.nbytes for a in jax.tree.leaves(message)) == compressor.bits((7, 5))


def test_the_two_equalities():
    x = vectors().astype(np.float64)
    some = squares(x) > 0
    for name in ("random k", "random k in a block"):
        loss = np.mean(squares(draws(name) - x[:, None]), axis=1)
        np.testing.assert_allclose(np.mean(loss[some] / squares(x)[some]), 1 - K / D, rtol=0.02)
    wanted = squares(x) - np.sum(np.abs(x), axis=1) ** 2 / D
    found = squares(draws("sign") - x[:, None])[:, 0]
    np.testing.assert_allclose(
        found[some] / squares(x)[some], (wanted / squares(x).clip(1e-60))[some], atol=1e-5
    )


def test_top_k_equals_a_stable_sort():
    x = np.round(vectors())  # many ties
    for name, blocks in (
        ("top-k", [(0, D, K)]),
        ("block top-k", [(i, i + 7, 2) for i in range(0, D, 7)]),
    ):
        wanted = np.zeros_like(x)
        for low, high, k in blocks:
            part = x[:, low:high]
            kept = np.argsort(-np.abs(part), axis=1, kind="stable")[:, :k]
            values = np.take_along_axis(part, kept, axis=1)
            np.put_along_axis(wanted[:, low:high], kept, values, axis=1)
        found = jax.jit(jax.vmap(COMPRESSORS[name]))(jnp.asarray(x))
        np.testing.assert_array_equal(found, wanted)


def test_natural_rounds_to_a_neighbour(dtype):
    x = np.random.default_rng(3).normal(size=400) * 10.0 ** np.arange(-20, 20).repeat(10)
    highest = float(jnp.finfo(dtype).max)
    edge = np.array([0.0, -0.0, 0.9 * highest, np.inf, np.nan, -4.0])
    x = np.concatenate([x, edge]).astype(dtype)
    y = np.asarray(jax.jit(cc.Natural())(jnp.asarray(x), jax.random.key(0)))
    assert y.dtype == dtype
    top = 2.0 ** (jnp.finfo(dtype).maxexp - 1)
    np.testing.assert_array_equal(y[400:], [0, 0, top, np.nan, np.nan, -4])
    x, y = x[:400].astype(np.float64), y[:400]
    low = 2.0 ** np.floor(np.log2(np.abs(x)))
    assert np.all((np.abs(y) == low) | (np.abs(y) == 2 * low))
    assert np.all(np.sign(y) == np.sign(x))


@NAMED
def test_messages_are_as_small_as_their_bits(name):
    compressor, key = COMPRESSORS[name], jax.random.key(0)
    for shape in (TREE, (4, 9), (1,)):
        like = cc.compressor.structs(shape)
        message = jax.eval_shape(lambda x: compressor.compress(x, key), like)
        parts = jax.tree.leaves(message)
        packed = sum(part.dtype == jnp.uint8 for part in parts)
        real = sum(8 * part.size * part.dtype.itemsize for part in parts)
        # What does not fill its last byte.
        assert compressor.bits(shape) <= real <= compressor.bits(shape) + 7 * packed
        back = jax.eval_shape(lambda m, like=like: compressor.decompress(m, like, key), message)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), back) == jax.tree.map(
            lambda a: (a.shape, a.dtype), like
        )
    wide = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64), TREE)
    again = jax.eval_shape(lambda x: compressor(x, key), wide)
    assert {a.dtype for a in jax.tree.leaves(again)} == {jnp.dtype(jnp.float64)}


def test_bits_are_those_of_the_papers():
    assert cc.TopK(3).bits((1000,)) == 3 * (32 + 10)
    assert cc.BlockTopK(1, 16).bits((64,)) == 4 * (32 + 4)
    assert cc.RandK(3, shared_seed=True).bits((1000,)) == 3 * 32
    assert cc.RandBlock(3).bits((1000,)) == 3 * 32 + 10
    assert cc.ScaledSign().bits((1000,)) == 1000 + 32
    assert cc.ScaledSign().bits({"a": jnp.ones(10), "b": jnp.ones(3)}) == 13 + 2 * 64
    assert cc.QSGD(7).bits((10,)) == 40 + 32  # a sign and three bits of level
    assert cc.Natural().bits((10,)) == 90
    assert cc.Grid(1.0, 8).bits((10,)) == 80
    assert cc.LowRank(2).bits((64, 4, 8)) == 2 * (64 + 32) * 32
    assert cc.Identity().bits((4, 4)) == 512


def test_whole_trees_and_leaves():
    rng = np.random.default_rng(4)
    x = {
        "a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "b": jnp.asarray(10 * rng.normal(size=5)),
    }
    compressors = {
        "whole": cc.TopK(4, per_leaf=False),
        "apart": cc.TopK(4),
        "all": cc.TopK(12),
        "random": cc.RandK(1.0, unbiased=True),
    }
    key = jax.random.key(0)
    out = jax.jit(lambda x: {name: c(x, key) for name, c in compressors.items()})(x)
    whole = out["whole"]
    assert whole["a"].dtype == jnp.float32
    assert whole["b"].dtype == jnp.float64
    flat = np.concatenate([np.ravel(x["a"]), x["b"]])
    kept = np.sort(np.argsort(-np.abs(flat))[:4])
    found = np.concatenate([np.ravel(whole["a"]), whole["b"]])
    np.testing.assert_array_equal(np.nonzero(found)[0], kept)
    np.testing.assert_array_equal(found[kept], flat[kept])
    assert [np.count_nonzero(a) for a in out["apart"].values()] == [4, 4]
    assert cc.TopK(4).delta(x) == 4 / 12
    assert cc.TopK(4, per_leaf=False).delta(x) == 4 / 17
    np.testing.assert_array_equal(out["all"]["a"], x["a"])
    np.testing.assert_array_equal(out["random"]["b"], x["b"])
    hollow = {"a": jnp.zeros((0, 3)), "b": jnp.ones(2)}
    assert jax.eval_shape(cc.ScaledSign(), hollow)["a"].shape == (0, 3)


def test_packing():
    rng = np.random.default_rng(5)
    widths = (1, 9, 31)
    codes = [rng.integers(0, 2**bits, size=13) for bits in widths]

    @jax.jit
    def through(codes):
        packed = [pack(c, bits) for c, bits in zip(codes, widths, strict=True)]
        opened = [unpack(p, 13, b, jnp.uint32) for p, b in zip(packed, widths, strict=True)]
        return packed, opened

    packed, opened = through(codes)
    assert [p.shape for p in packed] == [(math.ceil(13 * bits / 8),) for bits in widths]
    for code, back in zip(codes, opened, strict=True):
        np.testing.assert_array_equal(back, code)
    # The lowest bit first, code after code.
    by_hand = "".join(f"{c:09b}"[::-1] for c in codes[1]).ljust(120, "0")
    bytes_ = [int(by_hand[i : i + 8], 2) for i in range(0, 120, 8)]
    np.testing.assert_array_equal(packed[1], bytes_)
    assert [width(n) for n in (1, 2, 3, 4, 5, 1024, 1025)] == [0, 1, 2, 2, 3, 10, 11]


@pytest.mark.slow
def test_shared_seeds_commute_with_means():
    x = jnp.asarray(np.random.default_rng(6).normal(size=(4, 6, 5)))
    key = jax.random.key(2)
    block = cc.RandBlock(7, shared_seed=True)
    compressors = [COMPRESSORS["shared random k"], COMPRESSORS["unbiased low rank"], block]

    def run(x):
        for c in compressors:
            message = jax.vmap(lambda a, c=c: c.compress(a, key))(x)
            mean = jax.tree.map(lambda a: jnp.mean(a, axis=0), message)
            yield c.decompress(mean, x[0], key), c(jnp.mean(x, axis=0), key)

    for found, wanted in jax.jit(lambda x: list(run(x)))(x):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    for c in compressors:
        with pytest.raises(ValueError, match="key"):
            c.decompress((x[0],), x[0])


def test_low_rank():
    rng = np.random.default_rng(7)
    left, right = (np.linalg.qr(rng.normal(size=(n, 32)))[0] for n in (64, 32))
    values = 1 / np.arange(1, 33)
    matrix = jnp.asarray(left * values @ right.T)
    best = np.sum(values[2:] ** 2)
    compressor = cc.LowRank(2)

    @jax.jit
    def run(matrix, key):
        def step(state, _):
            message = compressor.compress(matrix, None, state)
            loss = jnp.sum((compressor.decompress(message, matrix) - matrix) ** 2)
            return compressor.advance(state, message), loss

        warm = jax.lax.scan(step, compressor.init(matrix, key), length=5)
        cold = jax.vmap(lambda k: jnp.sum((compressor(matrix, k) - matrix) ** 2))(
            jax.random.split(key, 40)
        )
        return warm, cold

    (_, warm), cold = run(matrix, jax.random.key(3))
    assert np.sqrt(warm[-1] / best) < 1.01
    assert np.sqrt(np.mean(cold) / best) > 1.2
    assert np.mean(cold) < (1 - compressor.delta(matrix)) * np.sum(values**2)
    # A zero matrix leaves nothing to start from: the factor is drawn again.
    (dead, loss), _ = run(jnp.zeros_like(matrix), jax.random.key(3))
    assert np.all(np.asarray(loss) == 0)
    assert np.all(np.linalg.norm(dead[0].right, axis=0) > 1)
    # The axis of the outputs.
    kernel = jnp.asarray(rng.normal(size=(3, 2, 5)))
    exact = cc.LowRank(5, axis=-1)
    assert exact.bits(jax.ShapeDtypeStruct((3, 2, 5), jnp.float32)) == 5 * (5 + 6) * 32
    np.testing.assert_allclose(exact(kernel, jax.random.key(0)), kernel, atol=1e-12)


def feedback_in_numpy(rule, values, k):
    """Estimates of the receiver, and what is left, for top-k."""
    error, copy = np.zeros_like(values[0]), np.zeros_like(values[0])
    out = []
    for v in values:
        target = {"EF14": error + v, "EF21": v - copy, "control": 0.3 * error + v - copy}[rule]
        kept = np.argsort(-np.abs(target), kind="stable")[:k]
        sent = np.zeros_like(v)
        sent[kept] = target[kept]
        if rule == "EF14":
            error = error + v - sent
            out.append(sent)
        else:
            error = error + v - copy - sent
            copy = copy + sent
            out.append(copy)
    return np.array(out), error


RULES = {"EF14": cc.EF14(), "EF21": cc.EF21(), "control": cc.ErrorControl(0.3)}


def test_feedback_equals_a_loop():
    values = np.random.default_rng(8).normal(size=(3, 15, 10))
    compressor = cc.TopK(2)

    @jax.jit
    @jax.vmap
    def run(values):
        def through(rule):
            def step(carry, value):
                state, memory = carry
                message, state = rule.apply(state, value, compressor)
                estimate, memory = rule.receive(memory, compressor.decompress(message, value))
                return (state, memory), estimate

            zero = jnp.zeros_like(values[0])
            start = rule.init(zero, compressor), rule.listen(zero)
            (state, _), estimates = jax.lax.scan(step, start, values)
            return estimates, state

        rules = {**RULES, "zero": cc.ErrorControl(0.0), "none": cc.NoFeedback()}
        return {name: through(rule) for name, rule in rules.items()}

    found = run(jnp.asarray(values))
    for name in RULES:
        for node in range(3):
            wanted, error = feedback_in_numpy(name, values[node], 2)
            np.testing.assert_allclose(found[name][0][node], wanted, atol=1e-12)
            if name != "EF21":
                np.testing.assert_allclose(found[name][1].error[node], error, atol=1e-12)
    np.testing.assert_allclose(found["zero"][0], found["EF21"][0], atol=1e-12)
    # What was sent, and what was not, is everything.
    sent = np.sum(found["EF14"][0], axis=1) + found["EF14"][1].error
    np.testing.assert_allclose(sent, np.sum(values, axis=1), atol=1e-12)
    assert np.max(np.abs(np.sum(found["none"][0], axis=1) - np.sum(values, axis=1))) > 1


@pytest.mark.slow
def test_feedback_with_any_compressor():
    x = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), TREE)
    key = jax.random.key(0)
    for compressor in (COMPRESSORS[name] for name in FEW[-4:]):
        for rule in (cc.NoFeedback(), *RULES.values()):
            state = jax.eval_shape(lambda x, r=rule, c=compressor: r.init(x, c, key), x)
            _, new = jax.eval_shape(
                lambda s, x, r=rule, c=compressor: r.apply(s, x, c, key), state, x
            )
            assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(
                lambda a: (a.shape, a.dtype), state
            )


@pytest.mark.slow
def test_choco_reaches_consensus_and_keeps_the_mean():
    x = np.random.default_rng(9).normal(size=(8, 20))
    gossip = cc.ChocoGossip(cc.TopK(0.1), 0.1)
    ring = dd.ring(8)

    def rounds(network, count):
        def all_of(x, batch, key):
            def step(carry, key):
                return gossip.round(*carry, network, key), None

            start = x, gossip.init(x, network, key)
            return jax.lax.scan(step, start, jax.random.split(key, count))[0][0]

        return all_of

    # The same loop by hand, with the copies of all nodes.
    W, hand, copies = dd.metropolis(ring), x.copy(), np.zeros_like(x)
    for _ in range(6):
        gap = hand - copies
        kept = np.argsort(-np.abs(gap), axis=1, kind="stable")[:, :2]
        sent = np.zeros_like(gap)
        np.put_along_axis(sent, kept, np.take_along_axis(gap, kept, axis=1), axis=1)
        copies += sent
        hand = hand + 0.1 * (W @ copies - copies)
    key, batch = jax.random.key(0), jnp.zeros(8)
    start = jnp.asarray(x)
    simulated = dd.Network.simulated(ring)
    few = jax.jit(simulated.parallel(rounds(simulated, 6)))(start, batch, key)
    np.testing.assert_allclose(few, hand, atol=1e-12)
    mesh = dd.Network.on_mesh(
        ring, jax.make_mesh((4,), ("nodes",), devices=jax.devices()[:4]), "nodes"
    )
    spread = jax.jit(mesh.parallel(rounds(mesh, 6)))(mesh.place(start), mesh.place(batch), key)
    np.testing.assert_allclose(spread, hand, atol=1e-12)
    many = jax.jit(simulated.parallel(rounds(simulated, 3000)))(start, batch, key)
    assert np.max(np.abs(many - np.mean(x, axis=0))) < 1e-8


@pytest.mark.slow
def test_in_shard_map_with_its_check():
    x = np.random.default_rng(10).normal(size=(8, 6, 4)).astype(np.float32)
    x[6], x[7, 0, 2] = 0, np.nan
    x = jnp.asarray(x)
    keys = jax.random.split(jax.random.key(4), 8)

    def everything(x, key):
        low = cc.LowRank(2)
        message, _ = cc.EF21().apply(cc.EF21().init(x, low, key), x, low, key)
        return {name: COMPRESSORS[name](x, key) for name in FEW}, low.decompress(message, x)

    spec = {"in_specs": (P("i"), P("i")), "out_specs": P("i")}
    one = lambda x, key: jax.tree.map(lambda a: a[None], everything(x[0], key[0]))
    mesh = Mesh(np.array(jax.devices()[:8]), ("i",))
    found = jax.jit(jax.shard_map(one, mesh=mesh, **spec))(x, keys)
    wanted = jax.jit(jax.vmap(everything))(x, keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)
    for name, y in wanted[0].items():
        assert np.all(y[6] == 0), name
        if name != "shared random k":  # it may not be drawn
            assert np.isnan(y[7]).any(), name


def test_bad_input_is_refused():
    x, key = jnp.ones(4), jax.random.key(0)
    for wrong in (jnp.ones(4, complex), jnp.arange(4), [1.0, 2.0]):
        with pytest.raises(TypeError, match="real floating-point"):
            cc.TopK(2).compress(wrong)
    for name in ("random k", "qsgd 1", "natural", "grid"):
        with pytest.raises(ValueError, match="key"):
            COMPRESSORS[name].compress(x)
        state = cc.EF21().init(x, COMPRESSORS[name])
        with pytest.raises(ValueError, match="key"):
            cc.EF21().apply(state, x, COMPRESSORS[name])
    bad = {
        "k": (lambda: cc.TopK(0), ValueError),
        "part": (lambda: cc.RandK(1.5), ValueError),
        "flag": (lambda: cc.TopK(True), TypeError),
        "levels": (lambda: cc.QSGD(0), ValueError),
        "step": (lambda: cc.Grid(0.0), ValueError),
        "bits": (lambda: cc.Grid(1.0, 33), ValueError),
        "rank": (lambda: cc.LowRank(0), ValueError),
        "matrices": (lambda: cc.LowRank(1, per_leaf=False), ValueError),
        "first factor": (lambda: cc.LowRank(1).init(jnp.ones((2, 2))), ValueError),
        "biased": (lambda: cc.Scaled(cc.TopK(1)), ValueError),
        "eta": (lambda: cc.ErrorControl(1.0), ValueError),
        "no delta": (
            lambda: cc.ErrorControl().apply(
                cc.ErrorControl().init(x, cc.QSGD(2)), x, cc.QSGD(2), key
            ),
            ValueError,
        ),
        "gossip": (lambda: cc.ChocoGossip(cc.TopK(1), 0.0), ValueError),
        "no leaves": (lambda: cc.TopK(1).compress({}), ValueError),
    }
    for call, error in bad.values():
        with pytest.raises(error):
            call()
