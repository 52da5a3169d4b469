"""Trust regions scaled by the distance to bounds, for systems of equations in a box."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ..core import (
    AbstractSolver,
    BoundedRootFinding,
    LeastSquaresFallback,
    Scalar,
    Status,
    checks,
    loops,
    scalar_field,
    tree,
)

Vector = Float[Array, " n"]


class AbstractScaling(eqx.Module):
    """The diagonal $d \\ge 0$ of a scaling matrix: $d_i g_i = 0$ for all $i$ exactly where no
    direction within the bounds goes down to first order."""

    @abc.abstractmethod
    def __call__(self, x: Vector, g: Vector, lower: Vector, upper: Vector) -> Vector:
        """$d$ at `x`, within the bounds, for the gradient `g`; bounds may be infinite."""


class ColemanLi(AbstractScaling):
    """The distance to the bound that the descent $-g_i$ goes to, 1 where there is none; $g_i = 0$
    counts as going down.

    **Reference:** Coleman, Li, An Interior Trust Region Approach for Nonlinear Minimization Subject
    to Bounds, 1996.
    """

    def __call__(self, x, g, lower, upper):
        up = (g < 0) & jnp.isfinite(upper)
        down = (g >= 0) & jnp.isfinite(lower)
        return jnp.where(up, upper - x, jnp.where(down, x - lower, 1))


class KanzowKlug(AbstractScaling):
    """$\\min\\{x_i - l_i + \\kappa (-g_i)_+,\\ u_i - x_i + \\kappa (g_i)_+\\}$ over the finite
    bounds, 1 without; Lipschitz continuous.

    **Arguments:**

    - `kappa`: $> 0$.

    **Reference:** Kanzow, Klug, On Affine-scaling Interior-point Newton Methods for Nonlinear
    Minimization with Bound Constraints, 2006.
    """

    kappa: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.positive("kappa", self.kappa)

    def __call__(self, x, g, lower, upper):
        kappa = self.kappa.astype(x.dtype)
        below = x - lower + kappa * jnp.maximum(-g, 0)
        above = upper - x + kappa * jnp.maximum(g, 0)
        least = jnp.minimum(below, above)
        return jnp.where(jnp.isinf(least), 1, least)


class HeinkenschlossUlbrich(AbstractScaling):
    """`ColemanLi` where $|g_i| < m_i^p$ or $m_i < |g_i|^p$ with $m_i = \\min\\{x_i - l_i,
    u_i - x_i\\}$, else 1.

    **Arguments:**

    - `power`: $p > 1$.

    **Reference:** Heinkenschloss, Ulbrich, Ulbrich, Superlinear and Quadratic Convergence of
    Affine-scaling Interior-point Newton Methods for Problems with Simple Bounds without Strict
    Complementarity Assumption, 1999.
    """

    power: Scalar = scalar_field(2.0)

    def __check_init__(self):
        checks.interval("power", self.power, 1, float("inf"), open_low=True)

    def __call__(self, x, g, lower, upper):
        p = self.power.astype(x.dtype)
        size, nearest = jnp.abs(g), jnp.minimum(x - lower, upper - x)
        near = (size < nearest**p) | (nearest < size**p)
        return jnp.where(near, ColemanLi()(x, g, lower, upper), 1)


class HagerMairZhang(AbstractScaling):
    """$X_i / (\\alpha X_i + |g_i|)$ with the distance $X_i$ to the bound that the descent goes to,
    $1 / \\alpha$ if that is infinite.

    **Arguments:**

    - `alpha`: $> 0$.

    **Reference:** Hager, Mair, Zhang, An Affine-scaling Interior-point CBB Method for
    Box-constrained Optimization, 2009.
    """

    alpha: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.positive("alpha", self.alpha)

    def __call__(self, x, g, lower, upper):
        alpha = self.alpha.astype(x.dtype)
        distance = jnp.where(g <= 0, upper - x, x - lower)
        free = jnp.isinf(distance)
        distance = jnp.where(free, 1, distance)
        below = alpha * distance + jnp.abs(g)
        return jnp.where(free, 1 / alpha, distance / jnp.where(below > 0, below, 1))


class ConvexCombination(AbstractScaling):
    """$\\sum_j w_j d^{(j)}$, the new class: it vanishes where its members must, and is continuous
    if one continuous member has a positive weight and the others vanish together.

    **Arguments:**

    - `scalings`: the members.
    - `weights`: $w \\ge 0$ with sum 1, shape `(members,)`; equal if `None`.
    """

    scalings: tuple[AbstractScaling, ...] = eqx.field(converter=tuple)
    weights: Float[Array, " m"] | None = eqx.field(
        converter=lambda w: None if w is None else jnp.asarray(w), default=None
    )

    def __check_init__(self):
        if not self.scalings:
            raise ValueError(f"scalings must not be empty, got {self.scalings}")
        for scaling in self.scalings:
            checks.instance("a scaling", scaling, AbstractScaling, "ColemanLi()")
        if self.weights is None:
            return
        if self.weights.shape != (len(self.scalings),):
            raise ValueError(
                f"weights must have shape ({len(self.scalings)},), got {self.weights.shape}"
            )
        checks.nonnegative("weights", self.weights)
        if not checks.is_traced(self.weights) and abs(float(sum(self.weights.tolist())) - 1) > 1e-5:
            raise ValueError(f"weights must sum to 1, got {self.weights}")

    def __call__(self, x, g, lower, upper):
        m = len(self.scalings)
        weights = jnp.full(m, 1 / m) if self.weights is None else self.weights
        parts = jnp.stack([scaling(x, g, lower, upper) for scaling in self.scalings])
        return weights.astype(x.dtype) @ parts


class AbstractRegion(eqx.Module):
    """The shape of a trust region $|G p| \\le \\Delta$."""

    @abc.abstractmethod
    def __call__(self, d: Vector) -> Vector:
        """The diagonal of $G$ for a scaling $d > 0$."""


class Spherical(AbstractRegion):
    """$G = I$."""

    def __call__(self, d):
        return jnp.ones_like(d)


class Elliptical(AbstractRegion):
    """$G = D^{-1/2}$: long where bounds are far, short where they are near."""

    def __call__(self, d):
        return 1 / jnp.sqrt(d)


class _State(eqx.Module):
    value: Vector
    radius: Float[Array, ""]
    trials: Int[Array, ""]
    error: Float[Array, ""]
    verdict: Status


class _Box(NamedTuple):
    """Bounds of a vector, and the interior that iterates stay in."""

    lower: Vector
    upper: Vector

    def inside(self, x):
        """`x`, or a point near it whose entries are strictly between bounds that differ."""
        width = self.upper - self.lower
        push = 1e-4 * jnp.where(jnp.isfinite(width), width, 1)
        low = jnp.where(jnp.isfinite(self.lower), self.lower + push, -jnp.inf)
        high = jnp.where(jnp.isfinite(self.upper), self.upper - push, jnp.inf)
        x = jnp.where(x <= self.lower, low, jnp.where(x >= self.upper, high, x))
        return jnp.clip(x, self.lower, self.upper)

    def stay(self, x, new):
        """`new`, or where rounding puts it on a bound or beyond, halfway from `x` to the bound."""
        low, high = 0.5 * (x + self.lower), 0.5 * (x + self.upper)
        new = jnp.where(new <= self.lower, low, jnp.where(new >= self.upper, high, new))
        return jnp.where(self.upper <= self.lower, x, new)

    def reach(self, x, p):
        """The largest $\\lambda$ with $x + \\lambda p$ within the bounds."""
        room = jnp.where(p > 0, self.upper - x, x - self.lower)
        far = jnp.where(p != 0, room / jnp.where(p != 0, jnp.abs(p), 1), jnp.inf)
        return jnp.min(far)


class ScaledDogleg(AbstractSolver):
    """Constrained dogleg method: a trust region around the iterate, scaled by a matrix
    $D = \\mathrm{diag}(d)$ that vanishes towards the bounds that hinder descent.

    With $g = J^\\top F$ and strictly feasible $x$, a step lies on the line through the truncated
    scaled Cauchy point and the projected Newton point,

    $$p_C = t\\,(-D g), \\qquad
      \\bar p = \\max\\{\\sigma, 1 - |p_N|\\}\\,(\\Pi(x + p_N) - x), \\qquad p_N = -J^{+} F,$$

    where $t$ minimizes $|F - t J D g|$ in the region and the bounds: the point of the line that
    minimizes $|F + J p|$ in both, or $p_C$ if that gives less than a tenth of the decrease of
    $p_C$. It is taken if $|F|$ falls by a quarter of what the linear model promises; else the
    region shrinks, and it grows if it falls by three quarters. $|p_N|$ and $|F|$ are Euclidean
    norms. Convergence is quadratic to roots with a regular Jacobian.

    The error is the larger of $|F|$ and the norm of the problem's residual. Where the region
    shrinks to nothing, $|D^{1/2} g| \\le \\epsilon |F|$, or the model promises no more than
    rounding, the point is stationary but no root, and the solve ends with the status `breakdown`.
    A start at a bound or outside is moved inside by a ten-thousandth of the width between the
    bounds.

    **Arguments:**

    - `scaling`: `ColemanLi()`, `KanzowKlug(kappa)`, `HeinkenschlossUlbrich(power)`,
      `HagerMairZhang(alpha)` or a `ConvexCombination` of them.
    - `region`: `Elliptical()` or `Spherical()`.
    - `radius`: the first $\\Delta$.
    - `step_back`: $\\sigma$; in single precision at most $1 - 10^{-4}$ of the way to a bound is
      gone.
    - `stationary`: $\\epsilon$.
    - `linear_solver`: for Newton steps: small systems are factorized, large ones go through
      products alone, and singular ones give the least-squares solution.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Ayanzadeh, Yazdanian, Shahamatnia, A New Class of Scaling Matrices for Scaled
    Trust Region Algorithms, 2019, arXiv:1904.09209. Bellavia, Macconi, Pieraccini, Constrained
    Dogleg Methods for Nonlinear Systems with Simple Bounds, 2012.
    """

    scaling: AbstractScaling = eqx.field(  # made when asked for: an import makes no arrays
        default_factory=lambda: ConvexCombination((ColemanLi(), KanzowKlug()))
    )
    region: AbstractRegion = Elliptical()
    radius: Scalar = scalar_field(1.0)
    step_back: Scalar = scalar_field(0.99995)
    stationary: Scalar = scalar_field(1e-10)
    linear_solver: LeastSquaresFallback = LeastSquaresFallback()
    tol: Scalar = scalar_field(1e-8)
    max_steps: int = 300
    problems = (BoundedRootFinding,)

    def __check_init__(self):
        checks.instance("scaling", self.scaling, AbstractScaling, "ColemanLi()")
        checks.instance("region", self.region, AbstractRegion, "Elliptical()")
        checks.positive("radius", self.radius)
        checks.interval("step_back", self.step_back, 0, 1, open_low=True, open_high=True)
        checks.nonnegative("stationary", self.stationary)

    def init(self, problem, x, key):
        flat, fun, box, _ = _flatten(problem, x)
        radius = self.radius.astype(flat.dtype)
        infinity = jnp.asarray(jnp.inf, flat.dtype)
        zero = jnp.asarray(0, jnp.int32)
        return _State(fun(box.inside(flat)), radius, zero, infinity, Status.running)

    def refresh(self, problem, x, state):
        flat, fun, box, _ = _flatten(problem, x)
        value = fun(box.inside(flat))
        return _State(value, state.radius, state.trials, state.error, Status.running)

    def step(self, problem, x, state):
        flat, fun, box, unravel = _flatten(problem, x)
        dtype, F = flat.dtype, state.value
        eps = jnp.finfo(dtype).eps
        x = box.inside(flat)
        norm = jnp.linalg.norm
        size = norm(F)
        _, product = jax.linearize(fun, x)
        (g,) = jax.linear_transpose(product, x)(F)
        fixed = box.upper <= box.lower
        d = self.scaling(x, g, box.lower, box.upper)
        d = jnp.where(fixed, 1, jnp.maximum(d, jnp.finfo(dtype).tiny))
        G = self.region(d)
        sigma = jnp.minimum(self.step_back.astype(dtype), 1 - max(eps * 800, 1e-13))

        newton, _ = self.linear_solver.solve(product, -F)
        projected = jnp.clip(x + newton, box.lower, box.upper) - x
        projected = jnp.maximum(sigma, 1 - norm(newton)) * projected
        cauchy = jnp.where(fixed, 0, -d * g)
        image = product(cauchy)
        square, slope = jnp.vdot(image, image), -jnp.vdot(cauchy, g)
        longest = jnp.where(square > 0, slope / jnp.where(square > 0, square, 1), 0)
        length = norm(G * cauchy)

        def propose(radius):
            t = jnp.minimum(longest, radius / jnp.where(length > 0, length, 1))
            pc = t * cauchy
            reach = box.reach(x, pc)
            pc = jnp.where(reach <= 1, jnp.maximum(sigma, 1 - norm(pc)) * reach, 1) * pc
            at_cauchy = F + product(pc)
            q = projected - pc
            turn = product(q)
            bend = jnp.vdot(turn, turn)
            s = -jnp.vdot(at_cauchy, turn) / jnp.where(bend > 0, bend, 1)
            a, b = jnp.vdot(G * q, G * q), jnp.vdot(G * q, G * pc)
            c = jnp.minimum(jnp.vdot(G * pc, G * pc) - radius**2, 0)
            root = jnp.sqrt(jnp.maximum(b**2 - a * c, 0))
            # Both roots without cancellation: the product of the two is c / a.
            far = jnp.where(b > 0, -b - root, -b + root)
            first, second = far / jnp.where(a > 0, a, 1), c / jnp.where(far == 0, 1, far)
            low, high = jnp.minimum(first, second), jnp.maximum(first, second)
            ahead = sigma * box.reach(x + pc, q)
            behind = -sigma * box.reach(x + pc, -q)
            s = jnp.clip(s, jnp.minimum(low, 0), jnp.maximum(high, 0))
            s = jnp.clip(s, jnp.minimum(behind, 0), jnp.maximum(ahead, jnp.minimum(1, high)))
            p = pc + s * q
            left, left_cauchy = norm(at_cauchy + s * turn), norm(at_cauchy)
            poor = ~(size - left >= 0.1 * (size - left_cauchy))
            return jnp.where(poor, pc, p), size - jnp.where(poor, left_cauchy, left)

        def attempt(carry):
            radius, *_, trials, _, _ = carry
            p, promised = propose(radius)
            new = box.stay(x, x + p)
            value = fun(new)
            gained = size - norm(value)
            taken = (gained >= 0.25 * promised - 4 * eps * size) & (gained >= -4 * eps * size)
            reach = norm(G * p)
            grown = jnp.where(gained >= 0.75 * promised, jnp.maximum(radius, 2 * reach), radius)
            shrunk = jnp.minimum(0.25 * radius, 0.5 * reach)
            shrunk = jnp.where(jnp.isfinite(shrunk), shrunk, 0.25 * radius)
            again = ~taken & (shrunk >= 1e-2 * eps) & (trials < 60)
            radius = jnp.where(taken, grown, shrunk)
            new, value = jnp.where(taken, new, x), jnp.where(taken, value, F)
            return radius, new, value, taken, trials + 1, promised, again

        no, go = jnp.asarray(False), jnp.asarray(True)
        start = (state.radius, x, F, no, jnp.asarray(0, jnp.int32), size, go)
        end = loops.while_loop(lambda c: c[-1], attempt, start)
        radius, new, value, taken, trials, promised, _ = end
        new = jnp.where(jnp.isfinite(size), new, jnp.nan)
        still = norm(jnp.where(fixed, 0, jnp.sqrt(d) * g)) <= self.stationary.astype(dtype) * size
        still |= promised <= 16 * eps * size  # steps that are taken though nothing is gained
        going = (taken & ~(still & (size > 0))) | ~jnp.isfinite(size)
        verdict = Status.where(going, Status.running, Status.breakdown)
        out = unravel(new)
        error = jnp.maximum(norm(value), tree.norm(problem.residual(out)).astype(dtype))
        radius = jnp.maximum(radius, jnp.sqrt(eps))
        return out, _State(value, radius, state.trials + trials, error, verdict)

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        return state.verdict

    def last_step(self, problem, x, state):
        flat, fun, _, unravel = _flatten(problem, x)
        at = jax.lax.stop_gradient(flat)
        move = jnp.linalg.pinv(jax.lax.stop_gradient(_matrix(fun, at))) @ fun(at)
        return unravel(at - move)


def _matrix(fun, x):
    _, product = jax.linearize(fun, x)
    basis = loops.vary(jnp.eye(x.size, dtype=x.dtype), loops.varying_axes(x))
    return jax.vmap(product, out_axes=1)(basis)


def _flatten(problem: BoundedRootFinding, x) -> tuple[Vector, Any, _Box, Any]:
    flat, unravel = ravel_pytree(x)
    lower, upper = problem.bounds.like(x)
    fun = lambda v: ravel_pytree(problem.fun(unravel(v)))[0].astype(flat.dtype)
    box = _Box(ravel_pytree(lower)[0], ravel_pytree(upper)[0])
    return flat, fun, box, unravel
