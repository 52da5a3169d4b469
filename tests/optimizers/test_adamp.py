"""AdamP and SGDP against loops in numpy, AdamW, and on a scale-invariant problem."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replay import trajectory

from jaxopt_ext.optimizers.adamp import adamp, project_radial, sgdp

ROWS = "rows orthogonal"
LEAF = "leaf orthogonal"


def gradients(start, steps=40, kind=None, seed=0):
    """Random gradients; made orthogonal to the start by rows or as a whole."""
    grads = np.random.default_rng(seed).normal(size=(steps, *start.shape))
    if kind == ROWS:
        rows = start.reshape(len(start), -1)
        flat = grads.reshape(steps, len(start), -1)
        along = np.einsum("tij,ij->ti", flat, rows) / np.sum(rows**2, 1)
        grads = (flat - along[..., None] * rows).reshape(grads.shape)
    elif kind == LEAF:
        along = np.tensordot(grads, start, start.ndim) / np.sum(start**2)
        grads = grads - along.reshape(-1, *(1,) * start.ndim) * start
    return grads


def project(p, g, w, delta, eps):
    """Rows first, then everything as one row; whether it fired."""
    for rows in (w.shape[0], 1):
        P, G, W = (x.reshape(rows, -1) for x in (p, g, w))
        norms = np.linalg.norm(G, axis=1) * np.linalg.norm(W, axis=1)
        cosine = np.abs(np.sum(G * W, 1)) / np.maximum(norms, eps)
        if cosine.max() < delta / np.sqrt(W.shape[1]):
            n = W / (np.linalg.norm(W, axis=1, keepdims=True) + eps)
            return (P - n * np.sum(n * P, 1, keepdims=True)).reshape(p.shape), True
    return p, False


def reference_adamp(w, grads, lr, decay, nesterov, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    path, fired = [], 0
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        denom = np.sqrt(v) / np.sqrt(1 - b2**t) + eps
        p = (b1 * m + (1 - b1) * g) / denom if nesterov else m / denom
        hit = False
        if w.ndim > 1:
            p, hit = project(p, g, w, 0.1, eps)
        w = w * (1 - lr * decay * (0.1 if hit else 1)) - lr / (1 - b1**t) * p
        path.append(w)
        fired += hit
    return np.array(path), fired


def reference_sgdp(w, grads, lr, decay, nesterov, mu=0.9, dampening=0.3, eps=1e-8):
    buf = 0.0
    path, fired = [], 0
    for g in grads:
        buf = mu * buf + (1 - dampening) * g
        p, hit = project(g + mu * buf if nesterov else buf, g, w, 0.1, eps)
        w = w * (1 - lr * decay * (0.1 if hit else 1) / (1 - mu)) - lr * p
        path.append(w)
        fired += hit
    return np.array(path), fired


def tolerance(dtype):
    return dict(rtol=1e-5, atol=3e-6) if dtype == jnp.float32 else dict(rtol=1e-11, atol=1e-13)


@pytest.mark.always(3)
@pytest.mark.parametrize("kind", [None, ROWS, LEAF])
@pytest.mark.parametrize("nesterov", [False, True])
def test_equal_loops_in_numpy(dtype, kind, nesterov):
    start = np.random.default_rng(1).normal(size=(3, 4, 2))
    grads = gradients(start, kind=kind)
    w, g = jnp.asarray(start, dtype), jnp.asarray(grads, dtype)
    expected, fired = reference_adamp(start, grads, 1e-4, 3.0, nesterov)
    path = trajectory(adamp(1e-4, weight_decay=3.0, nesterov=nesterov), w, g)
    assert path.dtype == dtype
    np.testing.assert_allclose(path, expected, **tolerance(dtype))
    assert (fired > 20) == (kind is not None)
    expected, fired = reference_sgdp(start, grads, 1e-4, 3.0, nesterov)
    tx = sgdp(1e-4, 0.9, 0.3, weight_decay=3.0, nesterov=nesterov)
    np.testing.assert_allclose(trajectory(tx, w, g), expected, **tolerance(dtype))
    assert (fired > 20) == (kind is not None)


@pytest.mark.slow
def test_far_from_orthogonal_is_adamw(dtype):
    w = jnp.full((4, 6), 0.5, dtype)
    x = jnp.abs(jax.random.normal(jax.random.key(0), (50, 16, 6), dtype)) + 0.1
    target = jnp.full((4,), -40, dtype)

    def final(tx):
        def step(carry, x):
            w, state = carry
            g = jax.grad(lambda w: jnp.mean((x @ w.T - target) ** 2))(w)
            cosine = jnp.sum(g * w, 1) / jnp.linalg.norm(g, axis=1) / jnp.linalg.norm(w, axis=1)
            updates, state = tx.update(g, state, w)
            return (optax.apply_updates(w, updates), state), jnp.abs(cosine).max()

        (w_end, _), cosines = jax.lax.scan(step, (w, tx.init(w)), x)
        return w_end, cosines.min()

    mine, cosine = final(adamp(1e-3, weight_decay=0.1))
    assert cosine > 0.1 / np.sqrt(6)
    theirs = final(optax.adamw(1e-3, weight_decay=0.1))[0]
    np.testing.assert_allclose(mine, theirs, atol=1e-6 if dtype == jnp.float32 else 1e-13)


@pytest.mark.always(1)
@pytest.mark.parametrize("kind", [ROWS, LEAF])
def test_projected_steps_are_tangential(dtype, kind):
    start = np.random.default_rng(2).normal(size=(5, 8))
    g = jnp.asarray(gradients(start, 2, kind), dtype)
    w = jnp.asarray(start, dtype)
    for tx in (adamp(0.1), sgdp(0.1, 0.9)):
        _, state = tx.update(g[0] + w, tx.init(w), w)  # momentum with a radial part
        delta, _ = tx.update(g[1], state, w)
        axis = 1 if kind == ROWS else None
        cosine = jnp.sum(w * delta, axis) / jnp.sqrt(jnp.sum(w**2, axis) * jnp.sum(delta**2, axis))
        assert np.abs(cosine).max() <= 1e-5


@pytest.mark.slow
def test_rayleigh_quotient_keeps_its_norm():
    root = np.random.default_rng(0).normal(size=(10, 10))
    A = root @ root.T
    A = jnp.asarray(A / np.linalg.norm(A, 2))
    w0 = np.random.default_rng(1).normal(size=(1, 10))
    w0 = jnp.asarray(w0 / np.linalg.norm(w0))

    def f(w):
        return jnp.vdot(w[0], A @ w[0]) / jnp.vdot(w, w)

    def final(tx):
        def step(carry, _):
            w, state = carry
            updates, state = tx.update(jax.grad(f)(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jax.lax.scan(step, (w0, tx.init(w0)), length=500)[0][0]
        return jnp.linalg.norm(w), f(w) - jnp.linalg.eigvalsh(A)[0]

    norm, gap = final(sgdp(1.0, 0.9))
    plain_norm, plain_gap = final(optax.sgd(1.0, 0.9))
    assert norm < 2
    assert plain_norm > 4
    assert gap < 1e-6
    assert gap <= plain_gap / 10


@pytest.mark.slow
def test_channel_axis():
    start = np.random.default_rng(3).normal(size=(4, 6))
    grads = gradients(start, kind=ROWS)
    first = trajectory(adamp(1e-3), jnp.asarray(start), jnp.asarray(grads))
    turned = jnp.asarray(grads.transpose(0, 2, 1))
    last = trajectory(adamp(1e-3, channel_axis=-1), jnp.asarray(start.T), turned)
    np.testing.assert_allclose(last, first.transpose(0, 2, 1), rtol=1e-12)


@pytest.mark.slow
def test_zero_rows_and_vectors(dtype):
    w = {"zero": jnp.zeros((2, 3), dtype), "bias": jnp.ones(5, dtype), "empty": jnp.ones((0, 3))}
    g = jax.tree.map(jnp.ones_like, w) | {"zero": jnp.array([[0, 0, 0], [1, 2, 3]], dtype)}
    tx = adamp(0.1)
    updates, _ = tx.update(g, tx.init(w), w)
    np.testing.assert_allclose(updates["zero"], [[0, 0, 0], [-0.1, -0.1, -0.1]], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-5)
    _, fired = project_radial(g, g, w)
    assert fired["zero"]
    assert not fired["bias"]


@pytest.mark.slow
def test_complex_weights_lose_their_radial_part():
    w = jnp.array([[1 + 2j, 2 - 1j]])
    _, fired = project_radial(1j * w + w, 1j * w, w)  # turning all phases keeps the norm
    direction, _ = project_radial(1j * w + w, 1j * w, w)
    assert fired
    np.testing.assert_allclose(direction, 1j * w, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [("b1", 1.0), ("eps", 0.0), ("delta", -0.1), ("wd_ratio", -1.0), ("weight_decay", -1.0)],
)
def test_bad_input_raises(name, value):
    with pytest.raises(ValueError, match=name):
        adamp(**{name: value})
    if name != "b1":
        with pytest.raises(ValueError, match=name):
            sgdp(0.1, **{name: value})


def test_bad_momentum_and_axis_raise():
    with pytest.raises(ValueError, match="momentum"):
        sgdp(0.1, momentum=1.0)
    with pytest.raises(TypeError, match="channel_axis"):
        adamp(channel_axis=0.5)


@pytest.mark.slow
def test_steps_can_be_differentiated_and_batched():
    w = jnp.asarray(np.random.default_rng(4).normal(size=(3, 4)))
    g = jnp.asarray(gradients(np.asarray(w), 1, ROWS)[0])
    tx = adamp(0.1)

    def moved(scale):
        return jnp.sum(tx.update(scale * g + 0.1 * w, tx.init(w), w)[0] ** 2)

    step = 1e-6
    slope = (moved(1.0 + step) - moved(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(moved)(1.0), slope, rtol=1e-4)
    scales = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(jax.vmap(moved)(scales), [moved(s) for s in scales], rtol=1e-10)
