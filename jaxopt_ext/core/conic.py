"""Linear objectives over polyhedra, second-order cones and matrix inequalities.

A solution is a `PrimalDual`, and its residual is zero exactly where the primal point is feasible,
the dual point is, and the two are complementary. Where there is no solution, one of two
certificates says why, each described with its program: a dual direction that no primal point is
compatible with (infeasible), or a primal direction along which the objective falls for ever
(unbounded).

**Derivatives.** Where the solution is unique and strictly complementary, so that each constraint
either has room or a multiplier (for matrices: the two ranks add up), the implicit derivative is
that of primal and dual point. Where a constraint has neither, the projection on the cone has a
kink, its derivative there is one element of the generalized Jacobian, and so is the result. Where
primal or dual solutions are many, it is that of the least-squares solution of the linearization.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from . import bounds, checks
from .operators import LinearMap, Map, as_map, image_shape, matrix_or_operator, require_size
from .problem import AbstractProblem, PrimalDual, QuadraticProgram
from .spectral import positive_part


def _start(problem, x, primal, dual):
    if isinstance(x, PrimalDual):
        return x
    return PrimalDual(jnp.zeros_like(primal) if x is None else x, jnp.zeros_like(dual))


def _check(problem, x, primal, dual):
    checks.point(type(problem).__name__, x, PrimalDual, "PrimalDual(primal, dual)")
    for name, given, wanted in (("primal", x.primal, primal), ("dual", x.dual, dual)):
        checks.shaped_like(f"the {name} starting point", given, wanted)


class LinearProgram(AbstractProblem):
    """Minimize $c^\\top x$ subject to $l \\le Ax \\le u$.

    Equalities are rows with $l = u$; infinite bounds are allowed. A solution is
    `PrimalDual(primal, dual)` with $c + A^\\top y = 0$ and $y$ in the normal cone of $[l, u]$ at
    $Ax$: positive where the upper bound holds it back, negative at the lower one.

    **Certificates.** Infeasible: $y$ with $A^\\top y = 0$ and $\\sup_{l \\le w \\le u} y^\\top w <
    0$. Unbounded: $x$ with $c^\\top x < 0$ and $Ax$ zero, or towards an infinite bound, in each
    row.

    **Arguments:**

    - `c`: shape `(n,)`.
    - `A`: a matrix `(m, n)`, a `lineax` operator, or a `core.operators.Map`.
    - `l`, `u`: shape `(m,)`.

    **Raises:** `ValueError` on mismatched shapes, $l > u$, or NaN in any bound.
    """

    c: Float[Array, " n"]
    A: LinearMap
    l: Float[Array, " m"]
    u: Float[Array, " m"]

    def __init__(self, c, A, l, u):
        self.A = matrix_or_operator(A)
        self.c, self.l, self.u = (jnp.asarray(v) for v in (c, l, u))
        require_size("A", self.A, self.l.shape[-1:] + self.c.shape[-1:])
        if self.l.shape != self.u.shape:
            raise ValueError(f"l {self.l.shape} and u {self.u.shape} must have one shape")
        bounds.ordered(self.l, self.u)

    @classmethod
    def from_inequalities(cls, c, A=None, b=None, G=None, h=None) -> "LinearProgram":
        """The form $Ax = b$, $Gx \\le h$ of many textbooks; either pair may be left out."""
        c = jnp.asarray(c)
        return cls(c, *bounds.intervals(c, A, b, G, h))

    def as_quadratic_program(self) -> QuadraticProgram:
        """The same program with $P = 0$: the solutions are the same pairs."""
        n = self.c.shape[-1]
        P = jnp.zeros((n, n), self.c.dtype) if eqx.is_array(self.A) else as_map(0.0)
        return QuadraticProgram(P, self.c, self.A, self.l, self.u)

    def objective(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """$c^\\top x$."""
        return jnp.vdot(self.c, x)

    def residual(self, x):
        primal, dual = x
        A = as_map(self.A)
        return PrimalDual(self.c + A.adjoint(dual), bounds.excess(A(primal), dual, self.l, self.u))

    def start(self, x):
        return _start(self, x, self.c, self.l)

    def check(self, x):
        _check(self, x, self.c, self.l)
        checks.shaped_like("Ax", image_shape("A", self.A, x.primal), self.l)


class SecondOrderConeProgram(AbstractProblem):
    """Minimize $c^\\top x$ subject to $b - Ax \\in K$, a product of cones in this order:

    $\\{0\\}$ for equations, $\\{s \\ge 0\\}$ for inequalities, then second-order cones
    $\\{(t, v) : \\|v\\| \\le t\\}$. A solution is `PrimalDual(primal, dual)` with
    $c + A^\\top y = 0$, $s = b - Ax \\in K$, $y \\in K^*$ and $s^\\top y = 0$, which are together
    $s = \\Pi_K(s - y)$.

    **Certificates.** Infeasible: $y \\in K^*$ with $A^\\top y = 0$ and $b^\\top y < 0$. Unbounded:
    $x$ with $-Ax \\in K$ and $c^\\top x < 0$.

    **Arguments:**

    - `c`: shape `(n,)`.
    - `A`: a matrix `(m, n)`, a `lineax` operator, or a `core.operators.Map`.
    - `b`: shape `(m,)`.
    - `zero`, `nonnegative`: how many of the rows, from the top, are equations and inequalities.
    - `second_order`: the sizes of the second-order cones, which are the rest of the rows.

    **Raises:** `ValueError` on mismatched shapes, on sizes that do not add up to the rows, or NaN
    or infinity in `b`.
    """

    c: Float[Array, " n"]
    A: LinearMap
    b: Float[Array, " m"]
    zero: int = eqx.field(static=True)
    nonnegative: int = eqx.field(static=True)
    second_order: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, c, A, b, zero: int = 0, nonnegative: int = 0, second_order=()):
        self.A = matrix_or_operator(A)
        self.c, self.b = jnp.asarray(c), jnp.asarray(b)
        require_size("A", self.A, self.b.shape[-1:] + self.c.shape[-1:])
        self.zero, self.nonnegative = zero, nonnegative
        self.second_order = tuple(second_order)
        checks.count("zero", zero, minimum=0)
        checks.count("nonnegative", nonnegative, minimum=0)
        for size in self.second_order:
            checks.count("a size in second_order", size)
        rows = zero + nonnegative + sum(self.second_order)
        if self.b.ndim < 1 or rows != self.b.shape[-1]:
            raise ValueError(f"the cones have {rows} rows in all, but b has shape {self.b.shape}")
        checks.finite("b", self.b)

    @classmethod
    def from_norms(
        cls, c, norms: Sequence[tuple[Any, Any, Any, Any]], A=None, b=None, G=None, h=None
    ) -> "SecondOrderConeProgram":
        """$\\|A_i x + b_i\\| \\le c_i^\\top x + d_i$ for tuples $(A_i, b_i, c_i, d_i)$, beside
        $Ax = b$ and $Gx \\le h$, which may be left out."""
        c = jnp.asarray(c)
        plain, _, rhs = bounds.intervals(c, A, b, G, h)
        rows, sides, sizes = [plain], [rhs], []
        for matrix, shift, slope, offset in norms:
            matrix = jnp.asarray(matrix, c.dtype)
            rows += [-jnp.asarray(slope, c.dtype)[None], -matrix]
            sides += [jnp.asarray(offset, c.dtype)[None], jnp.asarray(shift, c.dtype)]
            sizes.append(1 + matrix.shape[0])
        zero = 0 if A is None else jnp.shape(A)[0]
        return cls(
            c, jnp.concatenate(rows), jnp.concatenate(sides), zero, plain.shape[0] - zero, sizes
        )

    def as_quadratic_program(self) -> QuadraticProgram:
        """The same program with $P = 0$; `ValueError` if there are second-order cones."""
        if self.second_order:
            raise ValueError(f"second-order cones {self.second_order} are no bounds on rows")
        equal = jnp.arange(self.b.shape[-1]) < self.zero
        lower = jnp.where(equal, self.b, -jnp.inf)
        return LinearProgram(self.c, self.A, lower, self.b).as_quadratic_program()

    def objective(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """$c^\\top x$."""
        return jnp.vdot(self.c, x)

    def project(self, s: Float[Array, " m"]) -> Float[Array, " m"]:
        """$\\Pi_K(s)$."""
        plain = self.zero + self.nonnegative
        parts = [jnp.zeros_like(s[: self.zero]), jnp.maximum(s[self.zero : plain], 0)]
        if self.second_order:
            parts.append(_project_second_order(s[plain:], self.second_order))
        return jnp.concatenate(parts)

    def residual(self, x):
        primal, dual = x
        A = as_map(self.A)
        slack = self.b - A(primal)
        return PrimalDual(self.c + A.adjoint(dual), self.project(slack - dual) - slack)

    def start(self, x):
        return _start(self, x, self.c, self.b)

    def check(self, x):
        _check(self, x, self.c, self.b)
        checks.shaped_like("Ax", image_shape("A", self.A, x.primal), self.b)


def _project_second_order(s: Float[Array, " m"], sizes: tuple[int, ...]) -> Float[Array, " m"]:
    """All cones at once: sums over each are segment sums."""
    count = len(sizes)
    starts = np.cumsum((0, *sizes[:-1]))
    ids = np.repeat(np.arange(count), sizes)
    is_head = np.isin(np.arange(s.size), starts)
    over_cones = lambda values: jax.ops.segment_sum(values, ids, count, indices_are_sorted=True)
    t, v = s[starts], jnp.where(is_head, 0, s)
    # Divided by the largest entry before squaring, so that nothing overflows or vanishes.
    unit = jax.ops.segment_max(jnp.abs(v), ids, count, indices_are_sorted=True)
    unit = jax.lax.stop_gradient(jnp.where(unit > 0, unit, 1))
    square = over_cones((v / unit[ids]) ** 2)
    norm = unit * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)
    half = 0.5 * t + 0.5 * norm
    factor = half / jnp.where(norm > 0, norm, 1)
    inside, outside = norm <= t, norm <= -t
    head = jnp.where(inside, t, jnp.where(outside, 0, half))
    factor = jnp.where(inside, 1, jnp.where(outside, 0, factor))
    return jnp.where(is_head, head[ids], factor[ids] * v)


class LinearMatrixInequality(AbstractProblem):
    """Minimize $c^\\top z$ subject to $F(z) = F_0 + \\sum_i z_i F_i \\preceq 0$, and $z_j \\ge 0$
    where `nonnegative` says so.

    A solution is `PrimalDual(primal, dual)` with a positive semidefinite multiplier $X$ of the
    Lagrangian $c^\\top z + \\langle X, F(z)\\rangle$. With its gradient $g_i = c_i + \\langle X,
    F_i\\rangle$ the residual is $z - \\Pi(z - g)$, which is $g_i$ where $z_i$ is free, and
    $F(z) + \\Pi_{\\succeq 0}(-F(z) - X)$, plus the skew part of $X$. Multipliers of the signs are
    the entries of $g$.

    **Certificates.** Infeasible: $X \\succeq 0$ with $\\langle X, F_i\\rangle = 0$ ($\\ge 0$ where
    $z_i \\ge 0$) and $\\langle X, F_0\\rangle > 0$. Unbounded: $z$, nonnegative where it must be,
    with $\\sum_i z_i F_i \\preceq 0$ and $c^\\top z < 0$.

    **Arguments:**

    - `cost`: $c$, shape `(k,)`.
    - `constant`: $F_0$, symmetric, shape `(*b, n, n)`; leading axes are inequalities side by side.
    - `generators`: the $F_i$, symmetric, stacked: shape `(k, *b, n, n)`; or a
      `core.operators.Map` from $z$ to $\\sum_i z_i F_i$, with its adjoint.
    - `nonnegative`: boolean mask of shape `(k,)`, or `None` if all are free.

    **Raises:** `ValueError` on mismatched shapes, or matrices that are not symmetric.
    """

    cost: Float[Array, " k"]
    constant: Float[Array, "*b n n"]
    generators: LinearMap
    nonnegative: Bool[Array, " k"] | None

    def __init__(self, cost, constant, generators, nonnegative=None):
        self.cost, self.constant = jnp.asarray(cost), jnp.asarray(constant)
        self.generators = generators if isinstance(generators, Map) else jnp.asarray(generators)
        self.nonnegative = None if nonnegative is None else jnp.asarray(nonnegative, bool)
        shape = self.constant.shape
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"constant must be a square matrix, got shape {shape}")
        _require_symmetric("constant", self.constant)
        if eqx.is_array(self.generators):
            wanted = (*self.cost.shape, *shape)
            if self.generators.shape != wanted:
                got = self.generators.shape
                raise ValueError(f"generators must have shape {wanted}, got {got}")
            _require_symmetric("generators", self.generators)
        if self.nonnegative is not None and self.nonnegative.shape != self.cost.shape:
            raise ValueError(
                f"nonnegative must have shape {self.cost.shape}, got {self.nonnegative.shape}"
            )

    @classmethod
    def from_standard(cls, C, A, b) -> "LinearMatrixInequality":
        """The dual of the standard form $\\min_{X \\succeq 0} \\langle C, X\\rangle$ subject to
        $\\langle A_i, X\\rangle = b_i$, with $A$ of shape `(m, n, n)`: $X$ is the `dual` of its
        solution, $-c^\\top z$ the value. What is infeasible there is unbounded here, and the other
        way around."""
        C, A = jnp.asarray(C), jnp.asarray(A)
        return cls(-jnp.asarray(b, C.dtype), -C, A)

    def objective(self, z: Float[Array, " k"]) -> Float[Array, ""]:
        """$c^\\top z$."""
        return jnp.vdot(self.cost, z)

    def matrix(self, z: Float[Array, " k"]) -> Float[Array, "*b n n"]:
        """$F(z)$."""
        if isinstance(self.generators, Map):
            return self.constant + self.generators(z)
        return self.constant + jnp.tensordot(z, self.generators, axes=1)

    def gradient(self, X: Float[Array, "*b n n"]) -> Float[Array, " k"]:
        """$c_i + \\langle X, F_i\\rangle$."""
        if isinstance(self.generators, Map):
            return self.cost + self.generators.adjoint(X)
        return self.cost + jnp.tensordot(self.generators, X, axes=X.ndim)

    def residual(self, x):
        z, X = x
        flipped = jnp.swapaxes(X, -1, -2)
        even, odd = 0.5 * (X + flipped), 0.5 * (X - flipped)
        F, gradient = self.matrix(z), self.gradient(even)
        if self.nonnegative is not None:
            gradient = jnp.where(self.nonnegative, z - jnp.maximum(z - gradient, 0), gradient)
        return PrimalDual(gradient, F + positive_part(-F - even) + odd)

    def start(self, x):
        return _start(self, x, self.cost, self.constant)

    def check(self, x):
        _check(self, x, self.cost, self.constant)
        image = jax.eval_shape(self.matrix, x.primal)
        checks.shaped_like("F(z)", image, self.constant)


def _require_symmetric(name: str, matrix: Array) -> None:
    if checks.is_traced(matrix):
        return
    host = np.asarray(matrix)  # also inside of jit
    skew = np.max(np.abs(host - np.swapaxes(host, -1, -2)), initial=0)
    scale = np.max(np.abs(host), initial=0)
    if not skew <= 1e3 * jnp.finfo(matrix.dtype).eps * scale:
        raise ValueError(f"{name} must be symmetric, entries differ by {float(skew):.3g}")
