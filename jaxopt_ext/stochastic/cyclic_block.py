"""Cyclic proximal block descent, with full gradients and with variance-reduced minibatches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    Composite,
    Expectation,
    FiniteSum,
    Scalar,
    Smooth,
    checks,
    loops,
    minibatches,
    scalar_field,
    tree,
)
from ..core.confirm import forgotten, unknown
from ..minimize.block_coordinate import AbstractSelection, Cyclic
from .estimators import PAGE
from .oracle import asked, check_rate, population, rate_at, rate_field
from .outputs import AbstractOutput, Last, finished
from .partition import Backward, partition, require_separable


def _blocks(oracle, x, blocks):
    parts = partition(x, blocks)
    require_separable(oracle.nonsmooth, x, parts)
    return parts


def _slope(parts, fun, x, j):
    """Block `j` of the gradient, by a pass backward to this block only."""
    return tree.gradient(lambda block: fun(parts.put(x, j, block)), parts.take(x, j))


def _step(oracle, parts, x, j, slope, step):
    """The point with a proximal step in block `j`."""
    moved = parts.put(x, j, tree.axpy(parts.take(x, j), -step, slope))
    return parts.put(x, j, parts.take(oracle.prox(moved, step), j))


class _State(eqx.Module):
    count: Int[Array, ""]
    samples: Int[Array, ""]
    error: Float[Array, ""]
    key: PRNGKeyArray


class CyclicProximal(AbstractSolver):
    """Proximal gradient steps on one block after the other,

    $$x^j \\leftarrow \\mathrm{prox}_{\\eta g_j}(x^j - \\eta \\nabla_j f(x)),$$

    with one step size for all. If

    $$\\|\\nabla_j f(x) - \\nabla_j f(y)\\|^2 \\le (x - y)^\\top Q_j (x - y),$$

    the objective falls in each cycle for the step size of `cyclic_step`, which may be far above
    what the number of blocks suggests. A step is a cycle, and costs a gradient of each
    block. For linear losses `minimize.BlockCoordinateDescent`, with a step size for each block, is
    cheaper.

    The error is $\\|x_k - x_{k-1}\\| / \\eta$ and, only where that passes, the larger of it and the
    norm of the residual at the value.

    **Arguments:**

    - `step_size`: $\\eta > 0$, or a schedule of the cycle's number.
    - `blocks`: of one array, their number, `None` for one entry each; of another pytree a tuple
      of paths, `None` for the children of the top level.
    - `order`: `minimize.Cyclic()`, `Backward()`; `minimize.Shuffled()`, `minimize.Random()`.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is a cycle.

    **Raises:** `ValueError` for blocks that do not partition the point; `TypeError` for a nonsmooth
    part that is not separable over them.

    **Reference:** Cai, Song, Wright, Diakonikolas, Cyclic Block Coordinate Descent With Variance
    Reduction for Composite Nonconvex Optimization, 2023, arXiv:2212.05088.
    """

    step_size: Any = rate_field()
    blocks: Any = eqx.field(static=True, default=None)
    order: AbstractSelection = eqx.field(default_factory=Cyclic)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Smooth, Composite, FiniteSum)

    def __check_init__(self):
        check_rate("step_size", self.step_size)
        checks.instance("order", self.order, AbstractSelection, "Cyclic()")

    def init(self, problem, x, key):
        _blocks(minibatches(problem), x, self.blocks)
        zero = jnp.asarray(0, jnp.int32)
        return _State(zero, zero, unknown(tree.real_dtype(x)), key)

    def refresh(self, problem, x, state):
        return forgotten(state)

    def step(self, problem, x, state):
        oracle = minibatches(problem)
        parts = _blocks(oracle, x, self.blocks)
        draw, key = jax.random.split(state.key)
        step = rate_at(self.step_size, state.count, state.error.dtype)
        visit = lambda j, x: _step(
            oracle, parts, x, j, _slope(parts, oracle.full_value, x, j), step
        )
        new = parts.sweep(self.order, draw, visit, x)
        size = tree.norm(jax.tree.map(jnp.subtract, new, x)) / step
        error = asked(problem, new, size, state.error, self.tol)
        samples = state.samples + population(oracle)
        return new, _State(state.count + 1, samples, error, key)

    def error(self, problem, x, state):
        return state.error


class _ReducedState(eqx.Module):
    previous: PyTree[Array]
    gradient: PyTree[Array]
    fresh: Bool[Array, ""]
    record: Any
    count: Int[Array, ""]
    samples: Int[Array, ""]
    error: Float[Array, ""]
    key: PRNGKeyArray


class VarianceReducedCyclic(AbstractSolver):
    """`CyclicProximal` with recursive estimates of the blocks' gradients.

    Once in a cycle a coin is thrown. On heads, of probability $p$ and in the first cycle,

    $$G_j = \\nabla_j f_B(x_{k,j})$$

    for each block, at the point $x_{k,j}$ whose blocks before $j$ are new; on tails

    $$G_j \\mathrel{+}= \\nabla_j f_{B'}(x_{k,j}) - \\nabla_j f_{B'}(x_{k-1,j})$$

    with one small batch for the cycle, at both points. Then $x^j \\leftarrow
    \\mathrm{prox}_{\\eta g_j}(x^j - \\eta G_j)$. With `probability=1` it is cyclic stochastic
    descent. A stationary point within $\\epsilon$ is met in $O(n + \\sqrt n\\, \\epsilon^{-2})$
    samples of a finite sum, linearly under the Polyak-Łojasiewicz condition.

    `samples` of the state counts a gradient of one block as its share of a sample: a cycle on heads
    costs a batch, on tails two small ones. The error is as in `CyclicProximal`, though from
    estimates; with `tol=0` no residual is asked.

    **Arguments:**

    - `step_size`: $\\eta > 0$, or a schedule of the cycle's number.
    - `batch`: $b$, samples of $B$; `None` for the full gradient.
    - `small_batch`: $b'$; `None` for $\\lceil \\sqrt b \\rceil$.
    - `probability`: $p$ in (0, 1]; `None` for $b' / (b + b')$.
    - `blocks`: see `CyclicProximal`.
    - `order`: `minimize.Cyclic()` or `Backward()`.
    - `output`: which iterate is returned; the theorem is of `RandomIterate()`.
    - `tol`, `max_steps`: see `AbstractSolver`; a step is a cycle.

    **Raises:** as `CyclicProximal`; `TypeError` for an order that is random; `ValueError` for an
    `Expectation` without `small_batch`, or without both `batch` and `probability`.

    **Reference:** Cai, Song, Wright, Diakonikolas, Cyclic Block Coordinate Descent With Variance
    Reduction for Composite Nonconvex Optimization, 2023, arXiv:2212.05088.
    """

    step_size: Any = rate_field()
    batch: int | None = eqx.field(static=True, default=None)
    small_batch: int | None = eqx.field(static=True, default=None)
    probability: Scalar | None = scalar_field(None)
    blocks: Any = eqx.field(static=True, default=None)
    order: AbstractSelection = eqx.field(default_factory=Cyclic)
    output: AbstractOutput = eqx.field(default_factory=Last)
    tol: Scalar = scalar_field(0.0)
    max_steps: int = 1000
    problems = (Smooth, Composite, FiniteSum, Expectation)

    def __check_init__(self):
        check_rate("step_size", self.step_size)
        checks.instance("output", self.output, AbstractOutput, "Last()")
        if not isinstance(self.order, Cyclic | Backward):
            raise TypeError(
                f"order must be one that stays, Cyclic() or Backward(), got {self.order!r}"
            )
        PAGE(self.probability, self.small_batch, self.batch)

    def _sizes(self, oracle):
        small = self.small_batch
        if small is None and self.batch is not None:
            small = int(-(-(self.batch**0.5) // 1))
        return PAGE(self.probability, small, self.batch).sizes(oracle)

    def init(self, problem, x, key):
        oracle = minibatches(problem)
        _blocks(oracle, x, self.blocks)
        self._sizes(oracle)
        zero, no = jnp.asarray(0, jnp.int32), jax.tree.map(jnp.zeros_like, x)
        error, yes = unknown(tree.real_dtype(x)), jnp.asarray(True)
        return _ReducedState(x, no, yes, self.output.init(x), zero, zero, error, key)

    def refresh(self, problem, x, state):
        """The problem may be another one, and so the next cycle is one on heads."""
        return forgotten(eqx.tree_at(lambda s: s.fresh, state, jnp.asarray(True)))

    def step(self, problem, x, state):
        oracle = minibatches(problem)
        parts = _blocks(oracle, x, self.blocks)
        small, probability = self._sizes(oracle)
        coin, draw, pick, key = jax.random.split(state.key, 4)
        dtype = state.error.dtype
        step = rate_at(self.step_size, state.count, dtype)
        nothing = jnp.full((), jnp.inf, dtype)
        record = self.output.observe(state.record, x, nothing, jnp.ones((), dtype), pick)

        def heads():
            if self.batch is None:
                fun, samples = oracle.full_value, population(oracle)
            else:
                batch, samples = oracle.draw(draw, self.batch), self.batch
                fun = lambda x: oracle.value(x, batch)

            def visit(j, carry):
                x, gradient = carry
                slope = _slope(parts, fun, x, j)
                return _step(oracle, parts, x, j, slope, step), parts.put(gradient, j, slope)

            new, gradient = parts.sweep(self.order, draw, visit, (x, state.gradient))
            return new, gradient, jnp.asarray(samples, jnp.int32)

        def tails():
            batch = oracle.draw(draw, small)
            fun = lambda x: oracle.value(x, batch)

            def visit(j, carry):
                now, before, gradient = carry
                rise = jax.tree.map(
                    lambda v, a, b: v + (a - b),
                    parts.take(gradient, j),
                    _slope(parts, fun, now, j),
                    _slope(parts, fun, before, j),
                )
                now = _step(oracle, parts, now, j, rise, step)
                # The cycle before, too, went on with this block moved.
                before = parts.put(before, j, parts.take(x, j))
                return now, before, parts.put(gradient, j, rise)

            start = (x, state.previous, state.gradient)
            new, _, gradient = parts.sweep(self.order, draw, visit, start)
            return new, gradient, jnp.asarray(2 * small, jnp.int32)

        due = state.fresh | jax.random.bernoulli(coin, probability)
        new, gradient, samples = loops.cond(due, heads, tails)
        size = tree.norm(jax.tree.map(jnp.subtract, new, x)) / step
        error = asked(problem, new, size, state.error, self.tol)
        samples = state.samples + samples
        fresh = jnp.zeros_like(state.fresh)
        return new, _ReducedState(x, gradient, fresh, record, state.count + 1, samples, error, key)

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        nothing = jnp.full_like(state.error, jnp.inf)
        return finished(self.output, x, state, nothing, self.tol)


def quadratic_constants(H: Float[Array, "d d"], blocks: int | None = None) -> Float[Array, "m d d"]:
    """$Q_j = H_j^\\top H_j$ of $f(x) = x^\\top H x / 2$, with $H_j$ the rows of block $j$.

    **Arguments:**

    - `H`: symmetric, shape `(d, d)`.
    - `blocks`: into how many consecutive ones $d$ is cut; `None` for one entry each.
    """
    rows = _members(H.shape[0], blocks)[:, :, None] * H
    return jnp.einsum("jki,jkl->jil", rows, rows)


def _members(d, blocks) -> Float[Array, "m d"]:
    parts = partition(jnp.zeros(d), blocks)
    return jax.vmap(
        lambda j: parts.put(jnp.zeros(d), j, jnp.ones_like(parts.take(jnp.zeros(d), j)))
    )(jnp.arange(parts.count))


def mahalanobis_constant(Q: Float[Array, "m d d"], blocks: int | None = None) -> Float[Array, ""]:
    """$\\hat L = \\sqrt{2 \\|\\sum_j \\tilde Q_j\\|}$, with $\\tilde Q_j$ the part of $Q_j$ on the
    blocks from $j$ on.

    **Arguments:**

    - `Q`: one positive semidefinite matrix for each block, shape `(m, d, d)`.
    - `blocks`: as in `quadratic_constants`.

    **Reference:** Cai, Song, Wright, Diakonikolas, 2023, arXiv:2212.05088.
    """
    members = _members(Q.shape[-1], blocks)
    behind = jnp.cumsum(members[::-1], axis=0)[::-1]
    return jnp.sqrt(2 * jnp.linalg.norm(_cut(Q, behind), 2))


def _cut(Q, kept):
    if Q.shape[0] != kept.shape[0]:
        raise ValueError(
            f"Q must have one matrix for each of {kept.shape[0]} blocks, got {Q.shape}"
        )
    return jnp.einsum("ji,jik,jk->ik", kept, Q, kept)


def cyclic_step(
    lipschitz: Any, Q: Float[Array, "m d d"], blocks: int | None = None
) -> Float[Array, ""]:
    """A step size with which a cycle never raises the objective, $1 / (L / 2 + M)$ with $M^2 =
    \\|\\sum_j \\hat Q_j\\|$ and $\\hat Q_j$ the part of $Q_j$ on the blocks before $j$.

    **Arguments:**

    - `lipschitz`: $L$, of $\\nabla f$.
    - `Q`, `blocks`: as in `mahalanobis_constant`.
    """
    members = _members(Q.shape[-1], blocks)
    before = jnp.cumsum(members, axis=0) - members
    return 1 / (0.5 * lipschitz + jnp.sqrt(jnp.linalg.norm(_cut(Q, before), 2)))
