"""Cutting planes in finite dimension: center of gravity, ellipsoids, and Vaidya's method.

All keep a body that holds a minimizer, ask for a cut at its center, and throw away what the cut
shows to be no better: where the center is in the set, a subgradient $w$ of $f$ there; where it is
not, a $w$ that separates it from the set.
"""

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ...core import (
    AbstractSolver,
    Constrained,
    Scalar,
    Smooth,
    Status,
    checks,
    loops,
    scalar_field,
    tree,
)
from .. import _cubic
from ..proximal_gradient import smooth_part
from .centroid import AbstractCentroid, PolygonCentroid
from .random_walk import SampledCentroid

Vector = Float[Array, " n"]


class AbstractSeparationOracle(eqx.Module):
    """What tells a point of a set from others, and separates these from it."""

    @abc.abstractmethod
    def __call__(
        self, feasible: Any, x: PyTree[Array]
    ) -> tuple[PyTree[Array], PyTree[Array], Bool[Array, ""], Bool[Array, ""]]:
        """Ask at a point.

        **Arguments:**

        - `feasible`: the set of the problem.
        - `x`: the point.

        **Returns:** the point where $f$ is asked; a $w$ with $w^\\top (u - x) \\le 0$ for all $u$
        of the set, used where `x` is outside; whether `x` is in the set; and whether the first of
        these is.
        """


class ProjectionOracle(AbstractSeparationOracle):
    """By the projection of the set: $w = x - P_C(x)$, and $f$ is asked at $P_C(x)$, so that each
    step has a point to offer."""

    def __call__(self, feasible, x):
        point = feasible.project(x)
        away = tree.norm(_minus(x, point))
        eps = 8 * jnp.finfo(tree.real_dtype(x)).eps
        inside = away <= eps * tree.norm(x)
        return point, _minus(x, point), inside, jnp.ones_like(inside)


class FunctionOracle(AbstractSeparationOracle):
    """By a convex function whose values are positive outside of the set: $w = \\nabla c(x)$ where
    $c(x) > 0$. For sets on which projecting is dear; $f$ is asked in the set only.

    **Arguments:**

    - `fun`: $c$, `x -> scalar`; the maximum of several constraints will do.
    """

    fun: Callable[[PyTree[Array]], Float[Array, ""]]

    def __call__(self, feasible, x):
        value, slope = tree.value_and_gradient(self.fun, x)
        inside = value <= 0
        return x, slope, inside, inside


class _Look(NamedTuple):
    """What was seen from a center."""

    point: Vector
    value: Float[Array, ""]
    gradient: Vector
    normal: Vector
    offset: Vector  # from the point to the center
    error: Float[Array, ""]
    valid: Bool[Array, ""]


class _Best(eqx.Module):
    """What is known of the minimum, and of the value that a step returns."""

    value: Float[Array, ""]
    lower: Float[Array, ""]
    error: Float[Array, ""]
    stuck: Bool[Array, ""]


def _minus(x, y):
    return jax.tree.map(jnp.subtract, x, y)


def _vector(x) -> Vector:
    return ravel_pytree(tree.real_view(x))[0]


def _unit(v):
    """Of length one, without squares that overflow; zero stays zero."""
    size = jnp.max(jnp.abs(v))
    v = v / jnp.where(size > 0, size, 1)
    length = jnp.linalg.norm(v)
    return v / jnp.where(length > 0, length, 1)


def _look(oracle, problem, x, center) -> _Look:
    """Ask at a center, given as a vector."""
    fun = smooth_part(problem)[0]
    unravel = _cubic.flatten(fun, x).unravel
    here = unravel(center)
    if isinstance(problem, Smooth):
        value, gradient = tree.value_and_gradient(fun, here)
        gradient = _vector(gradient)
        error = jnp.linalg.norm(gradient)
        true = jnp.ones_like(error, bool)
        return _Look(center, value, gradient, gradient, 0 * center, error, true)
    point, normal, inside, valid = oracle(problem.feasible, here)
    value, slope = tree.value_and_gradient(fun, point)
    # The problem's residual, whose gradient is at hand.
    error = tree.norm(_minus(point, problem.feasible.project(_minus(point, slope))))
    gradient, flat = _vector(slope), _vector(point)
    normal = jnp.where(inside, gradient, _vector(normal))
    return _Look(flat, value, gradient, normal, center - flat, error, valid)


def _first(x) -> tuple[Vector, _Best]:
    center = _vector(x)
    large = jnp.asarray(jnp.finfo(center.dtype).max / 4, center.dtype)
    return center, _Best(large, -large, large, jnp.asarray(False))


def _taken(x, look: _Look, best: _Best, least, stuck, problem) -> tuple[PyTree[Array], _Best]:
    """The value after a look.

    Of values that rounding cannot tell apart the last is taken: its center is the best known.

    - `least`: of $g^\\top (y - c)$ over the body, or `None`.
    """
    fun = smooth_part(problem)[0]
    flat = _cubic.flatten(fun, x)
    dtype = best.value.dtype
    value = look.value.astype(dtype)
    ties = 8 * jnp.finfo(dtype).eps * jnp.abs(best.value)
    better = look.valid & ((value <= best.value + ties) | jnp.isnan(value))
    point = flat.unravel(jnp.where(better, look.point, flat.x))
    error = jnp.where(better, look.error.astype(dtype), best.error)
    lower = best.lower
    if least is not None:
        bound = value + jnp.vdot(look.gradient, look.offset) + least.astype(dtype)
        known = look.valid & (bound > lower)
        lower = jnp.where(known, bound, lower)
    smallest = jnp.where(better, jnp.minimum(value, best.value), best.value)
    smallest = jnp.where(better & jnp.isnan(value), value, smallest)
    return point, _Best(smallest, lower, error, stuck)


class _AbstractCuttingPlane(AbstractSolver):
    """What is the same of all: the value is the best point asked, the error its residual."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        radius: ClassVar[Scalar]
        oracle: ClassVar[AbstractSeparationOracle]
    else:
        radius: eqx.AbstractVar[Scalar]
        oracle: eqx.AbstractVar[AbstractSeparationOracle]
    problems = (Smooth, Constrained)

    def __check_init__(self):
        checks.positive("radius", self.radius)
        checks.instance("oracle", self.oracle, AbstractSeparationOracle, "ProjectionOracle()")

    def error(self, problem, x, state):
        return state.best.error

    def status(self, problem, x, state):
        """A body that rounding does not tell from its center has no cut left."""
        return Status.where(state.best.stuck, Status.breakdown, Status.running)

    def gap(self, problem, x, state):
        """What the cuts prove: the best value less the least that any point of the body can have,
        relative to the value; very large where they prove nothing."""
        best = state.best
        return jnp.maximum(best.value - best.lower, 0) / jnp.maximum(jnp.abs(best.value), 1)


class _EllipsoidState(eqx.Module):
    center: Vector
    shape: Float[Array, "n n"]
    best: _Best


class Ellipsoid(_AbstractCuttingPlane):
    """The ellipsoid method: the smallest ellipsoid around what a cut leaves of the last,

    $$c^+ = c - \\frac{1}{n+1} \\frac{Hw}{\\sqrt{w^\\top H w}}, \\qquad
      H^+ = \\frac{n^2}{n^2-1} \\Bigl(H - \\frac{2}{n+1}
        \\frac{H w w^\\top H}{w^\\top H w}\\Bigr),$$

    from the ball of a given radius around the start, which must hold a minimizer. A factor of $H$
    is kept, so that it stays positive whatever the rounding. In one unknown it halves intervals.

    **Theorem.** If the set holds a ball of radius $r$ and $f$ varies by at most $B$ on it, then
    after $t \\ge 2 n^2 \\log(R/r)$ steps $f(x) - f^* \\le \\frac{2BR}{r} e^{-t/(2n^2)}$.

    **The error** is the norm of the problem's residual at the value, the best point asked so far.
    For a function with a kink at its minimizer it does not vanish: such a solve ends at the step
    limit, or as `breakdown` where the body is as small as rounding lets it be. What its cuts prove
    is `Solution.gap`: $f$ is at least $f(c) - \\sqrt{g^\\top H g}$ on the ellipsoid around $c$.
    A set without interior, a simplex say, is never entered, and its cuts say nothing of $f$.

    **Arguments:**

    - `radius`: $R > 0$.
    - `oracle`: `ProjectionOracle()` or `FunctionOracle(fun)`, for `Constrained` problems.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `radius` is positive.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Nemirovski, Yudin, Problem Complexity and Method Efficiency in Optimization, 1983. Shor, Cut-Off
    Method with Space Extension in Convex Programming Problems, 1977.
    """

    radius: Scalar = eqx.field(converter=checks.scalar)
    oracle: AbstractSeparationOracle = ProjectionOracle()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000

    def guarantee(self, steps: Any, constants: Any) -> Any:
        """$\\frac{2BR}{r} e^{-t/(2n^2)}$, and $B$ as long as that is less."""
        spread, radius, inner, n = constants.need("spread", "radius", "inner_radius", "dimension")
        rate = jnp.exp(-jnp.asarray(steps, float) / (2 * n**2))
        return spread * jnp.minimum(2 * radius / inner * rate, 1)

    def init(self, problem, x, key):
        center, best = _first(x)
        shape = jnp.asarray(self.radius, center.dtype) * jnp.eye(center.size, dtype=center.dtype)
        return _EllipsoidState(center, shape, best)

    def step(self, problem, x, state):
        look = _look(self.oracle, problem, x, state.center)
        n, B = state.center.size, state.shape
        along = B.T @ _unit(look.normal)
        size = jnp.linalg.norm(along)
        e = along / jnp.where(size > 0, size, 1)
        move = B @ e
        grow = n / math.sqrt(n**2 - 1) if n > 1 else 1.0  # one unknown has no other direction
        center = state.center - move / (n + 1)
        stuck = jnp.all(center == state.center) | ~(size > 0)
        shape = grow * B - (grow - n / (n + 1)) * jnp.outer(move, e)
        shape = jnp.where(size > 0, shape, B)
        least = -jnp.linalg.norm(B.T @ look.gradient)
        x, best = _taken(x, look, state.best, least, stuck, problem)
        return x, _EllipsoidState(center, shape, best)


class _GravityState(eqx.Module):
    center: Vector
    body: PyTree
    key: PRNGKeyArray
    best: _Best


class CenterOfGravity(_AbstractCuttingPlane):
    """The center of gravity method: cuts through the centroid of what is left,

    $$S_{t+1} = S_t \\cap \\{x : w_t^\\top (x - c_t) \\le 0\\}, \\qquad
      c_t = \\frac{1}{\\mathrm{vol}(S_t)} \\int_{S_t} x \\, dx,$$

    from the box of half-width $R$ around the start, which must hold a minimizer. The centroid is
    exact in one and two unknowns, and the mean of samples of a random walk in more. With these it
    is the method of Bertsimas and Vempala.

    **Theorem.** Each cut leaves at most a share $1 - 1/e$ of the volume (Grünbaum), $2/3$ by
    samples in expectation, and so $f(x) - f^* \\le 2 B (1 - 1/e)^{t/n}$ where $f$ varies by at most
    $B$ on the set, if that is the box; a smaller set counts with $(\\mathrm{vol}\\,\\text{box} /
    \\mathrm{vol}\\,C)^{1/n}$.

    **The error** is that of `Ellipsoid`. With the exact centroid `Solution.gap` is what the cuts
    prove, by the least value that a corner can have; with samples there is none.

    **Arguments:**

    - `radius`: $R > 0$.
    - `centroid`: `PolygonCentroid()`, `SampledCentroid(...)`, or `None` for the first of these that
      takes as many unknowns.
    - `oracle`: `ProjectionOracle()` or `FunctionOracle(fun)`, for `Constrained` problems.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `radius` is positive, and for a polygon in three unknowns.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Levin, On an Algorithm for the Minimization of Convex Functions, 1965. Newman, Location of the
    Maximum on Unimodal Surfaces, 1965.
    """

    radius: Scalar = eqx.field(converter=checks.scalar)
    centroid: AbstractCentroid | None = None
    oracle: AbstractSeparationOracle = ProjectionOracle()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 200

    def __check_init__(self):
        if self.centroid is not None:
            checks.instance("centroid", self.centroid, AbstractCentroid, "SampledCentroid()")

    def _centroid(self, dimension: int) -> AbstractCentroid:
        if self.centroid is not None:
            return self.centroid
        return PolygonCentroid() if dimension <= 2 else SampledCentroid()

    def guarantee(self, steps: Any, constants: Any) -> Any:
        """$2 B q^{t/n}$ with $q = 1 - 1/e$ or $2/3$, times $2R/r$ if an inner radius $r$ is given:
        $C$ then is at least a ball of that radius, in a cube of side $2R$."""
        spread, n = constants.need("spread", "dimension")
        share = self._centroid(n).ratio ** (jnp.asarray(steps, float) / n)
        if constants.inner_radius is not None:
            radius, inner = constants.need("radius", "inner_radius")
            ball = math.pi ** (n / 2) / math.gamma(n / 2 + 1)
            share = share * 2 * radius / (inner * ball ** (1 / n))
        return spread * jnp.minimum(2 * share, 1)

    def gap(self, problem, x, state):
        """As of the others; `None` where the centroid proves nothing."""
        centroid = self._centroid(state.center.size)
        if centroid.least(state.body, state.center) is None:
            return None
        return super().gap(problem, x, state)

    def init(self, problem, x, key):
        center, best = _first(x)
        start, key = jax.random.split(key)
        radius = jnp.asarray(self.radius, center.dtype)
        body = self._centroid(center.size).start(center.size, radius, start)
        return _GravityState(center, body, key, best)

    def step(self, problem, x, state):
        look = _look(self.oracle, problem, x, state.center)
        centroid = self._centroid(state.center.size)
        now, key = jax.random.split(state.key)
        normal = _unit(look.normal)
        move, body, ok = centroid.cut(state.body, normal, now)
        cuts = jnp.any(normal != 0)
        move = jnp.where(cuts, move, 0)
        center = state.center + move
        stuck = ~cuts | ~ok | jnp.all(center == state.center)
        least = centroid.least(state.body, look.gradient)
        x, best = _taken(x, look, state.best, least, stuck, problem)
        return x, _GravityState(center, tree.where(cuts, body, state.body), key, best)


class _VaidyaState(eqx.Module):
    center: Vector
    rows: Float[Array, "m n"]
    room: Float[Array, " m"]  # of the center
    used: Bool[Array, " m"]
    best: _Best


class _Barrier(NamedTuple):
    """The volumetric barrier at a point of a polytope."""

    scaled: Float[Array, "m n"]
    factor: Float[Array, "n n"]
    half: Float[Array, "n m"]
    scores: Float[Array, " m"]
    gradient: Vector
    sides: Float[Array, "n k"]


class Vaidya(_AbstractCuttingPlane):
    """Vaidya's cutting plane method: cuts near the volumetric center of a polytope
    $\\{x : Ax \\ge b\\}$ with few rows.

    With $s = Ax - b$, $A_x = \\mathrm{diag}(s)^{-1} A$ and the leverage scores
    $\\sigma_i = (A_x (A_x^\\top A_x)^{-1} A_x^\\top)_{ii}$, the center minimizes the volumetric
    barrier $v(x) = \\frac12 \\log\\det A_x^\\top A_x$, whose gradient is $-A_x^\\top \\sigma$ and
    whose Hessian is between $Q$ and $3 Q$, $Q = A_x^\\top \\mathrm{diag}(\\sigma) A_x$. A step
    either drops the row of the smallest score, if that is below $\\epsilon$, or adds the cut
    $-w^\\top y \\ge b$ behind the center, so far that $w^\\top (A_x^\\top A_x)^{-1} w / s^2 =
    \\delta$; then it goes back to the center by Newton steps along $-Q^{-1} \\nabla v$. It starts
    from the box of half-width $R$ around the start, which must hold a minimizer.

    Scores sum to $n$, so that there are never more than $n / \\epsilon$ rows. The constants of the
    theory, $\\epsilon = 0.006$ and $\\delta = \\sqrt\\epsilon / 5$, promise $O(n \\log(nR/r\\tau))$
    steps to an accuracy $\\tau$ with factors that make it slow; the defaults are larger, and for
    them there is no bound beforehand.

    **The error** is that of `Ellipsoid`. `Solution.gap` is what is proved in place of a bound
    beforehand: with $m$ rows, $h = |\\nabla v|_{(A_x^\\top A_x)^{-1}}$ and $\\sigma_0$ the least
    score, all of the polytope is within $\\rho = (\\sqrt m + n / \\sigma_0) / (1 - h / \\sigma_0)$
    of the center in the norm of $A_x^\\top A_x$, for $h < \\sigma_0$, and $f$ is at least $f(x) -
    \\rho\\, |g|_{(A_x^\\top A_x)^{-1}}$ there.

    **Arguments:**

    - `radius`: $R > 0$.
    - `drop`: $\\epsilon$ in (0, 1).
    - `depth`: $\\delta > 0$.
    - `newton_steps`: back to the center, after each change of the rows; static.
    - `max_rows`: rows that the arrays have place for, by default $10 n + 10$; where they are full
      the row of the smallest score is dropped.
    - `oracle`: `ProjectionOracle()` or `FunctionOracle(fun)`, for `Constrained` problems.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for numbers out of these ranges.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Vaidya, A New Algorithm for Minimizing Convex Functions over Convex Sets, 1996.
    """

    radius: Scalar = eqx.field(converter=checks.scalar)
    drop: Scalar = scalar_field(0.04)
    depth: Scalar = scalar_field(0.5)
    newton_steps: int = eqx.field(static=True, default=5)
    max_rows: int | None = eqx.field(static=True, default=None)
    oracle: AbstractSeparationOracle = ProjectionOracle()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000

    def __check_init__(self):
        checks.interval("drop", self.drop, 0, 1, open_low=True, open_high=True)
        checks.positive("depth", self.depth)
        checks.count("newton_steps", self.newton_steps)
        if self.max_rows is not None:
            checks.count("max_rows", self.max_rows, minimum=3)

    def init(self, problem, x, key):
        center, best = _first(x)
        n = center.size
        m = self.max_rows or 10 * n + 10
        if m < 2 * n + 1:
            raise ValueError(f"{n} unknowns need at least {2 * n + 1} rows, got max_rows={m}")
        eye = jnp.eye(n, dtype=center.dtype)
        rows = jnp.zeros((m, n), center.dtype).at[: 2 * n].set(jnp.concatenate([eye, -eye]))
        room = jnp.full(m, jnp.asarray(self.radius, center.dtype))
        return _VaidyaState(center, rows, room, jnp.arange(m) < 2 * n, best)

    def step(self, problem, x, state):
        look = _look(self.oracle, problem, x, state.center)
        dtype, n = state.center.dtype, state.center.size
        sides = jnp.stack([look.gradient, look.normal], axis=1)
        here = _barrier(state.rows, state.room, state.used, sides)
        # What the cuts prove.
        least = jnp.min(jnp.where(state.used, here.scores, jnp.inf))
        off = jnp.linalg.norm(_forward(here.factor, here.gradient))
        slope, across = jnp.linalg.norm(here.sides, axis=0)
        centered = off < 0.5 * least
        reach = jnp.sqrt(jnp.sum(state.used)) + n / least
        reach = reach / jnp.where(centered, 1 - off / least, 1)
        bound = jnp.where(centered, -reach * slope, -jnp.inf)
        # A row less or a row more.
        drops = (least < jnp.asarray(self.drop, dtype)) | jnp.all(state.used)
        cuts = jnp.any(look.normal != 0) & jnp.isfinite(across) & jnp.isfinite(off)
        place = jnp.where(
            drops,
            jnp.argmin(jnp.where(state.used, here.scores, jnp.inf)),
            jnp.argmin(state.used),
        )
        length = jnp.linalg.norm(look.normal)
        length = jnp.where(length > 0, length, 1)
        behind = across / length / jnp.sqrt(jnp.asarray(self.depth, dtype))
        rows = state.rows.at[place].set(
            jnp.where(drops | ~cuts, state.rows[place], -look.normal / length)
        )
        room = state.room.at[place].set(jnp.where(drops | ~cuts, state.room[place], behind))
        used = state.used.at[place].set(jnp.where(drops, False, state.used[place] | cuts))
        move, room = self._recenter(rows, room, used)
        center = state.center + move
        broken = ~jnp.all(jnp.isfinite(center))
        # Nothing to cut, or rounding moves the center no more while a cut should.
        stuck = broken | ~cuts | (~drops & (behind <= jnp.finfo(dtype).eps * _largest(center)))
        center = jnp.where(broken, state.center, center)
        x, best = _taken(x, look, state.best, bound, stuck, problem)
        return x, _VaidyaState(center, rows, room, used, best)

    def _recenter(self, rows, room, used):
        def newton(_, carry):
            move, room = carry
            at = _barrier(rows, room, used, rows.T[:, :0])
            Q = at.scaled.T @ (at.scores[:, None] * at.scaled)
            factor = jnp.linalg.cholesky(Q)
            d = -_back(factor, _forward(factor, at.gradient))
            speed = at.scaled @ d
            # The length that the exact curvature along the direction asks for.
            mixed = (at.half * speed) @ at.half.T
            curved = 3 * jnp.sum(at.scores * speed**2) - 2 * jnp.sum(mixed**2)
            t = -jnp.vdot(at.gradient, d) / jnp.where(curved > 0, curved, 1)
            fastest = jnp.max(jnp.abs(speed))
            t = jnp.minimum(t, 0.5 / jnp.where(fastest > 0, fastest, 1))
            ok = jnp.all(jnp.isfinite(d)) & (curved > 0)
            d = jnp.where(ok, t * d, 0)
            # Kept as it is, to its own relative precision, however far from the origin.
            return move + d, room + rows @ d

        start = (jnp.zeros(rows.shape[1], rows.dtype), room)
        return loops.fori_loop(0, self.newton_steps, newton, start)


def _largest(v):
    return jnp.max(jnp.abs(v))


def _forward(factor, side):
    return jsp.linalg.solve_triangular(factor, side, lower=True)


def _back(factor, side):
    return jsp.linalg.solve_triangular(factor, side, lower=True, trans=1)


def _barrier(rows, room, used, sides) -> _Barrier:
    """`sides` are divided by the factor of $A_x^\\top A_x$ together with the rows: factorizations
    and solves of a batch should run one behind the other."""
    scaled = jnp.where(used[:, None], rows / jnp.where(used, room, 1)[:, None], 0)
    # In units of the largest entry: rooms may be as small as squares cannot be.
    unit = jnp.max(jnp.abs(scaled))
    unit = jnp.where(unit > 0, unit, 1)
    factor = jnp.linalg.cholesky((scaled / unit).T @ (scaled / unit)) * unit
    both = _forward(factor, jnp.concatenate([scaled.T, sides], axis=1))
    half, sides = both[:, : rows.shape[0]], both[:, rows.shape[0] :]
    scores = jnp.sum(half**2, axis=0)
    return _Barrier(scaled, factor, half, scores, -scaled.T @ scores, sides)
