"""Newton's method made global: by damping, by regularization, and with Hessians that are kept."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core import AbstractSolver, Scalar, Smooth, Status, checks, loops, scalar_field, tree
from . import _cubic
from ._cubic import Eigen, Flat, Vector

LinearSolve = Callable[[Vector], Vector]


class AbstractHessian(eqx.Module):
    """How systems with the Hessian are solved."""

    @abc.abstractmethod
    def inverse(self, flat: Flat) -> LinearSolve:
        """The function $v \\mapsto H(x)^{-1} v$; what it needs once is computed here."""


class DenseHessian(AbstractHessian):
    """The matrix, by Cholesky's factorization; a singular or indefinite one by its eigenvalues,
    and then the least-squares solution is taken. Eigenvalues take no time where none is needed,
    under `vmap` too."""

    def inverse(self, flat):
        here = _cubic.hessian(flat.fun, flat.x)
        matrix = jax.lax.stop_gradient(here)
        factor = jnp.linalg.cholesky(matrix)
        pivots = jnp.diagonal(factor) ** 2
        rounding = matrix.shape[0] * jnp.finfo(matrix.dtype).eps
        regular = jnp.min(pivots) > rounding * jnp.max(pivots)  # False for NaN
        identity = jnp.eye(*matrix.shape, dtype=matrix.dtype)
        nothing = Eigen(jnp.ones_like(pivots), jnp.zeros_like(matrix))
        # The factor passes through, so that what is solved with it waits for the eigenvalues:
        # batches of factorizations side by side can wait for each other's threads for ever.
        make = lambda matrix: (_cubic.eigen(matrix), identity)
        at, factor = loops.if_due(~regular, make, matrix, (nothing, factor))
        return lambda v: _solution(here, v, (regular, factor, at))


@jax.custom_jvp
def _solution(matrix, v, factors):
    """$H^{-1} v$, with $\\partial x = H^{-1} (\\partial v - \\partial H\\, x)$ in place of the
    derivatives of factors, which a loop has made."""
    del matrix
    regular, factor, at = factors
    fast = jax.scipy.linalg.cho_solve((factor, True), v)
    return jnp.where(regular, fast, -_cubic.regularized_step(at, v, 0))


@_solution.defjvp
def _solution_jvp(primals, tangents):
    matrix, v, factors = primals
    x = _solution(matrix, v, factors)
    return x, _solution(matrix, tangents[1] - tangents[0] @ x, factors)


class HessianFree(AbstractHessian):
    """Conjugate gradients on products $v \\mapsto H v$; no matrix is formed. They end early at a
    direction along which the curvature is not positive, with what they have.

    **Arguments:**

    - `rtol`: relative residual at which they end; `None` is the square root of the rounding unit.
    - `max_steps`: products for one system at most.
    """

    rtol: Scalar | None = scalar_field(None)
    max_steps: int = 200

    def __check_init__(self):
        if self.rtol is not None:
            checks.positive("rtol", self.rtol)
        checks.count("max_steps", self.max_steps)

    def inverse(self, flat):
        _, product = jax.linearize(lambda v: tree.gradient(flat.fun, v), flat.x)
        dtype = flat.x.dtype
        rtol = jnp.sqrt(jnp.finfo(dtype).eps) if self.rtol is None else self.rtol.astype(dtype)

        def solve(v):
            goal = rtol * jnp.linalg.norm(v)

            def advance(carry):
                x, gap, p, square, steps, _ = carry
                image = product(p)
                curvature = jnp.vdot(p, image)
                positive = curvature > 0
                length = jnp.where(positive, square / jnp.where(positive, curvature, 1), 0)
                x, gap = x + length * p, gap - length * image
                new = jnp.vdot(gap, gap)
                more = positive & (jnp.sqrt(new) > goal) & (steps + 1 < self.max_steps)
                return x, gap, gap + new / square * p, new, steps + 1, more

            square = jnp.vdot(v, v)
            start = (jnp.zeros_like(v), v, v, square, jnp.asarray(0, jnp.int32), square > 0)
            x = loops.while_loop(lambda carry: carry[-1], advance, start)[0]
            return jnp.where(jnp.isfinite(square), x, jnp.nan)

        return solve


class Search(NamedTuple):
    """A point and its Newton direction, for a damping.

    - `fun`, `x`, `value`, `gradient`: the function of a real vector, where, and what it is there.
    - `direction`: $n = H^{-1} g$; steps are $x - \\alpha n$.
    - `decrement`: $N = \\sqrt{g^\\top n}$.
    - `inverse`: $v \\mapsto H(x)^{-1} v$.
    """

    fun: Callable[[Vector], Float[Array, ""]]
    x: Vector
    value: Float[Array, ""]
    gradient: Vector
    direction: Vector
    decrement: Float[Array, ""]
    inverse: LinearSolve


class AbstractDamping(eqx.Module):
    """A rule for the length of a Newton step."""

    def first(self) -> Any:
        """What the rule remembers, before the first step: an array or `None`."""
        return None

    @abc.abstractmethod
    def length(self, search: Search, memory: Any) -> tuple[Float[Array, ""], Any, Int[Array, ""]]:
        """The factor $\\alpha$, what to remember, and how many points were tried."""


_ONE = 1


class FixedDamping(AbstractDamping):
    """$\\alpha$ constant; with 1, the pure method, which only converges from nearby.

    **Arguments:**

    - `factor`: $\\alpha \\in (0, 1]$.
    """

    factor: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.interval("factor", self.factor, 0, 1, open_low=True)

    def length(self, search, memory):
        return self.factor, memory, _ONE


class RootDamping(AbstractDamping):
    """Root Newton,

    $$\\alpha = \\frac1{1 + \\theta}, \\qquad \\theta = (9 M)^{1/(q-1)} N^{(q-2)/(q-1)},$$

    for functions whose derivative of order $p$ is $(q - p)$-Hölder continuous in local norms, with
    constant $M$. Then $f - f^*$ falls as $k^{-(q-1)}$, as $k^{-3}$ with $q = 4$, and at last
    superlinearly.

    **Arguments:**

    - `exponent`: $q \\in [2, 4]$.
    - `constant`: $M > 0$.
    """

    exponent: Scalar = scalar_field(4.0)
    constant: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.interval("exponent", self.exponent, 2, 4)
        checks.positive("constant", self.constant)

    def length(self, search, memory):
        q = self.exponent.astype(search.decrement.dtype)
        theta = (9 * self.constant) ** (1 / (q - 1))
        theta = theta * _power(search.decrement, (q - 2) / (q - 1))
        return 1 / (1 + theta), memory, _ONE


class AICNDamping(AbstractDamping):
    """The affine-invariant cubic Newton method,
    $\\alpha = (\\sqrt{1 + 2 s N} - 1) / (s N)$, with rate $k^{-2}$.

    **Arguments:**

    - `constant`: $s > 0$, the constant of semi-strong self-concordance.

    **Reference:** Hanzely, Kamzolov, Pasechnyuk, Gasnikov, Richtárik, Takáč, A Damped Newton
    Method Achieves Global $O(1/k^2)$ and Local Quadratic Convergence Rate, 2022, arXiv:2211.00140.
    """

    constant: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.positive("constant", self.constant)

    def length(self, search, memory):
        return 2 / (1 + jnp.sqrt(1 + 2 * self.constant * search.decrement)), memory, _ONE


class UniversalDamping(AbstractDamping):
    """Root Newton without constants: $\\alpha = 1 / (1 + \\theta)$, where
    $\\theta = c^j \\sigma N^\\beta$ with the first $j = 0, 1, \\dots$ such that at the new point

    $$\\langle g_j, n\\rangle \\ge \\frac{|g_j|^{*2}_x}{2 \\alpha \\theta},$$

    up to the rounding of $f$; then $\\sigma \\leftarrow c^{j-1} \\sigma$. Each step decreases a
    convex $f$.

    **Arguments:**

    - `exponent`: $\\beta \\in [2/3, 1]$; $2/3$ covers every $q \\in [2, 4]$ of `RootDamping`.
    - `initial`: $\\sigma_0 > 0$.
    - `factor`: $c > 1$.
    - `max_trials`: points tried in one step.
    """

    exponent: Scalar = scalar_field(2 / 3)
    initial: Scalar = scalar_field(1.0)
    factor: Scalar = scalar_field(2.0)
    max_trials: int = 60

    def __check_init__(self):
        checks.interval("exponent", self.exponent, 0.66, 1)
        checks.positive("initial", self.initial)
        checks.interval("factor", self.factor, 1, float("inf"), open_low=True)
        checks.count("max_trials", self.max_trials)

    def first(self):
        return self.initial

    def length(self, search, memory):
        dtype = search.decrement.dtype
        sigma, factor = memory.astype(dtype), self.factor.astype(dtype)
        power = _power(search.decrement, self.exponent.astype(dtype))
        rounding = _rounding(search.value)

        def attempt(carry):
            sigma, _, trials, _ = carry
            theta = sigma * power
            alpha = 1 / (1 + theta)
            there = tree.gradient(search.fun, search.x - alpha * search.direction)
            along = jnp.vdot(there, search.direction)
            square = jnp.vdot(there, search.inverse(there))
            passed = 2 * alpha * theta * (along + rounding) >= square  # False for NaN
            again = ~passed & (trials + 1 < self.max_trials)
            return jnp.where(passed, sigma / factor, sigma * factor), sigma, trials + 1, again

        start = (sigma, sigma, jnp.asarray(0, jnp.int32), jnp.asarray(True))
        sigma, used, trials, _ = _found(attempt, start)
        # Neither end of the range must be left for ever.
        limit = jnp.sqrt(jnp.finfo(dtype).max)
        return 1 / (1 + used * power), jnp.clip(sigma, 1 / limit, limit), trials


class ArmijoDamping(AbstractDamping):
    """The first $\\alpha = \\tau^j$ with $f(x - \\alpha n) \\le f(x) - c \\alpha N^2$, up to the
    rounding of $f$.

    **Arguments:**

    - `shrink`: $\\tau \\in (0, 1)$.
    - `decrease`: $c \\in (0, 1/2)$.
    - `max_trials`: points tried in one step.
    """

    shrink: Scalar = scalar_field(0.5)
    decrease: Scalar = scalar_field(0.25)
    max_trials: int = 60

    def __check_init__(self):
        checks.interval("shrink", self.shrink, 0, 1, open_low=True, open_high=True)
        checks.interval("decrease", self.decrease, 0, 0.5, open_low=True, open_high=True)
        checks.count("max_trials", self.max_trials)

    def length(self, search, memory):
        slope = search.decrement**2
        rounding = _rounding(search.value)

        def attempt(carry):
            last, trials, _ = carry
            alpha = jnp.where(trials == 0, last, last * self.shrink.astype(last.dtype))
            bound = search.value - self.decrease * alpha * slope + rounding
            passed = search.fun(search.x - alpha * search.direction) <= bound
            return alpha, trials + 1, ~passed & (trials + 1 < self.max_trials)

        start = (jnp.ones_like(slope), jnp.asarray(0, jnp.int32), jnp.asarray(True))
        alpha, trials, _ = _found(attempt, start)
        return alpha, memory, trials


class ExactDamping(AbstractDamping):
    """Greedy Newton: the $\\alpha$ that minimizes $f(x - \\alpha n)$, by bracketing and the secant
    of slopes, safeguarded by bisection.

    **Arguments:**

    - `rtol`: relative width of the bracket at which the search ends; not below four roundings.
    - `max_trials`: gradients in one step.
    """

    rtol: Scalar = scalar_field(1e-10)
    max_trials: int = 60

    def __check_init__(self):
        checks.positive("rtol", self.rtol)
        checks.count("max_trials", self.max_trials)

    def length(self, search, memory):
        dtype = search.decrement.dtype
        eps = jnp.finfo(dtype).eps
        rtol = jnp.maximum(self.rtol.astype(dtype), 4 * eps)
        slope = -(search.decrement**2)

        def look(alpha):
            there = tree.gradient(search.fun, search.x - alpha * search.direction)
            return -jnp.vdot(there, search.direction)

        def attempt(carry):
            alpha, low, at_low, high, at_high, side, trials, _ = carry
            here = look(alpha)
            rising = ~(here < 0)  # what is not a number is too far
            # Illinois: where the same end moves twice, the slope at the other counts half.
            at_high = jnp.where(rising, here, jnp.where(side == -1, 0.5 * at_high, at_high))
            at_low = jnp.where(rising, jnp.where(side == 1, 0.5 * at_low, at_low), here)
            low, high = jnp.where(rising, low, alpha), jnp.where(rising, alpha, high)
            secant = low - at_low * (high - low) / (at_high - at_low)
            inside = (secant > low) & (secant < high)
            middle = jnp.where(inside, secant, 0.5 * (low + high))
            new = jnp.where(jnp.isinf(high), 2 * alpha, middle)
            narrow = jnp.isfinite(high) & (high - low <= rtol * high)
            found = narrow | (jnp.abs(here) <= eps * jnp.abs(slope))
            again = ~found & (trials + 1 < self.max_trials)
            side = jnp.where(rising, 1, -1).astype(side.dtype)
            new = jnp.where(again, new, alpha)
            return new, low, at_low, high, at_high, side, trials + 1, again

        one, zero = jnp.ones_like(slope), jnp.asarray(0, jnp.int32)
        start = (one, 0 * one, slope, one * jnp.inf, 0 * one, zero, zero, jnp.asarray(True))
        alpha, low, *_, trials, _ = _found(attempt, start)
        here, bend = jax.jvp(look, (alpha,), (one,))
        # The derivative of a root; its value is found.
        here = here / jax.lax.stop_gradient(jnp.where(bend > 0, bend, jnp.inf))
        exact = alpha - (here - jax.lax.stop_gradient(here))
        return jnp.where(jnp.isfinite(here), exact, low), memory, trials


def _rounding(value):
    return 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def _found(attempt, start):
    """What a search ends with. Its decisions are constant almost everywhere: no derivative goes
    through them, and so none through a loop that reverse mode cannot follow."""
    last = loops.while_loop(lambda carry: carry[-1], attempt, start)
    return jax.lax.stop_gradient(last)


def _power(x, exponent):
    """$\\max(x, 0)^a$, without the infinite derivative at zero."""
    zero = x <= 0  # not so for NaN
    return jnp.where(zero, 0, jnp.where(zero, 1, x) ** exponent)


class _DampedState(eqx.Module):
    value: Float[Array, ""]
    gradient: Vector
    memory: Any
    trials: Int[Array, ""]
    error: Float[Array, ""]
    verdict: Status


class DampedNewton(AbstractSolver):
    """Newton's method with a step length that makes it global for convex functions,

    $$x \\leftarrow x - \\alpha\\, n, \\qquad n = H(x)^{-1} \\nabla f(x), \\qquad
      N = \\sqrt{\\nabla f(x)^\\top n} .$$

    With a damping that looks only at $N$ and at dual norms, all but none here, iterates do not
    depend on the coordinates: those of $f(Ax)$ are the same points. The error is the norm of the
    gradient at the value. Where $\\nabla f(x)^\\top n < 0$, so that $f$ is not convex, the solve
    ends with the status `breakdown`. The state counts the points tried, `trials`. `UnrolledAdjoint`
    works in both modes; with `HessianFree` only in forward mode.

    **Arguments:**

    - `damping`: `UniversalDamping()` needs no constant and is the default choice;
      `RootDamping(exponent, constant)`, `AICNDamping(constant)`, `ArmijoDamping()`,
      `ExactDamping()`, `FixedDamping(1.0)`.
    - `hessian`: `DenseHessian()`, or `HessianFree()` for conjugate gradients.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Hanzely, Abdukhakimov, Takáč, Damped Newton Method with Near-Optimal Global
    $O(k^{-3})$ Convergence Rate, 2024, arXiv:2405.18926.
    """

    damping: AbstractDamping = eqx.field(default_factory=UniversalDamping)
    hessian: AbstractHessian = eqx.field(default_factory=DenseHessian)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 500
    problems = (Smooth,)

    def __check_init__(self):
        checks.instance("damping", self.damping, AbstractDamping, "UniversalDamping()")
        checks.instance("hessian", self.hessian, AbstractHessian, "DenseHessian()")

    def init(self, problem, x, key):
        flat = _cubic.flatten(problem.fun, x)
        value, gradient = tree.value_and_gradient(flat.fun, flat.x)
        memory = jax.tree.map(lambda a: a.astype(flat.x.dtype), self.damping.first())
        infinity = jnp.asarray(jnp.inf, flat.x.dtype)
        zero = jnp.asarray(0, jnp.int32)
        return _DampedState(value, gradient, memory, zero, infinity, Status.running)

    def refresh(self, problem, x, state):
        flat = _cubic.flatten(problem.fun, x)
        value, gradient = tree.value_and_gradient(flat.fun, flat.x)
        return _DampedState(
            value, gradient, state.memory, state.trials, state.error, Status.running
        )

    def step(self, problem, x, state):
        flat = _cubic.flatten(problem.fun, x)
        inverse = self.hessian.inverse(flat)
        direction = inverse(state.gradient)
        square = jnp.vdot(state.gradient, direction)
        convex = ~(square < 0)  # NaN is another matter
        decrement = _power(square, 0.5)
        search = Search(
            flat.fun, flat.x, state.value, state.gradient, direction, decrement, inverse
        )
        alpha, memory, trials = self.damping.length(search, state.memory)
        new = flat.x - jnp.where(convex, alpha * direction, 0).astype(flat.x.dtype)
        value, gradient = tree.value_and_gradient(flat.fun, new)
        verdict = Status.where(convex, Status.running, Status.breakdown)
        error = jnp.linalg.norm(gradient)
        trials = state.trials + trials
        return flat.unravel(new), _DampedState(value, gradient, memory, trials, error, verdict)

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def last_step(self, problem, x, state):
        return _cubic.newton_point(problem.fun, x)


class Regularized(NamedTuple):
    """A point and a Hessian by its eigenvalues, for a regularization.

    - `fun`, `x`, `value`, `gradient`: the function of a real vector, where, and what it is there.
    - `at`: the Hessian, here or at an earlier point.
    """

    fun: Callable[[Vector], Float[Array, ""]]
    x: Vector
    value: Float[Array, ""]
    gradient: Vector
    at: Eigen


class AbstractRegularization(eqx.Module):
    """A rule for $\\lambda$ in $x - (H + \\lambda I)^{-1} g$."""

    def first(self) -> Any:
        """What the rule remembers, before the first step: an array or `None`."""
        return None

    @abc.abstractmethod
    def move(self, here: Regularized, memory: Any) -> tuple[Vector, Any, Int[Array, ""]]:
        """The step, what to remember, and how many points were tried."""


class GradientRegularization(AbstractRegularization):
    """$\\lambda = \\sqrt{M |g|}$.

    Without a constant, $M$ is four times as large at each trial until

    $$\\langle g_+, x - x_+\\rangle \\ge \\frac{|g_+|^2}{4 \\lambda}$$

    up to the rounding of $f$, and a quarter after.

    **Arguments:**

    - `constant`: $M > 0$; in theory $L$, a Lipschitz constant of the Hessian, and $3 m L$ for a
      Hessian that serves $m$ steps. `None` searches.
    - `initial`: the first $M$ of a search.

    **Reference:** Mishchenko, Regularized Newton Method with Global $O(1/k^2)$ Convergence, 2021,
    arXiv:2112.02089. Doikov, Nesterov, Gradient Regularization of Newton Method with Bregman
    Distances, 2021, arXiv:2112.02952.
    """

    constant: Scalar | None = scalar_field(None)
    initial: Scalar = scalar_field(1.0)

    def __check_init__(self):
        if self.constant is not None:
            checks.positive("constant", self.constant)
        checks.positive("initial", self.initial)

    def first(self):
        return self.initial if self.constant is None else None

    def move(self, here, memory):
        root = _power(tree.norm(here.gradient), 0.5)
        if self.constant is not None:
            shift = jnp.sqrt(self.constant.astype(root.dtype)) * root
            return _cubic.regularized_step(here.at, here.gradient, shift), memory, _ONE
        return _searched(here, memory, lambda constant: jnp.sqrt(constant) * root)


class LocalRegularization(AbstractRegularization):
    """$\\lambda = (6 M N^{q-2})^{1/(q-1)}$ with the Newton decrement $N$.

    **Arguments:**

    - `exponent`: $q \\in [2, 4]$.
    - `constant`: $M > 0$.
    """

    exponent: Scalar = scalar_field(3.0)
    constant: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.interval("exponent", self.exponent, 2, 4)
        checks.positive("constant", self.constant)

    def move(self, here, memory):
        q = self.exponent.astype(here.x.dtype)
        decrement = _cubic.newton_decrement(here.at, here.gradient)
        shift = (6 * self.constant * decrement ** (q - 2)) ** (1 / (q - 1))
        return _cubic.regularized_step(here.at, here.gradient, shift), memory, _ONE


class SuperUniversalRegularization(AbstractRegularization):
    """$\\lambda = C |g|^a$, where $C$ is searched for as in `GradientRegularization`.

    **Arguments:**

    - `exponent`: $a \\in [0, 1]$; $2/3$ covers functions from those with a bounded Hessian
      variation to those with a Lipschitz third derivative.
    - `initial`: the first $C$.

    **Reference:** Doikov, Mishchenko, Nesterov, Super-Universal Regularized Newton Method, 2022,
    arXiv:2208.05888.
    """

    exponent: Scalar = scalar_field(2 / 3)
    initial: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.interval("exponent", self.exponent, 0, 1)
        checks.positive("initial", self.initial)

    def first(self):
        return self.initial

    def move(self, here, memory):
        power = _power(tree.norm(here.gradient), self.exponent.astype(here.x.dtype))
        return _searched(here, memory, lambda constant: constant * power)


def _searched(here, memory, shift_of, max_trials=40):
    """The step with the first of growing constants that its gradient accepts."""
    rounding = _rounding(here.value)
    limit = jnp.sqrt(jnp.finfo(here.x.dtype).max)

    move_by = lambda shift: _cubic.regularized_step(here.at, here.gradient, shift)

    def attempt(carry):
        constant, _, trials, _ = carry
        shift = shift_of(constant)
        move = move_by(shift)
        there = tree.gradient(here.fun, here.x + move)
        descends = jnp.vdot(here.gradient, move) <= 0
        along = rounding - jnp.vdot(there, move)
        passed = descends & (4 * shift * along >= jnp.vdot(there, there))
        again = ~passed & (trials + 1 < max_trials)
        following = jnp.where(passed, constant / 4, constant * 4)
        return jnp.clip(following, 1 / limit, limit), constant, trials + 1, again

    memory = memory.astype(here.x.dtype)
    start = (memory, memory, jnp.asarray(0, jnp.int32), jnp.asarray(True))
    constant, used, trials, _ = _found(attempt, start)
    return move_by(shift_of(used)), constant, trials


class _LazyState(eqx.Module):
    value: Float[Array, ""]
    gradient: Vector
    eigen: Eigen
    age: Int[Array, ""]
    gradients: Int[Array, ""]
    hessians: Int[Array, ""]
    memory: Any
    error: Float[Array, ""]
    verdict: Status


def _lazy_start(problem, x, memory):
    flat = _cubic.flatten(problem.fun, x)
    value, gradient = tree.value_and_gradient(flat.fun, flat.x)
    d, dtype = flat.x.size, flat.x.dtype
    memory = jax.tree.map(lambda a: a.astype(dtype), memory)
    zero = jnp.asarray(0, jnp.int32)
    none = Eigen(jnp.ones(d, dtype), jnp.eye(d, dtype=dtype))
    infinity = jnp.asarray(jnp.inf, dtype)
    return _LazyState(value, gradient, none, zero, zero, zero, memory, infinity, Status.running)


def _snapshot(flat, state, always):
    """The Hessian's eigenvalues, of this point if they are due."""
    due = state.age == 0
    make = lambda x: _cubic.eigen(_cubic.hessian(flat.fun, x))
    if always:
        return make(flat.x), state.hessians + due
    return loops.if_due(due, make, flat.x, state.eigen), state.hessians + due


class RegularizedNewton(AbstractSolver):
    """Newton's method with a multiple of the identity added, and Hessians that serve several steps,

    $$x \\leftarrow x - (H(z) + \\lambda I)^{-1} \\nabla f(x),$$

    where the snapshot $z$ is the iterate of every `period`-th step. The Hessian is decomposed once,
    in $O(d^3)$; a step is one gradient and $O(d^2)$. Where a Hessian costs $d$ gradients, a period
    of $d$ saves a factor $\\sqrt d$ on convex functions.

    The error is the norm of the gradient at the value. Where the step does not descend, so that
    $f$ is not convex, the solve ends with the status `breakdown`. The state counts `gradients` and
    `hessians` and has the eigenvalues of $H(z)$, ascending, in `eigen.values`. `UnrolledAdjoint`
    works in both modes with a `period` of 1; else in forward mode only, because the decomposition
    is behind a loop of at most one turn, which a batch can skip.

    **Arguments:**

    - `regularization`: `GradientRegularization(constant)`, with a constant or without,
      `SuperUniversalRegularization(exponent)`, `LocalRegularization(exponent, constant)`.
    - `period`: steps that a Hessian serves; 1 is the classical method.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Doikov, Chayti, Jaggi, Second-order Optimization with Lazy Hessians, 2023,
    arXiv:2212.00781.
    """

    regularization: AbstractRegularization = eqx.field(default_factory=GradientRegularization)
    period: int = 1
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (Smooth,)

    def __check_init__(self):
        example = "GradientRegularization()"
        checks.instance("regularization", self.regularization, AbstractRegularization, example)
        checks.count("period", self.period)

    def init(self, problem, x, key):
        return _lazy_start(problem, x, self.regularization.first())

    def refresh(self, problem, x, state):
        return _lazy_start(problem, x, state.memory)

    def step(self, problem, x, state):
        flat = _cubic.flatten(problem.fun, x)
        at, hessians = _snapshot(flat, state, self.period == 1)
        here = Regularized(flat.fun, flat.x, state.value, state.gradient, at)
        move, memory, trials = self.regularization.move(here, state.memory)
        # What is not a number in the data must stay visible; a rule without a number breaks down.
        known = jnp.all(jnp.isfinite(state.gradient)) & jnp.all(jnp.isfinite(at.values))
        slope = jnp.vdot(state.gradient, move)
        descends = jnp.where(known, slope <= 0, True)
        new = flat.x + jnp.where(descends, move, 0)
        value, gradient = tree.value_and_gradient(flat.fun, new)
        return flat.unravel(new), _LazyState(
            value,
            gradient,
            at,
            (state.age + 1) % self.period,
            state.gradients + trials,
            hessians,
            memory,
            jnp.linalg.norm(gradient),
            Status.where(descends, Status.running, Status.breakdown),
        )

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def last_step(self, problem, x, state):
        return _cubic.newton_point(problem.fun, x)


class LazyCubicNewton(AbstractSolver):
    """Cubic regularization of Newton's method with Hessians that serve several steps,

    $$x \\leftarrow x + \\arg\\min_h \\langle\\nabla f(x), h\\rangle + \\tfrac12 h^\\top H(z) h +
      \\tfrac M6 |h|^3,$$

    where the snapshot $z$ is the iterate of every `period`-th step. $f$ need not be convex: with
    $M = 6 m L$ for a period $m$ and a Hessian with Lipschitz constant $L$, iterates leave saddle
    points, exact ones too, and approach points where $\\nabla f = 0$ and the Hessian is
    semidefinite, in $O(\\sqrt{m L} (f_0 - f^*) \\epsilon^{-3/2})$ gradients. A Hessian costs one
    decomposition, a step then $O(d^2)$.

    Without a constant a step of the solver is a phase of `period` cubic steps, or fewer if the
    gradient falls to `tol`, of lengths $r_i$. It is kept if
    $f(z) - f(x_m) \\ge \\tfrac M{12} \\sum_i r_i^3$, up to the rounding of $f$, and $M$ is then a
    quarter, but at least a millionth of the first; else the point is $z$ again, with the
    decomposition, and $M$ is doubled. The test always holds for $M \\ge 6 m L$.

    The error is the norm of the gradient at the value, so that a solve can end at a saddle point
    that it comes close to. The state counts `gradients` and `hessians` and has the eigenvalues of
    $H(z)$, ascending, in `eigen.values`. `UnrolledAdjoint` works in both modes with a
    `period` of 1 and a `constant`; else in forward mode only, because decompositions and phases are
    loops of unknown length.

    **Arguments:**

    - `period`: $m$, steps that a Hessian serves; 1 is the classical method.
    - `constant`: $M > 0$, or `None` to search.
    - `initial`: the first $M$ of a search.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Doikov, Chayti, Jaggi, Second-order Optimization with Lazy Hessians, 2023,
    arXiv:2212.00781. Nesterov, Polyak, Cubic Regularization of Newton Method and its Global
    Performance, 2006.
    """

    period: int = 1
    constant: Scalar | None = scalar_field(None)
    initial: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (Smooth,)

    def __check_init__(self):
        checks.count("period", self.period)
        if self.constant is not None:
            checks.positive("constant", self.constant)
        checks.positive("initial", self.initial)

    def init(self, problem, x, key):
        return _lazy_start(problem, x, self.initial if self.constant is None else None)

    def refresh(self, problem, x, state):
        return _lazy_start(problem, x, state.memory)

    def step(self, problem, x, state):
        flat = _cubic.flatten(problem.fun, x)
        at, hessians = _snapshot(flat, state, self.period == 1 and self.constant is not None)
        if self.constant is None:
            new, state = self._phase(flat, state, at, hessians)
        else:
            move = _cubic.cubic_step(at, state.gradient, self.constant)
            new = flat.x + move
            value, gradient = tree.value_and_gradient(flat.fun, new)
            error = jnp.linalg.norm(gradient)
            age, gradients = (state.age + 1) % self.period, state.gradients + 1
            state = _LazyState(
                value, gradient, at, age, gradients, hessians, None, error, Status.running
            )
        return flat.unravel(new), state

    def _phase(self, flat, state, at, hessians):
        M, rounding = state.memory, _rounding(state.value)

        def advance(carry):
            x, _, gradient, cubes, steps, _ = carry
            move = _cubic.cubic_step(at, gradient, M)
            x = x + move
            value, gradient = tree.value_and_gradient(flat.fun, x)
            more = (steps + 1 < self.period) & (jnp.linalg.norm(gradient) > self.tol)
            cubes = cubes + jnp.linalg.norm(move) ** 3
            return x, value, gradient, cubes, steps + 1, more

        zero = jnp.zeros_like(M)
        count, go = jnp.asarray(0, jnp.int32), jnp.asarray(True)
        start = (flat.x, state.value, state.gradient, zero, count, go)
        x, value, gradient, cubes, steps, _ = loops.while_loop(lambda c: c[-1], advance, start)
        kept = state.value - value >= M / 12 * cubes - rounding
        # What is not a number at z will not become one by smaller steps.
        kept = kept | ~jnp.isfinite(state.value)
        here = (flat.x, state.value, state.gradient)
        x, value, gradient = tree.where(kept, (x, value, gradient), here)
        least = 1e-6 * self.initial.astype(M.dtype)
        most = jnp.sqrt(jnp.finfo(M.dtype).max)
        M = jnp.where(kept, jnp.maximum(M / 4, least), jnp.minimum(2 * M, most))
        age = jnp.where(kept, 0, 1).astype(state.age.dtype)
        gradients = state.gradients + steps
        # A phase that is not kept does not end a solve: its start may be a saddle point.
        error = jnp.linalg.norm(gradient)
        error = jnp.where(kept, error, jnp.maximum(error, 1) + 2 * self.tol.astype(M.dtype))
        return x, _LazyState(
            value, gradient, at, age, gradients, hessians, M, error, Status.running
        )

    def error(self, problem, x, state):
        return state.error

    def last_step(self, problem, x, state):
        return _cubic.newton_point(problem.fun, x)
