"""Interior points: path-following barrier methods for conic programs."""

import abc
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import (
    AbstractSolver,
    LinearMatrixInequality,
    LinearProgram,
    PrimalDual,
    Scalar,
    SecondOrderConeProgram,
    Status,
    checks,
    loops,
    scalar_field,
    tree,
)
from ..core.operators import dense
from .cones import AbstractCone, Orthant, SecondOrderCones, SemidefiniteCones, symmetrized


class AbstractPath(eqx.Module):
    """How fast the path is followed.

    A step aims at the point of the central path whose complementarity is $\\sigma \\mu$, with
    $\\mu$ that of the point it starts from.
    """

    fraction: eqx.AbstractVar[Scalar]
    """How much of the way to the boundary a step may take at most."""
    predicts: eqx.AbstractClassVar[bool]
    """Whether $\\sigma$ depends on how far the step with $\\sigma = 0$ could go."""

    @abc.abstractmethod
    def centering(
        self, decrement: Float[Array, ""], degree: int, reach: Float[Array, ""]
    ) -> Float[Array, ""]:
        """$\\sigma$, from the distance $\\|\\lambda \\circ \\lambda / \\mu - e\\|$ to the path, the
        parameter of the barrier, and, of a path that `predicts`, the length in $[0, 1]$ of the
        step with $\\sigma = 0$."""


class ShortStep(AbstractPath):
    """$\\mu \\leftarrow \\mu / (1 + r / \\sqrt{\\nu})$, a full Newton step each: it stays close to
    the path, and takes $O(\\sqrt\\nu \\log 1/\\epsilon)$ steps, the number that theory promises.

    **Arguments:**

    - `rate`: $r > 0$, by default $1/13$.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    """

    rate: Scalar = scalar_field(1 / 13)
    fraction: Scalar = scalar_field(0.999)
    predicts: ClassVar[bool] = False

    def __check_init__(self):
        checks.positive("rate", self.rate)
        checks.interval("fraction", self.fraction, 0, 1, open_low=True, open_high=True)

    def centering(self, decrement, degree, reach):
        return 1 / (1 + self.rate.astype(decrement.dtype) / math.sqrt(degree))


class LongStep(AbstractPath):
    """$\\mu \\leftarrow \\mu / r$ at each point that is close to the path, damped Newton steps at
    the same $\\mu$ until one is.

    **Arguments:**

    - `factor`: $r > 1$.
    - `neighborhood`: what counts as close.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    """

    factor: Scalar = scalar_field(10.0)
    neighborhood: Scalar = scalar_field(0.5)
    fraction: Scalar = scalar_field(0.9)
    predicts: ClassVar[bool] = False

    def __check_init__(self):
        checks.interval("factor", self.factor, 1, float("inf"), open_low=True, open_high=True)
        checks.positive("neighborhood", self.neighborhood)
        checks.interval("fraction", self.fraction, 0, 1, open_low=True, open_high=True)

    def centering(self, decrement, degree, reach):
        return jnp.where(decrement <= self.neighborhood, 1 / self.factor, 1).astype(decrement.dtype)


class PredictorCorrector(AbstractPath):
    """$\\sigma = (1 - a)^3$ where $a$ is how far the step with $\\sigma = 0$ could go, whose bend
    is then corrected. The fastest in practice, without a proof of it.

    **Reference:** Mehrotra, On the Implementation of a Primal-Dual Interior Point Method, 1992.
    """

    fraction: Scalar = scalar_field(0.99)
    predicts: ClassVar[bool] = True

    def __check_init__(self):
        checks.interval("fraction", self.fraction, 0, 1, open_low=True, open_high=True)

    def centering(self, decrement, degree, reach):
        return (1 - reach) ** 3


class _Form(eqx.Module):
    """Minimize $c^\\top x$ subject to $Ex = e$ and $h - Gx \\in K$.

    Rows of $E$ that are not in use are zero, and so is their multiplier; rows of $G$ that are not
    in use are zero beside a right-hand side in the interior.
    """

    c: Float[Array, " n"]
    E: Float[Array, "p n"]
    e: Float[Array, " p"]
    used: Bool[Array, " p"]
    G: tuple[Array, ...]  # unknowns on the leading axis, then the shape of the cone
    h: tuple[Array, ...]
    cones: tuple[AbstractCone, ...] = eqx.field(static=True)

    @property
    def degree(self) -> int:
        return 1 + sum(cone.degree for cone in self.cones)

    def map(self, x):
        return tuple(jnp.tensordot(x, G, axes=1) for G in self.G)

    def adjoint(self, z):
        parts = [jnp.tensordot(G, a, axes=a.ndim) for G, a in zip(self.G, z, strict=True)]
        return sum(parts, jnp.zeros_like(self.c))


class _Scaling(eqx.Module):
    """Diagonal changes of the unknowns, of the rows, and of cost and right-hand side."""

    columns: Float[Array, " n"]
    equalities: Float[Array, " p"]
    rows: tuple[Array, ...]
    cost: Float[Array, ""]
    side: Float[Array, ""]


def _inverse_root(size):
    return jnp.where(size > 0, 1 / jnp.sqrt(jnp.where(size > 0, size, 1)), 1)


def _row_size(cone, G):
    """The largest entry in each row, of one number for each cone: no other scaling keeps it."""
    size = jnp.max(jnp.abs(G), axis=0, initial=0)
    if isinstance(cone, Orthant):
        return size
    return jnp.max(size, axis=tuple(range(1, size.ndim)), keepdims=True)


def _scaled(form: _Form, sweeps: int = 8) -> tuple[_Form, _Scaling]:
    """Rows and columns of like size, by Ruiz' method, then cost and right-hand side."""
    dtype = form.c.dtype

    def sweep(_, s):
        E = s.equalities[:, None] * form.E * s.columns
        G = [_wide(s.columns, G) * r * G for G, r in zip(form.G, s.rows, strict=True)]
        axes = lambda G: tuple(range(1, G.ndim))
        sizes = [jnp.max(jnp.abs(E), axis=0, initial=0)]
        sizes += [jnp.max(jnp.abs(G), axis=axes(G), initial=0) for G in G]
        return _Scaling(
            s.columns * _inverse_root(jnp.max(jnp.stack(sizes), axis=0)),
            s.equalities * _inverse_root(jnp.max(jnp.abs(E), axis=1, initial=0)),
            tuple(
                r * _inverse_root(_row_size(cone, G))
                for cone, r, G in zip(form.cones, s.rows, G, strict=True)
            ),
            s.cost,
            s.side,
        )

    one = jnp.ones((), dtype)
    rows = tuple(jnp.ones_like(_row_size(k, G)) for k, G in zip(form.cones, form.G, strict=True))
    start = _Scaling(jnp.ones_like(form.c), jnp.ones_like(form.e), rows, one, one)
    s = loops.fori_loop(0, sweeps, sweep, start)
    G = tuple(_wide(s.columns, G) * r * G for G, r in zip(form.G, s.rows, strict=True))
    c, e = s.columns * form.c, s.equalities * form.e
    h = tuple(r * h for r, h in zip(s.rows, form.h, strict=True))
    size = lambda *parts: jnp.max(jnp.stack([jnp.max(jnp.abs(p), initial=0) for p in parts]))
    normal = lambda size: jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 1)
    cost, side = normal(size(c)), normal(size(e, *h))
    E = s.equalities[:, None] * form.E * s.columns
    scaled = _Form(cost * c, E, side * e, form.used, G, tree.scale(h, side), form.cones)
    return scaled, _Scaling(s.columns, s.equalities, s.rows, cost, side)


def _wide(columns, G):
    return columns.reshape(-1, *[1] * (G.ndim - 1))


class _Point(NamedTuple):
    """A point of the homogeneous embedding."""

    x: Float[Array, " n"]
    y: Float[Array, " p"]
    z: tuple[Array, ...]
    s: tuple[Array, ...]
    tau: Float[Array, ""]
    kappa: Float[Array, ""]


class _State(eqx.Module):
    form: _Form
    scaling: _Scaling
    point: _Point
    decrement: Float[Array, ""]
    returns: Int[Array, ""]
    best: PyTree[Array]
    error: Float[Array, ""]
    verdict: Status


class InteriorPoint(AbstractSolver):
    """Interior point method for linear, second-order cone and semidefinite programs.

    With $\\min c^\\top x$ subject to $Ex = e$, $h - Gx = s \\in K$ and the dual
    $\\max -e^\\top y - h^\\top z$ subject to $c + E^\\top y + G^\\top z = 0$, $z \\in K$, it
    follows the central path of the homogeneous self-dual embedding

    $$\\begin{aligned} E^\\top y + G^\\top z + c \\tau &= \\mu r_1 & E x - e \\tau &= \\mu r_2 \\\\
    G x + s - h \\tau &= \\mu r_3 &
    c^\\top x + e^\\top y + h^\\top z + \\kappa &= \\mu r_4 \\end{aligned}
    \\qquad s \\circ z = \\mu e, \\quad \\tau \\kappa = \\mu$$

    to $\\mu = 0$ by Newton steps in the scaling of Nesterov and Todd. The point $s = z = e$,
    $\\tau = \\kappa = 1$ is on the path, for the $r$ that it defines, whether or not the program
    has an interior or a solution: there is no first phase. In the end $\\tau > 0$, and $(x, y, z) /
    \\tau$ is a solution, or $\\kappa > 0$, and one of the certificates of the problem types is
    found.

    The matrices are formed, and so is $G^\\top W^{-1} W^{-\\top} G$: for $n$ unknowns a step costs
    $O(n^3)$ plus $n$ scalings of cone points. Rows and columns are equilibrated first. The start's
    numbers are not used, only its shapes.

    **When it stops.** The error is the norm of the problem's residual at the best point so far,
    which is the value. On `Status.infeasible` the value's dual part, on `Status.unbounded` its
    primal part, is a certificate as described with the problem type, of inner product $-1$ ($1$ for
    `LinearMatrixInequality`, infeasible) with the data that it contradicts: no solution of the
    equilibrated program is smaller than $1 / \\epsilon$, $\\epsilon$ being `infeasible_tol`, in
    single precision at least a thousand rounding units. Programs that are infeasible only in the
    limit have no certificate, and end at the step limit.

    **Arguments:**

    - `path`: `PredictorCorrector()`, `LongStep()` or `ShortStep()`. Short steps need `max_steps` of
      several thousands.
    - `infeasible_tol`: $\\epsilon$ of the certificates.
    - `refinements`: how often each linear solve is refined.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Nesterov, Todd, Self-Scaled Barriers and Interior-Point Methods for Convex
    Programming, 1997; Ye, Todd, Mizuno, An $O(\\sqrt{n}L)$-Iteration Homogeneous and Self-Dual
    Linear Programming Algorithm, 1994; Vandenberghe, The CVXOPT Linear and Quadratic Cone Program
    Solvers, 2010.
    """

    path: AbstractPath = eqx.field(  # made when asked for: an import makes no arrays
        default_factory=lambda: PredictorCorrector()
    )
    infeasible_tol: Scalar = scalar_field(1e-8)
    refinements: int = eqx.field(static=True, default=3)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 100
    problems = (SecondOrderConeProgram, LinearProgram, LinearMatrixInequality)

    def __check_init__(self):
        checks.instance("path", self.path, AbstractPath, "PredictorCorrector()")
        checks.positive("infeasible_tol", self.infeasible_tol)
        checks.count("refinements", self.refinements, minimum=0)

    def init(self, problem, x, key):
        form, scaling = _scaled(_form(problem, x))
        dtype = form.c.dtype
        unit = tuple(cone.unit(dtype) for cone in form.cones)
        one = jnp.ones((), dtype)
        point = _Point(jnp.zeros_like(form.c), jnp.zeros_like(form.e), unit, unit, one, one)
        infinity = jnp.full((), jnp.inf, dtype)
        return _State(
            form, scaling, point, 0 * one, jnp.asarray(0, jnp.int32), x, infinity, Status.running
        )

    def refresh(self, problem, x, state):
        return self.init(problem, x, jax.random.key(0))

    def step(self, problem, x, state):
        form = state.form
        unit = state.scaling.cost * state.scaling.side * state.point.tau**2
        near = jnp.where(state.returns >= 3, 0, 100 * self.tol.astype(unit.dtype) * unit)
        point, decrement, off = _advance(form, state.point, self.path, self.refinements, near)
        value = _value(problem, form, state.scaling, point, point.tau, point.tau)
        # The error is absolute, so that of a value that overflows is no number.
        error = tree.norm(problem.residual(value)).astype(state.error.dtype)
        better = (error < state.error) | jnp.isnan(error)
        best = tree.where(better, value, state.best)
        least = jnp.where(better, error, state.error)
        verdict, scale = self._verdict(form, point)
        proof = _value(problem, form, state.scaling, point, *scale)
        solved = (verdict == Status.running) | (least <= self.tol)
        x = tree.where(solved, best, proof)
        new = _State(
            form,
            state.scaling,
            point,
            decrement,
            jnp.where(off, state.returns + 1, 0),
            best,
            least,
            verdict,
        )
        return tree.cast_like(x, best), new

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def _verdict(self, form, point):
        """Whether a direction proves that there is no solution, and what to divide it by."""
        dtype = point.tau.dtype
        eps = jnp.maximum(self.infeasible_tol.astype(dtype), 1000 * jnp.finfo(dtype).eps)
        x, y, z, s, tau, kappa = point
        gain = -jnp.vdot(form.e, y) - tree.vdot(form.h, z)
        fall = -jnp.vdot(form.c, x)
        miss = jnp.sum(jnp.abs(form.E.T @ y + form.adjoint(z)))
        bend = tree.norm((form.E @ x, jax.tree.map(jnp.add, form.map(x), s)))
        ends = kappa > tau
        infeasible = ends & (miss <= eps * gain) & (gain > 0)
        unbounded = ends & (bend <= eps * fall) & (fall > 0)
        status = Status.where(unbounded, Status.unbounded, Status.running)
        status = Status.where(infeasible, Status.infeasible, status)
        positive = lambda a: jnp.where(a > 0, a, 1)
        return status, (positive(fall), positive(gain))


def _advance(form: _Form, point: _Point, path: AbstractPath, refinements: int, near):
    """A Newton step, how far from the path it started, and whether it was one back to it.

    That it is where $\\mu$ is below `near` and the point is off the path, unless cones are
    polyhedral: on the path the residual falls like $\\mu$, off it like $\\sqrt\\mu$, as two points
    on the boundaries of round cones need not be opposite for their product to be small.
    """
    x, y, z, s, tau, kappa = point
    cones = form.cones
    dtype = tau.dtype
    mu = (tree.vdot(s, z) + tau * kappa) / form.degree
    pairs = [cone.scaling(a, b) for cone, a, b in zip(cones, s, z, strict=True)]
    w, lam = [p[0] for p in pairs], tuple(p[1] for p in pairs)
    each = lambda name, *args: tuple(
        getattr(cone, name)(*parts) for cone, *parts in zip(cones, *args, strict=True)
    )
    G = tuple(
        jax.vmap(lambda g, cone=cone, w=w: cone.scale_slack(w, g))(G)
        for cone, w, G in zip(cones, w, form.G, strict=True)
    )
    scaled = _Form(form.c, form.E, form.e, form.used, G, each("scale_slack", w, form.h), cones)
    solve = _factorized(scaled, refinements)

    rx = form.E.T @ y + form.adjoint(z) + form.c * tau
    ry = form.E @ x - form.e * tau
    rz = jax.tree.map(lambda a, b, c: a + b - c * tau, form.map(x), s, form.h)
    rt = jnp.vdot(form.c, x) + jnp.vdot(form.e, y) + tree.vdot(form.h, z) + kappa
    rz = each("scale_slack", w, rz)
    unit = tuple(cone.unit(dtype) for cone in cones)
    squares = each("product", lam, lam)

    def target(sigma, bend):
        """Complementarity sigma mu, with what the second order adds, and the system for it."""
        wanted = jax.tree.map(lambda a, b, u: a + b - sigma * mu * u, squares, bend, unit)
        wanted = each("divide", lam, wanted)
        left = 1 - sigma
        side = jax.tree.map(lambda a, b: b - left * a, rz, wanted)
        return wanted, (-left * rx, -left * ry, side)

    def direction(sigma, wanted, tau_bend, found):
        """Towards it, from the solution of its system."""
        left, (x1, y1, z1) = 1 - sigma, found
        d_kappa = tau * kappa + tau_bend - sigma * mu
        gap = jnp.vdot(form.c, x1) + jnp.vdot(form.e, y1) + tree.vdot(scaled.h, z1)
        d_tau = (left * rt + gap - d_kappa / tau) / (curvature + kappa / tau)
        dx, dy, dz = tree.axpy((x1, y1, z1), d_tau, (x2, y2, z2))
        ds = jax.tree.map(lambda a, b: -a - b, wanted, dz)
        return dx, dy, dz, ds, d_tau, -(d_kappa + kappa * d_tau) / tau

    def reach(move):
        _, _, dz, ds, d_tau, d_kappa = move
        ends = [
            jnp.max(jax.vmap(cone.reach, (None, 0))(at, jnp.stack(both)))
            for cone, at, *both in zip(cones, lam, dz, ds, strict=True)
        ]
        return jnp.max(jnp.stack([*ends, -d_tau / tau, -d_kappa / kappa]), initial=0)

    off = jax.tree.map(lambda a, u: a / mu - u, squares, unit)
    decrement = tree.norm((off, tau * kappa / mu - 1))
    nothing = jax.tree.map(jnp.zeros_like, lam)
    still = jnp.zeros((), dtype)
    sigma = still if path.predicts else path.centering(decrement, form.degree, still + 1)
    wanted, system = target(sigma, nothing)
    # Two systems at once: one behind the other they would be as long again.
    systems = jax.tree.map(lambda a, b: jnp.stack([a, b]), (-form.c, form.e, scaled.h), system)
    found = jax.vmap(solve)(*systems)
    (x2, y2, z2), found = (jax.tree.map(lambda a, i=i: a[i], found) for i in (0, 1))
    # What -(c'x + e'y + h'z) is there, without cancellation.
    curvature = tree.vdot(z2, z2) + _proximal(dtype) * tree.vdot((x2, y2), (x2, y2))
    move = direction(sigma, wanted, still, found)
    off = jnp.zeros((), bool)
    if path.predicts:
        length = jnp.minimum(1, 1 / jnp.maximum(reach(move), 1))
        sigma = path.centering(decrement, form.degree, length)
        off = (mu <= near) & (decrement > 0.1) & (not _polyhedral(cones))
        sigma = jnp.where(off, 1, sigma)
        bend = tree.where(off, nothing, each("product", move[2], move[3]))
        wanted, system = target(sigma, bend)
        move = direction(sigma, wanted, jnp.where(off, 0, move[4] * move[5]), solve(*system))
    end = reach(move)
    length = jnp.minimum(1, path.fraction.astype(dtype) / jnp.where(end > 0, end, 1e-3))

    dx, dy, dz, ds, d_tau, d_kappa = move
    change = _Point(dx, dy, each("unscale", w, dz), each("unscale_slack", w, ds), d_tau, d_kappa)

    def moved(length):
        new = tree.axpy(point, length, change)
        even = lambda parts: tuple(
            symmetrized(a) if isinstance(cone, SemidefiniteCones) else a
            for cone, a in zip(cones, parts, strict=True)
        )
        new = new._replace(z=even(new.z), s=even(new.s))
        # Only rays matter; this keeps the numbers in range.
        return tree.scale(new, 1 / jnp.maximum(new.tau, new.kappa))

    def inside(new):
        ok = (new.tau > 0) & (new.kappa > 0) & tree.all_finite(new)
        for cone, *both in zip(cones, new.z, new.s, strict=True):
            ok = ok & jnp.all(jax.vmap(cone.interior)(jnp.stack(both)))
        return ok

    # By rounding a point may be outside still.
    tries, length, new = loops.while_loop(
        lambda carry: (carry[0] < 8) & ~inside(carry[2]),
        lambda carry: (carry[0] + 1, 0.5 * carry[1], moved(0.5 * carry[1])),
        (jnp.asarray(0, jnp.int32), length, moved(length)),
    )
    # Not a number in the data must stay visible.
    stays = (tries >= 8) & tree.all_finite((form.c, form.E, form.e, form.G, form.h))
    return tree.where(stays, point, new), decrement, off


def _proximal(dtype) -> float:
    return 1e-3 * float(jnp.finfo(dtype).eps) ** 0.5


def _polyhedral(cones):
    return all(isinstance(cone, Orthant) for cone in cones)


def _by_squares(parts, E, corner, proximal):
    """Solves $Hx + E^\\top y = a$, $Ex - \\mathrm{diag}(c) y = b$, with $H$ the sum of the squares
    of `parts` and of the proximal term, nearly."""
    n = E.shape[1]
    H = sum((G @ G.T for G in parts), proximal * jnp.eye(n, dtype=E.dtype))
    H = H + jnp.diag(_rounding(H) * (1 + jnp.diagonal(H)))
    if not E.shape[0]:
        factor = jax.scipy.linalg.cho_factor(H)
        return lambda a, b: (jax.scipy.linalg.cho_solve(factor, a), b)
    factor = jax.scipy.linalg.lu_factor(jnp.block([[H, E.T], [E, -jnp.diag(corner)]]))
    return lambda a, b: jnp.split(jax.scipy.linalg.lu_solve(factor, jnp.concatenate([a, b])), [n])


def _by_roots(parts, E, corner, proximal):
    """The same without the loss of half of the digits in the squares, which where cones are round
    is that of steps between points whose angle to the boundary is small. It costs three times as
    much."""
    n = E.shape[1]
    # The equations' squares change no solution, and without them the matrix may be singular.
    R = _root(jnp.concatenate([*parts, E.T, proximal**0.5 * jnp.eye(n, dtype=E.dtype)], axis=1))
    lower = lambda R, a: jax.scipy.linalg.solve_triangular(R, a, trans=1)
    upper = lambda R, a: jax.scipy.linalg.solve_triangular(R, a)
    if not E.shape[0]:
        return lambda a, b: (upper(R, lower(R, a)), b)
    V = lower(R, E.T)
    S = _root(jnp.concatenate([V.T, jnp.diag(jnp.sqrt(corner))], axis=1))

    def inverse(a, b):
        a = lower(R, a + E.T @ b)
        y = upper(S, lower(S, V.T @ a - b))
        return upper(R, a - V @ y), y

    return inverse


def _rounding(A):
    return 30 * float(jnp.finfo(A.dtype).eps)


def _root(A):
    """The triangular $R$ with $R^\\top R = A A^\\top$, as accurate as one from a QR factorization
    of $A^\\top$: Cholesky of the product, which may lose its smallest parts in rounding, and again
    of that of the rows that it made nearly orthogonal.

    **Reference:** Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, Roundoff Error Analysis of the
    CholeskyQR2 Algorithm, 2015.
    """

    def factor(A):
        H = A @ A.T
        return jnp.linalg.cholesky(H + jnp.diag(_rounding(A) * (1 + jnp.diagonal(H)))).T

    first = factor(A)
    return factor(jax.scipy.linalg.solve_triangular(first, A, trans=1)) @ first


def _factorized(form: _Form, refinements: int):
    """Solves $E^\\top y + G^\\top z = a$, $Ex = b$, $Gx - z = d$, with $G$ scaled."""
    dtype, n = form.c.dtype, form.c.size
    idle = jnp.where(form.used, 0, 1).astype(dtype)
    # A proximal term, which stays: along directions that no row sees, steps are finite.
    proximal = _proximal(dtype)
    parts = [G.reshape(n, -1) for G in form.G]
    prepare = _by_squares if _polyhedral(form.cones) else _by_roots
    inverse = prepare(parts, form.E, idle + proximal, proximal)

    def approximate(a, b, d):
        x, y = inverse(a + form.adjoint(d), b)
        return x, y, jax.tree.map(jnp.subtract, form.map(x), d)

    def solve(a, b, d):
        def refine(_, found):
            x, y, z = found
            gaps = (
                a - proximal * x - form.E.T @ y - form.adjoint(z),
                b - form.E @ x + (idle + proximal) * y,
                jax.tree.map(lambda d, u, v: d - u + v, d, form.map(x), z),
            )
            return jax.tree.map(jnp.add, found, approximate(*gaps))

        return loops.fori_loop(0, refinements, refine, approximate(a, b, d))

    return solve


def _form(problem: Any, x: PrimalDual) -> _Form:
    if isinstance(problem, LinearProgram):
        return _linear_form(problem, x)
    if isinstance(problem, SecondOrderConeProgram):
        return _second_order_form(problem, x)
    return _matrix_form(problem, x)


def _linear_form(problem, x):
    """Each row thrice: as an equation, an upper and a lower bound, two or three of them idle."""
    A, l, u = dense(problem.A, x.primal), problem.l, problem.u
    equal = l == u
    above, below = jnp.isfinite(u) & ~equal, jnp.isfinite(l) & ~equal
    only = lambda mask, rows: jnp.where(mask[:, None], rows, 0)
    at = lambda mask, side: jnp.where(mask, side, jnp.ones_like(side))
    G = jnp.concatenate([only(above, A), only(below, -A)]).T
    h = jnp.concatenate([at(above, u), at(below, -l)])
    # NaN bounds are no rows, but have to be seen.
    h = h + jnp.where(jnp.isnan(jnp.concatenate([u, l])), jnp.nan, 0)
    e = jnp.where(equal, u, 0)
    return _Form(problem.c, only(equal, A), e, equal, (G,), (h,), (Orthant(h.shape),))


def _layout(problem):
    """Where the rows of the cones are in a padded array; the last row of all is padding."""
    width, rows = max(problem.second_order), problem.b.shape[-1]
    starts = problem.zero + problem.nonnegative + np.cumsum((0, *problem.second_order[:-1]))
    place = np.full((len(problem.second_order), width), rows)
    for i, (first, size) in enumerate(zip(starts, problem.second_order, strict=True)):
        place[i, :size] = np.arange(first, first + size)
    return place


def _second_order_form(problem, x):
    A, b = dense(problem.A, x.primal), problem.b
    p, plain = problem.zero, problem.zero + problem.nonnegative
    G, h = [A[p:plain].T], [b[p:plain]]
    cones: list[AbstractCone] = [Orthant((plain - p,))]
    if problem.second_order:
        place = _layout(problem)
        G.append(jnp.moveaxis(jnp.pad(A, ((0, 1), (0, 0)))[place], -1, 0))
        h.append(jnp.pad(b, (0, 1))[place])
        cones.append(SecondOrderCones(place.shape))
    used = jnp.ones(p, bool)
    return _Form(problem.c, A[:p], b[:p], used, tuple(G), tuple(h), tuple(cones))


def _matrix_form(problem, x):
    """The matrices, and a row for each sign; idle where there is none."""
    n = problem.constant.shape[-1]
    generators = problem.generators
    if not eqx.is_array(generators):
        unit = jnp.eye(problem.cost.size, dtype=problem.cost.dtype)
        generators = jax.vmap(generators)(unit)
    G = symmetrized(generators).reshape(problem.cost.size, -1, n, n)
    h = -symmetrized(problem.constant).reshape(-1, n, n)
    parts, sides = [G], [h]
    cones: list[AbstractCone] = [SemidefiniteCones(h.shape)]
    if problem.nonnegative is not None:
        signed = problem.nonnegative
        parts.append(jnp.diag(jnp.where(signed, -1, 0).astype(G.dtype)))
        sides.append(jnp.where(signed, 0, 1).astype(G.dtype))
        cones.append(Orthant(signed.shape))
    c, none = problem.cost, jnp.zeros(0, G.dtype)
    E, used = jnp.zeros((0, c.size), G.dtype), jnp.zeros(0, bool)
    return _Form(c, E, none, used, tuple(parts), tuple(sides), tuple(cones))


def _value(problem, form, scaling, point, primal_unit, dual_unit):
    """The point in the problem's own variables, its two parts divided by these numbers."""
    x = scaling.columns * point.x / (scaling.side * primal_unit)
    unit = scaling.cost * dual_unit
    y = scaling.equalities * point.y / unit
    z = tuple(r * a / unit for r, a in zip(scaling.rows, point.z, strict=True))
    if isinstance(problem, LinearProgram):
        upper, lower = jnp.split(z[0], 2)
        real = jnp.isfinite(problem.u), jnp.isfinite(problem.l)
        dual = jnp.where(form.used, y, 0)
        dual = dual + jnp.where(real[0] & ~form.used, upper, 0)
        return PrimalDual(x, dual - jnp.where(real[1] & ~form.used, lower, 0))
    if isinstance(problem, SecondOrderConeProgram):
        dual = [y, z[0]]
        if problem.second_order:
            place = _layout(problem)
            dual.append(z[1][place < problem.b.shape[-1]])
        return PrimalDual(x, jnp.concatenate(dual))
    return PrimalDual(x, symmetrized(z[0]).reshape(problem.constant.shape))
