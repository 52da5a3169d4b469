"""Projections in a weighted norm against a general solver."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from jaxopt_ext import prox
from jaxopt_ext.optimizers.weighted_projection import project_updates, weighted_projection


def tolerance(dtype):
    return 2e-5 if dtype == jnp.float32 else 1e-6


@pytest.mark.always(2)
@pytest.mark.parametrize("seed", range(4))
def test_ball_solves_the_weighted_problem(dtype, seed):
    rng = np.random.default_rng(seed)
    y, d = 3 * rng.normal(size=5), np.exp(2 * rng.normal(size=5))
    tree = lambda v: {"a": jnp.asarray(v[:2], dtype), "b": jnp.asarray(v[2:], dtype)}
    radius = [0.3, 1.5, 2.0, 0.7][seed]
    found = weighted_projection(prox.L2Ball(radius))(tree(y), tree(d))
    found = np.concatenate([found["a"], found["b"]])
    wanted = minimize(
        lambda x: d @ (x - y) ** 2,
        np.zeros(5),
        jac=lambda x: 2 * d * (x - y),
        constraints={"type": "ineq", "fun": lambda x: radius**2 - x @ x, "jac": lambda x: -2 * x},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    ).x
    np.testing.assert_allclose(found, wanted, atol=tolerance(dtype))
    assert np.linalg.norm(found - radius * y / np.linalg.norm(y)) > 0.05  # not the Euclidean one


@pytest.mark.slow
def test_inside_the_ball_nothing_moves(dtype):
    y = jnp.array([0.3, -0.4], dtype)
    found = weighted_projection(prox.L2Ball(1.0))(y, jnp.array([1.0, 0.0], dtype))
    np.testing.assert_array_equal(found, y)


def test_boxes_are_clipped():
    y, d = jnp.array([-3.0, 0.5, 2.0]), jnp.array([1.0, 10.0, 0.1])
    np.testing.assert_array_equal(weighted_projection(prox.Box(-1, 1))(y, d), [-1, 0.5, 1])
    np.testing.assert_array_equal(weighted_projection(prox.NonNegative())(y, d), [0, 0.5, 2])


def test_other_sets_raise():
    with pytest.raises(TypeError, match="Simplex"):
        weighted_projection(prox.Simplex())


def test_updates_end_in_the_set_and_need_params():
    ball = weighted_projection(prox.L2Ball(1.0))
    tx = project_updates(optax.sgd(1.0), ball, lambda state: jnp.array([1.0, 9.0]), "sgd")
    x = jnp.zeros(2)
    updates, _ = tx.update(jnp.array([-3.0, -3.0]), tx.init(x), x)
    np.testing.assert_allclose(updates, ball(jnp.full(2, 3.0), jnp.array([1.0, 9.0])))
    np.testing.assert_allclose(jnp.linalg.norm(updates), 1, atol=1e-6)
    with pytest.raises(ValueError, match="sgd with a projection needs params"):
        tx.update(x, tx.init(x))
