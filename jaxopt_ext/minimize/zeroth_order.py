"""Zeroth-order smoothing: first-order methods of smooth problems, for functions with kinks that can
only be asked for values."""

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractExpectation,
    AbstractInclusion,
    AbstractProblem,
    AbstractSolver,
    Constrained,
    Expectation,
    FiniteSum,
    MinMax,
    PrimalDual,
    Scalar,
    Smooth,
    Status,
    checks,
    scalar_field,
    tree,
)
from ..core.confirm import confirmed, forgotten
from .mirror_descent import AbstractMirrorMap, EntropicOrthant, EntropicSimplex, Euclidean
from .p_norm import PNorm
from .sphere import SphereSmoothing


def _norm_of(geometry: AbstractMirrorMap) -> Any:
    """The $p$ of the norm in which a mirror map is strongly convex with constant 1."""
    if isinstance(geometry, PNorm):
        return geometry.p
    return 1.0 if isinstance(geometry, EntropicSimplex | EntropicOrthant) else 2.0


def _second_moment(dimension: int, lipschitz: Any, norm: Any = 2.0) -> Any:
    """A bound $\\sigma^2$ on $\\mathbb E \\|G\\|_q^2$ of one direction,
    $\\sqrt2\\, d^{2/q} \\min(q, \\ln d) M_2^2$ with $1/p + 1/q = 1$; for $p = 2$ without the
    minimum, $\\sqrt2\\, d M_2^2$; for $p = 1$ it is $\\sqrt2 \\ln(d) M_2^2$.

    **Arguments:**

    - `dimension`: $d$.
    - `lipschitz`: $M_2$.
    - `norm`: $p$ in [1, 2].
    """
    log = max(math.log(dimension), 1.0)
    shares = 2 * (1 - 1 / jnp.asarray(norm))  # 2 / q
    least = jnp.minimum(2 / jnp.maximum(shares, 1e-6), log)
    factor = dimension**shares * jnp.where(shares < 1, least, 1)
    return 2**0.5 * factor * jnp.asarray(lipschitz) ** 2


class ValueOracle(eqx.Module):
    """What a method sees: estimates of the gradient, and steps from a point along one.

    **Attributes:**

    - `problem`, `smoothing`, `geometry`, `lipschitz`: those of the solver.
    """

    problem: AbstractProblem
    smoothing: SphereSmoothing
    geometry: AbstractMirrorMap
    lipschitz: Float[Array, ""]

    def estimate(self, x: PyTree[Array], key: PRNGKeyArray) -> PyTree[Array]:
        """$G(x)$; of a `MinMax`, $(G_x, -G_y)$, from the sphere of the joint space."""
        problem, samples = self.problem, None
        match problem:
            case AbstractExpectation():
                draw, key = jax.random.split(key)
                samples = problem.samples(problem.draw(draw, self.smoothing.batch))
                fun = problem.loss
            case MinMax():
                fun = problem.value
            case Constrained():
                fun = problem.smooth
            case Smooth():
                fun = problem.fun
            case _:
                raise TypeError(f"no function to ask for values in a {type(problem).__name__}")
        gradient = self.smoothing.gradient(fun, x, key, samples)
        if isinstance(problem, MinMax):
            return PrimalDual(gradient.primal, jax.tree.map(jnp.negative, gradient.dual))
        return gradient

    def forward(self, x: PyTree[Array], gradient: PyTree[Array], t: Any) -> PyTree[Array]:
        """$\\arg\\min_u t \\langle G, u\\rangle + t g(u) + D(u, x)$."""
        if isinstance(self.problem, Constrained) or not isinstance(self.geometry, Euclidean):
            return self.geometry.step(self.problem, x, gradient, t)
        return self.prox(tree.axpy(x, -t, gradient), t)

    def prox(self, x: PyTree[Array], t: Any = 1.0) -> PyTree[Array]:
        """The Euclidean prox or projection of the problem; the identity where it has none."""
        match self.problem:
            case Constrained():
                return self.problem.feasible.project(x)
            case AbstractExpectation():
                return self.problem.prox(x, t)
            case AbstractInclusion():
                return self.problem.backward(x, t)
        return x

    def natural(self, x: PyTree[Array], gradient: PyTree[Array]) -> Float[Array, ""]:
        """$\\|x - \\mathrm{prox}_g(x - G)\\|$, an estimate of the problem's residual."""
        if isinstance(self.problem, Smooth):
            return tree.norm(gradient)
        moved = self.prox(jax.tree.map(jnp.subtract, x, gradient))
        return tree.norm(jax.tree.map(jnp.subtract, x, moved))

    def smoothness(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$L = \\sqrt d M_2 / g$."""
        return self.smoothing.smoothness(self.lipschitz, x)

    def moment(self, x: PyTree[Array]) -> Float[Array, ""]:
        """A bound on $\\mathbb E \\|G\\|_q^2$ of a batch, $M_2^2 + \\sigma^2 / b$."""
        d, b = self.smoothing.sphere.dimension(x), self.smoothing.batch
        sigma = _second_moment(d, self.lipschitz, _norm_of(self.geometry)) / b
        return (self.lipschitz**2 + sigma).astype(tree.real_dtype(x))

    def at(self, radius: Float[Array, ""]) -> "ValueOracle":
        """The same with another radius."""
        return dataclasses.replace(
            self, smoothing=dataclasses.replace(self.smoothing, radius=radius)
        )


class AbstractBatchMethod(eqx.Module):
    """A first-order method that is run on estimates of batches of directions.

    `init(oracle, x)` gives its state; `step(oracle, x, state, key)` the next value, the state, and
    the estimate of the residual that it came by.
    """

    takes_saddles = False

    @abc.abstractmethod
    def init(self, oracle: ValueOracle, x: PyTree[Array]) -> PyTree:
        """The state before the first step."""

    @abc.abstractmethod
    def step(
        self, oracle: ValueOracle, x: PyTree[Array], state: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree[Array], PyTree, Float[Array, ""]]:
        """One step."""

    @abc.abstractmethod
    def num_steps(self, smoothness: Any, lipschitz: Any, distance: Any, accuracy: Any) -> Any:
        """Steps that exact gradients would need from a distance $R$ to $f_g - \\min f_g \\le
        \\epsilon / 2$, with $L$ and $M_2$; any positive number."""

    def within(self, distance: Any) -> "AbstractBatchMethod":
        """The same, told how far the solution is."""
        return self


class _Accelerated(eqx.Module):
    point: PyTree[Array]
    weight: Float[Array, ""]


class AcceleratedBatch(AbstractBatchMethod):
    """Accelerated gradients by similar triangles: with $a$ from $a^2 L = A + a$,

    $$y = \\frac{A x + a v}{A + a}, \\qquad
      v^+ = \\arg\\min_u a \\langle G(y), u\\rangle + a g(u) + D(u, v), \\qquad
      x^+ = \\frac{A x + a v^+}{A + a}, \\qquad A^+ = A + a .$$

    Exact gradients give $f_g(x) - \\min f_g \\le 2 L R^2 / N^2$. Noise is amplified by the growing
    $a$, so that a batch that is too small, or an $L$ that is, makes it diverge.
    """

    def init(self, oracle, x):
        return _Accelerated(x, jnp.zeros((), tree.real_dtype(x)))

    def step(self, oracle, x, state, key):
        smoothness, weight = oracle.smoothness(x).astype(state.weight.dtype), state.weight
        a = (1 + jnp.sqrt(1 + 4 * smoothness * weight)) / (2 * smoothness)
        share = a / (weight + a)
        toward = lambda v: tree.axpy(tree.scale(x, 1 - share), share, v)
        y = toward(state.point)
        gradient = oracle.estimate(y, key)
        point = tree.cast_like(oracle.forward(state.point, gradient, a), x)
        return toward(point), _Accelerated(point, weight + a), oracle.natural(y, gradient)

    def num_steps(self, smoothness, lipschitz, distance, accuracy):
        return 2 * distance * (smoothness / accuracy) ** 0.5


class _Mirror(eqx.Module):
    point: PyTree[Array]
    weight: Float[Array, ""]
    count: Int[Array, ""]


class MirrorBatch(AbstractBatchMethod):
    """Mirror descent with averages, the plain stochastic (sub)gradient method,

    $$v^+ = \\arg\\min_u h_k \\langle G(v), u\\rangle + h_k g(u) + D(u, v), \\qquad
      x = \\sum_k h_k v_k \\Big/ \\sum_k h_k, \\qquad h_k = \\frac{R}{M \\sqrt{k + 1}},$$

    with $M^2 = M_2^2 + \\sigma^2 / b$, a bound on $\\mathbb E \\|G\\|^2$. It is the baseline, and
    the one to take where values are noisy or batches small. Any step keeps it stable.

    **Arguments:**

    - `distance`: $R$, a guess of $\\|x_0 - x^*\\|$.
    - `step_size`: a constant step in the place of $h_k$.

    **Raises:** `ValueError` unless both are positive.
    """

    distance: Scalar = scalar_field(1.0)
    step_size: Scalar | None = scalar_field(None)

    def __check_init__(self):
        checks.positive("distance", self.distance)
        if self.step_size is not None:
            checks.positive("step_size", self.step_size)

    def init(self, oracle, x):
        return _Mirror(x, jnp.zeros((), tree.real_dtype(x)), jnp.asarray(0, jnp.int32))

    def step(self, oracle, x, state, key):
        dtype, point = state.weight.dtype, state.point
        if self.step_size is None:
            root = jnp.sqrt(oracle.moment(x).astype(dtype) * (state.count.astype(dtype) + 1))
            h = jnp.asarray(self.distance, dtype) / root
        else:
            h = jnp.asarray(self.step_size, dtype)
        weight = state.weight + h
        value = tree.axpy(tree.scale(x, state.weight / weight), h / weight, point)
        gradient = oracle.estimate(point, key)
        new = tree.cast_like(oracle.forward(point, gradient, h), x)
        return value, _Mirror(new, weight, state.count + 1), oracle.natural(point, gradient)

    def num_steps(self, smoothness, lipschitz, distance, accuracy):
        return 4 * (lipschitz * distance / accuracy) ** 2

    def within(self, distance):
        return dataclasses.replace(self, distance=distance)


class _Restarted(eqx.Module):
    inner: PyTree
    stage: Int[Array, ""]
    left: Int[Array, ""]


class Restarted(AbstractBatchMethod):
    """A method that begins anew wherever it must have halved the distance to the solution.

    It is for functions that grow, $f(x) - \\min f \\ge \\frac\\mu2 \\|x - x^*\\|^r$: strongly
    convex ones with $r = 2$, sharp ones with $r = 1$.

    Stage $k$ starts within $R_k = 2^{-k} R$, ends at the accuracy
    $\\epsilon_k = \\frac\\mu2 R_{k+1}^r$, and smooths with $g_k = \\epsilon_k / (2 M_2)$, but not
    less than the radius given. It takes as many steps as exact gradients need, or
    $c \\sigma^2 R_k^2 / (\\epsilon_k^2 b)$ if the noise asks for more.

    **Arguments:**

    - `growth`: $\\mu > 0$.
    - `method`: what runs in a stage.
    - `power`: $r \\ge 1$.
    - `distance`: $R$, a bound on $\\|x_0 - x^*\\|$.
    - `noise_factor`: $c$.

    **Raises:** `ValueError` unless they are positive, and $r \\ge 1$.
    """

    growth: Scalar = eqx.field(converter=checks.scalar)
    method: AbstractBatchMethod = eqx.field(default_factory=AcceleratedBatch)
    power: Scalar = scalar_field(2.0)
    distance: Scalar = scalar_field(1.0)
    noise_factor: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.instance("method", self.method, AbstractBatchMethod, "AcceleratedBatch()")
        for name in ("growth", "distance", "noise_factor"):
            checks.positive(name, getattr(self, name))
        checks.interval("power", self.power, 1, float("inf"), open_high=True)

    @property
    def takes_saddles(self):
        return self.method.takes_saddles

    def _stage(self, oracle, x, stage):
        """The oracle, the method and the number of steps of a stage."""
        dtype = tree.real_dtype(x)
        distance, growth, floor, lipschitz, c = (
            jnp.asarray(a, dtype)
            for a in (
                self.distance,
                self.growth,
                oracle.smoothing.radius,
                oracle.lipschitz,
                self.noise_factor,
            )
        )
        distance = distance * jnp.exp2(-stage.astype(dtype))
        accuracy = 0.5 * growth * (0.5 * distance) ** jnp.asarray(self.power, dtype)
        oracle = oracle.at(jnp.maximum(accuracy / (2 * lipschitz), floor))
        exact = self.method.num_steps(oracle.smoothness(x), lipschitz, distance, accuracy)
        d, b = oracle.smoothing.sphere.dimension(x), oracle.smoothing.batch
        sigma = _second_moment(d, lipschitz, _norm_of(oracle.geometry)).astype(dtype)
        noisy = c * sigma * (distance / accuracy) ** 2 / b
        steps = jnp.clip(jnp.ceil(jnp.maximum(exact, noisy)), 1, 2.0**30)
        steps = jnp.where(jnp.isfinite(steps), steps, 2.0**30).astype(jnp.int32)
        return oracle, self.method.within(distance), steps

    def init(self, oracle, x):
        stage = jnp.asarray(0, jnp.int32)
        oracle, method, steps = self._stage(oracle, x, stage)
        return _Restarted(method.init(oracle, x), stage, steps)

    def step(self, oracle, x, state, key):
        over = state.left == 0
        stage = jnp.where(over, state.stage + 1, state.stage)
        oracle, method, steps = self._stage(oracle, x, stage)
        inner = tree.where(over, method.init(oracle, x), state.inner)
        x, inner, estimate = method.step(oracle, x, inner, key)
        return x, _Restarted(inner, stage, jnp.where(over, steps, state.left) - 1), estimate

    def num_steps(self, smoothness, lipschitz, distance, accuracy):
        """Of all stages until one ends at the accuracy, each with its own radius and $L$."""
        root = smoothness * accuracy / (2 * lipschitz**2)  # of the dimension
        total, reached = 0, math.inf
        while reached > accuracy:
            reached = float(0.5 * self.growth * (distance / 2) ** self.power)
            own = 2 * root * lipschitz**2 / reached
            total += math.ceil(self.method.num_steps(own, lipschitz, distance, reached))
            distance = distance / 2
        return total


class ZerothOrderPlan(NamedTuple):
    """What `zeroth_order_plan` returns.

    **Attributes:**

    - `radius`: $g$.
    - `smoothness`: $L$.
    - `num_steps`: $N$.
    - `batch`: $B$; $2 N B$ values are asked in all.
    - `noise`: $\\Delta$, errors of the values that do no harm, up to a constant.
    """

    radius: float
    smoothness: float
    num_steps: int
    batch: int
    noise: float


def zeroth_order_plan(
    dimension: int,
    lipschitz: float,
    distance: float,
    accuracy: float,
    method: AbstractBatchMethod | None = None,
    *,
    geometry: AbstractMirrorMap | None = None,
    noise_factor: float = 1.0,
) -> ZerothOrderPlan:
    """Radius, batch and number of steps for an accuracy, by the theory:

    $$g = \\frac{\\epsilon}{2 M_2}, \\qquad L = \\frac{\\sqrt d M_2}{g}, \\qquad
      B = \\max\\Bigl(1, \\Bigl\\lceil \\frac{c \\sigma^2 R^2}{\\epsilon^2 N} \\Bigr\\rceil\\Bigr),
      \\qquad \\Delta = \\frac{\\epsilon^2}{\\sqrt d M_2 R},$$

    and $N$ of the method: $O(d^{1/4} M_2 R / \\epsilon)$ with acceleration, for about
    $d M_2^2 R^2 / \\epsilon^2$ values in all; parallel they are as long as $N$. It takes
    $\\sigma^2 = \\sqrt2\\, d M_2^2$, and in the 1-norm $\\sqrt2 \\ln(d) M_2^2$; such logarithms are
    its least sure part. `noise_factor` scales it.

    **Arguments:**

    - `dimension`: $d$.
    - `lipschitz`: $M_2$, of $f$ in the Euclidean norm.
    - `distance`: $R$, from the start to a solution, in the geometry's norm.
    - `accuracy`: $\\epsilon$, of $f(x) - \\min f$, or of the gap of a saddle.
    - `method`: `AcceleratedBatch()` if `None`.
    - `geometry`: `Euclidean()` if `None`.
    - `noise_factor`: $c$.

    **Returns:** a `ZerothOrderPlan`.

    **Raises:** `ValueError` unless all are positive.

    **Reference:** Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč,
    Dvurechensky, Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth
    Problems, 2022, arXiv:2201.12289.
    """
    checks.count("dimension", dimension)
    given = {"lipschitz": lipschitz, "distance": distance, "accuracy": accuracy}
    for name, value in (given | {"noise_factor": noise_factor}).items():
        checks.positive(name, value)
    method = AcceleratedBatch() if method is None else method
    checks.instance("method", method, AbstractBatchMethod, "AcceleratedBatch()")
    radius = accuracy / (2 * lipschitz)
    smoothness = dimension**0.5 * lipschitz / radius
    steps = max(1, math.ceil(method.num_steps(smoothness, lipschitz, distance, accuracy)))
    norm = 2.0 if geometry is None else _norm_of(geometry)
    sigma = float(_second_moment(dimension, lipschitz, norm))
    batch = noise_factor * sigma * distance**2 / (accuracy**2 * steps)
    noise = accuracy**2 / (dimension**0.5 * lipschitz * distance)
    return ZerothOrderPlan(radius, smoothness, steps, max(1, math.ceil(batch)), noise)


class _State(eqx.Module):
    method: PyTree
    key: PRNGKeyArray
    error: Float[Array, ""]


class ZerothOrder(AbstractSolver):
    """A first-order method on a smoothed black box: convex functions with kinks, known by values.

    The function is averaged over a ball, $f_g(x) = \\mathbb E f(x + g u)$, which makes it smooth
    with $L = \\sqrt d M_2 / g$ and moves it by $g M_2$ at most; the gradient of $f_g$ is estimated
    from $2 B$ values in parallel (`SphereSmoothing`), and `method` runs on these estimates.
    `zeroth_order_plan` chooses $g$, $B$ and the number of steps for an accuracy.

    It asks an objective `Smooth`, `Constrained`; a `FiniteSum` or `Expectation`, where each
    direction has a sample of its own, the same in both values; or, by a method for them such as
    `games.MirrorProxBatch`, a `MinMax`. Points asked are up to $g$ outside of a set.

    **The error.** Values alone tell no residual. What they and $M_2$ prove is
    $\\|x - \\mathrm{prox}_g(x)\\| + M_2$, and that is the error: a solve takes all its steps and
    ends as `step_limit`. With `confirm=True` it is the estimate
    $\\|y - \\mathrm{prox}_g(y - G(y))\\|$ of the residual at the last point asked, and, only where
    that passes, the larger of it and the norm of the residual at the value, which differentiates
    $f$: for functions that have derivatives. A radius that rounding does not see ends a solve as
    `breakdown`.

    **Arguments:**

    - `method`: `AcceleratedBatch()`, `MirrorBatch()`, `Restarted(...)`.
    - `smoothing`: radius, batch and sphere.
    - `lipschitz`: $M_2$, of $f$ in the Euclidean norm; of a sum, of each loss.
    - `geometry`: a mirror map, in which steps are taken; `PNorm` for free unknowns.
    - `confirm`: whether the residual may be asked.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless `lipschitz` is positive; `TypeError` for a `MinMax` with a
    method of minimization or the other way around, and for a geometry that is not Euclidean with a
    `nonsmooth` part or a `MinMax`.

    **Reference:** Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč,
    Dvurechensky, Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth
    Problems, 2022, arXiv:2201.12289.
    """

    method: AbstractBatchMethod
    smoothing: SphereSmoothing
    lipschitz: Scalar = scalar_field(1.0)
    geometry: AbstractMirrorMap = eqx.field(default_factory=Euclidean)
    confirm: bool = eqx.field(static=True, default=False)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 1000
    problems = (Smooth, Constrained, FiniteSum, Expectation, MinMax)

    def __check_init__(self):
        checks.instance("method", self.method, AbstractBatchMethod, "AcceleratedBatch()")
        checks.instance("smoothing", self.smoothing, SphereSmoothing, "SphereSmoothing(0.1, 10)")
        checks.instance("geometry", self.geometry, AbstractMirrorMap, "Euclidean()")
        checks.positive("lipschitz", self.lipschitz)
        if not isinstance(self.confirm, bool):
            raise TypeError(f"confirm must be True or False, got {self.confirm!r}")

    def _oracle(self, problem):
        if isinstance(problem, MinMax) != self.method.takes_saddles:
            what = type(problem).__name__
            raise TypeError(f"{type(self.method).__name__} is no method for a {what}")
        plain = isinstance(problem, Smooth | Constrained)
        free = plain or getattr(problem, "nonsmooth", problem) is None
        if not free and not isinstance(self.geometry, Euclidean):
            raise TypeError(
                f"a {type(problem).__name__} with a part that is known by its prox needs Euclidean "
                f"steps, not {type(self.geometry).__name__}"
            )
        return ValueOracle(problem, self.smoothing, self.geometry, jnp.asarray(self.lipschitz))

    def init(self, problem, x, key):
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _State(self.method.init(self._oracle(problem), x), key, infinity)

    def refresh(self, problem, x, state):
        return forgotten(state)

    def step(self, problem, x, state):
        oracle = self._oracle(problem)
        now, key = jax.random.split(state.key)
        new, method, estimate = self.method.step(oracle, x, state.method, now)
        new = tree.cast_like(new, x)
        if self.confirm:
            estimate = estimate.astype(state.error.dtype)
            error = confirmed(problem, new, estimate, state.error, self.tol)
        else:
            off = tree.norm(jax.tree.map(jnp.subtract, new, oracle.prox(new)))
            error = (off + oracle.lipschitz).astype(state.error.dtype)
        return new, _State(method, key, error)

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        """Where the points that are asked round to the value there is no difference to see."""
        eps = 8 * jnp.finfo(tree.real_dtype(x)).eps
        lost = self.smoothing.radius <= eps * tree.norm(x)
        return Status.where(lost, Status.breakdown, Status.running)


def estimated_gradient(
    smoothing: SphereSmoothing, key: PRNGKeyArray
) -> optax.GradientTransformationExtraArgs:
    """An `optax` transformation that puts $G$ in the place of the gradients it is given.

    First in a chain it makes any optimizer one of values alone:
    `optax.chain(estimated_gradient(smoothing, key), optax.adam(0.1))`. `update` takes the
    parameters and the extra argument `value_fn`, `params -> scalar`, of the step's batch; the
    gradients given are not looked at, zeros will do.

    **Arguments:**

    - `smoothing`: radius, batch and sphere.
    - `key`: for the directions, new ones in each step.

    **Raises:** `ValueError` from `update` without parameters or `value_fn`.

    **Reference:** Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč,
    Dvurechensky, Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth
    Problems, 2022, arXiv:2201.12289.
    """
    checks.instance("smoothing", smoothing, SphereSmoothing, "SphereSmoothing(0.1, 10)")

    def init(params):
        return key

    def update(updates, state, params=None, *, value_fn=None, **extra):
        if params is None or value_fn is None:
            raise ValueError("estimated_gradient needs params and value_fn=")
        now, key = jax.random.split(state)
        estimate = smoothing.gradient(value_fn, params, now)
        return tree.cast_like(estimate, updates), key

    return optax.GradientTransformationExtraArgs(init, update)
