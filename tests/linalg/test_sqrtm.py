"""Matrix square roots against eigendecompositions, `scipy` and the numbers of the method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import PartitionSpec as P

from jaxopt_ext.linalg import (
    Eigh,
    Exact,
    Lyapunov,
    NewtonSchulz,
    Pade,
    Root,
    Taylor,
    inverse_sqrtm,
    root_residual,
    sqrtm,
    sqrtm_pair,
    whiten,
)

CONDITIONS = (10.0, 100.0, 1e3, 1e4)
METHODS = (Taylor(), Pade(), NewtonSchulz(), Pade(9), Eigh())


def spd(values, seed=0):
    values = np.asarray(values)
    n = values.shape[-1]
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return (vectors * values[..., None, :]) @ vectors.T


SPECTRA = np.stack([np.geomspace(1 / c, 1, 64) for c in CONDITIONS])
MATRICES = spd(SPECTRA)
MATRICES = (MATRICES + np.swapaxes(MATRICES, 1, 2)) / 2
ROOTS, INVERSES = spd(SPECTRA**0.5), spd(SPECTRA**-0.5)


def errors(found, wanted):
    gap = np.linalg.norm(np.asarray(found, np.float64) - wanted, axis=(-2, -1))
    return gap / np.linalg.norm(wanted, axis=(-2, -1))


@pytest.mark.always(1)
@pytest.mark.parametrize("single", [False, True])
def test_errors_are_those_of_the_approximations(single):
    """Roots and inverse roots of all matrices by all methods."""
    fun = jax.jit(lambda A: [sqrtm_pair(A, method) for method in METHODS])
    found = fun(MATRICES.astype(np.float32) if single else MATRICES)
    taylor, pade, newton, _, eigh = found
    wanted = ((taylor[0], [0.087, 0.23, 0.37, 0.48]), (pade[0], [0.010, 0.064, 0.14, 0.21]))
    for root, numbers in wanted:
        np.testing.assert_allclose(errors(root, ROOTS), numbers, rtol=0.05)
    np.testing.assert_allclose(errors(newton[0], ROOTS), [0.024, 0.076, 0.089, 0.086], rtol=0.05)
    np.testing.assert_allclose(errors(pade[1], INVERSES), [0.025, 0.28, 0.65, 0.87], rtol=0.05)
    assert np.all(errors(pade[0], ROOTS) < errors(taylor[0], ROOTS))
    assert np.all(errors(eigh[0], ROOTS) < (1e-5 if single else 1e-13))
    # At each eigenvalue the error is known.
    for method, degree in ((1, 5), (3, 9)):
        x = SPECTRA / np.linalg.norm(SPECTRA, axis=1, keepdims=True)
        q = ((1 + x**0.5) / (1 - x**0.5)) ** (2 * degree + 1)
        off = 2 / (q - 1)
        for i, exact in enumerate((spd(SPECTRA**0.5 * (1 + off)), spd(SPECTRA**-0.5 / (1 + off)))):
            assert np.all(errors(found[method][i], exact) < (1e-5 if single else 1e-12))
    assert pade[0].dtype == (jnp.float32 if single else jnp.float64)


def test_the_lyapunov_iteration_against_scipy():
    G = np.random.default_rng(1).normal(size=MATRICES.shape)
    G = G + np.swapaxes(G, 1, 2)
    solve = scipy.linalg.solve_continuous_lyapunov
    wanted = np.stack([solve(*pair) for pair in zip(ROOTS, G, strict=True)])
    root = Root(jnp.asarray(ROOTS), jnp.asarray(np.sqrt(np.linalg.norm(MATRICES, axis=(1, 2)))))
    solve = jax.jit(lambda root, G: [b.solve(root, G) for b in (Lyapunov(), Lyapunov(20), Exact())])
    found, *rest = solve(root, G)
    # In the eigenbasis it is an iteration for each entry.
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    scale = np.sqrt(np.linalg.norm(MATRICES, axis=(1, 2)))[:, None, None]
    b, c = SPECTRA**0.5 / scale[:, 0], vectors.T @ G @ vectors / scale
    for _ in range(8):
        i, j = b[:, :, None], b[:, None, :]
        c = c * (3 - i**2 - j**2 + i * j) / 2
        b = b * (3 - b**2) / 2
    assert np.all(errors(found, vectors @ c @ vectors.T / 2) < 1e-12)
    eight, twenty, exact = (errors(x, wanted) for x in (found, *rest))
    np.testing.assert_allclose(eight, [9e-8, 1.7e-2, 0.26, 0.62], rtol=0.2)  # changes with G
    assert np.all(twenty < 1e-13)
    assert np.all(exact < 1e-12)


def test_the_cotangent_is_exact_at_the_root_returned():
    """Also where the root is crude, and for cotangents that are not symmetric."""
    A, G = MATRICES[1, :6, :6], np.random.default_rng(2).normal(size=(6, 6))

    @jax.jit
    def pulled(A):
        R, back = jax.vjp(lambda A: sqrtm(A, Pade(), Lyapunov(25)), A)
        Q, inverse_back = jax.vjp(lambda A: inverse_sqrtm(A, Pade(2), Lyapunov(25)), A)
        return R, back(G)[0], Q, inverse_back(G)[0]

    R, found, Q, inverse_found = pulled(jnp.asarray(A))
    solve = scipy.linalg.solve_continuous_lyapunov
    np.testing.assert_allclose(found, solve(R, (G + G.T) / 2), rtol=1e-10, atol=1e-10)
    square = Q @ Q
    wanted = solve(Q, -square @ (G + G.T) / 2 @ square)
    np.testing.assert_allclose(inverse_found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_repeated_eigenvalues_and_forward_and_second_derivatives():
    A = jnp.asarray(spd([1.0, 1, 1, 3]))
    E = np.random.default_rng(3).normal(size=(4, 4))
    E = jnp.asarray(E + E.T)
    eye = 2 * jnp.eye(4)

    @jax.jit
    def all_of_them(A, eye):
        naive = jax.grad(lambda A: jnp.sum(sqrtm(A, Eigh(), None)[0]))(eye)
        guarded = [
            jax.grad(lambda A, b=b: jnp.sum(sqrtm(A, Eigh(), b)[0]))(eye)
            for b in (Exact(), Lyapunov(20))
        ]
        score = lambda A: jnp.sum(jnp.sin(sqrtm(A, Pade(20), Lyapunov(25))))
        slope = lambda A: jax.jvp(score, (A,), (E,))[1]
        return naive, guarded, score(A), slope(A), jax.jvp(slope, (A,), (E,))[1], jax.grad(score)(A)

    naive, guarded, _, slope, curvature, gradient = all_of_them(A, eye)
    assert not np.all(np.isfinite(naive))
    wanted = np.zeros((4, 4))
    wanted[0] = 1
    for found in guarded:
        np.testing.assert_allclose(found, (wanted + wanted.T) / 4 / 2**0.5, atol=1e-12)
    score = lambda h: np.sum(np.sin(scipy.linalg.sqrtm(np.asarray(A + h * E))))
    h = 1e-4
    np.testing.assert_allclose(slope, (score(h) - score(-h)) / 2 / h, rtol=1e-6)
    np.testing.assert_allclose(np.vdot(gradient, E), slope, rtol=1e-10)
    np.testing.assert_allclose(curvature, (score(h) - 2 * score(0) + score(-h)) / h**2, rtol=1e-5)


@pytest.mark.slow
def test_batches_shards_and_a_shared_leaf():
    batch = jnp.asarray(MATRICES[:, :3, :3] + np.eye(3))
    fun = lambda t, A: jnp.sum(jnp.cos(sqrtm(A + t * jnp.eye(3))))
    slope = jax.value_and_grad(lambda t, As: jnp.sum(jax.vmap(fun, (None, 0))(t, As)))
    value, found = jax.jit(slope)(0.5, batch)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())
    def spread(t, A):
        value, found = jax.value_and_grad(lambda t: jax.lax.psum(fun(t, A[0]), "i"))(t)
        return value, found

    np.testing.assert_allclose(jax.jit(spread)(0.5, batch), (value, found), rtol=1e-12)


def test_zero_singular_scaled_and_empty():
    stack = np.stack([np.zeros((9, 9)), 1e30 * np.eye(9), 1e-30 * np.ones((9, 9))])
    fun = jax.jit(lambda *all: [sqrtm(A, method) for A in all for method in (Pade(15), Eigh())])
    pade, eigh, *single = fun(stack, (stack[:2] / 1e15).astype(np.float32))
    for found, tolerance in ((pade, 0.3), (eigh, 1e-7)):
        assert not np.any(found[0])
        np.testing.assert_allclose(found[1], 1e15 * np.eye(9), rtol=1e-2, atol=1e6)
        np.testing.assert_allclose(found[2], 1e-15 / 3, rtol=tolerance)
    for found in single:
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found[1], 10**7.5 * np.eye(9), rtol=1e-2)
    empty = jax.jit(lambda *all: [sqrtm(A) for A in all])(np.zeros((0, 3, 3)), np.zeros((2, 0, 0)))
    assert [found.shape for found in empty] == [(0, 3, 3), (2, 0, 0)]
    assert jax.eval_shape(sqrtm, jnp.eye(2, dtype=jnp.bfloat16)).dtype == jnp.bfloat16


def test_an_indefinite_matrix_shows():
    A = jnp.diag(jnp.array([1.0, -1.0]))
    fun = jax.jit(
        lambda A: [(sqrtm(A, m), root_residual(A, sqrtm(A, m))) for m in (Pade(), Eigh())]
    )
    (_, residual), (exact, _) = fun(A)
    assert residual > 0.1
    assert np.any(np.isnan(exact))


def test_whitened_samples():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + 5
    white = np.asarray(jax.jit(lambda x: whiten(x, 0.0, Eigh(), Exact()))(samples))
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=1e-10)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-12)
    across = np.cov(white.T, np.asarray(samples).T)[:3, 3:]
    np.testing.assert_allclose(across, across.T, atol=1e-10)  # the least turn


def test_bad_input_is_named():
    cases = [
        (lambda: sqrtm(jnp.ones((2, 3))), ValueError, r"\(2, 3\)"),
        (lambda: sqrtm(jnp.ones(3)), ValueError, r"\(3,\)"),
        (lambda: sqrtm(jnp.array([[1.0, 2.0], [0.0, 1.0]])), ValueError, "differ by 2"),
        (lambda: sqrtm(jnp.diag(jnp.array([1.0, -0.5]))), ValueError, "eigenvalue -0.5"),
        (lambda: sqrtm(jnp.eye(2, dtype=int)), TypeError, "int"),
        (lambda: sqrtm(jnp.eye(2) * 1j), TypeError, "complex"),
        (lambda: sqrtm(jnp.eye(2), "pade"), TypeError, "'pade'"),
        (lambda: sqrtm(jnp.eye(2), Pade(), 8), TypeError, "8"),
        (lambda: Pade(0), ValueError, "got 0"),
        (lambda: Taylor(1.5), TypeError, "1.5"),
        (lambda: NewtonSchulz(0), ValueError, "got 0"),
        (lambda: Lyapunov(-1), ValueError, "got -1"),
        (lambda: whiten(jnp.ones((1, 3))), ValueError, r"\(1, 3\)"),
        (lambda: whiten(jnp.ones((4, 3)), -1.0), ValueError, "-1.0"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
