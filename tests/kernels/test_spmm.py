"""The block-sparse format and its product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from jaxopt_ext_kernels import BCSR, bcsr_matmul

RNG = np.random.default_rng(0)


def test_constructors_agree_and_round_trip():
    dense = RNG.normal(size=(11, 7)) * (RNG.random((11, 7)) < 0.2)
    dense[4:8] = 0
    a, b = BCSR.from_dense(dense, (4, 3)), BCSR.from_scipy(sp.csr_array(dense), (4, 3))
    np.testing.assert_array_equal(a.todense(), dense)
    np.testing.assert_array_equal(b.todense(), dense)
    np.testing.assert_array_equal(a.T.todense(), dense.T)
    np.testing.assert_array_equal(a.T.T.todense(), dense)
    assert np.all(np.diff(a.pointers) >= 1), "every block row has a block"
    assert np.all(np.diff(a.T.pointers) >= 1)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_vmap_and_jit(implementation):
    matrix = BCSR.from_dense(RNG.normal(size=(6, 8)) * (RNG.random((6, 8)) < 0.4), (2, 4))
    batch = jnp.asarray(RNG.normal(size=(3, 8, 5)))
    product = jax.jit(jax.vmap(lambda b: bcsr_matmul(matrix, b, implementation=implementation)))
    np.testing.assert_allclose(product(batch), matrix.todense() @ batch, atol=1e-12)


def test_nothing_dense_is_made():
    n = 640
    matrix = BCSR.from_scipy(sp.eye_array(n), (8, 8))
    jaxpr = jax.make_jaxpr(
        jax.grad(lambda b: jnp.sum(bcsr_matmul(matrix, b, implementation="xla") ** 2))
    )(jnp.ones((n, 2)))
    sizes = [v.aval.size for e in jaxpr.jaxpr.eqns for v in e.outvars]
    assert max(sizes) < n * n / 8


def test_forward_and_second_derivatives_of_the_plain_body():
    matrix = BCSR.from_dense(RNG.normal(size=(4, 4)), (2, 2))
    fun = lambda b: jnp.sum(jnp.sin(bcsr_matmul(matrix, b, implementation="xla")))
    exact = lambda b: jnp.sum(jnp.sin(matrix.todense() @ b))
    point = jnp.asarray(RNG.normal(size=(4, 1)))
    np.testing.assert_allclose(jax.hessian(fun)(point), jax.hessian(exact)(point), atol=1e-10)


def test_bad_input_is_named():
    matrix = BCSR.from_dense(np.eye(4), (2, 2))
    ones = np.ones((1, 2, 2))
    cases = [
        (lambda: bcsr_matmul(matrix, jnp.ones((3, 2))), r"\(4, 4\) times \(3, 2\)"),
        (lambda: bcsr_matmul(matrix, jnp.ones(4)), "do not fit"),
        (lambda: bcsr_matmul(matrix, jnp.ones((4, 2)), implementation="cuda"), "'cuda'"),
        (lambda: BCSR.from_dense(np.ones(3), (2, 2)), "expected a matrix"),
        (lambda: BCSR.from_blocks(ones, [0, 1], [0], (4, 4)), "do not fit"),
        (lambda: BCSR.from_blocks(ones, [2], [0], (4, 4)), "outside"),
        (lambda: BCSR.from_blocks(np.ones((2, 2, 2)), [0, 0], [1, 1], (4, 4)), "share a place"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="floating-point"):
        BCSR.from_blocks(ones.astype(int), [0], [0], (4, 4))
