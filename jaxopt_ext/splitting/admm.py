"""The alternating direction method of multipliers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core import (
    AbstractSplittingSolver,
    Scalar,
    SplitPoint,
    Splitting,
    checks,
    loops,
    scalar_field,
    tree,
)
from ..core.confirm import confirmed
from ..core.operators import as_map, minus_copies
from .subproblem import AbstractUpdate, choose


class _Operator(eqx.Module):
    """One iteration on $(x, z, y)$ with a fixed penalty."""

    problem: Splitting
    x_update: AbstractUpdate
    z_update: AbstractUpdate
    prepared: Any
    penalty: Float[Array, ""]
    relaxation: Float[Array, ""]

    def __call__(self, point: SplitPoint) -> SplitPoint:
        return self.advance(point)[0]

    def advance(self, point):
        """The next point, and how far its two updates were from exact."""
        problem, rho, (for_x, for_z) = self.problem, self.penalty, self.prepared
        A, B = as_map(problem.A), as_map(problem.B)
        x_old, z_old, y = point

        # h - c, which is Ax - c or its mixture with -Bz.
        mapped = B(z_old)
        minus_c = mapped if problem.c is None else jax.tree.map(jnp.subtract, mapped, problem.c)
        target = jax.tree.map(jnp.negative, tree.axpy(minus_c, 1 / rho, y))
        x, x_left = self.x_update.minimize(problem.f, A, x_old, target, rho, for_x)
        alpha = self.relaxation
        mixed = jax.tree.map(lambda a, b: alpha * a - (1 - alpha) * b, A(x), minus_c)
        shifted = mixed if problem.c is None else jax.tree.map(jnp.subtract, mixed, problem.c)
        target = jax.tree.map(jnp.negative, tree.axpy(shifted, 1 / rho, y))
        z, z_left = self.z_update.minimize(problem.g, B, z_old, target, rho, for_z)
        y = tree.axpy(y, rho, jax.tree.map(jnp.add, shifted, B(z)))
        return SplitPoint(x, z, y), (x_left, z_left)


class _State(eqx.Module):
    penalty: Float[Array, ""]
    prepared: Any
    error: Float[Array, ""]
    since: Int[Array, ""]


class ADMM(AbstractSplittingSolver):
    """ADMM for $f(x) + g(z)$ subject to $Ax + Bz = c$,

    $$\\begin{aligned}
      x &\\leftarrow \\arg\\min_x f(x) + \\tfrac{\\rho}{2} \\|Ax + Bz - c + y/\\rho\\|^2 \\\\
      h &\\leftarrow \\alpha A x - (1 - \\alpha)(Bz - c) \\\\
      z &\\leftarrow \\arg\\min_z g(z) + \\tfrac{\\rho}{2} \\|h + Bz - c + y/\\rho\\|^2 \\\\
      y &\\leftarrow y + \\rho (h + Bz - c).
    \\end{aligned}$$

    The error bounds the norm of the problem's residual for convex $f$ and $g$: it is that of the
    primal residual $Ax^+ + Bz^+ - c$; of the dual residual
    $\\rho A^* [B (z^+ - z) - (1 - \\alpha) (A x^+ + B z - c)]$, which is what $-A^* y^+$ lacks of a
    subgradient of $f$; and of what is left of the two subproblems' residuals when they are not
    solved exactly, together. Where that is at most `tol`, it is the larger of it and the norm of
    the problem's residual, so that neither rounding nor non-convex functions deceive it. The
    operator is one iteration on $(x, z, y)$; averaged, in the norm of
    $(Bz, y / \\rho)$, if the updates are exact and $\\alpha = 1$.

    **Arguments:**

    - `penalty`: $\\rho > 0$.
    - `relaxation`: $\\alpha \\in (0, 2)$.
    - `x_update`, `z_update`: how the subproblems are solved; `None` picks the prox where
      $A^* A = c I$ and one linearized proximal step elsewhere. `QuadraticUpdate()` factorizes,
      `InexactUpdate(solver)` iterates.
    - `balance`: if set, the penalty is doubled or halved when one residual is more than `balance`
      times the other, at most every `balance_every` steps, for the first `balance_until` steps.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` if a function has no prox and no update is given.

    **Reference:** Boyd et al., Distributed Optimization and Statistical Learning via the
    Alternating Direction Method of Multipliers, 2011.
    """

    penalty: Scalar = scalar_field(1.0)
    relaxation: Scalar = scalar_field(1.0)
    x_update: AbstractUpdate | None = None
    z_update: AbstractUpdate | None = None
    balance: Float[Array, ""] | None = eqx.field(
        converter=lambda b: None if b is None else checks.scalar(b), default=None
    )
    balance_every: int = 10
    balance_until: int = 1000
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Splitting,)

    def __check_init__(self):
        checks.positive("penalty", self.penalty)
        checks.interval("relaxation", self.relaxation, 0, 2, open_low=True, open_high=True)
        if self.balance is not None:
            checks.interval("balance", self.balance, 1, float("inf"), open_low=True)
        checks.count("balance_every", self.balance_every)
        checks.count("balance_until", self.balance_until, minimum=0)

    def operator(self, problem, u):
        penalty = self.penalty.astype(tree.real_dtype(u))
        return self._operator(problem, penalty, self._prepare(problem, u, penalty))

    def start(self, problem, x):
        return problem.start(x)

    def read(self, problem, u):
        return u

    def _updates(self, problem):
        x_update = choose(self.x_update, problem.f, as_map(problem.A))
        return x_update, choose(self.z_update, problem.g, as_map(problem.B))

    def _prepare(self, problem, x, penalty):
        x_update, z_update = self._updates(problem)
        return (
            x_update.prepare(problem.f, as_map(problem.A), x.x, penalty),
            z_update.prepare(problem.g, as_map(problem.B), x.z, penalty),
        )

    def _operator(self, problem, penalty, prepared):
        relaxation = self.relaxation.astype(penalty.dtype)
        return _Operator(problem, *self._updates(problem), prepared, penalty, relaxation)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        penalty = self.penalty.astype(dtype)
        prepared = self._prepare(problem, x, penalty)
        return _State(penalty, prepared, jnp.asarray(jnp.inf, dtype), jnp.asarray(0, jnp.int32))

    def refresh(self, problem, x, state):
        prepared = self._prepare(problem, x, state.penalty)
        return _State(state.penalty, prepared, jnp.full_like(state.error, jnp.inf), state.since)

    def step(self, problem, x, state):
        rho, alpha = state.penalty, self.relaxation
        A, B = as_map(problem.A), as_map(problem.B)
        new, (x_left, z_left) = self._operator(problem, rho, state.prepared).advance(x)
        gap = problem.gap(new.x, new.z)
        moved = B(jax.tree.map(jnp.subtract, new.z, x.z))
        # (1 - alpha) (Ax + Bz_old - c) in terms of the new gap.
        missing = jax.tree.map(
            lambda m, r: m - (1 - alpha).astype(m.real.dtype) * (r - m), moved, gap
        )
        dual = rho * tree.norm(A.adjoint(missing))
        primal = tree.norm(gap)
        estimate = jnp.sqrt(primal**2 + (dual + x_left) ** 2 + z_left**2)
        error = confirmed(problem, new, estimate, state.error, self.tol)
        state = _State(rho, state.prepared, error, state.since + 1)
        if self.balance is not None:
            state = self._rebalance(problem, new, state, primal, dual)
        return new, state

    def _rebalance(self, problem, point, state, primal, dual):
        due = (state.since % self.balance_every == 0) & (state.since <= self.balance_until)
        up = due & (primal > self.balance * dual)
        down = due & (dual > self.balance * primal)
        factor = jnp.where(up, 2.0, jnp.where(down, 0.5, 1.0)).astype(state.penalty.dtype)
        penalty = factor * state.penalty
        # A loop of at most one turn: under vmap it is entered only if some problem needs it.
        prepared, _ = loops.while_loop(
            lambda carry: carry[1],
            lambda carry: (self._prepare(problem, point, penalty), jnp.zeros_like(carry[1])),
            (state.prepared, up | down),
        )
        return _State(penalty, prepared, state.error, state.since)

    def error(self, problem, x, state):
        return state.error


class Stacked(eqx.Module):
    """$\\sum_i f(x_i, d_i)$ over variables and data stacked on a leading axis.

    **Arguments:**

    - `function`: `(x, data) -> scalar`.
    - `data`: a pytree with a common leading axis.
    """

    function: Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]]
    data: PyTree[Array]

    def __call__(self, x: PyTree[Array]) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(self.function)(x, self.data))


def consensus(
    function: Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]],
    data: PyTree[Array],
    regularizer: Any,
) -> Splitting:
    """The consensus form of $\\min_z \\sum_i f(z, d_i) + g(z)$: one copy $x_i$ of the variable for
    each part of the data, all equal to $z$.

    **Arguments:**

    - `function`: $f$, a smooth function of a variable and one part of the data.
    - `data`: the parts, stacked on a leading axis.
    - `regularizer`: $g$, a function of `jaxopt_ext.prox`.

    **Returns:** a `Splitting` over stacked copies; give `ADMM` an `x_update` for them.
    """
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(f"data must share one leading axis, got {sorted(counts)}")
    ((count,),) = counts
    return Splitting(Stacked(function, data), regularizer, None, minus_copies(count))
