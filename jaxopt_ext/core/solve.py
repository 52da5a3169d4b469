"""The one loop."""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from . import checks, loops, tree
from .adjoint import AbstractAdjoint, ImplicitAdjoint, OneStepAdjoint, UnrolledAdjoint, attach
from .closure import hoist
from .problem import AbstractProblem
from .progress import progress_bar
from .solution import Solution, Status
from .solver import AbstractSolver

Trace = bool | Callable[[AbstractProblem, PyTree[Array], Any], PyTree[Array]]


class _Carry(eqx.Module):
    x: PyTree[Array]
    state: PyTree
    steps: Int[Array, ""]
    residual: Float[Array, ""]
    status: Status


def solve(
    problem: AbstractProblem,
    solver: AbstractSolver,
    x0: PyTree[Array] = None,
    *,
    key: PRNGKeyArray | None = None,
    adjoint: AbstractAdjoint = ImplicitAdjoint(),  # noqa: B008  (immutable)
    state: PyTree = None,
    trace: Trace = False,
    progress: bool = False,
    throw: bool = False,
) -> Solution:
    """Solve `problem` with `solver`, starting from `x0`.

    The call is compiled once for each structure of problem and solver: new numbers in their
    leaves, or in arrays that their functions close over, do not trace again. Derivatives flow to
    the problem's leaves and closed-over arrays, never to `x0`, `state` or the solver's
    hyperparameters.

    Inside of `jax.shard_map` what the solve carries (start, state, key) is promoted to vary over
    every mesh axis that the problem's residual, the start, the state, the key or the solver varies
    over. So data that vary over an axis give each device a solution of its own, also from a start
    that is the same on all; an objective with a `psum` over the axis does not vary over it, and
    gives one solution on all devices. With `check_vma=False`, and in `pmap`, JAX does not know what
    varies and has a wrong gradient for a `psum`: each device solves for itself, and an objective
    with a `psum` raises.

    **Arguments:**

    - `problem`: any `AbstractProblem`.
    - `solver`: any solver that takes this type of problem; an `optax` transformation or an
      `optimistix` solver is wrapped.
    - `x0`: starting point, a pytree with floating-point arrays: the variables. Its other leaves,
      the functions and integers of a network say, stay as they are and come back in `value`.
    - `key`: random key for randomized solvers; `jax.random.key(0)` if not given.
    - `adjoint`: how the solution is differentiated.
    - `state`: a `Solution.state` to go on from; `x0` is then the value reached.
    - `trace`: `True` records the residual after each step; a function `(problem, x, state) ->
      pytree` records what it returns.
    - `progress`: show a progress bar if the solve takes longer than a second. Needs a call
      outside of JAX transformations.
    - `throw`: raise a runtime error unless the solve converged.

    **Returns:** a `Solution`.

    **Raises:** `TypeError` if the solver does not take this problem type or `x0` holds no
    floating-point array; `ValueError` if shapes do not fit.
    """
    if not isinstance(solver, AbstractSolver):
        from .adapters import as_solver  # it imports libraries that are large

        solver = as_solver(solver)
    if not isinstance(problem, solver.problems):
        takes = ", ".join(kind.__name__ for kind in solver.problems)
        raise TypeError(f"{type(solver).__name__} takes {takes}, not {type(problem).__name__}")
    rest = None
    if x0 is not None:
        x0, rest = checks.split_point("x0", x0)
        if jax.tree.leaves(rest):
            problem = problem.restrict(rest)
            trace = _Restored(trace, rest) if callable(trace) else trace
    problem, solver, trace = hoist((problem, solver, trace))

    if progress and trace is False and not checks.is_traced((problem, solver, x0, state)):
        solution = _solve_with_bar(problem, solver, x0, key, state)
    else:
        if progress:
            warnings.warn("no progress bar inside a transformation or with a trace", stacklevel=2)
        solution = _solve(problem, solver, x0, key, adjoint, state, trace)
    if jax.tree.leaves(rest):
        solution = dataclasses.replace(solution, value=eqx.combine(solution.value, rest))
    if throw:
        floats, others = eqx.partition(solution, eqx.is_inexact_array)  # random keys cannot raise
        floats = solution.status.error_if(floats, solution.status != Status.converged)
        solution = eqx.combine(floats, others)
    return solution


class _Restored(eqx.Module):
    """A trace function of whole points, as one of their floating-point arrays."""

    trace: Callable[[AbstractProblem, PyTree[Array], Any], PyTree[Array]]
    rest: PyTree

    def __call__(self, problem, x, state):
        return self.trace(problem, eqx.combine(x, self.rest), state)


@eqx.filter_jit
def _solve(problem, solver, x0, key, adjoint, state, trace):
    problem, x0, key, state = _enter(problem, solver, _complete(problem, x0), key, state)
    if isinstance(adjoint, UnrolledAdjoint):
        if trace is not False:
            raise ValueError("a trace and UnrolledAdjoint do not go together")
        carry = _start(problem, solver, x0, key, state)
        unrolled = functools.partial(
            loops.checkpointed_loop, max_steps=solver.max_steps, checkpoints=adjoint.checkpoints
        )
        carry = _loop(problem, solver, carry, solver.max_steps, unrolled)
        return _finish(problem, solver, carry)

    frozen, fixed_solver = _stop_gradient((problem, solver))
    carry = _start(frozen, fixed_solver, *_stop_gradient((x0, key, state)))
    recorded = None
    if trace is False:
        carry = _loop(frozen, fixed_solver, carry, solver.max_steps)
    else:
        carry, recorded = _traced_loop(frozen, fixed_solver, carry, trace)
    solution = _finish(frozen, fixed_solver, carry)

    if isinstance(adjoint, OneStepAdjoint):
        value = fixed_solver.last_step(problem, carry.x, carry.state)
    elif isinstance(adjoint, ImplicitAdjoint):
        value = attach(solution.value, problem, adjoint)
    else:
        raise TypeError(f"adjoint must be an AbstractAdjoint, got {adjoint!r}")
    return eqx.tree_at(
        lambda s: (s.value, s.trace), solution, (value, recorded), is_leaf=lambda x: x is None
    )


def _complete(problem, x0) -> PyTree[Array]:
    x0 = checks.inexact_tree("x0", problem.start(x0))
    problem.check(x0)
    return x0


def _enter(problem, solver, x0, key, state):
    """Promote what a solve carries to vary over what the problem and its start vary over.

    The problem itself too: the derivative of a leaf that is the same on all devices is then summed
    over them once, behind the loop, and not inside of it, where devices stop at different times.
    """
    key = jax.random.key(0) if key is None else key  # here, where it costs a call nothing
    if not loops.in_shard_map():
        return problem, x0, key, state
    axes = loops.varying_axes((solver, x0, key, state))
    while True:
        x0 = loops.vary(x0, axes)
        more = loops.varying_axes(jax.eval_shape(problem.residual, x0)) - axes
        if not more:
            dynamic, static = eqx.partition(problem, eqx.is_inexact_array)
            problem = eqx.combine(loops.vary(dynamic, axes), static)
            return problem, x0, loops.vary(key, axes), loops.vary(state, axes)
        axes |= more


def _start(problem, solver, x0, key, state) -> _Carry:
    fresh = state is None
    state = solver.init(problem, x0, key) if fresh else solver.refresh(problem, x0, state)
    state = jax.tree.map(lambda s: jnp.asarray(s) if isinstance(s, float | int) else s, state)
    infinity = jnp.asarray(jnp.inf, tree.real_dtype(x0))
    return _Carry(x0, state, jnp.asarray(0, jnp.int32), infinity, Status.running)


def _step(problem, solver, carry: _Carry) -> _Carry:
    x, state = solver.step(problem, carry.x, carry.state)
    x = tree.cast_like(x, carry.x)
    residual = jnp.asarray(solver.error(problem, x, state), carry.residual.dtype)
    steps = carry.steps + 1
    status = Status.where(steps >= solver.max_steps, Status.step_limit, Status.running)
    verdict = solver.status(problem, x, state)
    status = Status.where(verdict == Status.running, status, verdict)
    status = Status.where(residual <= solver.tol, Status.converged, status)
    status = Status.where(tree.all_finite((x, residual)), status, Status.nonfinite)
    return _Carry(x, state, steps, residual, status)


def _loop(problem, solver, carry, limit, while_loop=loops.while_loop) -> _Carry:
    dynamic, static = eqx.partition(carry, eqx.is_array)

    def condition(dynamic):
        carry = eqx.combine(dynamic, static)
        return (carry.status == Status.running) & (carry.steps < limit)

    def body(dynamic):
        carry = _step(problem, solver, eqx.combine(dynamic, static))
        return eqx.partition(carry, eqx.is_array)[0]

    dynamic = while_loop(condition, body, dynamic)
    return eqx.combine(dynamic, static)


def _traced_loop(problem, solver, carry, trace):
    def record(carry):
        return carry.residual if trace is True else trace(problem, carry.x, carry.state)

    dynamic, static = eqx.partition(carry, eqx.is_array)

    def body(dynamic, _):
        carry = eqx.combine(dynamic, static)
        running = carry.status == Status.running
        advance = lambda d: eqx.partition(
            _step(problem, solver, eqx.combine(d, static)), eqx.is_array
        )[0]
        dynamic = loops.cond(running, advance, lambda d: d, dynamic)
        return dynamic, record(eqx.combine(dynamic, static))

    dynamic, recorded = loops.scan(body, dynamic, length=solver.max_steps)
    return eqx.combine(dynamic, static), recorded


def _finish(problem, solver, carry: _Carry) -> Solution:
    x, state = solver.finish(problem, carry.x, carry.state)
    x = tree.cast_like(x, carry.x)
    tol = jnp.asarray(solver.tol, carry.residual.dtype)
    residual, status = carry.residual, carry.status
    if state is not carry.state:  # a last refinement has its own error
        residual = jnp.asarray(solver.error(problem, x, state), residual.dtype)
        reached = (status == Status.step_limit) & (residual <= tol)
        status = Status.where(reached, Status.converged, status)
    gap = solver.gap(problem, x, state)
    return Solution(x, carry.steps, residual, status, state, tol, gap)


def _stop_gradient(x: PyTree) -> PyTree:
    dynamic, static = eqx.partition(x, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(dynamic), static)


@eqx.filter_jit
def _open(problem, solver, x0, key, state) -> _Carry:
    problem, x0, key, state = _enter(problem, solver, _complete(problem, x0), key, state)
    return _start(problem, solver, x0, key, state)


@eqx.filter_jit
def _advance(problem, solver, carry, limit) -> _Carry:
    return _loop(problem, solver, carry, limit)


_close = eqx.filter_jit(_finish)


def _solve_with_bar(problem, solver, x0, key, state) -> Solution:
    """The same loop in pieces of about a tenth of a second, so that the bar can move."""
    carry, done, piece = _open(problem, solver, x0, key, state), 0, 1
    with progress_bar(solver.max_steps, type(solver).__name__) as advance:
        while carry.status == Status.running:
            start = time.perf_counter()
            carry = _advance(problem, solver, carry, jnp.asarray(done + piece, jnp.int32))
            steps = int(carry.steps)
            advance(steps - done, residual=carry.residual)
            if time.perf_counter() - start < 0.1:
                piece *= 2
            done = steps
    return _close(problem, solver, carry)
