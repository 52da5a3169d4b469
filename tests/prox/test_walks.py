"""The two proxes that walk along a vector, against oracles and for what a step costs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from aot import usual_program
from sklearn.isotonic import isotonic_regression

from jaxopt_ext import prox

N, CASES = 12, 150
RNG = np.random.default_rng(0)
ROUGH = RNG.normal(size=(CASES // 3, N))
TIED = RNG.integers(-2, 3, size=(CASES // 3, N)).astype(float)
TREND = RNG.normal(size=(CASES // 3, N)) + np.outer(RNG.normal(size=CASES // 3), np.arange(N))
VECTORS = np.concatenate([ROUGH, TIED, TREND])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_total_variation_equals_its_dual_program(dtype):
    weights = np.tile([0.05, 0.3, 0.5, 1.0, 4.0], CASES // 5)
    walk = jax.jit(jax.vmap(lambda x, w: prox.TotalVariation1D(w).prox(x)))
    found = walk(jnp.asarray(VECTORS, dtype), jnp.asarray(weights, dtype))
    D, atol = np.diff(np.eye(N), axis=0), 1e-10 if dtype == jnp.float64 else 3e-6
    for x, weight, mine in zip(VECTORS, weights, np.asarray(found), strict=True):
        dual = scipy.optimize.lsq_linear(D.T, x, (-weight, weight), method="bvls", tol=1e-14).x
        np.testing.assert_allclose(mine, x - D.T @ dual, atol=atol)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_isotonic_equals_scikit_learn(dtype):
    found = jax.jit(jax.vmap(prox.Isotonic().project))(jnp.asarray(VECTORS, dtype))
    wanted = [isotonic_regression(x) for x in VECTORS]
    np.testing.assert_allclose(found, wanted, atol=1e-12 if dtype == jnp.float64 else 1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_short_vectors(n):
    x = jnp.arange(n, 0.0, -1.0)
    both = jax.jit(lambda x: (prox.Isotonic().project(x), prox.TotalVariation1D(100.0).prox(x)))
    for found in both(x):
        np.testing.assert_allclose(found, np.full(n, (n + 1) / 2))


@pytest.mark.parametrize(
    "walk", [prox.Isotonic().project, lambda x: prox.TotalVariation1D(1.0).prox(x)]
)
def test_no_step_copies_a_vector(walk):
    """Or the time would grow with the square of the length."""
    n = 1234  # and arrays one longer
    text = usual_program(walk, jnp.zeros(n)).as_text()
    bodies = [block for block in text.split("\n\n") if re.search(r"^%?\S*(body|region)", block)]
    assert bodies
    assert not [body for body in bodies if re.search(rf"\[({n}|{n + 1})\]\S* copy\(", body)]
