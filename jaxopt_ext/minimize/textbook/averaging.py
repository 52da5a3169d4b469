"""Averages of iterates, which is what theorems on functions with kinks speak of."""

import abc
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...core import (
    AbstractProblem,
    AbstractSolver,
    Constrained,
    Expectation,
    Smooth,
    minibatches,
    tree,
)
from ...core.confirm import unknown
from ...core.natural import natural as natural_map
from ...prox import L1
from ..mirror_descent import AbstractMirrorMap, Euclidean
from ..p_norm import PNorm, _half_square

Problem = TypeVar("Problem", bound=AbstractProblem)


class AbstractAverage(eqx.Module):
    """Which average of the points that were played is returned."""

    @abc.abstractmethod
    def share(
        self, count: Int[Array, ""], value: Float[Array, ""], best: Float[Array, ""]
    ) -> Float[Array, ""]:
        """The share of the newest point.

        **Arguments:**

        - `count`: how many points there are, with it.
        - `value`: the objective there.
        - `best`: the least objective before.
        """


class UniformAverage(AbstractAverage):
    """All points count the same."""

    def share(self, count, value, best):
        return 1 / count.astype(best.dtype)


class LinearAverage(AbstractAverage):
    """The $s$-th of $t$ points has the weight $2 s / (t (t + 1))$."""

    def share(self, count, value, best):
        return 2 / (count.astype(best.dtype) + 1)


class BestPoint(AbstractAverage):
    """The point with the least objective."""

    def share(self, count, value, best):
        return ((count == 1) | (value < best)).astype(best.dtype)


class AveragedState(eqx.Module):
    """What averaging methods carry.

    **Attributes:**

    - `point`: the iterate; its average is what `solve` returns.
    - `memory`: what the method keeps beside it.
    - `average`: of the points played so far.
    - `best`: the least objective seen, where the method knows it.
    - `count`: how many points were played.
    - `error`: at the iterate in the loop, at what is returned behind it.
    """

    point: PyTree[Array]
    memory: PyTree
    average: PyTree[Array]
    best: Float[Array, ""]
    count: Int[Array, ""]
    error: Float[Array, ""]


class Played(NamedTuple):
    """A step: the next iterate and memory, the point that joins the average, the objective there,
    and the norm of the residual at the iterate, or `None` where that is not known."""

    point: PyTree[Array]
    memory: PyTree
    played: PyTree[Array]
    value: Float[Array, ""]
    error: Float[Array, ""] | None


class AbstractAveraged(AbstractSolver[Problem, AveragedState], Generic[Problem]):
    """A method with a theorem on an average of its points.

    The average is taken as the method goes, and returned behind the last step. In the loop the
    error is the norm of the problem's residual at the iterate, where the method knows it, and the
    largest number where it does not. If it passes, the iterate is a solution and is returned.
    """

    @abc.abstractmethod
    def first(self, problem: Problem, x: PyTree[Array], key: PRNGKeyArray) -> PyTree:
        """The memory before the first step."""

    @abc.abstractmethod
    def move(self, problem: Problem, state: AveragedState) -> Played:
        """One step."""

    def averaging(self) -> AbstractAverage:
        """Which average is returned."""
        return UniformAverage()

    def enter(self, problem: Problem, x: PyTree[Array]) -> PyTree[Array]:
        """The first iterate."""
        return x

    def init(self, problem, x, key):
        point = tree.cast_like(self.enter(problem, x), x)
        infinity = jnp.asarray(jnp.inf, tree.real_dtype(x))
        memory = self.first(problem, point, key)
        return AveragedState(point, memory, point, infinity, jnp.asarray(0, jnp.int32), infinity)

    def refresh(self, problem, x, state):
        return eqx.tree_at(lambda s: s.memory, state, self.renew(problem, state))

    def renew(self, problem: Problem, state: AveragedState) -> PyTree:
        """The memory with all that is made of the problem made again."""
        return state.memory

    def step(self, problem, x, state):
        moved = self.move(problem, state)
        dtype, count = state.error.dtype, state.count + 1
        value = moved.value.astype(dtype)
        share = self.averaging().share(count, value, state.best)
        average = tree.axpy(tree.scale(state.average, 1 - share), share, moved.played)
        # The first average is a point at which nothing is known yet.
        average = tree.where(count == 1, moved.played, average)
        error = unknown(dtype) if moved.error is None else moved.error.astype(dtype)
        point = tree.cast_like(moved.point, x)
        average = tree.cast_like(average, x)
        best = jnp.minimum(state.best, value)
        return point, AveragedState(point, moved.memory, average, best, count, error)

    def error(self, problem, x, state):
        return state.error

    def finish(self, problem, x, state):
        solved = state.error <= self.tol
        at_average = measured(problem, state.average).astype(state.error.dtype)
        error = jnp.where(solved, state.error, at_average)
        shown = tree.where(solved, state.point, state.average)
        return shown, eqx.tree_at(lambda s: s.error, state, error)


def measured(problem: AbstractProblem, x: PyTree[Array]) -> Float[Array, ""]:
    """The norm of the problem's residual; the largest number where the problem has none."""
    if isinstance(problem, Expectation) and problem.mean is None:
        return unknown(tree.real_dtype(x))
    return tree.norm(problem.residual(x))


def other_part(problem: AbstractProblem) -> Any:
    """The set, or the function with a prox; `None` for neither."""
    return minibatches(problem).nonsmooth


def natural(other: Any, x: PyTree[Array], slope: PyTree[Array]) -> Float[Array, ""]:
    """The norm of the natural map, $\\|x - \\mathrm{prox}_g(x - v)\\|$."""
    return tree.norm(natural_map(other, x, slope))


def forward(
    geometry: AbstractMirrorMap,
    other: Any,
    x: PyTree[Array],
    slope: PyTree[Array],
    step: Float[Array, ""],
    penalty: Float[Array, ""] | None = None,
) -> PyTree[Array]:
    """$\\arg\\min_u t \\langle v, u\\rangle + p\\, g(u) + D(u, x)$.

    **Arguments:**

    - `geometry`: the mirror map, of divergence $D$.
    - `other`: $g$, a set or a function with a prox; `None` for zero.
    - `x`, `slope`: $x$ and $v$.
    - `step`, `penalty`: $t$ and $p$, the same if `None`.

    **Raises:** `TypeError` for a $g$ that the geometry has no step with: `Euclidean` takes all,
    `PNorm` takes `prox.L1`, the others sets.
    """
    penalty = step if penalty is None else penalty
    if isinstance(geometry, Euclidean):
        moved = tree.axpy(x, -step, slope)
        return moved if other is None else other.prox(moved, penalty)
    if other is None:
        return geometry.step(Smooth(_zero), x, slope, step)
    if hasattr(other, "project"):
        return geometry.step(Constrained(_zero, other), x, slope, step)
    if isinstance(geometry, PNorm) and isinstance(other, L1):
        return _sparse_step(geometry, other, x, slope, step, penalty)
    raise TypeError(
        f"{type(geometry).__name__} has no steps with {type(other).__name__}: take Euclidean()"
    )


def _zero(x):
    return jnp.zeros((), tree.real_dtype(x))


def _sparse_step(geometry, other, x, slope, step, penalty):
    """There and back, and soft thresholding of the gradients of the mirror map between."""
    p = geometry.p
    flat, unravel = ravel_pytree(x)
    moved = _half_square(flat, p) / (p - 1) - step * ravel_pytree(slope)[0]
    shrunk, _ = ravel_pytree(other.prox(unravel(moved.astype(flat.dtype)), penalty))
    return unravel(_half_square((p - 1) * shrunk, p / (p - 1)).astype(flat.dtype))
