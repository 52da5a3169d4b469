"""Stochastic methods: gradients of samples, and games by drawn rows and columns."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...core import (
    AbstractExpectation,
    AbstractSolver,
    Expectation,
    FiniteSum,
    MinMax,
    PrimalDual,
    Scalar,
    checks,
    loops,
    scalar_field,
    tree,
)
from ..mirror_descent import AbstractMirrorMap, Euclidean
from .averaging import AbstractAveraged, Played, forward, natural, other_part
from .mirror import check_geometry, geometry_field
from .saddle_point import (
    AbstractSaddleMethod,
    AbstractSampledObjective,
    check_smoothness,
    first_order,
    joint_smoothness,
    look,
    pair_field,
)


def _enter(mirror_map, problem, x):
    other = other_part(problem)
    if hasattr(other, "project") and isinstance(mirror_map, Euclidean):
        return other.project(x)
    return x


def _sampled_step(solver, problem, state, eta) -> tuple[PyTree[Array], PRNGKeyArray]:
    """A step along the gradient of a new batch."""
    now, key = jax.random.split(state.memory)
    slope = problem.gradient(state.point, problem.draw(now, solver.batch))
    other, eta = other_part(problem), eta.astype(state.error.dtype)
    point = forward(solver.mirror_map, other, state.point, slope, eta)
    return tree.cast_like(point, state.point), key


class StochasticMirrorDescent(AbstractAveraged[AbstractExpectation]):
    """Stochastic mirror descent,

    $$x_{s+1} = \\arg\\min_u \\eta \\langle g_s, u\\rangle + \\eta\\, h(u) + D(u, x_s), \\qquad
      \\mathbb E g_s \\in \\partial f(x_s), \\qquad \\eta = \\frac{R}{B_g} \\sqrt{\\frac 2t},$$

    with $t$ = `max_steps`. The average of $x_1, \\dots, x_t$ has $\\mathbb E f - f^* \\le R B_g
    \\sqrt{2 / t}$; of the first $s$ of them $R^2 / (\\eta s) + \\eta B_g^2 / 2$. With the Euclidean
    map it is the stochastic subgradient method.

    Gradients of samples tell no residual, so a solve takes all its steps; in the end the error is
    the norm of the problem's residual at the average, where the problem has one.

    **Arguments:**

    - `mirror_map`: strongly convex with constant 1; see `FixedMirrorDescent`. Its steps stay in
      `nonsmooth` if that is a set.
    - `radius`: $R$, with $R^2$ a bound on $D(x^*, x_1)$.
    - `second_moment`: $B_g$, with $\\mathbb E \\|g\\|_*^2 \\le B_g^2$.
    - `batch`: samples a step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless constants are positive; `TypeError` for a geometry that has no
    step with the nonsmooth part.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 6.1. Nemirovski, Juditsky, Lan, Shapiro, Robust Stochastic Approximation Approach to
    Stochastic Programming, 2009.
    """

    mirror_map: AbstractMirrorMap = geometry_field()
    radius: Scalar = scalar_field(1.0)
    second_moment: Scalar = scalar_field(1.0)
    batch: int = eqx.field(static=True, default=1)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 1000
    problems = (FiniteSum, Expectation)

    def __check_init__(self):
        check_geometry(self.mirror_map, radius=self.radius, second_moment=self.second_moment)
        checks.count("batch", self.batch)

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        return self.radius / self.second_moment * (2 / self.max_steps) ** 0.5

    def enter(self, problem, x):
        return _enter(self.mirror_map, problem, x)

    def first(self, problem, x, key):
        return key

    def move(self, problem, state):
        point, key = _sampled_step(self, problem, state, self.step_size)
        return Played(point, key, state.point, jnp.zeros_like(state.error), None)

    def guarantee(self, steps, constants):
        """Of the mean: $R^2 / (\\eta s) + \\eta B_g^2 / 2$ with the `radius` and `second_moment`
        given."""
        radius, moment = constants.need("radius", "second_moment")
        return radius**2 / (self.step_size * steps) + self.step_size / 2 * moment**2


class SmoothStochasticMirrorDescent(AbstractAveraged[AbstractExpectation]):
    """Stochastic mirror descent on smooth functions, whose steps need not be as short:

    $$\\eta = \\frac{1}{\\beta + 1 / \\eta'}, \\qquad \\eta' = \\frac R\\sigma \\sqrt{\\frac 2t},
      \\qquad \\mathbb E \\|g - \\nabla f\\|_*^2 \\le \\sigma^2 / b .$$

    The average of $x_2, \\dots, x_{t+1}$ has $\\mathbb E f - f^* \\le R \\sigma \\sqrt{2 / (b t)} +
    \\beta R^2 / t$: batches of $b$ samples pay as long as the first part is the larger. With the
    Euclidean map it is minibatch gradient descent.

    The error is that of `StochasticMirrorDescent`.

    **Arguments:**

    - `mirror_map`, `radius`: see `StochasticMirrorDescent`.
    - `noise`: $\\sigma$ of one sample.
    - `smoothness`: $\\beta$.
    - `batch`: $b$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless constants are positive; `TypeError` for a geometry that has no
    step with the nonsmooth part.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 6.2. Dekel, Gilad-Bachrach, Shamir, Xiao, Optimal Distributed Online Prediction Using
    Mini-Batches, 2012, arXiv:1012.1367.
    """

    mirror_map: AbstractMirrorMap = geometry_field()
    radius: Scalar = scalar_field(1.0)
    noise: Scalar = scalar_field(1.0)
    smoothness: Scalar = scalar_field(1.0)
    batch: int = eqx.field(static=True, default=1)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 1000
    problems = (FiniteSum, Expectation)

    def __check_init__(self):
        constants = {"radius": self.radius, "noise": self.noise, "smoothness": self.smoothness}
        check_geometry(self.mirror_map, **constants)
        checks.count("batch", self.batch)

    def _noisy(self):
        """$\\eta'$, with the noise of a batch."""
        return self.radius / self.noise * (2 * self.batch / self.max_steps) ** 0.5

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        return 1 / (self.smoothness + 1 / self._noisy())

    def enter(self, problem, x):
        return _enter(self.mirror_map, problem, x)

    def first(self, problem, x, key):
        return key

    def move(self, problem, state):
        point, key = _sampled_step(self, problem, state, self.step_size)
        return Played(point, key, point, jnp.zeros_like(state.error), None)

    def guarantee(self, steps, constants):
        """Of the mean: $(\\beta + 1 / \\eta') R^2 / s + \\eta' \\sigma^2 / (2 b)$ with the `radius`
        and `noise` given, if the `smoothness` given is not larger than that of the method; infinite
        otherwise."""
        radius, noise, beta = constants.need("radius", "noise", "smoothness")
        long = self._noisy()
        bound = (self.smoothness + 1 / long) * radius**2 / steps
        bound = bound + long * noise**2 / (2 * self.batch)
        return jnp.where(beta <= self.smoothness * (1 + 1e-5), bound, jnp.inf)


class _Epoch(eqx.Module):
    slope: PyTree[Array]  # the full gradient at the value
    key: PRNGKeyArray
    error: Float[Array, ""]


class SVRG(AbstractSolver[FiniteSum, _Epoch]):
    """Stochastic variance reduced gradients: an epoch starts with the full gradient at $y$ and
    goes on with samples, corrected by it,

    $$x_{r+1} = \\mathrm{prox}_{\\eta h}\\bigl(x_r - \\eta (\\nabla f_i(x_r) - \\nabla f_i(y) +
      \\nabla f(y))\\bigr), \\qquad x_1 = y, \\qquad y^+ = \\frac1k \\sum_{r \\le k} x_r,
      \\qquad \\eta = \\frac{1}{10 \\beta}.$$

    With $k = 20 \\kappa$ inner steps, $\\kappa = \\beta / \\alpha$, an epoch takes $\\mathbb E f -
    f^*$ to at most 0.9 of what it was. That theorem is for $h = 0$. A step of the solver is an
    epoch; the average is over the points $x_2, \\dots, x_{k+1}$ where there is an $h$, for which
    Xiao and Zhang prove the like.

    The error is the norm of the problem's residual at the value, whose gradient is the one that the
    next epoch starts with.

    **Arguments:**

    - `smoothness`: $\\beta$, of the loss of each sample.
    - `inner_steps`: $k$.
    - `batch`: samples of an inner step.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is an epoch.

    **Raises:** `ValueError` unless `smoothness` is positive and counts are at least 1.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 6.3. Johnson, Zhang, Accelerating Stochastic Gradient Descent Using Predictive Variance
    Reduction, 2013. Xiao, Zhang, A Proximal Stochastic Gradient Method with Progressive Variance
    Reduction, 2014, arXiv:1403.4699.
    """

    smoothness: Scalar = scalar_field(1.0)
    inner_steps: int = eqx.field(static=True, default=200)
    batch: int = eqx.field(static=True, default=1)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 500
    problems = (FiniteSum,)

    def __check_init__(self):
        checks.positive("smoothness", self.smoothness)
        checks.count("inner_steps", self.inner_steps)
        checks.count("batch", self.batch)

    def init(self, problem, x, key):
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _Epoch(tree.cast_like(problem.full_gradient(x), x), key, infinity)

    def refresh(self, problem, x, state):
        return _Epoch(tree.cast_like(problem.full_gradient(x), x), state.key, state.error)

    def step(self, problem, x, state):
        dtype = state.error.dtype
        eta = 0.1 / self.smoothness.astype(dtype)
        free = problem.nonsmooth is None

        def inner(_, carry):
            point, total, key = carry
            now, key = jax.random.split(key)
            batch = problem.draw(now, self.batch)
            here, there = problem.gradient(point, batch), problem.gradient(x, batch)
            slope = jax.tree.map(lambda a, b, c: a - b + c, here, there, state.slope)
            new = forward(Euclidean(), problem.nonsmooth, point, slope, eta)
            new = tree.cast_like(new, x)
            return new, jax.tree.map(jnp.add, total, point if free else new), key

        start = (x, jax.tree.map(jnp.zeros_like, x), state.key)
        _, total, key = loops.fori_loop(0, self.inner_steps, inner, start)
        new = tree.scale(total, 1 / self.inner_steps)
        slope = tree.cast_like(problem.full_gradient(new), x)
        error = natural(problem.nonsmooth, new, slope).astype(dtype)
        return new, _Epoch(slope, key, error)

    def error(self, problem, x, state):
        return state.error

    def guarantee(self, steps, constants):
        """Of the mean: $0.9^s$ of the `spread` given, if $k \\ge 20 \\beta / \\alpha$ with the
        `smoothness` and `strong_convexity` given; infinite otherwise."""
        names = "spread", "smoothness", "strong_convexity"
        spread, beta, alpha = constants.need(*names)
        holds = (self.inner_steps >= 20 * beta / alpha - 1e-3) & (
            beta <= self.smoothness * (1 + 1e-5)
        )
        return jnp.where(holds, spread * 0.9**steps, jnp.inf)


def _sampled(problem, z, key, batch) -> PrimalDual:
    """An estimate of $F(z)$; the map itself where the objective has none."""
    objective = problem.objective
    if not isinstance(objective, AbstractSampledObjective):
        return look(problem, z)
    one = lambda key: objective.sampled(z.primal, z.dual, key)
    each = jax.vmap(one)(jax.random.split(key, batch))
    primal, dual = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
    if problem.smooth is not None:
        primal = jax.tree.map(jnp.add, primal, tree.gradient(problem.smooth, z.primal))
    return tree.cast_like(PrimalDual(primal, jax.tree.map(jnp.negative, dual)), z)


class StochasticSaddleMirrorDescent(AbstractSaddleMethod):
    """Stochastic saddle point mirror descent: `SaddleMirrorDescent` on estimates of the map,

    with $a = B_X / R_X$, $b = B_Y / R_Y$, $\\eta = \\sqrt{2 / t}$. On a `MatrixGame` a step costs
    $n + m$, and accuracy $\\epsilon$ takes $O(\\log(n + m) / \\epsilon^2)$ of them: less than it
    takes to read the matrix.

    The average has $(R_X B_X + R_Y B_Y) \\sqrt{2 / t}$ for the expected gap to any fixed pair. The
    gap itself compares with the best answers, which depend on the draws; for its mean `guarantee`
    has the bound of Nemirovski and others, here 7/2 times that. Objectives that are no
    `AbstractSampledObjective` are differentiated whole.

    Estimates tell no residual, so a solve takes all its steps; in the end the error is the norm of
    the problem's residual at the average.

    **Arguments:**

    - `primal_map`, `dual_map`, `radii`: see `SaddleMirrorDescent`.
    - `second_moments`: $(B_X, B_Y)$, bounds on the root mean square of the estimates' dual norms.
    - `batch`: draws of a step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless constants are positive.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 6.5. Nemirovski, Juditsky, Lan, Shapiro, Robust Stochastic Approximation Approach to
    Stochastic Programming, 2009. Grigoriadis, Khachiyan, A Sublinear-Time Randomized Approximation
    Algorithm for Matrix Games, 1995.
    """

    primal_map: AbstractMirrorMap = geometry_field()
    dual_map: AbstractMirrorMap = geometry_field()
    radii: Any = pair_field()
    second_moments: Any = pair_field()
    batch: int = eqx.field(static=True, default=1)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 1000
    problems = (MinMax,)

    def __check_init__(self):
        for one in (self.primal_map, self.dual_map):
            check_geometry(one, radii=self.radii, second_moments=self.second_moments)
        checks.count("batch", self.batch)

    def weights(self):
        return tuple(b / r for b, r in zip(self.second_moments, self.radii, strict=True))

    @property
    def step_size(self) -> float:
        """$\\eta$."""
        return (2 / self.max_steps) ** 0.5

    def first(self, problem, x, key):
        return key

    def move(self, problem, state):
        now, key = jax.random.split(state.memory)
        slope = _sampled(problem, state.point, now, self.batch)
        point = self.both(problem, state.point, slope, self.step_size)
        return Played(point, key, state.point, jnp.zeros_like(state.error), None)

    def guarantee(self, steps, constants):
        """Of the mean gap: $2 \\Theta / (\\eta s) + \\frac{5 \\eta}{2} (B_X^2 / a + B_Y^2 / b)$
        with the `radius` and `second_moment` given, and in `dual` for the other side."""
        range_, weights = 2 * self.range(constants), self.weights()
        return first_order(
            self.step_size, steps, range_, "second_moment", constants, weights, factor=5.0
        )


class StochasticSaddleMirrorProx(AbstractSaddleMethod):
    """Stochastic saddle point mirror prox: `SaddleMirrorProx` on estimates of the map, new ones for
    the look ahead and for the step, with

    $$\\eta = \\min\\Bigl(\\frac{1}{\\sqrt3 L}, \\sqrt{\\frac{8}{7 \\sigma^2 t}}\\Bigr), \\qquad
      \\sigma^2 = \\frac1c \\bigl(\\sigma_X^2 R_X^2 + \\sigma_Y^2 R_Y^2\\bigr),$$

    $L = 2 m$ as there and batches of $c$ draws. The mean gap of the average of the $w$ is at most
    $4 / (\\eta t) + \\frac72 \\eta \\sigma^2$: $1/t$ while the noise is small, then $1/\\sqrt t$.
    Objectives that are no `AbstractSampledObjective` are differentiated whole.

    The error is that of `StochasticSaddleMirrorDescent`.

    **Arguments:**

    - `primal_map`, `dual_map`, `radii`: see `SaddleMirrorDescent`.
    - `smoothness`: see `SaddleMirrorProx`.
    - `noise`: $(\\sigma_X, \\sigma_Y)$ of one draw, in the dual norms.
    - `batch`: $c$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` unless radii and noise are positive.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 6.5. Juditsky, Nemirovski, Tauvel, Solving Variational Inequalities with Stochastic
    Mirror-Prox Algorithm, 2011, arXiv:0809.0815.
    """

    primal_map: AbstractMirrorMap = geometry_field()
    dual_map: AbstractMirrorMap = geometry_field()
    radii: Any = pair_field()
    smoothness: Any = eqx.field(
        converter=lambda three: tuple(checks.scalar(a) for a in three), default=(0.0, 0.0, 1.0)
    )
    noise: Any = pair_field()
    batch: int = eqx.field(static=True, default=1)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 1000
    problems = (MinMax,)

    def __check_init__(self):
        for one in (self.primal_map, self.dual_map):
            check_geometry(one, radii=self.radii, noise=self.noise)
        check_smoothness(self.smoothness)
        checks.count("batch", self.batch)

    def weights(self):
        return tuple(1 / r**2 for r in self.radii)

    def _variance(self, noise):
        a, b = self.weights()
        return (noise[0] ** 2 / a + noise[1] ** 2 / b) / self.batch

    @property
    def step_size(self) -> Float[Array, ""]:
        """$\\eta$."""
        smooth = joint_smoothness(self.smoothness, self.weights())
        noisy = jnp.sqrt(8 / (7 * self._variance(self.noise) * self.max_steps))
        return jnp.minimum(1 / (3**0.5 * smooth), noisy)

    def first(self, problem, x, key):
        return key

    def move(self, problem, state):
        first, second, key = jax.random.split(state.memory, 3)
        z, eta = state.point, self.step_size
        ahead = self.both(problem, z, _sampled(problem, z, first, self.batch), eta)
        point = self.both(problem, z, _sampled(problem, ahead, second, self.batch), eta)
        return Played(point, key, ahead, jnp.zeros_like(state.error), None)

    def guarantee(self, steps, constants):
        """Of the mean gap: $2 \\Theta / (\\eta s) + \\frac72 \\eta \\sigma^2$ with the `radius` and
        `noise` given, and in `dual` for the other side, if $\\sqrt3 \\eta L \\le 1$ with the
        `smoothness` and `coupling` given; infinite otherwise."""
        range_, eta = self.range(constants), self.step_size
        (coupling, first), (second,) = (
            constants.need("coupling", "noise"),
            constants.dual.need("noise"),
        )
        own = [0.0 if c.smoothness is None else c.smoothness for c in (constants, constants.dual)]
        smooth = joint_smoothness((*own, coupling), self.weights())
        bound = 2 * range_ / (eta * steps) + 3.5 * eta * self._variance((first, second))
        return jnp.where(3**0.5 * eta * smooth <= 1 + 1e-5, bound, jnp.inf)
