"""Solvers of other libraries, as solvers of this one.

`solve` calls `as_solver` by itself: pass the `optax` or `optimistix` object as it is, or wrap it
here to set a tolerance and a step limit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from . import checks, tree
from .problem import AbstractProblem, FixedPoint, LeastSquares, RootFinding, Smooth
from .solver import AbstractSolver, Scalar, scalar_field


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

    **Reference:** DeepMind et al., The DeepMind JAX Ecosystem, 2020.
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


def _to_arrays(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Numbers as leaves, so that a new bracket does not retrace; strings and flags as they are."""
    number = lambda v: jnp.asarray(v) if isinstance(v, np.ndarray) else checks.scalar(v)
    return jax.tree.map(lambda v: v if isinstance(v, bool) else number(v), dict(options or {}))


class Optimistix(AbstractSolver):
    """An `optimistix` minimiser, least-squares solver, root finder or fixed-point solver.

    One step here is a whole run there, to the tolerances and with the termination rule of the
    `optimistix` solver, which look at steps and values. The error is the norm of the problem's
    residual at the value, and the solve has converged only if that is at most `tol`: a run that
    ended well by its own rule may still be none, a root finder stuck where there is no root say.

    `optimistix.Bisection` and `GoldenSearch` need a bracket, which is an option:
    `Optimistix(optimistix.Bisection(1e-6, 1e-6), options={"lower": 0.0, "upper": 1.0})`. The
    starting point of a bisection is moved into its bracket. Without a change of sign in there, the
    bisection ends on one of its ends, which is not converged; no error is raised. Derivatives do
    not reach the options.

    **Arguments:**

    - `solver`: any `optimistix` solver; the problem must be of the kind it takes.
    - `inner_steps`: step limit of the run.
    - `tol`: see `AbstractSolver`; what the residual must come down to, so choose the tolerances
      of `solver` to fit.
    - `max_steps`: how often to run, each time from the last value.
    - `options`: what the solver takes in `options` there, by name: a bracket, bounds of the
      variables for `Newton`, `jac="bwd"`. Numbers and arrays may change without a retrace.
    - `tags`: `lineax` tags of the Jacobian, as `optimistix` takes them.

    **Raises:** `TypeError` if the solver cannot take the problem; `ValueError` if a bracket is
    missing, its ends cross, or it is given for more than one unknown.

    **Reference:** Rader, Lyons, Kidger, Optimistix: Modular Optimisation in JAX and Equinox, 2024,
    arXiv:2402.09983.
    """

    solver: optx.AbstractIterativeSolver
    inner_steps: int = 1000
    tol: Scalar = scalar_field(1e-5)
    max_steps: int = 1
    options: dict[str, Any] = eqx.field(converter=_to_arrays, default=None)
    tags: frozenset[object] = eqx.field(static=True, converter=frozenset, default=frozenset())
    problems = (Smooth, LeastSquares, RootFinding, FixedPoint)

    def __check_init__(self):
        checks.count("inner_steps", self.inner_steps)
        name = type(self.solver).__name__
        lower, upper = self.options.get("lower"), self.options.get("upper")
        if isinstance(self.solver, _BRACKETED) and (lower is None or upper is None):
            raise ValueError(
                f"{name} needs a bracket: "
                f'Optimistix({name}(...), options={{"lower": ..., "upper": ...}})'
            )
        if lower is None or upper is None or checks.is_traced((lower, upper)):
            return
        for low, high in zip(jax.tree.leaves(lower), jax.tree.leaves(upper), strict=True):
            if not np.all(np.asarray(low) <= np.asarray(high)):
                raise ValueError(f"lower must not be above upper, got {low} and {high}")

    def init(self, problem, x, key):
        return jnp.asarray(jnp.inf, tree.real_dtype(x))

    def step(self, problem, x, state):
        run: Any
        run, fun = _entry(problem, self.solver)
        solver, options = self.solver, dict(self.options)
        for bound in {"lower", "upper"} & options.keys():
            if jax.tree.structure(options[bound]) == jax.tree.structure(x):
                options[bound] = tree.cast_like(options[bound], x)  # float32 stays float32
        if isinstance(solver, optx.Bisection):
            run, fun = optx.root_find, problem.residual
            _check_bracket(x, options)
            x = jnp.clip(x, options["lower"], options["upper"])
            if solver.flip == "detect":
                fun, solver = _increasing(fun, solver, options)
        origin = None
        if isinstance(solver, optx.GoldenSearch):  # which takes the lower end for zero
            origin = jnp.asarray(options["lower"], x.dtype)
            options = {"lower": jnp.zeros_like(origin), "upper": options["upper"] - origin}
            whole = fun
            fun = lambda t: whole(origin + t)
        # Our own adjoint differentiates the problem; theirs must not be in the way.
        solution = run(
            lambda y, _: fun(y),
            solver,
            x,
            options=options,
            tags=self.tags,
            max_steps=self.inner_steps,
            throw=False,
        )
        x = solution.value if origin is None else origin + solution.value
        return x, tree.norm(problem.residual(x))

    def error(self, problem, x, state):
        return state


def _check_bracket(x: Any, options: dict[str, Any]) -> None:
    shapes = jax.tree.map(jnp.shape, (x, options["lower"], options["upper"]))
    if shapes != ((), (), ()):
        raise ValueError(
            "Bisection finds one unknown, an array without axes, in a bracket of two numbers, "
            f"got shapes {shapes[0]} in {shapes[1:]}; use vmap for more"
        )


def _increasing(
    fun: Callable[[Array], Array], solver: optx.Bisection, options: dict[str, Any]
) -> tuple[Callable[[Array], Array], optx.Bisection]:
    """The function up to a sign, so that it is higher at the upper end.

    `optimistix` detects the direction too, but raises an error from inside of the compiled code
    where there is no change of sign, and where it is at the lower end itself. If it is to expand
    the bracket, it still detects, and sees a change of sign as soon as the end is infinite: it
    would go on for ever where there is no root.
    """
    low, high = fun(options["lower"]), fun(options["upper"])
    sign = jnp.where(low > high, -1, 1).astype(low.dtype)
    if not solver.expand_if_necessary:
        return lambda x: sign * fun(x), eqx.tree_at(lambda s: s.flip, solver, False)
    far = jnp.where(sign * low < 0, 1, -1).astype(low.dtype)
    return lambda x: jnp.where(jnp.isfinite(x), sign * fun(x), far), solver


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
_BRACKETED = (optx.Bisection, optx.GoldenSearch)
