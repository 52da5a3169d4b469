"""Derivatives of solutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .linear import LeastSquaresFallback
from .problem import AbstractProblem


class AbstractAdjoint(eqx.Module):
    """How `solve` is differentiated with respect to the problem."""


class ImplicitAdjoint(AbstractAdjoint):
    """Differentiate the solution by the implicit function theorem.

    With $F$ the problem's residual, $F(x^*(\\theta), \\theta) = 0$ gives

    $$\\partial x^* = -(\\partial_x F)^{-1}\\, \\partial_\\theta F,$$

    so memory does not grow with the number of steps and the solver itself is never
    differentiated. It is a custom JVP: forward and reverse mode, `vmap`, and higher derivatives
    all work. Where the Jacobian is singular, the inverse is the pseudo-inverse; `linear_solver`
    says how far that goes for large ones. In reverse mode a linear solve that fails, on a NaN say,
    raises a runtime error.

    **Arguments:**

    - `linear_solver`: any `lineax` solver.
    - `throw`: raise in forward mode too, where a failure otherwise shows as NaN.

    **Reference:** Blondel et al., Efficient and Modular Implicit Differentiation, 2022,
    arXiv:2105.15183.
    """

    linear_solver: lx.AbstractLinearSolver = LeastSquaresFallback()
    throw: bool = eqx.field(static=True, default=False)


class UnrolledAdjoint(AbstractAdjoint):
    """Differentiate the iterations themselves, in reverse mode, with checkpoints.

    Memory grows with the square root of the number of steps. The derivative is that of the
    iterate reached, which is what bilevel methods with few inner steps ask for. Solvers whose step
    is itself a search of unknown length (`GradientDescent` with an `optax` line search, penalties
    that adapt) cannot be unrolled; those with `Backtracking` can.

    **Arguments:**

    - `checkpoints`: number of iterates kept; `None` picks about $\\sqrt{2 \\cdot
      \\mathrm{max\\_steps}}$.
    """

    checkpoints: int | None = eqx.field(static=True, default=None)


class OneStepAdjoint(AbstractAdjoint):
    """Differentiate the last step only.

    The error against the implicit derivative is of the order of the step's contraction factor, so
    it is cheap and good for fast solvers (Newton, factorized splittings) and poor for slow ones.

    **Reference:** Bolte, Pauwels, Vaiter, One-step differentiation of iterative algorithms, 2023,
    arXiv:2305.13768.
    """


def attach(x: PyTree[Array], problem: AbstractProblem, adjoint: ImplicitAdjoint) -> PyTree[Array]:
    """Return `x`, a solution found by any means, with the implicit derivative in `problem`."""
    return _attach(x, problem, adjoint)


@eqx.filter_custom_jvp
def _attach(x, problem, adjoint):
    del problem, adjoint
    return x


@_attach.def_jvp
def _attach_jvp(primals, tangents):
    x, problem, adjoint = primals
    _, problem_dot, _ = tangents
    x = attach(x, problem, adjoint)  # so that this rule can be differentiated again

    is_none = lambda leaf: leaf is None
    fixed = jax.tree.map(is_none, problem_dot, is_leaf=is_none)
    constants, varying = eqx.partition(problem, fixed, is_leaf=is_none)

    def residual_of_problem(varying):
        return real_view(eqx.combine(varying, constants).residual(x))

    def residual_of_point(point, problem):
        return real_view(problem.residual(complex_view(point, x)))

    _, drift = jax.jvp(residual_of_problem, (varying,), (problem_dot,))
    jacobian = lx.JacobianLinearOperator(
        residual_of_point, real_view(x), problem, tags=problem.tags()
    )
    solution = lx.linear_solve(jacobian, drift, adjoint.linear_solver, throw=adjoint.throw)
    x_dot = complex_view(jax.tree.map(jnp.negative, solution.value), x)
    return x, x_dot


def real_view(x: PyTree[Array]) -> PyTree[Array]:
    """Complex leaves as pairs of real ones: residuals need not be holomorphic."""
    return jax.tree.map(lambda leaf: (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf, x)


def complex_view(x: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """Inverse of `real_view`; `like` tells which leaves are complex."""
    return jax.tree.map(
        lambda leaf, part: jax.lax.complex(*part) if jnp.iscomplexobj(leaf) else part, like, x
    )
