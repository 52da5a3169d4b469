"""States of textbook methods that go on with another problem."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from jaxopt_ext.minimize import textbook


def test_a_ball_of_another_problem_is_not_used():
    """The minimum moves, farther than the old ball reaches."""
    scales = jnp.array([1.0, 10.0])
    problem = lambda c: jxt.Smooth(lambda x: 0.5 * jnp.sum(scales * (x - c) ** 2))
    solver = textbook.GeometricDescent(strong_convexity=1.0, tol=1e-8, max_steps=300)
    run = jax.jit(lambda c, x, state: jxt.solve(problem(c), solver, x, state=state))
    first = jax.jit(lambda: jxt.solve(problem(jnp.zeros(2)), solver, jnp.ones(2)))()
    moved = run(jnp.array([5.0, -3.0]), first.value, first.state)
    assert moved.status == jxt.Status.converged
    np.testing.assert_allclose(moved.value, [5.0, -3.0], atol=1e-7)
    assert moved.steps <= 100


def test_the_best_value_of_another_problem_is_not_kept():
    """The new problem's values are all above the old one's best."""
    problem = lambda c: jxt.Smooth(lambda x: 100 * c**2 + jnp.sum((x - c) ** 2))
    solver = textbook.SimulatedAnnealing(2.0, tol=1e-2, max_steps=200)
    first = jax.jit(lambda: jxt.solve(problem(jnp.array(0.0)), solver, jnp.ones(3)))()
    state = solver.refresh(problem(jnp.array(0.5)), first.value, first.state)
    wanted = 25 + np.sum((np.asarray(first.value) - 0.5) ** 2)
    np.testing.assert_allclose(state.best, wanted, rtol=1e-6)
