"""Sparse matrices in compressed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from jaxopt_ext_kernels import BCSR, CSR

RNG = np.random.default_rng(0)


def _ragged(m=9, n=7, density=0.3):
    dense = RNG.normal(size=(m, n)) * (RNG.random((m, n)) < density)
    dense[m // 2], dense[:, 1] = 0, 0  # an empty row and an empty column
    return dense


def _check_structure(matrix):
    count, rows, columns = int(matrix.count), np.asarray(matrix.rows), np.asarray(matrix.columns)
    place = rows[:count].astype(int) * max(matrix.shape[1], 1) + columns[:count]
    assert np.all(np.diff(place) > 0), "sorted, no place twice"
    np.testing.assert_array_equal(
        matrix.pointers, np.searchsorted(rows[:count], np.arange(matrix.shape[0] + 1))
    )
    assert np.all(np.asarray(matrix.values)[count:] == 0)
    assert np.all(columns[count:] == 0)
    assert np.all(rows[count:] == max(matrix.shape[0] - 1, 0))


@pytest.mark.always(3)
@pytest.mark.parametrize("shape", [(9, 7), (1, 5), (0, 3), (3, 0)])
def test_constructors_agree_with_scipy_and_round_trip(shape):
    dense = RNG.normal(size=shape) * (RNG.random(shape) < 0.4)
    if shape == (9, 7):
        dense = _ragged()
    reference = sp.csr_array(dense)
    padded = CSR.from_dense(dense, nnz=reference.nnz + 3)
    triple = reference.data, reference.indices, reference.indptr
    for matrix in (
        CSR.from_dense(dense),
        CSR.from_scipy(reference),
        CSR.from_arrays(*triple, shape),
        padded,
    ):
        _check_structure(matrix)
        _check_structure(matrix.T)
        np.testing.assert_array_equal(matrix.todense(), dense)
        np.testing.assert_array_equal(matrix.T.todense(), dense.T)
        np.testing.assert_array_equal(matrix.T.T.columns, matrix.columns)
        np.testing.assert_array_equal(matrix.T.T.todense(), dense)
        np.testing.assert_array_equal(matrix.to_scipy().toarray(), dense)
        assert matrix.to_scipy().nnz == reference.nnz
    assert padded.nnz == reference.nnz + 3


def test_the_transpose_sorts_where_the_order_is_unknown():
    dense = _ragged()
    matrix = CSR.from_dense(dense, nnz=40)
    blind = CSR(matrix.values, matrix.columns, matrix.rows, matrix.pointers, None, matrix.shape)
    found = blind.T
    _check_structure(found)
    np.testing.assert_array_equal(found.order, matrix.T.order)
    np.testing.assert_array_equal(found.todense(), dense.T)


def test_duplicates_are_summed_and_stored_zeros_kept():
    values, rows, columns = [1.0, 2.0, 4.0, 0.0], [2, 0, 2, 1], [1, 0, 1, 2]
    matrix = CSR.from_coo(values, rows, columns, (3, 3))
    reference = sp.coo_array((values, (rows, columns)), shape=(3, 3)).toarray()
    assert matrix.nnz == 3
    np.testing.assert_array_equal(matrix.todense(), reference)
    gradient = jax.grad(
        lambda v: CSR.from_coo(v, rows, columns, (3, 3)).values @ jnp.arange(1.0, 4)
    )
    np.testing.assert_array_equal(gradient(jnp.array(values)), [3, 1, 3, 2])


def test_products_and_derivatives_equal_dense_ones():
    dense, weights = _ragged(), RNG.normal(size=(9, 4))
    matrix, x = CSR.from_dense(dense, nnz=30), jnp.asarray(RNG.normal(size=(7, 4)))

    def both(values, dense, x):
        sparse = matrix.with_values(values)
        score = lambda a, x: (
            jnp.sum(jnp.sin(a @ x) * weights) + jnp.sum(jnp.cos(weights.T @ a) ** 2)
        )
        ours = jax.grad(lambda v, x: score(matrix.with_values(v), x), (0, 1))
        theirs = jax.grad(score, (0, 1))
        pushed = jax.jvp(lambda v: ours(v, x)[1], (values,), (jnp.sin(values),))[1]
        smooth = sparse.with_values(jnp.sin(values)).todense()
        exact = jax.jvp(lambda a: theirs(a, x)[1], (dense,), (smooth,))[1]
        vector = sparse @ x[:, 0], dense @ x[:, 0], weights[:, 0] @ sparse, weights[:, 0] @ dense
        return ours(values, x), theirs(dense, x), pushed, exact, vector

    ours, theirs, pushed, exact, vector = jax.jit(both)(matrix.values, jnp.asarray(dense), x)
    used = np.asarray(theirs[0])[matrix.rows, matrix.columns]
    count = int(matrix.count)
    np.testing.assert_allclose(ours[0][:count], used[:count], atol=1e-12)
    assert not np.any(ours[0][count:])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-12)
    np.testing.assert_allclose(pushed, exact, atol=1e-12)
    np.testing.assert_allclose(vector[0], vector[1], atol=1e-12)
    np.testing.assert_allclose(vector[2], vector[3], atol=1e-12)
    batch = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(jax.vmap(lambda b: matrix @ b)(batch), dense @ batch, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_are_kept_and_halves_accumulated_in_single_precision(dtype):
    ones = CSR.from_dense(np.ones((1, 1000), np.float32)).with_values(jnp.ones(1000, dtype))
    found = ones @ jnp.ones(1000, dtype)
    assert found.dtype == dtype
    assert float(found[0]) == float(jnp.asarray(1000, dtype))


def test_nothing_dense_is_made():
    matrix = CSR.from_scipy(sp.eye_array(700))
    gradient = jax.grad(lambda v, x: jnp.sum((matrix.with_values(v) @ x) ** 2), (0, 1))
    jaxpr = jax.make_jaxpr(gradient)(matrix.values, jnp.ones((700, 2)))
    assert max(v.aval.size for e in jaxpr.jaxpr.eqns for v in e.outvars) < 700 * 10


@pytest.mark.slow
def test_blocks_of_a_csr_send_derivatives_to_its_entries():
    dense = _ragged(11, 8)
    matrix = CSR.from_dense(dense, nnz=60)
    blocks = BCSR.from_csr(matrix, (4, 3))
    np.testing.assert_array_equal(blocks.todense(), dense)
    assert blocks.values.shape == BCSR.from_dense(dense, (4, 3)).values.shape
    weights = RNG.normal(size=(11, 8))
    score = lambda v: jnp.vdot(BCSR.from_csr(matrix.with_values(v), (4, 3)).todense(), weights)
    count = int(matrix.count)
    wanted = np.where(np.arange(60) < count, weights[matrix.rows, matrix.columns], 0)
    np.testing.assert_allclose(jax.grad(score)(matrix.values), wanted)


def test_bad_input_is_named():
    ok = [1.0, 2.0]
    cases = [
        (lambda: CSR.from_coo(ok, [0, 3], [0, 0], (3, 3)), r"entry 1 at \(3, 0\) lies outside"),
        (lambda: CSR.from_coo(ok, [0, 1], [0, -1], (3, 3)), r"entry 1 at \(1, -1\) lies outside"),
        (lambda: CSR.from_coo(ok, [0], [0, 1], (3, 3)), "do not fit"),
        (lambda: CSR.from_coo(ok, [0, 1], [0, 1], (3, -3)), "bad shape"),
        (lambda: CSR.from_coo(ok, [0, 1], [0, 1], (3, 3), nnz=1), "nnz=1 is too small"),
        (lambda: CSR.from_arrays(ok, [1, 0], [0, 2], (1, 2)), "not sorted: 1 before 0"),
        (lambda: CSR.from_arrays(ok, [1, 1], [0, 2], (1, 2)), "not sorted: 1 before 1"),
        (lambda: CSR.from_arrays(ok, [0, 1], [0, 1], (1, 2)), "0 to 2, got 0 to 1"),
        (lambda: CSR.from_arrays(ok, [0, 1], [0, 3, 2], (2, 2)), "fall after row 1"),
        (lambda: CSR.from_arrays(ok, [0, 1], [0, 2], (2, 2)), r"shape \(3,\)"),
        (lambda: CSR.from_dense(np.ones(3)), "expected a matrix"),
        (lambda: CSR.from_dense(np.eye(3)) @ jnp.ones(4), r"\(3, 3\) times \(4,\)"),
        (lambda: BCSR.from_csr(CSR.from_dense(np.eye(3)), (0, 2)), "bad block"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="int64"):
        CSR.from_coo(np.array([1, 2]), [0, 1], [0, 1], (3, 3))
    with pytest.raises(TypeError, match="rows must be integers"):
        CSR.from_coo(ok, [0.5, 1], [0, 1], (3, 3))
    with pytest.raises(TypeError):
        CSR.from_dense(np.eye(3)) @ "x"
