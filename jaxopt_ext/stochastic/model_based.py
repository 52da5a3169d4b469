"""Steps on models of one sample's loss: subgradient, prox-linear, proximal point, truncated."""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractExpectation,
    AbstractProblem,
    AbstractSolver,
    Composite,
    Expectation,
    FiniteSum,
    Saddle,
    Scalar,
    Smooth,
    checks,
    minibatches,
    scalar_field,
    solve,
    tree,
)
from ..core.confirm import forgotten, unknown
from ..prox import AbstractFunction
from .oracle import Oracle, asked, check_rate, rate_at, rate_field
from .outputs import AbstractOutput, RandomIterate, finished


class ComposedLoss(eqx.Module):
    """A loss $h(c(x, \\xi))$ that shows its parts.

    **Arguments:**

    - `outer`: $h$, convex, a function of `prox`.
    - `inner`: $c$, `(x, sample) -> scalar` or a vector, differentiable.
    """

    outer: AbstractFunction
    inner: Callable[[PyTree[Array], PyTree], Float[Array, "..."]]

    def __check_init__(self):
        checks.proximable("outer", self.outer)
        if not callable(self.inner):
            raise TypeError(f"inner must be a function (x, sample) -> array, got {self.inner!r}")

    def __call__(self, x, sample):
        return self.outer(self.inner(x, sample))


class AbstractModel(eqx.Module):
    """A model $f_x(y, \\xi)$ of the loss of one sample around $x$."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        batched: ClassVar[bool]
    else:
        batched: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def step(self, oracle: Oracle, x: PyTree[Array], batch: Any, beta: Float[Array, ""]) -> PyTree:
        """$\\arg\\min_y f_x(y, \\xi) + g(y) + \\tfrac\\beta2 \\|y - x\\|^2$."""


def _one(oracle, batch):
    """The loss of a batch of one, as a function of the point."""
    if not isinstance(oracle, AbstractExpectation):
        return oracle.value
    sample = jax.tree.map(lambda leaf: leaf[0], oracle.samples(batch))
    return lambda x: oracle.loss(x, sample)


def _without_prox(model, oracle):
    if oracle.nonsmooth is not None:
        raise TypeError(
            f"{type(model).__name__} has a closed form only without a nonsmooth part, got "
            f"{oracle.nonsmooth!r}"
        )


class Subgradient(AbstractModel):
    """$f(x, \\xi) + \\langle G, y - x\\rangle$, so that a step is $\\mathrm{prox}_{g/\\beta}(x -
    G / \\beta)$. Of a batch the mean of the models is one of them. At kinks $G$ is what JAX
    gives."""

    batched = True

    def step(self, oracle, x, batch, beta):
        moved = tree.axpy(x, -1 / beta, oracle.gradient(x, batch))
        return oracle.prox(moved, 1 / beta)


class Truncated(AbstractModel):
    """$\\max(f(x, \\xi) + \\langle G, y - x\\rangle, l)$ for losses known to be at least $l$:
    a step is $x - \\min(1/\\beta, (f - l) / \\|G\\|^2)\\, G$.

    **Arguments:**

    - `lower_bound`: $l$.

    **Raises:** `TypeError` for a problem with a nonsmooth part.

    **Reference:** Asi, Duchi, Stochastic (Approximate) Proximal Point Methods, 2019,
    arXiv:1810.05633.
    """

    lower_bound: Scalar = scalar_field(0.0)
    batched = False

    def step(self, oracle, x, batch, beta):
        _without_prox(self, oracle)
        value, slope = tree.value_and_gradient(_one(oracle, batch), x)
        square = tree.vdot(slope, slope)
        gap = value - self.lower_bound.astype(value.dtype)
        short = gap / jnp.where(square > 0, square, 1)
        return tree.axpy(x, -jnp.minimum(1 / beta, jnp.where(square > 0, short, 0)), slope)


class _Anchored(AbstractFunction):
    """$r(y) + \\tfrac\\beta2 \\|y - x\\|^2$ of a point as one vector."""

    prox_of: Callable[[PyTree[Array], Any], PyTree[Array]]
    value_of: Callable[[PyTree[Array]], Any]
    anchor: Float[Array, " d"]
    unravel: Callable[[Array], PyTree[Array]]
    beta: Float[Array, ""]
    convex = True

    def __call__(self, x):
        gap = x - self.anchor
        return self.value_of(self.unravel(x)) + 0.5 * self.beta * jnp.vdot(gap, gap)

    def prox(self, x, step=1.0):
        scale = 1 + step * self.beta
        middle = (x + step * self.beta * self.anchor) / scale
        return ravel_pytree(self.prox_of(self.unravel(middle), step / scale))[0]


class _Moved(AbstractFunction):
    """$h(u + b)$."""

    function: AbstractFunction
    offset: Float[Array, " m"]
    convex = True

    def __call__(self, x):
        return self.function(x + self.offset)

    def prox(self, x, step=1.0):
        return self.function.prox(x + self.offset, step) - self.offset


class ProxLinear(AbstractModel):
    """$h(c(x, \\xi) + \\nabla c(x, \\xi)^\\top (y - x))$ for a loss $h(c(x, \\xi))$, $h$ convex.

    For a scalar $c$ with gradient $a$, and without $g$, a step is

    $$x + \\frac{\\mathrm{prox}_{|a|^2 h / \\beta}(c) - c}{|a|^2}\\, a,$$

    with $h$ the absolute value a step along $a$ of clipped length. Else the convex problem is
    solved by `solver`, as a `Saddle` of the point as one vector, with the Jacobian of $c$ as its
    matrix.

    **Arguments:**

    - `solver`: of the convex problem where it has no closed form, such as
      `splitting.PrimalDualHybridGradient(tol=1e-8)`. Its tolerance is that of the step; that it is
      reached is not looked at.

    **Raises:** `TypeError` for a loss that is not a `ComposedLoss`, or, without `solver`, where
    there is no closed form.

    **Reference:** Davis, Drusvyatskiy, Stochastic Model-Based Minimization of Weakly Convex
    Functions, 2019, arXiv:1803.06523.
    """

    solver: AbstractSolver | None = None
    batched = False

    def __check_init__(self):
        if self.solver is not None:
            checks.instance("solver", self.solver, AbstractSolver, "ADMM()")

    def step(self, oracle, x, batch, beta):
        if not (isinstance(oracle, AbstractExpectation) and isinstance(oracle.loss, ComposedLoss)):
            raise TypeError("ProxLinear needs a FiniteSum or Expectation of a ComposedLoss")
        outer, inner = oracle.loss.outer, oracle.loss.inner
        sample = jax.tree.map(lambda leaf: leaf[0], oracle.samples(batch))
        part = lambda x: inner(x, sample)
        if jax.eval_shape(part, x).shape == () and oracle.nonsmooth is None:
            value, slope = tree.value_and_gradient(part, x)
            square = tree.vdot(slope, slope)
            safe = jnp.where(square > 0, square, 1)
            along = (outer.prox(value, safe / beta) - value) / safe
            return tree.axpy(x, jnp.where(square > 0, along, 0), slope)
        if self.solver is None:
            raise TypeError(
                "a vector inside or a nonsmooth part has no closed form: give ProxLinear a solver"
            )
        flat, unravel = ravel_pytree(x)
        vector = lambda v: jnp.atleast_1d(part(unravel(v)))
        value, matrix = vector(flat), jax.jacrev(vector)(flat)
        nonsmooth = (lambda x: 0.0) if oracle.nonsmooth is None else oracle.nonsmooth
        anchored = _Anchored(oracle.prox, nonsmooth, flat, unravel, beta)
        linear = Saddle(anchored, _Moved(outer, value - matrix @ flat), matrix)
        return unravel(solve(linear, self.solver, flat).value.primal)


class ProximalPoint(AbstractModel):
    """The loss itself, $f(y, \\xi)$, whose prox must be known.

    **Arguments:**

    - `prox_of_sample`: `(x, sample, step) -> y`, the minimizer of $f(y, \\xi) + |y - x|^2 / (2
      \\cdot \\mathrm{step})$; `phase_retrieval_prox` is one.

    **Raises:** `TypeError` for a problem with a nonsmooth part or without samples.
    """

    prox_of_sample: Callable[[PyTree[Array], PyTree, Any], PyTree[Array]]
    batched = False

    def step(self, oracle, x, batch, beta):
        _without_prox(self, oracle)
        if not isinstance(oracle, AbstractExpectation):
            raise TypeError("ProximalPoint needs samples: a FiniteSum or an Expectation")
        sample = jax.tree.map(lambda leaf: leaf[0], oracle.samples(batch))
        return self.prox_of_sample(x, sample, 1 / beta)


def phase_retrieval_prox(x: Float[Array, " d"], sample: Any, step: Any) -> Float[Array, " d"]:
    """$\\arg\\min_y |\\langle a, y\\rangle^2 - b| + |y - x|^2 / (2 \\cdot \\mathrm{step})$.

    It is $x + (s - t) a / |a|^2$ with $t = \\langle a, x\\rangle$ and $s$ the best of $\\pm\\sqrt
    b$ and $t / (1 \\pm 2 |a|^2 \\mathrm{step})$, a nonconvex problem in one variable.

    **Arguments:**

    - `x`: shape `(d,)`.
    - `sample`: the pair of $a$, shape `(d,)`, and $b$.
    - `step`: $> 0$.
    """
    a, b = sample
    square, t = jnp.vdot(a, a), jnp.vdot(a, x)
    safe = jnp.where(square > 0, square, 1)
    bend = 2 * square * step
    root = jnp.sqrt(jnp.maximum(b, 0))
    turn = jnp.where(bend == 1, 1, 1 - bend)
    s = jnp.stack([root, -root, t / (1 + bend), t / turn])
    allowed = jnp.stack([b >= 0, b >= 0, jnp.asarray(True), bend != 1])
    value = jnp.abs(s**2 - b) + (s - t) ** 2 / (2 * step * safe)
    best = s[jnp.argmin(jnp.where(allowed, value, jnp.inf))]
    return x + jnp.where(square > 0, (best - t) / safe, 0) * a


class HorizonPenalty(eqx.Module):
    """$\\beta = \\bar\\rho + \\sqrt{K + 1} / \\gamma$ for a solve of $K$ steps, the constant of the
    theorems: with $\\bar\\rho$ above the weak convexity of the problem and its models the gradient
    of the Moreau envelope falls as $K^{-1/4}$; for convex models, $\\bar\\rho = 0$ and the average
    iterate, the value as $K^{-1/2}$.

    **Arguments:**

    - `weak_convexity`: $\\bar\\rho \\ge 0$.
    - `gamma`: $\\gamma > 0$.
    """

    weak_convexity: Scalar = scalar_field(0.0)
    gamma: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.nonnegative("weak_convexity", self.weak_convexity)
        checks.positive("gamma", self.gamma)


class GrowingPenalty(eqx.Module):
    """$\\beta_k = \\mu (k + 1) / 2$, for convex models and a $\\mu$-strongly convex nonsmooth part;
    with `Average(1.0)` the value falls as $1 / K$.

    **Arguments:**

    - `strong_convexity`: $\\mu > 0$.
    """

    strong_convexity: Scalar = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.positive("strong_convexity", self.strong_convexity)

    def __call__(self, count):
        return 0.5 * self.strong_convexity * (count + 1)


class _State(eqx.Module):
    record: Any
    count: Int[Array, ""]
    samples: Int[Array, ""]
    error: Float[Array, ""]
    key: PRNGKeyArray


class StochasticModelBased(AbstractSolver):
    """Minimize a model of one sample's loss, and stay near:

    $$x_{k+1} = \\arg\\min_y f_{x_k}(y, \\xi_k) + g(y) + \\tfrac{\\beta_k}{2} \\|y - x_k\\|^2 .$$

    For losses that are weakly convex, such as $|\\langle a, x\\rangle^2 - b|$, kinks included.
    Models that keep more of the loss bear penalties over many more orders of magnitude. What falls
    is the gradient of the Moreau envelope, see `moreau_gradient`, at an iterate that is drawn with
    probability in proportion to $1 / (\\beta_k - \\eta)$, of `RandomIterate`; the objective itself
    need not fall.

    The error is $\\beta \\|x_{k+1} - x_k\\|$, of one sample, and, only where that passes, the
    larger of it and the norm of the residual at the value. With `tol=0` nothing is asked: the solve
    takes all its steps. At a kink the residual is not zero, and a solve ends as `step_limit`.

    **Arguments:**

    - `model`: `Subgradient()`, `ProxLinear()`, `ProximalPoint(...)`, `Truncated(...)`.
    - `penalty`: $\\beta > 0$, one over the step size; a schedule of the step's number, such as
      `GrowingPenalty`, or `HorizonPenalty(...)`.
    - `batch`: samples of a step; more than one for `Subgradient` only.
    - `weak_convexity`: $\\eta$, that of the models with $g$.
    - `output`: which iterate is returned.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for a penalty that is not above `weak_convexity`, or a batch of a model
    that takes one sample; `TypeError` for a model that does not fit the problem.

    **Reference:** Davis, Drusvyatskiy, Stochastic Model-Based Minimization of Weakly Convex
    Functions, 2019, arXiv:1803.06523.
    """

    model: AbstractModel
    penalty: Any = rate_field()
    batch: int = eqx.field(static=True, default=1)
    weak_convexity: Scalar = scalar_field(0.0)
    output: AbstractOutput = eqx.field(default_factory=RandomIterate)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000
    problems = (Smooth, Composite, FiniteSum, Expectation)

    def __check_init__(self):
        checks.instance("model", self.model, AbstractModel, "Subgradient()")
        checks.instance("output", self.output, AbstractOutput, "Last()")
        checks.count("batch", self.batch)
        checks.nonnegative("weak_convexity", self.weak_convexity)
        if self.batch > 1 and not self.model.batched:
            name = type(self.model).__name__
            raise ValueError(
                f"{name} is a model of one sample, and batch must be 1, got {self.batch}"
            )
        if isinstance(self.penalty, HorizonPenalty):
            checks.positive("penalty - weak_convexity", self._constant() - self.weak_convexity)
        else:
            check_rate("penalty", self.penalty)
            if not callable(self.penalty):
                checks.positive("penalty - weak_convexity", self.penalty - self.weak_convexity)

    def _constant(self):
        return self.penalty.weak_convexity + (self.max_steps + 1) ** 0.5 / self.penalty.gamma

    def init(self, problem, x, key):
        zero = jnp.asarray(0, jnp.int32)
        error = unknown(tree.real_dtype(x))
        return _State(self.output.init(x), zero, zero, error, key)

    def refresh(self, problem, x, state):
        return forgotten(state)

    def step(self, problem, x, state):
        oracle = minibatches(problem)
        draw, pick, key = jax.random.split(state.key, 3)
        dtype = tree.real_dtype(x)
        rate = self._constant() if isinstance(self.penalty, HorizonPenalty) else self.penalty
        beta = rate_at(rate, state.count, dtype)
        nothing = jnp.full((), jnp.inf, dtype)
        weight = 1 / (beta - self.weak_convexity.astype(dtype))
        record = self.output.observe(state.record, x, nothing, weight, pick)
        new = tree.cast_like(self.model.step(oracle, x, oracle.draw(draw, self.batch), beta), x)
        size = beta * tree.norm(jax.tree.map(jnp.subtract, new, x))
        samples = state.samples + self.batch
        return new, _State(
            record, state.count + 1, samples, asked(problem, new, size, state.error, self.tol), key
        )

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        nothing = jnp.full_like(state.error, jnp.inf)
        return finished(self.output, x, state, nothing, self.tol)


class _Near(eqx.Module):
    """A loss plus $|y - x|^2 / (2 \\lambda)$."""

    fun: Callable[..., Any]
    center: PyTree[Array]
    lam: Float[Array, ""]

    def __call__(self, y, *sample):
        gap = jax.tree.map(jnp.subtract, y, self.center)
        square = tree.vdot(gap, gap)
        return self.fun(y, *sample) + square / (2 * jnp.asarray(self.lam, square.dtype))


def moreau_gradient(
    problem: AbstractProblem, x: PyTree[Array], lam: Any, solver: AbstractSolver
) -> PyTree[Array]:
    """The gradient of the Moreau envelope $\\phi_\\lambda(x) = \\min_y \\phi(y) + |y - x|^2 / (2
    \\lambda)$, which is $(x - y) / \\lambda$ at the minimizer $y$: small near points that are
    nearly stationary, kinks or not.

    **Arguments:**

    - `problem`: a `Smooth`, `Composite`, `FiniteSum` or `Expectation`, whose objective is $\\phi$.
    - `x`: the point.
    - `lam`: $\\lambda > 0$, less than one over the weak convexity of $\\phi$.
    - `solver`: what finds $y$, from $x$ on; the result is as good as what it finds.

    **Raises:** `ValueError` unless `lam` is positive; `TypeError` for another problem.

    **Reference:** Davis, Drusvyatskiy, Stochastic Model-Based Minimization of Weakly Convex
    Functions, 2019, arXiv:1803.06523.
    """
    checks.positive("lam", lam)
    lam = checks.scalar(lam)
    match problem:
        case Smooth():
            near = dataclasses.replace(problem, fun=_Near(problem.fun, x, lam))
        case Composite():
            near = dataclasses.replace(problem, smooth=_Near(problem.smooth, x, lam))
        case FiniteSum():
            near = dataclasses.replace(problem, loss=_Near(problem.loss, x, lam))
        case Expectation():
            mean = None if problem.mean is None else _Near(problem.mean, x, lam)
            near = dataclasses.replace(problem, loss=_Near(problem.loss, x, lam), mean=mean)
        case _:
            raise TypeError(f"no Moreau envelope of a {type(problem).__name__}")
    y = solve(near, solver, x).value
    return jax.tree.map(lambda a, b: (a - b) / jnp.asarray(lam, a.real.dtype), x, y)
