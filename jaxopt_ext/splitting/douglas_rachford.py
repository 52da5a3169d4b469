"""Douglas-Rachford splitting."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import (
    AbstractSplittingSolver,
    Composite,
    Constrained,
    Scalar,
    checks,
    scalar_field,
    tree,
)
from ..core.confirm import confirmed
from ..core.objectives import SquaredLoss
from ..core.operators import is_sparse


class _QuadraticProx(eqx.Module):
    """The prox of a least-squares loss, with its factor."""

    factor: Array
    linear: Array
    step: Float[Array, ""]

    def __call__(self, x):
        return jax.scipy.linalg.cho_solve((self.factor, False), x + self.step * self.linear)


class _FunctionProx(eqx.Module):
    function: Any
    step: Float[Array, ""]

    def __call__(self, x):
        return self.function.prox(x, self.step)


class _Operator(eqx.Module):
    """$u + \\lambda (\\mathrm{prox}_{tg}(2p - u) - p)$ with $p = \\mathrm{prox}_{tf}(u)$."""

    first: Any
    second: Any
    relaxation: Float[Array, ""]

    def __call__(self, u):
        return self.move(u, *self.pair(u))

    def pair(self, u):
        """The two proxes at $u$."""
        p = self.first(u)
        return p, self.second(jax.tree.map(lambda a, b: 2 * a - b, p, u))

    def move(self, u, p, q):
        return jax.tree.map(
            lambda a, b, c: a + self.relaxation.astype(a.real.dtype) * (b - c), u, q, p
        )


class _State(eqx.Module):
    operator: _Operator
    u: PyTree[Array]
    p: PyTree[Array]
    q: PyTree[Array]
    error: Float[Array, ""]


class DouglasRachford(AbstractSplittingSolver):
    """Douglas-Rachford splitting of $f(x) + g(x)$, both with a prox,

    $$u \\leftarrow u + \\lambda \\bigl(\\mathrm{prox}_{tg}(2p - u) - p\\bigr), \\qquad
      p = \\mathrm{prox}_{tf}(u), \\qquad x = p \\text{ at a fixed point}.$$

    $f$ is the `smooth` part of a `Composite` or `Constrained` problem and must have a prox itself,
    or be `objectives.SquaredLoss`, whose prox is a linear solve that is factorized once, for which
    a sparse matrix is made dense. The value is $q = \\mathrm{prox}_{tg}(2p - u)$, so that it is
    feasible or sparse. The error is $\\max(1, 1/t)\\, \\|q - p\\|$: the gap between the two points,
    or the sum of subgradients at them, which is the gap over $t$, whichever is larger; where that
    is at most `tol`, the larger of it and the norm of the problem's residual at the value. Like the
    problem's residual, it asks for a differentiable $f$: of two functions with kinks make a
    `Splitting`.

    **Arguments:**

    - `step_size`: $t > 0$.
    - `relaxation`: $\\lambda \\in (0, 2)$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` if $f$ has no prox.

    **Reference:** Lions, Mercier, Splitting Algorithms for the Sum of Two Nonlinear Operators,
    1979. Eckstein, Bertsekas, On the Douglas-Rachford Splitting Method, 1992.
    """

    step_size: Scalar = scalar_field(1.0)
    relaxation: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Composite, Constrained)

    def __check_init__(self):
        checks.positive("step_size", self.step_size)
        checks.interval("relaxation", self.relaxation, 0, 2, open_low=True, open_high=True)

    def operator(self, problem, u):
        smooth = problem.smooth
        other = problem.nonsmooth if isinstance(problem, Composite) else problem.feasible
        if hasattr(smooth, "prox"):
            first = _FunctionProx(smooth, self.step_size)
        elif isinstance(smooth, SquaredLoss):
            matrix: Any = smooth.matrix
            X, y = matrix.todense() if is_sparse(matrix) else matrix, smooth.targets
            n, d = X.shape
            step = self.step_size.astype(X.dtype)
            system = jnp.eye(d, dtype=X.dtype) + (step / n) * X.T @ X
            factor = jax.scipy.linalg.cho_factor(system)[0]
            first = _QuadraticProx(factor, X.T @ y / n, step)
        else:
            raise TypeError(
                f"DouglasRachford needs a smooth part with a prox, got {type(smooth).__name__}"
            )
        return _Operator(first, _FunctionProx(other, self.step_size), self.relaxation)

    def start(self, problem, x):
        return x

    def read(self, problem, u):
        return self.operator(problem, u).pair(u)[1]

    def init(self, problem, x, key):
        u, operator = self.start(problem, x), self.operator(problem, x)
        return _State(operator, u, *operator.pair(u), jnp.asarray(jnp.inf, tree.real_dtype(x)))

    def refresh(self, problem, x, state):
        operator = self.operator(problem, state.u)
        infinity = jnp.full_like(state.error, jnp.inf)
        return _State(operator, state.u, *operator.pair(state.u), infinity)

    def step(self, problem, x, state):
        operator = state.operator
        u = operator.move(state.u, state.p, state.q)
        p, q = operator.pair(u)
        gap = tree.norm(jax.tree.map(jnp.subtract, q, p))
        gap = gap * jnp.maximum(1, 1 / self.step_size).astype(gap.dtype)
        error = confirmed(problem, q, gap, state.error, self.tol)
        return q, _State(operator, u, p, q, error)

    def error(self, problem, x, state):
        return state.error
