"""Models of smooth functions against derivatives of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jaxopt_ext import objectives
from jaxopt_ext.minimize import coordinate_model as models
from jaxopt_ext_kernels import CSR

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(9, 5)) * (RNG.random((9, 5)) < 0.7), RNG.normal(size=9)
H = X.T @ X + np.eye(5)
CASES = {
    "linear": objectives.SquaredLoss(X, Y),
    "logistic": objectives.LogisticLoss(X, Y > 0),
    "quadratic": models.Quadratic(H, RNG.normal(size=5)),
    "general": lambda w: jnp.sum(jnp.cosh(w) + jnp.sin(w[0] * w)),
    "sparse": objectives.SquaredLoss(CSR.from_scipy(scipy.sparse.csr_matrix(X)), Y),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_parts_of_the_whole(name):
    fun, w = CASES[name], jnp.asarray(RNG.normal(size=5))
    model = models.coordinate_model(fun)
    z = model.predictions(w)
    indices, move = jnp.array([3, 1, 5]), jnp.array([0.3, -0.2, 7.0])  # the last is padding
    block = model.block(indices)
    moved = w.at[indices[:2]].add(move[:2])
    slope = jax.grad(fun)(w)
    np.testing.assert_allclose(model.gradient(w, z), slope, atol=1e-12)
    np.testing.assert_allclose(model.partial(w, z, 2), slope[2], atol=1e-12)
    np.testing.assert_allclose(block.partial(w, z)[:2], slope[indices[:2]], atol=1e-12)
    np.testing.assert_allclose(model.value(w, z), fun(w), atol=1e-12)
    np.testing.assert_allclose(block.value(w, z, move), fun(moved), atol=1e-12)
    np.testing.assert_allclose(block.move(z, move), model.predictions(moved), atol=1e-12)
    one = model.move(z, jnp.array(2), jnp.array(0.5))
    np.testing.assert_allclose(one, model.predictions(w.at[2].add(0.5)), atol=1e-12)


def test_shapes_that_do_not_fit_raise():
    with pytest.raises(ValueError, match=r"\(5, 5\) and \(4,\)"):
        models.Quadratic(H, np.ones(4))
