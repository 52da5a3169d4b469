"""Derivatives of what the lower level answers: exact, by a truncated series, or unrolled.

At any $(x, y)$ all of them have the form $\\nabla_x F - \\nabla_{xy} f\\, v$ and differ in $v$.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import (
    Bilevel,
    LeastSquaresFallback,
    RootFinding,
    Scalar,
    StochasticBilevel,
    attach,
    checks,
    hoist,
    loops,
    tree,
)
from ..core.linear import LinearFunction, VaryingOperator
from .inner import descend

Levels = Bilevel | StochasticBilevel


class Hypergradient(NamedTuple):
    """A hypergradient and what it rests on.

    - `gradient`: $\\nabla_x F - \\nabla_{xy} f\\, v$.
    - `multiplier`: $v$; `None` where there is none.
    - `lower`: the lower variable that it belongs to.
    - `lower_error`: $\\|\\nabla_y f(x, y)\\|$. The hypergradient is that of
      $x \\mapsto F(x, y^*(x))$ only where this is zero; elsewhere it is off by as much, times
      condition numbers.
    """

    gradient: PyTree[Array]
    multiplier: PyTree[Array] | None
    lower: PyTree[Array]
    lower_error: Float[Array, ""]


def _full(problem: Levels) -> Bilevel:
    if isinstance(problem, StochasticBilevel):
        return problem.full()
    checks.instance("problem", problem, Bilevel, "Bilevel(upper, lower)")
    return problem


def _placed(problem: Bilevel, *point: PyTree[Array]) -> tuple[PyTree[Array], ...]:
    """`x`, `y` and what is shaped like them, varying over the mesh axes that the levels vary over:
    products are linear maps between such arrays."""
    if not loops.in_shard_map():
        return point
    x, y, *_ = point
    levels = lambda x, y: (problem.upper(x, y), problem.lower_residual(x, y))
    return loops.vary(point, loops.varying_axes((point, jax.eval_shape(levels, x, y))))


def cross(problem: Levels, x: PyTree[Array], y: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
    """$\\nabla_{xy} f\\, v = \\nabla_x \\langle \\nabla_y f(x, y), v\\rangle$, shaped like `x`.

    **Arguments:**

    - `problem`: a `Bilevel` or `StochasticBilevel`; of the latter, the full mean.
    - `x`, `y`: where.
    - `v`: shaped like `y`.
    """
    return _full(problem).pull(x, y, v)[0]


def hessian(problem: Levels, x: PyTree[Array], y: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
    """$\\nabla_{yy} f\\, v$, shaped like `y`; with a lower set, the transposed Jacobian of the
    lower residual, times $v$.

    **Arguments:** as of `cross`.
    """
    problem = _full(problem)
    x, y, v = _placed(problem, x, y, v)
    return _product(problem, x, y)(v)


def _product(problem: Bilevel, x, y) -> LinearFunction:
    _, product = jax.linearize(lambda y: problem.lower_residual(x, y), y)
    if problem.lower_set is None:
        return product
    pull = jax.linear_transpose(product, y)
    return lambda v: pull(v)[0]


def _assembled(problem: Bilevel, x, y, v) -> Hypergradient:
    own = tree.gradient(lambda x: problem.upper(x, y), x)
    gradient = jax.tree.map(jnp.subtract, own, problem.pull(x, y, v)[0])
    return Hypergradient(gradient, v, y, tree.norm(problem.lower_residual(x, y)))


def hypergradient(
    problem: Levels,
    x: PyTree[Array],
    y: PyTree[Array],
    *,
    linear_solver: lx.AbstractLinearSolver | None = None,
    v0: PyTree[Array] | None = None,
) -> Hypergradient:
    """The hypergradient by one linear solve, at any $(x, y)$:

    $$\\nabla_x F - \\nabla_{xy} f\\, v, \\qquad \\nabla_{yy} f\\, v = \\nabla_y F.$$

    At $y = y^*(x)$ it is the derivative of $x \\mapsto F(x, y^*(x))$, which
    `jax.grad(lambda x: F(x, solve(...).value))` gives too. A linear solve that fails, on a NaN say,
    shows as NaN. It can be differentiated, and traces in `shard_map` with the default solver.

    **Arguments:**

    - `problem`: a `Bilevel`, or a `StochasticBilevel`, of which the full means are taken.
    - `x`, `y`: where. `y` need not solve the lower level: see `Hypergradient.lower_error`.
    - `linear_solver`: any `lineax` solver, `lineax.CG(rtol, atol)` say; the Hessian is tagged as
      positive semidefinite without a lower set. `None` is `LeastSquaresFallback()`, which also
      answers for a singular Hessian, in the least-squares sense.
    - `v0`: where the linear solve starts, $v$ of a point nearby.

    **Raises:** `TypeError` if `problem` is none of the two; `ValueError` on a `v0` that is not
    shaped like `y`.

    **Reference:** Pedregosa, Hyperparameter Optimization with Approximate Gradient, 2016,
    arXiv:1602.02355.
    """
    levels: Bilevel = hoist(_full(problem))
    start = jax.tree.map(jnp.zeros_like, y) if v0 is None else v0
    checks.shaped_like("v0", start, y)
    x, y, start = _placed(levels, x, y, start)
    through = tree.gradient(lambda y: levels.upper(x, y), y)
    gap = lambda v: jax.tree.map(jnp.subtract, _product(levels, x, y)(v), through)
    # The solver's iterations are not differentiated, neither in points nor in the problem's data.
    dynamic, static = eqx.partition((levels, x, y, through, start), eqx.is_inexact_array)
    frozen: Any = eqx.combine(jax.lax.stop_gradient(dynamic), static)
    v = attach(_solved(linear_solver, *frozen), RootFinding(gap))
    return _assembled(levels, x, y, v)


def _solved(solver, problem, x, y, through, start) -> PyTree[Array]:
    """$v_0 + H^{-1}(\\nabla_y F - H v_0)$, NaN if the solver fails."""
    solver = LeastSquaresFallback() if solver is None else solver
    product = _product(problem, x, y)
    left = tree.cast_like(jax.tree.map(jnp.subtract, through, product(start)), y)
    curved = lambda v: tree.cast_like(product(v), y)
    tags = frozenset() if problem.lower_set else frozenset({lx.positive_semidefinite_tag})
    if isinstance(solver, LeastSquaresFallback):
        move, solved = solver.solve(curved, left)
    else:
        operator = (
            VaryingOperator(curved, left, tags)
            if loops.in_shard_map()
            else lx.FunctionLinearOperator(curved, jax.eval_shape(lambda v: v, left), tags)
        )
        move, result, _ = solver.compute(solver.init(operator, {}), left, {})
        solved = result == lx.RESULTS.successful
    moved = jax.tree.map(jnp.add, start, tree.cast_like(move, y))
    # Some solvers take a NaN in the operator for a solution zero.
    solved &= tree.all_finite(product(moved))
    return jax.tree.map(lambda leaf: jnp.where(solved, leaf, jnp.nan), moved)


class _Factors(NamedTuple):
    """What a series multiplies with: one Hessian, or one of a fresh batch each time."""

    problem: Levels
    x: PyTree[Array]
    y: PyTree[Array]
    key: PRNGKeyArray | None
    batch: int | None

    def at(self, i) -> Bilevel:
        """The problem that the $i$-th batch gives."""
        if self.batch is None or self.key is None or isinstance(self.problem, Bilevel):
            return _full(self.problem)
        upper, lower = jax.random.split(jax.random.fold_in(self.key, i))
        return self.problem.minibatch(
            self.problem.draw_upper(upper, self.batch), self.problem.draw_lower(lower, self.batch)
        )

    def step(self, i, r, step_size):
        """$(I - s H_i)\\, r$."""
        return tree.axpy(r, -step_size, _product(self.at(i), self.x, self.y)(r))


def _factors(problem, x, y, key, batch, num_terms, step_size):
    full = _full(problem)
    if full.lower_set is not None:
        raise ValueError("the Neumann series is of a lower level without a set")
    checks.count("num_terms", num_terms)
    checks.positive("step_size", step_size)
    if batch is not None:
        checks.count("batch", batch)
        if key is None and isinstance(problem, StochasticBilevel):
            raise ValueError("minibatches are drawn: give a key")
    x, y = _placed(full, x, y)
    factors = _Factors(problem, x, y, key, batch)
    through = tree.gradient(lambda y: factors.at(num_terms).upper(x, y), y)
    return factors, through


def _sampled(factors: _Factors, v, num_terms) -> Hypergradient:
    """Own gradient and cross product on batches that no factor has seen."""
    x, y = factors.x, factors.y
    own = tree.gradient(lambda x: factors.at(num_terms).upper(x, y), x)
    last = factors.at(num_terms + 1)
    gradient = jax.tree.map(jnp.subtract, own, last.pull(x, y, v)[0])
    return Hypergradient(gradient, v, y, tree.norm(last.lower_residual(x, y)))


def neumann(
    problem: Levels,
    x: PyTree[Array],
    y: PyTree[Array],
    *,
    num_terms: int,
    step_size: Scalar,
    key: PRNGKeyArray | None = None,
    batch: int | None = None,
) -> Hypergradient:
    """The hypergradient with the inverse Hessian as a truncated Neumann series,

    $$v = s \\sum_{j=0}^{N-1} \\prod_{i=1}^{j} (I - s H_i)\\, \\nabla_y F.$$

    With $0 < s < 2 / \\|H\\|$ and $H$ positive definite the sum goes to $H^{-1} \\nabla_y F$.

    **Arguments:**

    - `problem`, `x`, `y`: as of `hypergradient`, without a lower set.
    - `num_terms`: $N$, static.
    - `step_size`: $s$.
    - `key`, `batch`: for a `StochasticBilevel`, the samples of each factor, gradient and product,
      all of fresh batches; without `batch`, full means.

    **Raises:** `ValueError` on `num_terms` or `batch` below 1, `step_size` not positive, a lower
    set, or a `batch` without a `key`.

    **Reference:** Lorraine, Vicol, Duvenaud, Optimizing Millions of Hyperparameters by Implicit
    Differentiation, 2020, arXiv:1911.02590.
    """
    factors, through = _factors(problem, x, y, key, batch, num_terms, step_size)

    def add(carry, i):
        total, term = carry
        term = tree.cast_like(factors.step(i, term, step_size), term)
        return (jax.tree.map(jnp.add, total, term), term), None

    indices = jnp.arange(num_terms - 1, dtype=jnp.int32)
    (total, _), _ = loops.scan(add, (through, through), indices)
    return _sampled(factors, tree.scale(total, step_size), num_terms)


def truncated_neumann(
    problem: Levels,
    x: PyTree[Array],
    y: PyTree[Array],
    key: PRNGKeyArray,
    *,
    num_terms: int,
    step_size: Scalar,
    batch: int | None = None,
) -> Hypergradient:
    """One random term of the Neumann series, unbiased for its sum:

    $$v = N s \\prod_{i=1}^{N'} (I - s H_i)\\, \\nabla_y F, \\qquad N' \\sim
      \\mathrm{Uniform}\\{0, \\dots, N-1\\}.$$

    It costs half as many products as `neumann` on average, and its variance is of the order $N^2$.

    **Arguments:** as of `neumann`.

    **Reference:** Ghadimi, Wang, Approximation Methods for Bilevel Programming, 2018,
    arXiv:1802.02246.
    """
    factors, through = _factors(problem, x, y, key, batch, num_terms, step_size)
    times = jax.random.randint(jax.random.fold_in(key, num_terms + 2), (), 0, num_terms)
    step = lambda i, r: tree.cast_like(factors.step(i, r, step_size), r)
    last = loops.fori_loop(0, times, step, through)
    return _sampled(factors, tree.scale(last, num_terms * step_size), num_terms)


def unrolled(
    problem: Levels, x: PyTree[Array], y0: PyTree[Array], *, num_steps: int, step_size: Scalar
) -> Hypergradient:
    """The derivative of $x \\mapsto F(x, y_T(x))$ with $y_T$ after $T$ gradient steps on the lower
    level, through all of them; reverse hypergradient.

    **Arguments:**

    - `problem`, `x`: as of `hypergradient`.
    - `y0`: where the lower level starts, on which $y_T$ depends but not the derivative's path.
    - `num_steps`: $T$, static; only the iterates are kept, so memory is $T$ times `y`.
    - `step_size`: of the lower level.

    **Returns:** a `Hypergradient` at `lower` $= y_T$, without multiplier.

    **Raises:** `ValueError` on `num_steps` below 0 or `step_size` not positive.

    **Reference:** Franceschi et al., Forward and Reverse Gradient-Based Hyperparameter
    Optimization, 2017, arXiv:1703.01785.
    """
    problem = _full(problem)
    checks.positive("step_size", step_size)
    project = None if problem.lower_set is None else problem.lower_set.project

    def answer(x):
        fun = lambda y: problem.lower(x, y)
        return descend(fun, y0, step_size, num_steps, project=project)

    gradient = tree.gradient(lambda x: problem.upper(x, answer(x)), x)
    y = answer(x)
    return Hypergradient(gradient, None, y, tree.norm(problem.lower_residual(x, y)))


def averaged(problem: Levels, weight: Scalar) -> Bilevel:
    """The problem with the lower level $\\psi_\\mu = \\mu F + (1 - \\mu) f$.

    Where $F$ is strongly convex in $y$ so is $\\psi_\\mu$, however flat $f$ may be. Unrolled, it is
    bilevel descent aggregation.

    **Arguments:**

    - `problem`: as of `hypergradient`.
    - `weight`: $\\mu \\in [0, 1]$.

    **Raises:** `ValueError` on a weight outside.

    **Reference:** Liu, Mu, Yuan, Zeng, Zhang, A Generic First-Order Algorithmic Framework for
    Bi-Level Programming Beyond Lower-Level Singleton, 2020, arXiv:2006.04045.
    """
    problem = _full(problem)
    checks.interval("weight", weight, 0.0, 1.0)
    upper, lower = problem.upper, problem.lower
    mixed = lambda x, y: weight * upper(x, y) + (1 - weight) * lower(x, y)
    return dataclasses.replace(problem, lower=mixed)
