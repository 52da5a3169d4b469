"""Newton's method on a residual: a solver for problems of any type, to test those with."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import jaxopt_ext as jxt
from jaxopt_ext.core import AbstractSolver, Scalar, scalar_field, tree


class Newton(AbstractSolver):
    """$x \\leftarrow x - J(x)^+ r(x)$, from a start that is near enough."""

    linear_solver: Any = eqx.field(default_factory=jxt.LeastSquaresFallback)
    tol: Scalar = scalar_field(1e-10)
    max_steps: int = 100
    problems = (jxt.AbstractProblem,)

    def init(self, problem, x, key):
        return jnp.asarray(jnp.inf, tree.real_dtype(x))

    def step(self, problem, x, state):
        residual, product = jax.linearize(problem.residual, x)
        move, _ = self.linear_solver.solve(product, tree.cast_like(residual, x))
        x = jax.tree.map(jnp.subtract, x, move)
        return x, tree.norm(problem.residual(x))

    def error(self, problem, x, state):
        return state
