"""Operator splitting for quadratic programs."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

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


class _Inverse(_AbstractSystem):
    # One product with the inverse is many times faster than two triangular solves, above all in
    # batches; its rounding vanishes with the step that it is asked for.
    inverse: Float[Array, "n n"]

    def solve(self, problem, rhs):
        return self.inverse @ rhs


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


class OSQP(AbstractSplittingSolver):
    """ADMM for quadratic programs, with equilibration, an adaptive penalty, certificates of
    infeasibility, and polishing.

    With $R = \\mathrm{diag}(\\rho_i)$, $\\rho_i = \\rho$ for inequalities and $10^3 \\rho$ for
    equalities, each iteration solves

    $$(P + \\sigma I + A^\\top R A)\\, \\tilde x = \\sigma x - q + A^\\top (R z - y)$$

    with an inverse that is computed again only when $\\rho$ changes, at most once in
    `iterations_per_step` iterations. Matrices given as `lineax` operators are never formed:
    conjugate gradients take the place of the inverse, and there is no equilibration or polishing.

    The error is the larger of
    $\\|Ax - z\\|_\\infty / (1 + \\max(\\|Ax\\|_\\infty, \\|z\\|_\\infty))$ and
    $\\|Px + q + A^\\top y\\|_\\infty / (1 + \\max(\\|Px\\|_\\infty, \\|A^\\top y\\|_\\infty,
    \\|q\\|_\\infty))$, in the variables of the user. A step is `iterations_per_step` iterations.

    **Arguments:**

    - `penalty`: first $\\rho$.
    - `sigma`: $\\sigma > 0$.
    - `relaxation`: $\\alpha \\in (0, 2)$.
    - `adaptive`: adapt $\\rho$ to balance the residuals.
    - `scaling_steps`: sweeps of equilibration; 0 for none.
    - `polish`: solve the equations of the constraints found active, up to three times with those
      active at the polished point; the best point is kept.
    - `infeasible_tol`: tolerance of the certificates.
    - `iterations_per_step`: iterations between two looks at the residuals.
    - `tol`, `max_steps`: see `AbstractSolver`.

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
        matrix = problem.P + problem.A.T @ (rows[:, None] * problem.A)
        matrix = matrix + sigma * jnp.eye(problem.q.size, dtype=matrix.dtype)
        factor = jax.scipy.linalg.cho_factor(matrix)
        return _Inverse(
            jax.scipy.linalg.cho_solve(factor, jnp.eye(*matrix.shape, dtype=matrix.dtype))
        )

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
        return _State(scaling, penalty, system, point.primal, v, infinity, Status.running)

    def refresh(self, problem, x, state):
        scaled = self._scaled(problem, state)
        system = self._system(scaled, state.penalty)
        return eqx.tree_at(lambda s: (s.system, s.verdict), state, (system, Status.running))

    def _scaled(self, problem, state):
        if self.scaling_steps > 0 and _is_dense(problem):
            return state.scaling.scale(problem)
        return problem

    def step(self, problem, x, state):
        scaled = self._scaled(problem, state)
        operator = self._operator(scaled, state.penalty, state.system)
        u = (state.x, state.v)
        u = loops.fori_loop(0, self.iterations_per_step - 1, lambda _, u: operator(u), u)
        before = PrimalDual(u[0], operator.split(u[1])[1])
        u = operator(u)
        z, y = operator.split(u[1])
        after = PrimalDual(u[0], y)

        point = state.scaling.backward(after)
        primal, dual = _residuals(problem, point)
        error = jnp.maximum(primal[0] / (1 + primal[1]), dual[0] / (1 + dual[1]))
        moved = state.scaling.backward(jax.tree.map(jnp.subtract, after, before))
        verdict = self._verdict(problem, moved)
        penalty, system, v = state.penalty, state.system, u[1]
        if self.adaptive:
            tiny = jnp.finfo(error.dtype).tiny
            # Relative residuals without the 1 of the stopping rule, as in the paper.
            balance = (primal[0] / jnp.maximum(primal[1], tiny)) / jnp.maximum(
                dual[0] / jnp.maximum(dual[1], tiny), tiny
            )
            wanted = jnp.clip(penalty * jnp.sqrt(balance), 1e-6, 1e6)
            change = (wanted > 5 * penalty) | (wanted < penalty / 5)
            penalty = jnp.where(change & jnp.isfinite(wanted), wanted, penalty)
            # A loop of at most one turn: under vmap it is entered only if some problem needs it.
            system, _ = loops.while_loop(
                lambda carry: carry[1],
                lambda carry: (self._system(scaled, penalty), jnp.zeros_like(carry[1])),
                (system, change),
            )
            v = jnp.where(change, z + y / self._rows(scaled, penalty), v)
        return point, _State(state.scaling, penalty, system, u[0], v, error, verdict)

    def _verdict(self, problem, moved):
        """Do the last movements of the iterates certify that there is no solution?"""
        eps = self.infeasible_tol.astype(problem.q.dtype)
        P, A = as_map(problem.P), as_map(problem.A)
        dx, dy = moved
        # Movement into an infinite bound is rounding.
        dy = jnp.where(jnp.isinf(problem.u), jnp.minimum(dy, 0), dy)
        dy = jnp.where(jnp.isinf(problem.l), jnp.maximum(dy, 0), dy)
        size = _max(dy)
        support = jnp.sum(
            jnp.where(dy > 0, jnp.where(jnp.isinf(problem.u), 0, problem.u) * dy, 0)
            + jnp.where(dy < 0, jnp.where(jnp.isinf(problem.l), 0, problem.l) * dy, 0)
        )
        infeasible = (size > eps) & (_max(A.adjoint(dy)) <= eps * size) & (support < -eps * size)

        size = _max(dx)
        Adx = A(dx)
        upper = jnp.isinf(problem.u) | (Adx <= eps * size)
        lower = jnp.isinf(problem.l) | (Adx >= -eps * size)
        unbounded = (
            (size > eps)
            & (_max(P(dx)) <= eps * size)
            & (jnp.vdot(problem.q, dx) < -eps * size)
            & jnp.all(upper & lower)
        )
        status = Status.where(unbounded, Status.unbounded, Status.running)
        return Status.where(infeasible, Status.infeasible, status)

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def finish(self, problem, x, state):
        if not (self.polish and _is_dense(problem)):
            return x, state

        def again(carry):
            turn, _, error, _ = carry
            return (turn < _POLISH_TURNS) & (error > 0)

        def turn(carry):
            # The rows active at the polished point are a better guess of those at the solution: a
            # semismooth Newton step, which may pass through worse points.
            number, point, _, (best, least) = carry
            point = _polish(scaled, point)
            found = state.scaling.backward(point)
            error = _worst(problem, found)
            better = error < least  # False for NaN
            best = tree.where(better, found, best), jnp.where(better, error, least)
            enough = error <= 100 * jnp.finfo(error.dtype).eps * scale
            return number + 1, point, jnp.where(enough, 0, error), best

        # Slacks and multipliers are compared with each other, so their units matter.
        scaled = self._scaled(problem, state)
        scale = 1 + _max(problem.q)
        error = _worst(problem, x)
        carry = jnp.asarray(0, jnp.int32), state.scaling.forward(x), error, (x, error)
        best, _ = loops.while_loop(again, turn, carry)[-1]
        return best, state


_POLISH_TURNS = 3


def _is_dense(problem) -> bool:
    return eqx.is_array(problem.P) and eqx.is_array(problem.A)


def _max(x):
    return jnp.max(jnp.abs(x), initial=0)


def _residuals(problem, x) -> Any:
    """Primal and dual residual, each with the size of its parts."""
    A = as_map(problem.A)
    Ax, Px, Aty = A(x.primal), as_map(problem.P)(x.primal), A.adjoint(x.dual)
    z = jnp.clip(Ax, problem.l, problem.u)
    primal = _max(Ax - z), jnp.maximum(_max(Ax), _max(z))
    dual = (
        _max(Px + problem.q + Aty),
        jnp.maximum(jnp.maximum(_max(Px), _max(Aty)), _max(problem.q)),
    )
    return primal, dual


def _worst(problem, x):
    return jnp.max(jnp.stack([_max(leaf) for leaf in jax.tree.leaves(problem.residual(x))]))


def _polish(problem, x):
    """Solve the equality-constrained problem of the active rows, with refinement."""
    n, m = problem.q.size, problem.l.size
    dtype = problem.q.dtype
    Ax = problem.A @ x.primal
    low = (Ax - problem.l < -x.dual) | (problem.l == problem.u)
    high = ~low & (problem.u - Ax < x.dual)
    active = low | high
    bound = jnp.where(low, problem.l, jnp.where(high, problem.u, 0))
    rows = jnp.where(active[:, None], problem.A, 0)
    corner = jnp.diag(jnp.where(active, 0, -1).astype(dtype))
    kkt = jnp.block([[problem.P, rows.T], [rows, corner]])
    delta = jnp.sqrt(jnp.finfo(dtype).eps)
    shift = delta * jnp.concatenate([jnp.ones(n, dtype), -jnp.ones(m, dtype)])
    factor = jax.scipy.linalg.lu_factor(kkt + jnp.diag(shift))
    rhs = jnp.concatenate([-problem.q, jnp.where(active, bound, 0)])

    def refine(_, t):
        return t + jax.scipy.linalg.lu_solve(factor, rhs - kkt @ t)

    t = loops.fori_loop(0, 5, refine, jnp.zeros(n + m, dtype))
    return PrimalDual(t[:n], t[n:])
