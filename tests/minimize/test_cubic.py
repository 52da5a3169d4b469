"""Regularized steps against their optimality conditions, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_ext.minimize import _cubic

SIZE, D = 400, 6


def draw(seed):
    """Definite, indefinite and singular matrices, the hard case, zero gradients, all scales."""
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(SIZE, D, D))
    H = H + H.transpose(0, 2, 1)
    H[::4] = H[::4] @ H[::4].transpose(0, 2, 1)
    H[1::4, :, 0] = H[1::4, 0, :] = 0
    H[2::8] = np.eye(D) * rng.normal(size=(len(H[2::8]), 1, 1))  # one eigenvalue
    H *= 10.0 ** rng.uniform(-3, 3, (SIZE, 1, 1))
    g = rng.normal(size=(SIZE, D)) * 10.0 ** rng.uniform(-6, 3, (SIZE, 1))
    lowest = np.linalg.eigh(H)[1][3::8, :, 0]
    g[3::8] -= lowest * np.sum(lowest * g[3::8], axis=1, keepdims=True)
    g[:8] = 0
    H[-3:-1], H[-1] = 0, np.nan
    tau = 10.0 ** rng.uniform(-3, 1, SIZE)
    tau[-100:] = 0
    return H, g, 10.0 ** rng.uniform(-3, 3, SIZE), tau


def test_cubic_steps_are_global_minimizers(dtype):
    data = draw(0)
    step = lambda H, g, M, tau: _cubic.cubic_step(_cubic.eigen(H), g, M, tau)
    h = jax.jit(jax.vmap(step))(*(jnp.asarray(a, dtype) for a in data))
    assert h.dtype == dtype
    assert np.all(np.isnan(h[-1]))
    h, H, g, M, tau = (np.asarray(a, float)[:-1] for a in (h, *data))
    r = np.linalg.norm(h, axis=1)
    shifted = H + (tau + M * r / 2)[:, None, None] * np.eye(D)
    size = np.linalg.norm(H, 2, axis=(1, 2)) + tau + M * r / 2
    gap = np.linalg.norm(np.einsum("bij,bj->bi", shifted, h) + g, axis=1)
    rounding = 50 * np.finfo(dtype).eps
    assert np.all(gap <= rounding * (np.linalg.norm(g, axis=1) + size * r))
    assert np.all(np.linalg.eigvalsh(shifted)[:, 0] >= -rounding * size)
    still = np.linalg.eigvalsh(H)[:, 0] + tau < -rounding * size
    assert still[:8].any()
    assert np.all(r[:8][still[:8]] > 0)  # off a saddle point
    assert np.all(r[:8][~still[:8]] == 0)


def test_cubic_step_in_one_dimension():
    """Against a dense search: f = -h - h^2/2 + |h|^3/6."""
    at = _cubic.Eigen(jnp.array([-1.0]), jnp.eye(1))
    found = jax.jit(_cubic.cubic_step)(at, jnp.array([-1.0]), 1.0)
    h = np.linspace(-6, 6, 1_200_001)
    best = h[np.argmin(-h - h**2 / 2 + np.abs(h) ** 3 / 6)]
    np.testing.assert_allclose(found, [best], atol=1e-5)


def _score(p, lift):
    rng = np.random.default_rng(2)
    H, bend = rng.normal(size=(2, 4, 4))
    H, bend = H @ H.T + np.eye(4), bend + bend.T
    g, turn = rng.normal(size=(2, 4))
    at = _cubic.eigen(jnp.asarray(H) - lift * jnp.eye(4) + p[0] * bend)
    step = _cubic.cubic_step(at, g + p[1] * turn, 2.0 * jnp.exp(p[2]), 0.1)
    return jnp.sum(jnp.sin(step))


@pytest.mark.parametrize("twice", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_derivatives_of_cubic_steps(twice):
    """In reverse mode, far from the boundary and next to it."""
    score = jax.grad(_score) if twice else _score

    @jax.jit
    @jax.vmap
    def both(lift):
        p, moves = jnp.zeros(3), 1e-5 * jnp.eye(3)
        difference = lambda move: (score(p + move, lift) - score(p - move, lift)) / 2e-5
        return jax.jacrev(score)(p, lift), jax.vmap(difference)(moves)

    found, wanted = both(jnp.asarray([0.0, 3.0]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_regularized_steps_and_decrement():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 3))
    H, g = root @ root.T, root @ rng.normal(size=3)  # singular, g in its range
    at = _cubic.Eigen(*map(jnp.asarray, np.linalg.eigh(H)))
    wanted = -np.linalg.pinv(H) @ g
    np.testing.assert_allclose(_cubic.regularized_step(at, jnp.asarray(g), 0), wanted, atol=1e-10)
    np.testing.assert_allclose(
        _cubic.newton_decrement(at, jnp.asarray(g)), np.sqrt(-wanted @ g), rtol=1e-10
    )
    wanted = -np.linalg.solve(H + 0.3 * np.eye(5), g)
    np.testing.assert_allclose(_cubic.regularized_step(at, jnp.asarray(g), 0.3), wanted, atol=1e-10)


@pytest.mark.parametrize("point", [{"a": np.ones(2), "b": (np.ones((2, 1)),)}, np.ones(2) * 1j])
def test_points_as_real_vectors(point):
    point = jax.tree.map(jnp.asarray, point)
    fun = lambda x: sum(jnp.sum(jnp.abs(2 * a) ** 2) for a in jax.tree.leaves(x))
    flat = _cubic.flatten(fun, point)
    found = jax.jit(lambda v: _cubic.hessian(flat.fun, v))(flat.x)
    np.testing.assert_allclose(found, 8 * np.eye(4))
    back = flat.unravel(flat.x)
    assert jax.tree.structure(back) == jax.tree.structure(point)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(point), strict=True):
        np.testing.assert_array_equal(a, b)
