"""Block coordinate descent for a smooth plus a block-separable function."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core import AbstractSolver, Composite, Scalar, checks, loops, scalar_field, tree
from ..core.objectives import AbstractLinearLoss
from ..core.operators import is_sparse
from ..prox import AbstractFunction


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
    model: "_LinearModel | _General"
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
        model = _model(problem.smooth)
        lipschitz = _bounds(self.lipschitz, problem.smooth, x)
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
    model: "_LinearModel | _General"
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
        model = _model(problem.smooth)
        lipschitz = _bounds(self.lipschitz, problem.smooth, x)
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


class _LinearModel(eqx.Module):
    """A linear loss with its columns laid out as contiguous rows."""

    loss: AbstractLinearLoss
    columns: Float[Array, "d n"]

    def predictions(self, w):
        return w.T @ self.columns if w.ndim > 1 else w @ self.columns

    def slopes(self, z):
        return tree.gradient(lambda z: self.loss.of_predictions(z.T), z)

    def partial(self, w, z, j):
        return _like(self.slopes(z) @ self.columns[j].conj(), w)

    def gradient(self, w, z):
        return _like(self.columns.conj() @ self.slopes(z).T, w)

    def move(self, z, j, move):
        return z + jnp.multiply.outer(move, self.columns[j])


class _SparseLinearModel(eqx.Module):
    """The same with a sparse $X^\\top$, of whose rows only entries are read."""

    loss: AbstractLinearLoss
    columns: Any

    def predictions(self, w):
        return w.T @ self.columns if w.ndim > 1 else w @ self.columns

    def slopes(self, z):
        return tree.gradient(lambda z: self.loss.of_predictions(z.T), z)

    def _column(self, j):
        """Places and values of one column, padded to the length that is known to suffice."""
        X = self.columns
        length = min(X.nnz, X.shape[1])
        start, end = X.pointers[j], X.pointers[j + 1]
        begin = jnp.clip(start, 0, X.nnz - length)
        cut = lambda array: jax.lax.dynamic_slice(array, (begin,), (length,))
        index = begin + jnp.arange(length, dtype=begin.dtype)
        there = (index >= start) & (index < end)
        return cut(X.columns), jnp.where(there, cut(X.values), 0)

    def partial(self, w, z, j):
        places, values = self._column(j)
        return _like(self.slopes(z)[..., places] @ values.conj(), w)

    def gradient(self, w, z):
        return _like(self.columns.conj() @ self.slopes(z).T, w)

    def move(self, z, j, move):
        places, values = self._column(j)
        return z.at[..., places].add(jnp.multiply.outer(move, values))


def _like(gradient, w):
    """With complex data, the gradient in real coefficients is the real part."""
    return gradient if jnp.iscomplexobj(w) else gradient.real


class _General(eqx.Module):
    """Any smooth function; there is nothing to keep."""

    fun: Callable[[Array], Float[Array, ""]]

    def predictions(self, w):
        return jnp.zeros((), w.dtype)

    def partial(self, w, z, j):
        return tree.gradient(lambda block: self.fun(w.at[j].set(block)), w[j])

    def gradient(self, w, z):
        return tree.gradient(self.fun, w)

    def move(self, z, j, move):
        return z


def _model(smooth):
    if isinstance(smooth, AbstractLinearLoss):
        if is_sparse(smooth.matrix):
            if hasattr(smooth.matrix, "block"):
                raise TypeError("coordinate descent reads columns of a matrix or a CSR, not a BCSR")
            return _SparseLinearModel(smooth, smooth.matrix.T)
        return _LinearModel(smooth, smooth.matrix.T)
    return _General(smooth)


def _bounds(lipschitz, smooth, x):
    if not (isinstance(x, jax.Array) and x.ndim > 0):
        raise TypeError("block coordinate descent works on the leading axis of one array")
    dtype = tree.real_dtype(x)
    if lipschitz is not None:
        if lipschitz.shape not in ((), (1,), x.shape[:1]):
            raise ValueError(
                f"lipschitz must have one entry for each of {x.shape[0]} blocks, got shape "
                f"{lipschitz.shape}"
            )
        return jnp.broadcast_to(lipschitz.astype(dtype), x.shape[:1])
    if not isinstance(smooth, AbstractLinearLoss):
        raise TypeError("give lipschitz: only the losses in objectives know their own bounds")
    if smooth.curvature == float("inf"):
        raise TypeError(f"give lipschitz: {type(smooth).__name__} has unbounded curvature")
    bounds = smooth.coordinate_lipschitz().astype(dtype)
    # A column of zeros never moves its block; any positive bound will do.
    return jnp.where(bounds > 0, bounds, 1)
