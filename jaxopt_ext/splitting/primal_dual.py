"""The primal-dual hybrid gradient method."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import (
    AbstractSplittingSolver,
    PrimalDual,
    Saddle,
    Scalar,
    checks,
    scalar_field,
    tree,
)
from ..core.operators import Map, as_map, norm_bound


class _Operator(eqx.Module):
    """One primal-dual step with step sizes $\\tau = s / \\omega$ and $\\sigma = s \\omega$."""

    problem: Saddle
    tau: Float[Array, ""]
    sigma: Float[Array, ""]

    def __call__(self, u: PrimalDual) -> PrimalDual:
        x, y = u
        tau, sigma, K = self.tau, self.sigma, as_map(self.problem.K)
        slope = self.problem.primal_gradient(x, y)
        x_new = self.problem.f.prox(tree.axpy(x, -tau, slope), tau)
        ahead = jax.tree.map(lambda a, b: 2 * a - b, x_new, x)
        # Moreau: prox of sigma g* from the prox of g / sigma.
        v = tree.axpy(y, sigma, K(ahead))
        inner = jax.tree.map(lambda a: a / sigma.astype(a.real.dtype), v)
        y_new = tree.axpy(v, -sigma, self.problem.g.prox(inner, 1 / sigma))
        return PrimalDual(x_new, y_new)


class _Bounds(eqx.Module):
    """The norm of $K$ and the curvature of the smooth term, as far as it has been seen."""

    norm: Float[Array, ""]
    curvature: Float[Array, ""]


class _State(eqx.Module):
    step_size: Float[Array, ""]
    bounds: _Bounds | None  # of problems with a smooth term
    weight: Float[Array, ""]
    total: PrimalDual
    count: Int[Array, ""]
    anchor: PrimalDual
    anchor_error: Float[Array, ""]
    last_error: Float[Array, ""]
    steps: Int[Array, ""]
    error: Float[Array, ""]


class PrimalDualHybridGradient(AbstractSplittingSolver):
    """Chambolle-Pock (Condat-Vu with a smooth term) for $\\min_x \\max_y f(x) + h(x) +
    \\langle Kx, y\\rangle - g^*(y)$,

    $$x^+ = \\mathrm{prox}_{\\tau f}(x - \\tau (K^* y + \\nabla h(x))), \\qquad
      y^+ = \\mathrm{prox}_{\\sigma g^*}(y + \\sigma K (2 x^+ - x)),$$

    with $\\tau = s / \\omega$, $\\sigma = s \\omega$. The error is the norm of the problem's
    residual.

    With a smooth term of curvature $L$ it converges if $1/\\tau - \\sigma \\|K\\|^2 \\ge L / 2$.
    Steps are cut to that, for the weight at hand and the largest curvature seen: of the Hessian at
    the start, and then along the steps.

    **Arguments:**

    - `step_size`: $s$; `None` takes $0.99 / \\|K\\|$ by power iteration.
    - `weight`: $\\omega$, the ratio of dual to primal step.
    - `adaptive`: rescale $\\omega$ at each restart to the ratio of dual to primal movement.
    - `restart`: restart from the average of the iterates, or from the last one if better, when its
      residual has fallen enough; linear convergence for problems with sharp saddles (linear and
      quadratic programs, the lasso).
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Chambolle, Pock, A First-Order Primal-Dual Algorithm for Convex Problems, 2011.
    Condat, A Primal-Dual Splitting Method, 2013. Applegate et al., Faster First-Order Primal-Dual
    Methods for Linear Programming using Restarts and Sharpness, 2023, arXiv:2105.12715.
    """

    step_size: Float[Array, ""] | None = scalar_field(None)
    weight: Scalar = scalar_field(1.0)
    adaptive: bool = eqx.field(static=True, default=True)
    restart: bool = eqx.field(static=True, default=True)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (Saddle,)

    def __check_init__(self):
        if self.step_size is not None:
            checks.positive("step_size", self.step_size)
        checks.positive("weight", self.weight)

    def _step_size(self, problem, x):
        dtype = tree.real_dtype(x)
        if self.step_size is not None:
            return self.step_size.astype(dtype)
        bound = norm_bound(as_map(problem.K), x)
        return (0.99 / jnp.where(bound > 0, bound, 1)).astype(dtype)

    def operator(self, problem, u):
        step, bounds = self._step_size(problem, u.primal), _bounds(problem, u.primal)
        weight = self.weight.astype(step.dtype)
        step = _admissible(step, bounds, weight)
        return _Operator(problem, step / weight, step * weight)

    def start(self, problem, x):
        return problem.start(x)

    def read(self, problem, u):
        return u

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        infinity, zero = jnp.asarray(jnp.inf, dtype), jnp.asarray(0, jnp.int32)
        step = self._step_size(problem, x.primal)
        nothing = _zeros(x)
        weight = self.weight.astype(dtype)
        bounds = _bounds(problem, x.primal)
        return _State(step, bounds, weight, nothing, zero, x, infinity, infinity, zero, infinity)

    def refresh(self, problem, x, state):
        step, bounds = self._step_size(problem, x.primal), _bounds(problem, x.primal)
        return dataclasses.replace(state, step_size=step, bounds=bounds)

    def step(self, problem, x, state):
        step = _admissible(state.step_size, state.bounds, state.weight)
        new = _Operator(problem, step / state.weight, step * state.weight)(x)
        bounds = _seen(problem, state.bounds, x.primal, new.primal)
        error = tree.norm(problem.residual(new))
        steps = state.steps + 1
        if not self.restart:
            return new, dataclasses.replace(state, bounds=bounds, steps=steps, error=error)
        total = jax.tree.map(jnp.add, state.total, new)
        count = state.count + 1
        average = jax.tree.map(lambda a: a / count.astype(a.real.dtype), total)
        average_error = tree.norm(problem.residual(average))
        best = jnp.minimum(error, average_error)
        candidate = tree.where(average_error < error, average, new)
        restart = self._restart_now(best, count, steps, state)
        weight = state.weight
        if self.adaptive:
            weight = jnp.where(restart, self._balance(candidate, state), weight)
        kept = tree.where(restart, candidate, new)
        return kept, _State(
            state.step_size,
            bounds,
            weight,
            tree.where(restart, _zeros(x), total),
            jnp.where(restart, 0, count),
            tree.where(restart, candidate, state.anchor),
            jnp.where(restart, best, jnp.where(state.steps == 0, error, state.anchor_error)),
            best,
            steps,
            jnp.where(restart, best, error),
        )

    def _restart_now(self, best, count, steps, state) -> Bool[Array, ""]:
        sufficient = best <= 0.2 * state.anchor_error
        necessary = (best <= 0.8 * state.anchor_error) & (best > state.last_error)
        long = count >= 0.36 * steps
        return (state.steps > 0) & (sufficient | necessary | (long & (count > 20)))

    def _balance(self, candidate, state):
        primal = tree.norm(jax.tree.map(jnp.subtract, candidate.primal, state.anchor.primal))
        dual = tree.norm(jax.tree.map(jnp.subtract, candidate.dual, state.anchor.dual))
        fine = (primal > 0) & (dual > 0)
        ratio = jnp.where(fine, dual, 1) / jnp.where(fine, primal, 1)
        return jnp.where(fine, jnp.sqrt(ratio * state.weight), state.weight)

    def error(self, problem, x, state):
        return state.error


def _zeros(x: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(jnp.zeros_like, x)


def _bounds(problem: Saddle, x: PyTree[Array]) -> _Bounds | None:
    if problem.smooth is None:
        return None
    smooth = problem.smooth
    slope = lambda x: tree.gradient(smooth, x)
    hessian = lambda v: jax.jvp(slope, (x,), (v,))[1]
    bounds = norm_bound(as_map(problem.K), x), norm_bound(Map(hessian, hessian), x)
    return _Bounds(*(bound.astype(tree.real_dtype(x)) for bound in bounds))


def _seen(problem, bounds: _Bounds | None, x, new) -> _Bounds | None:
    """The bounds with the curvature along a step, where that is not mere rounding."""
    if bounds is None:
        return None
    moved = jax.tree.map(jnp.subtract, new, x)
    slopes = (tree.gradient(problem.smooth, point) for point in (new, x))
    square = tree.vdot(moved, moved)
    along = tree.vdot(jax.tree.map(jnp.subtract, *slopes), moved)
    counts = square > jnp.finfo(square.dtype).eps * tree.vdot(new, new)
    curvature = jnp.where(counts, along / jnp.where(counts, square, 1), 0)
    return _Bounds(bounds.norm, jnp.fmax(bounds.curvature, curvature))


def _admissible(step, bounds: _Bounds | None, weight):
    """The step size, at most the largest with $\\omega / s - s \\omega \\|K\\|^2 \\ge L / 2$."""
    if bounds is None:
        return step
    half = bounds.curvature / 4
    root = half + jnp.sqrt(half**2 + (weight * bounds.norm) ** 2)
    return jnp.where(root > 0, jnp.minimum(step, weight / jnp.where(root > 0, root, 1)), step)
