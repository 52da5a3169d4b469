"""Accelerated gradient method for sparse models with folded concave penalties."""

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import AbstractSolver, Composite, Scalar, checks, loops, scalar_field, solve, tree
from ..core.confirm import confirmed, forgotten
from ..core.objectives import AbstractLinearLoss
from ..core.solution import Status
from ..prox import L1, AbstractFoldedConcave


class AbstractAveraging(eqx.Module):
    """The weights $\\alpha_k$ and the steps $\\lambda_k$ of an accelerated method."""

    @abc.abstractmethod
    def following(self, alpha: Float[Array, ""]) -> Float[Array, ""]:
        """$\\alpha_{k+1}$ from $\\alpha_k$; the first is 1."""

    @abc.abstractmethod
    def step(self, alpha: Float[Array, ""], step: Float[Array, ""]) -> Float[Array, ""]:
        """$\\lambda_k$ for the short step $\\beta$."""


class OptimalAveraging(AbstractAveraging):
    """$\\alpha_{k+1} = 2 / (1 + \\sqrt{1 + 4 / \\alpha_k^2})$ and
    $\\lambda_k = \\beta / \\alpha_k$, which make the complexity bound least."""

    def following(self, alpha):
        return 2 * alpha / (alpha + jnp.sqrt(alpha**2 + 4))

    def step(self, alpha, step):
        return step / alpha


class HarmonicAveraging(AbstractAveraging):
    """$\\alpha_k = 2 / (k + 1)$ and $\\lambda_k = k \\beta / 2$, as Ghadimi and Lan propose."""

    def following(self, alpha):
        return 2 * alpha / (2 + alpha)

    def step(self, alpha, step):
        return (1 / alpha - 0.5) * step


class SpeedRestart(eqx.Module):
    """Begin the averaging anew where $|y_k - y_{k-1}|$ has fallen.

    **Arguments:**

    - `patience`: steps between restarts at least.
    """

    patience: int = 3

    def __check_init__(self):
        checks.count("patience", self.patience)


class _State(eqx.Module):
    leading: PyTree[Array]  # b
    middle: PyTree[Array]  # b_md
    alpha: Float[Array, ""]
    lipschitz: Float[Array, ""]
    speed: Float[Array, ""]
    slower: Bool[Array, ""]
    since: Int[Array, ""]
    error: Float[Array, ""]


def _curvature(smooth, x, power_steps=30):
    """A largest eigenvalue of the Hessian by the power method: of its bound for a linear model, at
    `x` for others."""
    if isinstance(smooth, AbstractLinearLoss) and smooth.curvature < float("inf"):
        n = smooth.matrix.shape[0]
        adjoint = jnp.conj(smooth.matrix.T)
        product = lambda v: smooth.curvature / n * (adjoint @ (smooth.matrix @ v))
        product = lambda v, inner=product: jax.tree.map(inner, v)
    else:
        _, product = jax.linearize(lambda v: tree.gradient(smooth, v), x)
    # Any direction with a part along all coordinates will do.
    start = jax.tree.map(lambda a: jnp.sin(1 + jnp.arange(a.size, dtype=a.real.dtype)), x)
    start = jax.tree.map(lambda v, a: v.reshape(a.shape).astype(a.dtype), start, x)

    def improve(_, carry):
        v, _ = carry
        size = tree.norm(v)
        v = tree.scale(v, jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0))
        image = tree.cast_like(product(v), x)
        return image, tree.norm(image)

    first = (start, tree.norm(start).astype(tree.real_dtype(x)))
    return loops.fori_loop(0, power_steps, improve, first)[1]


class NonconvexAGD(AbstractSolver):
    """Accelerated gradient method for $\\ell(x) + \\sum_j p_\\lambda(x_j)$ with a penalty that is
    not convex, SCAD or MCP.

    The penalty is split, $p_\\lambda(x) = \\lambda |x| + q(x)$ with $q$ smooth and concave. With
    $\\beta = c / L$, $\\alpha_1 = 1$ and $b_0 = x_0$,

    $$\\begin{aligned} y_k &= (1 - \\alpha_k) x_{k-1} + \\alpha_k b_{k-1}, \\qquad
      g_k = \\nabla \\ell(y_k) + \\nabla q(y_k), \\\\
      b_k &= \\mathrm{soft}(b_{k-1} - \\lambda_k g_k,\\ \\lambda_k \\lambda), \\\\
      x_k &= \\mathrm{soft}(y_k - \\beta g_k,\\ \\beta \\lambda), \\end{aligned}$$

    where $L$ is the larger of the Lipschitz constant of $\\nabla \\ell$ and the concavity of $q$,
    $1 / (a - 1)$ or $1 / \\gamma$. The $L_1$ norm is a penalty with $q = 0$. Coordinates of weight
    zero, an intercept say, are not penalized.

    The error is $|y_k - x_k| / \\beta$; where that is at most `tol`, the larger of it and the norm
    of the problem's residual $x - \\mathrm{prox}_p(x - \\nabla \\ell(x))$ at the value. This is
    zero exactly at stationary points if $a > 2$ or $\\gamma > 1$; different methods may stop at
    different ones.

    **Arguments:**

    - `averaging`: `OptimalAveraging()` or `HarmonicAveraging()`.
    - `restart`: `SpeedRestart(patience)` or `None`.
    - `lipschitz`: the Lipschitz constant of $\\nabla \\ell$; `None` estimates it by thirty steps of
      the power method, from the bound on the curvature of a linear model or the Hessian at the
      start, and doubles it where a step shows it to be too small.
    - `safety`: $c > 0$; theory has $c \\le 1$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` if the nonsmooth part is none of `SCAD`, `MCP`, `L1`.

    **Reference:** Yang, Asgharian, Bhatnagar, Accelerated Gradient Methods for Sparse Statistical
    Learning with Nonconvex Penalties, 2024, arXiv:2009.10629. Ghadimi, Lan, Accelerated Gradient
    Methods for Nonconvex Nonlinear and Stochastic Programming, 2016, arXiv:1310.3787.
    """

    averaging: AbstractAveraging = OptimalAveraging()
    restart: SpeedRestart | None = SpeedRestart()
    lipschitz: Scalar | None = scalar_field(None)
    safety: Scalar = scalar_field(0.99)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Composite,)

    def __check_init__(self):
        checks.instance("averaging", self.averaging, AbstractAveraging, "OptimalAveraging()")
        if self.restart is not None:
            checks.instance("restart", self.restart, SpeedRestart, "SpeedRestart()")
        if self.lipschitz is not None:
            checks.positive("lipschitz", self.lipschitz)
        checks.positive("safety", self.safety)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        _, _, concavity = _split(problem.nonsmooth)
        if self.lipschitz is None:
            lipschitz = _curvature(problem.smooth, x).astype(dtype)
        else:
            lipschitz = self.lipschitz.astype(dtype)
        lipschitz = jnp.maximum(lipschitz, jnp.asarray(concavity, dtype))
        lipschitz = jnp.maximum(lipschitz, jnp.finfo(dtype).tiny)
        infinity, zero = jnp.asarray(jnp.inf, dtype), jnp.asarray(0, jnp.int32)
        nothing, no = jnp.zeros((), dtype), jnp.asarray(False)
        return _State(x, x, infinity, lipschitz, nothing, no, zero, infinity)

    def refresh(self, problem, x, state):
        return forgotten(state)

    def step(self, problem, x, state):
        l1, concave_gradient, _ = _split(problem.nonsmooth)
        dtype = state.lipschitz.dtype
        first = jnp.isinf(state.alpha)
        alpha = self.averaging.following(jnp.where(first, 1, state.alpha))
        again = first
        if self.restart is not None:
            again = again | (state.slower & (state.since >= self.restart.patience))
        alpha = jnp.where(again, 1, alpha).astype(dtype)
        since = jnp.where(again, 0, state.since) + 1

        beta = self.safety.astype(dtype) / state.lipschitz
        long = self.averaging.step(alpha, beta)
        move = jax.tree.map(jnp.subtract, state.leading, x)
        y = tree.axpy(x, alpha, move)
        value, gradient = tree.value_and_gradient(problem.smooth, y)
        g = jax.tree.map(jnp.add, gradient, concave_gradient(y))
        leading = l1.prox(tree.axpy(state.leading, -long, g), long)
        new = tree.cast_like(l1.prox(tree.axpy(y, -beta, g), beta), x)

        gap = jax.tree.map(jnp.subtract, new, y)
        lipschitz = state.lipschitz
        if self.lipschitz is None:
            square = tree.vdot(gap, gap)
            bound = value + tree.vdot(gradient, gap) + 0.5 * lipschitz * square
            slack = 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)
            short = ~(problem.smooth(new) <= bound + slack) & jnp.isfinite(value)
            lipschitz = jnp.where(short, 2 * lipschitz, lipschitz).astype(dtype)
        speed = tree.norm(jax.tree.map(jnp.subtract, y, state.middle)).astype(dtype)
        estimate = (tree.norm(gap) / beta).astype(dtype)
        error = confirmed(problem, new, estimate, state.error, self.tol)
        leading = tree.cast_like(leading, x)
        slower = speed < state.speed
        return new, _State(leading, y, alpha, lipschitz, speed, slower, since, error)

    def error(self, problem, x, state):
        return state.error

    def last_step(self, problem, x, state):
        beta = self.safety / state.lipschitz
        gradient = tree.gradient(problem.smooth, x)
        l1, concave_gradient, _ = _split(problem.nonsmooth)
        g = jax.tree.map(jnp.add, gradient, concave_gradient(x))
        return l1.prox(tree.axpy(x, -beta, g), beta)


def _split(penalty) -> tuple[L1, Callable[[PyTree], PyTree], Array | float]:
    """The norm, the gradient of the concave rest, and its concavity."""
    if isinstance(penalty, AbstractFoldedConcave):
        return penalty.l1_part(), penalty.concave_gradient, penalty.concavity()
    if isinstance(penalty, L1):
        return penalty, lambda x: jax.tree.map(jnp.zeros_like, x), 0.0
    raise TypeError(f"the nonsmooth part must be SCAD, MCP or L1, got {penalty!r}")


def marginal_slopes(matrix: Float[Array, "n d"], targets: Float[Array, " n"]) -> Float[Array, " d"]:
    """The slope of each column alone, $\\langle x_j, y - \\bar y\\rangle / |x_j|^2$: a start
    without a warm one.

    **Arguments:**

    - `matrix`: $X$, shape `(n, d)`; columns of zeros get the slope zero.
    - `targets`: $y$, shape `(n,)`.
    """
    squares = jnp.sum(matrix**2, axis=0)
    along = matrix.T @ (targets - jnp.mean(targets))
    return jnp.where(squares > 0, along / jnp.where(squares > 0, squares, 1), 0)


class SparsePath(NamedTuple):
    """Solutions for a sequence of penalties.

    **Attributes:**

    - `weights`: the sequence, shape `(k,)`.
    - `coefficients`: shape `(k, d)`.
    - `converged`: whether each solve did, shape `(k,)`.
    - `kept`: the coordinates that screening left in the last solve of each, shape `(k,)`.
    - `solves`: how many solves each took, shape `(k,)`: more than one where screening was wrong.
    """

    weights: Float[Array, " k"]
    coefficients: Float[Array, "k d"]
    converged: Bool[Array, " k"]
    kept: Int[Array, " k"]
    solves: Int[Array, " k"]


def sparse_path(
    loss: AbstractLinearLoss,
    penalty: AbstractFoldedConcave | L1,
    weights: Float[Array, " k"],
    solver: AbstractSolver | None = None,
    *,
    screen: bool = True,
) -> SparsePath:
    """Solutions along a falling sequence of penalties, each from the one before.

    The sequential strong rule leaves out the coordinates with
    $|\\nabla_j \\ell(x)| < (2 \\lambda - \\lambda') w_j$ at the last solution $x$, that of
    $\\lambda'$, unless $x_j \\ne 0$. It can be wrong, and so the condition
    $|\\nabla_j \\ell| \\le \\lambda w_j$ is checked behind a solve, and those that break it come
    back for another.

    **Arguments:**

    - `loss`: a linear model, shape `(n, d)`; columns should have one scale.
    - `penalty`: `SCAD`, `MCP` or `L1` whose weight is a number or an array $w$ of shape `(d,)`,
      zero for an intercept; it is multiplied by each $\\lambda$.
    - `weights`: the $\\lambda$, falling; the first is best the least that gives zero.
    - `solver`: `NonconvexAGD(tol=1e-6)` by default.
    - `screen`: use the rule.

    **Raises:** `TypeError` for another penalty; `ValueError` if the weights do not fall.
    """
    _split(penalty)
    solver = NonconvexAGD() if solver is None else solver
    weights = jnp.asarray(weights)
    if weights.ndim != 1:
        raise ValueError(f"weights must be a vector, got shape {weights.shape}")
    if not checks.is_traced(weights):
        checks.nonnegative("weights", weights)
        checks.nonnegative("the fall of weights", weights[:-1] - weights[1:])
    return _path(loss, penalty, weights, solver, screen)


@eqx.filter_jit
def _path(loss, penalty, weights, solver, screen):
    d, dtype = loss.matrix.shape[1], jnp.result_type(loss.matrix, float)
    dtype = loss.matrix.dtype
    share = jnp.broadcast_to(jnp.asarray(penalty.weight, dtype), (d,))
    # So dear that a coordinate stays at zero, and far from overflow in squares.
    dear = jnp.asarray(jnp.finfo(dtype).max, dtype) ** 0.25

    def visit(carry, weight):
        x, last = carry
        slope = jnp.abs(tree.gradient(loss, x))
        keep = (slope >= (2 * weight - last) * share) | (x != 0) | (share == 0)
        keep = keep if screen else jnp.ones_like(keep)

        def attempt(carry):
            x, keep, _, solves, _ = carry
            inside = dataclasses.replace(penalty, weight=jnp.where(keep, weight * share, dear))
            solution = solve(Composite(loss, inside), solver, x)
            slope = jnp.abs(tree.gradient(loss, solution.value))
            slack = 10 * jnp.finfo(dtype).eps * jnp.max(slope)
            wrong = ~keep & (slope > weight * share + slack)
            done = solution.status == Status.converged
            return solution.value, keep | wrong, done, solves + 1, jnp.any(wrong)

        no, go = jnp.asarray(False), jnp.asarray(True)
        start = (x, keep, no, jnp.asarray(0, jnp.int32), go)
        x, keep, done, solves, _ = loops.while_loop(lambda c: c[-1], attempt, start)
        return (x, weight), (x, done, jnp.sum(keep, dtype=jnp.int32), solves)

    weights = weights.astype(dtype)
    _, found = loops.scan(visit, (jnp.zeros(d, dtype), weights[0]), weights)
    return SparsePath(weights, *found)
