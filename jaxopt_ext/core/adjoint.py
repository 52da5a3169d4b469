"""Derivatives of solutions."""

import contextlib
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from . import checks, loops, tree
from .closure import hoist
from .linear import LeastSquaresFallback, VaryingOperator
from .problem import AbstractProblem


class AbstractAdjoint(eqx.Module):
    """How `solve` is differentiated with respect to the problem."""


class ImplicitAdjoint(AbstractAdjoint):
    """Differentiate the solution by the implicit function theorem.

    With $F$ the problem's residual, $F(x^*(\\theta), \\theta) = 0$ gives

    $$\\partial x^* = -(\\partial_x F)^{-1}\\, \\partial_\\theta F,$$

    so memory does not grow with the number of steps and the solver itself is never
    differentiated. It is a custom JVP around a linear solve that JAX can transpose: forward and
    reverse mode, `vmap`, higher derivatives and `shard_map` all work. Where the Jacobian is
    singular, the inverse is the pseudo-inverse; `linear_solver` says how far that goes for large
    ones. A linear solve that fails, on a NaN say, shows as NaN.

    **Arguments:**

    - `linear_solver`: any `lineax` solver. Those of `lineax` itself do not trace in `shard_map`
      with its check on, where they iterate.
    - `throw`: raise a runtime error instead of a NaN.

    **Reference:** Blondel et al., Efficient and Modular Implicit Differentiation, 2022,
    arXiv:2105.15183.
    """

    linear_solver: lx.AbstractLinearSolver = LeastSquaresFallback()
    throw: bool = eqx.field(static=True, default=False)


class UnrolledAdjoint(AbstractAdjoint):
    """Differentiate the iterations themselves, with checkpoints.

    Memory grows with the square root of the solver's `max_steps`. The derivative is that of the
    iterate reached, which is what bilevel methods with few inner steps ask for: set `max_steps` to
    that few, because under `vmap` all of them are run. Forward mode and higher derivatives work.
    Solvers whose step is itself a search of unknown length (`GradientDescent`, `OSQP`'s adaptive
    penalty) cannot be unrolled in reverse mode; those with `Backtracking`, and `ADMM`, can.

    **Arguments:**

    - `checkpoints`: number of iterates kept; `None` picks about $\\sqrt{\\mathrm{max\\_steps}}$.
    """

    checkpoints: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.checkpoints is not None:
            checks.count("checkpoints", self.checkpoints)


class OneStepAdjoint(AbstractAdjoint):
    """Differentiate the last step only.

    The error against the implicit derivative is of the order of the step's contraction factor, so
    it is cheap and good for fast solvers (Newton, factorized splittings) and poor for slow ones.

    **Reference:** Bolte, Pauwels, Vaiter, One-step differentiation of iterative algorithms, 2023,
    arXiv:2305.13768.
    """


def attach(
    x: PyTree[Array],
    problem: AbstractProblem,
    adjoint: ImplicitAdjoint = ImplicitAdjoint(),  # noqa: B008  (immutable)
) -> PyTree[Array]:
    """Return `x`, a solution found by any means, with the implicit derivative in `problem`.

    As in `solve`, the leaves of `x` that are no floating-point arrays stay as they are.
    """
    if not all(map(eqx.is_inexact_array, jax.tree.leaves(x))):
        x, rest = checks.split_point("x", x)
        problem = problem.restrict(rest) if jax.tree.leaves(rest) else problem
        return eqx.combine(attach(x, problem, adjoint), rest)
    traced, static = eqx.partition((hoist(problem), adjoint), _is_array)
    moving, fixed = eqx.partition(traced, eqx.is_inexact_array)
    return _attach(static, x, moving, fixed)


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attach(static, x, moving, fixed):
    del static, moving, fixed
    return x


@functools.partial(_attach.defjvp, symbolic_zeros=True)
def _attach_jvp(static, primals, tangents):
    x, moving, fixed = primals
    x = _attach(static, x, moving, fixed)  # so that this rule can be differentiated again
    problem, adjoint = eqx.combine(eqx.combine(moving, fixed), static)
    is_zero = lambda leaf: isinstance(leaf, jax.custom_derivatives.SymbolicZero)
    dots = jax.tree.map(lambda t: None if is_zero(t) else t, tangents[1], is_leaf=is_zero)
    if not jax.tree.leaves(dots):
        return x, jax.tree.map(jnp.zeros_like, x)
    is_none = lambda leaf: leaf is None
    pick = lambda dot, leaf: None if dot is None else leaf
    moved = jax.tree.map(pick, dots, moving, is_leaf=is_none)
    start = tree.real_view(x)

    def residual_of_problem(moved):
        moved, _ = eqx.combine(moved, moving, fixed, static)
        return tree.real_view(tree.cast_like(moved.residual(x), x))

    def residual_of_point(point):
        residual = problem.residual(tree.complex_view(point, x))
        return tree.real_view(tree.cast_like(residual, x))

    _, drift = jax.jvp(residual_of_problem, (moved,), (dots,))
    _, product = jax.linearize(residual_of_point, start)
    symmetric = lx.symmetric_tag in problem.tags()
    axes = loops.varying_axes((x, drift))
    # What a solver holds is among what it closes over, and is traced as it will be cast.
    held, rest = eqx.partition(adjoint, _is_array)
    adjoint = eqx.combine(loops.vary(held, axes), rest)
    linear = adjoint.linear_solver
    shortcut = isinstance(linear, LeastSquaresFallback) and not linear.factorizes(start)
    active = problem.active(x) if shortcut else None
    solver = functools.partial(_linear_solve, adjoint, problem.tags(), active)
    drift = _linked(loops.vary(drift, axes))
    with _casts(loops.varying_axes(primals) <= axes):
        solution = jax.lax.custom_linear_solve(
            _casting(lambda v: _linked(loops.vary(product(v), axes))),
            drift,
            _casting(functools.partial(solver, False)),
            _casting(functools.partial(solver, True)),
            symmetric=symmetric,
        )
    return x, tree.complex_view(tree.scale(_linked(solution), -1), x)


def _casts(allowed: bool):
    """In `shard_map`, whether operands are cast to vary over the same axes.

    `custom_linear_solve` would cast all that it closes over, and so the solution, to vary over the
    axes of the data. Where a `psum` is in between the solution does not vary, and the solve is not
    the one that was traced.
    """
    if loops.in_shard_map() and hasattr(jax, "auto_pcast"):
        return jax.auto_pcast(allowed)
    return contextlib.nullcontext()


def _casting(fun):
    def with_casts(*args):
        with _casts(True):
            return fun(*args)

    return with_casts


def _linked(x: PyTree[Array]) -> PyTree[Array]:
    """`x`, of which every leaf depends on all the others, by nothing.

    JAX can transpose a linear solve over a tree, and differentiate that again, only if no leaf of a
    right-hand side stands still while others move.
    """
    leaves = jax.tree.leaves(x)
    if len(leaves) == 1:
        return x
    nothing = tree.sum_leaves([_nothing(leaf) for leaf in leaves])
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), x)


def _nothing(leaf: Array) -> Array:
    return 0 * jnp.sum(leaf) if tree.is_spread(leaf) else jnp.sum(jnp.atleast_1d(leaf)[:0])


def _linear_solve(adjoint, tags, active, transposed, product, vector):
    solver = adjoint.linear_solver
    if isinstance(solver, LeastSquaresFallback):
        found = None if active is None else functools.partial(active.solve, transposed=transposed)
        x, solved = solver.solve(product, vector, found)
    else:
        if loops.in_shard_map():
            operator = VaryingOperator(product, vector, frozenset(tags))
        else:
            shape = jax.eval_shape(lambda v: v, vector)
            operator = lx.FunctionLinearOperator(product, shape, tags)
        x, result, _ = solver.compute(solver.init(operator, {}), vector, {})
        solved = result == lx.RESULTS.successful
    if adjoint.throw:
        return eqx.error_if(x, ~solved, "The linear solve behind an implicit derivative failed.")
    return jax.tree.map(lambda leaf: jnp.where(solved, leaf, jnp.nan), x)
