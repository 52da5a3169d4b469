"""Problems: what is solved, by structure.

Each is a pytree whose array leaves (data, penalties, constraints) can be differentiated with
respect to, and each has a residual: a pytree shaped like the solution, zero exactly at one.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from . import bounds, checks, tree
from .active import ActiveSystem, active_system
from .natural import natural
from .operators import LinearMap, as_map, image_shape, is_sparse, matrix_or_operator, require_size
from .restricted import Restricted


class AbstractProblem(eqx.Module):
    """A problem, known by its residual."""

    @abc.abstractmethod
    def residual(self, x: PyTree[Array]) -> PyTree[Array]:
        """A pytree shaped like `x` that is zero exactly at a solution.

        Its derivatives in `x` and in the problem's leaves are what `ImplicitAdjoint` uses.
        """

    def start(self, x: PyTree[Array]) -> PyTree[Array]:
        """Complete what the user gave as `x0` to a point shaped like a solution."""
        return x

    def check(self, x: PyTree[Array]) -> None:
        """Raise `ValueError` or `TypeError` if `x` cannot be a starting point. Looks at shapes
        only, while tracing, and so costs nothing when a solve runs again."""

    def tags(self) -> frozenset[object]:
        """`lineax` tags of the residual's Jacobian."""
        return frozenset()

    def active(self, x: PyTree[Array]) -> ActiveSystem | None:
        """The Jacobian of the residual at `x` in a form in which few entries decide, if it has
        one. It must be the same as that of `residual`."""

    def restrict(self, rest: PyTree) -> "AbstractProblem":
        """The same problem over points without the leaves of `rest`, which stay as they are: the
        functions and integers of a network, say."""
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in jax.tree.leaves(rest)}))
        raise TypeError(
            f"a {type(self).__name__} is solved over floating-point arrays only, got also {kinds}"
        )


class Smooth(AbstractProblem):
    """Minimize a differentiable function: $\\min_x f(x)$.

    **Arguments:**

    - `fun`: `x -> f(x)`, a real scalar. Data may be closed over, or held in an equinox module.
    """

    fun: Callable[[PyTree[Array]], Float[Array, ""]]

    def restrict(self, rest):
        return dataclasses.replace(self, fun=Restricted(self.fun, rest))

    def residual(self, x):
        return tree.gradient(self.fun, x)

    def check(self, x):
        checks.objective("fun", self.fun, x)

    def tags(self):
        return frozenset({lx.symmetric_tag})


class Composite(AbstractProblem):
    """Minimize a smooth plus a proximable function: $\\min_x f(x) + g(x)$.

    The residual is $x - \\mathrm{prox}_g(x - \\nabla f(x))$.

    The implicit derivative is that on the active set, the entries away from a kink of $g$, wherever
    no entry is about to change sides (strict complementarity). At a kink, where the solution has
    only one-sided derivatives, that of the prox is one element of its generalized Jacobian, and so
    the derivative returned is that of one of the active sets next to it, or a mixture.

    **Arguments:**

    - `smooth`: $f$, differentiable.
    - `nonsmooth`: $g$, a function of `jaxopt_ext.prox`.
    """

    smooth: Callable[[PyTree[Array]], Float[Array, ""]]
    nonsmooth: Any

    def __check_init__(self):
        checks.proximable("nonsmooth", self.nonsmooth)

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x) + g(x)$."""
        return self.smooth(x) + self.nonsmooth(x)

    def restrict(self, rest):
        return dataclasses.replace(self, smooth=Restricted(self.smooth, rest))

    def residual(self, x):
        return natural(self.nonsmooth, x, tree.gradient(self.smooth, x))

    def active(self, x):
        return active_system(self.smooth, self.nonsmooth, x)

    def check(self, x):
        checks.objective("smooth", self.smooth, x)
        out = jax.eval_shape(lambda x: self.nonsmooth.prox(x, 1.0), x)
        checks.shaped_like("the prox of nonsmooth", out, x)


class Constrained(AbstractProblem):
    """Minimize a smooth function over a set: $\\min_{x \\in C} f(x)$.

    The residual is $x - P_C(x - \\nabla f(x))$.

    The implicit derivative is that on the face of $C$ where the solution is, wherever no active
    constraint has the multiplier zero (strict complementarity). Where one has, the solution has
    only one-sided derivatives; that of the projection is one element of its generalized Jacobian,
    and so the derivative returned is that of one of the faces next to it, or a mixture.

    **Arguments:**

    - `smooth`: $f$, differentiable.
    - `feasible`: $C$, a set of `jaxopt_ext.prox`.
    """

    smooth: Callable[[PyTree[Array]], Float[Array, ""]]
    feasible: Any

    def __check_init__(self):
        if not checks.has_method(self.feasible, "project"):
            raise TypeError(f"feasible must be a set with a projection, got {self.feasible!r}")

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x)$ on the set, infinity outside."""
        return self.smooth(x) + self.feasible(x)

    def restrict(self, rest):
        return dataclasses.replace(self, smooth=Restricted(self.smooth, rest))

    def residual(self, x):
        moved = jax.tree.map(jnp.subtract, x, tree.gradient(self.smooth, x))
        return jax.tree.map(jnp.subtract, x, self.feasible.project(moved))

    def active(self, x):
        return active_system(self.smooth, self.feasible, x)

    def check(self, x):
        checks.objective("smooth", self.smooth, x)
        checks.shaped_like("the projection", jax.eval_shape(self.feasible.project, x), x)


class FixedPoint(AbstractProblem):
    """Find $x = T(x)$.

    **Arguments:**

    - `fun`: $T$, from a pytree to a pytree of the same shapes.
    """

    fun: Callable[[PyTree[Array]], PyTree[Array]]

    def restrict(self, rest):
        return dataclasses.replace(self, fun=Restricted(self.fun, rest, maps=True))

    def residual(self, x):
        return jax.tree.map(jnp.subtract, self.fun(x), x)

    def check(self, x):
        checks.shaped_like("fun(x)", jax.eval_shape(self.fun, x), x)


class RootFinding(AbstractProblem):
    """Find $F(x) = 0$ for a map between spaces of the same shape.

    **Arguments:**

    - `fun`: $F$.
    """

    fun: Callable[[PyTree[Array]], PyTree[Array]]

    def restrict(self, rest):
        return dataclasses.replace(self, fun=Restricted(self.fun, rest, maps=True))

    def residual(self, x):
        return self.fun(x)

    def check(self, x):
        checks.shaped_like("fun(x)", jax.eval_shape(self.fun, x), x)


class LeastSquares(AbstractProblem):
    """Minimize a sum of squares: $\\min_x \\tfrac12 \\|r(x)\\|^2$.

    **Arguments:**

    - `residuals`: $r$, from a pytree to a pytree.
    """

    residuals: Callable[[PyTree[Array]], PyTree[Array]]

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$\\tfrac12 \\|r(x)\\|^2$."""
        r = self.residuals(x)
        return 0.5 * tree.vdot(r, r)

    def restrict(self, rest):
        return dataclasses.replace(self, residuals=Restricted(self.residuals, rest))

    def residual(self, x):
        return tree.gradient(self.objective, x)

    def tags(self):
        return frozenset({lx.symmetric_tag})


class Saddle(AbstractProblem):
    """Minimize $f(x) + g(Kx)$ through its saddle $\\min_x \\max_y f(x) + \\langle Kx, y\\rangle -
    g^*(y)$.

    A solution is the pair `PrimalDual(primal, dual)`. An optional smooth $h(x)$ is added to the
    objective.

    **Arguments:**

    - `f`, `g`: functions of `jaxopt_ext.prox`.
    - `K`: a matrix, a `lineax` operator, or `None` for the identity.
    - `smooth`: $h$, differentiable, or `None`.
    """

    f: Any
    g: Any
    K: LinearMap = None
    smooth: Callable[[PyTree[Array]], Float[Array, ""]] | None = None

    def __check_init__(self):
        checks.proximable("f", self.f)
        checks.proximable("g", self.g)

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$f(x) + g(Kx) + h(x)$ of the primal variable."""
        value = self.f(x) + self.g(as_map(self.K)(x))
        return value if self.smooth is None else value + self.smooth(x)

    def primal_gradient(self, x: PyTree[Array], y: PyTree[Array]) -> PyTree[Array]:
        """$K^* y + \\nabla h(x)$."""
        pulled = as_map(self.K).adjoint(y)
        if self.smooth is None:
            return pulled
        return jax.tree.map(jnp.add, pulled, tree.gradient(self.smooth, x))

    def residual(self, x):
        primal, dual = x
        moved = jax.tree.map(jnp.subtract, primal, self.primal_gradient(primal, dual))
        primal_residual = jax.tree.map(jnp.subtract, primal, self.f.prox(moved, 1.0))
        # y = prox_{g*}(y + Kx) reads Kx = prox_g(y + Kx).
        mapped = as_map(self.K)(primal)
        shifted = jax.tree.map(jnp.add, dual, mapped)
        dual_residual = jax.tree.map(jnp.subtract, mapped, self.g.prox(shifted, 1.0))
        return PrimalDual(primal_residual, dual_residual)

    def start(self, x):
        if isinstance(x, PrimalDual):
            return x
        return PrimalDual(x, tree.zeros_of(image_shape("K", self.K, x)))

    def check(self, x):
        checks.point("Saddle", x, PrimalDual, "PrimalDual(primal, dual)")
        mapped = image_shape("K", self.K, x.primal)
        checks.shaped_like("Kx", mapped, x.dual)


class PrimalDual(NamedTuple):
    """A primal point and the multipliers that certify it."""

    primal: PyTree[Array]
    dual: PyTree[Array]


class Splitting(AbstractProblem):
    """Minimize $f(x) + g(z)$ subject to $Ax + Bz = c$.

    A solution is the triple `SplitPoint(x, z, dual)` with the multiplier of the constraint, in
    the Lagrangian $f(x) + g(z) + \\langle y, Ax + Bz - c\\rangle$.

    **Arguments:**

    - `f`, `g`: functions of `jaxopt_ext.prox`; $f$ may also be any differentiable function.
    - `A`, `B`: matrices, `lineax` operators, scalars, or `None` for the identity.
    - `c`: the right-hand side, shaped like $Ax$; zero if `None`.
    """

    f: Any
    g: Any
    A: LinearMap = None
    B: LinearMap = -1.0
    c: PyTree[Array] | None = None

    def __check_init__(self):
        checks.proximable("g", self.g)
        if not callable(self.f):
            raise TypeError(f"f must be a function, got {self.f!r}")

    def objective(self, x: PyTree[Array], z: PyTree[Array]) -> Float[Array, ""]:
        """$f(x) + g(z)$."""
        return self.f(x) + self.g(z)

    def gap(self, x: PyTree[Array], z: PyTree[Array]) -> PyTree[Array]:
        """$Ax + Bz - c$."""
        total = jax.tree.map(jnp.add, as_map(self.A)(x), as_map(self.B)(z))
        return total if self.c is None else jax.tree.map(jnp.subtract, total, self.c)

    def residual(self, x):
        x, z, y = x
        return SplitPoint(
            _stationarity(self.f, x, as_map(self.A).adjoint(y)),
            _stationarity(self.g, z, as_map(self.B).adjoint(y)),
            self.gap(x, z),
        )

    def check(self, x):
        checks.point("Splitting", x, SplitPoint, "SplitPoint(x, z, dual)")
        Ax = image_shape("A", self.A, x.x)
        Bz = image_shape("B", self.B, x.z)
        checks.shaped_like("Bz", Bz, Ax)
        checks.shaped_like("the dual", x.dual, Ax)
        if self.c is not None:
            checks.shaped_like("c", self.c, Ax)

    def start(self, x):
        if isinstance(x, SplitPoint):
            return x
        zeros = tree.zeros_of(image_shape("A", self.A, x))
        z = tree.zeros_of(jax.eval_shape(as_map(self.B).adjoint, zeros))
        return SplitPoint(x, z, zeros)


class SplitPoint(NamedTuple):
    """The two variables of a splitting and the multiplier of the constraint between them."""

    x: PyTree[Array]
    z: PyTree[Array]
    dual: PyTree[Array]


class QuadraticProgram(AbstractProblem):
    """Minimize $\\tfrac12 x^\\top P x + q^\\top x$ subject to $l \\le Ax \\le u$.

    Equalities are rows with $l = u$; infinite bounds are allowed. A solution is the pair
    `PrimalDual(primal, dual)` with $Px + q + A^\\top y = 0$ and $y$ in the normal cone of
    $[l, u]$ at $Ax$.

    **Derivatives.** Where every row at a bound has a multiplier (strict complementarity) and the
    solution is unique, it is differentiable and the implicit derivative is its derivative. A row
    that is touched without one makes a kink: rounding decides whether it counts as held or as free,
    and an exact tie counts by half. The result then lies in the convex hull of the derivatives
    with each such row held or let go. With one such row these two are the one-sided derivatives;
    with more, a direction's one-sided derivatives are two among many, and the result need not lie
    between them. Where more rows are held than determine the solution (a degenerate vertex),
    multipliers are not unique, and the derivative in a bound is that of the least-squares solution
    of the rows held, which again need not be one-sided.

    **Arguments:**

    - `P`: symmetric positive semidefinite, a matrix `(n, n)`, a `CSR` or `BCSR` of
      `jaxopt_ext_kernels`, or a `lineax` operator.
    - `q`: shape `(n,)`.
    - `A`: a matrix `(m, n)`, a `CSR` or `BCSR`, or a `lineax` operator.
    - `l`, `u`: shape `(m,)`.

    **Raises:** `ValueError` on mismatched shapes, $l > u$, a `P` that is not symmetric, or NaN
    in any bound.
    """

    P: LinearMap
    q: Float[Array, " n"]
    A: LinearMap
    l: Float[Array, " m"]
    u: Float[Array, " m"]

    def __init__(self, P, q, A, l, u):
        self.P, self.A = matrix_or_operator(P), matrix_or_operator(A)
        self.q, self.l, self.u = (jnp.asarray(v) for v in (q, l, u))
        n, m = self.q.shape[-1:], self.l.shape[-1:]
        require_size("P", self.P, n + n)
        require_size("A", self.A, m + n)
        if self.l.shape != self.u.shape:
            raise ValueError(f"l {self.l.shape} and u {self.u.shape} must have one shape")
        bounds.ordered(self.l, self.u)
        if (eqx.is_array(self.P) or is_sparse(self.P)) and not checks.is_traced(self.P):
            if is_sparse(self.P):
                matrix = self.P.to_scipy()
                entries, gaps = abs(matrix).data, abs(matrix - matrix.T).data
            else:
                matrix = np.asarray(self.P)
                entries, gaps = np.abs(matrix), np.abs(matrix - np.swapaxes(matrix, -1, -2))
            skew, scale = np.max(gaps, initial=0), np.max(entries, initial=0)
            if skew > 1e3 * jnp.finfo(matrix.dtype).eps * scale:
                raise ValueError(f"P must be symmetric, entries differ by {float(skew):.3g}")

    @classmethod
    def from_inequalities(cls, P, q, A=None, b=None, G=None, h=None) -> "QuadraticProgram":
        """The form $Ax = b$, $Gx \\le h$ of many textbooks; either pair may be left out.

        **Raises:** `ValueError` if a matrix comes without its right-hand side; `TypeError` if `A`
        or `G` is sparse: stack them before, and give `l` and `u`.
        """
        q = jnp.asarray(q)
        return cls(P, q, *bounds.intervals(q, A, b, G, h))

    def objective(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """$\\tfrac12 x^\\top P x + q^\\top x$."""
        return 0.5 * jnp.vdot(x, as_map(self.P)(x)) + jnp.vdot(self.q, x)

    def residual(self, x):
        primal, dual = x
        A = as_map(self.A)
        stationarity = as_map(self.P)(primal) + self.q + A.adjoint(dual)
        return PrimalDual(stationarity, bounds.excess(A(primal), dual, self.l, self.u))

    def start(self, x):
        if isinstance(x, PrimalDual):
            return x
        return PrimalDual(jnp.zeros_like(self.q) if x is None else x, jnp.zeros_like(self.l))

    def check(self, x):
        checks.point("QuadraticProgram", x, PrimalDual, "PrimalDual(primal, dual)")
        for name, given, wanted in (("primal", x.primal, self.q), ("dual", x.dual, self.l)):
            checks.shaped_like(f"the {name} starting point", given, wanted)


def _stationarity(function: Any, x: PyTree[Array], pulled: PyTree[Array]) -> PyTree[Array]:
    if hasattr(function, "prox"):
        moved = function.prox(jax.tree.map(jnp.subtract, x, pulled), 1.0)
        return jax.tree.map(jnp.subtract, x, moved)
    return jax.tree.map(jnp.add, tree.gradient(function, x), pulled)
