"""Operator splitting for quadratic programs."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int

from ..core import (
    AbstractSplittingSolver,
    PrimalDual,
    QuadraticProgram,
    Scalar,
    Status,
    checks,
    loops,
    scalar_field,
    tree,
)
from ..core.operators import as_map
from .ruiz import Scaling, identity_scaling, ruiz_scaling


class _AbstractSystem(eqx.Module):
    """Solves $(P + \\sigma I + A^\\top R A) x = b$."""

    @abc.abstractmethod
    def solve(self, problem, rhs):
        """The solution."""

    def ready(self):
        """Whether it can be solved with."""
        return jnp.asarray(True)


class _Inverse(_AbstractSystem):
    # One product with the inverse is many times faster than two triangular solves, above all in
    # batches; its rounding vanishes with the step that it is asked for.
    inverse: Float[Array, "n n"]

    def solve(self, problem, rhs):
        return self.inverse @ rhs

    def ready(self):
        return jnp.all(jnp.isfinite(jnp.diagonal(self.inverse)))


class _ConjugateGradient(_AbstractSystem):
    sigma: Float[Array, ""]
    rows: Float[Array, " m"]

    def solve(self, problem, rhs):
        P, A = as_map(problem.P), as_map(problem.A)
        operator = lx.FunctionLinearOperator(
            lambda x: P(x) + self.sigma * x + A.adjoint(self.rows * A(x)),
            jax.eval_shape(lambda: rhs),
            lx.positive_semidefinite_tag,
        )
        eps = float(jnp.finfo(rhs.dtype).eps)
        solver = lx.CG(rtol=100 * eps, atol=100 * eps)
        return lx.linear_solve(operator, rhs, solver, throw=False).value


class _Operator(eqx.Module):
    """One iteration on $(x, v)$, where $z = \\Pi(v)$ and $y = R (v - z)$."""

    problem: QuadraticProgram
    rows: Float[Array, " m"]
    system: _AbstractSystem
    sigma: Float[Array, ""]
    relaxation: Float[Array, ""]

    def split(self, v):
        z = jnp.clip(v, self.problem.l, self.problem.u)
        return z, self.rows * (v - z)

    def __call__(self, u):
        x, v = u
        P: Any = as_map(self.problem.P)
        A: Any = as_map(self.problem.A)
        Ax = A(x)
        z, y = self.split(v)
        # The system is solved for the step from x, whose right-hand side vanishes at a solution:
        # an inverse in single precision then limits the speed, not the accuracy.
        slope = P(x) + self.problem.q + A.adjoint(y + self.rows * (Ax - z))
        step: Any = self.system.solve(self.problem, -slope)
        alpha = self.relaxation
        v_new = alpha * (Ax + A(step)) + (1 - alpha) * z + (v - z)
        return x + alpha * step, v_new


class _State(eqx.Module):
    scaling: Scaling
    penalty: Float[Array, ""]
    system: _AbstractSystem
    x: Float[Array, " n"]
    v: Float[Array, " m"]
    error: Float[Array, ""]
    verdict: Status
    steps: Int[Array, ""]
    sides: Int[Array, " m"]
    tried: Int[Array, " m"]


class OSQP(AbstractSplittingSolver):
    """ADMM for quadratic programs, with equilibration, an adaptive penalty, certificates of
    infeasibility, and polishing.

    With $R = \\mathrm{diag}(\\rho_i)$, $\\rho_i = \\rho$ for inequalities and $10^3 \\rho$ for
    equalities, each iteration solves

    $$(P + \\sigma I + A^\\top R A)\\, \\tilde x = \\sigma x - q + A^\\top (R z - y)$$

    with an inverse that is computed again only when $\\rho$ changes, at most once in
    `iterations_per_step` iterations. Matrices given as `lineax` operators are never formed, and
    sparse ones, `CSR` or `BCSR`, never made dense: conjugate gradients take the place of the
    inverse, and there is no equilibration or polishing.

    **When it stops.** The error of a point $(x, y)$, in the variables of the user, is the largest
    of, row by row and with $z = \\Pi_{[l, u]}(Ax + y)$,

    $$\\frac{|Ax - z|_i}{1 + (|A| |x| + |z|)_i}, \\qquad
    \\frac{|Px + q + A^\\top y|_j}{1 + (|P| |x| + |q| + |A|^\\top |y|)_j}$$

    and the duality gap $|x^\\top P x + q^\\top x + s(y)| / (1 + \\max(|x^\\top P x|,
    |q^\\top x|, |s(y)|))$, where $s(y) = \\sup_{l \\le w \\le u} y^\\top w$. The numerators of the
    first two are the problem's residual, so `error <= tol` bounds each of its entries by `tol`
    times one plus the sizes of the products it is made of: as much as a relative change of the
    data by `tol` could do. A point so far out that $|P| |x|$ or $|A| |x|$ cancel beyond all digits
    counts as no solution. Without the entries of the matrices, given as operators, the largest
    entries of $Ax$ and $z$, and of $Px$, $q$ and $A^\\top y$, take the place of the sums. For
    iterates the first numerator is at most the distance of $Ax$ to the iterate $z$ that their
    multipliers belong to. That distance also steers $\\rho$: one to any other point of $[l, u]$
    vanishes at feasible points that are far from optimal.

    **Polishing** solves the equations of the rows that the iterates hold at a bound, by a method
    of multipliers with one factorization of the size of $x$ and as many turns as help. It is tried
    after step 1, 2, 4, 8 and each sixteenth, unless these rows are those of the last trial; the
    point is taken if its error is at most `tol`, else the iterates go on as if nothing had been.
    Behind the last step it is done once more, and up to twice again with the rows that the answer
    holds, which are semismooth Newton steps, and taken if the error is smaller.

    **Certificates** are read from the movement $(dx, dy)$ over a step in equilibrated variables:
    *infeasible* if $X \\|A^\\top dy\\|_1 < -\\epsilon\\, s(dy)$, so that no feasible point is
    smaller than $X / \\epsilon$ where $X$ is the size that bounds and rows ask for; *unbounded* if
    $X \\|P dx\\|_1 + Y \\|A dx\\|_{out} < -\\epsilon\\, q^\\top dx$ with $Y$ the same for
    multipliers, where only movement towards finite bounds counts in $A dx$. Movements that are
    close are projected first, which takes rounding out of them. In single precision $\\epsilon$ is
    at least a thousand times the rounding unit.

    **Arguments:**

    - `penalty`: first $\\rho$.
    - `sigma`: $\\sigma > 0$; raised coordinate by coordinate to a hundred rounding units of the
      diagonal, so that the matrix can be factorized.
    - `relaxation`: $\\alpha \\in (0, 2)$.
    - `adaptive`: adapt $\\rho$ to balance the residuals.
    - `scaling_steps`: sweeps of equilibration; 0 for none.
    - `polish`: whether to polish.
    - `infeasible_tol`: $\\epsilon$ of the certificates.
    - `iterations_per_step`: iterations between two looks at the residuals.
    - `tol`, `max_steps`: see `AbstractSolver`. A step is `iterations_per_step` iterations.

    **Reference:** Stellato, Banjac, Goulart, Bemporad, Boyd, OSQP: An Operator Splitting Solver for
    Quadratic Programs, 2020, arXiv:1711.08013.
    """

    penalty: Scalar = scalar_field(0.1)
    sigma: Scalar = scalar_field(1e-6)
    relaxation: Scalar = scalar_field(1.6)
    adaptive: bool = eqx.field(static=True, default=True)
    scaling_steps: int = eqx.field(static=True, default=10)
    polish: bool = eqx.field(static=True, default=True)
    infeasible_tol: Scalar = scalar_field(1e-5)
    iterations_per_step: int = eqx.field(static=True, default=25)
    tol: Scalar = scalar_field(1e-5)
    max_steps: int = 400
    problems = (QuadraticProgram,)

    def __check_init__(self):
        checks.positive("penalty", self.penalty)
        checks.positive("sigma", self.sigma)
        checks.interval("relaxation", self.relaxation, 0, 2, open_low=True, open_high=True)
        checks.count("scaling_steps", self.scaling_steps, minimum=0)
        checks.positive("infeasible_tol", self.infeasible_tol)
        checks.count("iterations_per_step", self.iterations_per_step)

    def _rows(self, problem, penalty):
        rows = jnp.where(problem.l == problem.u, 1e3 * penalty, penalty)
        free = jnp.isinf(problem.l) & jnp.isinf(problem.u)
        rows = jnp.where(free, 1e-6, rows)
        return jnp.clip(rows, 1e-6, 1e6)

    def _system(self, problem, penalty) -> _AbstractSystem:
        rows, sigma = self._rows(problem, penalty), self.sigma.astype(problem.q.dtype)
        if not _is_dense(problem):
            return _ConjugateGradient(sigma, rows)
        return _inverse(problem, rows, sigma)

    def _operator(self, problem, penalty, system):
        dtype = problem.q.dtype
        rows = self._rows(problem, penalty)
        sigma, alpha = self.sigma.astype(dtype), self.relaxation.astype(dtype)
        return _Operator(problem, rows, system, sigma, alpha)

    def operator(self, problem, u):
        penalty = self.penalty.astype(problem.q.dtype)
        return self._operator(problem, penalty, self._system(problem, penalty))

    def start(self, problem, x):
        x = problem.start(x)
        rows = self._rows(problem, self.penalty.astype(problem.q.dtype))
        return x.primal, as_map(problem.A)(x.primal) + x.dual / rows

    def read(self, problem, u):
        rows = self._rows(problem, self.penalty.astype(problem.q.dtype))
        x, v = u
        return PrimalDual(x, rows * (v - jnp.clip(v, problem.l, problem.u)))

    def init(self, problem, x, key):
        dense = _is_dense(problem) and self.scaling_steps > 0
        scaling = ruiz_scaling(problem, self.scaling_steps) if dense else identity_scaling(problem)
        scaled = scaling.scale(problem) if dense else problem
        penalty = self.penalty.astype(problem.q.dtype)
        point = scaling.forward(x)
        v = as_map(scaled.A)(point.primal) + point.dual / self._rows(scaled, penalty)
        infinity = jnp.asarray(jnp.inf, problem.q.dtype)
        system = self._system(scaled, penalty)
        nothing = jnp.full(v.shape, _UNTRIED, jnp.int8)
        zero = jnp.asarray(0, jnp.int32)
        return _State(
            scaling,
            penalty,
            system,
            point.primal,
            v,
            infinity,
            Status.running,
            zero,
            nothing,
            nothing,
        )

    def refresh(self, problem, x, state):
        scaled = self._scaled(problem, state)
        system = self._system(scaled, state.penalty)
        zero, nothing = jnp.zeros_like(state.steps), jnp.full_like(state.tried, _UNTRIED)
        return eqx.tree_at(
            lambda s: (s.system, s.verdict, s.steps, s.tried),
            state,
            (system, Status.running, zero, nothing),
        )

    def _scaled(self, problem, state):
        if self.scaling_steps > 0 and _is_dense(problem):
            return state.scaling.scale(problem)
        return problem

    def step(self, problem, x, state):
        scaled = self._scaled(problem, state)
        operator = self._operator(scaled, state.penalty, state.system)
        start = (state.x, state.v)
        u = loops.fori_loop(0, self.iterations_per_step, lambda _, u: operator(u), start)
        z, y = operator.split(u[1])
        point = state.scaling.backward(PrimalDual(u[0], y))
        error = _error(problem, point)
        moved = PrimalDual(u[0] - start[0], y - operator.split(start[1])[1])
        verdict = self._verdict(scaled, operator, moved, u[0], y)

        penalty, system, v = state.penalty, state.system, u[1]
        if self.adaptive:
            # Relative residuals without the 1 of the stopping rule, as in the paper.
            ratio = _imbalance(problem, point, z / state.scaling.E)
            wanted = jnp.clip(penalty * jnp.sqrt(ratio), 1e-6, 1e6)
            change = (wanted > 5 * penalty) | (wanted < penalty / 5)
            penalty = jnp.where(change & jnp.isfinite(wanted), wanted, penalty)
            again = lambda penalty: self._system(scaled, penalty)
            system = loops.if_due(change, again, penalty, system)
            v = jnp.where(change, z + y / self._rows(scaled, penalty), v)

        sides, tried, x_bar = _sides(scaled, u[1]), state.tried, u[0]
        steps = state.steps + 1
        if self.polish and _is_dense(problem):
            tol = self.tol.astype(error.dtype)
            due = (error > tol) & (verdict == Status.running)
            # Seldom and at the same steps in a batch, where one that polishes makes all wait.
            due = due & ((steps & (steps - 1) == 0) | (steps % 16 == 0)) & jnp.any(sides != tried)
            # It waits for the system: on CPUs batches of factorizations side by side can wait for
            # each other's threads for ever.
            due = due & system.ready()
            tried = jnp.where(due, sides, tried)
            best = point, error
            better, least = self._polished(problem, state.scaling, scaled, sides, best, due, 1)
            done = due & (least <= tol)  # else the iterates go on untouched
            point, error = tree.where(done, (better, least), (point, error))
            at = state.scaling.forward(better)
            z = jnp.clip(scaled.A @ at.primal, scaled.l, scaled.u)
            x_bar = jnp.where(done, at.primal, x_bar)
            v = jnp.where(done, z + at.dual / self._rows(scaled, penalty), v)
        state = _State(
            state.scaling, penalty, system, x_bar, v, error, verdict, steps, sides, tried
        )
        return point, state

    def _polished(self, problem, scaling, scaled, sides, best, wanted, turns):
        """The best of a point and the polished ones, with its error.

        The loop takes no turn unless `wanted`: under `vmap` it is skipped if nobody does.
        """

        def turn(carry):
            number, sides, at, best, _ = carry
            at = _solved(scaled, sides, at)
            found = scaling.backward(PrimalDual(at.primal, _signed(sides, at.dual)))
            error = _error(problem, found)
            best = tree.where(error < best[1], (found, error), best)  # False for NaN
            others = _sides(scaled, scaled.A @ at.primal + at.dual)
            more = (number + 1 < turns) & jnp.any(others != sides) & jnp.isfinite(error)
            return number + 1, others, at, best, more

        carry = jnp.asarray(0, jnp.int32), sides, scaling.forward(best[0]), best, wanted
        return loops.while_loop(lambda carry: carry[-1], turn, carry)[3]

    def _verdict(self, problem, operator, moved, x, y):
        """Do the movements of the iterates certify that there is no solution?"""
        dtype = problem.q.dtype
        unit = jnp.finfo(dtype).eps
        eps = jnp.maximum(self.infeasible_tol.astype(dtype), 1000 * unit)
        P, A, rows = as_map(problem.P), as_map(problem.A), operator.rows
        below, above = jnp.isfinite(problem.l), jnp.isfinite(problem.u)
        X, Y = _natural_sizes(problem, x, y)

        def outside(Adx):
            return jnp.where(
                Adx > 0, jnp.where(above, Adx, 0), jnp.where(below, Adx, jnp.zeros_like(Adx))
            )

        def multipliers(dy):
            # Movement into an infinite bound is rounding.
            return jnp.where(dy > 0, jnp.where(above, dy, 0), jnp.where(below, dy, 0))

        def proven(moved, eps):
            dx, dy = moved
            miss = X * jnp.sum(jnp.abs(A.adjoint(dy)))
            bend = X * jnp.sum(jnp.abs(P(dx))) + Y * jnp.sum(jnp.abs(outside(A(dx))))
            supports, slopes = _supports(problem, dy), problem.q * dx
            support, slope = jnp.sum(supports), jnp.sum(slopes)
            # What is left where large terms cancel is rounding, and so are tiny movements.
            infeasible = (miss < -eps * support) & _below_zero(support, supports)
            unbounded = (bend < -eps * slope) & _below_zero(slope, slopes)
            return (
                infeasible & (_max(dy) > 100 * unit * (1 + _max(y))),
                unbounded & (_max(dx) > 100 * unit * (1 + _max(x))),
            )

        def project(_, moved):
            dx, dy = moved
            step = operator.system.solve(problem, P(dx) + A.adjoint(rows * outside(A(dx))))
            shift = rows * A(operator.system.solve(problem, A.adjoint(dy)))
            return PrimalDual(dx - step, multipliers(jnp.where(dy == 0, 0, dy - shift)))

        # No derivative goes through a verdict.
        moved = jax.lax.stop_gradient(PrimalDual(moved.primal, multipliers(moved.dual)))
        close = jnp.any(jnp.stack(proven(moved, 1000 * eps)))
        moved, _ = loops.while_loop(
            lambda carry: carry[1],
            lambda carry: (loops.fori_loop(0, 3, project, carry[0]), jnp.zeros_like(close)),
            (moved, close),
        )
        infeasible, unbounded = proven(moved, eps)
        status = Status.where(unbounded, Status.unbounded, Status.running)
        return Status.where(infeasible, Status.infeasible, status)

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def gap(self, problem, x, state):
        """The relative duality gap at `x`, see `OSQP`."""
        return _gap(problem, x, as_map(problem.P)(x.primal))

    def finish(self, problem, x, state):
        if not (self.polish and _is_dense(problem)):
            return x, state
        scaled = self._scaled(problem, state)
        sides = _sides(scaled, state.v)
        wanted = state.error > 100 * jnp.finfo(state.error.dtype).eps
        best = x, state.error
        x, error = self._polished(problem, state.scaling, scaled, sides, best, wanted, 3)
        return x, eqx.tree_at(lambda s: s.error, state, error)


_UNTRIED = 9


def _is_dense(problem) -> bool:
    return eqx.is_array(problem.P) and eqx.is_array(problem.A)


def _max(x):
    return jnp.max(jnp.abs(x), initial=0)


def _sides(problem, v):
    """Where each row is held: -1 at the lower bound, 1 at the upper, 2 at both, 0 at none."""
    sides = jnp.where(v < problem.l, -1, jnp.where(v > problem.u, 1, 0))
    return jnp.where(problem.l == problem.u, 2, sides).astype(jnp.int8)


def _factor(problem, rows, sigma, lift):
    """The Cholesky factor of $P + \\sigma I + A^\\top R A$."""
    matrix = problem.P + problem.A.T @ (rows[:, None] * problem.A)
    # Any positive diagonal is allowed for; this many rounding units leave the matrix definite.
    rounding = lift * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix)
    return jnp.linalg.cholesky(matrix + jnp.diag(jnp.maximum(sigma, rounding)))


def _inverse(problem, rows, sigma):
    factor = _factor(problem, rows, sigma, 100)
    # A triangular solve and a product: two such solves take twice as long in batches.
    eye = jnp.eye(*factor.shape, dtype=factor.dtype)
    root = jax.scipy.linalg.solve_triangular(factor, eye, trans=1, lower=True)
    return _Inverse(root @ root.T)


def _images(problem, x):
    A: Any = as_map(problem.A)
    return A(x.primal), as_map(problem.P)(x.primal), A.adjoint(x.dual)


def _supports(problem, y):
    """Row by row, the largest product of y with a number between the bounds."""
    return jnp.where(y > 0, problem.u * y, 0) + jnp.where(y < 0, problem.l * y, 0)


def _below_zero(total, terms):
    """Is the sum of the terms negative beyond its rounding?"""
    return total < -100 * jnp.finfo(terms.dtype).eps * jnp.sum(jnp.abs(terms))


def _gap(problem, x, Px):
    parts = jnp.stack(
        [jnp.vdot(x.primal, Px), jnp.vdot(problem.q, x.primal), jnp.sum(_supports(problem, x.dual))]
    )
    return jnp.abs(jnp.sum(parts)) / (1 + _max(parts))


def _larger(*parts):
    return jnp.max(jnp.abs(jnp.stack(parts)), axis=0)


def _error(problem, x):
    """The error of a point, see `OSQP`."""
    Ax, Px, Aty = _images(problem, x)
    z = jnp.clip(Ax + x.dual, problem.l, problem.u)
    slope = Px + problem.q + Aty
    if _is_dense(problem):
        A, P = jnp.abs(problem.A), jnp.abs(problem.P)
        size, dual_size = jnp.abs(x.primal), jnp.abs(x.dual)
        images, slopes, pulled = A @ size, P @ size, A.T @ dual_size
        rows, columns = images + jnp.abs(z), slopes + jnp.abs(problem.q) + pulled
        # Far out products cancel beyond all digits, and no residual tells a solution from none.
        lost = jnp.maximum(
            _max(images) / (1 + _max(z)), _max(slopes) / (1 + _max(problem.q) + _max(pulled))
        )
        lost = lost * jnp.finfo(lost.dtype).eps
        lost = jnp.where(lost > 1, lost, jnp.zeros_like(lost))
    else:
        rows, columns = _max(_larger(Ax, z)), _max(_larger(Px, problem.q, Aty))
        lost = jnp.zeros_like(rows)
    primal, dual = _max((Ax - z) / (1 + rows)), _max(slope / (1 + columns))
    return _max(jnp.stack([primal, dual, lost, _gap(problem, x, Px)]))


def _imbalance(problem, x, z):
    """Primal over dual residual, each relative to the largest of its parts."""
    Ax, Px, Aty = _images(problem, x)
    tiny = jnp.finfo(Ax.dtype).tiny
    primal = _max(Ax - z) / jnp.maximum(_max(_larger(Ax, z)), tiny)
    size = _max(_larger(Px, problem.q, Aty))
    dual = _max(Px + problem.q + Aty) / jnp.maximum(size, tiny)
    return primal / jnp.maximum(dual, tiny)


def _natural_sizes(problem, x, y):
    """How large points that meet the bounds, and multipliers that meet the slopes, have to be."""
    if not _is_dense(problem):  # entries are not known, so take the iterates' word
        return 1 + _max(x), 1 + _max(y)
    finite = lambda bound: jnp.where(jnp.isinf(bound), 0, jnp.abs(bound))
    bounds = jnp.maximum(finite(problem.l), finite(problem.u))

    def size(wanted, entries):
        return 1 + _max(jnp.where(entries > 0, wanted / jnp.where(entries > 0, entries, 1), 0))

    rows, columns = (jnp.max(jnp.abs(problem.A), axis=axis, initial=0) for axis in (1, 0))
    return size(bounds, rows), size(problem.q, columns)


def _solved(problem, sides, start):
    """Solve the equality-constrained problem of the rows held.

    By the proximal method of multipliers: each turn takes two triangular solves with one factor,
    of the size of the point alone. A larger penalty takes fewer turns and leaves more rounding,
    which is nothing where the start is close: in a direction that the equations leave free the
    answer stays where that is.
    """
    dtype, unit = problem.q.dtype, float(jnp.finfo(problem.q.dtype).eps)
    active = sides != 0
    bound = jnp.where(sides < 0, problem.l, jnp.where(active, problem.u, 0))
    rows = jnp.where(active, jnp.asarray(unit**-0.5 / 30, dtype), 0)
    factor = _factor(problem, rows, unit**0.6, 10)

    def miss(point):
        Ax, Px, Aty = _images(problem, point)
        slope, gap = Px + problem.q + Aty, jnp.where(active, Ax - bound, 0)
        size = 1 + _max(_larger(Px, problem.q, Aty))
        return slope, gap, jnp.maximum(_max(slope) / size, _max(gap) / (1 + _max(bound)))

    def turn(carry):
        point, (slope, gap, size), number, _ = carry
        step = -jax.scipy.linalg.cho_solve((factor, True), slope + problem.A.T @ (rows * gap))
        point = PrimalDual(point.primal + step, point.dual + rows * (problem.A @ step + gap))
        missed = miss(point)
        number = number + 1
        # Few turns give all digits, unless equations nearly depend on each other.
        more = (number < 5) | ((missed[2] < 0.7 * size) & (number < 30))
        return point, missed, number, more

    point = PrimalDual(start.primal, jnp.where(active, start.dual, 0))
    carry = point, miss(point), jnp.asarray(0, jnp.int32), jnp.asarray(True)
    return loops.while_loop(lambda carry: carry[-1], turn, carry)[0]


def _signed(sides, y):
    """Multipliers with those of the wrong sign put to zero."""
    y = jnp.where(sides == -1, jnp.minimum(y, 0), y)
    return jnp.where(sides == 1, jnp.maximum(y, 0), y)
