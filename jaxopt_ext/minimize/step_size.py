"""How far proximal and projected gradient steps go."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import Scalar, checks, hoist, loops, scalar_field, tree


class AbstractStepSize(eqx.Module):
    """A rule that picks the step size of a proximal step."""

    @abc.abstractmethod
    def first(self) -> Float[Array, ""]:
        """The step size to begin with."""

    @abc.abstractmethod
    def take(
        self,
        fun: Callable[[PyTree[Array]], Float[Array, ""]],
        y: PyTree[Array],
        value: Float[Array, ""],
        gradient: PyTree[Array],
        prox: Callable[[PyTree[Array], Float[Array, ""]], PyTree[Array]],
        step: Float[Array, ""],
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        """Return `prox(y - step * gradient, step)` and the step size used."""


def _forward_backward(prox, y, gradient, step):
    return prox(jax.tree.map(lambda a, g: a - step.astype(g.real.dtype) * g, y, gradient), step)


@eqx.filter_custom_jvp
def _found(x, prox, y, gradient, step):
    """The point `x` that a search found at `step`, with the derivative of the prox that made it.

    So a search needs no derivative, and costs no prox beyond its own.
    """
    return x


@_found.def_jvp
def _found_jvp(primals, tangents):
    _, *inputs = primals
    _, *moves = tangents
    return eqx.filter_jvp(_forward_backward, tuple(inputs), tuple(moves))


class FixedStep(AbstractStepSize):
    """The same step size always; convergence asks for at most $1/L$.

    **Arguments:**

    - `step_size`: $> 0$.
    """

    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.positive("step_size", self.step_size)

    def first(self):
        return self.step_size

    def take(self, fun, y, value, gradient, prox, step):
        return _forward_backward(prox, y, gradient, step), step


class Backtracking(AbstractStepSize):
    """Shrink the step until the quadratic upper bound holds,

    $$f(x) \\le f(y) + \\langle \\nabla f(y), x - y\\rangle + \\tfrac{1}{2t} \\|x - y\\|^2 .$$

    Each search starts from `growth` times the last step size. The bound is tested up to the
    rounding of $f$; where the quadratic term is below it, near a solution or on top of a large
    constant, the test would let any step pass, and so the step does not grow.

    **Arguments:**

    - `initial`: first step size tried.
    - `shrink`: factor in $(0, 1)$.
    - `growth`: factor $\\ge 1$.
    - `max_shrinks`: give up searching after so many factors.
    """

    initial: Scalar = scalar_field(1.0)
    shrink: Scalar = scalar_field(0.5)
    growth: Scalar = scalar_field(1.1)
    max_shrinks: int = 60

    def __check_init__(self):
        checks.positive("initial", self.initial)
        checks.interval("shrink", self.shrink, 0, 1, open_low=True, open_high=True)
        checks.interval("growth", self.growth, 1, float("inf"))
        checks.count("max_shrinks", self.max_shrinks)

    def first(self):
        return self.initial

    def take(self, fun, y, value, gradient, prox, step):
        rounding = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        last = jax.lax.stop_gradient(step)

        # The verdict is carried: a batched loop asks its condition twice, and a test that rounding
        # decides one way here and the other way there would never end.
        def try_once(carry):
            _, _, step, shrinks, _ = carry
            x = propose(step)
            move = jax.tree.map(jnp.subtract, x, y)
            slope, square = tree.vdot(gradient, move), tree.vdot(move, move)
            quadratic = 0.5 * square / step
            excess = fun(x) - (value + slope + quadratic)
            passed = (excess <= rounding) & ((step <= last) | (quadratic >= rounding))
            shorter = step * self.shrink.astype(step.dtype)
            shorter = jnp.where(step > last, jnp.maximum(shorter, last), shorter)
            return x, step, shorter, shrinks + 1, ~passed & (shrinks < self.max_shrinks)

        def propose(step):
            new = jax.lax.stop_gradient(_forward_backward(prox, y, gradient, step))
            return tree.cast_like(new, y)

        first = last * self.growth.astype(last.dtype)
        start = (
            jax.lax.stop_gradient(y),
            first,
            first,
            jnp.asarray(0, jnp.int32),
            jnp.asarray(True),
        )
        x, step, *_ = loops.while_loop(lambda carry: carry[-1], try_once, start)
        return _found(x, hoist(prox), y, gradient, step), step
