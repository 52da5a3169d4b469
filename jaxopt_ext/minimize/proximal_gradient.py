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
    step_size: Float[Array, ""]
    error: Float[Array, ""]


def _gradient_mapping(y, x, step):
    return tree.norm(jax.tree.map(jnp.subtract, y, x)) / step


class ProximalGradient(AbstractSolver):
    """Forward-backward splitting, known as ISTA for the lasso,

    $$x \\leftarrow \\mathrm{prox}_{t g}(x - t \\nabla f(x)).$$

    The error is the norm of the gradient mapping $\\|x - x^+\\| / t$. On a `Constrained` problem
    this is the projected gradient method.

    **Arguments:**

    - `step_size`: a rule for $t$, `Backtracking()` or `FixedStep(t)`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Combettes, Wajs, Signal Recovery by Proximal Forward-Backward Splitting, 2005.
    """

    step_size: AbstractStepSize = Backtracking()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Composite, Constrained, Smooth)

    def __check_init__(self):
        checks.instance("step_size", self.step_size, AbstractStepSize, "FixedStep(0.1)")

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        return _State(self.step_size.first().astype(dtype), jnp.asarray(jnp.inf, dtype))

    def step(self, problem, x, state):
        fun, prox = smooth_part(problem)
        value, gradient = tree.value_and_gradient(fun, x)
        new, step = self.step_size.take(fun, x, value, gradient, prox, state.step_size)
        return new, _State(step, _gradient_mapping(x, new, step))

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

    The error is the norm of the gradient mapping at $y_k$.

    **Arguments:**

    - `step_size`: a rule for $s$, `Backtracking()` or `FixedStep(s)`.
    - `restart`: restart the momentum adaptively.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Beck, Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm for Linear
    Inverse Problems, 2009. Scheinberg, Goldfarb, Bai, Fast First-Order Methods for Composite Convex
    Optimization with Backtracking, 2014. O'Donoghue, Candès, Adaptive Restart for Accelerated
    Gradient Schemes, 2015, arXiv:1204.3982.
    """

    step_size: AbstractStepSize = Backtracking()
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
        return new, _MomentumState(y, t, step, _gradient_mapping(state.y, new, step))

    def error(self, problem, x, state):
        return state.error
