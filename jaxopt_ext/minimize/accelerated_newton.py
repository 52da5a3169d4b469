"""Accelerated second- and third-order methods for convex functions, with inexact derivatives."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core import AbstractSolver, FiniteSum, Scalar, Smooth, checks, loops, scalar_field, tree
from . import _cubic
from ._cubic import Flat, Vector


class AbstractOracle(eqx.Module):
    """Where gradients and Hessians come from."""

    @abc.abstractmethod
    def gradient(self, problem: Any, flat: Flat, key: PRNGKeyArray) -> Vector:
        """A gradient at the point, shape `(d,)`."""

    @abc.abstractmethod
    def hessian(self, problem: Any, flat: Flat, key: PRNGKeyArray) -> Float[Array, "d d"]:
        """A symmetric Hessian at the point."""


class FullOracle(AbstractOracle):
    """The derivatives themselves."""

    def gradient(self, problem, flat, key):
        return tree.gradient(flat.fun, flat.x)

    def hessian(self, problem, flat, key):
        return _cubic.hessian(flat.fun, flat.x)


class SubsampledOracle(AbstractOracle):
    """Those of minibatches of a `FiniteSum`, drawn anew each time.

    **Arguments:**

    - `gradient_batch`, `hessian_batch`: their sizes; `None` for all samples.
    """

    gradient_batch: int | None = None
    hessian_batch: int | None = None

    def __check_init__(self):
        for name in ("gradient_batch", "hessian_batch"):
            if getattr(self, name) is not None:
                checks.count(name, getattr(self, name))

    def _part(self, problem, flat, key, size):
        if not isinstance(problem, FiniteSum):
            raise TypeError(f"minibatches need a FiniteSum, got {type(problem).__name__}")
        if size is None:
            return flat.fun
        batch = problem.draw(key, size)
        return lambda v: problem.value(flat.unravel(v), batch)

    def gradient(self, problem, flat, key):
        return tree.gradient(self._part(problem, flat, key, self.gradient_batch), flat.x)

    def hessian(self, problem, flat, key):
        return _cubic.hessian(self._part(problem, flat, key, self.hessian_batch), flat.x)


class NoisyOracle(AbstractOracle):
    """Derivatives with Gaussian noise.

    **Arguments:**

    - `gradient_noise`: $\\sqrt{\\mathbb E |g - \\nabla f|^2}$.
    - `hessian_noise`: of $H - \\nabla^2 f$, a symmetrized Gaussian matrix, about the spectral norm:
      its limit for large $d$.
    """

    gradient_noise: Scalar = scalar_field(0.0)
    hessian_noise: Scalar = scalar_field(0.0)

    def __check_init__(self):
        checks.nonnegative("gradient_noise", self.gradient_noise)
        checks.nonnegative("hessian_noise", self.hessian_noise)

    def gradient(self, problem, flat, key):
        noise = jax.random.normal(key, flat.x.shape, flat.x.dtype)
        scale = (self.gradient_noise / jnp.sqrt(flat.x.size)).astype(flat.x.dtype)
        return tree.gradient(flat.fun, flat.x) + scale * noise

    def hessian(self, problem, flat, key):
        d, dtype = flat.x.size, flat.x.dtype
        noise = jax.random.normal(key, (d, d), dtype)
        scale = (self.hessian_noise / jnp.sqrt(8 * d)).astype(dtype)
        return _cubic.hessian(flat.fun, flat.x) + scale * (noise + noise.T)


class _State(eqx.Module):
    y: Vector
    center: Vector
    slope: Vector  # s, the weighted sum of gradients
    scales: Float[Array, " p"]  # of the powers of the estimating function
    age: Int[Array, ""]  # t
    radius: Float[Array, ""]
    steps: Int[Array, ""]
    key: PRNGKeyArray
    error: Float[Array, ""]


def _objective(problem):
    if isinstance(problem, Smooth):
        return problem.fun
    if problem.nonsmooth is not None:
        raise TypeError(
            f"a FiniteSum without a nonsmooth part is needed, got {problem.nonsmooth!r}"
        )
    return problem.full_value


def _flat(problem, x):
    return _cubic.flatten(_objective(problem), x)


def _start(solver, problem, x, key, order):
    flat = _flat(problem, x)
    dtype = flat.x.dtype
    radius = jnp.asarray(1.0 if solver.radius is None else solver.radius, dtype)
    zero = jnp.asarray(0, jnp.int32)
    # The error before the first measurement: finite, and not below the tolerance.
    error = jnp.linalg.norm(tree.gradient(flat.fun, flat.x))
    error = jnp.maximum(error, 2 * solver.tol.astype(dtype) + jnp.finfo(dtype).tiny)
    nothing = jnp.zeros_like(flat.x)
    scales = jnp.zeros(order, dtype)
    return _State(flat.x, flat.x, nothing, scales, zero, radius, zero, key, error)


def _from(flat, x):
    return Flat(flat.fun, x, flat.unravel)


def _measured(solver, flat, x, gradient, state):
    """The gradient's norm, where it is known or due; else the last one, which was too large."""
    if isinstance(solver.oracle, FullOracle):
        return jnp.linalg.norm(gradient)
    due = (state.steps + 1) % solver.check_every == 0
    look = lambda x: jnp.linalg.norm(tree.gradient(flat.fun, x))
    return loops.if_due(due, look, x, state.error)


def _advanced(state, y, slope, scales, key, error):
    """The state after a step."""
    age, steps = state.age + 1, state.steps + 1
    return _State(y, state.center, slope, scales, age, state.radius, steps, key, error)


def _restarted(state, x, terms):
    """Begin anew from `x` with half the radius, where that has been reached."""
    due = state.age >= jnp.ceil(jnp.max(jnp.stack(terms)))
    radius = jnp.maximum(0.5 * state.radius, jnp.finfo(x.dtype).tiny)
    nothing = jnp.zeros_like
    fresh = _State(
        x,
        x,
        nothing(x),
        nothing(state.scales),
        nothing(state.age),
        radius,
        state.steps,
        state.key,
        state.error,
    )
    choose = lambda a, b: b if a is b else jnp.where(due, a, b)
    return jax.tree.map(choose, fresh, state)


def _check_common(solver):
    checks.instance("oracle", solver.oracle, AbstractOracle, "FullOracle()")
    checks.positive("constant", solver.constant)
    checks.positive("prox_scale", solver.prox_scale)
    checks.count("check_every", solver.check_every)
    for name in ("radius", "strong_convexity"):
        if getattr(solver, name) is not None:
            checks.positive(name, getattr(solver, name))
    if solver.strong_convexity is not None and solver.radius is None:
        raise ValueError("strong_convexity needs a radius, got radius=None")


def _optional() -> Any:
    converter = lambda a: None if a is None else checks.scalar(a)
    return eqx.field(converter=converter, default=None)


class AcceleratedCubicNewton(AbstractSolver):
    """Accelerated cubic Newton method with inexact, stochastic derivatives, for convex $f$.

    With $\\alpha_t = 3 / (t + 3)$, $A_t = 6 / ((t + 1)(t + 2)(t + 3))$ and
    $\\tau_t = 2 \\sigma_2 + \\sigma_1 (t + 3)^{3/2} / R$, from $x_0 = y_0$ and $s = 0$,

    $$\\begin{aligned} v &= (1 - \\alpha_t) x_t + \\alpha_t y_t, \\\\
      x_{t+1} &= v + \\arg\\min_h \\langle g(v), h\\rangle + \\tfrac12 h^\\top H(v) h
        + \\tfrac{\\tau_t}2 |h|^2 + \\tfrac M6 |h|^3, \\\\
      s &\\leftarrow s + \\tfrac{\\alpha_t}{A_t} g(x_{t+1}), \\\\
      y_{t+1} &= \\arg\\min_y \\langle s, y - x_0\\rangle + \\tfrac{\\kappa_2}2 |y - x_0|^2
        + \\tfrac{\\kappa_3}6 |y - x_0|^3, \\end{aligned}$$

    where $\\kappa_2 = 2 \\tau_t \\alpha_t^2 / A_t$ and $\\kappa_3 = c M \\alpha_t^3 / A_t$ do not
    fall. For a Hessian with Lipschitz constant $L \\le M / 2$, $f(x_T) - f^*$ is of the order
    $\\sigma_1 R / \\sqrt T + \\sigma_2 R^2 / T^2 + L R^3 / T^3$, which no method can better. The
    subproblem is solved exactly, so that any test of its accuracy is met. These constants are
    conservative: in the first tens of steps, and where a much smaller $M$ serves, the plain method
    `LazyCubicNewton(1, M)` is often ahead.

    With `strong_convexity` $\\mu$ the method restarts from its value as soon as theory halves the
    distance $R$ to the solution, after
    $\\max\\{(108\\, c M R / \\mu)^{1/3}, (432\\, \\sigma_2 / \\mu)^{1/2},
    (216\\, \\sigma_1 / (\\mu R))^2\\}$ steps, and the rate is linear, in the end superlinear.

    The error is the norm of the full gradient at the value, every `check_every` steps and behind
    the last; between them, the last that was found.

    **Arguments:**

    - `constant`: $M > 0$, at least $2 L$ in theory.
    - `gradient_noise`: $\\sigma_1 \\ge 0$.
    - `hessian_noise`: $\\sigma_2 \\ge 0$; a bound on the Hessian's error serves as well.
    - `radius`: $R \\ge |x_0 - x^*|$; needed with `gradient_noise` and with `strong_convexity`.
    - `strong_convexity`: $\\mu > 0$, or `None` for no restarts.
    - `prox_scale`: $c$.
    - `oracle`: `FullOracle()`, `SubsampledOracle(...)` of a `FiniteSum`, `NoisyOracle(...)`.
    - `check_every`: with another oracle than the first, how often the error is measured.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` for a `FiniteSum` with a nonsmooth part.

    **Reference:** Agafonov, Kamzolov, Gasnikov, Kavis, Antonakopoulos, Cevher, Takáč, Advancing the
    Lower Bounds: An Accelerated, Stochastic, Second-order Method with Optimal Adaptation to
    Inexactness, 2023, arXiv:2309.01570.
    """

    constant: Scalar = scalar_field(1.0)
    gradient_noise: Scalar = scalar_field(0.0)
    hessian_noise: Scalar = scalar_field(0.0)
    radius: Scalar | None = _optional()
    strong_convexity: Scalar | None = _optional()
    prox_scale: Scalar = scalar_field(8 / 3)
    oracle: AbstractOracle = FullOracle()
    check_every: int = 10
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (Smooth, FiniteSum)

    def __check_init__(self):
        _check_common(self)
        checks.nonnegative("gradient_noise", self.gradient_noise)
        checks.nonnegative("hessian_noise", self.hessian_noise)
        noisy = checks.is_traced(self.gradient_noise) or np.any(np.asarray(self.gradient_noise) > 0)
        if self.radius is None and noisy:
            raise ValueError(f"gradient_noise {self.gradient_noise} needs a radius, got None")

    def init(self, problem, x, key):
        return _start(self, problem, x, key, 2)

    def step(self, problem, x, state):
        flat = _flat(problem, x)
        dtype = flat.x.dtype
        keys = jax.random.split(state.key, 4)
        t = state.age.astype(dtype)
        M, sigma = self.constant.astype(dtype), self.gradient_noise.astype(dtype)
        alpha, share = 3 / (t + 3), 6 / ((t + 1) * (t + 2) * (t + 3))
        tau = 2 * self.hessian_noise.astype(dtype) + sigma * (t + 3) ** 1.5 / state.radius
        middle = _from(flat, (1 - alpha) * flat.x + alpha * state.y)
        at = _cubic.eigen(self.oracle.hessian(problem, middle, keys[1]))
        gradient = self.oracle.gradient(problem, middle, keys[2])
        new = middle.x + _cubic.cubic_step(at, gradient, M, tau)
        gradient = self.oracle.gradient(problem, _from(flat, new), keys[3])
        slope = state.slope + alpha / share * gradient
        k2, k3 = 2 * tau * alpha**2 / share, self.prox_scale * M * alpha**3 / share
        scales = jnp.maximum(state.scales, jnp.stack([k2, k3]).astype(dtype))
        size = jnp.linalg.norm(slope)
        rest = scales[0] + jnp.sqrt(scales[0] ** 2 + 2 * scales[1] * size)
        y = state.center - 2 * slope / rest  # c M > 0, and so is the denominator
        y = jnp.where(size == 0, state.center, y)
        error = _measured(self, flat, new, gradient, state)
        state = _advanced(state, y, slope, scales, keys[0], error)
        if self.strong_convexity is not None:
            mu, R = self.strong_convexity.astype(dtype), state.radius
            c = self.prox_scale.astype(dtype)
            terms = (
                (108 * c * M * R / mu) ** (1 / 3),
                jnp.sqrt(432 * self.hessian_noise.astype(dtype) / mu),
                (216 * sigma / (mu * R)) ** 2,
            )
            state = _restarted(state, new, terms)
        return flat.unravel(new), state

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        return _finished(self, problem, x, state)

    def last_step(self, problem, x, state):
        return _cubic.newton_point(_objective(problem), x)


def _finished(solver, problem, x, state):
    if isinstance(solver.oracle, FullOracle):
        return x, state
    flat = _flat(problem, x)
    error = jnp.linalg.norm(tree.gradient(flat.fun, flat.x))
    return x, eqx.tree_at(lambda s: s.error, state, error)


class _Model(NamedTuple):
    """The third-order model of a convex function, with its regularization."""

    gradient: Vector
    at: _cubic.Eigen
    third: Any  # h -> D^3 f [h, h]
    shifts: tuple[Array, Array]  # tau_2, tau_3
    constant: Float[Array, ""]

    def value_and_slope(self, h):
        """The value at $h$ and the gradient there."""
        tau, nu = self.shifts
        bent, curved = self.third(h), self.at.vectors @ (self.at.values * (self.at.vectors.T @ h))
        r = tree.norm(h)  # with a derivative at zero
        value = (
            jnp.vdot(self.gradient + 0.5 * curved + bent / 6, h)
            + 0.5 * tau * r**2
            + nu * r**3 / 6
            + self.constant * r**4 / 24
        )
        scale = tau + 0.5 * nu * r + self.constant * r**2 / 6
        return value, self.gradient + curved + 0.5 * bent + scale * h

    def reference(self, h):
        """$\\tfrac12 h^\\top (H + \\tau) h + \\tfrac M8 |h|^4$ and its gradient."""
        curved = self.at.vectors @ (self._values * (self.at.vectors.T @ h))
        square = jnp.vdot(h, h)
        value = 0.5 * jnp.vdot(h, curved) + self.constant / 8 * square**2
        return value, curved + 0.5 * self.constant * square * h

    @property
    def _values(self):
        return jnp.maximum(self.at.values, 0) + self.shifts[0]

    def minimize_linear(self, c):
        """$\\arg\\min_h \\langle c, h\\rangle + \\rho(h)$ with this reference: the root of
        $|(H + \\tau + s I)^{-1} c| = r$ in $s = \\tfrac M2 r^2$, from below as in `cubic_step`."""
        M, values = self.constant, self._values
        along = self.at.vectors.T @ c
        size = jnp.linalg.norm(along)
        ratio = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
        top = values[-1]
        steep = jnp.where(top > 0, ratio(size, 2 * top), jnp.inf)
        r = jnp.minimum(steep, jnp.cbrt(size / M))
        eps = jnp.finfo(c.dtype).eps

        def advance(carry):
            s, trials, _ = carry
            shifted = values + s
            h = ratio(along, shifted)
            length, r = jnp.linalg.norm(h), jnp.sqrt(2 * s / M)
            bend = jnp.sum(ratio(ratio(h, length) ** 2, shifted))
            new = s + jnp.maximum(ratio(length - r, r * bend + ratio(length, M * r**2)), 0)
            more = (length - r > 2 * eps * r) & (new > s) & (trials < 100)
            return new, trials + 1, more

        first = 0.5 * M * r**2
        start = (first, jnp.asarray(0, jnp.int32), jnp.isfinite(first) & (first > 0))
        s, *_ = loops.while_loop(lambda carry: carry[-1], advance, start)
        return -self.at.vectors @ jnp.where(jnp.isfinite(size), ratio(along, values + s), jnp.nan)

    def minimize(self, max_trials):
        """Bregman gradient steps until the model's gradient is small beside its last term."""
        eps = jnp.finfo(self.gradient.dtype).eps
        floor = 10 * eps * jnp.linalg.norm(self.gradient)

        def attempt(carry):
            h, smooth, trials, _ = carry
            value, slope = self.value_and_slope(h)
            height, steep = self.reference(h)
            new = self.minimize_linear(slope / smooth - steep)
            move = new - h
            there, new_slope = self.value_and_slope(new)
            distance = self.reference(new)[0] - height - jnp.vdot(steep, move)
            bound = value + jnp.vdot(slope, move) + smooth * distance
            slack = 10 * eps * (jnp.abs(value) + jnp.abs(jnp.vdot(self.gradient, move)))
            passed = there <= bound + slack
            r = jnp.linalg.norm(new)
            goal = 0.25 * self.shifts[0] * r + self.constant / 24 * r**3
            enough = jnp.linalg.norm(new_slope) <= jnp.maximum(goal, floor)
            h = jnp.where(passed, new, h)
            smooth = jnp.where(passed, jnp.maximum(0.5 * smooth, 0.5), 2 * smooth)
            again = ~(passed & enough) & (trials + 1 < max_trials)
            return h, smooth, trials + 1, again

        one = jnp.ones((), self.gradient.dtype)
        nothing, go = jnp.asarray(0, jnp.int32), jnp.isfinite(floor)
        start = (jnp.zeros_like(self.gradient), one, nothing, go)
        h, *_ = loops.while_loop(lambda carry: carry[-1], attempt, start)
        return jnp.where(jnp.isfinite(floor), h, jnp.nan)


class AcceleratedTensor(AbstractSolver):
    """Accelerated third-order tensor method for convex $f$; the second-order one is
    `AcceleratedCubicNewton`.

    With $\\alpha_t = 4 / (t + 4)$ and $A_t = 24 / ((t + 1) \\cdots (t + 4))$, the steps are those
    there, but $x_{t+1} - v$ minimizes the model

    $$\\langle g, h\\rangle + \\tfrac12 h^\\top H h + \\tfrac16 D^3 f(v)[h]^3
      + \\tfrac{\\tau_2}2 |h|^2 + \\tfrac{\\tau_3}6 |h|^3 + \\tfrac M{24} |h|^4$$

    and the estimating function has the powers 2 to 4, with
    $\\kappa_2 = 2 \\tau_2 \\alpha_t^2 / A_t$, $\\kappa_3 = \\tfrac83 \\tau_3 \\alpha_t^3 / A_t$ and
    $\\kappa_4 = c M \\alpha_t^4 / A_t$, where $\\tau_i$ is twice the error of the $i$-th
    derivative. If the third derivative has the Lipschitz constant $L_3 \\le M / 3$ the model is
    convex, and with exact derivatives $f(x_T) - f^*$ is of the order $L_3 R^4 / T^4$; $c = 9/4$ is
    what the proof asks for with the model minimized.

    The model is minimized by Bregman gradient steps relative to
    $\\tfrac12 h^\\top (H + \\tau_2) h + \\tfrac M8 |h|^4$, each $O(d^2)$ and one product with
    the third derivative by nested forward mode, until its gradient is at most
    $\\tfrac{\\tau_2}4 |h| + \\tfrac M{24} |h|^3$.

    The error is that of `AcceleratedCubicNewton`. `UnrolledAdjoint` works in forward mode only.

    **Arguments:**

    - `constant`: $M > 0$.
    - `hessian_error`, `third_error`: bounds on the errors of the second and third derivatives.
    - `radius`, `strong_convexity`: $R$ and $\\mu$ for restarts, after
      $\\max\\{(256\\, c M R^2 / \\mu)^{1/4}, (768\\, \\delta_2 / \\mu)^{1/2},
      (1366\\, \\delta_3 R / \\mu)^{1/3}\\}$ steps.
    - `prox_scale`: $c$.
    - `inner_steps`: Bregman steps tried for one model.
    - `oracle`, `check_every`: see there; the third derivative is the exact one.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Agafonov, Kamzolov, Gasnikov, Kavis, Antonakopoulos, Cevher, Takáč, Advancing the
    Lower Bounds: An Accelerated, Stochastic, Second-order Method with Optimal Adaptation to
    Inexactness, 2023, arXiv:2309.01570. Nesterov, Implementable Tensor Methods in Unconstrained
    Convex Optimization, 2021.
    """

    constant: Scalar = scalar_field(1.0)
    hessian_error: Scalar = scalar_field(0.0)
    third_error: Scalar = scalar_field(0.0)
    radius: Scalar | None = _optional()
    strong_convexity: Scalar | None = _optional()
    prox_scale: Scalar = scalar_field(9 / 4)
    inner_steps: int = 60
    oracle: AbstractOracle = FullOracle()
    check_every: int = 10
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (Smooth, FiniteSum)

    def __check_init__(self):
        _check_common(self)
        checks.nonnegative("hessian_error", self.hessian_error)
        checks.nonnegative("third_error", self.third_error)
        checks.count("inner_steps", self.inner_steps)

    def init(self, problem, x, key):
        return _start(self, problem, x, key, 3)

    def step(self, problem, x, state):
        flat = _flat(problem, x)
        dtype = flat.x.dtype
        keys = jax.random.split(state.key, 4)
        t = state.age.astype(dtype)
        M = self.constant.astype(dtype)
        tau, nu = 2 * self.hessian_error.astype(dtype), 2 * self.third_error.astype(dtype)
        alpha, share = 4 / (t + 4), 24 / ((t + 1) * (t + 2) * (t + 3) * (t + 4))
        middle = _from(flat, (1 - alpha) * flat.x + alpha * state.y)
        slope_of = lambda v: tree.gradient(flat.fun, v)
        along = lambda v, h: jax.jvp(slope_of, (v,), (h,))[1]
        third = lambda h: jax.jvp(lambda v: along(v, h), (middle.x,), (h,))[1]
        model = _Model(
            self.oracle.gradient(problem, middle, keys[2]),
            _cubic.eigen(self.oracle.hessian(problem, middle, keys[1])),
            third,
            (tau, nu),
            M,
        )
        new = middle.x + model.minimize(self.inner_steps)
        gradient = self.oracle.gradient(problem, _from(flat, new), keys[3])
        slope = state.slope + alpha / share * gradient
        scales = jnp.stack(
            [
                2 * tau * alpha**2 / share,
                8 / 3 * nu * alpha**3 / share,
                self.prox_scale * M * alpha**4 / share,
            ]
        )
        scales = jnp.maximum(state.scales, scales.astype(dtype))
        size = jnp.linalg.norm(slope)
        r = _radius(scales, size)
        y = state.center - jnp.where(size > 0, r / jnp.where(size > 0, size, 1), 0) * slope
        error = _measured(self, flat, new, gradient, state)
        state = _advanced(state, y, slope, scales, keys[0], error)
        if self.strong_convexity is not None:
            mu, R = self.strong_convexity.astype(dtype), state.radius
            terms = (
                (256 * self.prox_scale.astype(dtype) * M * R**2 / mu) ** 0.25,
                jnp.sqrt(384 * tau / mu),
                (2048 / 3 * nu * R / mu) ** (1 / 3),
            )
            state = _restarted(state, new, terms)
        return flat.unravel(new), state

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        return _finished(self, problem, x, state)

    def last_step(self, problem, x, state):
        return _cubic.newton_point(_objective(problem), x)


def _radius(scales, size):
    """The root of $\\kappa_2 r + \\kappa_3 r^2 / 2 + \\kappa_4 r^3 / 6 = |s|$, by Newton's method
    from above, where it falls to the root without passing it."""
    k2, k3, k4 = scales

    def improve(_, r):
        gap = r * (k2 + r * (k3 / 2 + r * k4 / 6)) - size
        steep = k2 + r * (k3 + r * k4 / 2)
        return r - jnp.where(steep > 0, gap / jnp.where(steep > 0, steep, 1), 0)

    return loops.fori_loop(0, 40, improve, jnp.cbrt(6 * size / k4))
