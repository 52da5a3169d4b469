"""Block coordinate descent for a smooth plus a block-separable function."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..core import AbstractSolver, Composite, Scalar, Smooth, checks, loops, scalar_field, tree
from ..prox import AbstractFunction
from .block_rules import (
    GSD,
    AbstractFixedPartition,
    AbstractPartition,
    AbstractScore,
    AbstractVariablePartition,
    Overview,
    Table,
    VariableBlocks,
)
from .block_updates import AbstractUpdate, BlockView, GradientUpdate
from .coordinate_model import AbstractCoordinateModel, coordinate_bounds, coordinate_model, gather
from .curvature import AbstractCurvature, DiagonalCurvature, curvature_of
from .separable import Separable


class AbstractSelection(eqx.Module):
    """A rule for the order of the blocks."""

    @abc.abstractmethod
    def order(self, lipschitz: Float[Array, " d"], key: PRNGKeyArray) -> Int[Array, " d"]:
        """The blocks of one sweep."""


class Cyclic(AbstractSelection):
    """Every block once, in order."""

    def order(self, lipschitz, key):
        return jnp.arange(lipschitz.size)


class Shuffled(AbstractSelection):
    """Every block once, in a new random order each sweep."""

    def order(self, lipschitz, key):
        return jax.random.permutation(key, lipschitz.size)


class Random(AbstractSelection):
    """Blocks drawn with replacement, in proportion to $L_j^{\\gamma}$.

    **Arguments:**

    - `power`: $\\gamma$; 0 draws uniformly, 1 is importance sampling.
    """

    power: Scalar = scalar_field(0.0)

    def __check_init__(self):
        checks.nonnegative("power", self.power)

    def order(self, lipschitz, key):
        logits = self.power.astype(lipschitz.dtype) * jnp.log(lipschitz)
        return jax.random.categorical(key, logits, shape=lipschitz.shape)


class _State(eqx.Module):
    model: AbstractCoordinateModel
    predictions: Array
    lipschitz: Float[Array, " d"]
    key: PRNGKeyArray
    error: Float[Array, ""]


def _optional_bounds():
    return eqx.field(converter=lambda x: None if x is None else jnp.asarray(x), default=None)


class AbstractCoordinateSolver(AbstractSolver):
    """A coordinate method with bounds on the blocks' curvature, found or given."""

    lipschitz: eqx.AbstractVar[Float[Array, "..."] | None]

    def __check_init__(self):
        if self.lipschitz is not None:
            checks.positive("lipschitz", self.lipschitz)

    def error(self, problem, x, state):
        return state.error


class BlockCoordinateDescent(AbstractCoordinateSolver):
    """Proximal descent on one block at a time,

    $$w_j \\leftarrow \\mathrm{prox}_{g_j / L_j}\\bigl(w_j - \\nabla_j f(w) / L_j\\bigr).$$

    Blocks are the entries of the leading axis of `w`. A step is one sweep over as many blocks as
    there are. For the linear losses of `objectives` the predictions $z = Xw$ are kept up to date,
    so that a block costs $O(n)$, and computed anew behind each sweep, so that their rounding does
    not add up; any other smooth function costs one full derivative a block and
    needs `lipschitz`.

    The error is the norm of the problem's residual behind the sweep, with all blocks looked at,
    whatever their $L_j$.

    **Arguments:**

    - `selection`: `Cyclic()`, `Shuffled()` or `Random()`; see `GreedyCoordinateDescent` for the
      Gauss-Southwell rule.
    - `lipschitz`: bounds $L_j > 0$ on the blocks' curvature, shape `(d,)` or a scalar.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is a sweep.

    **Raises:** `TypeError` where bounds are needed and not given, or the nonsmooth part is not
    separable; `ValueError` if there is not one bound for each block.

    **Reference:** Tseng, Yun, A Coordinate Gradient Descent Method for Nonsmooth Separable
    Minimization, 2009. Nesterov, Efficiency of Coordinate Descent Methods, 2012.
    """

    selection: AbstractSelection = eqx.field(default_factory=Cyclic)
    lipschitz: Float[Array, "..."] | None = _optional_bounds()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 1000
    problems = (Composite,)

    def __check_init__(self):
        checks.instance("selection", self.selection, AbstractSelection, "Cyclic()")

    def init(self, problem, x, key):
        model = coordinate_model(problem.smooth)
        lipschitz = coordinate_bounds(self.lipschitz, problem.smooth, x)
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        return _State(model, model.predictions(x), lipschitz, key, infinity)

    def refresh(self, problem, x, state):
        fresh = self.init(problem, x, state.key)
        return eqx.tree_at(lambda s: s.error, fresh, state.error)

    def step(self, problem, x, state):
        key, draw = jax.random.split(state.key)
        order = self.selection.order(state.lipschitz, draw)
        nonsmooth = _aligned(problem.nonsmooth, x)

        def write(w, j, new):
            return jax.lax.dynamic_update_index_in_dim(w, new.astype(w.dtype), j, 0)

        def visit(i, carry):
            # The last block is written before this one is read: then the loop works in place.
            w, z, *last = carry
            w = write(w, *last)
            j = order[i]
            step = 1 / state.lipschitz[j]
            gradient = state.model.partial(w, z, j)
            new = nonsmooth.block(j).prox(w[j] - step * gradient, step)
            return w, state.model.move(z, j, new - w[j]), j, new

        first = x, state.predictions, order[0], x[order[0]]
        x, _, *last = loops.fori_loop(0, order.size, visit, first)
        x = write(x, *last)
        z = state.model.predictions(x)
        error = _residual_norm(problem, x, state.model.gradient(x, z))
        return x, _State(state.model, z, state.lipschitz, key, error)


class _GreedyState(eqx.Module):
    model: AbstractCoordinateModel
    predictions: Array
    gradient: Array
    lipschitz: Float[Array, " d"]
    age: Int[Array, ""]
    error: Float[Array, ""]


class GreedyCoordinateDescent(AbstractCoordinateSolver):
    """Block coordinate descent on the block that would move the objective's model most.

    The Gauss-Southwell-q rule: with $d_j$ the proximal step of block $j$, take the block with the
    largest predicted decrease

    $$\\langle -\\nabla_j f(w), d_j\\rangle - \\tfrac{L_j}{2} \\|d_j\\|^2 - g_j(w_j + d_j) +
    g_j(w_j).$$

    A step moves one block and computes one full gradient. The error is the norm of the problem's
    residual at the value.

    **Arguments:**

    - `lipschitz`: as in `BlockCoordinateDescent`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Tseng, Yun, 2009. Nutini et al., Coordinate Descent Converges Faster with the
    Gauss-Southwell Rule than Random Selection, 2015, arXiv:1506.00552.
    """

    lipschitz: Float[Array, "..."] | None = _optional_bounds()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 20_000
    problems = (Composite,)

    def init(self, problem, x, key):
        model = coordinate_model(problem.smooth)
        lipschitz = coordinate_bounds(self.lipschitz, problem.smooth, x)
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        zero = jnp.asarray(0, jnp.int32)
        z = model.predictions(x)
        return _GreedyState(model, z, model.gradient(x, z), lipschitz, zero, infinity)

    def refresh(self, problem, x, state):
        fresh = self.init(problem, x, jax.random.key(0))  # the greedy rule draws nothing
        return eqx.tree_at(lambda s: s.error, fresh, state.error)

    def step(self, problem, x, state):
        nonsmooth = _aligned(problem.nonsmooth, x)
        model, z, lipschitz = state.model, state.predictions, state.lipschitz
        moves, decreases = _proposals(nonsmooth, x, state.gradient, lipschitz)
        j = jnp.argmax(decreases)
        x = x.at[j].add(moves[j])
        # Once in a sweep's worth of steps anew, so that rounding does not add up.
        age = (state.age + 1) % x.shape[0]
        z = loops.cond(age == 0, lambda: model.predictions(x), lambda: model.move(z, j, moves[j]))
        gradient = model.gradient(x, z)
        error = _residual_norm(problem, x, gradient)
        return x, _GreedyState(model, z, gradient, lipschitz, age, error)


def _aligned(nonsmooth, x):
    return nonsmooth.aligned(x) if isinstance(nonsmooth, AbstractFunction) else nonsmooth


def _residual_norm(problem, w, gradient):
    return tree.norm(w - problem.nonsmooth.prox(w - gradient, 1.0))


def _proposals(nonsmooth, w, gradient, lipschitz):
    """The step of every block, and the decrease it promises."""

    def propose(j, w, g, lipschitz):
        function = nonsmooth.block(j)
        new = function.prox(w - g / lipschitz, 1 / lipschitz)
        move = new - w
        square = jnp.real(jnp.vdot(move, move))
        decrease = -jnp.real(jnp.vdot(g, move)) - 0.5 * lipschitz * square
        return move, decrease - function(new) + function(w)

    return jax.vmap(propose)(jnp.arange(w.shape[0]), w, gradient, lipschitz)


class _BlockState(eqx.Module):
    model: AbstractCoordinateModel
    predictions: Array
    gradient: Float[Array, " d"]
    curvature: AbstractCurvature | None
    table: Table | None
    aid: Any
    estimates: Float[Array, " d"]
    held: Bool[Array, " d"]
    support_changes: Int[Array, ""]
    last_change: Int[Array, ""]
    age: Int[Array, ""]
    key: PRNGKeyArray
    error: Float[Array, ""]


class GreedyBlockCoordinateDescent(AbstractSolver):
    """Block coordinate descent as partition, selection and update, for $\\min_x f(x) + \\sum_i
    h_i(x_i)$ or $f$ alone: a step chooses one block, by a greedy rule or in turn, and updates it.

    - Partitions: `FixedBlocks`, `GivenBlocks`; `VariableBlocks`, `ForestBlocks`, put together anew
      each step.
    - Selections: the greedy `GS`, `GSL`, `GSD`, `GSDH`, `GSQ`, `GSQIHT`; or `Cyclic`, `Shuffled`,
      `Random`, of which `Random(1.0)` draws in proportion to $L_b$.
    - Updates: `GradientUpdate` (proximal with $h$), `BacktrackedGradientUpdate`, `MatrixUpdate`,
      `NewtonUpdate`, `TwoMetricUpdate`, `ExactUpdate`, `ForestUpdate`.

    Good pairs: `GSD` with gradient updates, `GSDH` with matrix updates; `GSQ` where fixed blocks
    are wanted and may be dear to choose.

    Updates that use a bound $H \\succeq \\nabla^2 f$ take it from `matrix`, from `lipschitz`, or
    from the function, if that is a `Quadratic`, a `GraphQuadratic` or a loss of `objectives`; of a
    linear loss only blocks of $H$ are formed.

    A step computes one full gradient. The error is the norm of the problem's residual at the
    value. `solution.state.support_changes` counts the steps after which another set of entries was
    at a kink of $h$, and `solution.state.last_change` is the last of them: once it is behind,
    blocks that hold all free coordinates make `TwoMetricUpdate` Newton's method on them.

    **Arguments:**

    - `partition`, `selection`, `update`: see above.
    - `lipschitz`: bounds $L_i > 0$ on the coordinates' curvature, shape `(d,)` or a scalar.
    - `matrix`: $H$, shape `(d, d)`.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is one block.

    **Raises:** `ValueError` for blocks larger than $x$ or that do not cover it, `GSQ` with variable
    blocks, or bounds of other shapes; `TypeError` if $x$ is not one real vector, if an update needs
    a bound or a matrix and there is none, or for a nonsmooth part that it does not take.

    **Reference:** Nutini, Laradji, Schmidt, Let's Make Block Coordinate Descent Converge Faster:
    Faster Greedy Rules, Message-Passing, Active-Set Complexity, and Superlinear Convergence, 2022,
    arXiv:1712.08859.
    """

    partition: AbstractPartition = VariableBlocks(1)
    selection: AbstractScore | AbstractSelection = GSD()
    update: AbstractUpdate = GradientUpdate()
    lipschitz: Float[Array, "..."] | None = _optional_bounds()
    matrix: Float[Array, "d d"] | None = _optional_bounds()
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 20_000
    problems = (Smooth, Composite)

    def __check_init__(self):
        checks.instance("partition", self.partition, AbstractPartition, "VariableBlocks(5)")
        if not isinstance(self.selection, AbstractScore | AbstractSelection):
            raise TypeError(f"selection must be an object such as GSD(), got {self.selection!r}")
        checks.instance("update", self.update, AbstractUpdate, "GradientUpdate()")
        if self.matrix is not None and self.lipschitz is not None:
            raise ValueError("give lipschitz or matrix, not both: the matrix has its own diagonal")
        if self.lipschitz is not None:
            checks.positive("lipschitz", self.lipschitz)

    def init(self, problem, x, key):
        smooth, nonsmooth = _parts(problem)
        if not (isinstance(x, jax.Array) and x.ndim == 1) or jnp.iscomplexobj(x):
            raise TypeError(f"blocks are of the entries of one real vector, got {_shape(x)}")
        self.partition.check(x.size)
        self.update.check(smooth, nonsmooth)
        model = coordinate_model(smooth)
        curvature = curvature_of(smooth, model, self.lipschitz, self.matrix, x)
        if curvature is None and self.update.bounded():
            raise TypeError(
                f"{type(self.update).__name__} needs a bound on the curvature: give lipschitz or "
                "matrix, or take BacktrackedGradientUpdate or NewtonUpdate"
            )
        known = DiagonalCurvature(jnp.ones_like(x)) if curvature is None else curvature
        estimates = known.diagonal().astype(x.dtype)
        table = None
        if isinstance(self.partition, AbstractFixedPartition):
            table = self.partition.table(estimates)
        aid = self._prepare(known, table)
        z = model.predictions(x)
        gradient = model.gradient(x, z)
        held = Separable.of(nonsmooth, x).held(x, gradient)
        zero, infinity = jnp.asarray(0, jnp.int32), jnp.asarray(jnp.inf, x.dtype)
        return _BlockState(
            model,
            z,
            gradient,
            curvature,
            table,
            aid,
            estimates,
            held,
            zero,
            zero,
            zero,
            key,
            infinity,
        )

    def refresh(self, problem, x, state):
        kept = lambda s: (s.estimates, s.support_changes, s.last_change, s.age, s.error)
        return eqx.tree_at(kept, self.init(problem, x, state.key), kept(state))

    def _prepare(self, curvature, table):
        """What the selection needs to know of the curvature."""
        if isinstance(self.selection, AbstractScore):
            return self.selection.prepare(curvature, table)
        return curvature.diagonal() if table is None else jax.vmap(curvature.bound)(table)

    def _select(self, smooth, x, state, penalty) -> Int[Array, " s"]:
        curvature, aid, table = state.curvature, state.aid, state.table
        if curvature is None:  # then the estimates are what is known
            curvature = DiagonalCurvature(state.estimates)
            aid = self._prepare(curvature, table)
        size = getattr(self.partition, "size", None)
        if isinstance(self.selection, AbstractScore):
            view = Overview(x, state.gradient, penalty, curvature, size)
            if table is not None:
                return table[jnp.argmax(self.selection.blocks(view, table, aid))]
            scores = self.selection.entries(view, aid)
        else:
            if table is not None:
                sweep, place = jnp.divmod(state.age, table.shape[0])
                order = self.selection.order(aid, jax.random.fold_in(state.key, sweep))
                return table[order[place]]
            order = self.selection.order(aid, jax.random.fold_in(state.key, state.age))
            # The first come first, each time from where the last block ended.
            order = jnp.roll(order, -((state.age * (size or 1)) % x.size))
            rank = x.size - jnp.arange(x.size)
            scores = jnp.zeros_like(rank).at[order].max(rank)
        assert isinstance(self.partition, AbstractVariablePartition)
        return self.partition.grow(scores, smooth)

    def step(self, problem, x, state):
        smooth, nonsmooth = _parts(problem)
        penalty = Separable.of(nonsmooth, x)
        model, z = state.model, state.predictions
        indices = self._select(smooth, x, state, penalty)
        view = BlockView(
            indices,
            x,
            z,
            gather(state.gradient, indices),
            model.block(indices),
            penalty,
            state.curvature,
            jnp.max(gather(state.estimates, indices)),
        )
        new, estimate = self.update(view)
        new = jnp.where(view.there, new, 0).astype(x.dtype)
        move = new - view.point
        x = x.at[indices].set(new, mode="drop")
        estimate = jnp.broadcast_to(estimate.astype(x.dtype), indices.shape)
        estimates = state.estimates.at[indices].set(estimate, mode="drop")
        # Once in a sweep's worth of steps anew, so that rounding does not add up.
        age = state.age + 1
        anew = age % max(1, x.size // indices.size) == 0
        z = loops.cond(anew, lambda: model.predictions(x), lambda: view.block.move(z, move))
        gradient = model.gradient(x, z)
        error = tree.norm(gradient) if nonsmooth is None else _residual_norm(problem, x, gradient)
        held = penalty.held(x, gradient)
        changed = jnp.any(held != state.held)
        return x, _BlockState(
            model,
            z,
            gradient,
            state.curvature,
            state.table,
            state.aid,
            estimates,
            held,
            state.support_changes + changed,
            jnp.where(changed, age, state.last_change),
            age,
            state.key,
            error,
        )

    def error(self, problem, x, state):
        return state.error


def _parts(problem):
    if isinstance(problem, Smooth):
        return problem.fun, None
    return problem.smooth, problem.nonsmooth


def _shape(x):
    return f"dtype {x.dtype}, shape {x.shape}" if isinstance(x, jax.Array) else type(x).__name__
