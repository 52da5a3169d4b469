"""Solvers of other libraries, as solvers of this one.

`solve` calls `as_solver` by itself: pass the `optax` or `optimistix` object as it is, or wrap it
here to set a tolerance and a step limit.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from .core import (
    AbstractProblem,
    AbstractSolver,
    FixedPoint,
    LeastSquares,
    RootFinding,
    Scalar,
    Smooth,
    scalar_field,
    tree,
)


def as_solver(solver: Any) -> AbstractSolver:
    """Wrap an `optax` transformation or an `optimistix` solver.

    **Raises:** `TypeError` for anything else.
    """
    if isinstance(solver, AbstractSolver):
        return solver
    if isinstance(solver, optax.GradientTransformation):
        return Optax(solver)
    if isinstance(solver, optx.AbstractIterativeSolver):
        return Optimistix(solver)
    raise TypeError(f"expected a solver, an optax transformation or an optimistix solver: {solver}")


class _OptaxState(eqx.Module):
    value: Float[Array, ""]
    gradient: PyTree[Array]
    inner: Any
    error: Float[Array, ""]


class Optax(AbstractSolver):
    """Descent along the updates of an `optax` gradient transformation.

    `value`, `grad` and `value_fn` are passed to `update`, so line searches and `optax.lbfgs` work.
    The error is the norm of the gradient, which is the problem's residual, at the value; that
    gradient is the one of the next step.

    **Arguments:**

    - `transformation`: any `optax.GradientTransformation`.
    - `tol`, `max_steps`: see `AbstractSolver`.
    """

    transformation: optax.GradientTransformation
    tol: Scalar = scalar_field(1e-5)
    max_steps: int = 5000
    problems = (Smooth, LeastSquares)

    def init(self, problem, x, key):
        value, gradient = tree.value_and_gradient(_objective(problem), x)
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _OptaxState(value, gradient, self.transformation.init(x), infinity)

    def refresh(self, problem, x, state):
        value, gradient = tree.value_and_gradient(_objective(problem), x)
        return _OptaxState(value, gradient, state.inner, state.error)

    def step(self, problem, x, state):
        fun = _objective(problem)
        transformation = optax.with_extra_args_support(self.transformation)
        updates, inner = transformation.update(
            state.gradient, state.inner, x, value=state.value, grad=state.gradient, value_fn=fun
        )
        x = optax.apply_updates(x, updates)
        value, gradient = tree.value_and_gradient(fun, x)
        return x, _OptaxState(value, gradient, inner, tree.norm(gradient))

    def error(self, problem, x, state):
        return state.error


def _objective(problem):
    return problem.fun if isinstance(problem, Smooth) else problem.objective


class Optimistix(AbstractSolver):
    """An `optimistix` minimiser, least-squares solver, root finder or fixed-point solver.

    One step here is a whole run there, to the tolerances and with the termination rule of the
    `optimistix` solver, which look at steps and values. The error is the norm of the problem's
    residual at the value, and the solve has converged only if that is at most `tol`: a run that
    ended well by its own rule may still be none, a root finder stuck where there is no root say.

    **Arguments:**

    - `solver`: any `optimistix` solver; the problem must be of the kind it takes.
    - `inner_steps`: step limit of the run.
    - `tol`: see `AbstractSolver`; what the residual must come down to, so choose the tolerances
      of `solver` to fit.
    - `max_steps`: how often to run, each time from the last value.

    **Raises:** `TypeError` if the solver cannot take the problem.
    """

    solver: optx.AbstractIterativeSolver
    inner_steps: int = 1000
    tol: Scalar = scalar_field(1e-5)
    max_steps: int = 1
    problems = (Smooth, LeastSquares, RootFinding, FixedPoint)

    def init(self, problem, x, key):
        return jnp.asarray(jnp.inf, tree.real_dtype(x))

    def step(self, problem, x, state):
        run, fun = _entry(problem, self.solver)
        # Our own adjoint differentiates the problem; theirs must not be in the way.
        solution = run(lambda y, _: fun(y), self.solver, x, max_steps=self.inner_steps, throw=False)
        return solution.value, tree.norm(problem.residual(solution.value))

    def error(self, problem, x, state):
        return state


def _entry(problem: AbstractProblem, solver: Any) -> tuple[Any, Any]:
    """The `optimistix` function for a problem, and what it is called with."""
    if isinstance(problem, LeastSquares):
        if isinstance(solver, optx.AbstractLeastSquaresSolver):
            return optx.least_squares, problem.residuals
        return optx.minimise, problem.objective
    if isinstance(problem, Smooth):
        run, fun, kinds = optx.minimise, problem.fun, _MINIMISERS
    elif isinstance(problem, RootFinding):
        run, fun, kinds = optx.root_find, problem.fun, _ROOT_FINDERS
    elif isinstance(problem, FixedPoint):
        run, fun, kinds = optx.fixed_point, problem.fun, _FIXED_POINT_SOLVERS
    else:
        raise TypeError(f"optimistix has no solver for a {type(problem).__name__}")
    if not isinstance(solver, kinds):
        raise TypeError(f"{type(solver).__name__} cannot solve a {type(problem).__name__}")
    return run, fun


_MINIMISERS = (optx.AbstractMinimiser,)
_ROOT_FINDERS = (optx.AbstractRootFinder, optx.AbstractLeastSquaresSolver, *_MINIMISERS)
_FIXED_POINT_SOLVERS = (optx.AbstractFixedPointSolver, *_ROOT_FINDERS)
