"""Bilevel problems of many blocks, a few of which are looked at in each step."""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    Bilevel,
    BilevelPoint,
    MultiBlockBilevel,
    Scalar,
    WithoutReplacement,
    checks,
    loops,
    rows,
    scalar_field,
    tables,
    tree,
)
from ..core.confirm import unknown
from ..prox import L2Ball
from ..stochastic.estimators import MSVR, storm
from ..stochastic.oracle import asked, check_rate, rate_at, rate_field
from ..stochastic.outputs import AbstractOutput, Last, finished


class AbstractRowMoves(eqx.Module):
    """Which rows of a table move in a step, and how far."""

    @abc.abstractmethod
    def move(
        self,
        table: PyTree[Array],
        slopes: PyTree[Array],
        step: Float[Array, ""],
        index: Int[Array, " I"],
        lag: Int[Array, " I"],
    ) -> PyTree[Array]:
        """The table after a step.

        **Arguments:**

        - `table`, `slopes`: the rows, and the directions against which they move, stacked on a
          leading axis.
        - `step`: the step size.
        - `index`, `lag`: the rows that were measured, and the steps since they last were.
        """


class AllRows(AbstractRowMoves):
    """Every row moves in every step, also along a slope that is some steps old."""

    def move(self, table, slopes, step, index, lag):
        return tree.axpy(table, -step, slopes)


class MeasuredRows(AbstractRowMoves):
    """A row moves when it is measured, along its new slope, as many steps at once as it has waited:
    the lazy form, in which blocks that are not measured are left alone.

    The steps of a row are then $m / I$ times longer on average, and the step size must be shorter.
    A correction of `MSVR` above 1 has no use here: it makes up for moves that rows do not make
    while they wait, and multiplies the noise of those that they make at once.
    """

    def move(self, table, slopes, step, index, lag):
        old, slope = tables.read((table, slopes), index)
        one = lambda row, slope, lag: tree.axpy(row, -step * lag, slope)
        return tables.write(table, index, jax.vmap(one)(old, slope, lag))


class _Batch(NamedTuple):
    """Blocks, and samples of both levels for each; all samples for `None`."""

    blocks: Int[Array, " I"]
    upper: Int[Array, "I b"] | None
    lower: Int[Array, "I b"] | None

    def level(self, problem: MultiBlockBilevel, i: Int[Array, ""]) -> Bilevel:
        """The problem of the i-th of the blocks."""
        block = self.blocks[i]
        if self.upper is None or self.lower is None:
            return problem.full(block)
        return problem.minibatch(block, self.upper[i], self.lower[i])

    def losses(self, problem: MultiBlockBilevel) -> int:
        """How many losses it has."""
        if self.upper is None or self.lower is None:
            each = rows.count(problem.upper_data) + rows.count(problem.lower_data)
        else:
            each = self.upper.shape[1] + self.lower.shape[1]
        return len(self.blocks) * each


class BlockState(eqx.Module):
    """State of a method that looks at a few blocks in each step.

    **Attributes:**

    - `old`: the point before the last step.
    - `gradient`: the estimate of the hypergradient, shaped like $x$.
    - `tables`: what is followed of each block, stacked on a leading axis.
    - `inverses`: of `BSVRBHessian`, the inverse Hessians, and those before the last step.
    - `measured`: the step at which each block was last measured.
    - `samples`: per-sample losses differentiated so far, of both levels.
    """

    old: BilevelPoint
    gradient: PyTree[Array]
    tables: Any
    inverses: Any
    measured: Int[Array, " m"]
    record: Any
    count: Int[Array, ""]
    samples: Int[Array, ""]
    error: Float[Array, ""]
    key: PRNGKeyArray


class _AbstractBlockwise(AbstractSolver[MultiBlockBilevel, BlockState]):
    """Blocks and samples are drawn, the estimates follow, the point moves."""

    step_size: Any = rate_field(1e-3)
    lower_step: Any = rate_field(0.5)
    blocks: int | None = eqx.field(static=True, default=10)
    batch: int | None = eqx.field(static=True, default=32)
    moves: AbstractRowMoves = eqx.field(default_factory=MeasuredRows)
    output: AbstractOutput = eqx.field(default_factory=Last)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000
    problems = (MultiBlockBilevel,)

    def __check_init__(self):
        check_rate("step_size", self.step_size)
        check_rate("lower_step", self.lower_step)
        for name in ("blocks", "batch"):
            value = getattr(self, name)
            if value is not None:
                checks.count(name, value)
        checks.instance("moves", self.moves, AbstractRowMoves, "MeasuredRows()")
        checks.instance("output", self.output, AbstractOutput, "Last()")

    def draw(
        self, problem: MultiBlockBilevel, key: PRNGKeyArray, blocks: int | None = None
    ) -> _Batch:
        """Blocks without replacement, and samples for each of them."""
        chosen, upper, lower = jax.random.split(key, 3)
        total = problem.num_blocks
        size = blocks or self.blocks or total
        if size > total:
            raise ValueError(f"blocks must be at most the problem's {total}, got {size}")
        if size == total:
            index = jnp.arange(total, dtype=jnp.int32)
        else:
            index = WithoutReplacement()(chosen, total, size)
        batch = self.batch
        if batch is None:
            return _Batch(index, None, None)
        each = lambda draw, key: jax.vmap(lambda k: draw(k, batch))(jax.random.split(key, size))
        return _Batch(index, each(problem.draw_upper, upper), each(problem.draw_lower, lower))

    @abc.abstractmethod
    def begin(self, problem: MultiBlockBilevel, x: BilevelPoint, batch: _Batch) -> tuple:
        """The first gradient, tables and inverses, from a batch of all blocks."""

    @abc.abstractmethod
    def advance(
        self, problem: MultiBlockBilevel, x: BilevelPoint, state: BlockState, batch: _Batch
    ) -> tuple:
        """The next point; gradient, tables and inverses behind the batch; and at how many points
        it was looked at."""

    def _estimate(self, gradient, tables) -> Float[Array, ""]:
        """Of the residual's norm."""
        return tree.norm((gradient, tables))

    def init(self, problem, x, key):
        draw, key = jax.random.split(key)
        batch = self.draw(problem, draw, problem.num_blocks)
        gradient, tables, inverses = self.begin(problem, x, batch)
        zero = jnp.asarray(0, jnp.int32)
        return BlockState(
            x,
            gradient,
            tables,
            inverses,
            jnp.full(problem.num_blocks, -1, jnp.int32),
            self.output.init(x),
            zero,
            zero + batch.losses(problem),
            unknown(tree.real_dtype(x)),
            key,
        )

    def refresh(self, problem, x, state):
        """New first estimates, as the problem may be a new one."""
        fresh = self.init(problem, x, state.key)
        parts = lambda s: (s.measured, s.record, s.count, s.samples)
        kept = (
            jnp.full_like(state.measured, -1) + state.count,
            state.record,
            state.count,
            state.samples + fresh.samples,
        )
        return eqx.tree_at(parts, fresh, kept, is_leaf=lambda leaf: leaf is None)

    def step(self, problem, x, state):
        draw, pick, key = jax.random.split(state.key, 3)
        dtype = state.error.dtype
        one = jnp.ones((), dtype)
        record = self.output.observe(state.record, x, one * jnp.inf, one, pick)
        batch = self.draw(problem, draw)
        new, gradient, followed, inverses, points = self.advance(problem, x, state, batch)
        new = tree.cast_like(new, x)
        size = self._estimate(gradient, followed).astype(dtype)
        return new, BlockState(
            x,
            tree.cast_like(gradient, x.upper),
            followed,
            inverses,
            state.measured.at[batch.blocks].set(state.count),
            record,
            state.count + 1,
            state.samples + points * batch.losses(problem),
            asked(problem, new, size, state.error, jnp.asarray(self.tol, dtype)),
            key,
        )

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        return finished(self.output, x, state, jnp.full_like(state.error, jnp.inf), self.tol)


def _mean(a: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), a)


def _at(point: BilevelPoint, index: Int[Array, " I"]) -> BilevelPoint:
    return BilevelPoint(point.upper, *tables.read((point.lower, point.multiplier), index))


def _over_blocks(fun, batch: _Batch, *points: tuple) -> tuple[Any, ...]:
    """`fun(i, x, y, v, ...)` of each of the blocks, stacked, at each of the points.

    All points go through one program.
    """
    indices = jnp.arange(len(batch.blocks), dtype=jnp.int32)

    def at(point):
        x, *others = point
        return jax.vmap(lambda i, *others: fun(i, x, *others))(indices, *others)

    if len(points) == 1:
        return (at(points[0]),)
    found = jax.vmap(at)(jax.tree.map(lambda *a: jnp.stack(a), *points))
    return tuple(jax.tree.map(lambda a, k=k: a[k], found) for k in range(len(points)))


class _AbstractMatrixFree(_AbstractBlockwise):
    """With multipliers that take steps of their own; what is measured of a block is its residual.

    The tables are those of $\\nabla_y g_i$ and of $\\nabla_{yy} g_i v_i - \\nabla_y f_i$.
    """

    multiplier_step: Any = eqx.field(converter=checks.scalar, default=None)
    multiplier_set: Any = eqx.field(default_factory=lambda: L2Ball(10.0))

    compares: ClassVar[bool] = True
    """Whether batches are looked at with the old point too."""

    def __check_init__(self):
        if self.multiplier_step is not None:
            check_rate("multiplier_step", self.multiplier_step)
        feasible = self.multiplier_set
        if feasible is not None and not checks.has_method(feasible, "project"):
            raise TypeError(f"multiplier_set must be a set with a projection, got {feasible!r}")

    @abc.abstractmethod
    def steer(self, gradient, new, old) -> PyTree[Array]:
        """The estimate of the hypergradient behind a batch."""

    @abc.abstractmethod
    def follow(self, table, index, new, old) -> PyTree[Array]:
        """A table behind a batch."""

    def _measured(self, problem, batch, *points) -> tuple[BilevelPoint, ...]:
        one = lambda i, x, y, v: batch.level(problem, i).residual(BilevelPoint(x, y, v))
        return _over_blocks(one, batch, *(_at(point, batch.blocks) for point in points))

    def begin(self, problem, x, batch):
        (found,) = self._measured(problem, batch, x)
        return _mean(found.upper), (found.lower, found.multiplier), None

    def advance(self, problem, x, state, batch):
        index = batch.blocks
        points = (x, state.old) if self.compares else (x,)
        found = self._measured(problem, batch, *points)
        new, old = found[0], found[-1]
        gradient = self.steer(state.gradient, _mean(new.upper), _mean(old.upper))
        s, u = state.tables
        s = self.follow(s, index, new.lower, old.lower)
        u = self.follow(u, index, new.multiplier, old.multiplier)

        dtype = state.error.dtype
        own = self.lower_step if self.multiplier_step is None else self.multiplier_step
        rates = (
            rate_at(rate, state.count, dtype) for rate in (self.step_size, self.lower_step, own)
        )
        upper, lower, multiplier = rates
        lag = state.count - state.measured[index]
        v = self.moves.move(x.multiplier, u, multiplier, index, lag)
        if self.multiplier_set is not None:
            v = jax.vmap(self.multiplier_set.project)(v)
        moved = BilevelPoint(
            tree.axpy(x.upper, -upper, gradient),
            self.moves.move(x.lower, s, lower, index, lag),
            v,
        )
        return moved, gradient, (s, u), None, len(points)


class BSVRB(_AbstractMatrixFree):
    """Blockwise stochastic variance-reduced bilevel method with Hessian-vector products, BSVRB v2.

    A step draws $I$ of the $m$ blocks and, for each of them, $B$ samples of either level, which are
    looked at with the point $(x, y, v)$ and with the one before it. Of the blocks drawn, rows

    $$s_i \\approx \\nabla_y g_i(x, y_i), \\qquad u_i \\approx \\nabla_{yy} g_i(x, y_i)\\, v_i -
      \\nabla_y f_i(x, y_i)$$

    follow by `stochastic.estimators.MSVR`, and the hypergradient by `STORM`,

    $$z \\leftarrow (1 - \\beta) (z - G_{\\text{old}}) + G, \\qquad
      G = \\frac1I \\sum_i \\nabla_x f_i - \\nabla_{xy} g_i\\, v_i ,$$

    with the sum over the blocks drawn. Then $x \\leftarrow x - \\eta z$, and rows $y_i$ and $v_i$
    move by $-\\tau s_i$ and $-\\tau_v u_i$: by default those drawn, as many steps at once as they
    have waited, or all. To start, each block is measured once.

    With all blocks and all samples the method is deterministic and goes to a solution; otherwise
    noise stays, less of it with smaller weights and steps. A large correction beside a moderate
    $\\alpha$ may make it diverge; the default is at most 1.

    The error is the norm of $(z, s, u)$ until that is within the tolerance; then the norm of the
    problem's residual is asked. By default the tolerance is zero, nothing is asked, and a solve
    ends at the step limit. The implicit derivative is that of the solution, and means little at a
    point far from it.

    **Arguments:**

    - `step_size`: $\\eta > 0$, or a schedule of the step's number.
    - `lower_step`: $\\tau$, as $\\eta$. Stable below 2 over the largest eigenvalue of the lower
      Hessians.
    - `multiplier_step`: $\\tau_v$, as $\\eta$; `None` for $\\tau$.
    - `tracker`: of the rows, with its weight $\\alpha$ and correction $\\gamma$.
    - `upper_weight`: $\\beta \\in (0, 1]$.
    - `blocks`: $I$; `None` for all.
    - `batch`: $B$; `None` for all samples.
    - `multiplier_set`: the set that each $v_i$ stays in, by default a ball of radius 10; `None` for
      all of the space. A multiplier outside of it cannot be found, and no solve converges.
    - `moves`: `MeasuredRows()` or `AllRows()`.
    - `output`: which iterate is returned, one of `stochastic`; the theorem is of `RandomIterate()`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` on more blocks than there are, a weight outside of (0, 1], a negative
    correction, or steps that are not positive.

    **Reference:** Hu, Qiu, Guo, Zhang, Yang, Blockwise Stochastic Variance-Reduced Methods with
    Parallel Speedup for Multi-Block Bilevel Optimization, 2023, arXiv:2305.18730.
    """

    tracker: MSVR = eqx.field(default_factory=lambda: MSVR(0.9))
    upper_weight: Scalar = scalar_field(0.9)

    def __check_init__(self):
        checks.instance("tracker", self.tracker, MSVR, "MSVR(0.9)")
        checks.interval("upper_weight", self.upper_weight, 0, 1, open_low=True)

    def steer(self, gradient, new, old):
        return storm(gradient, new, old, self.upper_weight)

    def follow(self, table, index, new, old):
        return self.tracker.update(table, index, new, old)


class RSVRB(_AbstractMatrixFree):
    """Randomized stochastic variance-reduced bilevel method, RSVRB.

    `BSVRB` with another estimate of the tables: `STORM` of the whole table, for which that of the
    blocks drawn, times $m / I$, and zero elsewhere, is an unbiased measurement. With the same
    weight as the hypergradient,

    $$s_i \\leftarrow (1 - \\beta) (s_i - \\tfrac mI h_{i, \\text{old}}) + \\tfrac mI h_i$$

    of the blocks drawn, and $s_i \\leftarrow (1 - \\beta) s_i$ of the others. The factor makes its
    variance large where $I$ is small.

    **Arguments:** as of `BSVRB`, without a tracker.

    - `weight`: $\\beta \\in (0, 1]$.

    **Raises:** as `BSVRB`.

    **Reference:** Guo, Hu, Zhang, Yang, Randomized Stochastic Variance-Reduced Methods for
    Multi-Task Stochastic Bilevel Optimization, 2021, arXiv:2105.02266.
    """

    weight: Scalar = scalar_field(0.9)
    moves: AbstractRowMoves = eqx.field(default_factory=AllRows)

    def __check_init__(self):
        checks.interval("weight", self.weight, 0, 1, open_low=True)

    def steer(self, gradient, new, old):
        return storm(gradient, new, old, self.weight)

    def follow(self, table, index, new, old):
        left = tree.scale(table, 1 - self.weight)
        factor = len(jax.tree.leaves(table)[0]) / len(index)
        measured = storm(jax.tree.map(jnp.zeros_like, new), new, old, self.weight)
        return tables.write(
            table=left, index=index, rows=tree.axpy(tables.read(left, index), factor, measured)
        )


class BlockwiseSGD(_AbstractMatrixFree):
    """Stochastic steps on a bilevel problem of many blocks, without variance reduction.

    The three directions of `BSVRB` are those of the last batch alone: it is `BSVRB` with
    $\\alpha = \\beta = 1$ and $\\gamma = 0$, at half of the price, as no batch is looked at twice.

    **Arguments:** as of `BSVRB`, without a tracker and weights.

    **Raises:** as `BSVRB`.

    **Reference:** Dagréou, Ablin, Vaiter, Moreau, A Framework for Bilevel Optimization that Enables
    Stochastic and Global Variance Reduction Algorithms, 2022, arXiv:2201.13409.
    """

    compares: ClassVar[bool] = False

    def steer(self, gradient, new, old):
        return new

    def follow(self, table, index, new, old):
        return tables.write(table, index, new)


def _curvature(level: Bilevel, x, y):
    """$\\nabla_y g$, and $\\nabla_{yy} g$ as a matrix."""
    flat, back = ravel_pytree(y)
    slope = lambda flat: ravel_pytree(level.lower_residual(x, back(flat)))[0]
    value, product = jax.linearize(slope, flat)
    basis = loops.vary_like(jnp.eye(len(flat), dtype=flat.dtype), flat)
    return back(value), jax.vmap(product)(basis)


def _direction(level: Bilevel, x, y, inverse):
    """$\\nabla_x f - \\nabla_{xy} g\\, v$ and $v = H^{-1} \\nabla_y f$."""
    own, through = tree.gradient(lambda p: level.upper(*p), (x, y))
    flat, back = ravel_pytree(through)
    v = back(inverse @ flat)
    return jax.tree.map(jnp.subtract, own, level.pull(x, y, v)[0]), v


class BSVRBHessian(_AbstractBlockwise):
    """Blockwise stochastic variance-reduced bilevel method with Hessians, BSVRB v1, for lower
    variables of few entries.

    As `BSVRB`, with a table of matrices in place of the multipliers' steps. `MSVR` follows
    $H_i \\approx \\nabla_{yy} g_i(x, y_i)$ of the blocks drawn, projected on the symmetric matrices
    with eigenvalues of at least $\\mu$, and

    $$G = \\frac1I \\sum_i \\nabla_x f_i - \\nabla_{xy} g_i\\, v_i, \\qquad v_i = H_i^{-1} \\nabla_y
      f_i,$$

    takes $H_i$ from before the step, at either point. By default all rows $y_i$ move by
    $\\tau s_i$. Time is $O(I d^3)$ and memory $O(m d^2)$ for $d$ entries of a $y_i$.

    The error is the norm of $(z, s)$ until that is within the tolerance; then the norm of the
    problem's residual is asked, which a $\\mu$ above an eigenvalue leaves large. Derivatives
    through the steps, those of `UnrolledAdjoint`, go through eigenvectors, and are not numbers
    where eigenvalues are equal.

    **Arguments:** as of `BSVRB`, without those of multipliers.

    - `modulus`: $\\mu > 0$, a lower bound of the eigenvalues of lower Hessians.

    **Raises:** as `BSVRB`, and `ValueError` on a modulus that is not positive.

    **Reference:** Hu, Qiu, Guo, Zhang, Yang, Blockwise Stochastic Variance-Reduced Methods with
    Parallel Speedup for Multi-Block Bilevel Optimization, 2023, arXiv:2305.18730.
    """

    tracker: MSVR = eqx.field(default_factory=lambda: MSVR(0.9))
    upper_weight: Scalar = scalar_field(0.9)
    modulus: Scalar = scalar_field(1e-3)
    moves: AbstractRowMoves = eqx.field(default_factory=AllRows)

    def __check_init__(self):
        checks.instance("tracker", self.tracker, MSVR, "MSVR(0.9)")
        checks.interval("upper_weight", self.upper_weight, 0, 1, open_low=True)
        checks.positive("modulus", self.modulus)

    def _projected(self, matrices: Float[Array, "I d d"]):
        """The nearest matrices with such eigenvalues, and their inverses."""
        values, vectors = jnp.linalg.eigh(matrices)
        values = jnp.maximum(values, jnp.asarray(self.modulus, values.dtype))
        product = lambda scales: jnp.einsum("kij,kj,klj->kil", vectors, scales, vectors)
        return product(values), product(1 / values)

    def begin(self, problem, x, batch):
        level = lambda i: batch.level(problem, i)
        ((s, H),) = _over_blocks(lambda i, *p: _curvature(level(i), *p), batch, (x.upper, x.lower))
        H, inverse = self._projected(H)
        point = x.upper, x.lower, inverse
        ((G, _),) = _over_blocks(lambda i, *p: _direction(level(i), *p), batch, point)
        return _mean(G), (s, H), (inverse, inverse)

    def advance(self, problem, x, state, batch):
        index = batch.blocks
        (s, H), (now, before) = state.tables, state.inverses

        def one(i, x, y, inverse):
            level = batch.level(problem, i)
            return _direction(level, x, y, inverse), _curvature(level, x, y)

        at = lambda point, inverse: (point.upper, *tables.read((point.lower, inverse), index))
        new, old = _over_blocks(one, batch, at(x, now), at(state.old, before))
        (G, v), (slope, curved) = new
        (G_old, _), (slope_old, curved_old) = old
        gradient = storm(state.gradient, _mean(G), _mean(G_old), self.upper_weight)
        s = self.tracker.update(s, index, slope, slope_old)
        H = self.tracker.update(H, index, curved, curved_old)
        kept, inverse = self._projected(tables.read(H, index))
        H, after = tables.write((H, now), index, (kept, inverse))

        dtype = state.error.dtype
        upper, lower = (rate_at(r, state.count, dtype) for r in (self.step_size, self.lower_step))
        lag = state.count - state.measured[index]
        moved = BilevelPoint(
            tree.axpy(x.upper, -upper, gradient),
            self.moves.move(x.lower, s, lower, index, lag),
            tables.write(x.multiplier, index, v),
        )
        return moved, gradient, (s, H), (after, now), 2

    def _estimate(self, gradient, tables):
        return tree.norm((gradient, tables[0]))
