"""Gradient descent with a line search."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ..core import AbstractSolver, Scalar, Smooth, scalar_field, tree
from .line_search import wolfe_line_search


class _State(eqx.Module):
    value: Float[Array, ""]
    gradient: PyTree[Array]
    search: Any
    error: Float[Array, ""]


class GradientDescent(AbstractSolver):
    """Steepest descent $x \\leftarrow x - t \\nabla f(x)$ with $t$ from a line search.

    The error is the gradient's norm at the value; that gradient is the one of the next step. With
    exact arithmetic every accumulation point is stationary. For better directions pass
    `optax.lbfgs()` or an `optimistix` solver to `solve`.

    **Arguments:**

    - `line_search`: `wolfe_line_search(curvature=0.99)` or a line search of `optax`, zoom (strong
      Wolfe) or backtracking (Armijo), which do not trace in `shard_map` with its check on;
      `optax.scale(t)` keeps $t$ fixed.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Nocedal, Wright, Numerical Optimization, 2006, chapter 3.
    """

    line_search: optax.GradientTransformation = eqx.field(
        default_factory=lambda: wolfe_line_search(curvature=0.99)
    )
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Smooth,)

    def __check_init__(self):
        if not (hasattr(self.line_search, "init") and hasattr(self.line_search, "update")):
            raise TypeError(
                f"line_search must be an optax transformation, got {self.line_search!r}"
            )

    def init(self, problem, x, key):
        value, gradient = tree.value_and_gradient(problem.fun, x)
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _State(value, gradient, self.line_search.init(x), infinity)

    def refresh(self, problem, x, state):
        value, gradient = tree.value_and_gradient(problem.fun, x)
        return _State(value, gradient, state.search, state.error)

    def step(self, problem, x, state):
        direction = optax.tree.scale(-1, state.gradient)
        search = optax.with_extra_args_support(self.line_search)
        updates, inner = search.update(
            direction,
            state.search,
            x,
            value=state.value,
            grad=state.gradient,
            value_fn=problem.fun,
        )
        x = optax.apply_updates(x, updates)
        value, gradient = tree.value_and_gradient(problem.fun, x)
        return x, _State(value, gradient, inner, tree.norm(gradient))

    def error(self, problem, x, state):
        return state.error
