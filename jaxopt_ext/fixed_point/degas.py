"""Asynchronous updates of the blocks of a fixed point."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import (
    AbstractSolver,
    Composite,
    FixedPoint,
    Scalar,
    checks,
    loops,
    ring,
    scalar_field,
    tree,
)
from ..core.confirm import forgotten, unknown
from .asynchrony import AbstractSchedule, ConstantDelay, stale


class _State(eqx.Module):
    history: PyTree[Array]  # of times k - L + 1 to k, that of time t in slot t mod L
    key: PRNGKeyArray
    events: Int[Array, ""]
    error: Float[Array, ""]


class _AbstractAsynchronous(AbstractSolver[FixedPoint, _State]):
    """Events, one a step, on a history of points."""

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        schedule: ClassVar[AbstractSchedule]
        averaging: ClassVar[Scalar]
        blocks: ClassVar[int | None]
    else:
        schedule: eqx.AbstractVar[AbstractSchedule]
        averaging: eqx.AbstractVar[Scalar]
        blocks: eqx.AbstractVar[int | None]

    def __check_init__(self):
        checks.instance("schedule", self.schedule, AbstractSchedule, "ConstantDelay(10)")
        checks.interval("averaging", self.averaging, 0, 1, open_low=True)
        if self.blocks is not None:
            checks.count("blocks", self.blocks)
        self.schedule.longest(self.max_steps)  # raises if it is too short

    @abc.abstractmethod
    def _ages(self, ages: Int[Array, " m"], block: Int[Array, ""]) -> Int[Array, " m"]:
        """Of what is read, given those of the schedule."""

    def _sizes(self, x) -> tuple[int, int]:
        """The number of blocks and how many entries of the leading axis each has."""
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
        if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(f"blocks are on a common leading axis, got shapes {shapes}")
        n = shapes[0][0]
        m = n if self.blocks is None else self.blocks
        if n == 0 or n % m:
            raise ValueError(f"a leading axis of {n} cannot be cut into {m} equal blocks")
        return m, n // m

    def init(self, problem, x, key):
        self._sizes(x)
        length = self.schedule.longest(self.max_steps) + 1
        # Ages before the start read the start, so the ring is full of it.
        history = jax.tree.map(lambda e, a: e + a, ring.empty(x, length), x)
        return _State(history, key, jnp.asarray(0, jnp.int32), unknown(tree.real_dtype(x)))

    def refresh(self, problem, x, state):
        # What was measured is of another problem, or passed already.
        return forgotten(state)

    def step(self, problem, x, state):
        m, size = self._sizes(x)
        k = state.events
        block, ages = self.schedule.event(k, m, jax.random.fold_in(state.key, k))
        ages = self._ages(ages, block)
        read = stale(state.history, k, ages, size)
        moved = _update(problem.fun, read, block, size)
        eta = self.averaging

        def relaxed(a, old, new):
            own = jnp.arange(m * size) // size == block
            step = jnp.asarray(eta, a.real.dtype) * (new - old)
            return jnp.where(own.reshape(-1, *(1,) * (a.ndim - 1)), a + step, a)

        x = jax.tree.map(relaxed, x, read, tree.cast_like(moved, x))
        length = jax.tree.leaves(state.history)[0].shape[0]
        history = ring.store(state.history, x, (k + 1) % length, after=x)
        # Seldom, as a look at all of the map costs as much as m events.
        measure = lambda x: tree.norm(problem.residual(x)).astype(state.error.dtype)
        error = loops.if_due((k + 1) % m == 0, measure, x, state.error)
        return x, _State(history, state.key, k + 1, error)

    def error(self, problem, x, state):
        return state.error


def _update(fun: Any, x: PyTree[Array], block: Int[Array, ""], size: int) -> PyTree[Array]:
    """The map with the right rows in the block; others are not asked for."""
    if not checks.has_method(fun, "block"):
        return fun(x)
    part = fun.block(block, x)
    put = lambda a, p: jax.lax.dynamic_update_slice_in_dim(a, p.astype(a.dtype), block * size, 0)
    return jax.tree.map(put, x, part)


class DelayAgnostic(_AbstractAsynchronous):
    """DEGAS: blocks are updated from stale values of the others, but always from their own last
    one,

    $$x_{i} \\leftarrow (1 - \\eta) x_i + \\eta\\, T_i(\\hat x), \\qquad \\hat x_i = x_i, \\quad
      \\hat x_j = x_j(k - a_j),$$

    so that no parameter depends on the delays. With $\\|T_i(x) - T_i(y)\\| \\le \\sum_j a_{ij}
    \\|x_j - y_j\\|$ it converges if the spectral radius of $a$ is below 1 (`delay_free_margin`):
    linearly under bounded delays, and under any that grow without bound as long as old values are
    flushed. A step is one event. The error is the norm of the problem's residual, looked at once in
    $m$ events; in between it is that of the last look, and before the first the largest number.

    A map with a method `block(i, x)` that returns the rows of block `i` of $T(x)$ is asked for
    those only.

    **Arguments:**

    - `schedule`: an `AbstractSchedule`: which block, how old.
    - `blocks`: the number $m$ of equal blocks that the leading axis of all leaves is cut into;
      `None` is one for each of its entries.
    - `averaging`: $\\eta \\in (0, 1]$.
    - `tol`, `max_steps`: see `AbstractSolver`. The history that is kept is as long as the largest
      age in `max_steps` events.

    **Raises:** `ValueError` if a recorded schedule has fewer events than `max_steps`, or the
    leading axis cannot be cut.

    **Reference:** Wu, Liu, Magnússon, Johansson, Delay-Agnostic Asynchronous Coordinate Update
    Algorithm, 2023, arXiv:2305.08535.
    """

    schedule: AbstractSchedule = ConstantDelay()
    blocks: int | None = eqx.field(static=True, default=None)
    averaging: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (FixedPoint,)

    def _ages(self, ages, block):
        return ages.at[block].set(0)


class ARock(_AbstractAsynchronous):
    """Blocks are updated by a difference of which all is stale,

    $$x_i \\leftarrow x_i + \\eta\\, (T_i(\\hat x) - \\hat x_i), \\qquad
      \\hat x_j = x_j(k - a_j) \\text{ for all } j,$$

    as when a worker reads a point and has its increment added later. It converges for nonexpansive
    maps if $\\eta < 1 / (1 + 2 \\tau / \\sqrt m)$ for delays of at most $\\tau$, and diverges with
    larger ones. Step and error are those of `DelayAgnostic`.

    **Arguments:**

    - `schedule`: an `AbstractSchedule`: which block, how old.
    - `blocks`: as in `DelayAgnostic`.
    - `averaging`: $\\eta \\in (0, 1]$.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Raises:** as `DelayAgnostic`.

    **Reference:** Peng, Xu, Yan, Yin, ARock: an Algorithmic Framework for Asynchronous Parallel
    Coordinate Updates, 2016, arXiv:1506.02396.
    """

    schedule: AbstractSchedule = ConstantDelay()
    blocks: int | None = eqx.field(static=True, default=None)
    averaging: Scalar = scalar_field(0.5)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 10_000
    problems = (FixedPoint,)

    def _ages(self, ages, block):
        return ages


class ProximalCoordinateMap(eqx.Module):
    """$T_i(x) = \\mathrm{prox}_{t_i g}(x_i - t_i \\nabla_i f(x))$, of which blocks may be updated
    apart if $g$ is separable. Delay-free if the Hessian is diagonally dominant, $\\mu_{ii} >
    \\sum_{j \\ne i} L_{ij}$, with $t_i \\le 1 / L_{ii}$.

    **Arguments:**

    - `problem`: a `Composite`.
    - `step_sizes`: $t$, a number or one for each entry of the leading axis.
    """

    problem: Composite
    step_sizes: Any = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.positive("step_sizes", self.step_sizes)

    def __call__(self, x: Float[Array, "n *d"]) -> Float[Array, "n *d"]:
        t = jnp.asarray(self.step_sizes, x.real.dtype)
        t = jnp.broadcast_to(t.reshape(t.shape + (1,) * (x.ndim - t.ndim)), x.shape)
        return self.problem.nonsmooth.prox(x - t * tree.gradient(self.problem.smooth, x), t)


class ConsensusMap(eqx.Module):
    """ADMM for $\\min_z \\sum_i f_i(z) + h(z)$ in the variables of Douglas and Rachford,

    $$z = \\mathrm{prox}_{h / (n \\rho)}(\\bar u), \\qquad
      T_i(u) = u_i - z + \\mathrm{prox}_{f_i / \\rho}(2 z - u_i).$$

    With $f_i$ between $\\mu$ and $L$ in curvature, $h = 0$ and $r = \\max(|\\rho - \\mu| / (\\rho +
    \\mu), |\\rho - L| / (\\rho + L))$ it is delay-free if $r < 1 / (3 - 4/n)$.

    **Arguments:**

    - `proxes`: `(v, step) -> ` the stacked $\\mathrm{prox}_{\\mathrm{step} f_i}(v_i)$, for $v$ of
      shape `(n, *d)`.
    - `penalty`: $\\rho > 0$.
    - `nonsmooth`: $h$, a function of `jaxopt_ext.prox`, or `None`.
    """

    proxes: Callable[[Float[Array, "n *d"], Any], Float[Array, "n *d"]]
    penalty: Any = eqx.field(converter=checks.scalar)
    nonsmooth: Any = None

    def __check_init__(self):
        checks.positive("penalty", self.penalty)

    def read(self, u: Float[Array, "n *d"]) -> Float[Array, "*d"]:
        """$z$, the solution at a fixed point."""
        mean = jnp.mean(u, axis=0)
        if self.nonsmooth is None:
            return mean
        return self.nonsmooth.prox(mean, 1 / (u.shape[0] * self.penalty))

    def __call__(self, u: Float[Array, "n *d"]) -> Float[Array, "n *d"]:
        z = self.read(u)
        return u - z + self.proxes(2 * z - u, 1 / self.penalty)


class GossipMap(eqx.Module):
    """$T_i(x) = \\mathrm{prox}_{t f_i}(\\sum_j w_{ij} x_j)$ with a row-stochastic $W$: delay-free
    for every $t > 0$ where the $f_i$ are strongly convex, with the factor $1 / (1 + t \\mu)$.

    **Arguments:**

    - `weights`: $W$, shape `(n, n)`, nonnegative with rows that sum to one.
    - `proxes`: `(v, step) -> ` the stacked $\\mathrm{prox}_{\\mathrm{step} f_i}(v_i)$.
    - `step_size`: $t > 0$.
    """

    weights: Float[Array, "n n"] = eqx.field(converter=jnp.asarray)
    proxes: Callable[[Float[Array, "n *d"], Any], Float[Array, "n *d"]]
    step_size: Any = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.positive("step_size", self.step_size)
        checks.nonnegative("weights", self.weights)
        if not checks.is_traced(self.weights):
            gap = jnp.max(jnp.abs(jnp.sum(self.weights, axis=-1) - 1))
            checks.interval("the sum of a row of weights, less 1,", gap, 0, 1e-4)

    def __call__(self, x: Float[Array, "n *d"]) -> Float[Array, "n *d"]:
        return self.proxes(jnp.tensordot(self.weights, x, axes=1), self.step_size)


def block_lipschitz(
    fun: Callable[[Float[Array, "m *d"]], Float[Array, "m *d"]],
    x: Float[Array, "m *d"],
    key: PRNGKeyArray,
    *,
    num_samples: int = 8,
    radius: Any = 1.0,
) -> Float[Array, "m m"]:
    """Estimates of $a_{ij}$ in $\\|T_i(x) - T_i(y)\\| \\le \\sum_j a_{ij} \\|x_j - y_j\\|$: the
    largest norms of the Jacobian's blocks at `x` and at points drawn around it.

    They are exact for affine maps and from below for others.

    **Arguments:**

    - `fun`: $T$; blocks are the entries of the leading axis.
    - `x`: the center.
    - `key`: random key of the points.
    - `num_samples`: how many points; static.
    - `radius`: standard deviation of each entry's distance from the center.
    """
    checks.count("num_samples", num_samples)
    m = x.shape[0]
    noise = radius * jax.random.normal(key, (num_samples, *x.shape), x.dtype)
    points = x + noise.at[0].set(0)

    def norms(point):
        jacobian = jax.jacfwd(fun)(point).reshape(m, x.size // m, m, x.size // m)
        return jnp.linalg.norm(jnp.swapaxes(jacobian, 1, 2), ord=2, axis=(2, 3))

    return jnp.max(jax.lax.map(norms, points), axis=0)


def delay_free_margin(a: Float[Array, "m m"]) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """The least $c$ with $\\max_i \\sum_j a_{ij} w_j / w_i \\le c$ for some weights $w > 0$, and
    such weights: the spectral radius of $a$ and its Perron vector.

    Below 1, asynchronous updates converge whatever the delays. Where $a$ is reducible the weights
    are those of a matrix with a rounding more in each entry, and $c$ is what they give.

    **Arguments:**

    - `a`: the constants, nonnegative, shape `(m, m)`.
    """
    m = a.shape[0]
    # Positive on the diagonal, so that powers of it settle, and everywhere, so that w > 0.
    eps = jnp.finfo(a.dtype).eps
    size = jnp.maximum(jnp.max(a), jnp.finfo(a.dtype).tiny)
    shifted = a + size * (jnp.eye(m, dtype=a.dtype) + eps)
    squared = lambda _, p: (p @ p) / jnp.max(p @ p)
    w = jnp.sum(loops.fori_loop(0, 40, squared, shifted / jnp.max(shifted)), axis=1)
    w = w / jnp.max(w)
    return jnp.max(a @ w / w), w
