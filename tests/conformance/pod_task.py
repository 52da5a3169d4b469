"""A fit on rows that are spread, shared by the tests and by the processes they start."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import FISTA


def lasso(lam, X, y, solver):
    problem = jxt.Composite(jxt.objectives.SquaredLoss(X, y), prox.L1(lam))
    return jxt.solve(problem, solver, jnp.zeros(X.shape[1], X.dtype)).value


def fitted(place):
    """A lasso and its derivatives, on rows that `place` puts somewhere."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6)), rng.normal(size=40)
    solver = FISTA(tol=1e-11, max_steps=20_000)

    def score(lam, X, y):
        value = lasso(lam, X, y, solver)
        return jnp.sum(jnp.sin(value)), value

    run = jax.jit(jax.grad(score, argnums=(0, 1), has_aux=True))
    (by_penalty, by_data), value = run(jnp.asarray(0.05), place(X), place(y))
    return {"value": value, "penalty": by_penalty, "data": by_data}
