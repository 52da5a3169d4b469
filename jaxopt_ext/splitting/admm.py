"""The alternating direction method of multipliers."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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
from .penalty import AbstractBalance, Iteration, SpectralBalance, as_balance
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


def _prepare(what, penalty):
    problem, x_update, z_update, point = what
    return (
        x_update.prepare(problem.f, as_map(problem.A), point.x, penalty),
        z_update.prepare(problem.g, as_map(problem.B), point.z, penalty),
    )


def _prepare_again(what, penalty, prepared, wanted):
    """What was prepared, anew if wanted."""
    arrays, static = eqx.partition(what, eqx.is_array)
    moving, fixed = eqx.partition(arrays, eqx.is_inexact_array)
    return _refreshed(static, moving, penalty, prepared, fixed, wanted)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _refreshed(static, moving, penalty, prepared, fixed, wanted):
    def turn(carry):
        what = eqx.combine(moving, fixed, static)
        # What did not depend on the carry would be moved out of the loop and done at each step.
        anew = jnp.where(carry[1], penalty, jnp.ones_like(penalty))
        return _prepare(what, anew), jnp.zeros_like(carry[1])

    return loops.while_loop(lambda carry: carry[1], turn, (prepared, wanted))[0]


@_refreshed.defjvp
def _refreshed_jvp(static, primals, tangents):
    """A loop has no reverse mode, so its derivative is that of a conditional."""
    moving, penalty, _, fixed, wanted = primals
    out = _refreshed(static, *primals)
    _, others = eqx.partition(out, eqx.is_inexact_array)

    def anew(moving, penalty):
        found = _prepare(eqx.combine(moving, fixed, static), penalty)
        return eqx.filter(found, eqx.is_inexact_array)

    kept = jax.tree.map(lambda dot, a: dot if eqx.is_inexact_array(a) else None, tangents[2], out)
    dot = loops.cond(
        wanted,
        lambda kept, primals, tangents: jax.jvp(anew, primals, tangents)[1],
        lambda kept, primals, tangents: kept,
        kept,
        (moving, penalty),
        tangents[:2],
    )
    nothing = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), others)
    return out, eqx.combine(dot, nothing)


class _State(eqx.Module):
    penalty: Float[Array, ""]
    prepared: Any
    memory: Any
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
    operator is one iteration on $(x, z, y)$ with the first penalty; averaged, in the norm of
    $(Bz, y / \\rho)$, if the updates are exact and $\\alpha = 1$.

    The penalty follows the units of the problem by itself, by factors of at most $1 + 10^5 / k^2$
    at step $k$. After `balance_until` steps it stays, so that what is known of a fixed penalty
    holds: ADMM converges for convex functions wherever a solution exists. `UnrolledAdjoint`
    differentiates through all of it, in forward and reverse mode: penalties change by powers of two
    and so are constants of the problem almost everywhere, and what is computed anew for them is
    differentiated.

    **Arguments:**

    - `penalty`: $\\rho > 0$, where it starts.
    - `relaxation`: $\\alpha \\in (0, 2)$.
    - `x_update`, `z_update`: how the subproblems are solved; `None` picks the prox where
      $A^* A = c I$ and one linearized proximal step elsewhere. `QuadraticUpdate()` factorizes,
      `InexactUpdate(solver)` iterates.
    - `balance`: how the penalty changes: `SpectralBalance()`, `ResidualBalance()`, a number for
      the threshold of the latter, or `None` for a fixed penalty.
    - `balance_every`, `balance_until`: it may change every so many steps, for the first so many.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` if a function has no prox and no update is given.

    **Reference:** Boyd et al., Distributed Optimization and Statistical Learning via the
    Alternating Direction Method of Multipliers, 2011.
    """

    penalty: Scalar = scalar_field(1.0)
    relaxation: Scalar = scalar_field(1.0)
    x_update: AbstractUpdate | None = None
    z_update: AbstractUpdate | None = None
    balance: AbstractBalance | None = eqx.field(
        converter=as_balance, default_factory=SpectralBalance
    )
    balance_every: int = 10
    balance_until: int = 1000
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Splitting,)

    def __check_init__(self):
        checks.positive("penalty", self.penalty)
        checks.interval("relaxation", self.relaxation, 0, 2, open_low=True, open_high=True)
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
        return _prepare((problem, *self._updates(problem), x), penalty)

    def _operator(self, problem, penalty, prepared):
        relaxation = self.relaxation.astype(penalty.dtype)
        return _Operator(problem, *self._updates(problem), prepared, penalty, relaxation)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        penalty = self.penalty.astype(dtype)
        prepared, zero = self._prepare(problem, x, penalty), jnp.asarray(0, jnp.int32)
        return _State(penalty, prepared, self._memory(x), jnp.asarray(jnp.inf, dtype), zero)

    def refresh(self, problem, x, state):
        prepared = self._prepare(problem, x, state.penalty)
        error = jnp.full_like(state.error, jnp.inf)
        return _State(state.penalty, prepared, self._memory(x), error, state.since)

    def _memory(self, x):
        return None if self.balance is None else self.balance.init(x.dual)

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
        state = _State(rho, state.prepared, state.memory, error, state.since + 1)
        if self.balance is not None:
            dual_of_x = tree.axpy(x.dual, rho, jax.tree.map(jnp.subtract, gap, moved))
            state = self._rebalance(problem, new, state, dual_of_x, primal, dual)
        return new, state

    def _rebalance(self, problem, point, state, dual_of_x, primal, dual):
        due = (state.since % self.balance_every == 0) & (state.since <= self.balance_until)
        # A factor is constant almost everywhere: without derivatives it may come from a loop.
        seen = (problem, point, dual_of_x, primal, dual, state.penalty, state.memory)
        dynamic, static = eqx.partition(seen, eqx.is_inexact_array)
        seen = eqx.combine(jax.lax.stop_gradient(dynamic), static)
        frozen, at, dual_of_x, primal, dual, penalty, memory = seen
        rule: Any = self.balance
        # The longer it has run the less it may change, as in Xu et al.: by 512 after ten steps, by
        # 8 after a hundred, by 2 at the most after three hundred.
        power = jnp.log2(1 + 1e5 / jnp.maximum(state.since, 1).astype(penalty.dtype) ** 2)
        most = jnp.ldexp(jnp.ones_like(penalty), jnp.floor(power).astype(jnp.int32))

        def ask(seen):
            at, dual_of_x, primal, dual, memory = seen
            mapped = as_map(frozen.A)(at.x), as_map(frozen.B)(at.z)
            now = Iteration(*mapped, at.dual, dual_of_x, primal, dual)
            factor, fresh = rule.update(now, memory, penalty)
            factor = jnp.where(due, jnp.clip(factor, 1 / most, most), 1).astype(penalty.dtype)
            return factor, fresh

        operand = (at, dual_of_x, primal, dual, memory)
        otherwise = (jnp.ones_like(penalty), memory)
        factor, memory = loops.if_due(due | (state.since == 1), ask, operand, otherwise)
        penalty = factor * state.penalty
        what = (problem, *self._updates(problem), point)
        prepared = _prepare_again(what, penalty, state.prepared, factor != 1)
        return _State(penalty, prepared, memory, state.error, state.since)

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
