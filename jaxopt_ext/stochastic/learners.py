"""Online learners of a short step: decisions in a ball or a box against linear losses."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import Scalar, checks, loops, scalar_field, tree
from .descent import inverse_power

Ahead = Callable[[PyTree[Array]], PyTree[Array]]
"""A gradient that a decision would meet, as far as it can be told before it is made."""


class AbstractLearner(eqx.Module):
    """Online linear optimization over a bounded set: $\\Delta_n$ is chosen, then $g_n$ is seen, and
    $\\langle g_n, \\Delta_n\\rangle$ is lost.

    **Attributes:**

    - `radius`: how long a decision can be, in the learner's norm.
    """

    if TYPE_CHECKING:  # type checkers take equinox's abstract variables for fields
        radius: ClassVar[Any]
    else:
        radius: eqx.AbstractVar[Any]

    @property
    def asks(self) -> int:
        """How many gradients ahead a decision takes."""
        return 0

    @abc.abstractmethod
    def init(self, x: PyTree[Array]) -> PyTree[Array]:
        """The state before the first decision, which is shaped like `x`."""

    @abc.abstractmethod
    def act(self, state: PyTree[Array], ahead: Ahead) -> PyTree[Array]:
        """The decision $\\Delta$. `ahead` is for optimistic learners."""

    @abc.abstractmethod
    def observe(self, state: PyTree[Array], gradient: PyTree[Array]) -> PyTree[Array]:
        """The state after a loss."""

    def renew(self, state: PyTree[Array]) -> PyTree[Array]:
        """The state for another epoch, in which another decision may be the best."""
        return state

    @abc.abstractmethod
    def dual_norm(self, gradient: PyTree[Array]) -> Float[Array, ""]:
        """$\\max \\langle g, \\Delta\\rangle$ over decisions of length one."""


def _onto_ball(x, radius):
    """The nearest point of length at most `radius`; not a number if the length is none."""
    size = tree.norm(x)
    radius = jnp.asarray(radius, size.dtype)
    return tree.scale(x, jnp.where(size <= radius, 1, radius * inverse_power(size, 1)))


def _zeros(x):
    return jax.tree.map(jnp.zeros_like, x)


class BallGradientDescent(AbstractLearner):
    """Online gradient descent in a Euclidean ball,

    $$\\Delta_{n+1} = P_{\\|\\cdot\\| \\le D}(\\Delta_n - \\eta g_n), \\qquad \\Delta_1 = 0.$$

    With $\\eta = D / (G \\sqrt T)$ its regret over $T$ losses with $\\|g\\| \\le G$ is at most
    $D G \\sqrt T$ against a fixed decision.

    **Arguments:**

    - `radius`: $D > 0$.
    - `step_size`: $\\eta > 0$.

    **Raises:** `ValueError` unless both are positive.

    **Reference:** Zinkevich, Online Convex Programming and Generalized Infinitesimal Gradient
    Ascent, 2003.
    """

    radius: Scalar = eqx.field(converter=checks.scalar)
    step_size: Scalar = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.positive("radius", self.radius)
        checks.positive("step_size", self.step_size)

    def init(self, x):
        return _zeros(x)

    def act(self, state, ahead):
        return state

    def observe(self, state, gradient):
        return _onto_ball(tree.axpy(state, -self.step_size, gradient), self.radius)

    def dual_norm(self, gradient):
        return tree.norm(gradient)


class OptimisticBall(AbstractLearner):
    """Optimistic gradient descent in a Euclidean ball, which moves along a guess of the gradient
    before it is seen,

    $$\\Delta_n = P(\\tilde\\Delta_n - \\eta h_n), \\qquad
      \\tilde\\Delta_{n+1} = P(\\tilde\\Delta_n - \\eta g_n).$$

    What it loses beyond a fixed decision is in proportion to $\\sum_n \\|g_n - h_n\\|^2$. The guess
    is nearly the gradient itself: $h_n$ is asked at the decision, and the decision made from it,
    `rounds` times over, from $\\tilde\\Delta_n$ on. That contracts where $\\eta$ is below two over
    the smoothness of the function; on random gradients it gains nothing.

    **Arguments:**

    - `radius`: $D > 0$.
    - `step_size`: $\\eta > 0$; half of one over the smoothness is safe with few rounds too.
    - `rounds`: $Q \\ge 1$, of the order of the logarithm of the number of steps; static.

    **Raises:** `ValueError` unless radius and step size are positive, and there are rounds.

    **Reference:** Cutkosky, Mehta, Orabona, Optimal Stochastic Non-smooth Non-convex Optimization
    through Online-to-Non-convex Conversion, 2023, arXiv:2302.03775.
    """

    radius: Scalar = eqx.field(converter=checks.scalar)
    step_size: Scalar = eqx.field(converter=checks.scalar)
    rounds: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        checks.positive("radius", self.radius)
        checks.positive("step_size", self.step_size)
        checks.count("rounds", self.rounds)

    @property
    def asks(self):
        return self.rounds

    def init(self, x):
        return _zeros(x)

    def act(self, state, ahead):
        again = lambda _, decision: self.observe(state, ahead(decision))
        return loops.fori_loop(0, self.rounds, again, state)

    def observe(self, state, gradient):
        return _onto_ball(tree.axpy(state, -self.step_size, gradient), self.radius)

    def dual_norm(self, gradient):
        return tree.norm(gradient)


def _check_radius(radius):
    for leaf in jax.tree.leaves(radius):
        checks.positive("radius", leaf)


def _numbers(radius):
    return jax.tree.map(checks.scalar, radius)


def _per_leaf(radius, x):
    """The radius of each leaf of `x`, from one for all or a prefix of its tree."""
    return jax.tree.broadcast(radius, x)


def _into_box(x, radius):
    clip = lambda leaf, r: jnp.clip(leaf, -jnp.asarray(r, leaf.dtype), jnp.asarray(r, leaf.dtype))
    return jax.tree.map(clip, x, _per_leaf(radius, x))


def _absolute_sum(x):
    return tree.sum_leaves(jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf)), x))


class BoxGradientDescent(AbstractLearner):
    """Online gradient descent of each coordinate in an interval of its own, $|\\Delta_i| \\le D_i$:
    `BallGradientDescent` in one dimension, many times. Lengths are those of the maximum norm.

    **Arguments:**

    - `radius`: $D > 0$, a number, or a tree of numbers or arrays with the structure of the point.
    - `step_size`: $\\eta > 0$; $D / (G \\sqrt T)$ with a bound $G$ of each entry of a gradient.

    **Raises:** `ValueError` unless all are positive.

    **Reference:** Cutkosky, Mehta, Orabona, Optimal Stochastic Non-smooth Non-convex Optimization
    through Online-to-Non-convex Conversion, 2023, arXiv:2302.03775.
    """

    radius: Any = eqx.field(converter=_numbers)
    step_size: Scalar = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        _check_radius(self.radius)
        checks.positive("step_size", self.step_size)

    def init(self, x):
        return _zeros(x)

    def act(self, state, ahead):
        return state

    def observe(self, state, gradient):
        return _into_box(tree.axpy(state, -self.step_size, gradient), self.radius)

    def dual_norm(self, gradient):
        return _absolute_sum(gradient)


class BoxAdaGrad(AbstractLearner):
    """As `BoxGradientDescent`, with steps that no bound of the gradients has to be known for,

    $$\\Delta_{n+1, i} = P_{[-D_i, D_i]}\\Bigl(\\Delta_{n, i} -
      \\frac{c D_i}{\\sqrt{\\sum_{m \\le n} g_{m, i}^2}}\\, g_{n, i}\\Bigr),$$

    the sum being over the losses of an epoch. Its regret over an epoch is at most
    $2 \\sqrt2 \\sum_i D_i \\sqrt{\\sum_n g_{n, i}^2}$ with $c = \\sqrt2$.

    **Arguments:**

    - `radius`: $D > 0$, a number, or a tree of numbers or arrays with the structure of the point.
    - `scale`: $c > 0$.

    **Raises:** `ValueError` unless all are positive.

    **Reference:** Duchi, Hazan, Singer, Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization, 2011. Cutkosky, Mehta, Orabona, Optimal Stochastic Non-smooth
    Non-convex Optimization through Online-to-Non-convex Conversion, 2023, arXiv:2302.03775.
    """

    radius: Any = eqx.field(converter=_numbers)
    scale: Scalar = scalar_field(2**0.5)

    def __check_init__(self):
        _check_radius(self.radius)
        checks.positive("scale", self.scale)

    def init(self, x):
        return _zeros(x), _zeros(x)

    def act(self, state, ahead):
        return state[0]

    def observe(self, state, gradient):
        decision, squares = state
        squares = jax.tree.map(lambda s, g: s + g * g, squares, gradient)

        def move(leaf, s, g, r):
            rate = jnp.where(s > 0, jax.lax.rsqrt(jnp.where(s > 0, s, 1)), 0)
            length = self.scale.astype(leaf.dtype) * jnp.asarray(r, leaf.dtype)
            return leaf - length * jnp.where(jnp.isfinite(s), rate * g, jnp.nan)

        moved = jax.tree.map(move, decision, squares, gradient, _per_leaf(self.radius, decision))
        return _into_box(moved, self.radius), squares

    def renew(self, state):
        return state[0], _zeros(state[1])

    def dual_norm(self, gradient):
        return _absolute_sum(gradient)
