"""Several objectives as a problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_ext as jxt

CENTERS = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])


def _pull(centers):
    return jxt.MultiObjective(lambda x: 0.5 * jnp.sum((x - centers) ** 2, axis=1))


def test_the_residual_is_the_distance_to_the_hull_of_the_minimizers():
    """Of distances to three points: the Pareto set is their triangle, and the residual leads to
    the nearest point of it."""
    problem = _pull(jnp.asarray(CENTERS))
    points = jnp.asarray([[0.5, 0.5], [3.0, -1.0], [2.0, 2.0], [-1.0, 1.0], [0.0, 2.0]])
    nearest = np.array([[0.5, 0.5], [2.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    found = jax.vmap(problem.residual)(points)
    np.testing.assert_allclose(found, points - nearest, atol=1e-9)


def test_the_derivative_is_that_at_fixed_weights():
    """Halfway between two centers the point follows each of them by a half."""

    def solve(centers):
        solver = jxt.multiobjective.JacobianDescent(jxt.multiobjective.Mean(), 0.5, tol=1e-9)
        return jxt.solve(_pull(centers), solver, jnp.asarray([1.0, -3.0])).value

    x, push = jax.linearize(solve, jnp.asarray(CENTERS[:2]))
    np.testing.assert_allclose(x, [1.0, 0.0], atol=1e-8)
    move = jnp.asarray([[1.0, 0.0], [-3.0, 4.0]])
    np.testing.assert_allclose(push(move), np.mean(move, axis=0), atol=1e-6)


def test_points_may_be_networks_and_complex():
    def fits(x):
        z = x["z"] - (1 + 2j)
        return jnp.stack([x["flag"] * jnp.real(z * jnp.conj(z)), jnp.sum(x["w"] ** 2)])

    start = {"z": jnp.zeros((), complex), "w": jnp.ones(2), "flag": 1}
    value = jxt.solve(jxt.MultiObjective(fits), jxt.multiobjective.JacobianDescent(), start).value
    np.testing.assert_allclose(value["z"], 1 + 2j, atol=1e-4)


def test_what_is_no_vector_of_objectives_is_refused():
    solver = jxt.multiobjective.JacobianDescent()
    with pytest.raises(TypeError, match="objectives must be a function"):
        jxt.MultiObjective(3.0)
    for fun, message in (
        (jnp.sum, r"shape \(m,\)"),
        (lambda x: jnp.zeros(0), "m >= 1"),
        (lambda x: (x[0], x[1]), r"shape \(m,\)"),
        (lambda x: x + 1j, "real"),
        (lambda x: jnp.asarray([1, 2]), "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            jxt.solve(jxt.MultiObjective(fun), solver, jnp.ones(2))
