"""From an estimate of the residual to the residual itself."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from . import loops, tree
from .problem import AbstractProblem

State = TypeVar("State", bound=Any)


def unknown(dtype: Any) -> Float[Array, ""]:
    """An error that nothing is known of: above every tolerance, and not infinite, which `solve`
    takes for divergence."""
    return jnp.asarray(jnp.finfo(dtype).max, dtype)


def forgotten(state: State) -> State:
    """A solver's state, to go on from, of which the `error` is not known: it may have passed, and
    have been of another problem."""
    return eqx.tree_at(lambda s: s.error, state, unknown(state.error.dtype))


def confirmed(
    problem: AbstractProblem,
    x: PyTree[Array],
    estimate: Float[Array, ""],
    last: Float[Array, ""],
    tol: Float[Array, ""],
    confirm: bool = True,
) -> Float[Array, ""]:
    """An error that is below `tol` only if the norm of the problem's residual is.

    Where a cheap estimate passes, the larger of it and the residual's norm at `x`; elsewhere the
    estimate. So the residual is computed only near the end.

    **Arguments:**

    - `problem`, `x`: where the residual is measured.
    - `estimate`: what the method knows of the residual's norm without another evaluation.
    - `last`: the error of the step before. Where it passed, the solve is over, and only goes on as
      a member of a batch: nothing is measured for it again, and its error is infinite.
    - `tol`: the solver's tolerance.
    - `confirm`: whether the residual may be asked, which differentiates the objective. Else an
      estimate that passes is replaced by `unknown`: no solve ends as converged.

    **Returns:** the error, without derivatives.
    """
    dynamic, static = eqx.partition((problem, x, estimate, last), eqx.is_inexact_array)
    problem, x, estimate, last = eqx.combine(jax.lax.stop_gradient(dynamic), static)
    passes = estimate <= tol
    if not confirm:
        return jnp.where(passes, unknown(estimate.dtype), estimate)
    ask = passes & ~(last <= tol)

    measure = lambda x: tree.norm(problem.residual(x)).astype(estimate.dtype)
    norm = loops.if_due(ask, measure, x, jnp.full_like(estimate, jnp.inf))
    # A maximum that keeps NaN, which `solve` reports.
    return jnp.where(passes, jnp.maximum(estimate, jnp.where(ask, norm, jnp.inf)), estimate)
