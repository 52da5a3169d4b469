"""Ratios of functions: by coordinate descent, and by sequences of problems without a ratio."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    Composite,
    Fractional,
    Scalar,
    checks,
    loops,
    scalar_field,
    solve,
    tree,
)
from ..core.objectives import AbstractLinearLoss
from ..prox import L1, Box, ElasticNet, L2Squared, NonNegative, Zero
from .block_coordinate import AbstractSelection, Random
from .coordinate_model import (
    AbstractCoordinateModel,
    Quadratic,
    coordinate_bounds,
    coordinate_model,
)
from .denominators import AbstractDenominator, Line
from .proximal_gradient import ProximalGradient

Poly = Float[Array, "*k n"]


def _product(a: Poly, b: Poly) -> Poly:
    """Of polynomials, the lowest coefficients first."""
    n = a.shape[-1] + b.shape[-1] - 1
    spread = [
        jnp.pad(a * b[..., j, None], [(0, 0)] * (a.ndim - 1) + [(j, n - a.shape[-1] - j)])
        for j in range(b.shape[-1])
    ]
    return sum(spread[1:], spread[0])


def _derivative(a: Poly) -> Poly:
    return a[..., 1:] * jnp.arange(1, a.shape[-1], dtype=a.dtype)


def _plus(a: Poly, b: Poly) -> Poly:
    n = max(a.shape[-1], b.shape[-1])
    fit = lambda p: jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, n - p.shape[-1])])
    return fit(a) + fit(b)


def _at(a: Poly, e: Array) -> Array:
    """Values, with one more axis of points."""
    value = jnp.zeros_like(e)
    for k in reversed(range(a.shape[-1])):
        value = value * e + a[..., k, None]
    return value


def _ratio(a, b):
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _roots(a: Poly, scale: Float[Array, ""]) -> Array:
    """All real roots, and where there are fewer, other points."""
    degree = a.shape[-1] - 1
    if degree == 1:
        return _ratio(-a[..., :1], a[..., 1:])
    if degree == 2:
        c, b, q = a[..., 0], 0.5 * a[..., 1], a[..., 2]
        # Scaled, so that squares neither overflow nor vanish.
        size = jnp.maximum(jnp.abs(b), jnp.sqrt(jnp.abs(q)) * jnp.sqrt(jnp.abs(c)))
        size = jnp.where(size > 0, size, 1)
        inner = (b / size) ** 2 - (q / size) * (c / size)
        far = -(b + jnp.where(b < 0, -1, 1) * size * jnp.sqrt(jnp.maximum(inner, 0)))
        return jnp.stack([_ratio(far, q), _ratio(c, far)], axis=-1)
    a = a * scale ** jnp.arange(degree + 1, dtype=a.dtype)
    size = jnp.max(jnp.abs(a), axis=-1, keepdims=True)
    a = a / jnp.where(size > 0, size, 1)
    far = _inner_roots(a[..., ::-1])
    return jnp.concatenate([scale * _inner_roots(a), _ratio(scale, far)], axis=-1)


def _inner_roots(a: Poly) -> Array:
    """Those in $[-1, 1]$: between two neighbouring roots of the derivative there is one at most,
    which bisection finds."""
    chain = [a]
    while chain[-1].shape[-1] > 2:
        chain.append(_derivative(chain[-1]))
    last = chain.pop()
    points = jnp.clip(_ratio(-last[..., :1], last[..., 1:]), -1, 1)
    for poly in reversed(chain):
        end = jnp.ones_like(points[..., :1])
        edges = jnp.concatenate([-end, points, end], axis=-1)
        positive = _at(poly, edges[..., :-1]) > 0

        def halve(_, ends, poly=poly, positive=positive):
            low, high = ends
            middle = 0.5 * (low + high)
            ahead = (_at(poly, middle) > 0) == positive
            return jnp.where(ahead, middle, low), jnp.where(ahead, high, middle)

        bits = 2 + jnp.finfo(a.dtype).nmant
        low, high = loops.fori_loop(0, bits, halve, (edges[..., :-1], edges[..., 1:]))
        points = 0.5 * (low + high)
    return points


class Numerator(eqx.Module):
    """$N(e) = n + f_i e + \\tfrac{c}{2} e^2 + h_i(x_i + e) - h_i(x_i)$ with $h_i(v) = w |v| +
    \\tfrac{r}{2} v^2$ on $[l, u]$.

    - `value`, `slope`, `curvature`: $n$, $f_i$, $c$.
    - `entry`, `weight`, `ridge`, `low`, `high`: $x_i$, $w$, $r$, $l$, $u$.
    """

    value: Float[Array, ""]
    slope: Float[Array, ""]
    curvature: Float[Array, ""]
    entry: Float[Array, ""]
    weight: Float[Array, ""]
    ridge: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]

    def __call__(self, e):
        x, bend = self.entry, self.curvature + self.ridge
        kink = self.weight * (jnp.abs(x + e) - jnp.abs(x))
        return self.value + e * (self.slope + self.ridge * x + 0.5 * bend * e) + kink

    def sides(self) -> Float[Array, "2 3"]:
        """Its polynomials where $x_i + e$ is negative, and where it is positive."""
        x = self.entry
        sign = jnp.asarray([-1.0, 1.0], x.dtype)
        height = self.value + self.weight * (sign * x - jnp.abs(x))
        slope = self.slope + self.ridge * x + sign * self.weight
        bend = jnp.full_like(slope, 0.5) * (self.curvature + self.ridge)
        return jnp.stack([height, slope, bend], axis=1)


class AbstractMode(eqx.Module):
    """What is minimized along a coordinate."""

    @abc.abstractmethod
    def objective(self, top: Array, bottom: Array, ratio: Array) -> Array:
        """Of the numerator, the denominator and the ratio $F(x)$ now."""

    @abc.abstractmethod
    def stationary(
        self, top: Poly, bottom: Poly, exponent: float, factor: float, ratio: Array
    ) -> Poly:
        """The polynomial that vanishes where $N$ over $c P^s$ does not change."""


class Direct(AbstractMode):
    """The ratio itself, $N(e) / g(x + e e_i)$."""

    def objective(self, top, bottom, ratio):
        return top / bottom

    def stationary(self, top, bottom, exponent, factor, ratio):
        product = _product(_derivative(top), bottom)
        change = _plus(product, -exponent * _product(top, _derivative(bottom)))
        if bottom.shape[-1] == 2:  # in these the highest terms cancel
            return change[..., :2] if exponent == 2 else change
        return change


class Parametric(AbstractMode):
    """The difference $N(e) - F(x)\\, g(x + e e_i)$."""

    def objective(self, top, bottom, ratio):
        return top - ratio * bottom

    def stationary(self, top, bottom, exponent, factor, ratio):
        rise, slope = _derivative(top), _derivative(bottom)
        if exponent == 1:
            return _plus(rise, -ratio * factor * slope)
        if exponent == 2:
            return _plus(rise, -2 * ratio * factor * _product(bottom, slope))
        if exponent == 0.5:
            squares = _product(_product(rise, rise), 4 * bottom)
            return _plus(squares, -((ratio * factor) ** 2) * _product(slope, slope))
        if exponent == 0.25:
            square = _product(rise, rise)
            fourth, cube = _product(square, square), _product(bottom, _product(bottom, bottom))
            square = _product(slope, slope)
            last = -((ratio * factor) ** 4) * _product(square, square)
            return _plus(256 * _product(fourth, cube), last)
        raise TypeError(
            f"Parametric takes exponents 1, 2, 1/2 and 1/4, got {exponent}: take Direct()"
        )


def minimize_line(
    mode: AbstractMode, denominator: AbstractDenominator, line: Line, top: Numerator
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The global minimizer of a ratio along a coordinate.

    A convex denominator is the largest of its pieces, so the ratio is the least of the ratios with
    each, and each has its minimum at a stationary point, at the kink of the numerator or at an end.
    A concave one may have it at its own kinks too. Where the denominator is not positive nothing
    is taken.

    **Arguments:**

    - `mode`: `Direct()` or `Parametric()`.
    - `denominator`, `line`: $g$, and $g$ along the coordinate.
    - `top`: the numerator.

    **Returns:** the move, and the decrease of the mode's objective, nonnegative.
    """
    s, c, count = denominator.exponent, denominator.factor, line.pieces.shape[0]
    dtype = top.entry.dtype
    # At most one piece can be negative where another holds, and that one is not the largest.
    power = lambda p: c * jnp.where(p > 0, p, 0) ** s if s != 2 else c * p**2
    zero = jnp.zeros((count, 1), dtype)
    here = power(_at(line.pieces, zero))[:, 0]
    bottom = jnp.min(here) if denominator.concave else jnp.max(here)
    ratio = top.value / jnp.where(bottom > 0, bottom, 1)

    sides = top.sides()
    bend = jnp.where(sides[0, 2] > 0, 2 * sides[0, 2], 1)
    scale = jnp.maximum(jnp.abs(top.entry), jnp.max(jnp.abs(sides[:, 1])) / bend)
    scale = jnp.where(scale > 0, scale, 1)
    wide = jnp.broadcast_to(sides, (count, 2, 3))
    pieces = jnp.broadcast_to(line.pieces[:, None], (count, 2, line.pieces.shape[1]))
    roots = _roots(mode.stationary(wide, pieces, s, c, ratio), scale)

    low, high = top.low - top.entry, top.high - top.entry
    side = jnp.asarray([-1.0, 1.0], dtype)[:, None]
    inside = (roots >= low) & (roots <= high) & (side * (top.entry + roots) >= 0)
    inside = inside & (roots >= line.low[:, None, None]) & (roots <= line.high[:, None, None])
    roots, inside = roots.reshape(count, -1), inside.reshape(count, -1)
    fixed = jnp.stack([-top.entry, low, high])
    fixed = jnp.concatenate([jnp.where(jnp.isfinite(fixed), fixed, 0), line.kinks.astype(dtype)])
    points = jnp.concatenate([roots, jnp.broadcast_to(fixed, (count, fixed.size)), zero], axis=1)
    points = jnp.clip(jnp.where(jnp.isfinite(points), points, 0), low, high)

    if denominator.concave:
        flat = jnp.broadcast_to(points.reshape(1, -1), (count, points.size))
        below = jnp.min(power(_at(line.pieces, flat)), axis=0).reshape(points.shape)
    else:
        below = power(_at(line.pieces, points))
    positive = below > 0
    value = mode.objective(top(points), jnp.where(positive, below, 1), ratio)
    value = jnp.where(positive, value, jnp.inf)
    before = mode.objective(top.value, bottom, ratio)
    least = jnp.min(value)
    # Values tell points apart only up to rounding; a stationary point on its own piece is right to
    # the last digit, then comes what does not depend on a root, then to stay.
    size = jnp.abs(top.value) * (1 / bottom if isinstance(mode, Direct) else 1)
    close = value <= least + 8 * jnp.finfo(dtype).eps * size
    rank = jnp.concatenate(
        [
            jnp.where(inside, 0, 3),
            jnp.full((count, fixed.size), 1),
            jnp.full((count, 1), 2),
        ],
        axis=1,
    )
    rank = jnp.where(close, rank, 4)
    best = rank == jnp.min(rank)
    length = jnp.where(best, jnp.abs(points), jnp.inf)
    e = points.reshape(-1)[jnp.argmin(length)]
    return jnp.where(jnp.isfinite(least), e, jnp.nan), before - least


class GreedyDecrease(eqx.Module):
    """The coordinate along which the objective falls most, found by looking along all of them."""


class _State(eqx.Module):
    model: AbstractCoordinateModel
    bounds: Float[Array, " d"]
    sweeps: Int[Array, ""]
    key: PRNGKeyArray
    error: Float[Array, ""]


def _known(smooth, lipschitz):
    if lipschitz is not None or checks.has_method(smooth, "curvature_bound"):
        return True
    if isinstance(smooth, AbstractLinearLoss):
        return smooth.curvature < float("inf")
    return isinstance(smooth, Quadratic)


def _along(nonsmooth, x):
    """$w$, $r$, $l$ and $u$ of each entry."""
    full = lambda value: jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)
    weight = ridge = full(0)
    low, high = full(-jnp.inf), full(jnp.inf)
    if isinstance(nonsmooth, L1):
        weight = full(nonsmooth.weight)
    elif isinstance(nonsmooth, L2Squared):
        ridge = full(nonsmooth.weight)
    elif isinstance(nonsmooth, ElasticNet):
        weight, ridge = full(nonsmooth.l1), full(nonsmooth.l2)
    elif isinstance(nonsmooth, NonNegative):
        low = full(0)
    elif isinstance(nonsmooth, Box):
        low, high = full(nonsmooth.lower), full(nonsmooth.upper)
    elif not (nonsmooth is None or isinstance(nonsmooth, Zero)):
        raise TypeError(
            "the nonsmooth part must be None, Zero, L1, L2Squared, ElasticNet, NonNegative or Box, "
            f"got {nonsmooth!r}"
        )
    return weight, ridge, low, high


class FractionalCoordinateDescent(AbstractSolver):
    """Coordinate descent for ratios $F(x) = (f(x) + h(x)) / g(x)$.

    Along a coordinate the numerator is bounded by

    $$N(e) = f(x) + \\nabla_i f(x)\\, e + \\tfrac{c_i + \\theta}{2} e^2 + h(x + e e_i),$$

    and the step goes to the global minimizer of $N(e) / g(x + e e_i)$ (`Direct`) or of $N(e) -
    F(x)\\, g(x + e e_i)$ (`Parametric`), which is found among finitely many points. $F$ never
    rises, and limit points are stationary along each coordinate, which is more than critical: no
    coordinate move at all is better by the model. Where $g$ is concave they are minimizers.

    A step is a sweep of as many moves as there are coordinates. The error is the norm of the
    problem's residual behind it. A start with $g(x) \\le 0$ is reported as non-finite.

    **Arguments:**

    - `mode`: `Direct()` or `Parametric()`.
    - `selection`: `Random()`, `Shuffled()`, `Cyclic()`, or `GreedyDecrease()`, whose moves cost $d$
      times as much.
    - `lipschitz`: bounds $c_i > 0$ on the coordinates' curvature, shape `(d,)` or a scalar; by
      default those that the function knows. If it knows none, they are searched: halved at each
      visit, then doubled until $f(x + e e_i) \\le f(x) + \\nabla_i f(x) e + c_i e^2 / 2$.
    - `proximal_weight`: $\\theta > 0$, relative to $c_i$.
    - `normalize_every`: where $F(tx) = F(x)$, divide $x$ by its norm every so many sweeps, lest it
      drift; not done where that would raise $F$. `None` for never.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is a sweep.

    **Raises:** `TypeError` if the denominator is none of `AbstractDenominator`, the nonsmooth part
    none of `None`, `Zero`, `L1`, `L2Squared`, `ElasticNet`, `NonNegative`, `Box`, or $x$ not one
    real vector.

    **Reference:** Yuan, Coordinate Descent Methods for Fractional Minimization, 2023,
    arXiv:2201.12691.
    """

    mode: AbstractMode = Direct()
    selection: AbstractSelection | GreedyDecrease = eqx.field(default_factory=Random)
    lipschitz: Float[Array, "..."] | None = eqx.field(
        converter=lambda x: None if x is None else jnp.asarray(x), default=None
    )
    proximal_weight: Scalar = scalar_field(1e-6)
    normalize_every: int | None = None
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Fractional,)

    def __check_init__(self):
        checks.instance("mode", self.mode, AbstractMode, "Direct()")
        if not isinstance(self.selection, AbstractSelection | GreedyDecrease):
            raise TypeError(f"selection must be an object such as Random(), got {self.selection!r}")
        if self.lipschitz is not None:
            checks.positive("lipschitz", self.lipschitz)
        checks.positive("proximal_weight", self.proximal_weight)
        if self.normalize_every is not None:
            checks.count("normalize_every", self.normalize_every)

    def init(self, problem, x, key):
        if not (isinstance(x, jax.Array) and x.ndim == 1) or jnp.iscomplexobj(x):
            raise TypeError(f"coordinates are those of one real vector, got {x!r}")
        if not isinstance(problem.denominator, AbstractDenominator):
            raise TypeError(
                "the denominator must be known along coordinates, such as SumOfMagnitudes(G), got "
                f"{problem.denominator!r}"
            )
        _along(problem.nonsmooth, x)
        if _known(problem.smooth, self.lipschitz):
            bounds = coordinate_bounds(self.lipschitz, problem.smooth, x)
        else:
            bounds = jnp.ones_like(x)
        infinity = jnp.asarray(jnp.inf, x.dtype)
        model = coordinate_model(problem.smooth)
        return _State(model, bounds, jnp.asarray(0, jnp.int32), key, infinity)

    def refresh(self, problem, x, state):
        fresh = self.init(problem, x, state.key)
        kept = lambda s: (s.sweeps, s.error)
        return eqx.tree_at(kept, fresh, kept(state))

    def step(self, problem, x, state):
        model, g, h = state.model, problem.denominator, problem.nonsmooth
        key, draw = jax.random.split(state.key)
        parts = _along(h, x)
        theta = 1 + self.proximal_weight.astype(x.dtype)
        searched = not _known(problem.smooth, self.lipschitz)
        order = None
        if isinstance(self.selection, AbstractSelection):
            order = self.selection.order(state.bounds, draw)

        def look(x, z, kept, i, bound, value):
            own = [part[i] for part in parts]
            slope = model.partial(x, z, i)
            top = Numerator(value, slope, theta * bound, x[i], *own)
            return minimize_line(self.mode, g, g.breakpoints(x, kept, i), top)

        def search(x, z, kept, i, bound, smooth, value):
            """The least bound, up to a factor of 2, that holds along the move."""
            slope = model.partial(x, z, i)
            rounding = 8 * jnp.finfo(x.dtype).eps * jnp.abs(smooth)
            most = jnp.finfo(x.dtype).max / 4

            def attempt(carry):
                bound, _, _ = carry
                bound = 2 * bound
                e, _ = look(x, z, kept, i, bound, value)
                moved, after = x.at[i].add(e), model.move(z, i, e)
                bent = model.value(moved, after) - smooth - e * slope
                enough = bent <= 0.5 * bound * e * e
                turned = e * (model.partial(moved, after, i) - slope) <= bound * e * e
                # Of differences below the rounding of the values only slopes still tell.
                held = jnp.where(jnp.abs(bent) <= rounding, turned, enough)
                return bound, e, held | ~jnp.isfinite(e)

            more = lambda carry: ~carry[2] & (carry[0] < most)
            start = (jnp.maximum(bound / 4, jnp.finfo(x.dtype).tiny * 16), 0 * slope, False)
            start = jax.tree.map(jnp.asarray, start)
            bound, e, _ = loops.while_loop(more, attempt, start)
            return e, bound

        def visit(t, carry):
            x, z, kept, bounds = carry
            smooth = model.value(x, z)
            value = smooth if h is None else smooth + h(x)
            if order is None:
                every = jnp.arange(x.size)
                one = lambda i, bound: look(x, z, kept, i, bound, value)
                moves, falls = jax.vmap(one)(every, bounds)
                # Below the rounding of the values the longest move tells instead.
                direct = isinstance(self.mode, Direct)
                size = problem.objective(x) if direct else value
                tell = jnp.max(falls) > 64 * jnp.finfo(x.dtype).eps * jnp.abs(size)
                i = jnp.argmax(jnp.where(tell, falls, jnp.abs(moves) * jnp.sqrt(bounds)))
            else:
                i = order[t]
            if searched:
                e, bound = search(x, z, kept, i, bounds[i], smooth, value)
                bounds = bounds.at[i].set(jnp.where(e == 0, bounds[i], bound))
            else:
                e, _ = look(x, z, kept, i, bounds[i], value)
            x = x.at[i].set(jnp.clip(x[i] + e, parts[2][i], parts[3][i]))
            return x, model.move(z, i, e), g.move(kept, i, e), bounds

        fine = jnp.isfinite(problem.objective(x))
        start = (x, model.predictions(x), g.keep(x), state.bounds)
        new, _, _, bounds = loops.fori_loop(0, x.size, visit, start)
        sweeps = state.sweeps + 1
        if self.normalize_every is not None:
            size = tree.norm(new)
            short = new / jnp.where(size > 0, size, 1)
            now = problem.objective(new)
            slack = 8 * jnp.finfo(x.dtype).eps * jnp.abs(now)
            due = (sweeps % self.normalize_every == 0) & (problem.objective(short) <= now + slack)
            new = jnp.where(due, short, new)
        error = jnp.where(fine, tree.norm(problem.residual(new)), jnp.nan)
        return new, _State(model, bounds, sweeps, key, error)

    def error(self, problem, x, state):
        return state.error


class _Difference(eqx.Module):
    """$f(x) - w\\, \\phi(g(x))$."""

    smooth: Callable[[PyTree[Array]], Array]
    denominator: Callable[[PyTree[Array]], Array]
    weight: Float[Array, ""]
    root: bool

    def __call__(self, x):
        bottom = self.denominator(x)
        if self.root:
            inside = bottom > 0
            bottom = jnp.where(inside, jnp.sqrt(jnp.where(inside, bottom, 1)), jnp.nan)
        return self.smooth(x) - self.weight * bottom


class _OuterState(eqx.Module):
    key: PRNGKeyArray
    error: Float[Array, ""]


class AbstractSequence(AbstractSolver):
    """A sequence of problems without a ratio, each solved from the last one's solution."""

    inner: eqx.AbstractVar[AbstractSolver]

    def __check_init__(self):
        checks.instance("inner", self.inner, AbstractSolver, "ProximalGradient()")

    @abc.abstractmethod
    def replaced(self, problem: Fractional, x: PyTree[Array]) -> _Difference:
        """The smooth part of the next problem."""

    def init(self, problem, x, key):
        return _OuterState(key, jnp.asarray(jnp.inf, tree.real_dtype(x)))

    def step(self, problem, x, state):
        key, draw = jax.random.split(state.key)
        nonsmooth = Zero() if problem.nonsmooth is None else problem.nonsmooth
        inner = Composite(self.replaced(problem, x), nonsmooth)
        new = solve(inner, self.inner, x, key=draw).value
        # Away from the domain, or uphill, is nowhere to go.
        now = problem.objective(x)
        slack = 8 * jnp.finfo(now.dtype).eps * jnp.abs(now)
        better = problem.objective(new) <= now + slack
        x = tree.where(better, new, x)
        return x, _OuterState(key, tree.norm(problem.residual(x)))

    def error(self, problem, x, state):
        return state.error


def _inner():
    return eqx.field(default_factory=lambda: ProximalGradient(tol=1e-10, max_steps=100))


class Dinkelbach(AbstractSequence):
    """Dinkelbach's method: $x \\leftarrow \\arg\\min f + h - F(x)\\, g$, by another solver.

    Superlinear if that is solved well. The error is the norm of the problem's residual.

    **Arguments:**

    - `inner`: a solver of `Composite` problems; with `ProximalGradient`, the proximal Dinkelbach
      algorithm.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Dinkelbach, On Nonlinear Fractional Programming, 1967. Yuan, Coordinate Descent
    Methods for Fractional Minimization, 2023, arXiv:2201.12691.
    """

    inner: AbstractSolver = _inner()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 500
    problems = (Fractional,)

    def replaced(self, problem, x):
        return _Difference(problem.smooth, problem.denominator, problem.objective(x), False)


class QuadraticTransform(AbstractSequence):
    """The quadratic transform: with $y = \\sqrt{g(x)} / (f(x) + h(x))$, $x \\leftarrow \\arg\\min
    f + h - \\tfrac2y \\sqrt g$, by another solver.

    The error is the norm of the problem's residual.

    **Arguments:**

    - `inner`, `tol`, `max_steps`: as in `Dinkelbach`.

    **Reference:** Shen, Yu, Fractional Programming for Communication Systems, Part I, 2018,
    arXiv:1802.10192. Yuan, Coordinate Descent Methods for Fractional Minimization, 2023,
    arXiv:2201.12691.
    """

    inner: AbstractSolver = _inner()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (Fractional,)

    def replaced(self, problem, x):
        ratio, bottom = problem.objective(x), problem.denominator(x)
        weight = 2 * ratio * jnp.sqrt(jnp.where(bottom > 0, bottom, jnp.nan))
        return _Difference(problem.smooth, problem.denominator, weight, True)


class _LinearizedState(eqx.Module):
    lipschitz: Float[Array, ""]
    error: Float[Array, ""]


class ProximalSubgradientRatio(AbstractSolver):
    """The proximal step with a linear denominator, $x \\leftarrow \\mathrm{prox}_{h / L}(x -
    (\\nabla f(x) - F(x)\\, s) / L)$ with a subgradient $s$ of $g$.

    $L$ is halved each step, and then doubled until $f$ is below its model and $F$ does not rise.
    The error is the norm of the problem's residual.

    **Arguments:**

    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Boţ, Csetnek, Proximal-gradient Algorithms for Fractional Programming, 2017,
    arXiv:1601.08166. Yuan, Coordinate Descent Methods for Fractional Minimization, 2023,
    arXiv:2201.12691.
    """

    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 20_000
    problems = (Fractional,)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        return _LinearizedState(jnp.asarray(1.0, dtype), jnp.asarray(jnp.inf, dtype))

    def step(self, problem, x, state):
        value, gradient = tree.value_and_gradient(problem.smooth, x)
        ratio = problem.objective(x)
        slope = tree.axpy(gradient, -ratio, problem.subgradient(x))
        limits = jnp.finfo(state.lipschitz.dtype)
        rounding = 8 * limits.eps

        def trial(bound):
            forward = tree.axpy(x, -1 / bound, slope)
            if problem.nonsmooth is None:
                return forward
            return tree.cast_like(problem.nonsmooth.prox(forward, 1 / bound), x)

        def held(bound) -> Bool[Array, ""]:
            new = trial(bound)
            move = jax.tree.map(jnp.subtract, new, x)
            square = tree.vdot(move, move)
            bent = problem.smooth(new) - value - tree.vdot(gradient, move)
            enough = bent <= 0.5 * bound * square
            turn = jax.tree.map(jnp.subtract, tree.gradient(problem.smooth, new), gradient)
            turned = tree.vdot(turn, move) <= bound * square
            enough = jnp.where(jnp.abs(bent) <= rounding * jnp.abs(value), turned, enough)
            return enough & (problem.objective(new) <= ratio * (1 + rounding))

        fine = jnp.isfinite(ratio)
        bound = jnp.maximum(state.lipschitz / 2, jnp.sqrt(limits.tiny))
        more = lambda bound: ~held(bound) & fine & (bound < limits.max / 4)
        bound = loops.while_loop(more, lambda bound: 2 * bound, bound)
        x = trial(bound)
        error = jnp.where(fine, tree.norm(problem.residual(x)), jnp.nan)
        return x, _LinearizedState(bound, error)

    def error(self, problem, x, state):
        return state.error
