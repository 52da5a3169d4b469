"""Accelerated cyclic coordinate methods with extrapolation, with and without variance reduction."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..core import AbstractSolver, Composite, FiniteSum, Scalar, checks, loops, scalar_field, tree
from ..prox import AbstractFunction
from .coordinate_model import AbstractCoordinateModel, coordinate_model, gather, scatter_add

RESTART = 0.3
"""The fraction of the error at the last restart at which the next one comes."""


def _check_array(x):
    if not (isinstance(x, jax.Array) and x.ndim > 0):
        raise TypeError("blocks are of the leading axis of one array")


def _blocks(d: int, blocks: int | None) -> Int[Array, "m s"]:
    """Consecutive indices, those of nothing (`d`) last."""
    blocks = d if blocks is None else blocks
    if blocks > d:
        raise ValueError(
            f"blocks must be at most the {d} entries of the leading axis, got {blocks}"
        )
    size = -(-d // blocks)
    table = jnp.arange(-(-d // size) * size).reshape(-1, size)
    return jnp.minimum(table, d)


def _prox(nonsmooth, indices, x, values, weight):
    """Prox of a block; of all of it, if that is one block, which need not be separable."""
    if nonsmooth is None:
        return values
    if indices.size == x.shape[0]:
        return nonsmooth.prox(values, weight)
    aligned = nonsmooth.aligned(x) if isinstance(nonsmooth, AbstractFunction) else nonsmooth
    one = lambda j, value: aligned.block(j).prox(value, weight)
    return jax.vmap(one)(jnp.minimum(indices, x.shape[0] - 1), values)


def _write(x, indices, values):
    return x.at[indices].set(values.astype(x.dtype), mode="drop")


class _State(eqx.Module):
    model: AbstractCoordinateModel
    anchor: Array
    average: Array
    dual: Array
    mixed: Array
    full: Array
    a: Float[Array, ""]
    total: Float[Array, ""]
    lipschitz: Float[Array, ""]
    settled: Bool[Array, ""]
    best: Float[Array, ""]
    error: Float[Array, ""]


class ACODER(AbstractSolver):
    """Accelerated cyclic coordinate dual averaging with extrapolation.

    For $f + g$ with $g$ separable over the blocks and $\\gamma$-strongly convex, round $k$ sets

    $$a = \\tfrac12\\bigl(r + \\sqrt{r^2 + 4 r A_{k-1}}\\bigr),\\quad
    r = \\frac{2 (1 + \\gamma A_{k-1})}{5 L},\\quad A_k = A_{k-1} + a,\\quad
    x_k = (A_{k-1} y_{k-1} + a v_{k-1}) / A_k$$

    and goes through the blocks from the last to the first, with $w$ that has the new $y$ behind
    the block and $x_k$ elsewhere:

    $$p_j = \\nabla_j f(w),\\quad z_j \\mathrel{+}= a p_j + a_{k-1} (\\nabla_j f(x_{k-1}) -
    p_j^{k-1}),\\quad v_j = \\mathrm{prox}_{A_k g_j}(x_{0,j} - z_j),\\quad
    y_j = (A_{k-1} y_j + a v_j) / A_k.$$

    Then $F(y_k) - F^* \\le |x^* - x_0|^2 / (2 A_k)$, which falls as $1/k^2$, or linearly if
    $\\gamma > 0$. A step is a round: a cyclic pass, a full gradient at $x_k$ and one at $y_k$, for
    the error, which is the norm of the problem's residual. For the losses of `objectives` the
    predictions are kept, and the cyclic pass costs as much as a gradient.

    **Arguments:**

    - `lipschitz`: $L > 0$, of the gradient in the cyclic sense; that of $f$ will usually do. `None`
      for an estimate, which is halved round by round until $f(y) \\le f(x) + \\langle \\nabla f(x),
      y - x\\rangle + \\tfrac L2 |y - x|^2$ fails, and from then on only doubled where it does.
    - `strong_convexity`: $\\gamma \\ge 0$, that of $g$.
    - `blocks`: how many blocks the leading axis is cut into, as evenly as equal sizes allow; `None`
      for one entry each.
    - `backtracking`: whether to take `lipschitz` as a first estimate only.
    - `restart`: whether to begin anew from $y$ whenever the error is below three tenths of
      that at the last start. The paper's method has no restarts; without strong convexity in
      $g$ it does not converge linearly, and with them it does where the objective grows
      quadratically.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `ValueError` for more blocks than entries; `TypeError` if $x$ is not one array, or
    the nonsmooth part is not separable and there are several blocks.

    **Reference:** Lin, Song, Diakonikolas, Accelerated Cyclic Coordinate Dual Averaging with
    Extrapolation for Composite Convex Optimization, 2023, arXiv:2303.16279.
    """

    lipschitz: Scalar | None = scalar_field(None)
    strong_convexity: Scalar = scalar_field(0.0)
    blocks: int | None = 1
    backtracking: bool = False
    restart: bool = False
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Composite,)

    def __check_init__(self):
        if self.lipschitz is not None:
            checks.positive("lipschitz", self.lipschitz)
        checks.nonnegative("strong_convexity", self.strong_convexity)
        if self.blocks is not None:
            checks.count("blocks", self.blocks)

    def init(self, problem, x, key):
        _check_array(x)
        _blocks(x.shape[0], self.blocks)
        model = coordinate_model(problem.smooth)
        real = lambda value: jnp.asarray(value, tree.real_dtype(x))
        zero, infinity = real(0.0), real(jnp.inf)
        searched = self.backtracking or self.lipschitz is None
        bound = real(1.0 if self.lipschitz is None else self.lipschitz)
        nothing = jnp.zeros_like(x)
        settled = jnp.asarray(not searched)
        return _State(
            model, x, x, nothing, nothing, nothing, zero, zero, bound, settled, infinity, infinity
        )

    def refresh(self, problem, x, state):
        return eqx.tree_at(lambda s: s.model, state, coordinate_model(problem.smooth))

    def _round(self, problem, y, state, bound):
        """One round with a bound, and whether the bound held."""
        model, gamma = state.model, self.strong_convexity.astype(bound.dtype)
        r = 0.4 * (1 + gamma * state.total) / bound
        a = 0.5 * (r + jnp.sqrt(r * r + 4 * r * state.total))
        total = state.total + a
        # Written so that nothing is lost where the first weight is zero.
        x = y + (a / total) * (state.average - y)
        z = model.predictions(x)
        full = model.gradient(x, z)
        table = _blocks(y.shape[0], self.blocks)
        correction = state.a * (state.full - state.mixed)

        def visit(i, carry):
            w, z, average, dual, mixed = carry
            indices = table[table.shape[0] - 1 - i]
            block = model.block(indices)
            p = block.partial(w, z)
            new = gather(dual, indices) + a * p + gather(correction, indices)
            v = _prox(problem.nonsmooth, indices, y, gather(state.anchor, indices) - new, total)
            old = gather(y, indices)
            move = old + (a / total) * (v - old) - gather(w, indices)
            return (
                scatter_add(w, indices, move),
                block.move(z, move),
                _write(average, indices, v),
                _write(dual, indices, new),
                _write(mixed, indices, p),
            )

        carry = (x, z, state.average, state.dual, state.mixed)
        new, _, average, dual, mixed = loops.fori_loop(0, table.shape[0], visit, carry)
        value, before = model.value(new, model.predictions(new)), model.value(x, z)
        gap = new - x
        rounding = 8 * jnp.finfo(bound.dtype).eps * (jnp.abs(value) + jnp.abs(before))
        limit = before + tree.vdot(full, gap) + 0.5 * bound * tree.vdot(gap, gap) + rounding
        moved = _State(
            model,
            state.anchor,
            average,
            dual,
            mixed,
            full,
            a,
            total,
            bound,
            state.settled,
            state.best,
            state.error,
        )
        return new, moved, value <= limit

    def step(self, problem, x, state):
        if self.lipschitz is None or self.backtracking:
            first = jnp.where(state.settled, state.lipschitz, 0.5 * state.lipschitz)
            most = jnp.asarray(jnp.finfo(first.dtype).max / 4, first.dtype)

            def again(carry):
                bound, held, _ = carry
                return ~held & (bound < most)

            def search(carry):
                bound, _, count = carry
                bound = jnp.where(count > 0, 2 * bound, bound)
                _, _, held = self._round(problem, x, state, bound)
                return bound, held, count + 1

            start = (first, jnp.asarray(False), jnp.asarray(0, jnp.int32))
            bound, _, count = loops.while_loop(again, search, start)
            x, state, _ = self._round(problem, x, state, bound)
            settled = state.settled | (count > 1)
            state = eqx.tree_at(lambda s: s.settled, state, settled)
        else:
            x, state, _ = self._round(problem, x, state, state.lipschitz)
        gradient = state.model.gradient(x, state.model.predictions(x))
        error = tree.norm(x - problem.nonsmooth.prox(x - gradient, 1.0))
        state = eqx.tree_at(lambda s: s.error, state, error)
        if not self.restart:
            return x, state
        best = jnp.where(jnp.isinf(state.best), error, state.best)
        due = error <= RESTART * best
        keep = lambda old, new: jnp.where(due, new, old)
        fresh = lambda s: (s.anchor, s.average, s.dual, s.a, s.total, s.best)
        new = (
            keep(state.anchor, x),
            keep(state.average, x),
            keep(state.dual, 0),
            keep(state.a, 0),
            keep(state.total, 0),
            keep(best, error),
        )
        return x, eqx.tree_at(fresh, state, new)

    def error(self, problem, x, state):
        return state.error


class _EpochState(eqx.Module):
    anchor: Array
    snapshot: Array
    average: Array
    dual: Array
    before: Array
    after: Array
    full: Array
    a: Float[Array, ""]
    total: Float[Array, ""]
    lipschitz: Float[Array, ""]
    best: Float[Array, ""]
    error: Float[Array, ""]
    key: PRNGKeyArray


def _sample_lipschitz(problem: FiniteSum, x: Array) -> Float[Array, ""]:
    """The largest curvature of a sample's loss at `x`, by the power method."""
    # Tangents vary over a mesh as the data do, and so must their point.
    x = loops.vary(x, loops.varying_axes((problem, x)))

    def one(sample):
        slope: Callable[[Any], Any] = lambda x: tree.gradient(lambda x: problem.loss(x, sample), x)
        product = lambda v: jax.jvp(slope, (x,), (v,))[1]
        tiny = jnp.finfo(tree.real_dtype(x)).tiny

        def turn(i, carry):
            v, _ = carry
            v = product(v)
            size = tree.norm(v)
            return v / jnp.maximum(size, tiny), size

        first = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        v = product(loops.vary_like(first, x))
        v = v / jnp.maximum(tree.norm(v), tiny)
        return loops.fori_loop(0, 4, turn, (v, tree.norm(v)))[1]

    return jnp.max(jax.vmap(one)(problem.data))


class VRACODER(AbstractSolver):
    """`ACODER` for finite sums, with variance reduction.

    An epoch of $K$ inner steps has $a = \\sqrt{K A_{s-1} (1 + \\gamma A_{s-1}) / (8 L)}$, $A_s =
    A_{s-1} + a$ and the full gradient $\\mu$ at $\\tilde y$. Inner step $k$ mixes $x = (A_{s-1}
    \\tilde y + a v) / A_s$ and goes through the blocks from the last to the first, with a minibatch
    $t$ for each:

    $$q_j = \\nabla_j f_t(w) - \\nabla_j f_t(\\tilde y) + \\mu_j + \\tfrac{a'}{a} (\\nabla_j
    f_t(x') - \\nabla_j f_t(w')),\\quad z_j \\mathrel{+}= a q_j,\\quad
    v_j = \\mathrm{prox}_{(A_{s-1} + a k / K) g_j}(x_{0,j} - z_j / K),$$

    with $x', w'$ the points of the inner step before and $a'$ its weight; $y_j = (A_{s-1} \\tilde
    y_j + a v_j) / A_s$. The mean of the $y$ is the next $\\tilde y$, and the value; the first one
    is the first $v$, and a restart keeps it. A step is an epoch. The error is the norm of the
    problem's residual at the value, by the full gradient that the next epoch uses. A block's
    gradient goes through the whole loss of its samples.

    **Arguments:**

    - `inner_steps`: $K$.
    - `batch`: samples for each block's gradient.
    - `lipschitz`: $L > 0$, a bound on the samples' curvatures; `None` for the largest of them at
      the starting point, by the power method, which is enough for quadratics.
    - `strong_convexity`, `blocks`, `restart`: see `ACODER`.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is an epoch.

    **Raises:** as `ACODER`.

    **Reference:** Lin, Song, Diakonikolas, Accelerated Cyclic Coordinate Dual Averaging with
    Extrapolation for Composite Convex Optimization, 2023, arXiv:2303.16279.
    """

    inner_steps: int = 50
    batch: int = 1
    lipschitz: Scalar | None = scalar_field(None)
    strong_convexity: Scalar = scalar_field(0.0)
    blocks: int | None = 1
    restart: bool = False
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 2000
    problems = (FiniteSum,)

    def __check_init__(self):
        checks.count("inner_steps", self.inner_steps)
        checks.count("batch", self.batch)
        if self.lipschitz is not None:
            checks.positive("lipschitz", self.lipschitz)
        checks.nonnegative("strong_convexity", self.strong_convexity)
        if self.blocks is not None:
            checks.count("blocks", self.blocks)

    def init(self, problem, x, key):
        _check_array(x)
        _blocks(x.shape[0], self.blocks)
        bound = _sample_lipschitz(problem, x) if self.lipschitz is None else self.lipschitz
        bound = jnp.asarray(bound, tree.real_dtype(x))
        bound = jnp.where(bound > 0, bound, jnp.where(jnp.isnan(bound), jnp.nan, 1))
        infinity = jnp.full_like(bound, jnp.inf)
        state = self._seeded(problem, x, problem.full_gradient(x), bound, infinity, infinity, key)
        full = problem.full_gradient(state.average)
        return eqx.tree_at(lambda s: (s.snapshot, s.full), state, (state.average, full))

    def _seeded(self, problem, x, full, bound, best, error, key):
        a = 1 / (4 * bound)
        step = a * full
        v = problem.prox(x - step, a)
        dual = self.inner_steps * step
        return _EpochState(x, x, v, dual, v, v, full, a, a, bound, best, error, key)

    def refresh(self, problem, x, state):
        return eqx.tree_at(lambda s: (s.snapshot, s.full), state, (x, problem.full_gradient(x)))

    def step(self, problem, x, state):
        x = state.snapshot
        K, d = self.inner_steps, x.shape[0]
        gamma = self.strong_convexity.astype(state.a.dtype)
        table = _blocks(d, self.blocks)
        rank = jnp.arange(d).reshape(-1, *[1] * (x.ndim - 1)) // table.shape[1]
        a = jnp.sqrt(K * state.total * (1 + gamma * state.total) / (8 * state.lipschitz))
        total = state.total + a
        key, epoch = jax.random.split(state.key)

        def slope(point, indices, batch):
            entry = lambda move: problem.value(scatter_add(point, indices, move), batch)
            return tree.gradient(entry, jnp.zeros_like(gather(x, indices)))

        def inner(carry, k):
            v, dual, before, after, last, mean = carry
            mixed = x + (a / total) * (v - x)
            keys = jax.random.split(jax.random.fold_in(epoch, k), table.shape[0])
            weight = state.total + a * (k + 1) / K

            def visit(i, carry):
                v, dual, y = carry
                j = table.shape[0] - 1 - i
                indices = table[j]
                batch = problem.draw(keys[i], self.batch)
                part = lambda point: slope(point, indices, batch)
                w = jnp.where(rank > j, y, mixed)
                older = jnp.where(rank > j, after, before)
                q = part(w) - part(x) + gather(state.full, indices)
                q = a * q + last * (part(before) - part(older))
                new = gather(dual, indices) + q
                values = gather(state.anchor, indices) - new / K
                moved = _prox(problem.nonsmooth, indices, x, values, weight)
                old = gather(x, indices)
                y = _write(y, indices, old + (a / total) * (moved - old))
                return _write(v, indices, moved), _write(dual, indices, new), y

            v, dual, y = loops.fori_loop(0, table.shape[0], visit, (v, dual, mixed))
            return (v, dual, mixed, y, a, mean + y / K), None

        carry = (state.average, state.dual, state.before, state.after, state.a, jnp.zeros_like(x))
        carry, _ = loops.scan(inner, carry, jnp.arange(K))
        v, dual, before, after, _, x = carry
        full = problem.full_gradient(x)
        error = tree.norm(x - problem.prox(x - full, 1.0))
        best = jnp.where(jnp.isinf(state.best), error, state.best)
        bound = state.lipschitz
        new = _EpochState(
            state.anchor, x, v, dual, before, after, full, a, total, bound, best, error, key
        )
        if not self.restart:
            return x, new
        fresh = self._seeded(problem, x, full, bound, error, error, key)
        due = error <= RESTART * best
        choose = lambda old, new: jnp.where(due, new, old)
        return x, jax.tree.map(choose, new, fresh)

    def error(self, problem, x, state):
        return state.error
