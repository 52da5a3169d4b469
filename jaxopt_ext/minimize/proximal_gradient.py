"""Proximal gradient methods for $f(x) + g(x)$, and projected gradient methods."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import (
    AbstractSolver,
    Composite,
    Constrained,
    Scalar,
    Smooth,
    checks,
    scalar_field,
    tree,
)
from ..core.confirm import confirmed
from .step_size import AbstractStepSize, Backtracking


def smooth_part(problem):
    """The differentiable function of a problem and the prox of the rest."""
    match problem:
        case Composite():
            return problem.smooth, problem.nonsmooth.prox
        case Constrained():
            return problem.smooth, lambda x, step: problem.feasible.project(x)
        case Smooth():
            return problem.fun, lambda x, step: x
    raise TypeError(f"no smooth part in {type(problem).__name__}")


class _State(eqx.Module):
    value: Float[Array, ""]
    gradient: PyTree[Array]
    step_size: Float[Array, ""]
    error: Float[Array, ""]


class ProximalGradient(AbstractSolver):
    """Forward-backward splitting, known as ISTA for the lasso,

    $$x \\leftarrow \\mathrm{prox}_{t g}(x - t \\nabla f(x)).$$

    The error is the norm of the problem's residual at the value, $\\|x^+ - \\mathrm{prox}_g(x^+ -
    \\nabla f(x^+))\\|$, whatever the step size; the gradient there is that of the next step. On a
    `Constrained` problem this is the projected gradient method.

    **Arguments:**

    - `step_size`: a rule for $t$, `Backtracking()` or `FixedStep(t)`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Combettes, Wajs, Signal Recovery by Proximal Forward-Backward Splitting, 2005.
    """

    step_size: AbstractStepSize = eqx.field(default_factory=Backtracking)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Composite, Constrained, Smooth)

    def __check_init__(self):
        checks.instance("step_size", self.step_size, AbstractStepSize, "FixedStep(0.1)")

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        value, gradient = tree.value_and_gradient(smooth_part(problem)[0], x)
        infinity = jnp.asarray(jnp.inf, dtype)
        return _State(value, gradient, self.step_size.first().astype(dtype), infinity)

    def refresh(self, problem, x, state):
        value, gradient = tree.value_and_gradient(smooth_part(problem)[0], x)
        return _State(value, gradient, state.step_size, state.error)

    def step(self, problem, x, state):
        fun, prox = smooth_part(problem)
        new, step = self.step_size.take(fun, x, state.value, state.gradient, prox, state.step_size)
        x = tree.cast_like(new, x)
        value, gradient = tree.value_and_gradient(fun, x)
        if isinstance(problem, Smooth):
            residual = gradient  # x - (x - gradient) would lose the digits below those of x
        else:
            moved = prox(jax.tree.map(jnp.subtract, x, gradient), 1.0)
            residual = jax.tree.map(jnp.subtract, x, moved)
        return x, _State(value, gradient, step, tree.norm(residual))

    def error(self, problem, x, state):
        return state.error


class _MomentumState(eqx.Module):
    y: PyTree[Array]
    t: Float[Array, ""]
    step_size: Float[Array, ""]
    error: Float[Array, ""]


class FISTA(AbstractSolver):
    """Accelerated proximal gradient,

    $$x_{k+1} = \\mathrm{prox}_{s_k g}(y_k - s_k \\nabla f(y_k)), \\quad
      t_{k+1} = \\tfrac12 \\bigl(1 + \\sqrt{1 + 4 t_k^2 s_{k-1} / s_k}\\bigr), \\quad
      y_{k+1} = x_{k+1} + \\tfrac{t_k - 1}{t_{k+1}} (x_{k+1} - x_k),$$

    where the ratio of step sizes keeps the rate when a search lets them grow. It is that of the
    last two; Scheinberg et al. take the next one, and so compute $y$ and its gradient again at each
    trial of a search. With `restart`, the momentum is dropped whenever it points uphill,
    $\\langle y_k - x_{k+1}, x_{k+1} - x_k\\rangle > 0$, which gives linear convergence on strongly
    convex problems without knowing how strongly.

    The error is the norm of the gradient mapping at $y_k$, $\\|y_k - x_{k+1}\\| / s_k$; where that
    is at most `tol`, the larger of it and the norm of the problem's residual at the value
    $x_{k+1}$, which costs one more gradient.

    **Arguments:**

    - `step_size`: a rule for $s$, `Backtracking()` or `FixedStep(s)`.
    - `restart`: restart the momentum adaptively.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Beck, Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm for Linear
    Inverse Problems, 2009. Scheinberg, Goldfarb, Bai, Fast First-Order Methods for Composite Convex
    Optimization with Backtracking, 2014. O'Donoghue, Candès, Adaptive Restart for Accelerated
    Gradient Schemes, 2015, arXiv:1204.3982.
    """

    step_size: AbstractStepSize = eqx.field(default_factory=Backtracking)
    restart: bool = eqx.field(static=True, default=True)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Composite, Constrained, Smooth)

    def __check_init__(self):
        checks.instance("step_size", self.step_size, AbstractStepSize, "FixedStep(0.1)")

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        step = self.step_size.first().astype(dtype)
        return _MomentumState(x, jnp.ones((), dtype), step, jnp.asarray(jnp.inf, dtype))

    def refresh(self, problem, x, state):
        return _MomentumState(
            state.y, state.t, state.step_size, jnp.full_like(state.error, jnp.inf)
        )

    def step(self, problem, x, state):
        fun, prox = smooth_part(problem)
        value, gradient = tree.value_and_gradient(fun, state.y)
        new, step = self.step_size.take(fun, state.y, value, gradient, prox, state.step_size)
        # The first search may shrink the step by any factor: there is no momentum to keep then.
        ratio = jnp.where(state.t > 1, state.step_size / step, 1)
        t = 0.5 * (1 + jnp.sqrt(1 + 4 * state.t**2 * ratio))
        move = jax.tree.map(jnp.subtract, new, x)
        pull = jax.tree.map(jnp.subtract, state.y, new)
        momentum = (state.t - 1) / t
        if self.restart:
            uphill = tree.vdot(pull, move) > 0
            t = jnp.where(uphill, 1, t)
            momentum = jnp.where(uphill, 0, momentum)
        y = jax.tree.map(lambda a, m: a + momentum.astype(m.real.dtype) * m, new, move)
        mapping = tree.norm(pull) / step
        error = confirmed(problem, new, mapping, state.error, self.tol)
        return new, _MomentumState(y, t, step, error)

    def error(self, problem, x, state):
        return state.error
