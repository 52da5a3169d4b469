import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import leaves_of_each_rank

from jaxopt_ext.optimizers.projectors import (
    CoordinateProjector,
    OrthonormalProjector,
    SVDProjector,
    TopNormProjector,
)
from jaxopt_ext.optimizers.subset_norm import (
    adam_sn,
    adam_snsm,
    subset_norm,
    subset_shape,
    subspace_momentum,
)

LR = 0.05


def trajectory(tx, params, grads):
    @jax.jit
    def run(params, grads):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), grads)

    (_, state), iterates = run(params, grads)
    return iterates, state


def subsets(name, shape, size):
    """Index arrays of the subsets of a leaf, by brute force."""
    index = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    if len(shape) != 2:
        return [np.array([i]) for i in index.ravel()]
    if size == "heuristics":
        return list(index if shape[0] >= shape[1] else index.T)
    wanted = size if size > 0 else max(1, int(np.sqrt(index.size) / -size))
    length = max(k for k in range(1, min(wanted, index.size) + 1) if index.size % k == 0)
    return [index.ravel()[i : i + length] for i in range(0, index.size, length)]


def numpy_subset_norm(params, grads, *, size, b2, eps=1e-6, b1=None, decay=0.0, correct=True):
    out = {}
    for name, p in params.items():
        x = np.array(p, np.float64).ravel()
        cut = subsets(name, p.shape, size)
        squares, m, path = np.zeros(len(cut)), np.zeros_like(x), []
        for t, g in enumerate(np.asarray(grads[name], np.float64).reshape(-1, x.size), 1):
            norms = np.array([np.sum(g[i] ** 2) for i in cut])
            squares = squares + norms if b2 == 1 else b2 * squares + (1 - b2) * norms
            m = g if b1 is None else b1 * m + (1 - b1) * g
            c = 1.0 if b1 is None or not correct else 1 / (1 - b1**t)
            c *= np.sqrt(1 - b2**t) if b2 < 1 and correct else 1.0
            for i, s in zip(cut, squares, strict=True):
                x[i] -= LR * c * m[i] / (np.sqrt(s) + eps)
            x *= 1 - LR * decay
            path.append(x.reshape(p.shape).copy())
        out[name] = np.stack(path)
    return out


def assert_close(got, want, tol):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


@pytest.mark.always(4)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("size", ["heuristics", 1, 5, 1000, -1, -2])
@pytest.mark.parametrize("b2", [1.0, 0.99])
def test_subset_norm_equals_a_numpy_loop(dtype, size, b2):
    params, grads = leaves_of_each_rank(dtype)
    got, state = trajectory(subset_norm(LR, b2, size, weight_decay=0.1), params, grads)
    assert all(x.dtype == dtype for x in jax.tree.leaves((got, state.leaves)))
    tol = 2e-5 if dtype == jnp.float32 else 1e-12
    assert_close(got, numpy_subset_norm(params, grads, size=size, b2=b2, decay=0.1), tol)


@pytest.mark.parametrize("correction", ["official", "none"])
def test_adam_sn_equals_a_numpy_loop(correction):
    params, grads = leaves_of_each_rank(jnp.float64)
    got, _ = trajectory(adam_sn(LR, b2=0.99, bias_correction=correction), params, grads)
    want = numpy_subset_norm(
        params, grads, size="heuristics", b1=0.9, b2=0.99, correct=correction == "official"
    )
    assert_close(got, want, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_limits(dtype):
    params, grads = leaves_of_each_rank(dtype)
    tol = 1e-6
    # One coordinate per subset is AdaGrad, here optax's.
    got, _ = trajectory(subset_norm(LR, 1.0, 1, eps=1e-12), params, grads)
    want, _ = trajectory(optax.adagrad(LR, 0.0, eps=0.0), params, grads)
    assert_close(got, want, 10 * tol)
    # One coordinate per subset and momentum is Adam, but for where its eps goes.
    got, _ = trajectory(adam_sn(LR, subset_size=1, eps=1e-12), params, grads)
    want, _ = trajectory(optax.adam(LR, eps=1e-12), params, grads)
    assert_close(got, want, 30 * tol)
    # The whole space is ordinary momentum, no directions are SGD.
    got, _ = trajectory(subspace_momentum(LR, rank=1.0), params, grads)
    want, _ = trajectory(optax.chain(optax.ema(0.9, debias=False), optax.sgd(LR)), params, grads)
    assert_close(got, want, tol)
    matrices = {k: params[k] for k in ("tall", "wide")}, {k: grads[k] for k in ("tall", "wide")}
    got, _ = trajectory(subspace_momentum(LR, rank=0), *matrices)
    want, _ = trajectory(optax.sgd(LR), *matrices)
    assert_close(got, want, tol)


def numpy_snsm(params, grads, *, rank, gap, b1=0.9, b2=0.99, eps=1e-6, mode="official",
               overlap=False, norm=True):  # fmt: skip
    """SVD projector, float64, by the definition: dense projection, complement, refresh."""
    out = {}
    for name in ("tall", "wide"):
        x, path = np.array(params[name], np.float64), []
        tall = x.shape[0] >= x.shape[1]
        squares = np.zeros((x.shape[0], 1) if tall else (1, x.shape[1]))
        for t, g in enumerate(np.asarray(grads[name], np.float64), 1):
            if (t - 1) % gap == 0:
                u, _, vt = np.linalg.svd(g, full_matrices=False)
                basis = vt[:rank].T if tall else u[:, :rank]
                if t == 1 or not overlap:
                    m = np.zeros((x.shape[0], rank) if tall else (rank, x.shape[1]))
            low = g @ basis if tall else basis.T @ g
            m = b1 * m + (1 - b1) * low
            up = (lambda z, p=basis: z @ p.T) if tall else (lambda z, p=basis: p @ z)
            complement = g - up(low)
            bias1 = 1 - b1**t
            inside, whole = {
                "official": (1, 1 / bias1), "momentum_only": (1 / bias1, 1), "none": (1, 1)
            }[mode]  # fmt: skip
            step = whole * (inside * up(m) + complement)
            if norm:
                added = np.sum(g**2, axis=1 if tall else 0, keepdims=True)
                squares = squares + added if b2 == 1 else b2 * squares + (1 - b2) * added
                c = np.sqrt(1 - b2**t) if b2 < 1 and mode != "none" else 1.0
                step = c * step / (np.sqrt(squares) + eps)
            x = x - LR * step
            path.append(x.copy())
        out[name] = np.stack(path)
    return out


@pytest.mark.always(1)
@pytest.mark.parametrize("mode", ["official", "momentum_only", "none"])
def test_a_vector_has_plain_momentum(mode):
    grads = np.random.default_rng(0).normal(size=(8, 3))
    got, _ = trajectory(subspace_momentum(LR, bias_correction=mode), jnp.zeros(3), grads)
    x, m, path = np.zeros(3), np.zeros(3), []
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        x = x - LR * m / (1 if mode == "none" else 1 - 0.9**t)
        path.append(x)
    np.testing.assert_allclose(got, path, atol=1e-12)


@pytest.mark.always(4)
@pytest.mark.parametrize("mode", ["official", "momentum_only", "none"])
@pytest.mark.parametrize("b2", [0.99, 1.0])
@pytest.mark.parametrize("overlap", [True, False])
def test_adam_snsm_equals_a_numpy_loop(mode, b2, overlap):
    params, grads = leaves_of_each_rank(jnp.float64)
    tx = adam_snsm(LR, b2=b2, rank=2, update_proj_gap=5, overlap=overlap, bias_correction=mode)
    got, _ = trajectory(tx, params, grads)
    want = numpy_snsm(params, grads, rank=2, gap=5, b2=b2, mode=mode, overlap=overlap)
    for k, v in want.items():
        np.testing.assert_allclose(got[k], v, rtol=1e-10, atol=1e-10)


@pytest.mark.always(1)
@pytest.mark.parametrize("mode", ["official", "momentum_only", "none"])
def test_subspace_momentum_equals_a_numpy_loop(mode):
    params, grads = leaves_of_each_rank(jnp.float64)
    tx = subspace_momentum(LR, rank=2, update_proj_gap=5, bias_correction=mode)
    got, _ = trajectory(tx, params, grads)
    want = numpy_snsm(params, grads, rank=2, gap=5, mode=mode, norm=False)
    for k, v in want.items():
        np.testing.assert_allclose(got[k], v, rtol=1e-10, atol=1e-10)


@pytest.mark.always(1)
@pytest.mark.parametrize(
    "projector",
    [SVDProjector(), OrthonormalProjector(), CoordinateProjector(), TopNormProjector()],
    ids=lambda x: type(x).__name__,
)
def test_complement_gets_the_gradient_and_refresh_restarts(projector):
    params, grads = leaves_of_each_rank(jnp.float32, steps=7)
    tx = subspace_momentum(1.0, rank=2, projector=projector, update_proj_gap=3, seed=4)

    @jax.jit
    def run(params, grads):
        def step(state, g):
            updates, new = tx.update(g, state, params)
            return new, (updates, new)

        return jax.lax.scan(step, tx.init(params), grads)[1]

    updates, states = run(params, grads)
    grads, updates, leaves = jax.tree.map(np.asarray, (grads, updates, states.leaves))
    rng, down = np.random.default_rng(3), jax.jit(lambda *at: projector.down(*at))
    up = jax.jit(lambda *at: projector.up(*at), static_argnums=2)
    for k in ("tall", "wide"):
        leaf, bases = leaves[k], leaves[k].basis
        for t in range(7):
            apart = -updates[k][t] - grads[k][t]
            x = rng.normal(size=apart.shape).astype(np.float32)
            low = down(x, bases[t])
            outside = x - up(low, bases[t], x.shape)
            assert abs(np.vdot(apart, outside)) < 1e-5
            if t % 3 == 0:
                low = down(grads[k][t], bases[t])
                np.testing.assert_allclose(leaf.momentum[t], 0.1 * low, rtol=1e-4, atol=1e-6)
            else:
                assert np.array_equal(bases[t], bases[t - 1])
        if isinstance(projector, SVDProjector | OrthonormalProjector):
            assert not np.array_equal(bases[3], bases[2])


def test_state_sizes():
    sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    leaf = jnp.zeros((256, 1024))
    state = subset_norm(LR).init(leaf)
    assert sizes(state.leaves) == 1024
    state = subspace_momentum(LR, rank=64).init(leaf)
    assert state.leaves.momentum.size == 1024 * 64
    state = adam_snsm(LR, rank=64).init(leaf)
    assert sizes(state.leaves) == 1024 * (64 + 1) + 256 * 64
    assert sizes(adam_snsm(LR, rank=64, projector=CoordinateProjector()).init(leaf).leaves) == (
        1024 * (64 + 1) + 64
    )


def test_subset_shape():
    assert subset_shape((6, 6), "heuristics") == ((6, 6), 1)
    assert subset_shape((3, 6), "heuristics") == ((3, 6), 0)
    assert subset_shape((6, 4), 7) == ((4, 6), 1)
    assert subset_shape((6, 4), -2) == ((12, 2), 1)
    assert subset_shape((7,), 7) == ((7,), ())
    with pytest.warns(UserWarning, match=r"\(1, 7\)"):
        assert subset_shape((1, 7), 5) == ((7, 1), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subset_shape((1, 7), 1)


@pytest.mark.slow
def test_zero_gradients_and_bf16_parameters():
    params, _ = leaves_of_each_rank(jnp.bfloat16)
    for tx in (subset_norm(LR, 0.999), adam_snsm(LR, rank=0.5)):
        state = tx.init(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = jax.jit(tx.update)(zeros, state, params)
        for u in jax.tree.leaves(updates):
            assert u.dtype == jnp.bfloat16
            assert np.all(u == 0)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.leaves))


def test_bad_input():
    params, _ = leaves_of_each_rank(jnp.float32)
    bad = [
        (lambda: subset_norm(-1.0), "learning_rate"),
        (lambda: subset_norm(LR, 0.0), "b2"),
        (lambda: subset_norm(LR, 1.1), "b2"),
        (lambda: subset_norm(LR, subset_size=0), "subset_size"),
        (lambda: subset_norm(LR, eps=0.0), "eps"),
        (lambda: adam_sn(LR, b1=1.0), "b1"),
        (lambda: adam_sn(LR, bias_correction="some"), "bias_correction"),
        (lambda: subspace_momentum(LR, rank=-1), "rank"),
        (lambda: subspace_momentum(LR, rank=1.5), "rank"),
        (lambda: subspace_momentum(LR, update_proj_gap=0), "update_proj_gap"),
        (lambda: subspace_momentum(LR, rank=5).init(params), "rank 5"),
    ]
    for build, match in bad:
        with pytest.raises(ValueError, match=match):
            build()
    with pytest.raises(TypeError, match="projector"):
        subspace_momentum(LR, projector="svd")
    tx = subset_norm(LR, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(params, tx.init(params))
