"""The linear solver behind implicit derivatives, against pseudo-inverses."""

import jax
import jax.numpy as jnp
import lapack
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxopt_ext.core import LeastSquaresFallback, linear

N = 6
RNG = np.random.default_rng(0)
REGULAR = RNG.normal(size=(N, N)) + 3 * np.eye(N)
SINGULAR = RNG.normal(size=(N, 3)) @ RNG.normal(size=(3, N))
SKEW = np.kron(np.eye(N // 2), [[0.0, -1.0], [1.0, 0.0]])  # BiCGStab breaks down at once
DIAGONAL = np.diag([1.0, 2.0, 3.0, 4.0, 0.0, 0.0])  # LU finds an answer, not the smallest
MATRICES = {"regular": REGULAR, "singular": SINGULAR, "skew": SKEW, "diagonal": DIAGONAL}


def solve(matrix, vector, dense_size):
    operator = lx.MatrixLinearOperator(matrix)
    solver = LeastSquaresFallback(dense_size=dense_size)
    return lx.linear_solve(operator, vector, solver, throw=False).value


def tolerance(dtype):
    return dict(rtol=1e-4, atol=1e-4) if dtype == jnp.float32 else dict(rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dense_size", [0, 256], ids=["matrix-free", "dense"])
@pytest.mark.parametrize("consistent", [True, False])
def test_one_by_one_and_all_at_once(dtype, dense_size, consistent):
    """In a batch, answers that stand are kept while others fall back."""
    matrices = np.stack(list(MATRICES.values()))
    vectors = RNG.normal(size=(len(matrices), N))
    if consistent:
        vectors = np.einsum("bij,bj->bi", matrices, vectors)
    wanted = np.einsum("bij,bj->bi", np.linalg.pinv(matrices), vectors)
    A, b = jnp.asarray(matrices, dtype), jnp.asarray(vectors, dtype)
    one = jax.jit(lambda A, b: solve(A, b, dense_size))
    together = jax.jit(jax.vmap(lambda A, b: solve(A, b, dense_size)))(A, b)
    for i, name in enumerate(MATRICES):
        for found in (one(A[i], b[i]), together[i]):
            assert found.dtype == dtype
            if name == "singular" and consistent and dense_size == 0:  # any solution will do
                found, expected = matrices[i] @ found, vectors[i]
            else:
                expected = wanted[i]
            np.testing.assert_allclose(found, expected, **tolerance(dtype), err_msg=name)


def test_singular_values_are_found_only_where_they_are_asked_for():
    """One at a time, and in a batch; a shared matrix once. Nothing stands before the loop."""
    one = lambda A, b: solve(A, b, 256)
    A, b = jnp.stack([REGULAR, SINGULAR]), jnp.ones((2, N))
    for fun, args in (
        (one, (A[0], b[0])),
        (jax.vmap(one), (A, b)),
        (jax.vmap(one, (None, 0)), (A[0], b)),
    ):
        text = jax.jit(fun).lower(*args).compile().as_text()
        entry = text[text.index("\nENTRY") :]
        assert "gesdd" in text
        assert "gesdd" not in entry
        assert not lapack.side_by_side(jax.make_jaxpr(fun)(*args))


def test_strict_reports_what_it_does_not_reach():
    solver = LeastSquaresFallback(dense_size=0, max_steps=1, strict=True)
    solution = lx.linear_solve(
        lx.MatrixLinearOperator(jnp.asarray(REGULAR)), jnp.ones(N), solver, throw=False
    )
    assert solution.result != lx.RESULTS.successful
    lax = LeastSquaresFallback(dense_size=0, max_steps=1)
    solution = lx.linear_solve(
        lx.MatrixLinearOperator(jnp.asarray(REGULAR)), jnp.ones(N), lax, throw=False
    )
    assert solution.result == lx.RESULTS.successful


@pytest.mark.parametrize("dense_size", [0, 256])
def test_bad_numbers_are_failures(dense_size):
    matrix = jnp.asarray(REGULAR).at[0, 0].set(jnp.nan)
    solver = LeastSquaresFallback(dense_size=dense_size)
    solution = lx.linear_solve(lx.MatrixLinearOperator(matrix), jnp.ones(N), solver, throw=False)
    assert solution.result != lx.RESULTS.successful


def test_only_square_systems():
    with pytest.raises(ValueError, match="shaped like x"):
        lx.linear_solve(
            lx.MatrixLinearOperator(jnp.ones((2, 3))), jnp.ones(2), LeastSquaresFallback()
        )


def test_an_operator_for_meshes_is_its_matrix():
    matrix = np.random.default_rng(0).normal(size=(3, 3))
    like = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    unravel = ravel_pytree(like)[1]
    function = lambda x: unravel(jnp.asarray(matrix) @ ravel_pytree(x)[0])
    operator = linear.VaryingOperator(function, like, frozenset({lx.lower_triangular_tag}))
    np.testing.assert_allclose(operator.as_matrix(), matrix)
    np.testing.assert_allclose(operator.T.as_matrix(), matrix.T)
    assert lx.is_lower_triangular(operator)
    assert lx.is_upper_triangular(operator.T)
    assert not lx.is_symmetric(operator)
    symmetric = linear.VaryingOperator(function, like, frozenset({lx.positive_semidefinite_tag}))
    assert lx.is_symmetric(symmetric)
    assert symmetric.T is symmetric
    assert lx.linearise(operator) is lx.conj(operator) is operator
    assert operator.in_structure() == jax.eval_shape(lambda: like)


def counted(matrix, vector):
    """The answer, and the products that it took."""
    calls = []

    def product(x):
        jax.debug.callback(lambda: calls.append(1))
        return matrix @ x

    solver = LeastSquaresFallback(dense_size=0)
    x, _ = jax.jit(lambda b: solver.solve(product, b))(vector)
    jax.effects_barrier()
    return x, len(calls)


def test_products_are_few(dtype):
    """One for each unknown that is coupled to others, and none to look at what is known; of a
    symmetric matrix as many as with all images, where two are kept in mind."""
    rng = np.random.default_rng(0)
    n, k = 60, 5
    few = np.eye(n)
    few[:k] += 0.3 * rng.normal(size=(k, n))
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    outliers = basis * np.concatenate([np.ones(n - k), 10.0 ** np.arange(1, 1 + k)[::-1] / 1e2])
    for matrix, most in ((few.T, k + 1), (outliers @ basis.T, k + 2)):
        b = rng.normal(size=n)
        x, products = counted(jnp.asarray(matrix, dtype), jnp.asarray(b, dtype))
        assert products <= most
        gap = np.linalg.norm(matrix @ np.asarray(x, float) - b) / np.linalg.norm(b)
        assert gap <= (2e-5 if dtype == jnp.float32 else 2e-9)
