import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import replay

from jaxopt_ext.optimizers.microadam import microadam

LR = 0.05


def problem(dtype, steps=15, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (9, 7), "b": (5,), "s": (), "none": (0, 3)}
    draw = lambda shape: np.asarray(rng.normal(size=shape), dtype)
    params = {k: draw(s) for k, s in shapes.items()}
    grads = {k: draw((steps, *s)) for k, s in shapes.items()}
    return params, grads


def quantized(x, bucket):
    out = np.empty_like(x)
    for start in range(0, len(x), bucket):
        part = x[start : start + bucket]
        unit = (part.max() - part.min()) / 15
        code = np.clip(np.floor((part - part.min()) / unit + 0.5), 0, 15) if unit > 0 else 0
        out[start : start + bucket] = part.min() + code * unit
    return out


def numpy_microadam(params, grads, *, m, k, bucket, block, feedback, b1=0.9, b2=0.999, eps=1e-8,
                    decay=0.0):  # fmt: skip
    """The window as a list of dense vectors, float64."""
    out = {}
    for name, p in params.items():
        x = np.array(p, np.float64).ravel()
        e, window, path = np.zeros_like(x), [], []
        for t, g in enumerate(np.asarray(grads[name], np.float64).reshape(15, x.size), 1):
            a, sparse = g + e, np.zeros_like(x)
            for start in range(0, x.size, block):
                part = a[start : start + block]
                top = start + np.argsort(-np.abs(part))[: int(np.ceil(k * len(part)))]
                sparse[top] = a[top]
                a[top] = 0
            e = {"4bit": lambda a: quantized(a, bucket), "dense": np.copy, "none": np.zeros_like}[
                feedback
            ](a)
            window = [sparse, *window][:m]
            z1 = sum(b1**r * v for r, v in enumerate(window))
            z2 = sum(b2**r * v**2 for r, v in enumerate(window))
            mean, square = (1 - b1) * z1 / (1 - b1**t), (1 - b2) * z2 / (1 - b2**t)
            x = (1 - LR * decay) * x - LR * mean / (eps + np.sqrt(square))
            path.append(x.reshape(p.shape).copy())
        out[name] = np.stack(path)
    return out


@pytest.mark.always(3)
@pytest.mark.parametrize("feedback", ["4bit", "dense", "none"])
@pytest.mark.parametrize(("m", "k", "bucket", "block"), [(4, 0.1, 8, 20), (3, 0.3, 64, 1000)])
def test_equals_a_numpy_loop(feedback, m, k, bucket, block):
    params, grads = problem(jnp.float64)
    tx = microadam(
        LR, m, k, quant_block_size=bucket, topk_block_size=block, error_feedback=feedback,
        weight_decay=0.1, value_dtype=jnp.float64,
    )  # fmt: skip
    got, _ = replay(tx, params, grads)
    want = numpy_microadam(
        params, grads, m=m, k=k, bucket=bucket, block=block, feedback=feedback, decay=0.1
    )
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-9)


def two_leaves(dtype):
    """The matrix and the scalar of the problem."""
    return ({name: tree[name] for name in ("w", "s")} for tree in problem(dtype))


def test_float32_and_two_byte_values():
    params, grads = two_leaves(jnp.float32)
    options = dict(m=4, k=0.1, quant_block_size=8, topk_block_size=20)
    want = numpy_microadam(params, grads, m=4, k=0.1, bucket=8, block=20, feedback="dense")
    for dtype, tol in ((jnp.float32, 1e-4), (jnp.bfloat16, 0.05)):
        tx = microadam(LR, **options, error_feedback="dense", value_dtype=dtype)
        got, state = replay(tx, params, grads)
        for name, value in want.items():
            assert got[name].dtype == jnp.float32
            np.testing.assert_allclose(got[name], value, rtol=tol, atol=tol)
        assert state.leaves["w"].values.dtype == dtype
        assert state.leaves["w"].indices.dtype == jnp.int16


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_keeping_everything_is_adam(dtype):
    params, grads = problem(jnp.float32, steps=20)
    tx = microadam(LR, m=20, k=1.0, error_feedback="none", value_dtype=dtype)
    got, _ = replay(tx, params, grads)
    want, _ = replay(optax.adam(LR), params, grads)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_entries_outside_the_window_do_not_move():
    params, grads = two_leaves(jnp.float32)
    got, state = replay(microadam(LR, m=2, k=0.05), params, grads)
    w = got["w"].reshape(15, -1)
    moved = np.asarray(w[10] != w[9])
    # ceil(0.05 * 63) = 4 entries a step, two steps in the window.
    assert 4 <= moved.sum() <= 8
    chosen = np.unique(np.asarray(state.leaves["w"].indices[10]))
    assert set(np.flatnonzero(moved)) <= set(chosen.tolist())
    assert np.array_equal(got["s"] != 0, np.ones(15, bool))


def quiet_distance(feedback, **options):
    """Mean distance of the quiet coordinates when ten others hog the selection with noise."""
    d, steps = 1024, 1500
    tx = microadam(5e-3, k=11 / 1024, error_feedback=feedback, topk_block_size=1024, **options)

    @jax.jit
    def run(key):
        def step(carry, key):
            x, state = carry
            noise = jnp.zeros(d, jnp.float32)
            noise = noise.at[:10].set(10 * jax.random.normal(key, (10,), jnp.float32))
            updates, state = tx.update(x - 1 + noise, state)
            return (x + updates, state), None

        x = jnp.zeros(d, jnp.float32)
        x = jax.lax.scan(step, (x, tx.init(x)), jax.random.split(key, steps))[0][0]
        return jnp.mean(jnp.abs(x[10:] - 1))

    return float(run(jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_error_feedback_reaches_quiet_coordinates(rounding):
    assert quiet_distance("4bit", rounding=rounding) < 0.1


@pytest.mark.slow
def test_without_error_feedback_they_wait():
    assert quiet_distance("none") > 0.5
    assert quiet_distance("dense") < 0.1


def test_state_bytes():
    d = 2**20
    count = lambda tx: sum(
        x.size * x.dtype.itemsize
        for x in jax.tree.leaves(jax.eval_shape(tx.init, jnp.zeros(d, jnp.float32)).leaves)
    )
    kept = 32 * 328
    assert count(microadam(LR)) == 10 * kept * 4 + d // 2 + d // 64 * 8
    assert count(microadam(LR)) < 1.2 * d
    assert count(microadam(LR, error_feedback="none")) == 10 * kept * 4
    assert count(microadam(LR, error_feedback="dense")) == 10 * kept * 4 + 4 * d


@pytest.mark.slow
def test_zero_and_constant_gradients():
    params, _ = problem(jnp.bfloat16)
    tx = microadam(LR)
    update = jax.jit(tx.update)
    for value in (0.0, 1.0):
        grads = jax.tree.map(functools.partial(jnp.full_like, fill_value=value), params)
        state = tx.init(params)
        for _ in range(3):
            updates, state = update(grads, state)
        for u in jax.tree.leaves(updates):
            assert u.dtype == jnp.bfloat16
            assert np.all(np.isfinite(np.asarray(u, np.float32)))
            assert value or np.all(u == 0)


def test_bad_input():
    bad = [
        (functools.partial(microadam, -1.0), "learning_rate"),
        (functools.partial(microadam, LR, m=0), "m must"),
        (functools.partial(microadam, LR, k=0.0), "k must"),
        (functools.partial(microadam, LR, k=1.1), "k must"),
        (functools.partial(microadam, LR, b1=1.0), "b1"),
        (functools.partial(microadam, LR, b2=-0.1), "b2"),
        (functools.partial(microadam, LR, eps=0.0), "eps"),
        (functools.partial(microadam, LR, quant_block_size=0), "quant_block_size"),
        (functools.partial(microadam, LR, topk_block_size=0), "topk_block_size"),
        (functools.partial(microadam, LR, error_feedback="8bit"), "error_feedback"),
        (functools.partial(microadam, LR, rounding="up"), "rounding"),
    ]
    for build, match in bad:
        with pytest.raises(ValueError, match=match):
            build()
    with pytest.raises(TypeError, match="complex"):
        microadam(LR).init(jnp.zeros(3, complex))
    tx, x = microadam(LR, weight_decay=0.1), jnp.zeros(3)
    with pytest.raises(ValueError, match="params"):
        tx.update(x, tx.init(x))
