"""What is done with a block of coordinates once it is chosen."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core import Scalar, checks, loops, scalar_field, tree
from ..prox import L1, NonNegative
from .block_rules import model_step
from .coordinate_model import AbstractBlock, gather, scatter_add
from .curvature import solve_block
from .forest import ForestSolver, GraphCurvature
from .separable import Separable

ARMIJO = 1e-4
SHORTEST = 40
"""How often a step is halved at most."""


class BlockView(eqx.Module):
    """A block and what updates read of it; entries that stand for nothing are zero.

    - `indices`, `there`: the coordinates, and which of them are any.
    - `x`, `kept`: the whole point and what the model keeps of it.
    - `slope`: the block's gradient.
    - `block`: the smooth part as a function of the block.
    - `penalty`: the nonsmooth part.
    - `curvature`: a bound on the Hessian; `None` if there is none, and then no update is here that
      needs one.
    - `estimate`: of the block's curvature, from the last visit.
    """

    indices: Int[Array, " s"]
    x: Float[Array, " d"]
    kept: Array
    slope: Float[Array, " s"]
    block: AbstractBlock
    penalty: Separable
    curvature: Any
    estimate: Float[Array, ""]

    @property
    def there(self) -> Bool[Array, " s"]:
        return self.indices < self.x.size

    @property
    def point(self) -> Float[Array, " s"]:
        return gather(self.x, self.indices)

    def prox(self, values, steps):
        """The prox of the entries."""
        new = self.penalty.prox(self.indices, values, jnp.broadcast_to(steps, values.shape))
        return jnp.where(self.there, new, 0)

    def smooth(self, new):
        """$f$ with the block there."""
        return self.block.value(self.x, self.kept, new - self.point)

    def nonsmooth(self, new):
        """$h$ of the block alone."""
        return jnp.sum(jnp.where(self.there, self.penalty.values(self.indices, new), 0))

    def hessian(self) -> Float[Array, "s s"]:
        """$\\nabla^2_{bb} f$ at the point."""
        fun = lambda move: self.block.value(self.x, self.kept, move)
        slope = lambda move: tree.gradient(fun, move)
        return jax.jacfwd(slope)(loops.vary_like(jnp.zeros_like(self.slope), self.slope))

    def at(self, new: Float[Array, " s"]) -> "BlockView":
        """The same block elsewhere."""
        move = new - self.point
        x = scatter_add(self.x, self.indices, move)
        kept = self.block.move(self.kept, move)
        slope = jnp.where(self.there, self.block.partial(x, kept), 0)
        where = lambda view: (view.x, view.kept, view.slope)
        return eqx.tree_at(where, self, (x, kept, slope))


class AbstractUpdate(eqx.Module):
    """A step of a block."""

    def bounded(self) -> bool:
        """Whether it needs a bound on the curvature."""
        return False

    def check(self, smooth: Any, nonsmooth: Any) -> None:
        """Raise `TypeError` if it is not for such functions."""

    @abc.abstractmethod
    def __call__(self, view: BlockView) -> tuple[Float[Array, " s"], Float[Array, ""]]:
        """The block's new entries, and an estimate of its curvature."""


def _without_nonsmooth(update, nonsmooth):
    if nonsmooth is not None:
        raise TypeError(
            f"{type(update).__name__} is for smooth functions, got also {nonsmooth!r}: "
            "GradientUpdate, MatrixUpdate and TwoMetricUpdate take it in"
        )


def _rounding(value):
    return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)


class GradientUpdate(AbstractUpdate):
    """$x_b \\leftarrow x_b - g_b / L_b$, and the proximal step with a nonsmooth part,
    $x_b \\leftarrow \\mathrm{prox}_{h_b / L_b}(x_b - g_b / L_b)$.

    $L_b = \\lambda_{\\max}(H_{bb})$; of a bound on the entries alone, their sum.
    """

    def bounded(self):
        return True

    def __call__(self, view):
        bound = view.curvature.bound(view.indices)
        return view.prox(view.point - view.slope / bound, 1 / bound), bound


class BacktrackedGradientUpdate(AbstractUpdate):
    """`GradientUpdate` with the least $L_b$, up to a factor of 2, for which
    $f(x + d) \\le f(x) + g_b^\\top d + \\tfrac{L_b}2 |d|^2$; without a nonsmooth part that is a
    decrease by $|g_b|^2 / (2 L_b)$. It is searched from that of the last visit, down and then up.
    No bound needs to be known.

    Where the two sides differ by rounding only, $(\\nabla_b f(x + d) - g_b)^\\top d \\le L_b
    |d|^2$ is asked instead.
    """

    def __call__(self, view):
        point, slope = view.point, view.slope
        before = view.smooth(point)
        limits = jnp.finfo(before.dtype)
        least, most = jnp.sqrt(limits.tiny), jnp.asarray(limits.max / 4, before.dtype)

        def trial(bound):
            return view.prox(point - slope / bound, 1 / bound)

        def held(bound):
            new = trial(bound)
            move = new - point
            square = jnp.vdot(move, move)
            bent = view.smooth(new) - before - jnp.vdot(slope, move)
            enough = bent <= 0.5 * bound * square
            # Of differences below the rounding of the values only slopes still tell.
            turned = jnp.vdot(view.at(new).slope - slope, move) <= bound * square
            close = jnp.abs(bent) <= _rounding(before)
            return jnp.where(close, turned, enough) & jnp.any(move != 0)

        fine = jnp.isfinite(before)
        down = lambda bound: held(bound) & (bound > least)
        bound = loops.while_loop(down, lambda bound: bound / 2, view.estimate)
        up = lambda bound: ~held(bound) & (bound < most) & fine
        # What did not hold is doubled; a block that does not move says nothing.
        still = ~jnp.any(trial(bound) != point)
        bound = jnp.where(still, bound, 2 * bound)
        found = loops.while_loop(up, lambda bound: 2 * bound, jnp.where(still, most, bound))
        new = jnp.where(fine, trial(jnp.where(still, bound, found)), jnp.nan)
        return new, jnp.where(still, view.estimate, found)


class MatrixUpdate(AbstractUpdate):
    """$x_b \\leftarrow x_b - H_{bb}^{-1} g_b$, and with a nonsmooth part the minimizer of its model
    $g_b^\\top d + \\tfrac12 d^\\top H_{bb} d + h_b(x_b + d)$, a small problem solved by coordinate
    descent. Of a quadratic that is the exact minimizer over the block."""

    def bounded(self):
        return True

    def __call__(self, view):
        matrix = view.curvature.block(view.indices)
        point = view.point
        move = model_step(view.penalty, view.indices, point, view.slope, matrix, view.x.size)
        return point + move, view.estimate


class NewtonUpdate(AbstractUpdate):
    """$x_b \\leftarrow x_b - \\alpha |\\nabla^2_{bb} f(x)|^{-1} g_b$ with $\\alpha$ halved from 1
    until Armijo's condition holds; $|\\cdot|$ takes the magnitudes of eigenvalues. Smooth functions
    only."""

    def check(self, smooth, nonsmooth):
        _without_nonsmooth(self, nonsmooth)

    def __call__(self, view):
        point, slope = view.point, view.slope
        direction = solve_block(_padded_block(view.hessian(), view.there), slope)
        nothing = jnp.zeros_like(view.estimate)
        return _halved(view, lambda t: point - t * direction, nothing), view.estimate


def _padded_block(matrix, there):
    """Identity where there is nothing."""
    both = there[:, None] & there
    return jnp.where(both, matrix, jnp.diag(~there).astype(matrix.dtype))


def _halved(view, trial, before_h):
    """The first of `trial(1)`, `trial(1/2)`, ... with enough of the decrease that slopes promise.

    `before_h` is the block's nonsmooth part where it is.
    """
    point, slope = view.point, view.slope
    before = view.smooth(point) + before_h

    def attempt(carry):
        _, t, count, _ = carry
        new = trial(t)
        after_h = view.nonsmooth(new)
        promised = jnp.vdot(slope, new - point) + after_h - before_h
        enough = view.smooth(new) + after_h <= before + ARMIJO * promised + _rounding(before)
        # A start outside of the set is only to be left.
        return new, 0.5 * t, count + 1, enough | jnp.isinf(before_h)

    one = jnp.ones_like(before)
    start = (point, one, jnp.asarray(0, jnp.int32), ~jnp.isfinite(jnp.sum(slope)))
    more = lambda carry: ~carry[3] & (carry[2] < SHORTEST)
    new = loops.while_loop(more, attempt, start)[0]
    return jnp.where(jnp.isfinite(jnp.sum(slope)), new, jnp.nan)


class TwoMetricUpdate(AbstractUpdate):
    """Two-metric projection, for $x \\ge 0$ (`NonNegative`) and for `L1` penalties.

    Coordinates of the block within $\\epsilon$ of the kink that $g_i$ pushes onto it take a
    proximal gradient step of length $1 / \\sum L$, the trace of the block's Hessian; those in the
    working set take the Newton step of their own Hessian block, projected back where it would cross
    the kink. Both are halved together until Armijo's condition holds. Once the working set is that
    of the solution these are Newton's steps on it.

    With a penalty, the slope of a coordinate at zero is the one towards which it leaves, and zero
    where it does not.

    **Arguments:**

    - `threshold`: $\\epsilon$; less where the block's residual is.
    """

    threshold: Scalar = scalar_field(1e-6)

    def __check_init__(self):
        checks.nonnegative("threshold", self.threshold)

    def check(self, smooth, nonsmooth):
        if not isinstance(nonsmooth, L1 | NonNegative):
            raise TypeError(
                f"TwoMetricUpdate takes an L1 penalty or a NonNegative set, got {nonsmooth!r}"
            )

    def __call__(self, view):
        point, slope, function = view.point, view.slope, view.penalty.function
        one = jnp.ones_like(point)
        residual = point - view.prox(point - slope, 1.0)
        near = jnp.minimum(self.threshold.astype(point.dtype), tree.norm(residual))
        if isinstance(function, NonNegative):
            point = jnp.maximum(point, 0)
            side, along = one, slope
            held = (point <= near) & (slope > 0)
        else:
            weight = gather(jnp.broadcast_to(function.weight, view.x.shape), view.indices)
            leaving = jnp.where(jnp.abs(slope) > weight, -jnp.sign(slope), 0)
            side = jnp.where(point != 0, jnp.sign(point), leaving)
            along = slope + weight * side
            held = ((jnp.abs(point) <= near) & (along * side > 0)) | (side == 0)
        held = held | ~view.there
        hessian = view.hessian()
        total = jnp.sum(jnp.maximum(jnp.diagonal(hessian), 0))
        step = 1 / jnp.where(total > 0, total, 1)
        direction = solve_block(_padded_block(hessian, ~held), jnp.where(held, 0, along))

        def trial(t):
            newton = point - t * direction
            newton = jnp.where(newton * side > 0, newton, 0)
            first = view.prox(point - t * step * slope, t * step)
            return jnp.where(held, first, newton)

        return _halved(view, trial, view.nonsmooth(view.point)), view.estimate


class ExactUpdate(AbstractUpdate):
    """Another update, repeated on the block until it stands still: the minimizer over the block.

    **Arguments:**

    - `update`: such as `NewtonUpdate()`; of a quadratic `MatrixUpdate()` alone is exact.
    - `max_repeats`: at most.
    """

    update: AbstractUpdate = MatrixUpdate()
    max_repeats: int = 50

    def __check_init__(self):
        checks.instance("update", self.update, AbstractUpdate, "NewtonUpdate()")
        checks.count("max_repeats", self.max_repeats)

    def bounded(self):
        return self.update.bounded()

    def check(self, smooth, nonsmooth):
        self.update.check(smooth, nonsmooth)

    def __call__(self, view):
        def again(carry):
            here, estimate, count, _ = carry
            here = eqx.tree_at(lambda v: v.estimate, view.at(here), estimate)
            new, estimate = self.update(here)
            size = jnp.max(jnp.abs(new), initial=0)
            moved = jnp.max(jnp.abs(new - here.point), initial=0)
            more = moved > 4 * jnp.finfo(new.dtype).eps * size
            return new, estimate, count + 1, more

        start = (view.point, view.estimate, jnp.asarray(0, jnp.int32), jnp.asarray(True))
        more = lambda carry: carry[3] & (carry[2] < self.max_repeats)
        new, estimate, _, _ = loops.while_loop(more, again, start)
        return new, estimate


class ForestUpdate(AbstractUpdate):
    """The exact minimizer over a block of a `GraphQuadratic` that is a forest in its graph, by
    messages (`forest_solver`). A block with a cycle gives NaN."""

    def bounded(self):
        return True

    def check(self, smooth, nonsmooth):
        _without_nonsmooth(self, nonsmooth)
        if not checks.has_method(smooth, "neighbors"):
            raise TypeError(f"ForestUpdate needs a GraphQuadratic, got {type(smooth).__name__}")

    def __call__(self, view):
        if not isinstance(view.curvature, GraphCurvature):
            raise TypeError("ForestUpdate takes the quadratic's own curvature: give no other")
        d = view.x.size
        block = jnp.zeros(d, bool).at[view.indices].set(True, mode="drop")
        rhs = scatter_add(jnp.zeros_like(view.x), view.indices, -view.slope)
        move = ForestSolver(view.curvature.fun)(block, rhs)
        return view.point + gather(move, view.indices), view.estimate
