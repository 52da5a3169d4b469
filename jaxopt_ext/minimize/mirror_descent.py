"""Mirror descent."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core import AbstractSolver, Constrained, Scalar, checks, loops, scalar_field, tree


class AbstractMirrorMap(eqx.Module):
    """A geometry: the Bregman divergence of a convex function, and its steps on a set."""

    @abc.abstractmethod
    def step(self, problem, x: PyTree, gradient: PyTree, step_size: Array) -> PyTree:
        """$\\arg\\min_{u \\in C} \\langle g, u\\rangle + D(u, x) / t$."""

    @abc.abstractmethod
    def divergence(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        """$D(x, y)$."""


class EntropicSimplex(AbstractMirrorMap):
    """Negative entropy on a simplex: multiplicative weights, $u \\propto x e^{-t g}$.

    The total mass is that of `x`, so start in the feasible set, away from its boundary.
    """

    def step(self, problem, x, gradient, step_size):
        flat, unravel = ravel_pytree(x)
        slope, _ = ravel_pytree(gradient)
        logits = jnp.where(flat > 0, jnp.log(jnp.where(flat > 0, flat, 1)), -jnp.inf)
        return unravel(jnp.sum(flat) * jax.nn.softmax(logits - step_size * slope))

    def divergence(self, x, y):
        def leaf(a, b):
            ratio = jnp.where(a > 0, a, 1) / jnp.where(b > 0, b, 1)
            return jnp.sum(jnp.where(a > 0, a * jnp.log(ratio), 0) - a + b)

        return tree.sum_leaves(jax.tree.map(leaf, x, y))


class EntropicOrthant(AbstractMirrorMap):
    """Negative entropy on the positive orthant: $u = x e^{-t g}$."""

    def step(self, problem, x, gradient, step_size):
        return jax.tree.map(lambda a, g: a * jnp.exp(-step_size * g), x, gradient)

    def divergence(self, x, y):
        return EntropicSimplex().divergence(x, y)


class Euclidean(AbstractMirrorMap):
    """Half the squared distance: the projected gradient method."""

    def step(self, problem, x, gradient, step_size):
        return problem.feasible.project(jax.tree.map(lambda a, g: a - step_size * g, x, gradient))

    def divergence(self, x, y):
        gap = jax.tree.map(jnp.subtract, x, y)
        return 0.5 * tree.vdot(gap, gap)


class _State(eqx.Module):
    value: Float[Array, ""]
    gradient: PyTree[Array]
    step_size: Float[Array, ""]
    error: Float[Array, ""]


class MirrorDescent(AbstractSolver):
    """Mirror descent with backtracking on relative smoothness,

    $$x^+ = \\arg\\min_{u \\in C} \\langle \\nabla f(x), u\\rangle + \\tfrac1t D(u, x),$$

    with $t$ halved until $f(x^+) \\le f(x) + \\langle \\nabla f(x), x^+ - x\\rangle + D(x^+, x)/t$.

    The error is the norm of the problem's residual $x - P_C(x - \\nabla f(x))$ at the value; the
    gradient there is that of the next step.

    **Arguments:**

    - `mirror_map`: the geometry.
    - `step_size`: first $t$.
    - `growth`: factor $\\ge 1$ on the last step size at the start of each search.
    - `tol`, `max_steps`: see `AbstractSolver`.

    **Reference:** Beck, Teboulle, Mirror Descent and Nonlinear Projected Subgradient Methods, 2003.
    Lu, Freund, Nesterov, Relatively Smooth Convex Optimization by First-Order Methods, 2018,
    arXiv:1610.05708.
    """

    mirror_map: AbstractMirrorMap = eqx.field(default_factory=EntropicSimplex)
    step_size: Scalar = scalar_field(1.0)
    growth: Scalar = scalar_field(1.2)
    tol: Scalar = scalar_field(1e-6)
    max_steps: int = 5000
    problems = (Constrained,)

    def __check_init__(self):
        checks.instance("mirror_map", self.mirror_map, AbstractMirrorMap, "EntropicSimplex()")
        checks.positive("step_size", self.step_size)
        checks.interval("growth", self.growth, 1, float("inf"))

    def init(self, problem, x, key):
        dtype = tree.real_dtype(x)
        value, gradient = tree.value_and_gradient(problem.smooth, x)
        infinity = jnp.asarray(jnp.inf, dtype)
        return _State(value, gradient, self.step_size.astype(dtype), infinity)

    def refresh(self, problem, x, state):
        value, gradient = tree.value_and_gradient(problem.smooth, x)
        return _State(value, gradient, state.step_size, state.error)

    def step(self, problem, x, state):
        value, gradient = state.value, state.gradient
        rounding = 4 * jnp.finfo(value.dtype).eps

        def candidate(t):
            return self.mirror_map.step(problem, x, gradient, t)

        # The verdict is carried: a batched loop asks its condition twice, and a test that rounding
        # decides one way here and the other way there would never end.
        def try_once(carry):
            _, t, halvings, _ = carry
            new = candidate(t)
            move = jax.tree.map(jnp.subtract, new, x)
            bound = value + tree.vdot(gradient, move) + self.mirror_map.divergence(new, x) / t
            excess = problem.smooth(new) - bound
            passed = excess <= rounding * jnp.abs(value)
            return t, 0.5 * t, halvings + 1, ~passed & (halvings < 60)

        first = state.step_size * self.growth.astype(state.step_size.dtype)
        start = (first, first, jnp.asarray(0, jnp.int32), jnp.asarray(True))
        t, *_ = loops.while_loop(lambda carry: carry[-1], try_once, start)
        new = tree.cast_like(candidate(t), x)
        value, gradient = tree.value_and_gradient(problem.smooth, new)
        moved = problem.feasible.project(jax.tree.map(jnp.subtract, new, gradient))
        error = tree.norm(jax.tree.map(jnp.subtract, new, moved))
        # Growth for ever would overflow once the iterates stop moving.
        t = jnp.minimum(t, 1 / jnp.finfo(t.dtype).eps)
        return new, _State(value, gradient, t, error)

    def error(self, problem, x, state):
        return state.error
