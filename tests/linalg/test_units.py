"""Matrix routines in single precision on data whose squares are out of range."""

import re

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from jaxopt_ext import linalg
from jaxopt_ext.linalg import SOR, SSORCG, TruncatedSVD, units
from jaxopt_ext_kernels import CSR

RNG = np.random.default_rng(0)


def test_units_are_powers_of_two_and_norms_are_right():
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    scaled = x * np.float32(10.0) ** np.array([[-30], [0], [30]], np.float32)
    wanted = np.linalg.norm(scaled.astype(np.float64), axis=1)
    np.testing.assert_allclose(units.norm(jnp.asarray(scaled), 1), wanted, rtol=1e-6)
    found = np.asarray(units.unit(jnp.asarray(scaled), 1))
    mantissa, _ = np.frexp(found)
    np.testing.assert_array_equal(mantissa, 0.5)
    largest = np.abs(scaled).max(axis=1, keepdims=True)
    assert np.all((found <= largest) & (largest < 2 * found))
    strange = jnp.asarray([0.0, jnp.nan, jnp.inf], jnp.float32)[:, None]
    np.testing.assert_array_equal(units.unit(strange, 1), 1)
    np.testing.assert_array_equal(units.norm(strange, 1), [0, np.nan, np.inf])


@pytest.mark.parametrize("method", [linalg.Pade(5), linalg.NewtonSchulz(12)])
def test_roots(method):
    base = RNG.normal(size=(4, 4))
    base = base @ base.T / 4 + np.eye(4)
    scales = np.array([1e-30, 1e-20, 1.0, 1e20, 1e30])
    A = jnp.asarray(scales[:, None, None] * base, jnp.float32)
    values, vectors = np.linalg.eigh(base)

    @jax.jit
    def run(A):
        total = lambda A: jnp.sum(linalg.sqrtm(A, method))
        roots = linalg.sqrtm_pair(A, method)
        return *roots, linalg.root_residual(A, roots[0]), jax.grad(total)(A)

    root, inverse, residual, slope = map(np.asarray, run(A))
    wanted = (vectors * np.sqrt(values)) @ vectors.T
    lengths = np.sqrt(scales)[:, None, None]
    np.testing.assert_allclose(root / lengths, np.broadcast_to(wanted, root.shape), atol=2e-3)
    reciprocal = np.broadcast_to(np.linalg.inv(wanted), root.shape)
    np.testing.assert_allclose(inverse * lengths, reciprocal, atol=2e-3)
    assert np.all(residual < 2e-3)
    np.testing.assert_allclose(
        slope * lengths, np.broadcast_to(slope[2], slope.shape), rtol=1e-2, atol=1e-3
    )


def test_whitened_samples_have_no_units():
    x = RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 3))
    whiten = jax.jit(jax.vmap(linalg.whiten))
    scales = np.array([1e-25, 1e-10, 1.0, 1e10, 1e25])
    found = whiten(jnp.asarray(scales[:, None, None] * x, jnp.float32))
    np.testing.assert_allclose(found, np.broadcast_to(found[2], found.shape), atol=1e-4)
    covariance = np.asarray(found[2]).T @ np.asarray(found[2]) / 39
    np.testing.assert_allclose(covariance, np.eye(3), atol=0.2)


def test_rows_of_any_size_are_added():
    A, E = RNG.normal(size=(6, 8)).astype(np.float32), RNG.normal(size=(3, 8)).astype(np.float32)

    @jax.jit
    def run(svd, rows):
        return [
            svd.add_rows(rows, augment).s for augment in (linalg.GramSchmidt(), linalg.Lanczos(3))
        ]

    for scale in (1e-21, 1e-19, 1.0, 1e18):
        one, other = np.float32(scale) * A, np.float32(scale) * E
        svd = TruncatedSVD.from_matrix(one, 6, capacity=(9, 8))
        wanted = np.linalg.svd(np.concatenate([A, E]).astype(float), compute_uv=False)[:6]
        for s in run(svd, CSR.from_dense(other)):
            np.testing.assert_allclose(np.asarray(s, float) / scale, wanted, rtol=2e-4)


def test_a_column_nearly_in_the_span_counts_as_in_it():
    """Above a fourth root of the rounding unit nothing is lost."""
    A = RNG.normal(size=(6, 8))
    outside = np.linalg.svd(A)[2][-1]
    svd = TruncatedSVD.from_matrix(A, 6, capacity=(7, 8))
    for size, exact in ((1e-3, True), (1e-5, False)):
        row = A[:1] + size * outside
        found = svd.add_rows(CSR.from_dense(row))
        wanted = np.linalg.svd(np.concatenate([A, row]), compute_uv=False)[:6]
        gap = np.max(np.abs(found.s - wanted))
        assert gap < (1e-9 if exact else 1e-8)


@pytest.mark.parametrize("scale", [1e-14, 1e14])
def test_rows_are_drawn_in_proportion(scale):
    a = np.repeat([[1.0], [1e-3]], 50, axis=0) * RNG.normal(size=(100, 1))
    A = jnp.asarray(scale * a, jnp.float32)
    draw = jax.jit(lambda key: linalg.importance_product(key, A, A, 40))
    found = np.array([draw(jax.random.key(seed))[0, 0] for seed in range(8)]) / scale**2
    np.testing.assert_allclose(found, np.sum(a**2), rtol=1e-4)


@pytest.mark.parametrize("solver", [SOR(1.5), SSORCG(1.5)])
def test_small_right_hand_sides_are_solved(solver):
    A = np.array([[2.0, -1.0], [-1.0, 2.0]], np.float32)
    operator = lx.MatrixLinearOperator(jnp.asarray(A), lx.positive_semidefinite_tag)
    for scale in (1e-30, 1e30):
        b = jnp.asarray([scale, scale], jnp.float32)
        found = lx.linear_solve(operator, b, solver)
        np.testing.assert_allclose(found.value, [scale, scale], rtol=1e-4)
        assert found.stats["num_steps"] > 1


def test_success_is_told_by_the_true_residual():
    """The residual that conjugate gradients carry along falls below what rounding leaves of the
    true one."""
    n = 400
    A = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    operator = lx.MatrixLinearOperator(jnp.asarray(A, jnp.float32), lx.positive_semidefinite_tag)
    b = jnp.ones(n, jnp.float32)
    found = jax.jit(lambda b: lx.linear_solve(operator, b, SSORCG(1.9), throw=False))(b)
    x = np.asarray(found.value, np.float64)
    true = np.linalg.norm(np.ones(n) - A @ x)
    rounding = 8 * np.finfo(np.float32).eps * np.linalg.norm(2 * x)
    goal = max(1e-5 * np.sqrt(n), rounding)
    assert (found.result == lx.RESULTS.successful) == (true <= 1.1 * goal)
    np.testing.assert_allclose(x, np.linalg.solve(A, np.ones(n)), rtol=1e-4)


def test_products_keep_single_precision_on_accelerators():
    """Read off the programs: what is not asked for is rounded there."""

    A = jnp.eye(4, dtype=jnp.float32)
    svd = TruncatedSVD.from_matrix(np.eye(4, 5, dtype=np.float32), 2, capacity=(6, 5))
    rows = CSR.from_dense(np.ones((1, 5), np.float32))
    programs = [
        (lambda A: linalg.sqrtm(A, linalg.NewtonSchulz(3)), A),
        (jax.grad(lambda A: jnp.sum(linalg.inverse_sqrtm(A, linalg.Taylor(3)))), A),
        (linalg.whiten, A),
        (svd.add_rows, rows),
        (lambda A: linalg.uniform_product(jax.random.key(0), A, A, 3), A),
    ]
    for fun, argument in programs:
        products = re.findall(
            r"dot_general\[.*?\]\s", str(jax.make_jaxpr(fun)(argument)), re.DOTALL
        )
        assert products
        assert all("HIGHEST" in product for product in products)
