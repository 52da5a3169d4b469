"""Smooth objectives under smooth constraints, with their multipliers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from . import checks, tree
from .bounds import Bounds, excess
from .problem import AbstractProblem, PrimalDual
from .restricted import Restricted

Objective = Callable[[PyTree[Array]], Float[Array, ""]]
Constraints = Callable[[PyTree[Array]], PyTree[Array]]


def _restricted(problem, rest, *names):
    """The same over the arrays of the primal point; multipliers are arrays anyway."""
    if not isinstance(rest, PrimalDual) or jax.tree.leaves(rest.dual):
        raise TypeError(
            f"a {type(problem).__name__} over a point that holds more than floating-point arrays "
            "starts from PrimalDual(point, multipliers)"
        )
    functions = {name: getattr(problem, name) for name in names}
    changed = {k: Restricted(f, rest.primal) for k, f in functions.items() if f is not None}
    return dataclasses.replace(problem, **changed)


def _check_constraints(name, fun, x):
    out = jax.eval_shape(fun, x)
    kinds = [getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(out)]
    if not kinds or not all(k is not None and jnp.issubdtype(k, jnp.inexact) for k in kinds):
        raise ValueError(f"{name} must return floating-point arrays, got {out}")
    return out


class EqualityConstrained(AbstractProblem):
    """Minimize a smooth function on a smooth manifold, $\\min_x f(x)$ subject to $c(x) = 0$.

    A solution is the pair `PrimalDual(primal, dual)` of a point and the multipliers $\\lambda$ of
    the Lagrangian $L(x, \\lambda) = f(x) + \\langle \\lambda, c(x)\\rangle$. The residual is
    $(\\nabla_x L, c)$, zero exactly at the stationary points, of which the minimizers are some.

    **Derivatives.** Where $c'$ has full row rank and the Hessian of $L$ is positive definite on its
    null space, the implicit derivative is that of point and multipliers. Where rows of $c'$ are
    dependent, multipliers are not unique, and theirs is that of the least-squares solution.

    **Arguments:**

    - `fun`: $f$, `x -> scalar`.
    - `constraints`: $c$, from `x` to a pytree of arrays.

    **Raises:** `ValueError` if `fun` returns no real scalar or `constraints` no arrays; `TypeError`
    on a start that is no `PrimalDual` where `x` holds more than arrays.
    """

    fun: Objective
    constraints: Constraints

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x)$."""
        return self.fun(x)

    def lagrangian(self, x: PyTree[Array], dual: PyTree[Array]) -> Float[Array, ""]:
        """$f(x) + \\langle \\lambda, c(x)\\rangle$."""
        return self.fun(x) + tree.vdot(dual, self.constraints(x))

    def residual(self, x):
        primal, dual = x
        slope = tree.gradient(lambda x: self.lagrangian(x, dual), primal)
        return PrimalDual(slope, self.constraints(primal))

    def start(self, x):
        if isinstance(x, PrimalDual):
            return x
        return PrimalDual(x, tree.zeros_of(_check_constraints("constraints", self.constraints, x)))

    def check(self, x):
        checks.point("EqualityConstrained", x, PrimalDual, "PrimalDual(primal, dual)")
        checks.objective("fun", self.fun, x.primal)
        out = _check_constraints("constraints", self.constraints, x.primal)
        checks.shaped_like("the dual", x.dual, out)

    def tags(self):
        return frozenset({lx.symmetric_tag})

    def restrict(self, rest):
        return _restricted(self, rest, "fun", "constraints")


class Multipliers(NamedTuple):
    """Multipliers of a nonlinear program; `None` where it has no constraints of the kind."""

    equalities: PyTree[Array]
    inequalities: PyTree[Array]
    bounds: PyTree[Array]


class NonlinearProgram(AbstractProblem):
    """Minimize $f(x)$ subject to $c(x) = 0$, $d(x) \\le 0$ and $l \\le x \\le u$.

    A solution is `PrimalDual(primal, Multipliers(equalities, inequalities, bounds))` with
    $\\lambda$, $\\mu \\ge 0$ and $\\nu$, which is positive at upper and negative at lower bounds.
    With $L = f + \\langle \\lambda, c\\rangle + \\langle \\mu, d\\rangle$ the residual

    $$\\bigl(\\nabla_x L + \\nu,\\quad c,\\quad d - \\min(d + \\mu, 0),\\quad
      x - \\Pi_{[l, u]}(x + \\nu)\\bigr)$$

    is zero exactly at the points of Karush, Kuhn and Tucker: stationary, feasible, and
    complementary.

    **Derivatives.** Where gradients of what is active are independent, each inequality or bound
    that is active has a multiplier (strict complementarity) and the Hessian of $L$ is positive
    definite along them, the implicit derivative is that of point and multipliers. An active one
    without a multiplier makes a kink: rounding decides whether it counts as held or as free, an
    exact tie counts by half, and the result lies among the derivatives with each such constraint
    held or let go.

    **Arguments:**

    - `fun`: $f$, `x -> scalar`.
    - `equalities`, `inequalities`: $c$, $d$, from `x` to pytrees of arrays, or `None`.
    - `bounds`: the pair $(l, u)$ of numbers, arrays or pytrees like `x`, or `None`.

    **Raises:** `ValueError` if bounds cross, are NaN, or do not fit `x`, if `fun` returns no real
    scalar or constraints no real arrays; `TypeError` on a start that is no `PrimalDual` where `x`
    holds more than arrays.
    """

    fun: Objective
    equalities: Constraints | None = None
    inequalities: Constraints | None = None
    bounds: Bounds | None = None

    def __init__(
        self,
        fun: Objective,
        equalities: Constraints | None = None,
        inequalities: Constraints | None = None,
        bounds: Any = None,
    ):
        self.fun, self.equalities, self.inequalities = fun, equalities, inequalities
        if bounds is not None and not isinstance(bounds, Bounds):
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise TypeError(f"bounds must be a pair (lower, upper), got {bounds!r}")
            bounds = Bounds(*bounds)
        self.bounds = bounds

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x)$."""
        return self.fun(x)

    def lagrangian(self, x: PyTree[Array], dual: Multipliers) -> Float[Array, ""]:
        """$f(x) + \\langle \\lambda, c(x)\\rangle + \\langle \\mu, d(x)\\rangle$."""
        value = self.fun(x)
        if self.equalities is not None:
            value = value + tree.vdot(dual.equalities, self.equalities(x))
        if self.inequalities is not None:
            value = value + tree.vdot(dual.inequalities, self.inequalities(x))
        return value

    def residual(self, x):
        x, dual = x
        slope = tree.gradient(lambda x: self.lagrangian(x, dual), x)
        equalities = inequalities = bounds = None
        if self.equalities is not None:
            equalities = self.equalities(x)
        if self.inequalities is not None:
            one = lambda d, mu: excess(d, mu, jnp.full_like(d, -jnp.inf), jnp.zeros_like(d))
            inequalities = jax.tree.map(one, self.inequalities(x), dual.inequalities)
        if self.bounds is not None:
            slope = jax.tree.map(jnp.add, slope, dual.bounds)
            bounds = self.bounds.excess(x, dual.bounds)
        return PrimalDual(slope, Multipliers(equalities, inequalities, bounds))

    def _dual_shapes(self, x):
        kinds = [None, None]
        for i, name in enumerate(("equalities", "inequalities")):
            fun = getattr(self, name)
            if fun is not None:
                kinds[i] = _check_constraints(name, fun, x)
        return Multipliers(*kinds, None if self.bounds is None else x)

    def start(self, x):
        if isinstance(x, PrimalDual):
            return x
        return PrimalDual(x, tree.zeros_of(self._dual_shapes(x)))

    def check(self, x):
        checks.point("NonlinearProgram", x, PrimalDual, "PrimalDual(primal, multipliers)")
        checks.objective("fun", self.fun, x.primal)
        if any(map(jnp.iscomplexobj, jax.tree.leaves(x))):
            raise TypeError("a NonlinearProgram is over real numbers, got complex ones")
        if self.bounds is not None:
            self.bounds.check(x.primal)
        checks.shaped_like("the dual", x.dual, self._dual_shapes(x.primal))

    def restrict(self, rest):
        return _restricted(self, rest, "fun", "equalities", "inequalities")
