"""Dimension-free methods: rates in which the number of unknowns does not appear."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...core import (
    AbstractSolver,
    Constrained,
    Scalar,
    Smooth,
    checks,
    loops,
    scalar_field,
    tree,
)
from ...core.confirm import confirmed, forgotten
from ..mirror_descent import Euclidean
from ..proximal_gradient import smooth_part
from .averaging import (
    AbstractAverage,
    AbstractAveraged,
    BestPoint,
    LinearAverage,
    Played,
    UniformAverage,
    forward,
    natural,
    other_part,
)


class _Known(NamedTuple):
    value: Float[Array, ""]
    slope: PyTree[Array]


def look(problem, x) -> _Known:
    """Value and gradient, or a subgradient at a kink, of the part that is differentiated."""
    value, slope = tree.value_and_gradient(smooth_part(problem)[0], x)
    return _Known(value, tree.cast_like(slope, x))


def inside(problem, x):
    """A start moved into the set."""
    other = other_part(problem)
    return other.project(x) if isinstance(problem, Constrained) else x


class AbstractSloped(AbstractAveraged):
    """A method that keeps the value and the slope at its iterate."""

    def first(self, problem, x, key):
        return look(problem, x)

    def renew(self, problem, state):
        return look(problem, state.point)


class _AbstractSubgradient(AbstractSloped):
    """Euclidean steps from a start in the set."""

    def enter(self, problem, x):
        return inside(problem, x)


class ProjectedSubgradient(_AbstractSubgradient):
    """The projected subgradient method with the step of a horizon,

    $$x_{s+1} = P_C(x_s - \\eta g_s), \\qquad g_s \\in \\partial f(x_s), \\qquad
      \\eta = \\frac{R}{L \\sqrt t},$$

    for convex functions that need not be smooth; $t$ is `max_steps`. The average of $x_1, \\dots,
    x_t$, or the best of them, has $f - f^* \\le R L / \\sqrt t$; of the first $s$ of them
    $R^2 / (2 \\eta s) + \\eta L^2 / 2$. No first-order method is better by more than a factor.

    The error is the norm of the problem's residual, with the subgradient that differentiation
    gives: at a kink it does not vanish. Then a solve takes all its steps and ends as `step_limit`,
    and `guarantee` says what is known.

    **Arguments:**

    - `radius`: $R$, a bound on $\\|x_1 - x^*\\|$.
    - `lipschitz`: $L$, a bound on $\\|g\\|$.
    - `average`: `UniformAverage()` or `BestPoint()`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless both are positive; `TypeError` for another average.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 3.1. Shor, Minimization Methods for Non-Differentiable Functions, 1985.
    """

    radius: Scalar = scalar_field(1.0)
    lipschitz: Scalar = scalar_field(1.0)
    average: AbstractAverage = eqx.field(default_factory=lambda: UniformAverage())
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (Constrained, Smooth)

    def __check_init__(self):
        checks.positive("radius", self.radius)
        checks.positive("lipschitz", self.lipschitz)
        if not isinstance(self.average, UniformAverage | BestPoint):
            raise TypeError(f"average must be UniformAverage() or BestPoint(), got {self.average}")

    def averaging(self):
        return self.average

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        return self.radius / (self.lipschitz * self.max_steps**0.5)

    def move(self, problem, state):
        return subgradient_step(problem, state, self.step_size.astype(state.error.dtype))

    def guarantee(self, steps, constants):
        """$R^2 / (2 \\eta s) + \\eta L^2 / 2$ with the `radius` and `lipschitz` given."""
        radius, lipschitz = constants.need("radius", "lipschitz")
        eta = self.step_size
        return radius**2 / (2 * eta * steps) + eta * lipschitz**2 / 2


def subgradient_step(problem, state, eta) -> Played:
    """A Euclidean step from the subgradient in the memory."""
    other = other_part(problem)
    point = forward(Euclidean(), other, state.point, state.memory.slope, eta)
    point = tree.cast_like(point, state.point)
    known = look(problem, point)
    error = natural(other, point, known.slope)
    return Played(point, known, state.point, state.memory.value, error)


class StronglyConvexSubgradient(_AbstractSubgradient):
    """The projected subgradient method for strongly convex functions,

    $$x_{s+1} = P_C(x_s - \\eta_s g_s), \\qquad \\eta_s = \\frac{2}{\\alpha (s + 1)}.$$

    The average with weights $2 s / (t (t + 1))$, or the best point, has
    $f - f^* \\le 2 L^2 / (\\alpha (t + 1))$ after $t$ steps, whatever $t$: no horizon is needed.

    The error is that of `ProjectedSubgradient`.

    **Arguments:**

    - `strong_convexity`: $\\alpha$.
    - `average`: `LinearAverage()` or `BestPoint()`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `strong_convexity` is positive; `TypeError` for another average.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 3.4.1. Lacoste-Julien, Schmidt, Bach, A Simpler Approach to Obtaining an O(1/t)
    Convergence Rate for the Projected Stochastic Subgradient Method, 2012, arXiv:1212.2002.
    """

    strong_convexity: Scalar = scalar_field(1.0)
    average: AbstractAverage = eqx.field(default_factory=lambda: LinearAverage())
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (Constrained, Smooth)

    def __check_init__(self):
        checks.positive("strong_convexity", self.strong_convexity)
        if not isinstance(self.average, LinearAverage | BestPoint):
            raise TypeError(f"average must be LinearAverage() or BestPoint(), got {self.average}")

    def averaging(self):
        return self.average

    def move(self, problem, state):
        dtype = state.error.dtype
        eta = 2 / (self.strong_convexity.astype(dtype) * (state.count.astype(dtype) + 2))
        return subgradient_step(problem, state, eta)

    def guarantee(self, steps, constants):
        """$2 L^2 / (\\alpha (s + 1))$ with the `lipschitz` and `strong_convexity` given."""
        lipschitz, alpha = constants.need("lipschitz", "strong_convexity")
        return 2 * lipschitz**2 / (alpha * (steps + 1))


class _Momentum(eqx.Module):
    ahead: PyTree[Array]  # where the next gradient is taken
    slope: PyTree[Array]
    error: Float[Array, ""]


class StronglyConvexNesterov(AbstractSolver[Smooth, _Momentum]):
    """Nesterov's method with the constant momentum of strongly convex functions,

    $$y_{s+1} = x_s - \\frac1\\beta \\nabla f(x_s), \\qquad
      x_{s+1} = y_{s+1} + \\frac{\\sqrt\\kappa - 1}{\\sqrt\\kappa + 1} (y_{s+1} - y_s), \\qquad
      \\kappa = \\beta / \\alpha .$$

    $f(y) - f^* \\le \\frac{\\alpha + \\beta}{2} R^2 e^{-s / \\sqrt\\kappa}$ after $s$ steps.

    The value is $y$. The error is the norm of the gradient at the last $x$; where that passes, the
    larger of it and the norm at the value.

    **Arguments:**

    - `smoothness`: $\\beta$.
    - `strong_convexity`: $\\alpha \\le \\beta$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless $0 < \\alpha \\le \\beta$.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 3.7.1. Nesterov, Introductory Lectures on Convex Optimization, 2004.
    """

    smoothness: Scalar = scalar_field(1.0)
    strong_convexity: Scalar = scalar_field(0.1)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Smooth,)

    def __check_init__(self):
        check_condition(self.smoothness, self.strong_convexity)

    def init(self, problem, x, key):
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _Momentum(x, tree.gradient(problem.fun, x), infinity)

    def refresh(self, problem, x, state):
        slope = tree.gradient(problem.fun, state.ahead)
        return forgotten(_Momentum(state.ahead, slope, state.error))

    def step(self, problem, x, state):
        dtype = state.error.dtype
        beta, root = self.smoothness.astype(dtype), jnp.sqrt(self._condition().astype(dtype))
        new = tree.cast_like(tree.axpy(state.ahead, -1 / beta, state.slope), x)
        ahead = tree.axpy(new, (root - 1) / (root + 1), jax.tree.map(jnp.subtract, new, x))
        slope = tree.gradient(problem.fun, ahead)
        estimate = tree.norm(slope).astype(dtype)
        error = confirmed(problem, new, estimate, state.error, self.tol)
        return new, _Momentum(ahead, slope, error)

    def _condition(self):
        return self.smoothness / self.strong_convexity

    def error(self, problem, x, state):
        return state.error

    def guarantee(self, steps, constants):
        """$\\frac{\\alpha + \\beta}{2} R^2 e^{-s / \\sqrt\\kappa}$ with the constants given."""
        beta, alpha, radius = constants.need("smoothness", "strong_convexity", "radius")
        return (alpha + beta) / 2 * radius**2 * jnp.exp(-steps * (alpha / beta) ** 0.5)


def check_condition(smoothness, strong_convexity) -> None:
    """Raise `ValueError` unless $0 < \\alpha \\le \\beta$."""
    checks.positive("smoothness", smoothness)
    checks.positive("strong_convexity", strong_convexity)
    traced = checks.is_traced((smoothness, strong_convexity))
    if not traced and np.asarray(smoothness) < np.asarray(strong_convexity):
        raise ValueError(
            f"strong_convexity must be at most smoothness, got {strong_convexity}, {smoothness}"
        )


class GeometricState(eqx.Module):
    """The ball that holds the minimizer.

    **Attributes:**

    - `center`: $c$.
    - `square`: $R^2$, of a ball that holds the minimizer whatever $f^*$ is; with $f^*$ known it is
      smaller by $\\frac2\\alpha (f(x^+) - f^*)$.
    - `value`: $f$ at the value.
    - `error`: see the solver.
    """

    center: PyTree[Array]
    square: Float[Array, ""]
    value: Float[Array, ""]
    error: Float[Array, ""]


class GeometricDescent(AbstractSolver[Smooth, GeometricState]):
    """Geometric descent: two balls hold the minimizer of a strongly convex function, and so does
    the smallest ball around what they share.

    With $x^+$ the least point on the line from $x$ along $-\\nabla f(x)$, strong convexity puts the
    minimizer in the ball around $c_A = x - \\nabla f(x) / \\alpha$ with

    $$R_A^2 = \\frac{|\\nabla f(x)|^2}{\\alpha^2} - \\frac2\\alpha (f(x) - f(x^+)) \\qquad
      \\text{and around } c \\text{ with} \\qquad
      R_B^2 = R^2 - \\frac2\\alpha (f(x_-^+) - f(x^+)).$$

    The smallest ball around both has its center at $c + w (c_A - c)$, and $R^2 = R_B^2 - w^2 |c_A -
    c|^2$, with $w = \\frac12 (1 + (R_B^2 - R_A^2) / |c_A - c|^2)$, if $|c_A - c|^2 \\ge |R_A^2 -
    R_B^2|$; else it is the smaller of the two. The next $x$ is the least point on the line through
    $x^+$ and the new center. So $R^2$ falls by $1 - 1 / \\sqrt\\kappa$ a step, $\\kappa = \\beta /
    \\alpha$ with the $\\beta$ that need not be known, and $f(x^+) - f^* \\le \\alpha R^2 / 2$: the
    state's ball is a certificate, which `Solution.gap` tells relative to the size of $f$.

    Line searches find the root of the derivative by Newton's method in a bracket, which $\\alpha$
    gives. The value is $x^+$. The error is the norm of the gradient at $x$; where that passes, the
    larger of it and the norm at the value.

    **Arguments:**

    - `strong_convexity`: $\\alpha$. If it is too large the ball may lose the minimizer, and
      then its radius vanishes; the value never gets worse but by rounding.
    - `search_steps`: of each line search, at most.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `strong_convexity` is positive and `search_steps` at least 1.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 3.6. Bubeck, Lee, Singh, A Geometric Alternative to Nesterov's Accelerated Gradient
    Descent, 2015, arXiv:1506.08187.
    """

    strong_convexity: Scalar = scalar_field(0.1)
    search_steps: int = eqx.field(static=True, default=40)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (Smooth,)

    def __check_init__(self):
        checks.positive("strong_convexity", self.strong_convexity)
        checks.count("search_steps", self.search_steps)

    def _look(self, problem, x):
        """The gradient at `x`, the least point along it, and the ball of $x$."""
        alpha = self.strong_convexity.astype(tree.real_dtype(x))
        value, slope = tree.value_and_gradient(problem.fun, x)
        size = tree.norm(slope)
        low = self._least(problem.fun, x, tree.scale(slope, -1))
        fallen = problem.fun(low)
        worse = fallen > value + _rounding(value)
        low, fallen = tree.where(worse, x, low), jnp.where(worse, value, fallen)
        center = tree.axpy(x, -1 / alpha, slope)
        square = (size / alpha) ** 2 - 2 / alpha * (value - fallen - _rounding(value))
        return low, fallen, center, square, size

    def _least(self, fun, x, along):
        """The least point of $x + s d$, $|s| \\le |\\varphi'(0)| / (\\alpha |d|^2)$."""
        dtype = tree.real_dtype(x)
        alpha = self.strong_convexity.astype(dtype)
        at = lambda s: tree.axpy(x, s, along)
        slope = lambda s: jax.jvp(fun, (at(s),), (along,))[1]
        both = lambda s: jax.jvp(slope, (s,), (jnp.ones_like(s),))
        zero = jnp.zeros((), dtype)
        first, curve = both(zero)
        square = tree.vdot(along, along).astype(dtype)
        usable = square > 0
        reach = jnp.abs(first) / (alpha * jnp.where(usable, square, 1))
        reach = jnp.where(usable, reach, 0)
        low, high = jnp.where(first > 0, -reach, 0), jnp.where(first > 0, 0, reach)
        enough = 4 * jnp.finfo(dtype).eps * jnp.abs(first)

        def newton(s, d, curve, low, high):
            t = s - d / jnp.where(curve > 0, curve, 1)
            within = (curve > 0) & (t >= low) & (t <= high)
            return jnp.where(within, t, 0.5 * (low + high))

        def attempt(carry):
            s, low, high, count, _ = carry
            d, curve = both(s)
            low, high = jnp.where(d < 0, s, low), jnp.where(d > 0, s, high)
            t = newton(s, d, curve, low, high)
            again = (jnp.abs(d) > enough) & (t != s) & (count + 1 < self.search_steps)
            return jnp.where(again, t, s), low, high, count + 1, again

        count = jnp.asarray(0, jnp.int32)
        start = (newton(zero, first, curve, low, high), low, high, count, usable)
        s, *_ = loops.while_loop(lambda carry: carry[-1], attempt, start)
        return tree.cast_like(at(s), x)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        infinity = jnp.asarray(jnp.inf, dtype)
        return GeometricState(x, infinity, infinity, infinity)

    def refresh(self, problem, x, state):
        # The ball was found with values of a problem that may have been another.
        return eqx.tree_at(
            lambda s: s.square, forgotten(state), jnp.full_like(state.square, jnp.inf)
        )

    def step(self, problem, x, state):
        dtype = state.error.dtype
        alpha = self.strong_convexity.astype(dtype)
        fresh = jnp.isinf(state.square)
        x = tree.where(fresh, x, self._between(problem, x, state))
        low, value, center, square, size = self._look(problem, x)
        square, value = square.astype(dtype), value.astype(dtype)
        old = state.square - 2 / alpha * (state.value - value - _rounding(value))
        center, square = _smallest(state.center, jnp.where(fresh, 0, old), center, square, fresh)
        error = confirmed(problem, low, size.astype(dtype), state.error, self.tol)
        return low, GeometricState(tree.cast_like(center, x), square, value, error)

    def _between(self, problem, x, state):
        along = jax.tree.map(jnp.subtract, state.center, x)
        new = self._least(problem.fun, x, along)
        known = state.value.astype(tree.real_dtype(x))
        return tree.where(problem.fun(new) <= known + _rounding(known), new, x)

    def error(self, problem, x, state):
        return state.error

    def gap(self, problem, x, state):
        bound = 0.5 * self.strong_convexity.astype(state.square.dtype) * state.square
        return bound / jnp.maximum(jnp.abs(state.value), 1)

    def guarantee(self, steps, constants):
        """$\\frac\\alpha2 (\\kappa^2 - \\kappa) R^2 (1 - 1 / \\sqrt\\kappa)^{s-1}$, since the first
        ball has $R_0^2 \\le (1 - 1 / \\kappa) |\\nabla f|^2 / \\alpha^2$."""
        beta, alpha, radius = constants.need("smoothness", "strong_convexity", "radius")
        kappa = beta / alpha
        first = alpha / 2 * (kappa**2 - kappa) * radius**2
        return first * (1 - kappa**-0.5) ** (steps - 1)


def _rounding(value):
    """What a difference of values near this one may be off by."""
    return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def _smallest(center, square, other, other_square, replace):
    """The smallest ball around what two balls share; the other one where `replace`."""
    gap = jax.tree.map(jnp.subtract, other, center)
    distance = tree.vdot(gap, gap).astype(square.dtype)
    square, other_square = jnp.maximum(square, 0), jnp.maximum(other_square, 0)
    apart = distance > jnp.abs(square - other_square)
    w = 0.5 * (1 + (square - other_square) / jnp.where(apart, distance, 1))
    least = other_square < square
    w = jnp.where(apart, w, least.astype(w.dtype))
    shared = jnp.where(apart, square - w**2 * distance, jnp.minimum(square, other_square))
    w = jnp.where(replace, 1, w)
    square = jnp.where(replace, other_square, jnp.maximum(shared, 0))
    return tree.axpy(center, w, gap), square
