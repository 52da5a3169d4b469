"""The augmented Lagrangian in single precision; its values are checked beside sketched steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt
from jaxopt_ext.minimize import AugmentedLagrangian


@pytest.mark.slow
def test_rounding_does_not_raise_the_penalty():
    """With a tolerance that single precision cannot reach: the answer stays as good as it gets."""
    rng = np.random.default_rng(0)
    root, A, x = rng.normal(size=(5, 5)), rng.normal(size=(2, 5)), 10 * rng.normal(size=5)
    H, q = root @ root.T / 5 + np.eye(5), rng.normal(size=5)
    exact = np.linalg.solve(np.block([[H, A.T], [A, np.zeros((2, 2))]]), np.append(-q, A @ x))
    H, q, A, b = (jnp.asarray(a, jnp.float32) for a in (H, q, A, A @ x))
    problem = jxt.EqualityConstrained(lambda x: 0.5 * x @ H @ x + q @ x, lambda x: A @ x - b)
    solver = AugmentedLagrangian(tol=1e-9, max_steps=60)
    solution = jax.jit(lambda: jxt.solve(problem, solver, jnp.zeros(5, jnp.float32)))()
    assert solution.status == jxt.Status.step_limit
    assert solution.state.penalty < 1e5
    assert solution.residual < 1e-3
    np.testing.assert_allclose(solution.value.primal, exact[:5], atol=1e-4)
    np.testing.assert_allclose(solution.value.dual, exact[5:], rtol=1e-3, atol=1e-3)
