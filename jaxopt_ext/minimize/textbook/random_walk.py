"""Random walks in convex bodies, and minimization by their samples."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...core import AbstractSolver, Constrained, Scalar, Smooth, Status, checks, loops, tree
from ...core.confirm import confirmed, forgotten
from ...core.solver import scalar_field
from .. import _cubic
from ..proximal_gradient import smooth_part
from .centroid import AbstractCentroid

Points = Float[Array, "k n"]
_WINDOW = 40.0  # in standard deviations of the points, along a direction


class AbstractBody(eqx.Module):
    """A bounded convex set, known by its chords."""

    @abc.abstractmethod
    def chord(
        self, x: Float[Array, " n"], direction: Float[Array, " n"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The least and the largest $t$ with $x + t d$ in the body, for an $x$ in it."""


class Polytope(AbstractBody):
    """$\\{x : Ax \\le b\\}$, bounded; a chord ends where its ray meets a row.

    **Arguments:**

    - `matrix`: $A$, shape `(m, n)`. Rows of zeros beside $b \\ge 0$ are not there.
    - `rhs`: $b$, shape `(m,)`.

    **Raises:** `ValueError` if the shapes do not fit.
    """

    matrix: Float[Array, "m n"] = eqx.field(converter=jnp.asarray)
    rhs: Float[Array, " m"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        if self.matrix.ndim != 2 or self.matrix.shape[:1] != self.rhs.shape:
            raise ValueError(
                f"matrix and rhs do not fit: shapes {self.matrix.shape} and {self.rhs.shape}"
            )

    def chord(self, x, direction):
        room = jnp.maximum(self.rhs - self.matrix @ x, 0)
        speed = self.matrix @ direction
        ends = room / jnp.where(speed == 0, 1, speed)
        far = jnp.finfo(room.dtype).max
        high = jnp.min(jnp.where(speed > 0, ends, far), initial=far)
        return jnp.max(jnp.where(speed < 0, ends, -far), initial=-far), high


class Ball(AbstractBody):
    """$\\{x : |x - c| \\le R\\}$.

    **Arguments:**

    - `center`: $c$, shape `(n,)`.
    - `radius`: $R > 0$.

    **Raises:** `ValueError` unless $R$ is positive.
    """

    center: Float[Array, " n"] = eqx.field(converter=jnp.asarray)
    radius: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.positive("radius", self.radius)

    def chord(self, x, direction):
        length = jnp.linalg.norm(direction)
        unit = direction / jnp.where(length > 0, length, 1)
        away = x - self.center
        along = jnp.vdot(away, unit)
        radius = jnp.asarray(self.radius, x.dtype)
        half = jnp.sqrt(jnp.maximum(radius**2 - jnp.vdot(away, away) + along**2, 0))
        scale = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
        return jnp.minimum(-along - half, 0) * scale, jnp.maximum(half - along, 0) * scale


class ConvexBody(AbstractBody):
    """The part of a convex set that is in a ball, known by whether points are in it; a chord's
    ends are found by bisection.

    **Arguments:**

    - `contains`: `x -> bool`; `contains` of a set of `jaxopt_ext.prox` for instance.
    - `ball`: a `Ball`.
    - `bisections`: how many; static. Ends are inside.
    """

    contains: Callable[[Float[Array, " n"]], Bool[Array, ""]]
    ball: Ball
    bisections: int = eqx.field(static=True, default=40)

    def __check_init__(self):
        checks.instance("ball", self.ball, Ball, "Ball(center, 1.0)")
        checks.count("bisections", self.bisections)

    def chord(self, x, direction):
        def end(outside):
            def halve(_, pair):
                inside, outside = pair
                middle = 0.5 * (inside + outside)
                there = self.contains(x + middle * direction)
                return jnp.where(there, middle, inside), jnp.where(there, outside, middle)

            whole = self.contains(x + outside * direction)
            inside, _ = loops.fori_loop(0, self.bisections, halve, (0 * outside, outside))
            return jnp.where(whole, outside, inside)

        low, high = jax.vmap(end)(jnp.stack(self.ball.chord(x, direction)))
        return low, high


def _root(points: Points) -> Float[Array, "n n"]:
    """A root of the covariance of the points, and of a little of each other direction."""
    apart = points - jnp.mean(points, axis=0)
    size = jnp.sqrt(jnp.mean(apart**2))
    apart = apart / jnp.where(size > 0, size, 1)
    eye = jnp.eye(points.shape[1], dtype=points.dtype)
    factor = jnp.linalg.cholesky(apart.T @ apart / points.shape[0] + 1e-6 * eye)
    return size * jnp.where(jnp.all(jnp.isfinite(factor)), factor, eye)


def hit_and_run(
    body: AbstractBody,
    points: Points,
    key: PRNGKeyArray,
    num_steps: int,
    energy: Callable[[Float[Array, " n"]], Float[Array, ""]] | None = None,
    shrinks: int = 40,
) -> Points:
    """Hit-and-run: chains that move to random points of random chords.

    In each step each chain draws a direction, normal with the covariance that all points have at
    the start, which makes the walk the same in all units, and moves to a point of the chord through
    it: uniform, or with density $e^{-E}$ along the chord. The latter is by slices: a level above
    $E(x)$ is drawn, and points of the chord, at most 40 standard deviations of it, each time of
    what is left between the last one and $x$, until one is below the level; so only values are
    asked, and nothing is tuned.
    The law of density $e^{-E}$ on the body is left as it is.

    **Arguments:**

    - `body`: `Polytope(A, b)`, `Ball(c, R)`, `ConvexBody(contains, ball)`.
    - `points`: one for each chain, in the body; shape `(k, n)`. More than $n$ of them, not all in
      one plane.
    - `key`: for the directions and points.
    - `num_steps`: steps of each chain.
    - `energy`: $E$, `x -> scalar`; infinite or NaN where the chain must not go. Uniform if `None`.
    - `shrinks`: points tried on a slice; a chain that finds none stays.

    **Returns:** the points after the last step, shape `(k, n)`.

    **Raises:** `TypeError`, `ValueError` for arguments of the wrong kind or shape.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Smith, Efficient Monte Carlo Procedures for Generating Points Uniformly Distributed over Bounded
    Regions, 1984. Lovász, Hit-and-Run Mixes Fast, 1999. Neal, Slice Sampling, 2003,
    arXiv:physics/0009028.
    """
    checks.instance("body", body, AbstractBody, "Polytope(A, b)")
    checks.count("num_steps", num_steps)
    checks.count("shrinks", shrinks)
    points = jnp.asarray(points)
    if points.ndim != 2:
        raise ValueError(f"points must have shape (k, n), got {points.shape}")
    root = _root(points)

    def uniform(key, low, high):
        share = jax.random.uniform(key, low.shape, low.dtype)
        return low + share * (high - low)

    def slice_of(x, direction, low, high, energy, key):
        now, place, key = jax.random.split(key, 3)
        level = energy(x)
        level = level + jax.random.exponential(now, level.shape, level.dtype)
        # A window that holds the point anywhere leaves the law as it is, and the long chords of
        # cold samples need not be tried from end to end.
        share = jax.random.uniform(place, low.shape, low.dtype)
        low = jnp.maximum(low, -_WINDOW * share)
        high = jnp.minimum(high, _WINDOW * (1 - share))

        def visit(carry):
            low, high, _, tries, key, _ = carry
            now, key = jax.random.split(key)
            t = uniform(now, low, high)
            found = energy(x + t * direction) <= level
            low, high = jnp.where(t < 0, t, low), jnp.where(t < 0, high, t)
            return low, high, t, tries + 1, key, found

        running = lambda carry: ~carry[5] & (carry[3] < shrinks)
        first = (low, high, 0 * low, jnp.asarray(0, jnp.int32), key, jnp.asarray(False))
        _, _, t, _, _, found = loops.while_loop(running, visit, first)
        return jnp.where(found, t, 0)

    def visit(_, carry):
        points, key = carry
        some, other, key = jax.random.split(key, 3)
        directions = jax.random.normal(some, points.shape, points.dtype) @ root.T
        low, high = jax.vmap(body.chord)(points, directions)
        if energy is None:
            t = uniform(other, low, high)
        else:
            keys = jax.random.split(other, points.shape[0])
            one = lambda x, d, low, high, key: slice_of(x, d, low, high, energy, key)
            t = jax.vmap(one)(points, directions, low, high, keys)
        return points + t[:, None] * directions, key

    return loops.fori_loop(0, num_steps, visit, (points, key))[0]


class _Rows(eqx.Module):
    """Half-spaces $a^\\top y \\le b$ around the centroid at zero, and points between them."""

    matrix: Float[Array, "m n"]
    rhs: Float[Array, " m"]
    points: Points


class SampledCentroid(AbstractCentroid):
    """The mean of random points of the body, kept uniform by a random walk from cut to cut.

    As the centroid of `CenterOfGravity` it makes the cutting plane method of Bertsimas and Vempala:
    $O(n)$ points make a cut through their mean that leaves at most $2/3$ of the volume, in
    expectation. After a cut the points that are left start the walk, `hit_and_run`, to fresh ones.

    The half-spaces are kept in an array of fixed length. When it is full the one that is farthest
    from all points, in their standard deviations, is forgotten, which makes the body larger by next
    to nothing.

    **Arguments:**

    - `num_samples`: points; by default $10 (n + 1)$.
    - `num_steps`: steps of the walk between cuts; by default $2 n + 4$.
    - `max_rows`: half-spaces kept; by default $8 (n + 1)$, at least $2 n + 1$.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Bertsimas, Vempala, Solving Convex Programs by Random Walks, 2004.
    """

    num_samples: int | None = eqx.field(static=True, default=None)
    num_steps: int | None = eqx.field(static=True, default=None)
    max_rows: int | None = eqx.field(static=True, default=None)
    ratio = 2 / 3

    def __check_init__(self):
        for name in ("num_samples", "num_steps", "max_rows"):
            if getattr(self, name) is not None:
                checks.count(name, getattr(self, name), minimum=1 if name == "num_steps" else 3)

    def start(self, dimension, radius, key):
        samples = self.num_samples or 10 * (dimension + 1)
        rows = self.max_rows or 8 * (dimension + 1)
        if samples < 2 * (dimension + 1) or rows < 2 * dimension + 1:
            raise ValueError(
                f"{dimension} unknowns need at least {2 * dimension + 2} samples and "
                f"{2 * dimension + 1} rows, got {samples} and {rows}"
            )
        eye = jnp.eye(dimension, dtype=radius.dtype)
        matrix = jnp.zeros((rows, dimension), radius.dtype)
        matrix = matrix.at[: 2 * dimension].set(jnp.concatenate([eye, -eye]))
        points = jax.random.uniform(key, (samples, dimension), radius.dtype, -1, 1)
        return _Rows(matrix, jnp.full(rows, radius), radius * points)

    def cut(self, body, normal, key):
        choose, walk = jax.random.split(key)
        points, count = body.points, body.points.shape[0]
        # The row that matters least makes place; rows of zeros never matter.
        room = body.rhs - points @ body.matrix.T
        apart = points - jnp.mean(points, axis=0)
        spread = jnp.sqrt(jnp.mean((apart @ body.matrix.T) ** 2, axis=0))
        loose = jnp.min(room, axis=0) / jnp.where(spread > 0, spread, 1)
        empty = ~jnp.any(body.matrix != 0, axis=1)
        place = jnp.argmax(jnp.where(empty, jnp.inf, loose))
        matrix = body.matrix.at[place].set(normal)
        rhs = body.rhs.at[place].set(0)
        left = points @ normal <= 0
        some = jnp.any(left)
        logits = jnp.where(left | ~some, 0, -jnp.inf)
        others = jax.random.categorical(choose, logits, shape=(count,))
        points = jnp.where(left[:, None], points, points[others])
        steps = self.num_steps or 2 * normal.shape[0] + 4
        points = hit_and_run(Polytope(matrix, rhs), points, walk, steps)
        move = jnp.mean(points, axis=0)
        return move, _Rows(matrix, rhs - matrix @ move, points - move), some

    def least(self, body, slope):
        return None


class _Annealed(eqx.Module):
    center: Float[Array, " n"]
    points: Points
    temperature: Float[Array, ""]
    best: Float[Array, ""]
    key: PRNGKeyArray
    error: Float[Array, ""]
    cold: Bool[Array, ""]


class SimulatedAnnealing(AbstractSolver):
    """Simulated annealing: samples of $e^{-f / T}$ on a convex body, colder in each step,

    $$T \\leftarrow T (1 - 1 / \\sqrt n),$$

    by `hit_and_run` from the samples of the last temperature, whose covariance gives the
    directions. Only values of $f$ are asked for this. The body is the ball of the given radius
    around the start, cut with the set of a `Constrained` problem, which needs an interior. The
    value is the best sample so far.

    **Theorem.** For a convex $f$ a sample has $\\mathbb E f(x) - f^* \\le n T$, so that
    $\\tilde O(\\sqrt n)$ temperatures suffice; `guarantee` is that of exact samples.

    The error is $n T$, and, only where this passes, the larger of it and the norm of the problem's
    residual at the value, which differentiates $f$ unless `confirm=False` forbids it: then, and
    for a function with a kink at its minimizer, no solve ends as converged. A temperature
    that rounding of $f$ does not see ends the solve as `Status.breakdown`, at the best value.

    **Arguments:**

    - `radius`: $R > 0$ of the ball.
    - `temperature`: $T > 0$ at the start, of the size of the range of $f$.
    - `cooling`: the factor in (0, 1) in the place of $1 - 1 / \\sqrt n$.
    - `num_chains`: samples; by default $4 (n + 1)$.
    - `num_steps`: steps of the walk at a temperature; by default $8 n + 16$.
    - `confirm`: whether the residual may be asked.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for numbers out of these ranges.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Kalai, Vempala, Simulated Annealing for Convex Optimization, 2006.
    """

    radius: Scalar = eqx.field(converter=checks.scalar)
    temperature: Scalar = scalar_field(1.0)
    cooling: Scalar | None = scalar_field(None)
    num_chains: int | None = eqx.field(static=True, default=None)
    num_steps: int | None = eqx.field(static=True, default=None)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 200
    confirm: bool = eqx.field(static=True, default=True)
    problems = (Smooth, Constrained)

    def __check_init__(self):
        checks.positive("radius", self.radius)
        checks.positive("temperature", self.temperature)
        if self.cooling is not None:
            checks.interval("cooling", self.cooling, 0, 1, open_low=True, open_high=True)
        for name in ("num_chains", "num_steps"):
            if getattr(self, name) is not None:
                checks.count(name, getattr(self, name))

    def _factor(self, dimension):
        if self.cooling is not None:
            return self.cooling
        return 1 - 1 / math.sqrt(dimension) if dimension > 1 else 0.5

    def guarantee(self, steps: Any, constants: Any) -> Any:
        """$n T_0 (1 - 1/\\sqrt n)^t$, in expectation."""
        (n,) = constants.need("dimension")
        return n * self.temperature * self._factor(n) ** jnp.asarray(steps, float)

    def _energy(self, problem, x):
        """$f$ on the set, as a function of vectors."""
        fun = smooth_part(problem)[0]
        flat = _cubic.flatten(fun, x)
        if isinstance(problem, Smooth):
            return flat, flat.fun

        def energy(v):
            away = v - _vector(problem.feasible.project(flat.unravel(v)))
            there = jnp.linalg.norm(away) <= 8 * jnp.finfo(v.dtype).eps * jnp.linalg.norm(v)
            return jnp.where(there, flat.fun(v), jnp.inf)

        return flat, energy

    def init(self, problem, x, key):
        flat, _ = self._energy(problem, x)
        n, dtype = flat.x.size, flat.x.dtype
        chains = self.num_chains or 4 * (n + 1)
        if chains < n + 2:
            raise ValueError(f"{n} unknowns need at least {n + 2} chains, got {chains}")
        first, out, key = jax.random.split(key, 3)
        normal = jax.random.normal(first, (chains, n), dtype)
        length = jnp.linalg.norm(normal, axis=1, keepdims=True)
        share = jax.random.uniform(out, (chains, 1), dtype) ** (1 / n)
        center = flat.x
        points = center + jnp.asarray(self.radius, dtype) * share * normal / length
        if isinstance(problem, Constrained):
            project = lambda v: _vector(problem.feasible.project(flat.unravel(v)))
            center, points = project(center), jax.vmap(project)(points)
        largest = jnp.asarray(jnp.finfo(dtype).max, dtype)
        temperature = jnp.asarray(self.temperature, dtype)
        cold = jnp.asarray(False)
        return _Annealed(center, points, temperature, largest, key, largest, cold)

    def refresh(self, problem, x, state):
        # The value of the best point is that of the problem as it is now.
        flat, _ = self._energy(problem, x)
        none = state.best == jnp.finfo(state.best.dtype).max
        best = jnp.where(none, state.best, flat.fun(flat.x).astype(state.best.dtype))
        return eqx.tree_at(lambda s: s.best, forgotten(state), best)

    def step(self, problem, x, state):
        flat, energy = self._energy(problem, x)
        n, dtype = state.center.size, state.temperature.dtype
        walk, key = jax.random.split(state.key)
        ball = Ball(state.center, 2 * jnp.asarray(self.radius, dtype))
        if isinstance(problem, Smooth):
            ball = Ball(state.center, jnp.asarray(self.radius, dtype))
        steps, temperature = self.num_steps or 8 * n + 16, state.temperature
        points = hit_and_run(
            ball, state.points, walk, steps, lambda v: energy(v) / temperature.astype(v.dtype)
        )
        values = jax.vmap(flat.fun)(points)
        # A minimum that keeps NaN: where f is not a number nothing is known of it.
        at = jnp.argmin(values)
        better = (values[at] <= state.best) | jnp.isnan(values[at])
        new = jnp.where(better, points[at], flat.x)
        best = jnp.where(better, values[at], state.best).astype(dtype)
        estimate = (n * temperature).astype(dtype)
        value = flat.unravel(new)
        error = confirmed(problem, value, estimate, state.error, self.tol, self.confirm)
        error = jnp.where(jnp.isnan(best), best, error).astype(dtype)
        cold = n * temperature <= jnp.finfo(dtype).eps * jnp.abs(best)
        cooler = temperature * jnp.asarray(self._factor(n), dtype)
        cold = cold | (cooler <= jnp.finfo(dtype).tiny)
        return value, _Annealed(state.center, points, cooler, best, key, error, cold)

    def error(self, problem, x, state):
        return state.error

    def gap(self, problem, x, state):
        """$n T$ of the last step, relative to the value; in expectation."""
        n, dtype = state.center.size, state.temperature.dtype
        last = state.temperature / jnp.asarray(self._factor(n), dtype)
        return n * last / jnp.maximum(jnp.abs(state.best), 1)

    def status(self, problem, x, state):
        return Status.where(state.cold, Status.breakdown, Status.running)


def _vector(x) -> Float[Array, " n"]:
    return ravel_pytree(tree.real_view(x))[0]
