"""The central path of a self-concordant barrier, followed by Newton steps on the primal side."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ...core import (
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
from .._conic_form import Form, Scaling, conic_form, equilibrated, original
from .._conic_newton import factorized, in_metric, moved_within
from ..cones import Orthant
from ..interior_point import AbstractPath, ShortStep

CLOSE = 0.25
"""The decrement up to which a point counts as near to the path."""
FULL = 0.38
"""Up to this decrement, $(3 - \\sqrt 5) / 2$, full Newton steps contract."""


class AbstractApproach(eqx.Module):
    """How the path is reached from a point in the interior."""

    @abc.abstractmethod
    def pull(self) -> float:
        """How strongly the start is held by a linear term at first, 1 or 0."""


class DampedApproach(AbstractApproach):
    """Newton steps of length $1 / (1 + \\lambda)$, with $\\lambda$ the decrement."""

    def pull(self):
        return 0.0


class ReversedPath(AbstractApproach):
    """Along the path of $F_t(x) - u \\langle \\nabla F_t(x_0), x\\rangle$, which starts at $x_0$
    with $u = 1$, as fast as the path itself is followed."""

    def pull(self):
        return 1.0


class _State(eqx.Module):
    form: Form
    scaling: Scaling
    slope: Float[Array, " n"]
    pull: Float[Array, ""]
    weight: Float[Array, ""]
    decrement: Float[Array, ""]
    error: Float[Array, ""]
    point: Float[Array, " n"]
    verdict: Status


class _Local(NamedTuple):
    """What Newton's method knows at a point: the moves against the cost, against the barrier and
    towards the equations, and along the slope that holds the start. Each solves its system, `(x, y,
    z)`, with $y / t$ the multipliers and z the move of the slack in the barrier's own metric."""

    cost: PyTree[Array]
    barrier: PyTree[Array]
    start: PyTree[Array]

    def move(self, growth, pull):
        """That of a weight which has grown."""
        parts = zip(*map(jax.tree.leaves, self), strict=True)
        moved = [growth * a + b + pull * c for a, b, c in parts]
        return jax.tree.unflatten(jax.tree.structure(self.cost), moved)


class BarrierMethod(AbstractSolver):
    """Path following in the primal variables alone: approximate minimizers of

    $$F_t(x) = t\\,c^\\top x + F(x)$$

    on $Ex = e$, with $F$ the logarithmic barrier of the cones, of parameter $\\nu$. Near the path,
    where the decrement $\\lambda = |\\nabla F_t(x)|_{\\nabla^2 F(x)^{-1}}$ is at most $1/4$, the
    weight $t$ is raised; each raise and each step back to the path is a Newton step, full where
    $\\lambda \\le 0.38$ and of length $1 / (1 + \\lambda)$ elsewhere. With `ShortStep`,
    $t \\leftarrow (1 + 1 / (13 \\sqrt\\nu))\\,t$, one full step follows each raise, and $k$ steps
    behind the first point near the path

    $$c^\\top x - \\min \\le \\frac{2 \\nu}{t_0} \\Bigl(1 + \\frac1{13 \\sqrt\\nu}\\Bigr)^{-k}.$$

    The Newton step gives a dual point too, feasible where $\\lambda < 1$. The error is the larger
    of the gap between the two objectives, which is $\\nu / t$ nearly, and the norm of the problem's
    residual. A step costs $O(n^3)$ and $n$ scalings of cone points.

    The start has to be in the interior of the cones, else the status is `breakdown`; it may violate
    the equations. Programs without a solution are not recognized: `InteriorPoint` needs no
    interior, and certifies them.

    **Arguments:**

    - `path`: `ShortStep()` or `LongStep()`.
    - `approach`: `DampedApproach()` or `ReversedPath()`.
    - `weight`: $t_0 > 0$, the first $t$.
    - `refinements`: how often each linear solve is refined.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` for a path that predicts, or what is no approach.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 5.3. Nesterov, Nemirovskii, Interior-Point Polynomial Algorithms in Convex Programming,
    1994.
    """

    path: AbstractPath = eqx.field(default_factory=lambda: ShortStep())
    approach: AbstractApproach = DampedApproach()
    weight: Scalar = scalar_field(1e-3)
    refinements: int = eqx.field(static=True, default=1)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 20_000
    problems = (LinearMatrixInequality, LinearProgram, SecondOrderConeProgram)

    def __check_init__(self):
        checks.instance("path", self.path, AbstractPath, "ShortStep()")
        if self.path.predicts:
            raise TypeError(f"path must be ShortStep() or LongStep(), got {self.path!r}")
        checks.instance("approach", self.approach, AbstractApproach, "DampedApproach()")
        checks.positive("weight", self.weight)
        checks.count("refinements", self.refinements, minimum=0)

    def init(self, problem, x, key):
        form, scaling = equilibrated(conic_form(problem, x))
        # Of the equilibrated cost, which is measured in another unit.
        weight = self.weight.astype(form.c.dtype) / (scaling.cost * scaling.side)
        point = scaling.side * x.primal / scaling.columns
        return _begin(form, scaling, weight, point, self.approach.pull())

    def refresh(self, problem, x, state):
        """The path from the point reached: with its weight, without a hold."""
        form, scaling = equilibrated(conic_form(problem, x))
        unit = lambda s: s.cost * s.side
        weight = state.weight * unit(state.scaling) / unit(scaling)
        point = state.point * state.scaling.columns / state.scaling.side
        return _begin(form, scaling, weight, scaling.side * point / scaling.columns, 0.0)

    def step(self, problem, x, state):
        form, point = state.form, state.point
        scales, local = _newton(form, state, self.refinements)
        size = lambda move: tree.norm(move[2])
        units = _units(form)
        parameter = jnp.maximum(tree.vdot(units, units), 1)
        decrement = size(local.move(1, state.pull))
        near = decrement <= CLOSE
        sigma = self.path.centering(decrement, parameter, jnp.ones_like(decrement))
        sigma = jnp.where(near, sigma, 1)
        held = state.pull > 0
        free = size(local.move(1, 0)) <= CLOSE
        pull = jnp.where(held & ~free, sigma * state.pull, 0)
        growth = jnp.where(held, 1, 1 / sigma)
        weight = growth * state.weight
        dx, dy, dz = local.move(growth, pull)
        off = size((dx, dy, dz))
        length = jnp.where(off <= FULL, 1, 1 / (1 + off))

        moved = lambda length: point + length * dx
        inside = lambda x: _inside(form, _slack(form, x))
        new = moved_within(form, point, moved, inside, length)

        parts = zip(form.cones, scales, units, dz, strict=True)
        dual = tuple(cone.unscale(w, unit + a) for cone, w, unit, a in parts)
        one = jnp.ones_like(weight)
        y = dy * state.weight
        value = original(problem, form, state.scaling, new, y, dual, one, weight)
        unit = weight * state.scaling.cost * state.scaling.side
        gap = tree.vdot(_slack(form, new), dual) / unit
        error = jnp.maximum(tree.norm(problem.residual(value)), jnp.abs(gap))
        error = jnp.where(tree.all_finite(value), error, jnp.nan).astype(state.error.dtype)
        lost = state.verdict != Status.running
        value = tree.where(lost, x, tree.cast_like(value, x))
        error = jnp.where(lost, tree.norm(problem.residual(x)).astype(error.dtype), error)
        return value, _State(
            form, state.scaling, state.slope, pull, weight, decrement, error, new, state.verdict
        )

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def guarantee(self, steps, constants):
        """$2 \\nu / t_0\\,(1 + r / \\sqrt\\nu)^{-k}$, for $k$ steps from a point near the path.

        **Arguments:**

        - `steps`: $k$.
        - `constants`: `Constants` with `barrier`.
        """
        if not isinstance(self.path, ShortStep):
            raise TypeError("no theorem is known of BarrierMethod but with the path ShortStep()")
        (barrier,) = constants.need("barrier")
        rate = 1 + self.path.rate / jnp.sqrt(barrier)
        return 2 * barrier / self.weight * rate**-steps


def _begin(form: Form, scaling: Scaling, weight, point, pull) -> _State:
    slack = _slack(form, point)
    inside = _inside(form, slack)
    safe = tree.where(inside, slack, tuple(cone.unit(weight.dtype) for cone in form.cones))
    push = tuple(cone.inverse(s) for cone, s in zip(form.cones, safe, strict=True))
    slope = weight * form.c + form.adjoint(push)
    held = jnp.where(inside, pull, 0).astype(weight.dtype)
    infinity = jnp.full_like(weight, jnp.inf)
    lost = Status.where(inside, Status.running, Status.breakdown)
    return _State(form, scaling, slope, held, weight, infinity, infinity, point, lost)


def _slack(form: Form, x):
    return jax.tree.map(jnp.subtract, form.h, form.map(x))


def _inside(form: Form, slack) -> Bool[Array, ""]:
    """In the interior; what is not finite counts as inside, to be seen later."""
    ok = [cone.interior(s) for cone, s in zip(form.cones, slack, strict=True)]
    return jnp.all(jnp.stack(ok)) | ~tree.all_finite(slack)


def _units(form: Form):
    """The cones' units, zero in rows of the orthant that no unknown moves: the barrier of these is
    a number."""
    return tuple(
        jnp.any(G != 0, axis=0).astype(G.dtype) if isinstance(cone, Orthant) else cone.unit(G.dtype)
        for cone, G in zip(form.cones, form.G, strict=True)
    )


def _newton(form: Form, state: _State, refinements):
    """The scalings of the slack, and the moves from a point."""
    x, weight = state.point, state.weight
    slack = _slack(form, x)
    pairs = zip(form.cones, slack, strict=True)
    scales = [cone.scaling(s, cone.inverse(s))[0] for cone, s in pairs]
    # All is divided by the weight, so that multipliers stay as large as they are in the end.
    root = jnp.sqrt(weight)
    metric = in_metric(form, scales)
    metric = eqx.tree_at(lambda f: f.G, metric, tree.scale(metric.G, 1 / root))
    solve = factorized(metric, refinements)
    units = _units(form)
    nothing = jax.tree.map(jnp.zeros_like, units)
    gap = form.e - form.E @ x
    none = jnp.zeros_like(gap)
    downhill = -metric.adjoint(units) / root
    systems = ((-form.c, none), (downhill, gap), (state.slope / weight, none))
    first, second = (jnp.stack(parts) for parts in zip(*systems, strict=True))
    x, y, z = jax.vmap(lambda a, b: solve(a, b, nothing))(first, second)
    found = x, y, tree.scale(z, root)
    return scales, _Local(*(jax.tree.map(lambda a, i=i: a[i], found) for i in range(3)))
