"""Project and Forget: Bregman projections on the few half-spaces that matter, out of very many.

A round asks an oracle for violated half-spaces, adds them to a list, visits the list a few times
with the corrected projections of `minimize.bregman`, and forgets those without a multiplier.
"""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    Multipliers,
    NonlinearProgram,
    PrimalDual,
    QuadraticProgram,
    Scalar,
    Solution,
    Status,
    attach,
    bounds,
    checks,
    loops,
    scalar_field,
    tree,
)
from ..core.operators import dense
from ..core.progress import progress_bar
from .bregman import (
    AbstractBregman,
    AbstractRows,
    Entropy,
    HalfSpaces,
    LogDet,
    MetricPoint,
    Pairs,
    Quadratic,
    inverse_of,
    sweep,
)
from .separation import AbstractSeparation, ListOracle, ShortestPathOracle

INFEASIBLE = 1e-5
"""A certificate holds if feasible points would have to be this many times farther away."""


class AbstractForgetting(eqx.Module):
    """What is still on the list when the next round begins."""

    @abc.abstractmethod
    def keeps(self, dual: Float[Array, " k"]) -> Bool[Array, " k"]:
        """Which half-spaces are visited again without being found again."""


class ForgetInactive(AbstractForgetting):
    """Those that have a multiplier stay."""

    def keeps(self, dual):
        return dual != 0


class ForgetAll(AbstractForgetting):
    """None stays, the truly stochastic variant: a half-space is visited in the rounds that it is
    drawn in, and only its multiplier is remembered. It needs an oracle that is `random`."""

    def keeps(self, dual):
        return dual > np.inf


class _State(eqx.Module):
    """What is computed from the program once, and the verdict."""

    key: PRNGKeyArray
    inverse: Float[Array, "n n"]
    directions: Float[Array, "n m"]  # P^-1 a for every row
    sizes: Float[Array, " m"]  # a' P^-1 a
    definite: Bool[Array, ""]
    verdict: Status


class ProjectAndForget(AbstractSolver[QuadraticProgram, _State]):
    """Project and Forget: visits to the half-spaces that are violated or have a multiplier.

    By `solve` it takes strictly convex quadratic programs, of which a row $l \\le a^\\top x \\le u$
    that is not needed costs a product in each round and no more. A round finds the violated rows,
    lists them with those that have a multiplier, and visits the list `sweeps` times: with
    $\\theta_l, \\theta_u$ the moves along $P^{-1} a$ that reach the two bounds, and $y$ the
    multiplier,

    $$c = \\max(\\theta_l, \\min(y, \\theta_u)), \\qquad x^+ = x + c\\, P^{-1} a, \\qquad
      y^+ = y - c .$$

    Then rows with $y = 0$ are forgotten. It converges to the solution, linearly in the end, and
    forgets every row that is not active for good after finitely many rounds. The start is the
    point that belongs to the dual of `x0`, by default that without constraints.

    By `project_with_oracle` it takes half-spaces that only an oracle knows, on the host.

    The error is the norm of the problem's residual. *Infeasible* is certified by the change of the
    multipliers in a round; *breakdown* is said where $P$ is not positive definite.

    **Arguments:**

    - `sweeps`: visits of the list in a round.
    - `capacity`: how many rows a list can hold; of more that are violated those come first that
      are violated most. `None` is no limit. `project_with_oracle` takes it for the first size of
      its memory, by default 64, and doubles that as needed.
    - `forget`: `ForgetInactive()` or `ForgetAll()`.
    - `probability`: with which a row of a quadratic program is looked at in a round, in $(0, 1]$;
      the oracles of `project_with_oracle` have their own.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is a round.

    **Raises:** `ValueError` if `sweeps` or `capacity` is less than one, or `probability` is outside
    of $(0, 1]$; `TypeError` if `forget` is no such object.

    **Reference:** Sonthalia, Gilbert, Project and Forget: Solving Large-Scale Metric Constrained
    Problems, 2022, arXiv:2005.03853.
    """

    sweeps: int = eqx.field(static=True, default=2)
    capacity: int | None = eqx.field(static=True, default=None)
    forget: AbstractForgetting = eqx.field(default_factory=lambda: ForgetInactive())
    probability: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (QuadraticProgram,)

    def __check_init__(self):
        checks.count("sweeps", self.sweeps)
        if self.capacity is not None:
            checks.count("capacity", self.capacity)
        checks.instance("forget", self.forget, AbstractForgetting, "ForgetInactive()")
        checks.interval("probability", self.probability, 0.0, 1.0, open_low=True)

    def init(self, problem, x, key):
        P, A = dense(problem.P, x.primal), dense(problem.A, x.primal)
        inverse, definite = inverse_of(P)
        directions = inverse @ A.T
        sizes = jnp.sum(A.T * directions, axis=0)
        # A matrix with NaN is not indefinite.
        definite = definite | ~tree.all_finite(P)
        return _State(key, inverse, directions, sizes, definite, Status.running)

    def refresh(self, problem, x, state):
        return self.init(problem, x, state.key)

    def step(self, problem, x, state):
        A, l, u = dense(problem.A, x.primal), problem.l, problem.u
        key, draw = jax.random.split(state.key)
        primal_of = lambda y: -(state.inverse @ (problem.q + A.T @ y))
        # No multiplier of a start is of a bound that is not there.
        above, below = jnp.isfinite(u), jnp.isfinite(l)
        first = jnp.where(x.dual > 0, jnp.where(above, x.dual, 0), jnp.where(below, x.dual, 0))
        primal = primal_of(first)
        image = A @ primal
        violation = jnp.maximum(jnp.maximum(image - u, l - image), 0)
        drawn = jax.random.uniform(draw, l.shape, l.dtype) < self.probability
        # Whoever has a multiplier and is kept, or drawn, comes before all that have none.
        priority = jnp.where(drawn, jnp.where(first != 0, jnp.inf, violation), 0)
        priority = jnp.where(self.forget.keeps(first), jnp.inf, priority)
        slots = min(self.capacity or l.size, l.size)
        rank, rows = jax.lax.top_k(priority, slots)
        count = jnp.sum(rank > 0)

        def visit(k, carry):
            primal, y = carry
            i = rows[k % jnp.maximum(count, 1)]
            size = state.sizes[i]
            unit = jnp.where(size > 0, size, 1)
            value = A[i] @ primal
            c = jnp.minimum(y[i], (u[i] - value) / unit)
            c = jnp.where(size > 0, jnp.maximum((l[i] - value) / unit, c), 0)
            return primal + c * state.directions[:, i], y.at[i].add(-c)

        primal, y = loops.fori_loop(0, self.sweeps * count, visit, (primal, first))
        # Anew from the multipliers: visits add up rounding.
        new = PrimalDual(primal_of(y), y)
        verdict = _contradiction(problem, A, new, y - first)
        # A row of zeros has no place to move to.
        stuck = (state.sizes <= 0) & (jnp.all(A == 0, axis=1) & ((l > 0) | (u < 0)))
        verdict = Status.where(jnp.any(stuck), Status.infeasible, verdict)
        verdict = Status.where(state.definite, verdict, Status.breakdown)
        return new, _State(
            key, state.inverse, state.directions, state.sizes, state.definite, verdict
        )

    def error(self, problem, x, state):
        return tree.norm(problem.residual(x))

    def status(self, problem, x, state):
        return state.verdict


def _contradiction(problem, A, x, moved):
    """Whether the change of the multipliers, which in the end moves no point, certifies that there
    is no feasible point near."""
    support = jnp.sum(
        jnp.where(moved > 0, problem.u * moved, 0) + jnp.where(moved < 0, problem.l * moved, 0)
    )
    return _certified(jnp.sum(jnp.abs(A.T @ moved)), support, moved, x)


def _certified(miss, support, moved, x):
    """A feasible $x$ has $\\|x\\|_\\infty \\|A^\\top dy\\|_1 \\ge -s(dy)$."""
    size = jnp.max(jnp.abs(_flat(x.primal)), initial=0)
    unit = jnp.finfo(moved.dtype).eps
    real = jnp.max(jnp.abs(moved), initial=0) > 100 * unit * (
        1 + jnp.max(jnp.abs(_flat(x.dual)), initial=0)
    )
    # Behind so many digits the pull of the multipliers is only rounding.
    eps = max(INFEASIBLE, 1000 * float(unit))
    return Status.where(
        real & ((1 + size) * miss < -eps * support), Status.infeasible, Status.running
    )


def _flat(x: PyTree[Array]) -> Float[Array, " k"]:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(x)])


class Remembered(NamedTuple):
    """The half-spaces of a solution: those that were found and have a multiplier, and those that
    are never forgotten."""

    found: AbstractRows
    kept: tuple[AbstractRows, ...]


class _Excess(eqx.Module):
    """The constraints of the program that is left, for `NonlinearProgram`."""

    rows: Remembered

    def __call__(self, x):
        return self.rows.found.excess(x), tuple(rows.excess(x) for rows in self.rows.kept)


def project_with_oracle(
    bregman: AbstractBregman,
    oracle: AbstractSeparation,
    kept: Sequence[AbstractRows] = (),
    *,
    solver: ProjectAndForget | None = None,
    key: PRNGKeyArray | None = None,
    progress: bool = True,
    throw: bool = False,
) -> Solution:
    """Minimize $\\phi(x)$ subject to $\\langle a_i, x\\rangle \\le b_i$ for more $i$ than one can
    write down.

    Rounds as in `ProjectAndForget`, from the minimizer of $\\phi$, with the half-spaces of an
    oracle. The rounds are driven on the host, which keeps the list: it merges what is found again,
    forgets, and doubles the memory when that is full, so that the compiled visits are traced a few
    times only. So this cannot be called inside of `jit` or `vmap`. Derivatives of the solution in
    the leaves of `bregman` and `kept` are those of the program that is left, with the half-spaces
    that have a multiplier and those of `kept`; numbers inside of the oracle have none.

    The error is the larger of two: the largest violation over all half-spaces, and the norm of the
    residual of the program that is left (stationarity, and $e_i - \\min(e_i + z_i, 0)$ with
    $e_i = \\langle a_i, x\\rangle - b_i$ for each half-space).

    **Arguments:**

    - `bregman`: $\\phi$: `Quadratic`, `MatrixQuadratic`, `Entropy` or `LogDet`, or another
      `AbstractBregman`.
    - `oracle`: finds violated half-spaces: `ShortestPathOracle`, `RandomTriangleOracle`,
      `ListOracle`, or another `AbstractSeparation`.
    - `kept`: half-spaces that are visited in every sweep, behind the list.
    - `solver`: the settings; `ProjectAndForget()` if `None`.
    - `key`: for oracles that draw; `jax.random.key(0)` if `None`.
    - `progress`: show a bar if it takes longer than a second; at the step limit it is full.
    - `throw`: raise a runtime error unless it converged.

    **Returns:** a `Solution` with `value = PrimalDual(x, multipliers)`, in `state` the `Remembered`
    half-spaces, and in `trace`, for each round, the largest `violation` that was found (before it),
    the `residual` of the program on the list (behind it), and the numbers of half-spaces `visited`
    and `remembered`.

    **Raises:** `TypeError` inside of `jit` or `vmap`; `ValueError` for `ForgetAll` with an oracle
    that is not random, or an oracle that does not fit.

    **Reference:** Sonthalia, Gilbert, Project and Forget: Solving Large-Scale Metric Constrained
    Problems, 2022, arXiv:2005.03853.
    """
    solver = ProjectAndForget() if solver is None else solver
    kept = jax.tree.map(jnp.asarray, tuple(kept))
    fixed, fixed_kept = jax.tree.map(_without_derivative, (bregman, kept))
    if checks.is_traced((fixed, fixed_kept, oracle)):
        raise TypeError("project_with_oracle runs on the host, and not inside of jit or vmap")
    if isinstance(solver.forget, ForgetAll) and not oracle.random:
        raise ValueError(f"ForgetAll needs a random oracle, not {type(oracle).__name__}")
    x = fixed.from_slope(None)
    oracle.check(x)
    key = jax.random.key(0) if key is None else key
    run = _Run(fixed, oracle, fixed_kept, solver)
    solution = run.solve(x, key, progress)
    if checks.is_traced((bregman, kept)):  # somebody differentiates
        rows = Remembered(run.memory.found, tuple(kept))
        program = NonlinearProgram(bregman, inequalities=_Excess(rows))
        solution = eqx.tree_at(lambda s: s.value, solution, _attached(solution.value, program))
    if throw and solution.status != Status.converged:
        raise RuntimeError(str(solution))
    return solution


_attached = eqx.filter_jit(attach)


def _without_derivative(leaf):
    return jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf


class _Memory:
    """The list, on the host: half-spaces, their multipliers, and those listed first."""

    def __init__(self, rows, capacity):
        self.rows, self.capacity = rows, capacity
        self.dual = np.zeros(_height(rows))

    @property
    def found(self):
        return jax.tree.map(jnp.asarray, self.rows)

    def merge(self, new, keeps):
        """Add what was found, each once; the listed ones come first. Returns how many these are."""
        old, new = _level(self.rows, new)
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), old, new)
        parts = [a if a.ndim > 1 else a[:, None] for a in jax.tree.leaves(rows)]
        names = np.concatenate(parts, axis=1)
        _, first, group = np.unique(names, axis=0, return_index=True, return_inverse=True)
        dual = np.zeros(len(first))
        before = len(self.dual)
        group = group.ravel()
        dual[group[:before]] = self.dual
        listed = np.zeros(len(first), bool)
        listed[group[:before]] = keeps
        listed[group[before:]] = True
        # In the order that they came in, which rounds change little.
        order = np.lexsort((first, ~listed))
        self.rows = jax.tree.map(lambda a: a[first[order]], rows)
        self.dual = dual[order]
        return int(np.sum(listed))

    def padded(self, dtype):
        """Arrays of a size that seldom changes."""
        height = _height(self.rows)
        while self.capacity < height:
            self.capacity *= 2
        rows = _widened(self.rows, _power(_width(self.rows)))
        grow = lambda a: np.concatenate(
            [a, np.zeros((self.capacity - len(a), *a.shape[1:]), a.dtype)]
        )
        return jax.tree.map(lambda a: jnp.asarray(grow(a)), (rows, self.dual.astype(dtype)))

    def forget(self, dual):
        self.dual = np.asarray(dual)[: len(self.dual)]
        used = self.dual > 0
        self.rows = jax.tree.map(lambda a: a[used], self.rows)
        self.dual = self.dual[used]


def _height(rows):
    return len(jax.tree.leaves(rows)[0])


def _width(rows):
    return rows.index.shape[1] if isinstance(rows, HalfSpaces) else 1


def _power(number):
    return max(8, 1 << (number - 1).bit_length())


def _widened(rows, width):
    if not isinstance(rows, HalfSpaces):
        return rows
    more = ((0, 0), (0, width - _width(rows)))
    return HalfSpaces(np.pad(rows.index, more), np.pad(rows.coefficient, more), rows.bound)


def _level(a, b):
    width = max(_width(a), _width(b))
    return _widened(a, width), _widened(b, width)


class _Run:
    """The rounds of one call."""

    def __init__(self, bregman, oracle, kept, solver):
        self.bregman, self.oracle, self.kept, self.solver = bregman, oracle, kept, solver
        self.memory: Any = None

    def solve(self, x, key, progress) -> Solution:
        name, rounds = type(self.solver).__name__, self.solver.max_steps
        with progress_bar(rounds, name, enabled=progress) as advance:
            return self._rounds(x, key, advance)

    def _rounds(self, x, key, advance) -> Solution:
        solver, dtype = self.solver, tree.real_dtype(x)
        tol = float(solver.tol)
        everything = isinstance(solver.forget, ForgetAll)
        threshold = -np.inf if everything else 0.1 * tol
        sides = tuple(jnp.zeros(_height(rows), dtype) for rows in self.kept)
        dual, trace = jnp.zeros(0, dtype), []
        status, round_number, worst = Status.step_limit, 0, np.inf
        residual = np.inf  # not known before a round
        for round_number in range(solver.max_steps + 1):
            key, draw = jax.random.split(key)
            host = jax.tree.map(np.asarray, x)
            finite = all(np.all(np.isfinite(a)) for a in jax.tree.leaves(host))
            if not finite or np.isnan(residual):
                status, worst = Status.nonfinite, np.nan
                x = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), x)  # also where none is in x
                break
            cuts = self.oracle.separate(host, threshold, draw)
            violation = cuts.violation
            if violation is None and residual <= tol:
                violation = self.oracle.violation(host)
            if self.memory is None:
                self.memory = _Memory(_none_of(cuts.rows), solver.capacity or 64)
            worst = residual if violation is None else max(residual, violation)
            if violation is not None and worst <= tol:
                status = Status.converged
                break
            if round_number == solver.max_steps:
                violation = self.oracle.violation(host) if violation is None else violation
                worst = max(residual, violation)
                break
            keeps = np.asarray(solver.forget.keeps(self.memory.dual))
            count = self.memory.merge(cuts.rows, keeps)
            rows, before = self.memory.padded(dtype)
            number = jnp.asarray(count, jnp.int32)  # no constant of what is compiled
            x, dual, sides, norm, verdict = _round(
                self.bregman, rows, before, number, self.kept, sides, solver.sweeps
            )
            self.memory.forget(dual)
            residual = float(norm)
            trace.append((violation, residual, count, len(self.memory.dual)))
            shown = {} if violation is None else {"violation": violation}
            advance(1, residual=residual, remembered=len(self.memory.dual), **shown)
            if verdict == Status.infeasible:
                status, worst, round_number = verdict, residual, round_number + 1
                break
        value = PrimalDual(
            x,
            Multipliers(None, (jnp.asarray(self._duals(), dtype), sides), None),
        )
        if self.memory is None:  # stopped before the oracle was asked
            self.memory = _Memory(_nothing(self.bregman), 1)
        steps, worst = jnp.asarray(round_number, jnp.int32), jnp.asarray(worst, dtype)
        state = Remembered(self.memory.found, self.kept)
        columns = ("violation", "residual", "visited", "remembered")
        nan = lambda v: np.nan if v is None else v
        recorded = {
            name: np.array([nan(row[i]) for row in trace]) for i, name in enumerate(columns)
        }
        tolerance = jnp.asarray(tol, dtype)
        return Solution(value, steps, worst, status, state, tolerance, None, recorded)

    def _duals(self):
        return np.zeros(0) if self.memory is None else self.memory.dual


def _none_of(rows):
    return jax.tree.map(lambda a: np.asarray(a)[:0], rows)


def _nothing(bregman):
    if isinstance(bregman, LogDet):
        d, dtype = len(bregman.prior), bregman.prior.dtype
        return Pairs(np.zeros((0, d), dtype), np.zeros(0, dtype), np.zeros(0, np.int32))
    dtype = tree.real_dtype(bregman)
    return HalfSpaces(np.zeros((0, 1), np.int32), np.zeros((0, 1), dtype), np.zeros(0, dtype))


def _slope(x, rows, dual, kept, sides):
    """$-\\sum_i z_i a_i$ over all half-spaces."""
    parts = [each.pulled(z, x) for each, z in zip((rows, *kept), (dual, *sides), strict=True)]
    return jax.tree.map(lambda *leaves: -sum(leaves), *parts)


def _norms(bregman, x, rows, dual, kept, sides):
    """Of the residual of the program with these half-spaces: what of it is not stationarity, and
    stationarity."""
    pairs = zip((rows, *kept), (dual, *sides), strict=True)
    held = lambda rows, z: bounds.excess(
        rows.excess(x), z, jnp.full_like(z, -jnp.inf), jnp.zeros_like(z)
    )
    feasible = [held(*pair) for pair in pairs]
    slope = jax.tree.map(
        jnp.subtract, tree.gradient(bregman, x), _slope(x, rows, dual, kept, sides)
    )
    return tree.norm((slope, feasible))


@eqx.filter_jit
def _round(bregman, rows, dual, count, kept, sides, sweeps):
    """The visits of a round, from the point that belongs to the multipliers."""
    center = bregman.from_slope(None)
    x = bregman.from_slope(_slope(center, rows, dual, kept, sides))
    first = (dual, sides)

    def once(_, carry):
        x, dual, sides = carry
        x, dual = sweep(bregman, x, rows, dual, jnp.arange(dual.shape[0]) < count)
        new = []
        for each, z in zip(kept, sides, strict=True):
            visit = bregman.correct_all if _is_disjoint(each) else _all_in_turn(bregman)
            x, z = visit(x, each, z)
            new.append(z)
        return x, dual, tuple(new)

    x, dual, sides = loops.fori_loop(0, sweeps, once, (x, dual, sides))
    # Anew from the multipliers: visits add up rounding.
    x = bregman.from_slope(_slope(center, rows, dual, kept, sides))
    moved = jax.tree.map(lambda a, b: jnp.maximum(a - b, 0), (dual, sides), first)
    norm = _norms(bregman, x, rows, dual, kept, sides)
    # The rows at zero are their bounds: a certificate needs no more than that.
    zero = jax.tree.map(jnp.zeros_like, x)
    pairs = [(rows, moved[0]), *zip(kept, moved[1], strict=True)]
    if isinstance(rows, HalfSpaces):
        support = sum(jnp.sum(-each.excess(zero) * z) for each, z in pairs)
        miss = jnp.sum(jnp.abs(_slope(x, rows, moved[0], kept, moved[1])))
        moved = _flat(moved)
        verdict = _certified(miss, support, moved, PrimalDual(x, (dual, sides)))
    else:
        verdict = Status.running
    return x, dual, sides, norm, verdict


def _is_disjoint(rows):
    return isinstance(rows, HalfSpaces) and rows.disjoint


def _all_in_turn(bregman):
    return lambda x, rows, dual: sweep(bregman, x, rows, dual)


class NearestMetric(NamedTuple):
    """A matrix of distances, shape `(n, n)`, and the `Solution` that it is from."""

    distances: Float[Array, "n n"]
    solution: Solution


class AbstractDiscrepancy(eqx.Module):
    """How far distances may be from what was given, as a program over the edges."""

    @abc.abstractmethod
    def program(
        self, given: Float[Array, " e"], weights: Float[Array, " e"]
    ) -> tuple[AbstractBregman, list[AbstractRows]]:
        """$\\phi$ over the edges, and variables behind them, with what is never forgotten."""


class SquaredError(AbstractDiscrepancy):
    """$\\tfrac12 \\sum_e w_e (x_e - d_e)^2$."""

    def program(self, given, weights):
        return Quadratic(given, weights), [_bounds_below(given)]


class RelativeEntropy(AbstractDiscrepancy):
    """$\\sum_e w_e (x_e \\log(x_e / d_e) - x_e + d_e)$ for positive distances."""

    def program(self, given, weights):
        return Entropy(given, weights), []


def _strength(gamma, given):
    """How much curvature costs at most the fraction gamma where errors are below the largest
    distance."""
    largest = jnp.max(jnp.abs(given))
    return gamma / jnp.where(largest > 0, largest, 1)


class AbsoluteError(AbstractDiscrepancy):
    """$\\sum_e w_e |x_e - d_e|$, within the fraction $\\gamma$ of the best.

    It is the linear program $\\min w^\\top f$, $|x - d| \\le f$ plus the curvature
    $\\frac{\\gamma}{2M} \\sum_e w_e ((x_e - d_e)^2 + f_e^2)$, $M = \\max_e d_e$. There is a best
    metric with $f \\le M$ (the smaller of its distances and $M$ is a metric too), where the
    curvature is at most $\\gamma w^\\top f$; so the solution's cost is at most $1 + \\gamma$ times
    the best.

    **Arguments:**

    - `gamma`: $\\gamma > 0$.

    **Raises:** `ValueError` if `gamma` is not positive.
    """

    gamma: Scalar = scalar_field(0.1)

    def __check_init__(self):
        checks.positive("gamma", self.gamma)

    def program(self, given, weights):
        strength = _strength(self.gamma, given).astype(given.dtype)
        size = given.shape[0]
        center = jnp.concatenate([given, jnp.full_like(given, -1) / strength])
        bregman = Quadratic(center, strength * jnp.concatenate([weights, weights]))
        edge, own = np.arange(size), size + np.arange(size)
        return bregman, [*_within(given, edge, own, True), _bounds_below(given)]


class LargestError(AbstractDiscrepancy):
    """$\\max_e w_e |x_e - d_e|$, within the fraction $\\gamma$ of the best.

    It is the linear program $\\min t$, $w_e |x_e - d_e| \\le t$ plus the curvature
    $\\frac{\\gamma}{2M} (t^2 / \\sqrt m + \\sum_e w_e^2 (x_e - d_e)^2 / m)$ with $m$ edges and
    $M = \\max_e w_e \\cdot \\max_e d_e$, which is at least the best $t$; so the solution's cost is
    at most $1 + \\gamma$ times the best. All edges share $t$, and more `sweeps` in a round pay, 10
    say.

    **Arguments:**

    - `gamma`: $\\gamma > 0$.

    **Raises:** `ValueError` if `gamma` is not positive.
    """

    gamma: Scalar = scalar_field(0.1)

    def __check_init__(self):
        checks.positive("gamma", self.gamma)

    def program(self, given, weights):
        strength = (_strength(self.gamma, given) / jnp.max(weights)).astype(given.dtype)
        size = given.shape[0]
        center = jnp.concatenate([given, -1 / (strength * size**-0.5)[None]])
        # With less for t than this distances are pushed about, with more t hardly moves.
        share = jnp.full_like(given[:1], size**-0.5)
        curvature = jnp.concatenate([weights**2 / size, share])
        edge, shared = np.arange(size), np.full(size, size)
        rows = _within(given, edge, shared, False, weights)
        return Quadratic(center, strength * curvature), [*rows, _bounds_below(given)]


def _within(given, edge, slack, disjoint, weights: Any = 1.0):
    """$w (x - d) \\le f$ and $w (d - x) \\le f$."""
    index = jnp.asarray(np.stack([edge, slack], axis=1))
    scale = weights * jnp.ones_like(given)
    rows = []
    for sign in (1, -1):
        coefficient = jnp.stack([sign * scale, -jnp.ones_like(given)], axis=1)
        rows.append(HalfSpaces(index, coefficient, sign * scale * given, disjoint))
    return rows


def _bounds_below(given):
    """$-x_e \\le 0$."""
    index = jnp.arange(given.shape[0])[:, None]
    return HalfSpaces(index, -jnp.ones_like(given)[:, None], jnp.zeros_like(given), True)


def metric_nearness(
    distances: Float[Array, "n n"],
    weights: Float[Array, "n n"] | None = None,
    *,
    discrepancy: AbstractDiscrepancy = SquaredError(),  # noqa: B008  (immutable)
    oracle: AbstractSeparation | None = None,
    solver: ProjectAndForget | None = None,
    key: PRNGKeyArray | None = None,
    progress: bool = True,
    throw: bool = False,
) -> NearestMetric:
    """The metric nearest to given dissimilarities: $x_{ij} \\le x_{ik} + x_{kj}$ for all triples.

    By `project_with_oracle`, on the host; derivatives flow to `distances` and `weights`.

    **Arguments:**

    - `distances`: $d$, symmetric with a zero diagonal and no negative entry, shape `(n, n)`.
    - `weights`: $w > 0$, symmetric, shape `(n, n)`, its diagonal not looked at; one if `None`.
    - `discrepancy`: `SquaredError()`, `RelativeEntropy()`, `AbsoluteError(gamma)` or
      `LargestError(gamma)`.
    - `oracle`: `ShortestPathOracle(n)` by default, or `RandomTriangleOracle`.
    - `solver`, `key`, `progress`, `throw`: see `project_with_oracle`.

    **Returns:** a `NearestMetric`.

    **Raises:** `ValueError` if matrices are not square, not symmetric or do not fit, the diagonal
    is not zero, a distance is negative (not positive with `RelativeEntropy`), or a weight not
    positive; `TypeError` inside of `jit` or `vmap`.

    **Reference:** Sonthalia, Gilbert, Project and Forget: Solving Large-Scale Metric Constrained
    Problems, 2022, arXiv:2005.03853.
    """
    distances = _square("distances", distances)
    n = distances.shape[0]
    pairs = np.triu_indices(n, 1)
    fixed = _without_derivative(distances)
    if not checks.is_traced(fixed):
        if np.any(np.abs(np.diagonal(np.asarray(fixed))) > 0):
            raise ValueError("distances must have a zero diagonal")
        if np.any(np.asarray(fixed) < 0):
            raise ValueError(f"distances must not be negative, got {float(jnp.min(fixed))}")
    given = _pairs_of(distances, pairs)
    held = jnp.ones_like(given)
    if weights is not None:
        wanted = _square("weights", weights)
        if wanted.shape != distances.shape:
            raise ValueError(f"weights {wanted.shape} do not fit distances {distances.shape}")
        held = _pairs_of(wanted.astype(given.dtype), pairs)
    bregman, kept = discrepancy.program(given, held)
    oracle = ShortestPathOracle(n) if oracle is None else oracle
    solution = project_with_oracle(
        bregman, oracle, kept, solver=solver, key=key, progress=progress, throw=throw
    )
    return NearestMetric(_matrix_of(solution.value.primal, pairs, n), solution)


def _square(name, matrix) -> Array:
    matrix = checks.inexact_tree(name, matrix)
    shape = jnp.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 3:
        raise ValueError(f"{name} must be a square matrix of three rows or more, got {shape}")
    fixed = _without_derivative(matrix)
    if not checks.is_traced(fixed):
        host = np.asarray(fixed)
        skew, scale = np.max(np.abs(host - host.T)), np.max(np.abs(host))
        if skew > 1e3 * jnp.finfo(host.dtype).eps * scale:  # False for NaN, which status says
            raise ValueError(f"{name} must be symmetric, entries differ by {skew:.3g}")
    return matrix


def _pairs_of(matrix, pairs):
    i, j = pairs
    return 0.5 * (matrix[i, j] + matrix[j, i])


def _matrix_of(values, pairs, n):
    i, j = pairs
    values = values[: len(i)]
    empty = jnp.zeros((n, n), values.dtype)
    return empty.at[i, j].set(values).at[j, i].set(values)


class RelaxedClustering(NamedTuple):
    """A fractional clustering: 0 for together, 1 for apart.

    - `distances`: of each edge, shape `(e,)`.
    - `edges`: pairs of nodes, shape `(e, 2)`.
    - `cost`: $\\sum_e |w_e| |x_e - d_e|$.
    - `lower_bound`: on the cost of every clustering, and of the relaxation.
    - `solution`: the `Solution` that it is from.
    """

    distances: Float[Array, " e"]
    edges: Int[np.ndarray, "e 2"]
    cost: Float[Array, ""]
    lower_bound: Float[Array, ""]
    solution: Solution


def correlation_clustering(
    similarity: Float[Array, "n n"],
    gamma: Any = 0.1,
    *,
    oracle: AbstractSeparation | None = None,
    solver: ProjectAndForget | None = None,
    key: PRNGKeyArray | None = None,
    progress: bool = True,
    throw: bool = False,
) -> RelaxedClustering:
    """The linear relaxation of correlation clustering, within the fraction $\\gamma$ of its best.

    Edges with a positive weight pay $w_e x_e$, those with a negative one $|w_e| (1 - x_e)$, so that
    with $d_e = 0$ and $1$ the cost is $\\sum_e |w_e| |x_e - d_e|$, over $0 \\le x \\le 1$ with all
    cycle inequalities of the graph. It is solved as $\\min |w|^\\top f$, $|x - d| \\le f$ plus the
    curvature $\\frac\\gamma2 \\sum_e |w_e| ((x_e - d_e)^2 + f_e^2)$; at $f = |x - d| \\le 1$ that
    is at most $\\gamma |w|^\\top f$, so its least value over $1 + \\gamma$ is a lower bound, and
    the cost at most $1 + \\gamma$ times the best. Pairs without weight are no edges. By
    `project_with_oracle`, on the host; derivatives flow to `similarity`.

    **Arguments:**

    - `similarity`: symmetric, shape `(n, n)`; zero where there is no edge; its diagonal is not
      looked at.
    - `gamma`: $\\gamma > 0$.
    - `oracle`: a `ShortestPathOracle` of the graph by default.
    - `solver`, `key`, `progress`, `throw`: see `project_with_oracle`.

    **Returns:** a `RelaxedClustering`.

    **Raises:** `ValueError` if `similarity` is not square, symmetric, finite or has no edge, or
    `gamma` is not positive; `TypeError` inside of `jit` or `vmap`.

    **Reference:** Sonthalia, Gilbert, Project and Forget: Solving Large-Scale Metric Constrained
    Problems, 2022, arXiv:2005.03853.
    """
    similarity = _square("similarity", similarity)
    checks.positive("gamma", gamma)
    fixed = _without_derivative(similarity)
    if checks.is_traced(fixed):
        raise TypeError("correlation_clustering runs on the host, and not inside of jit or vmap")
    n = similarity.shape[0]
    i, j = np.triu_indices(n, 1)
    there = np.asarray(fixed)[i, j] != 0
    edges = np.stack([i[there], j[there]], axis=1)
    if not len(edges):
        raise ValueError("similarity has no edge: all entries off the diagonal are zero")
    bregman, kept = _clustering_program(similarity, jnp.asarray(edges), gamma)
    oracle = ShortestPathOracle(n, edges) if oracle is None else oracle
    solution = project_with_oracle(
        bregman, oracle, kept, solver=solver, key=key, progress=progress, throw=throw
    )
    x, cost, least = _clustering_costs(bregman, solution.value, solution.state)
    return RelaxedClustering(x, edges, cost, least, solution)


@eqx.filter_jit
def _clustering_program(similarity, edges, gamma):
    signed = _pairs_of(similarity, tuple(edges.T))
    given = jnp.where(signed < 0, 1, 0).astype(signed.dtype)
    weights, size = jnp.abs(signed), given.shape[0]
    gamma = jnp.asarray(gamma, signed.dtype)
    center = jnp.concatenate([given, jnp.full_like(given, -1) / gamma])
    bregman = Quadratic(center, gamma * jnp.concatenate([weights, weights]))
    own = np.arange(size)
    below = _bounds_below(given)
    above = HalfSpaces(below.index, -below.coefficient, jnp.ones_like(given), True)
    return bregman, [*_within(given, own, size + own, True), below, above]


@eqx.filter_jit
def _clustering_costs(bregman, value, rows):
    """The distances, their cost, and the lower bound."""
    size = bregman.center.shape[0] // 2
    given, gamma = bregman.center[:size], -1 / bregman.center[size]
    weights = bregman.weights[:size] / gamma
    # The least value of the Lagrangian, which bounds the program's from below at any multipliers,
    # without the constant of the square that was completed.
    point, dual = value
    held = tree.vdot(dual.inequalities, _Excess(rows)(point))
    least = bregman(point) + held - 0.5 * jnp.sum(weights) / gamma
    x = point[:size]
    return x, jnp.sum(weights * jnp.abs(x - given)), least / (1 + gamma)


class LearnedMetric(NamedTuple):
    """A Mahalanobis matrix, shape `(d, d)`, and the `Solution` that it is from."""

    matrix: Float[Array, "d d"]
    solution: Solution


def itml(
    points: Float[Array, "n d"],
    similar: Int[np.ndarray, "s 2"],
    dissimilar: Int[np.ndarray, "t 2"],
    upper: Any,
    lower: Any,
    gamma: Any = 1.0,
    *,
    prior: Float[Array, "d d"] | None = None,
    probability: float = 1.0,
    solver: ProjectAndForget | None = None,
    key: PRNGKeyArray | None = None,
    progress: bool = True,
    throw: bool = False,
) -> LearnedMetric:
    """Information-theoretic metric learning: the Mahalanobis matrix nearest to a prior that has
    similar points near and others far.

    $$\\min_{A, \\xi} D(A, A_0) + \\gamma \\sum_i D(\\xi_i, \\xi_{0i}) \\quad\\text{with}\\quad
      v_i^\\top A v_i \\le \\xi_i \\text{ (similar)},\\quad v_i^\\top A v_i \\ge \\xi_i
      \\text{ (others)},$$

    $v_i$ the difference of a pair, $\\xi_0$ the bounds, $D$ the divergence of `LogDet`. By
    `project_with_oracle`, on the host. Derivatives flow to `upper`, `lower`, `gamma` and `prior`.

    **Arguments:**

    - `points`: shape `(n, d)`.
    - `similar`, `dissimilar`: pairs of rows, shapes `(s, 2)` and `(t, 2)`; either may be empty.
    - `upper`, `lower`: the squared distance that similar pairs should stay below, and others above.
    - `gamma`: $\\gamma > 0$, how hard it is to give way on these.
    - `prior`: $A_0$, symmetric positive definite; the identity if `None`.
    - `probability`: with which each pair is looked at in a round.
    - `solver`, `key`, `progress`, `throw`: see `project_with_oracle`.

    **Returns:** a `LearnedMetric`.

    **Raises:** `ValueError` for pairs that do not fit, no pair at all, a dissimilar pair of equal
    points, or bounds or `gamma` that are not positive; `TypeError` inside of `jit` or `vmap`.

    **Reference:** Sonthalia, Gilbert, Project and Forget: Solving Large-Scale Metric Constrained
    Problems, 2022, arXiv:2005.03853. Davis, Kulis, Jain, Sra, Dhillon, Information-Theoretic Metric
    Learning, 2007.
    """
    points = checks.inexact_tree("points", points)
    fixed = _without_derivative(points)
    if checks.is_traced(fixed):
        raise TypeError("itml runs on the host, and not inside of jit or vmap")
    if points.ndim != 2:
        raise ValueError(f"points must have shape (n, d), got {points.shape}")
    near, far = (_pairs(name, p, points.shape[0]) for name, p in _named(similar, dissimilar))
    pairs = np.concatenate([near, far])
    if not len(pairs):
        raise ValueError("there is no pair, similar or not")
    host = np.asarray(fixed)
    vector = host[pairs[:, 0]] - host[pairs[:, 1]]
    same = np.flatnonzero(np.all(vector[len(near) :] == 0, axis=1))
    if len(same):
        raise ValueError(f"the dissimilar pair {far[same[0]]} is of equal points")
    sign = np.concatenate([np.ones(len(near)), -np.ones(len(far))]).astype(host.dtype)
    rows = Pairs(vector, sign, np.arange(len(pairs), dtype=np.int32))
    dtype = points.dtype
    spread = lambda bound, pairs: jnp.asarray(bound, dtype) * jnp.ones(len(pairs), dtype)
    goal = [spread(upper, near), spread(lower, far)]
    prior = jnp.eye(points.shape[1], dtype=dtype) if prior is None else jnp.asarray(prior, dtype)
    if prior.shape != points.shape[1:] * 2:
        raise ValueError(f"prior {prior.shape} does not fit points {points.shape}")
    bregman = LogDet(prior, jnp.concatenate(goal), gamma)
    oracle = ListOracle(rows, probability)
    solution = project_with_oracle(
        bregman, oracle, solver=solver, key=key, progress=progress, throw=throw
    )
    point: MetricPoint = solution.value.primal
    return LearnedMetric(point.matrix, solution)


def _named(similar, dissimilar):
    return (("similar", similar), ("dissimilar", dissimilar))


def _pairs(name, pairs, count):
    pairs = np.asarray(pairs)
    if pairs.size == 0:
        return np.zeros((0, 2), int)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(f"{name} must be pairs of integers, got {pairs.dtype} {pairs.shape}")
    if np.any((pairs < 0) | (pairs >= count)):
        raise ValueError(f"{name} has a pair outside of the {count} points")
    return pairs


__all__ = [
    "AbsoluteError",
    "AbstractDiscrepancy",
    "AbstractForgetting",
    "ForgetAll",
    "ForgetInactive",
    "LargestError",
    "LearnedMetric",
    "NearestMetric",
    "ProjectAndForget",
    "RelativeEntropy",
    "RelaxedClustering",
    "Remembered",
    "SquaredError",
    "correlation_clustering",
    "itml",
    "metric_nearness",
    "project_with_oracle",
]
