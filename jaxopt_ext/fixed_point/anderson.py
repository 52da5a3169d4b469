"""Anderson acceleration."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core import AbstractSolver, Feedforward, FixedPoint, Scalar, checks, ring, scalar_field, tree
from .picard import apply, mix


class _State(eqx.Module):
    ahead: PyTree[Array]
    points: PyTree[Array]
    residuals: PyTree[Array]
    gram: Float[Array, "m m"]
    steps: Int[Array, ""]
    accepted: Int[Array, ""]
    first_error: Float[Array, ""]
    error: Float[Array, ""]


class Anderson(AbstractSolver):
    """Anderson acceleration of $x = T(x)$, regularized and safeguarded.

    From the last $m$ points $x_i$ with residuals $r_i = T(x_i) - x_i$,

    $$\\alpha = \\arg\\min_{\\sum \\alpha_i = 1} \\|\\textstyle\\sum \\alpha_i r_i\\|^2
      + \\epsilon \\max_i \\|r_i\\|^2 \\, \\|\\alpha\\|^2, \\qquad
      x_{k+1} = \\sum_i \\alpha_i (x_i + \\beta r_i).$$

    The safeguard takes the accelerated point only while
    $\\|r_k\\| \\le D \\|r_0\\| (a + 1)^{-1.001}$, with $a$ the number of points taken so far, and
    an averaged step $x + \\tfrac12 r$ otherwise, so that nonexpansive maps converge. One evaluation
    of $T$ a step; the Gram matrix is updated, not computed again. The value is the last
    point whose error is known; the error is the norm of the residual, $\\|T(x) - x\\|$, there.

    **Arguments:**

    - `history`: $m$.
    - `mixing`: $\\beta$.
    - `regularization`: $\\epsilon$, raised to the rounding of the type where it is below.
    - `safeguard`: $D$; infinity turns it off.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Anderson, Iterative Procedures for Nonlinear Integral Equations, 1965. Zhang,
    O'Donoghue, Boyd, Globally Convergent Type-I Anderson Acceleration for Nonsmooth Fixed-Point
    Iterations, 2020, arXiv:1808.03971.
    """

    history: int = eqx.field(static=True, default=5)
    mixing: Scalar = scalar_field(1.0)
    regularization: Scalar = scalar_field(1e-5)
    safeguard: Scalar = scalar_field(1e6)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (FixedPoint, Feedforward)

    def __check_init__(self):
        checks.count("history", self.history)
        checks.positive("mixing", self.mixing)
        checks.nonnegative("regularization", self.regularization)
        checks.interval("safeguard", self.safeguard, 0, float("inf"), open_low=True)

    def init(self, problem, x, key):
        empty = ring.empty(x, self.history)
        dtype = tree.real_dtype(x)
        zero = jnp.asarray(0, jnp.int32)
        infinity = jnp.asarray(jnp.inf, dtype)
        gram = jnp.zeros((self.history, self.history), dtype)
        return _State(x, empty, empty, gram, zero, zero, infinity, infinity)

    def step(self, problem, x, state):
        x = state.ahead
        residual = jax.tree.map(jnp.subtract, apply(problem.fun, x), x)
        slot = state.steps % self.history
        gram = ring.gram_with(state.gram, state.residuals, residual, slot)
        weights = self._weights(gram, jnp.arange(self.history) <= state.steps)
        point = ring.weighted_sum(weights, state.points, x, slot)
        towards = ring.weighted_sum(weights, state.residuals, residual, slot)
        accelerated = jax.tree.map(
            lambda p, r: p + self.mixing.astype(p.real.dtype) * r, point, towards
        )
        error = tree.norm(residual)
        first = jnp.where(state.steps == 0, error, state.first_error)
        bound = self.safeguard * first * (state.accepted.astype(error.dtype) + 1) ** -1.001
        accept = (error <= bound) & tree.all_finite(accelerated)
        plain = mix(x, jax.tree.map(jnp.add, x, residual), jnp.asarray(0.5, error.dtype))
        state = _State(
            tree.where(accept, accelerated, plain),
            ring.store(state.points, x, slot, after=point),
            ring.store(state.residuals, residual, slot, after=towards),
            gram,
            state.steps + 1,
            state.accepted + accept.astype(jnp.int32),
            first,
            error,
        )
        return x, state

    def _weights(self, gram, filled):
        diagonal = jnp.diagonal(gram)
        scale = jnp.max(jnp.where(filled, diagonal, 0))
        scale = jnp.where(scale > 0, scale, 1)
        floor = 4 * jnp.finfo(gram.dtype).eps
        ridge = jnp.maximum(self.regularization.astype(gram.dtype), floor)
        both = filled[:, None] & filled[None, :]
        system = jnp.where(both, gram / scale, 0) + jnp.diag(jnp.where(filled, ridge, 1.0))
        weights = jnp.linalg.solve(system, filled.astype(gram.dtype))
        return weights / jnp.sum(weights)

    def last_step(self, problem, x, state):
        return apply(problem.fun, x)

    def error(self, problem, x, state):
        return state.error
