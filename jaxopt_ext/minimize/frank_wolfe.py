"""Projection-free methods: Frank-Wolfe with away steps and pairwise steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..core import AbstractSolver, Constrained, Scalar, checks, loops, scalar_field, tree


class _Slope(eqx.Module):
    """What the oracle says at a point: the point of the set that is lowest along the gradient, and
    the duality gap."""

    value: Float[Array, ""]
    gradient: PyTree[Array]
    toward: PyTree[Array]
    gap: Float[Array, ""]

    @classmethod
    def at(cls, problem, x):
        value, gradient = tree.value_and_gradient(problem.smooth, x)
        toward = tree.cast_like(problem.feasible.linear_minimizer(gradient), x)
        return cls(value, gradient, toward, tree.vdot(gradient, _subtract(x, toward)))


class _State(eqx.Module):
    slope: _Slope
    curvature: Float[Array, ""]
    error: Float[Array, ""]
    inside: Bool[Array, ""]


def _is_inside(feasible, x):
    """Whether a starting point is in the set, up to a thousand roundings. One projection."""
    gap = tree.norm(_subtract(x, feasible.project(x)))
    return gap <= 1e3 * jnp.finfo(gap.dtype).eps * jnp.maximum(1, tree.norm(x))


def _subtract(a, b):
    return jax.tree.map(jnp.subtract, a, b)


def _shift(x, direction, gamma):
    return jax.tree.map(lambda a, d: a + gamma.astype(a.dtype) * d, x, direction)


def adaptive_step(fun, x, value, direction, gap, limit, curvature):
    """Step $\\gamma = \\min(g / (M \\|d\\|^2), \\gamma_{\\max})$ with $M$ doubled until
    $f(x + \\gamma d) \\le f(x) - \\gamma g + \\tfrac{M}{2} \\gamma^2 \\|d\\|^2$.

    **Returns:** $\\gamma$ and $M$.

    **Reference:** Pedregosa et al., Linearly Convergent Frank-Wolfe with Backtracking Line-Search,
    2020, arXiv:1806.05123.
    """
    square = tree.vdot(direction, direction)
    rounding = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)

    def gamma_of(m):
        scaled = m * square
        return jnp.where(scaled * limit > gap, gap / jnp.where(scaled > 0, scaled, 1), limit)

    # From the smallest number to the largest, but no search where the value is no number.
    limit_of_doublings = jnp.where(jnp.isfinite(value), 2 * jnp.finfo(value.dtype).maxexp, 1)

    # The verdict is carried: a batched loop asks its condition twice, and a test that rounding
    # decides one way here and the other way there would never end.
    def try_once(carry):
        _, m, doublings, _ = carry
        gamma = gamma_of(m)
        bound = value - gamma * gap + 0.5 * m * gamma**2 * square
        passed = fun(_shift(x, direction, gamma)) - bound <= rounding
        return m, 2 * m, doublings + 1, ~passed & (doublings < limit_of_doublings)

    # What has vanished could not be doubled.
    first = jnp.maximum(0.7 * curvature, jnp.finfo(curvature.dtype).tiny)
    start = (first, first, jnp.asarray(0, jnp.int32), jnp.asarray(True))
    m, *_ = loops.while_loop(lambda carry: carry[-1], try_once, start)
    return gamma_of(m), m


class FrankWolfe(AbstractSolver):
    """The conditional gradient method,

    $$s \\in \\arg\\min_{s \\in C} \\langle \\nabla f(x), s\\rangle, \\qquad
      x \\leftarrow x + \\gamma (s - x).$$

    The error is the duality gap $\\langle \\nabla f(x), x - s\\rangle$ at the value: an upper bound
    on $f(x) - f^*$ for convex $f$, and on the square of the residual's norm for any,
    $\\|x - P_C(x - \\nabla f(x))\\|^2 \\le \\langle \\nabla f(x), x - s\\rangle$. It falls as
    $O(1/k)$. A start outside of the set, where the gap certifies nothing, is replaced by the first
    $s$.

    **Arguments:**

    - `curvature`: first guess of the curvature along a step, corrected at each step.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Frank, Wolfe, An Algorithm for Quadratic Programming, 1956. Jaggi, Revisiting
    Frank-Wolfe, 2013.
    """

    curvature: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-4)
    max_steps: int = 5000
    problems = (Constrained,)

    def __check_init__(self):
        checks.positive("curvature", self.curvature)

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        inside = _is_inside(problem.feasible, x)
        infinity = jnp.asarray(jnp.inf, dtype)
        return _State(_Slope.at(problem, x), self.curvature.astype(dtype), infinity, inside)

    def refresh(self, problem, x, state):
        inside = _is_inside(problem.feasible, x)
        return _State(_Slope.at(problem, x), state.curvature, state.error, inside)

    def step(self, problem, x, state):
        at = state.slope
        direction = _subtract(at.toward, x)
        gamma, m = adaptive_step(
            problem.smooth, x, at.value, direction, at.gap, jnp.ones_like(at.gap), state.curvature
        )
        inside = state.inside
        x = tree.where(inside, _shift(x, direction, gamma), at.toward)
        m = jnp.where(inside, m, state.curvature)
        slope = _Slope.at(problem, x)
        return x, _State(slope, m, slope.gap, jnp.ones_like(inside))

    def error(self, problem, x, state):
        return state.error


class _ActiveSet(eqx.Module):
    """A convex combination of atoms, in buffers of a fixed size."""

    atoms: PyTree[Array]
    weights: Float[Array, " m"]

    def best(self, gradient) -> tuple[Array, Array]:
        """The atom with the largest inner product with the gradient, and its index."""
        scores = jax.vmap(lambda atom: tree.vdot(gradient, atom))(self.atoms)
        index = jnp.argmax(jnp.where(self.weights > 0, scores, -jnp.inf))
        return self.take(index), index

    def take(self, index) -> PyTree[Array]:
        return jax.tree.map(lambda a: a[index], self.atoms)

    def locate(self, atom) -> tuple[Array, Bool[Array, ""]]:
        """Where `atom` is or could be put, and whether there is room for it."""
        equal = jax.vmap(lambda a: _equal(a, atom))(self.atoms) & (self.weights > 0)
        present = jnp.any(equal)
        index = jnp.where(present, jnp.argmax(equal), jnp.argmin(self.weights))
        return index, present | (self.weights[index] == 0)

    def add(self, index, atom, amount) -> "_ActiveSet":
        atoms = jax.tree.map(
            lambda buffer, a: buffer.at[index].set(jnp.where(amount > 0, a, buffer[index])),
            self.atoms,
            atom,
        )
        return _ActiveSet(atoms, self.weights.at[index].add(amount))

    def point(self) -> PyTree[Array]:
        return jax.tree.map(
            lambda a: jnp.tensordot(self.weights.astype(a.dtype), a, axes=1), self.atoms
        )


def _equal(a, b):
    same = jax.tree.map(lambda x, y: jnp.all(x == y), a, b)
    return jnp.all(jnp.stack(jax.tree.leaves(same)))


class _ActiveState(eqx.Module):
    active: _ActiveSet
    slope: _Slope
    curvature: Float[Array, ""]
    error: Float[Array, ""]
    inside: Bool[Array, ""]

    def at(self, x) -> PyTree[Array]:
        """The current point: a start outside of the set has been replaced by the first atom."""
        return tree.where(self.inside, x, self.active.take(0))


class _Directions(eqx.Module):
    toward_index: Array
    away: PyTree[Array]
    away_index: Array
    away_gap: Float[Array, ""]
    room: Bool[Array, ""]


def _directions(x, slope, active) -> _Directions:
    away, away_index = active.best(slope.gradient)
    toward_index, room = active.locate(slope.toward)
    away_gap = tree.vdot(slope.gradient, _subtract(away, x))
    return _Directions(toward_index, away, away_index, away_gap, room)


class AbstractActiveSetSolver(AbstractSolver):
    """A Frank-Wolfe method that keeps its iterate as a convex combination of atoms.

    A start outside of the set is replaced by the first point that the linear oracle finds.
    """

    max_atoms: eqx.AbstractVar[int]
    curvature: eqx.AbstractVar[Float[Array, ""]]

    def __check_init__(self):
        checks.count("max_atoms", self.max_atoms, minimum=2)
        checks.positive("curvature", self.curvature)

    def init(self, problem, x, key):
        dtype, size = tree.real_dtype(x), self.max_atoms
        inside = _is_inside(problem.feasible, x)
        corner = problem.feasible.linear_minimizer(tree.gradient(problem.smooth, x))
        x = tree.where(inside, x, corner)
        atoms = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype).at[0].set(a), x)
        active = _ActiveSet(atoms, jnp.zeros(size, dtype).at[0].set(1))
        infinity = jnp.asarray(jnp.inf, dtype)
        slope = _Slope.at(problem, x)
        return _ActiveState(active, slope, self.curvature.astype(dtype), infinity, inside)

    def refresh(self, problem, x, state):
        fresh = self.init(problem, x, jax.random.key(0))  # nothing is drawn
        # Atoms of another set would lead out of this one, and there the gap certifies nothing.
        used = jax.vmap(lambda atom: _is_inside(problem.feasible, atom))(state.active.atoms)
        keep = state.inside & fresh.inside & jnp.all(used | (state.active.weights == 0))
        active = tree.where(keep, state.active, fresh.active)
        return _ActiveState(active, fresh.slope, state.curvature, state.error, fresh.inside)

    def error(self, problem, x, state):
        return state.error


class AwayFrankWolfe(AbstractActiveSetSolver):
    """Frank-Wolfe with away steps: linear convergence over polytopes.

    The iterate is kept as a convex combination of atoms. Each step goes towards the best atom of
    the set or away from the worst atom in use, whichever has the larger slope. The error is the
    Frank-Wolfe gap at the value; the square of the residual's norm is at most that.

    **Arguments:**

    - `max_atoms`: how many atoms can be in use. When all are, steps away free one.
    - `curvature`: see `FrankWolfe`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Guélat, Marcotte, Some Comments on Wolfe's Away Step, 1986. Lacoste-Julien,
    Jaggi, On the Global Linear Convergence of Frank-Wolfe Optimization Variants, 2015,
    arXiv:1511.05932.
    """

    max_atoms: int = eqx.field(static=True, default=64)
    curvature: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Constrained,)

    def step(self, problem, x, state):
        x, active, at = state.at(x), state.active, state.slope
        d = _directions(x, at, active)
        forward = (at.gap >= d.away_gap) & d.room
        direction = tree.where(forward, _subtract(at.toward, x), _subtract(x, d.away))
        slope = jnp.where(forward, at.gap, d.away_gap)
        share = active.weights[d.away_index]
        rest = jnp.where(share < 1, 1 - share, 1)
        limit = jnp.where(forward, 1, jnp.where(share < 1, share / rest, 0))
        gamma, m = adaptive_step(
            problem.smooth, x, at.value, direction, slope, limit, state.curvature
        )
        # Towards: everything shrinks by 1 - gamma. Away: everything grows by 1 + gamma.
        scaled = active.weights * jnp.where(forward, 1 - gamma, 1 + gamma)
        active = eqx.tree_at(lambda a: a.weights, active, scaled)
        active = active.add(d.toward_index, at.toward, jnp.where(forward, gamma, 0))
        drop = ~forward & (gamma >= limit)
        weights = active.weights.at[d.away_index].add(jnp.where(forward, 0, -gamma))
        return _settle(problem, active, weights, drop, d.away_index, m)


class PairwiseFrankWolfe(AbstractActiveSetSolver):
    """Frank-Wolfe with pairwise steps: weight moves from the worst atom in use to the best one.

    The error is the Frank-Wolfe gap at the value; the square of the residual's norm is at most
    that.

    **Arguments:**

    - `max_atoms`: how many atoms can be in use. When all are, a step away frees one.
    - `curvature`: see `FrankWolfe`.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Lacoste-Julien, Jaggi, On the Global Linear Convergence of Frank-Wolfe
    Optimization Variants, 2015, arXiv:1511.05932.
    """

    max_atoms: int = eqx.field(static=True, default=64)
    curvature: Scalar = scalar_field(1.0)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Constrained,)

    def step(self, problem, x, state):
        x, active, at = state.at(x), state.active, state.slope
        d = _directions(x, at, active)
        share = active.weights[d.away_index]
        pair = d.room
        rest = jnp.where(share < 1, 1 - share, 1)
        limit = jnp.where(pair, share, jnp.where(share < 1, share / rest, 0))
        direction = tree.where(pair, _subtract(at.toward, d.away), _subtract(x, d.away))
        slope = jnp.where(pair, at.gap + d.away_gap, d.away_gap)
        gamma, m = adaptive_step(
            problem.smooth, x, at.value, direction, slope, limit, state.curvature
        )
        scaled = active.weights * jnp.where(pair, 1, 1 + gamma)
        active = eqx.tree_at(lambda a: a.weights, active, scaled)
        active = active.add(d.toward_index, at.toward, jnp.where(pair, gamma, 0))
        weights = active.weights.at[d.away_index].add(-gamma)
        drop = (gamma >= limit) & (d.toward_index != d.away_index)
        return _settle(problem, active, weights, drop, d.away_index, m)


def _settle(problem, active, weights, drop, away_index, curvature):
    """Remove a dropped atom and the rounding of the weights; read off the point."""
    alone = weights[away_index] >= jnp.sum(weights)
    weights = weights.at[away_index].set(jnp.where(drop & ~alone, 0, weights[away_index]))
    weights = jnp.maximum(weights, 0)
    active = _ActiveSet(active.atoms, weights / jnp.sum(weights))
    x = active.point()
    slope = _Slope.at(problem, x)
    return x, _ActiveState(active, slope, curvature, slope.gap, jnp.asarray(True))
