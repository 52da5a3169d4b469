"""Successive over-relaxation, and its relaxation learnt along a sequence of systems."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, scalar_field
from .omega_learning import AbstractPolicy
from .precision import highest
from .units import unit

Vector = Float[Array, " n"]


class Coloring(eqx.Module):
    """An order of the unknowns by colours: those of one colour are not coupled to each other.

    A sweep then updates all unknowns of a colour at once, without a triangular solve and without
    the matrix: one product for each colour. It equals the sweep in sequence over the unknowns
    sorted by colour.

    **Arguments:**

    - `colors`: the colour of each unknown, from 0, shape `(n,)`, in the order of
      `jax.flatten_util.ravel_pytree`.

    **Raises:** `ValueError` unless `colors` is a vector of non-negative integers.
    """

    colors: Int[Array, " n"]
    num_colors: int = eqx.field(static=True)

    def __init__(self, colors: Any):
        colors = np.asarray(colors)
        if colors.ndim != 1 or not np.issubdtype(colors.dtype, np.integer):
            raise ValueError(
                f"colors must be a vector of integers, got {colors.dtype} of shape {colors.shape}"
            )
        if colors.size and colors.min() < 0:
            raise ValueError(f"colors must be non-negative, got {colors.min()}")
        self.num_colors = int(colors.max(initial=-1)) + 1
        self.colors = jnp.asarray(colors)

    @classmethod
    def red_black(cls, shape: tuple[int, ...]) -> "Coloring":
        """The chessboard of a grid whose points are coupled to their next neighbours only."""
        return cls(np.indices(shape).sum(axis=0).ravel() % 2)


class _Sweeps(NamedTuple):
    """`forward(r)` is $(D/\\omega + L)^{-1} r$, `backward` the same with the upper triangle; of
    which `valid` says whether they are what they should be."""

    forward: Callable[[Vector], Vector]
    backward: Callable[[Vector], Vector]
    diagonal: Vector
    valid: Bool[Array, ""] | bool


def _triangular(matrix: Float[Array, "n n"], omega: Array) -> _Sweeps:
    diagonal = jnp.diagonal(matrix)
    lower = jnp.tril(matrix, -1) + jnp.diag(diagonal / omega)
    upper = jnp.triu(matrix, 1) + jnp.diag(diagonal / omega)
    solve = jax.scipy.linalg.solve_triangular
    return _Sweeps(lambda r: solve(lower, r, lower=True), lambda r: solve(upper, r), diagonal, True)


def _colored(product, coloring: Coloring, omega: Array, like: Vector) -> _Sweeps:
    axes = loops.varying_axes(like)
    colors = loops.vary(jnp.arange(coloring.num_colors), axes)
    masks = loops.vary(coloring.colors, axes) == colors[:, None]

    def within(v):
        """The part of the product that couples each colour with itself."""
        parts = jax.vmap(lambda mask: jnp.where(mask, product(jnp.where(mask, v, 0)), 0))(masks)
        return jnp.sum(parts, axis=0)

    diagonal = within(loops.vary(jnp.ones_like(like), axes))
    probe = loops.vary(jnp.cos(jnp.arange(1, like.size + 1).astype(like.dtype)), axes)
    gap = jnp.abs(within(probe) - diagonal * probe)
    limit = jnp.sqrt(jnp.finfo(like.dtype).eps) * jnp.max(jnp.abs(diagonal), initial=0)
    valid = jnp.max(gap, initial=0) <= limit

    def sweep(order):
        def forward(r):
            def one(d, mask):
                # What the colours before have changed is in the product.
                return jnp.where(mask, omega * (r - product(d)) / diagonal, d), None

            return loops.scan(one, jnp.zeros_like(r), order)[0]

        return forward

    return _Sweeps(sweep(masks), sweep(masks[::-1]), diagonal, valid)


class _System(NamedTuple):
    product: Callable[[Vector], Vector]
    sweeps: _Sweeps
    vector: Vector
    start: Vector
    unit: Float[Array, ""]
    tolerance: Float[Array, ""]
    unravel: Callable[[Vector], PyTree[Array]]

    def floor(self, x: Vector) -> Float[Array, ""]:
        """What rounding leaves of the residual at a step `x` from the start, in units."""
        eps = jnp.finfo(x.dtype).eps
        return 8 * eps * jnp.linalg.norm(self.sweeps.diagonal * (self.start / self.unit + x))


def _system(solver, operator, vector, options) -> _System:
    flat, unravel = ravel_pytree(vector)
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        raise TypeError(f"the right-hand side must be real and floating-point, got {flat.dtype}")
    omega = jnp.asarray(solver.omega, flat.dtype)
    axes = loops.varying_axes((operator, flat, omega, solver.coloring))
    flat = loops.vary(flat, axes)

    def product(v):
        return ravel_pytree(operator.mv(unravel(v)))[0].astype(flat.dtype)

    if solver.coloring is None:
        if isinstance(operator, lx.MatrixLinearOperator):
            matrix = operator.as_matrix().astype(flat.dtype)
        else:
            basis = loops.vary(jnp.eye(flat.size, dtype=flat.dtype), axes)
            matrix = jax.vmap(product, out_axes=1)(basis)
        product = lambda v: matrix @ v
        sweeps = _triangular(matrix, omega)
    else:
        if solver.coloring.colors.shape != flat.shape:
            raise ValueError(
                f"the colouring has {solver.coloring.colors.size} unknowns, the system {flat.size}"
            )
        sweeps = _colored(product, solver.coloring, omega, flat)
    start = ravel_pytree(options["y0"])[0] if "y0" in options else jnp.zeros_like(flat)
    default = 1e-8 if flat.dtype == jnp.float64 else 1e-5
    tolerance = jnp.asarray(default if solver.rtol is None else solver.rtol, flat.dtype)
    start = loops.vary(start, axes)
    # The step from the start is looked for in units of the first residual, whose squares may be out
    # of range.
    residual = flat - product(start)
    size = jnp.squeeze(unit(residual))
    return _System(product, sweeps, residual / size, start, size, tolerance, unravel)


def _answer(solver, system: _System, x, norm, norm0, steps):
    done = norm <= jnp.maximum(system.tolerance * norm0, system.floor(x))
    finite = jnp.isfinite(norm)
    sound = finite & system.sweeps.valid
    x = jnp.where(finite, system.start + system.unit * x, jnp.nan)
    result = lx.RESULTS.where(
        done & sound,
        lx.RESULTS.successful,
        lx.RESULTS.where(
            sound & (steps >= solver.max_steps), lx.RESULTS.max_steps_reached, lx.RESULTS.breakdown
        ),
    )
    return system.unravel(x), result, {"num_steps": steps, "max_steps": solver.max_steps}


def _check(solver) -> None:
    checks.interval("omega", solver.omega, 0.0, 2.0, open_low=True, open_high=True)
    if solver.rtol is not None:
        checks.positive("rtol", solver.rtol)
    checks.count("max_steps", solver.max_steps)
    if solver.coloring is not None:
        checks.instance("coloring", solver.coloring, Coloring, "Coloring.red_black((10, 10))")


def _square(operator):
    if operator.in_size() != operator.out_size():
        raise ValueError(
            f"the system must be square, got {operator.out_size()} equations"
            f" in {operator.in_size()} unknowns"
        )
    # A function is linear as it is, and what it closes over may vary over the axes of a mesh.
    return operator if isinstance(operator, lx.FunctionLinearOperator) else lx.linearise(operator)


class SOR(lx.AbstractLinearSolver[lx.AbstractLinearOperator]):
    """Successive over-relaxation of $Ax = b$ with $A = D + L + U$,

    $$x \\leftarrow x + (D/\\omega + L)^{-1} (b - A x),$$

    until $\\|b - Ax\\| \\le \\mathtt{rtol}\\, \\|b - Ax_0\\|$ or, where that is more, to rounding
    of the residual, $8 \\varepsilon \\|D x\\|$. It is Gauss-Seidel at $\\omega = 1$ and converges
    for every $\\omega \\in (0, 2)$ if $A$ is symmetric positive definite. Where $A$ is consistently
    ordered and $\\beta$ the spectral radius of Jacobi's iteration, `optimal_omega` is the best.

    A `lineax` solver: `lineax.linear_solve(operator, b, SOR(1.5))`, with its derivatives, or
    `ImplicitAdjoint(linear_solver=SOR(1.5))`. `stats["num_steps"]` counts the sweeps; the option
    `y0` is $x_0$, zero without. A zero on the diagonal, and a divergence to infinity, end with
    `RESULTS.breakdown` and NaN; so does, without NaN, a colouring that is none of the matrix. The
    matrix is formed unless there is a `coloring`. In `shard_map` with its check on it traces
    for `ImplicitAdjoint`, and `compute` does for matrices; `lineax.linear_solve` and its
    `FunctionLinearOperator` of what varies over the mesh do not.

    **Arguments:**

    - `omega`: the relaxation $\\omega \\in (0, 2)$; an array leaf, so that no new value retraces.
    - `rtol`: relative residual at the end; `None` is `1e-8` in double and `1e-5` in single
      precision.
    - `max_steps`: limit on the sweeps; static.
    - `coloring`: order of the unknowns; `None` is as they come, by triangular solves.

    **Raises:** `ValueError` for `omega` outside of (0, 2), a system that is not square, or a
    colouring of another size; `TypeError` for complex or integer systems.

    **Reference:** Khodak, Chow, Balcan, Talwalkar, Learning to Relax: Setting Solver Parameters
    Across a Sequence of Linear System Instances, 2024, arXiv:2310.02246. Young, Iterative Solution
    of Large Linear Systems, 1971.
    """

    omega: Scalar = scalar_field(1.0)
    rtol: float | None = None
    max_steps: int = eqx.field(static=True, default=10_000)
    coloring: Coloring | None = None

    def __check_init__(self):
        _check(self)

    def init(self, operator, options):
        del options
        return _square(operator)

    @highest
    def compute(self, state, vector, options):
        system = _system(self, state, vector, options)
        norm0 = jnp.linalg.norm(system.vector)

        def unfinished(carry):
            x, _, norm, steps = carry
            going = norm > jnp.maximum(system.tolerance * norm0, system.floor(x))
            return going & jnp.isfinite(norm) & (steps < self.max_steps)

        def sweep(carry):
            x, residual, _, steps = carry
            x = x + system.sweeps.forward(residual)
            residual = system.vector - system.product(x)
            return x, residual, jnp.linalg.norm(residual), steps + 1

        zero = jnp.asarray(0, jnp.int32)
        carry = (jnp.zeros_like(system.vector), system.vector, norm0, zero)
        x, _, norm, steps = loops.while_loop(unfinished, sweep, carry)
        return _answer(self, system, x, norm, norm0, steps)

    def transpose(self, state, options):
        return state.T, options

    def conj(self, state, options):
        return lx.conj(state), options

    def assume_full_rank(self):
        return True


class SSORCG(lx.AbstractLinearSolver[lx.AbstractLinearOperator]):
    """Conjugate gradients preconditioned by symmetric successive over-relaxation,

    $$M = \\frac{1}{\\omega (2 - \\omega)} (D + \\omega L) D^{-1} (D + \\omega L)^\\top,$$

    for symmetric positive definite $A = D + L + L^\\top$. Near the best $\\omega$ its count hardly
    depends on it. The true residual decides: if it misses the goal where the one carried along
    meets it, the iteration starts again from there, while that halves it. A `lineax` solver as
    `SOR` is, with the same statistics and limits; a matrix that shows itself as not positive
    definite ends with `RESULTS.breakdown`.

    **Arguments:** as of `SOR`.

    **Raises:** as `SOR`; `ValueError` for an operator that is not tagged as symmetric or positive
    semidefinite.

    **Reference:** Khodak, Chow, Balcan, Talwalkar, Learning to Relax: Setting Solver Parameters
    Across a Sequence of Linear System Instances, 2024, arXiv:2310.02246. Axelsson, Iterative
    Solution Methods, 1994.
    """

    omega: Scalar = scalar_field(1.0)
    rtol: float | None = None
    max_steps: int = eqx.field(static=True, default=10_000)
    coloring: Coloring | None = None

    def __check_init__(self):
        _check(self)

    def init(self, operator, options):
        del options
        if not (lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator)):
            raise ValueError(
                "the operator must be tagged lineax.symmetric_tag or positive_semidefinite_tag"
            )
        return _square(operator)

    @highest
    def compute(self, state, vector, options):
        system = _system(self, state, vector, options)
        omega = jnp.asarray(self.omega, system.vector.dtype)
        scale = (2 - omega) / omega * system.sweeps.diagonal

        def precondition(r):
            return system.sweeps.backward(scale * system.sweeps.forward(r))

        norm0 = jnp.linalg.norm(system.vector)
        goal = system.tolerance * norm0
        zero = jnp.asarray(0, jnp.int32)

        def unfinished(carry):
            *_, norm, steps = carry
            return (norm > goal) & jnp.isfinite(norm) & (steps < self.max_steps)

        def step(carry):
            x, r, p, gamma, _, steps = carry
            image = system.product(p)
            curvature = jnp.vdot(p, image)
            # Without curvature there is no minimum along p: shown as a breakdown.
            length = jnp.where((curvature > 0) & (gamma > 0), gamma / curvature, jnp.nan)
            x, r = x + length * p, r - length * image
            z = precondition(r)
            new = jnp.vdot(r, z)
            return x, r, z + new / gamma * p, new, jnp.linalg.norm(r), steps + 1

        def run(carry):
            """Until the residual that is carried along is small: then from the true one again."""
            x, r, norm, _, steps = carry
            z = precondition(r)
            inner = (x, r, z, jnp.vdot(r, z), norm, steps)
            x, _, _, _, ended, steps = loops.while_loop(unfinished, step, inner)
            r = system.vector - system.product(x)
            new = jnp.where(jnp.isfinite(ended), jnp.linalg.norm(r), ended)
            return x, r, new, new < 0.5 * norm, steps

        def again(carry):
            x, _, norm, fell, steps = carry
            going = norm > jnp.maximum(goal, system.floor(x))
            return going & fell & jnp.isfinite(norm) & (steps < self.max_steps)

        carry = (jnp.zeros_like(system.vector), system.vector, norm0, jnp.asarray(True), zero)
        x, _, norm, _, steps = loops.while_loop(again, run, carry)
        return _answer(self, system, x, norm, norm0, steps)

    def transpose(self, state, options):
        return state, options

    def conj(self, state, options):
        return lx.conj(state), options

    def assume_full_rank(self):
        return True


def optimal_omega(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """Young's optimum $1 + (\\beta / (1 + \\sqrt{1 - \\beta^2}))^2$ for a symmetric matrix with
    positive diagonal, with $\\beta$ the spectral radius of $I - D^{-1} A$.

    **Arguments:**

    - `matrix`: shape `(n, n)`, consistently ordered: tridiagonal, or coloured by two.

    **Returns:** the optimum; NaN if $\\beta \\ge 1$, where Jacobi's iteration diverges.

    **Reference:** Young, Iterative Solution of Large Linear Systems, 1971. Used by Khodak, Chow,
    Balcan, Talwalkar, Learning to Relax, 2024, arXiv:2310.02246.
    """
    if jnp.ndim(matrix) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the matrix must be square, got shape {jnp.shape(matrix)}")
    root = jnp.sqrt(jnp.diagonal(matrix))
    similar = matrix / root[:, None] / root
    values = jnp.linalg.eigvalsh(jnp.eye(len(root), dtype=matrix.dtype) - similar)
    beta = jnp.max(jnp.abs(values))
    return 1 + (beta / (1 + jnp.sqrt(1 - beta**2))) ** 2


class SequenceResult(eqx.Module):
    """What `solve_sequence` returns.

    **Attributes:**

    - `values`: the solutions, on a leading axis.
    - `counts`: steps of each solve, the limit for one that failed, shape `(T,)`.
    - `actions`: indices into the policy's grid, shape `(T,)`.
    - `converged`: shape `(T,)`.
    - `state`: the policy's state, with which a later call goes on learning.
    """

    values: PyTree[Array]
    counts: Int[Array, " T"]
    actions: Int[Array, " T"]
    converged: Bool[Array, " T"]
    state: Any


def solve_sequence(
    system: Callable[[Any], lx.AbstractLinearOperator],
    contexts: PyTree[Array],
    vectors: PyTree[Array],
    policy: AbstractPolicy,
    key: PRNGKeyArray,
    *,
    solver: SOR | SSORCG | None = None,
    state: Any = None,
    feature: Callable[[Any], Array] = lambda context: context,
) -> SequenceResult:
    """Solve $A_t x_t = b_t$ one after the other, with relaxations that a policy learns from counts.

    The policy sees the number of steps of the solve that it chose the relaxation of, and nothing
    else. A solve that fails costs the solver's limit, however soon it failed. One scan; the
    solutions are differentiated as those of linear systems, the choices are not. In `shard_map` it
    traces with the check on, for matrices, but has no derivative.

    **Arguments:**

    - `system`: context to $A_t$, a `lineax` operator.
    - `contexts`: $T$ contexts, a pytree with a leading axis: offsets $c_t$, say.
    - `vectors`: $b_t$, on a leading axis of the same length.
    - `policy`: `TsallisINF`, `ChebCB`, `Binned` or `Fixed`, on a grid within (0, 2).
    - `key`: of the policy's draws.
    - `solver`: `SOR()` if `None`, or `SSORCG`; its `omega` is replaced.
    - `state`: of a call before; `None` starts afresh.
    - `feature`: what of a context a contextual policy sees, a number.

    **Raises:** `ValueError` for a grid outside of (0, 2) or lengths that differ.

    **Reference:** Khodak, Chow, Balcan, Talwalkar, Learning to Relax: Setting Solver Parameters
    Across a Sequence of Linear System Instances, 2024, arXiv:2310.02246.
    """
    checks.instance("policy", policy, AbstractPolicy, "TsallisINF(grid)")
    checks.interval("the policy's grid", policy.grid, 0.0, 2.0, open_low=True, open_high=True)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((contexts, vectors))}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"contexts and vectors must have one length, got {sorted(lengths)}")
    ((length,),) = lengths
    base = SOR() if solver is None else solver

    def round(state, given):
        context, vector, key = given
        action, state = policy.select(state, feature(context), key)
        relaxed = eqx.tree_at(lambda s: s.omega, base, policy.grid[action])
        value, result, stats = _solve(relaxed, system(context), vector)
        solved = result == lx.RESULTS.successful
        count = jnp.where(solved, stats["num_steps"], base.max_steps)
        state = policy.update(state, action, count)
        return state, (value, count, action, solved)

    start = policy.init() if state is None else state
    given = (contexts, vectors, jax.random.split(key, length))
    final, (values, counts, actions, solved) = loops.scan(round, start, given)
    return SequenceResult(values, counts, actions, solved, final)


def _solve(solver, operator, vector):
    if loops.in_shard_map():  # where lineax compares shapes with their axes
        return solver.compute(solver.init(operator, {}), vector, {})
    solution = lx.linear_solve(operator, vector, solver, throw=False)
    return solution.value, solution.result, solution.stats
