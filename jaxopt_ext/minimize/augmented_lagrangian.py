"""The augmented Lagrangian method, by a solver of smooth functions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    EqualityConstrained,
    Multipliers,
    NonlinearProgram,
    PrimalDual,
    Scalar,
    Smooth,
    checks,
    scalar_field,
    solve,
    tree,
)
from ..core.adapters import as_solver
from ..core.bounds import excess
from .proximal_gradient import FISTA


class _State(eqx.Module):
    key: PRNGKeyArray
    penalty: Float[Array, ""]
    violation: Float[Array, ""]
    error: Float[Array, ""]
    inner_steps: Int[Array, ""]


class _Kind(eqx.Module):
    """Constraints $l \\le v(x) \\le u$ of one kind, with multipliers shaped like $v$."""

    value: PyTree[Array]
    dual: PyTree[Array]
    lower: PyTree[Array]
    upper: PyTree[Array]

    def excess(self, penalty):
        """$v - \\Pi(v + y / \\rho)$: what is violated, and what a multiplier has too much."""
        one = lambda v, y, l, u: excess(v, y / penalty, l, u)
        return jax.tree.map(one, self.value, self.dual, self.lower, self.upper)


def _kinds(problem, primal, dual) -> dict[str, _Kind]:
    """The constraints by kind."""
    like = lambda number, v: jax.tree.map(lambda a: jnp.full_like(a, number), v)
    if isinstance(problem, EqualityConstrained):
        value = problem.constraints(primal)
        return {"equalities": _Kind(value, dual, like(0, value), like(0, value))}
    kinds = {}
    if problem.equalities is not None:
        value = problem.equalities(primal)
        kinds["equalities"] = _Kind(value, dual.equalities, like(0, value), like(0, value))
    if problem.inequalities is not None:
        value = problem.inequalities(primal)
        low = like(-jnp.inf, value)
        kinds["inequalities"] = _Kind(value, dual.inequalities, low, like(0, value))
    if problem.bounds is not None:
        low, high = problem.bounds.like(primal)
        kinds["bounds"] = _Kind(primal, dual.bounds, low, high)
    return kinds


def _rounding(problem, primal, dual):
    """What rounding leaves of constraints that hold: their terms are as large as $v'(x) x$."""
    values = lambda x: {name: kind.value for name, kind in _kinds(problem, x, dual).items()}
    value, slope = jax.jvp(values, (primal,), (primal,))
    eps = jnp.finfo(tree.real_dtype(primal)).eps
    return 8 * eps * (tree.norm(value) + tree.norm(slope))


class AugmentedLagrangian(AbstractSolver):
    """The method of multipliers: a sequence of problems without constraints.

    With constraints $l \\le v(x) \\le u$, which are equations where $l = u$, their multipliers $y$
    and a penalty $\\rho$, a step is

    $$x^+ \\approx \\arg\\min_x f(x) + \\tfrac{\\rho}{2} |r(x)|^2, \\quad
      r(x) = v(x) + y / \\rho - \\Pi_{[l, u]}(v(x) + y / \\rho), \\qquad y^+ = \\rho\\, r(x^+),$$

    the minimum by another solver, started at $x$ and as accurate as the last error asks for. Where
    $|v - \\Pi(v + y / \\rho)|$ has not come down to `shrink` times what it was, to half of `tol` or
    to rounding, $\\rho$ is multiplied by `growth`. Near a solution with independent gradients and
    positive curvature along the constraints the error falls by a factor of order $1 / \\rho$ in a
    step, for every penalty above a threshold; it finds stationary points, of which minimizers are
    some.

    The error is the norm of the problem's residual. `solution.state.inner_steps` counts the steps
    of the other solver.

    **Arguments:**

    - `inner`: a solver of `Smooth` problems with a `tol`, or an `optax` transformation such as
      `optax.lbfgs()`, which is better where the penalty gets large.
    - `penalty`: $\\rho$ at the start, and `largest_penalty` that it stays below.
    - `growth`: above 1. `shrink`: in $(0, 1)$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for a penalty that is not positive, `growth` or `shrink` outside of
    their ranges; `TypeError` for an `inner` that is no solver of smooth problems.

    **Reference:** Hestenes, Multiplier and Gradient Methods, 1969. Bertsekas, Constrained
    Optimization and Lagrange Multiplier Methods, 1982. Nocedal, Wright, Numerical Optimization,
    2006, chapter 17.
    """

    inner: AbstractSolver = eqx.field(
        converter=as_solver, default_factory=lambda: FISTA(max_steps=2000)
    )
    penalty: Scalar = scalar_field(10.0)
    largest_penalty: Scalar = scalar_field(1e8)
    growth: Scalar = scalar_field(4.0)
    shrink: Scalar = scalar_field(0.25)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 200
    problems = (EqualityConstrained, NonlinearProgram)

    def __check_init__(self):
        if Smooth not in self.inner.problems or not hasattr(self.inner, "tol"):
            raise TypeError(f"inner must solve Smooth problems to a tol, got {self.inner!r}")
        checks.positive("penalty", self.penalty)
        checks.positive("largest_penalty", self.largest_penalty)
        checks.interval("growth", self.growth, 1, float("inf"), open_low=True, open_high=True)
        checks.interval("shrink", self.shrink, 0, 1, open_low=True, open_high=True)

    def init(self, problem, x, key):
        if any(map(jnp.iscomplexobj, jax.tree.leaves(x))):
            raise TypeError("AugmentedLagrangian is over real numbers, got complex ones")
        dtype = tree.real_dtype(x)
        infinity = jnp.asarray(jnp.inf, dtype)
        zero = jnp.asarray(0, jnp.int32)
        return _State(key, jnp.asarray(self.penalty, dtype), infinity, infinity, zero)

    def step(self, problem, x, state):
        primal, dual = x
        key, draw = jax.random.split(state.key)
        penalty, dtype = state.penalty, state.penalty.dtype

        def pulls(kind: _Kind):
            """$y^+ / \\rho$."""
            one = lambda r, y: r + y / penalty
            return jax.tree.map(one, kind.excess(penalty), kind.dual)

        def augmented(primal):
            kinds = _kinds(problem, primal, dual).values()
            return problem.fun(primal) + sum(
                0.5 * penalty * tree.vdot(pull, pull) for pull in map(pulls, kinds)
            )

        # The gradient of this at the value is the residual's first part.
        tol = self.tol.astype(dtype)
        accuracy = jnp.maximum(0.3 * tol, 0.1 * jnp.minimum(1, state.error))
        accuracy = jnp.where(jnp.isnan(accuracy), tol, accuracy)
        inner: Any = eqx.tree_at(lambda s: s.tol, self.inner, accuracy)
        found = solve(Smooth(augmented), inner, primal, key=draw)
        primal, taken = found.value, state.inner_steps + found.steps
        kinds = _kinds(problem, primal, dual)
        violation = tree.norm({name: kind.excess(penalty) for name, kind in kinds.items()})
        updated = {
            name: jax.tree.map(lambda r: penalty * r, pulls(kind)) for name, kind in kinds.items()
        }
        if isinstance(problem, EqualityConstrained):
            dual = updated["equalities"]
        else:
            dual = Multipliers(*(updated.get(name) for name in Multipliers._fields))
        new = PrimalDual(primal, tree.cast_like(dual, x.dual))
        # A violation below the tolerance, or of rounding, is not what keeps the error up, but a
        # penalty raised for it would: rounding comes into the gradient times the penalty.
        floor = jnp.maximum(0.5 * tol, _rounding(problem, primal, dual))
        slow = violation > jnp.maximum(self.shrink.astype(dtype) * state.violation, floor)
        raised = jnp.minimum(
            self.growth.astype(dtype) * penalty, self.largest_penalty.astype(dtype)
        )
        penalty = jnp.where(slow, jnp.maximum(raised, penalty), penalty)
        error = tree.norm(problem.residual(new)).astype(dtype)
        return new, _State(key, penalty, violation.astype(dtype), error, taken)

    def error(self, problem, x, state):
        return state.error
