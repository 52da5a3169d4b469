"""The averaged method of multipliers: bilevel problems in a single loop."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    Bilevel,
    BilevelPoint,
    Scalar,
    StochasticBilevel,
    checks,
    scalar_field,
    tree,
)
from ..core.confirm import confirmed, forgotten

Steps = Callable[[Int[Array, ""]], Float[Array, ""]]
_TAU = 1 / 40


class AbstractAveraging(eqx.Module):
    """The weight $\\mu_k$ of the upper level in the lower one."""

    @abc.abstractmethod
    def __call__(self, count: Float[Array, ""]) -> Float[Array, ""]:
        """$\\mu_k$ at step $k = 0, 1, \\dots$"""


class PowerDecay(AbstractAveraging):
    """$\\mu_k = \\mu_0 (k + 1)^{-1/p}$.

    A weight leaves a bias of its own order, and with the paper's $p = 10$ it falls slowly: $0.3$ is
    left of $0.9$ after $6 \\cdot 10^4$ steps. A small $p$ makes it fall fast.

    **Arguments:**

    - `start`: $\\mu_0 \\in [0, 1]$.
    - `power`: $p > 0$.
    """

    start: Scalar = scalar_field(0.9)
    power: Scalar = scalar_field(10.0)

    def __check_init__(self):
        checks.interval("start", self.start, 0.0, 1.0)
        checks.positive("power", self.power)

    def __call__(self, count):
        return self.start * (count + 1) ** (-1 / self.power)


class HarmonicDecay(AbstractAveraging):
    """$\\mu_k = \\mu_{k-1} (k + 1) / (k + 2)$, that is $\\mu_k = 2 \\mu_0 / (k + 2)$.

    **Arguments:**

    - `start`: $\\mu_0 \\in [0, 1]$.
    """

    start: Scalar = scalar_field(0.9)

    def __check_init__(self):
        checks.interval("start", self.start, 0.0, 1.0)

    def __call__(self, count):
        return 2 * self.start / (count + 2)


class ConstantAveraging(AbstractAveraging):
    """$\\mu_k = \\mu$. Zero is the fully single-loop method, for lower levels that are strongly
    convex.

    **Arguments:**

    - `weight`: $\\mu \\in [0, 1]$.
    """

    weight: Scalar = scalar_field(0.0)

    def __check_init__(self):
        checks.interval("weight", self.weight, 0.0, 1.0)

    def __call__(self, count):
        return jnp.asarray(self.weight, count.dtype)


class ExactMultiplierStep(eqx.Module):
    """Step the multiplier to the minimum along its direction, $\\eta_k = \\|r\\|^2 / r^\\top H r$
    with $r = H v - \\nabla_y F$ and $H = \\nabla_{yy} \\psi_\\mu$, for one more product a step.
    Where $r^\\top H r$ is not positive the step is that of the lower variable."""


class _Directions(NamedTuple):
    upper: PyTree[Array]
    lower: PyTree[Array]
    multiplier: PyTree[Array]


class _Level(NamedTuple):
    """Of one level $g$: its gradients, and those of $\\langle\\nabla_y g, v\\rangle$."""

    in_upper: PyTree[Array]
    in_lower: PyTree[Array]
    cross: PyTree[Array]
    curved: PyTree[Array]


def _level(fun, point: BilevelPoint) -> _Level:
    pair = point.upper, point.lower
    in_upper, in_lower = tree.gradient(lambda p: fun(*p), pair)
    slope = lambda p: tree.gradient(lambda y: fun(p[0], y), p[1])
    cross, curved = tree.gradient(lambda p: tree.vdot(slope(p), point.multiplier), pair)
    return _Level(in_upper, in_lower, cross, curved)


def _mixed(weight, a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """$\\mu a + (1 - \\mu) b$."""
    return tree.axpy(tree.scale(a, weight), 1 - weight, b)


def _minus(a, b):
    return jax.tree.map(jnp.subtract, a, b)


class _Way(NamedTuple):
    """What an order moves with: the three problems, one for each direction, and the weight."""

    problems: tuple[Bilevel, Bilevel, Bilevel]  # of the lower, the multiplier, the upper
    weight: Float[Array, ""]
    move: Callable[..., PyTree[Array]]


class _Seen(NamedTuple):
    """The directions of a step, with the weight and with zero in its place."""

    averaged: _Directions
    plain: _Directions


def _directions(problem: Bilevel, point: BilevelPoint, weight) -> _Seen:
    """All three at a point."""
    F, f = _level(problem.upper, point), _level(problem.lower, point)
    cross, curved = (_mixed(weight, *pair) for pair in ((F.cross, f.cross), (F.curved, f.curved)))
    lower = _mixed(weight, F.in_lower, f.in_lower)
    return _Seen(
        _Directions(_minus(F.in_upper, cross), lower, _minus(curved, F.in_lower)),
        _Directions(_minus(F.in_upper, f.cross), f.in_lower, _minus(f.curved, F.in_lower)),
    )


class AbstractOrder(eqx.Module):
    """In which order the three variables move."""

    @abc.abstractmethod
    def visit(self, way: _Way, point: BilevelPoint) -> tuple[BilevelPoint, _Seen]:
        """The point after one step, and the directions on the way."""


def _joined(lower: _Seen, multiplier: _Seen, upper: _Seen) -> _Seen:
    pick = lambda a, b, c: _Directions(c.upper, a.lower, b.multiplier)
    return _Seen(*map(pick, lower, multiplier, upper))


class Simultaneous(AbstractOrder):
    """All directions at the old point, then all moves: the paper's."""

    def visit(self, way, point):
        one = way.problems[0]
        if all(problem is one for problem in way.problems):
            seen = _directions(one, point, way.weight)
        else:
            seen = _joined(*(_directions(p, point, way.weight) for p in way.problems))
        moved = {name: way.move(name, point, seen.averaged) for name in BilevelPoint._fields}
        return BilevelPoint(**moved), seen


class Sequential(AbstractOrder):
    """The lower variable, then the multiplier, then the upper, each seeing those before. It allows
    larger upper steps, and is not the paper's."""

    def visit(self, way, point):
        parts = []
        for problem, name in zip(way.problems, ("lower", "multiplier", "upper"), strict=True):
            seen = _directions(problem, point, way.weight)
            parts.append(seen)
            point = point._replace(**{name: way.move(name, point, seen.averaged)})
        return point, _joined(*parts)


class _State(eqx.Module):
    count: Int[Array, ""]
    samples: Int[Array, ""]
    key: PRNGKeyArray
    stationarity: Float[Array, ""]
    error: Float[Array, ""]


class BAMM(AbstractSolver[Bilevel | StochasticBilevel, _State]):
    """Averaged method of multipliers in a single loop, sl-BAMM, for lower levels that need not be
    strongly convex.

    The upper level, strongly convex in $y$, is mixed into the lower one,

    $$\\psi_\\mu = \\mu F + (1 - \\mu) f, \\qquad \\mu_k \\to 0,$$

    so that its Hessian is positive definite however flat $f$ is, and of the many lower solutions
    the limit is the one that is best for $F$. A step takes from one point $(x, y, v)$

    $$d_y = \\nabla_y \\psi_\\mu, \\qquad d_v = \\nabla_{yy} \\psi_\\mu\\, v - \\nabla_y F, \\qquad
      d_x = \\nabla_x F - \\nabla_{xy} \\psi_\\mu\\, v,$$

    and moves $y \\leftarrow y - \\beta_k d_y$, $v \\leftarrow v - \\eta_k d_v$,
    $x \\leftarrow P_X(x - \\alpha_k d_x)$: a gradient of each level, a Hessian and a cross product
    of each, no inner loop. By default, with $\\tau = 1/40$,

    $$\\beta_k = \\beta, \\qquad \\eta_k = \\beta (k+1)^{-\\tau/2}, \\qquad
      \\alpha_k = \\beta \\mu_k^3 (k+1)^{-3\\tau/2}.$$

    The error is the norm of the problem's residual, in which the weight is zero, at the value. A
    fixed weight, or one that falls slowly, leaves a bias of its own order there, and the solve ends
    at the step limit: `state.stationarity`, which a trace may record, is the norm of
    $(d_x, d_y, d_v)$ with the weight, at the point before. On merely convex lower levels $v$ may
    grow like $1/\\mu$. Upper steps of the order of $\\beta$ diverge where the levels are strongly
    coupled.

    A `StochasticBilevel` is looked at whole, or in batches; then the three directions are of three
    independent batches, nothing tells the error, and it is a quarter of the largest number.

    **Arguments:**

    - `step_size`: $\\beta$, of the lower variable; a number, or a function of $k$ such as an
      `optax` schedule.
    - `averaging`: $\\mu_k$: `PowerDecay()`, `HarmonicDecay()`, `ConstantAveraging()`.
    - `x_step`: $\\alpha_k$, a number or a schedule; `None` for the one above. In practice constant.
    - `multiplier_step`: $\\eta_k$, a number, a schedule, or `ExactMultiplierStep()`; `None` for the
      one above.
    - `order`: `Simultaneous()` or `Sequential()`.
    - `batch`: samples of each level in a batch; `None` for all of them. Of a `Bilevel` there are
      none. `state.samples` counts the losses looked at, of both levels, by all three directions.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` on steps that are not positive, a `batch` below 1, or a problem with a
    lower set.

    **Reference:** Liu, Liu, Yao, Zeng, Zhang, Averaged Method of Multipliers for Bi-Level
    Optimization without Lower-Level Strong Convexity, 2023, arXiv:2302.03407.
    """

    step_size: Scalar | Steps = eqx.field(converter=checks.scalar, default=0.1)
    averaging: AbstractAveraging = eqx.field(default_factory=PowerDecay)
    x_step: Scalar | Steps | None = eqx.field(converter=checks.scalar, default=None)
    multiplier_step: Any = eqx.field(converter=checks.scalar, default=None)
    order: AbstractOrder = eqx.field(default_factory=Simultaneous)
    batch: int | None = eqx.field(static=True, default=None)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (Bilevel, StochasticBilevel)

    def __check_init__(self):
        checks.instance("averaging", self.averaging, AbstractAveraging, "PowerDecay()")
        checks.instance("order", self.order, AbstractOrder, "Simultaneous()")
        for name in ("step_size", "x_step", "multiplier_step"):
            value = getattr(self, name)
            if value is None and name == "step_size":
                raise TypeError("step_size must be a number or a schedule, got None")
            if value is not None and not callable(value):
                if not isinstance(value, ExactMultiplierStep):
                    checks.positive(name, value)
                elif name != "multiplier_step":
                    raise TypeError(f"{name} must be a number or a schedule, got {value!r}")
        if self.batch is not None:
            checks.count("batch", self.batch)

    def init(self, problem, x, key):
        if problem.lower_set is not None:
            raise ValueError("BAMM takes lower levels without a set: put a penalty into `lower`")
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        zero = jnp.asarray(0, jnp.int32)
        return _State(zero, zero, key, infinity, infinity)

    def refresh(self, problem, x, state):
        return forgotten(state)

    def _problems(self, problem, key) -> tuple[tuple[Bilevel, Bilevel, Bilevel], int]:
        """One for each direction, and the samples that they look at."""
        if isinstance(problem, Bilevel):
            return (problem, problem, problem), 0
        if self.batch is None:
            full = problem.full()
            sizes = [len(jax.tree.leaves(d)[0]) for d in (problem.upper_data, problem.lower_data)]
            return (full, full, full), sum(sizes)

        def draw(key):
            upper, lower = jax.random.split(key)
            drawn = problem.draw_upper(upper, self.batch), problem.draw_lower(lower, self.batch)
            return problem.minibatch(*drawn)

        one, two, three = map(draw, jax.random.split(key, 3))
        return (one, two, three), 6 * self.batch

    def step(self, problem, x, state):
        dtype = state.error.dtype
        count = state.count.astype(dtype)
        key, sub = (state.key, state.key) if self.batch is None else jax.random.split(state.key)
        problems, samples = self._problems(problem, sub)
        weight = jnp.asarray(self.averaging(count), dtype)

        def rate(value, default):
            if value is None:
                return jnp.asarray(default, dtype)
            return jnp.asarray(value(state.count) if callable(value) else value, dtype)

        beta = rate(self.step_size, 0)
        rates = {
            "lower": lambda *_: beta,
            "multiplier": lambda point, r: (
                self._exact(problems[1], point, r, weight, beta)
                if isinstance(self.multiplier_step, ExactMultiplierStep)
                else rate(self.multiplier_step, beta * (count + 1) ** (-_TAU / 2))
            ),
            "upper": lambda *_: rate(self.x_step, beta * weight**3 * (count + 1) ** (-1.5 * _TAU)),
        }

        def move(name, point, directions):
            old, direction = getattr(point, name), getattr(directions, name)
            new = tree.cast_like(tree.axpy(old, -rates[name](point, direction), direction), old)
            if name == "upper" and problem.upper_set is not None:
                return tree.cast_like(problem.upper_set.project(new), old)
            return new

        value, (averaged, plain) = self.order.visit(_Way(problems, weight, move), x)
        stationarity = tree.norm(averaged).astype(dtype)
        # Of batches nothing is known, and an infinite error would count as divergence.
        error = jnp.asarray(0.25 * jnp.finfo(dtype).max, dtype)
        if problems[0] is problems[1]:
            plain = plain._replace(upper=problems[0].upper_gap(x.upper, plain.upper))
            estimate = tree.norm(plain).astype(dtype)
            error = confirmed(problem, value, estimate, state.error, self.tol).astype(dtype)
        return value, _State(state.count + 1, state.samples + samples, key, stationarity, error)

    def _exact(self, problem, point, r, weight, default):
        mixed = lambda y: _mixed(
            weight,
            tree.gradient(lambda y: problem.upper(point.upper, y), y),
            tree.gradient(lambda y: problem.lower(point.upper, y), y),
        )
        along = tree.vdot(r, jax.jvp(mixed, (point.lower,), (r,))[1])
        return jnp.where(along > 0, tree.vdot(r, r) / jnp.where(along > 0, along, 1), default)

    def error(self, problem, x, state):
        return state.error
