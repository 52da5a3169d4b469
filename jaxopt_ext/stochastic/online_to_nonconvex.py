"""Online-to-nonconvex conversion: an online learner chooses the steps."""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractProblem,
    AbstractSolver,
    Expectation,
    FiniteSum,
    Scalar,
    Smooth,
    checks,
    loops,
    minibatches,
    rows,
    scalar_field,
    tree,
)
from ..core.confirm import forgotten, unknown
from ..core.finite_sum import Deterministic
from .learners import AbstractLearner
from .oracle import asked, latest, smooth_oracle
from .outputs import AbstractOutput, RandomIterate


class AbstractPlace(eqx.Module):
    """Where on the segment of a step, $x_{n-1} + s \\Delta_n$, its gradient is taken."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKeyArray, dtype: Any) -> Float[Array, ""]:
        """$s \\in [0, 1]$."""


class UniformPoint(AbstractPlace):
    """$s$ uniform on $[0, 1]$, anew in each step: then $\\mathbb E \\langle \\nabla F(w_n),
    \\Delta_n\\rangle = F(x_n) - F(x_{n-1})$, for functions with kinks too."""

    def __call__(self, key, dtype):
        return jax.random.uniform(key, (), dtype)


class Midpoint(AbstractPlace):
    """$s = \\tfrac12$, where the same holds up to $J \\|\\Delta_n\\|^3$ for a Hessian with the
    Lipschitz constant $J$, and exactly for quadratics."""

    def __call__(self, key, dtype):
        return jnp.asarray(0.5, dtype)


class Epoch(NamedTuple):
    """What is known of an epoch.

    **Attributes:**

    - `point`: $\\bar w$, the mean of the points where gradients were taken.
    - `norm`: that of the mean of these gradients, in the dual of the learner's norm.
    """

    point: PyTree[Array]
    norm: Float[Array, ""]


class _State(eqx.Module):
    learner: PyTree[Array]
    seen: PyTree[Array]
    point: PyTree[Array]
    gradient: PyTree[Array]
    epoch: Epoch
    record: Any
    count: Int[Array, ""]
    samples: Int[Array, ""]
    error: Float[Array, ""]
    key: PRNGKeyArray


class OnlineToNonconvex(AbstractSolver):
    """Steps chosen by an online learner, for functions that need be neither smooth nor convex.

    $$x_n = x_{n-1} + \\Delta_n, \\qquad w_n = x_{n-1} + s_n \\Delta_n, \\qquad
      g_n \\approx \\nabla F(w_n),$$

    where the learner chooses $\\Delta_n$, of length at most $D$, before it sees the linear loss
    $\\langle g_n, \\cdot\\rangle$. These losses add up to the change of $F$, so that small regret
    means a decrease, or a small mean gradient. After each epoch of $T$ steps there is the mean
    $\\bar w$ of its $w_n$, all of which are within $\\delta = T D$ of it, and the mean of their
    gradients, whose norm is, up to the noise, a bound of the Goldstein norm

    $$\\|\\nabla F(\\bar w)\\|_\\delta = \\inf \\Bigl\\{\\Bigl\\|\\tfrac1{|S|} \\sum_{y \\in S}
      \\nabla F(y)\\Bigr\\| : S \\subset B(\\bar w, \\delta),\\ \\tfrac1{|S|} \\sum_{y \\in S} y =
      \\bar w \\Bigr\\}.$$

    The value is $\\bar w$ of one epoch at random; steps behind the last whole epoch count for
    nothing. With `BallGradientDescent` and `o2nc_parameters` the norm is below $\\epsilon$ on
    average after $O(\\epsilon^{-3} \\delta^{-1})$ gradients, which is optimal. Where $F$ has the
    smoothness $H$ take $\\delta = \\epsilon / H$: a stationary point after $O(\\epsilon^{-4})$;
    where its Hessian is $J$-Lipschitz $\\delta = \\sqrt{\\epsilon / J}$: after
    $O(\\epsilon^{-3.5})$. With `OptimisticBall`, `Midpoint()` and exact gradients it is
    $O(\\epsilon^{-1.5} \\delta^{-0.5})$. Learners in a box have the maximum norm for lengths and
    the 1-norm for gradients.

    The error is the norm of the mean gradient of an epoch, seen at its end, and, only where that
    passes, the larger of it and the norm of the residual at $\\bar w$, which is then the value.
    With `tol=0` nothing is asked: the solve takes all its steps. At a kink, and for an
    `Expectation` without a mean, it ends as `step_limit`. The state counts `samples`, those of
    guesses too, and has the value's norm in `epoch.norm`; `goldstein_norm` measures it without
    noise, at the points that a trace of `state.seen` has.

    **Arguments:**

    - `learner`: `BallGradientDescent(...)`, `OptimisticBall(...)`, `BoxGradientDescent(...)`,
      `BoxAdaGrad(...)`.
    - `delta`: $\\delta$; $D$ may be at most $\\delta / T$.
    - `epoch`: $T$; static.
    - `place`: `UniformPoint()` or `Midpoint()`.
    - `batch`: samples of a gradient; static.
    - `output`: which epoch is returned; it is shown all of them at their ends.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for an epoch below 1, a `delta` that is not positive or below $T D$, or
    `max_steps` below two epochs; `TypeError` for a problem with a nonsmooth part that is known by
    its prox.

    **Reference:** Cutkosky, Mehta, Orabona, Optimal Stochastic Non-smooth Non-convex Optimization
    through Online-to-Non-convex Conversion, 2023, arXiv:2302.03775.
    """

    learner: AbstractLearner
    delta: Scalar = eqx.field(converter=checks.scalar)
    epoch: int = eqx.field(static=True)
    place: AbstractPlace = eqx.field(default_factory=UniformPoint)
    batch: int = eqx.field(static=True, default=1)
    output: AbstractOutput = eqx.field(default_factory=RandomIterate)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000
    problems = (Smooth, FiniteSum, Expectation)

    def __check_init__(self):
        checks.instance("learner", self.learner, AbstractLearner, "BallGradientDescent(0.01, 0.1)")
        checks.instance("place", self.place, AbstractPlace, "UniformPoint()")
        checks.instance("output", self.output, AbstractOutput, "RandomIterate()")
        checks.positive("delta", self.delta)
        checks.count("epoch", self.epoch)
        checks.count("batch", self.batch)
        checks.count("max_steps", self.max_steps, 2 * self.epoch)
        if not checks.is_traced((self.learner.radius, self.delta)):
            longest = max(np.max(np.asarray(r)) for r in jax.tree.leaves(self.learner.radius))
            if self.epoch * longest > np.max(np.asarray(self.delta)) * (1 + 1e-5):
                raise ValueError(
                    f"delta must be at least epoch * radius = {self.epoch * longest:.4g}, got "
                    f"{self.delta}"
                )

    def init(self, problem, x, key):
        smooth_oracle(problem)
        dtype = tree.real_dtype(x)
        zero, zeros = jnp.asarray(0, jnp.int32), jax.tree.map(jnp.zeros_like, x)
        none = Epoch(x, jnp.asarray(jnp.inf, dtype))
        learner, record = self.learner.init(x), self.output.init(none)
        return _State(learner, x, x, zeros, none, record, zero, zero, unknown(dtype), key)

    def refresh(self, problem, x, state):
        """What was measured may have been of another problem."""
        return forgotten(state)

    def step(self, problem, x, state):
        oracle = smooth_oracle(problem)
        dtype = state.error.dtype
        draw, guess, where, pick, key = jax.random.split(state.key, 5)
        guessed = oracle.draw(guess, self.batch) if self.learner.asks else None
        # A guess must not know where on the segment the gradient will be taken.
        ahead = lambda move: oracle.gradient(tree.axpy(x, 0.5, move), guessed)
        move = self.learner.act(state.learner, ahead)
        new = tree.cast_like(jax.tree.map(jnp.add, x, move), x)
        seen = tree.axpy(x, self.place(where, dtype), move)
        gradient = oracle.gradient(seen, oracle.draw(draw, self.batch))
        learner = self.learner.observe(state.learner, gradient)

        before, count = state.count % self.epoch, state.count + 1
        old, found = (state.point, state.gradient), (seen, gradient)
        share = 1 / (before + 1).astype(dtype)
        mean = tree.axpy(old, share, jax.tree.map(jnp.subtract, found, old))
        point, gradient = tree.where(before == 0, found, mean)
        over = count % self.epoch == 0
        now = Epoch(point, self.learner.dual_norm(gradient).astype(dtype))
        nothing, one = jnp.full((), jnp.inf, dtype), jnp.ones((), dtype)
        record = self.output.observe(state.record, now, nothing, one, pick)
        epoch, record, learner = tree.where(
            over,
            (now, record, self.learner.renew(learner)),
            (state.epoch, state.record, learner),
        )
        # Between ends of epochs nothing may pass.
        size = jnp.where(over, now.norm, unknown(dtype))
        error = asked(problem, point, size, state.error, self.tol)
        error = latest(error, state.error, over, jnp.asarray(self.tol, dtype))
        weight = 1 if isinstance(oracle, Deterministic) else self.batch
        samples = state.samples + (1 + self.learner.asks) * weight
        return new, _State(
            learner, seen, point, gradient, epoch, record, count, samples, error, key
        )

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        nothing = jnp.full_like(state.error, jnp.inf)
        chosen, error = self.output.choose(
            state.record, state.epoch, state.error, nothing, jnp.asarray(self.tol, nothing.dtype)
        )
        state = eqx.tree_at(lambda s: (s.epoch, s.error), state, (chosen, error))
        return chosen.point, state

    def last_step(self, problem, x, state):
        """What the learner answers to a gradient at the value: its own next step was chosen before
        the last gradient."""
        oracle, (at, _) = smooth_oracle(problem), self.finish(problem, x, state)
        batch = oracle.draw(state.key, self.batch)
        learner = self.learner.observe(self.learner.init(at), oracle.gradient(at, batch))
        ahead = lambda move: oracle.gradient(tree.axpy(at, 0.5, move), batch)
        return jax.tree.map(jnp.add, at, self.learner.act(learner, ahead))


class O2NCPlan(NamedTuple):
    """What `o2nc_parameters` returns.

    **Attributes:**

    - `epoch`: $T$.
    - `num_epochs`: $K$.
    - `num_steps`: $K T \\le N$, for `max_steps`.
    - `radius`: $D$.
    - `step_size`: $\\eta$.
    - `bound`: of the mean over the epochs of the norm of their mean gradient, in expectation.
    """

    epoch: int
    num_epochs: int
    num_steps: int
    radius: float
    step_size: float
    bound: float


def o2nc_parameters(N: int, delta: float, G: float, gap: float) -> O2NCPlan:
    """Epochs, radius and step size of `BallGradientDescent` in `OnlineToNonconvex`, by the theory:

    $$T = \\min\\Bigl(\\Bigl\\lceil \\Bigl(\\frac{G N \\delta}{\\gamma}\\Bigr)^{2/3} \\Bigr\\rceil,
      \\frac N2\\Bigr), \\quad K = \\lfloor N / T \\rfloor, \\quad D = \\frac\\delta T, \\quad
      \\eta = \\frac{D}{G \\sqrt T},$$

    for which the mean norm is at most $2 \\gamma / (\\delta N) + \\max(5 G^{2/3} \\gamma^{1/3} /
    (N \\delta)^{1/3}, 6 G / \\sqrt N)$.

    **Arguments:**

    - `N`: gradients, at least 2.
    - `delta`: $\\delta > 0$.
    - `G`: $\\sqrt{\\mathbb E \\|g\\|^2}$, or a bound of it.
    - `gap`: $\\gamma = F(x_0) - \\inf F$, or a bound of it.

    **Returns:** an `O2NCPlan`.

    **Raises:** `ValueError` unless `N` is at least 2 and the others are positive.

    **Reference:** Cutkosky, Mehta, Orabona, Optimal Stochastic Non-smooth Non-convex Optimization
    through Online-to-Non-convex Conversion, 2023, arXiv:2302.03775.
    """
    checks.count("N", N, 2)
    for name, value in {"delta": delta, "G": G, "gap": gap}.items():
        checks.positive(name, value)
    T = min(math.ceil((G * N * delta / gap) ** (2 / 3)), N // 2)
    K, D = N // T, delta / T
    bound = 2 * gap / (delta * N)
    bound += max(5 * (G**2 * gap / (N * delta)) ** (1 / 3), 6 * G / N**0.5)
    return O2NCPlan(T, K, K * T, D, D / (G * T**0.5), bound)


class GoldsteinNorm(NamedTuple):
    """What `goldstein_norm` returns.

    **Attributes:**

    - `norm`: Euclidean, of the mean gradient.
    - `radius`: of the smallest ball around the mean point that holds all points.
    - `point`: the mean point.
    - `gradient`: the mean gradient.
    """

    norm: Float[Array, ""]
    radius: Float[Array, ""]
    point: PyTree[Array]
    gradient: PyTree[Array]


def goldstein_norm(problem: AbstractProblem, points: PyTree[Array]) -> GoldsteinNorm:
    """The norm of the mean gradient over some points, and how far these are from their mean.

    It certifies that the mean point is $(\\delta, \\epsilon)$-stationary where `radius` is at most
    $\\delta$ and `norm` at most $\\epsilon$.

    **Arguments:**

    - `problem`: one that `minibatches` takes; gradients are those of all of its smooth part.
    - `points`: shaped like the variable with another leading axis.

    **Raises:** `ValueError` without points, or for an `Expectation` without a mean.

    **Reference:** Zhang, Lin, Jegelka, Sra, Jadbabaie, Complexity of Finding Stationary Points of
    Nonconvex Nonsmooth Functions, 2020, arXiv:2002.04130.
    """
    rows.check(points)
    oracle = minibatches(problem)

    def add(total, x):
        return jax.tree.map(jnp.add, total, oracle.full_gradient(x)), None

    zeros = rows.first(points)
    total, _ = loops.scan(add, zeros, points)
    gradient = tree.scale(total, 1 / rows.count(points))
    point = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), points)
    away = jax.vmap(lambda x: tree.norm(jax.tree.map(jnp.subtract, x, point)))(points)
    return GoldsteinNorm(tree.norm(gradient), jnp.max(away), point, gradient)
