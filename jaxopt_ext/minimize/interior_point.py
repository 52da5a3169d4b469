"""Interior points: path-following barrier methods for conic programs."""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core import (
    AbstractSolver,
    LinearMatrixInequality,
    LinearProgram,
    Scalar,
    SecondOrderConeProgram,
    Status,
    checks,
    scalar_field,
    tree,
)
from ._conic_form import Form, Scaling, conic_form, equilibrated, original
from ._conic_newton import factorized, in_metric, moved_within, polyhedral, proximal_weight
from .cones import SemidefiniteCones, symmetrized


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
        self, decrement: Float[Array, ""], degree: int | Float[Array, ""], reach: Float[Array, ""]
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
        return 1 / (1 + self.rate.astype(decrement.dtype) / jnp.sqrt(degree))


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


class _Point(NamedTuple):
    """A point of the homogeneous embedding."""

    x: Float[Array, " n"]
    y: Float[Array, " p"]
    z: tuple[Array, ...]
    s: tuple[Array, ...]
    tau: Float[Array, ""]
    kappa: Float[Array, ""]


class _State(eqx.Module):
    form: Form
    scaling: Scaling
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
        form, scaling = equilibrated(conic_form(problem, x))
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
        x, y, z, _, tau, _ = point
        value = original(problem, form, state.scaling, x, y, z, tau, tau)
        # The error is absolute, so that of a value that overflows is no number.
        error = tree.norm(problem.residual(value)).astype(state.error.dtype)
        better = (error < state.error) | jnp.isnan(error)
        best = tree.where(better, value, state.best)
        least = jnp.where(better, error, state.error)
        verdict, scale = self._verdict(form, point)
        proof = original(problem, form, state.scaling, x, y, z, *scale)
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


def _advance(form: Form, point: _Point, path: AbstractPath, refinements: int, near):
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
    scaled = in_metric(form, w)
    solve = factorized(scaled, refinements)

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
    curvature = tree.vdot(z2, z2) + proximal_weight(dtype) * tree.vdot((x2, y2), (x2, y2))
    move = direction(sigma, wanted, still, found)
    off = jnp.zeros((), bool)
    if path.predicts:
        length = jnp.minimum(1, 1 / jnp.maximum(reach(move), 1))
        sigma = path.centering(decrement, form.degree, length)
        off = (mu <= near) & (decrement > 0.1) & (not polyhedral(cones))
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

    return moved_within(form, point, moved, inside, length), decrement, off
