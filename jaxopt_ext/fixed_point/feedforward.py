"""Feedforward computations in fewer parallel rounds than they have steps."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import (
    AbstractSolver,
    Feedforward,
    Scalar,
    Status,
    checks,
    loops,
    scalar_field,
    tree,
)
from ..core.confirm import unknown
from .picard import apply, residual_norm


def _kept(x: PyTree[Array], keep: Bool[Array, " T"]) -> PyTree[Array]:
    """Rows that are not finite become zero, but for those to keep: an intermediate may overflow
    before what it was computed from is right, and is then computed again."""

    def clean(leaf):
        rows = keep.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.where(rows | jnp.isfinite(leaf), leaf, 0)

    return jax.tree.map(clean, x)


def _error(x: PyTree[Array], mapped: PyTree[Array], keep: Bool[Array, " T"]) -> Float[Array, ""]:
    """$\\|h(x) - x\\|$; the largest number where a row that is not final is not finite."""
    norm = residual_norm(x, mapped)
    final = jnp.all(_finite_rows(mapped) | keep)
    return jnp.where(jnp.isfinite(norm) | final, norm, unknown(norm.dtype))


def _finite_rows(x: PyTree[Array]) -> Bool[Array, " T"]:
    flags = [
        jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(x)
    ]
    return jnp.stack(flags).all(axis=0)


def _put(x: PyTree[Array], indices: Int[Array, " k"], rows: PyTree[Array]) -> PyTree[Array]:
    """Rows beyond the end are dropped."""
    return jax.tree.map(lambda a, r: a.at[indices].set(r, mode="drop"), x, rows)


def _zero() -> Int[Array, ""]:
    return jnp.asarray(0, jnp.int32)


class _RoundState(eqx.Module):
    mapped: PyTree[Array]
    rounds: Int[Array, ""]
    error: Float[Array, ""]


class _AbstractRounds(AbstractSolver[Feedforward, _RoundState]):
    """Rounds over all positions, of which each makes `_gain` more of them final."""

    @abc.abstractmethod
    def _gain(self, length: int) -> int:
        """How many positions a round makes final at least."""

    @abc.abstractmethod
    def _round(self, problem, x, mapped):
        """The next states, from the last and $h$ of them."""

    def init(self, problem, x, key):
        return _RoundState(apply(problem.fun, x), _zero(), unknown(tree.real_dtype(x)))

    def refresh(self, problem, x, state):
        return self.init(problem, x, jax.random.key(0))  # draws nothing

    def step(self, problem, x, state):
        length = problem.length(x)
        rounds = state.rounds + 1
        keep = jnp.arange(length) < rounds * self._gain(length)
        x = _kept(self._round(problem, x, state.mapped), keep)
        mapped = apply(problem.fun, x)
        return x, _RoundState(mapped, rounds, _error(x, mapped, keep))

    def error(self, problem, x, state):
        return state.error

    def status(self, problem, x, state):
        # Every position is final, so another round would change nothing.
        length = problem.length(x)
        over = state.rounds * self._gain(length) >= length
        return Status.where(over, Status.step_limit, Status.running)


class Jacobi(_AbstractRounds):
    """All positions at once, $s^{k+1} = h(s^k)$.

    After $k$ rounds the first $k$ states are final, whatever the start, so that $T$ rounds give
    what $T$ sequential steps would; where distant states matter little, far fewer do. Along a graph
    of dependencies its longest path counts, not $T$. If a round takes as long as one sequential
    step, the gain is $T$ over the number of rounds.

    The error is $\\|h(s) - s\\|$, the norm of the residual, at the value. With `tol=0` two
    successive iterates are equal, which proves the solution; with another, states that depend on
    distant ones may be farther from it than the residual tells. One evaluation of $h$ a step, and
    one at the start. States that overflow before they are final are taken for zero. The solve ends
    with a step limit after $T$ rounds if rounding alone is above `tol`.

    `Picard` on a `FixedPoint` with the same map is the same without a notion of what is final.

    **Arguments:**

    - `tol`, `max_steps`: see `AbstractSolver`; no more than $T$ steps are ever taken.

    **Reference:** Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel
    Nonlinear Equation Solving, 2021, arXiv:2002.03629.
    """

    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (Feedforward,)

    def _gain(self, length):
        return 1

    def _round(self, problem, x, mapped):
        return mapped


class GaussSeidel(_AbstractRounds):
    """One position after the other, each from the new states: one step is the whole sequential
    computation, and solves the problem.

    The error is $\\|h(s) - s\\|$, the norm of the residual, at the value.

    **Arguments:**

    - `tol`, `max_steps`: see `AbstractSolver`; no more than one step is ever taken.

    **Reference:** Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel
    Nonlinear Equation Solving, 2021, arXiv:2002.03629.
    """

    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (Feedforward,)

    def _gain(self, length):
        return length

    def _round(self, problem, x, mapped):
        def visit(t, x):
            at = jnp.asarray(t)[None]
            return _put(x, at, problem.rows(at, x))

        return loops.fori_loop(0, problem.length(x), visit, x)


class JacobiGaussSeidel(_AbstractRounds):
    """Blocks of positions at once, each from the other blocks of the round before, and inside of a
    block one position after the other.

    There are at most $\\lceil T / b \\rceil$ rounds of $b$ sequential steps. A map with `rows` is
    asked for one position of each block at a time; another is evaluated whole, for each block.

    The error is $\\|h(s) - s\\|$, the norm of the residual, at the value.

    **Arguments:**

    - `block`: $b$, static; the last block may be shorter.
    - `tol`, `max_steps`: see `AbstractSolver`; no more than $\\lceil T / b \\rceil$ steps are ever
      taken.

    **Reference:** Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel
    Nonlinear Equation Solving, 2021, arXiv:2002.03629.
    """

    block: int = eqx.field(static=True, default=8)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (Feedforward,)

    def __check_init__(self):
        checks.count("block", self.block)

    def _gain(self, length):
        return self.block

    def _round(self, problem, x, mapped):
        length = problem.length(x)
        firsts = jnp.arange(0, length, self.block)
        owner = jnp.arange(length) // self.block

        def visit(i, now):
            def row(first):
                def seen(new, old):
                    own = (owner == first // self.block).reshape(-1, *(1,) * (new.ndim - 1))
                    return jnp.where(own, new, old)

                at = jnp.minimum(first + i, length - 1)[None]
                return problem.rows(at, jax.tree.map(seen, now, x))

            rows = jax.tree.map(lambda a: a[:, 0], jax.vmap(row)(firsts))
            return _put(now, firsts + i, rows)

        return loops.fori_loop(0, min(self.block, length), visit, x)


class _WindowState(eqx.Module):
    start: Int[Array, ""]
    inner: Int[Array, ""]
    error: Float[Array, ""]


class GaussSeidelJacobi(AbstractSolver[Feedforward, _WindowState]):
    """One window of positions after the other, and inside of it all at once, until they are final.

    A round asks for $b$ positions only. Its first is final, as are those behind it that did not
    change, and the first that did, because it came from such. A sliding window goes on behind them
    after each round; one that does not slide stays until the whole block is final. Both take at
    most $T$ rounds.

    The error is the norm of the residual, $\\|h(s) - s\\|$, at the end of the sequence, and the
    largest number before. If it is above `tol` there, which only the tolerances of the window can
    do, another pass begins.

    **Arguments:**

    - `block`: $b$, static.
    - `sliding`: whether the window slides; static.
    - `rtol`, `atol`: a state $s$ counts as unchanged if $|s' - s| \\le \\mathrm{atol} +
      \\mathrm{rtol}\\, |s'|$ in all entries. With 0 what comes out is exact.
    - `tol`, `max_steps`: see `AbstractSolver`. A step is one round.

    **Reference:** Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel
    Nonlinear Equation Solving, 2021, arXiv:2002.03629.
    """

    block: int = eqx.field(static=True, default=8)
    sliding: bool = eqx.field(static=True, default=True)
    rtol: Scalar = scalar_field(0.0)
    atol: Scalar = scalar_field(0.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (Feedforward,)

    def __check_init__(self):
        checks.count("block", self.block)
        checks.nonnegative("rtol", self.rtol)
        checks.nonnegative("atol", self.atol)

    def init(self, problem, x, key):
        return _WindowState(_zero(), _zero(), unknown(tree.real_dtype(x)))

    def refresh(self, problem, x, state):
        return self.init(problem, x, jax.random.key(0))  # draws nothing

    def step(self, problem, x, state):
        length = problem.length(x)
        size = min(self.block, length)
        indices = state.start + jnp.arange(size, dtype=jnp.int32)
        inside = jnp.minimum(indices, length - 1)
        old = jax.tree.map(lambda a: a[inside], x)
        new = problem.rows(inside, x)
        final = jnp.cumprod(self._unchanged(old, new).astype(jnp.int32))
        end = jnp.minimum(state.start + size, length)
        # Behind those that did not change, one more.
        count = jnp.minimum(jnp.sum(final, dtype=jnp.int32) + 1, size)
        x = _put(x, indices, _kept(new, jnp.arange(size) < count))
        inner = state.inner + 1
        if self.sliding:
            start = state.start + count
        else:
            done = (state.start + count >= end) | (inner >= end - state.start)
            start = jnp.where(done, end, state.start)
            inner = jnp.where(done, 0, inner)
        over = start >= length
        measure = lambda x: tree.norm(problem.residual(x)).astype(state.error.dtype)
        error = loops.if_due(over, measure, x, unknown(state.error.dtype))
        return x, _WindowState(jnp.where(over, 0, start), inner, error)

    def _unchanged(self, old, new) -> Bool[Array, " k"]:
        def one(a, b):
            size = jnp.abs(b)
            bound = self.atol.astype(size.dtype) + self.rtol.astype(size.dtype) * size
            return jnp.all(jnp.abs(b - a) <= bound, axis=tuple(range(1, a.ndim)))

        return jnp.stack(jax.tree.leaves(jax.tree.map(one, old, new))).all(axis=0)

    def error(self, problem, x, state):
        return state.error


class ScanNewton(AbstractSolver[Feedforward, _RoundState]):
    """Newton's method for recurrences $s_t = c(s_{t-1}, u_t)$: the linearized one,

    $$s'_t = A_t s'_{t-1} + c(s_{t-1}, u_t) - A_t s_{t-1}, \\qquad
      A_t = \\partial_s c(s_{t-1}, u_t),$$

    is solved by an associative scan, in $O(\\log T)$ parallel steps with products of matrices
    $d \\times d$ for states of $d$ entries. It converges quadratically, and the first $k$ states
    are those of the recurrence after $k$ steps, up to rounding. Rows that overflow in the scan are
    replaced by those of `Jacobi`.

    The error is $\\|h(s) - s\\|$, the norm of the residual, at the value.

    **Arguments:**

    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** `TypeError` if the problem's map is no `Recurrence`.

    **Reference:** Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel
    Nonlinear Equation Solving, 2021, arXiv:2002.03629; Lim, Zhu, Selfridge, Kasim, Parallelizing
    Non-linear Sequential Models over the Sequence Length, 2024, arXiv:2309.12252.
    """

    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 100
    problems = (Feedforward,)

    def init(self, problem, x, key):
        if not isinstance(problem.fun, Recurrence):
            raise TypeError(f"ScanNewton takes recurrence(cell, inputs, initial), got {problem}")
        return _RoundState(apply(problem.fun, x), _zero(), unknown(tree.real_dtype(x)))

    def refresh(self, problem, x, state):
        return self.init(problem, x, jax.random.key(0))  # draws nothing

    def step(self, problem, x, state):
        rounds = state.rounds + 1
        keep = jnp.arange(problem.length(x)) < rounds
        first = jax.tree.map(lambda a: a[0], x)
        unravel = ravel_pytree(first)[1]
        flat = lambda s: ravel_pytree(s)[0]
        before = problem.fun.before(jnp.arange(problem.length(x)), x)

        def linearized(s, u):
            cell = lambda v: flat(tree.cast_like(problem.fun.cell(unravel(v), u), first))
            return jax.jacfwd(cell)(flat(s))

        matrices = jax.vmap(linearized)(before, problem.fun.inputs)
        mapped = jax.vmap(flat)(state.mapped)
        products = lambda A, v: jnp.einsum("...ij,...j->...i", A, v)
        # The initial state does not move: the first row has no matrix.
        matrices = matrices.at[0].set(0)
        offsets = mapped - products(matrices, jax.vmap(flat)(before))

        def compose(a, b):
            return b[0] @ a[0], products(b[0], a[1]) + b[1]

        _, moved = jax.lax.associative_scan(compose, (matrices, offsets))
        good = jnp.all(jnp.isfinite(moved), axis=1, keepdims=True)
        x = _kept(jax.vmap(unravel)(jnp.where(good, moved, mapped)), keep)
        mapped = apply(problem.fun, x)
        return x, _RoundState(mapped, rounds, _error(x, mapped, keep))

    def error(self, problem, x, state):
        return state.error


class Recurrence(eqx.Module):
    """The map $h_t(s) = c(s_{t-1}, u_t)$, with $s_0$ given; see `recurrence`.

    **Arguments:**

    - `cell`: $c$, from a state and an input to a state.
    - `inputs`: $u$, a pytree with the $T$ positions on the leading axis.
    - `initial`: $s_0$, a state.
    """

    cell: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]
    inputs: PyTree[Array]
    initial: PyTree[Array]

    def before(self, indices: Int[Array, " k"], s: PyTree[Array]) -> PyTree[Array]:
        """$s_{t-1}$ for some $t$."""

        def one(leaf, first):
            start = (indices == 0).reshape(-1, *(1,) * (leaf.ndim - 1))
            return jnp.where(start, jnp.asarray(first, leaf.dtype), _rows(leaf, indices - 1))

        return jax.tree.map(one, s, self.initial)

    def rows(self, indices: Int[Array, " k"], s: PyTree[Array]) -> PyTree[Array]:
        """$h_t(s)$ for some $t$."""
        inputs = jax.tree.map(lambda u: _rows(u, indices), self.inputs)
        return jax.vmap(self.cell)(self.before(indices, s), inputs)

    def __call__(self, s: PyTree[Array]) -> PyTree[Array]:
        length = jax.tree.leaves(s)[0].shape[0]
        return jax.vmap(self.cell)(self.before(jnp.arange(length), s), self.inputs)


def _rows(leaf: Array, indices: Int[Array, " k"]) -> Array:
    """Rows of an array; where it is cut over a mesh with explicit axes, cut in the same way if they
    are as many."""
    if not tree.is_spread(leaf):
        return leaf[indices]
    first, *rest = jax.typeof(leaf).sharding.spec
    first = first if indices.size == leaf.shape[0] else None
    return leaf.at[indices].get(out_sharding=jax.P(first, *rest))


def recurrence(
    cell: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]],
    inputs: PyTree[Float[Array, "T ..."]],
    initial: PyTree[Array],
) -> Feedforward:
    """The problem of a recurrent network, $s_t = c(s_{t-1}, u_t)$.

    Inputs that are cut over a mesh with explicit axes give states that are cut alike: along axes
    behind the first with all solvers, along the positions with `Jacobi`, which alone has no order.

    **Arguments:**

    - `cell`: $c$, from a state and an input to a state of the same shapes.
    - `inputs`: $u$, a pytree with the $T$ positions on the leading axis.
    - `initial`: $s_0$, a state.

    **Raises:** `ValueError` if the inputs have no common leading axis or the cell returns another
    shape.
    """
    inputs, initial = jax.tree.map(jnp.asarray, (inputs, initial))
    lengths = {jnp.shape(u)[:1] for u in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"inputs must have a leading axis, got {checks.shapes_of(inputs)}")
    rows = jax.eval_shape(jax.vmap(cell, in_axes=(None, 0)), initial, inputs)
    new = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), rows)
    checks.shaped_like("cell(initial, input)", new, initial)
    # Cut over a mesh like what the cell returns.
    shape = jax.tree.map(
        lambda s, like: jax.ShapeDtypeStruct(s.shape, like.dtype, sharding=s.sharding),
        rows,
        initial,
    )
    return Feedforward(Recurrence(cell, inputs, initial), shape)


class _Pullback(eqx.Module):
    cell: Any

    def __call__(self, g, at):
        state, ahead, own = at
        pulled = jax.vjp(lambda s: self.cell(s, ahead), state)[1](g)[0]
        return jax.tree.map(jnp.add, pulled, own)


def backprop(
    cell: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]],
    inputs: PyTree[Float[Array, "T ..."]],
    states: PyTree[Float[Array, "T ..."]],
    cotangents: PyTree[Float[Array, "T ..."]],
) -> Feedforward:
    """The problem of back-propagation through a recurrent network,

    $$g_t = \\partial_s c(s_t, u_{t+1})^\\top g_{t+1} + c_t, \\qquad g_{T+1} = 0,$$

    a linear recurrence in the positions *reversed*: row 0 of its solution is $g_T$. The gradient by
    the cell is then `jax.vjp(lambda cell: Recurrence(cell, inputs, initial)(states), cell)[1](g)`,
    with $g$ in the order of the states, which takes no recurrence.

    **Arguments:**

    - `cell`, `inputs`: as in `recurrence`.
    - `states`: $s$, the solution of the recurrence.
    - `cotangents`: $c_t = \\partial_{s_t}$ of the loss, where it looks at $s_t$ itself.
    """
    checks.shaped_like("cotangents", cotangents, states)
    ahead = jax.tree.map(lambda u: jnp.roll(u, -1, axis=0), inputs)  # the last one meets a zero
    data = jax.tree.map(lambda a: jnp.flip(a, 0), (states, ahead, cotangents))
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), states)
    return recurrence(_Pullback(cell), data, nothing)


class _Autoregressive(eqx.Module):
    model: Any
    noise: Array

    def __call__(self, x):
        mean, log_scale = self.model(x)
        return mean + jnp.exp(log_scale) * self.noise


def autoregressive(
    model: Callable[[Float[Array, "T *d"]], tuple[Array, Array]], noise: Float[Array, "T *d"]
) -> Feedforward:
    """The problem of a sample of an autoregressive model, $x_t = \\mu_t(x_{<t}) +
    \\exp(\\lambda_t(x_{<t}))\\, u_t$.

    The noise is drawn beforehand, for discrete models too, where the map is written by hand as a
    `Feedforward`: each round must see the same.

    **Arguments:**

    - `model`: from $x$ to the means and logarithms of scales of all positions, shaped like $x$;
      those of $t$ look at earlier positions only.
    - `noise`: $u$, shape `(T, *d)`.
    """
    noise = jnp.asarray(noise)
    return Feedforward(
        _Autoregressive(model, noise), jax.ShapeDtypeStruct(noise.shape, noise.dtype)
    )


class _DenseBlock(eqx.Module):
    layers: tuple[Any, ...]
    inputs: Any

    def __call__(self, s):
        return jnp.stack([layer(self.inputs, s[:t]) for t, layer in enumerate(self.layers)])


def dense_block(
    layers: Sequence[Callable[[PyTree[Array], Float[Array, "t *d"]], Float[Array, "*d"]]],
    inputs: PyTree[Array],
    shape: jax.ShapeDtypeStruct,
) -> Feedforward:
    """The problem of a densely connected block, in which each layer sees the outputs of all before.

    **Arguments:**

    - `layers`: $T$ functions; the one at $t$, from 0, maps the block's input and the stacked
      outputs of those before it, shape `(t, *d)`, to its own, of one shape for all.
    - `inputs`: the block's input.
    - `shape`: shape and type of one output.

    **Raises:** `ValueError` if there is no layer.
    """
    if not layers:
        raise ValueError("a dense block must have a layer, got none")
    whole = jax.ShapeDtypeStruct((len(layers), *shape.shape), shape.dtype)
    return Feedforward(_DenseBlock(tuple(layers), inputs), whole)


class UnitTriangular(lx.AbstractLinearSolver[lx.AbstractLinearOperator]):
    """The linear solve behind the implicit derivative of a `Feedforward` by the same iteration,

    $$x \\leftarrow J x - b, \\qquad (J - I) x = b,$$

    and for reverse mode with $J^\\top$: `ImplicitAdjoint(UnitTriangular())`. As $J$ is strictly
    triangular it is exact after $T$ products, however large $J$ is.

    **Arguments:**

    - `rtol`: ends when the residual is at most this much of $b$; 0 goes on to the end.
    - `max_steps`: ends, unsolved, after as many products.

    **Reference:** Song, Meng, Liao, Ermon, Accelerating Feedforward Computation via Parallel
    Nonlinear Equation Solving, 2021, arXiv:2002.03629.
    """

    rtol: Scalar = scalar_field(0.0)
    max_steps: int = eqx.field(static=True, default=10_000)

    def __check_init__(self):
        checks.nonnegative("rtol", self.rtol)
        checks.count("max_steps", self.max_steps)

    def init(self, operator, options):
        del options
        if operator.in_size() != operator.out_size():
            raise ValueError("the residual must be shaped like x")
        return operator

    def compute(self, state, vector, options):
        del options
        bound = self.rtol.astype(tree.real_dtype(vector)) * tree.norm(vector)
        gap_of = lambda x: jax.tree.map(jnp.subtract, tree.cast_like(state.mv(x), vector), vector)

        def unfinished(carry):
            _, gap, steps = carry
            norm = tree.norm(gap)
            return (norm > bound) & jnp.isfinite(norm) & (steps < limit)

        def body(carry):
            x, gap, steps = carry
            x = jax.tree.map(jnp.add, x, gap)
            return x, gap_of(x), steps + 1

        # All that is left behind these is rounding.
        limit = min(self.max_steps, 1 + jax.tree.leaves(vector)[0].shape[0])
        x = jax.tree.map(jnp.negative, vector)
        x, gap, _ = loops.while_loop(unfinished, body, (x, gap_of(x), _zero()))
        # What rounding leaves is no failure.
        floor = 100 * jnp.finfo(bound.dtype).eps * (tree.norm(x) + tree.norm(vector))
        solved = tree.norm(gap) <= bound + floor
        return x, lx.RESULTS.where(solved, lx.RESULTS.successful, lx.RESULTS.singular), {}

    def transpose(self, state, options):
        return state.T, options

    def conj(self, state, options):
        return lx.conj(state), options

    def assume_full_rank(self):
        return True
