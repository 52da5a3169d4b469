import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import leaves_of_each_rank, replay

from jaxopt_ext.optimizers.online_subspace import (
    online_subspace_descent,
    subspace_gradient,
    subspace_loss,
)

LR = 0.05


def numpy_descent(params, grads, *, rank, base="adam", projection="online", gap=4, proj_lr=5e-3,
                  lam=0.0, scale=1.0, decay=0.0, rates=None, proj="adam"):  # fmt: skip
    """Float64, dense residuals and a plain Adam or SGD for P, leaf by leaf."""
    b1, b2, eps = 0.9, (0.999 if base == "adam" else 0.99), 1e-6
    out = {}
    for name, p in params.items():
        x, path = np.array(p, np.float64), []
        matrix = x.ndim == 2
        tall = matrix and x.shape[0] >= x.shape[1]
        m = v = None
        for t, g in enumerate(np.asarray(grads[name], np.float64), 1):
            rate = rates[t - 1] if rates is not None else LR
            if matrix:
                again = projection == "svd" and (t - 1) % gap == 0
                if t == 1 or again:
                    u, _, vt = np.linalg.svd(g, full_matrices=False)
                    basis = vt[:rank].T if tall else u[:, :rank]
                    pm, pv, pk = np.zeros_like(basis), np.zeros_like(basis), 0
                low = g @ basis if tall else basis.T @ g
            else:
                low = g
            m = np.zeros_like(low) if m is None else m
            v = np.zeros_like(low) if v is None else v
            if base == "adam":
                m = b1 * m + (1 - b1) * low
                v = b2 * v + (1 - b2) * low**2
                d = np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
            else:
                d = np.sign(b1 * m + (1 - b1) * low)
                m = b2 * m + (1 - b2) * low
            if matrix:
                d = scale * (d @ basis.T if tall else basis @ d)
            x = (x - rate * d) * (1 - rate * decay)
            path.append(x.copy())
            if matrix and projection == "online" and t > 1 and np.any(g):
                a = (g if tall else g.T) / np.linalg.norm(g)
                r = a @ basis @ basis.T - a
                eye = np.eye(rank)
                grad = 2 * (a.T @ r @ basis + r.T @ a @ basis)
                grad += 4 * lam * basis @ (basis.T @ basis - eye)
                pk += 1
                if proj == "adam":
                    pm, pv = 0.9 * pm + 0.1 * grad, 0.999 * pv + 0.001 * grad**2
                    grad = (pm / (1 - 0.9**pk)) / (np.sqrt(pv / (1 - 0.999**pk)) + 1e-8)
                first = rates[0] if rates is not None else LR
                basis = basis - proj_lr * rate / first * grad
        out[name] = np.stack(path)
    return out


CASES = {
    "adam": {},
    "lion": {"base": "lion"},
    "svd": {"projection": "svd", "update_proj_gap": 4},
    "frozen": {"projection": "frozen"},
    "penalty": {"lam": 0.3, "proj_lr": 0.05},
    "sgd": {"proj_optimizer": optax.sgd(1.0), "proj_lr": 0.1},
    "scaled": {"scale": 0.25, "weight_decay": 0.1},
}


@pytest.mark.always(3)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_numpy_loop(case):
    options = CASES[case]
    params, grads = leaves_of_each_rank(jnp.float64)
    got, _ = replay(online_subspace_descent(LR, 2, **options), params, grads)
    known = {"base", "projection", "proj_lr", "lam", "scale"}
    want = numpy_descent(
        params, grads, rank=2, decay=options.get("weight_decay", 0.0),
        proj="sgd" if case == "sgd" else "adam",
        **{k: v for k, v in options.items() if k in known},
    )  # fmt: skip
    for k, v in want.items():
        np.testing.assert_allclose(got[k], v, rtol=1e-9, atol=1e-9)


def test_float32_and_schedule():
    schedule = lambda t: 0.05 / (1.0 + t)
    params, grads = leaves_of_each_rank(jnp.float32)
    tx = online_subspace_descent(schedule, 2, proj_lr=0.05)
    got, state = replay(tx, params, grads)
    want = numpy_descent(
        params, grads, rank=2, proj_lr=0.05, rates=[schedule(t) for t in range(12)]
    )
    for k, v in want.items():
        assert got[k].dtype == jnp.float32
        np.testing.assert_allclose(got[k], v, rtol=1e-4, atol=1e-4)
    floats = [x for x in jax.tree.leaves(state.leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 for x in floats)


@pytest.mark.always(1)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_subspace_gradient(shape, lam):
    rng = np.random.default_rng(0)
    g, p = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=(4, 2)))
    got = subspace_gradient(p, g, lam)
    np.testing.assert_allclose(got, jax.grad(subspace_loss)(p, g, lam), rtol=1e-10)
    a = np.asarray(g if shape[0] >= shape[1] else g.T)

    def loss(p):
        return np.linalg.norm(a @ p @ p.T - a) ** 2 + lam * np.linalg.norm(p.T @ p - np.eye(2)) ** 2

    for i in range(4):
        for j in range(2):
            h = np.zeros((4, 2))
            h[i, j] = 1e-6
            difference = (loss(np.asarray(p) + h) - loss(np.asarray(p) - h)) / 2e-6
            np.testing.assert_allclose(got[i, j], difference, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_online_pca_finds_the_leading_subspace():
    """Gradients with covariance 25 in 4 directions and 0.09 in 28; P starts at random."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(32, 32)))
    root = rotation * np.concatenate([np.full(4, 5.0), np.full(28, 0.3)]) @ rotation.T
    start, _ = np.linalg.qr(rng.normal(size=(32, 4)))
    root, start = jnp.asarray(root, jnp.float32), jnp.asarray(start, jnp.float32)
    optimizer = optax.adam(5e-3)

    @jax.jit
    def run(p):
        def step(carry, key):
            p, state = carry
            g = jax.random.normal(key, (64, 32), jnp.float32) @ root
            updates, state = optimizer.update(
                subspace_gradient(p, g / jnp.linalg.norm(g)), state, p
            )
            return (p + updates, state), None

        keys = jax.random.split(jax.random.key(1), 1000)
        return jax.lax.scan(step, (p, optimizer.init(p)), keys)[0][0]

    p = np.asarray(run(start))
    basis, _ = np.linalg.qr(p)
    cosines = np.linalg.svd(basis.T @ rotation[:, :4], compute_uv=False)
    assert cosines.min() > 0.99
    assert np.linalg.norm(p.T @ p - np.eye(4)) < 0.05


@pytest.mark.slow
def test_zero_gradients_leave_everything_at_rest():
    params, grads = leaves_of_each_rank(jnp.float32, steps=3)
    grads = jax.tree.map(lambda g: g.at[1:].set(0), grads)
    _, state = replay(online_subspace_descent(LR, 2), params, grads)
    for k in ("tall", "wide"):
        bases = state.leaves[k].basis
        assert np.array_equal(bases[0], bases[2])
    tx = online_subspace_descent(LR, 2)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(tx.update)(zeros, tx.init(params), params)
    assert all(np.all(u == 0) for u in jax.tree.leaves(updates))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.leaves))


@pytest.mark.slow
def test_first_step_does_not_move_the_basis_and_random_stays_orthonormal():
    params, grads = leaves_of_each_rank(jnp.float64)
    _, state = replay(online_subspace_descent(LR, 2), params, grads)
    for k, side in (("tall", 1), ("wide", 0)):
        u, _, vt = np.linalg.svd(np.asarray(grads[k][0]), full_matrices=False)
        want = vt[:2].T if side else u[:, :2]
        np.testing.assert_allclose(state.leaves[k].basis[0], want, atol=1e-12)
        assert not np.array_equal(state.leaves[k].basis[1], want)
    tx = online_subspace_descent(LR, 2, projection="random", update_proj_gap=5)
    _, state = replay(tx, params, grads)
    bases = np.asarray(state.leaves["wide"].basis)
    np.testing.assert_allclose(
        bases.swapaxes(1, 2) @ bases, np.tile(np.eye(2), (12, 1, 1)), atol=1e-12
    )
    changed = [not np.array_equal(bases[t], bases[t - 1]) for t in range(1, 12)]
    assert [t for t in range(1, 12) if changed[t - 1]] == [5, 10]


@pytest.mark.slow
def test_svd_baseline_is_galore():
    params, grads = leaves_of_each_rank(jnp.float64)
    # optax's GaLore projects the longer side, so the two agree on square matrices, transposed.
    square = jax.tree.map(
        lambda x: x[..., :3, :3], [{k: d[k] for k in ("tall", "wide")} for d in (params, grads)]
    )
    # One basis for the whole run: the signs of later ones are the SVD routine's own choice.
    tx = online_subspace_descent(LR, 2, projection="svd", update_proj_gap=50, eps=1e-20)
    got, _ = replay(tx, *square)
    peer = optax.chain(
        optax.contrib.scale_by_galore(
            2, update_proj_gap=50, base_optimizer=optax.scale_by_adam(eps=1e-20)
        ),
        optax.scale(-LR),
    )
    want, _ = replay(peer, *jax.tree.map(lambda x: x.swapaxes(-1, -2), square))
    for k in got:
        np.testing.assert_allclose(got[k].swapaxes(-1, -2), want[k], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["adam", "lion"])
def test_full_rank_is_the_plain_base(base):
    params, grads = leaves_of_each_rank(jnp.float64)
    got, _ = replay(online_subspace_descent(LR, 1.0, base, eps=1e-14), params, grads)
    peer = optax.adam(LR, eps=1e-14) if base == "adam" else optax.lion(LR, b1=0.9, weight_decay=0)
    want, _ = replay(peer, params, grads)
    for k in got:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-9)


@pytest.mark.always(1)
@pytest.mark.parametrize("shape", [(64, 32), (32, 64)])
def test_state_sizes(shape):
    state = online_subspace_descent(LR, 4).init(jnp.zeros(shape))
    assert state.leaves.mu.size + state.leaves.nu.size == 2 * 64 * 4
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if x.dtype != jnp.int32)
    assert count(state.leaves) == 2 * 64 * 4 + 3 * 32 * 4
    state = online_subspace_descent(LR, 4, "lion", projection="frozen").init(jnp.zeros(shape))
    assert count(state.leaves) == 64 * 4 + 32 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "peer",
    [
        optax.adamw(1.0, weight_decay=0.01),
        optax.lion(1.0),
        optax.adafactor(1.0, multiply_by_parameter_scale=False),
    ],
)
def test_other_optimizers_of_the_basis(peer):
    params, grads = leaves_of_each_rank(jnp.float32)
    tx = online_subspace_descent(LR, 2, proj_optimizer=peer)
    got, state = replay(tx, params, grads)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(got))
    assert not np.array_equal(state.leaves["tall"].basis[-1], state.leaves["tall"].basis[0])


def test_bad_input():
    params, _ = leaves_of_each_rank(jnp.float32)
    warmup = optax.linear_schedule(0.0, 1.0, 10)
    bad = [
        (lambda: online_subspace_descent(-1.0, 2), "learning_rate"),
        (lambda: online_subspace_descent(LR, 0), "rank"),
        (lambda: online_subspace_descent(LR, 2.5), "rank"),
        (lambda: online_subspace_descent(LR, 2, "sgd"), "base"),
        (lambda: online_subspace_descent(LR, 2, b1=1.0), "b1"),
        (lambda: online_subspace_descent(LR, 2, b2=-0.1), "b2"),
        (lambda: online_subspace_descent(LR, 2, eps=0.0), "eps"),
        (lambda: online_subspace_descent(LR, 2, projection="pca"), "projection"),
        (lambda: online_subspace_descent(LR, 2, proj_lr=0.0), "proj_lr"),
        (lambda: online_subspace_descent(LR, 2, lam=-1.0), "lam"),
        (lambda: online_subspace_descent(LR, 2, update_proj_gap=0), "update_proj_gap"),
        (lambda: online_subspace_descent(LR, 2, scale=0.0), "scale"),
        (lambda: online_subspace_descent(warmup, 2), "reference_lr"),
        (lambda: online_subspace_descent(LR, 2, reference_lr=0.0), "reference_lr"),
        (lambda: online_subspace_descent(LR, 5).init(params), "rank 5"),
    ]
    for build, match in bad:
        with pytest.raises(ValueError, match=match):
            build()
    online_subspace_descent(warmup, 2, reference_lr=1.0)
    tx = online_subspace_descent(LR, 2, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(params, tx.init(params))
