"""Polynomials of small matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aot import topology

from jaxopt_ext.linalg import Pade, sqrtm
from jaxopt_ext_kernels import matrix_polynomials


def test_both_bodies_differentiate_alike_under_vmap():
    rng = np.random.default_rng(0)
    X, c = jnp.asarray(rng.normal(size=(2, 3, 5, 5)) / 5), jnp.asarray(rng.normal(size=(2, 4)))
    G = jnp.asarray(rng.normal(size=(2, 3, 5, 5)))

    def gradient(implementation):
        score = lambda X, c: jnp.vdot(G, matrix_polynomials(X, c, implementation=implementation))
        return jax.jit(jax.vmap(jax.grad(score, (0, 1)), (0, None)))(X, c)

    for a, b in zip(gradient("pallas"), gradient("xla"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_a_root_by_the_fused_body():
    rng = np.random.default_rng(1)
    vectors = np.linalg.qr(rng.normal(size=(2, 6, 6)))[0]
    spectrum = np.geomspace(0.3, 1, 6)
    A = jnp.asarray((vectors * spectrum) @ np.swapaxes(vectors, 1, 2))
    wanted = (vectors * spectrum**0.5) @ np.swapaxes(vectors, 1, 2)
    found = jax.jit(lambda A: sqrtm(A, Pade(7, "pallas")))(A)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found, sqrtm(A, Pade(7)), atol=1e-12)


@pytest.mark.slow
def test_the_largest_matrix_fits_the_fast_memory_of_a_tpu():
    """And XLA's own body moves every power between memory and chip, the fused one none."""
    chip = jax.sharding.SingleDeviceSharding(topology("v5e:2x2").devices[0])
    sizes = ((64, 256, 256), (2, 6))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=chip) for s in sizes]
    temporary = {}
    with jax.enable_x64(False):
        for body in ("pallas", "xla"):
            call = jax.jit(lambda X, c, body=body: matrix_polynomials(X, c, implementation=body))
            compiled = call.trace(*shapes).lower().compile()
            assert ("tpu_custom_call" in compiled.as_text()) == (body == "pallas")
            temporary[body] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary["pallas"] < temporary["xla"]


def test_bad_input_is_named():
    X, c = jnp.ones((3, 3)), jnp.ones((1, 2))
    cases = [
        (lambda: matrix_polynomials(X[:2], c), ValueError, r"\(2, 3\)"),
        (lambda: matrix_polynomials(X, c[0]), ValueError, r"\(2,\)"),
        (lambda: matrix_polynomials(X, c[:, :0]), ValueError, r"\(1, 0\)"),
        (lambda: matrix_polynomials(X.astype(int), c), TypeError, "int"),
        (lambda: matrix_polynomials(X, c, implementation="cuda"), ValueError, "'cuda'"),
        (
            lambda: matrix_polynomials(jnp.ones((257, 257)), c, implementation="pallas"),
            ValueError,
            "256 at most, got 257",
        ),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
