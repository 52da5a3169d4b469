"""Line searches as gradient transformations."""

from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ..core import checks, loops, tree


class WolfeState(NamedTuple):
    """The last step size of a line search, and the first one to try in the next."""

    step_size: Float[Array, ""]
    guess: Float[Array, ""]


class _Bracket(NamedTuple):
    step: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    trials: Int[Array, ""]
    done: Bool[Array, ""]
    secant: Float[Array, ""]


def wolfe_line_search(
    decrease: float = 1e-4, curvature: float = 0.9, max_trials: int = 30
) -> optax.GradientTransformationExtraArgs:
    """A line search by bisection for the weak Wolfe conditions along a direction $d$,

    $$f(x + t d) \\le f(x) + c_1 t \\langle\\nabla f(x), d\\rangle, \\qquad
      \\langle\\nabla f(x + t d), d\\rangle \\ge c_2 \\langle\\nabla f(x), d\\rangle.$$

    A step that breaks the first is too long, one that breaks the second too short; the next is
    twice as long, or halfway between. It starts from the step at which the secant of the last two
    slopes vanishes; for steepest descent that is the step of Barzilai and Borwein, now too long and
    now too short for the last direction, which ends the zigzag of exact searches. Where $f$ changes
    by less than its rounding, the first condition is tested on the slopes instead, as Hager and
    Zhang do. It traces inside of `shard_map` with its check on, which the line searches of `optax`
    do not, and takes their place in `optax.lbfgs(linesearch=...)` too.

    **Arguments:**

    - `decrease`: $c_1 \\in (0, 1/2)$.
    - `curvature`: $c_2 \\in (c_1, 1)$; near 1 for steepest descent, whose good steps may be short.
    - `max_trials`: evaluations of $f$ and its gradient in one search. Behind the last, the longest
      step known to satisfy the first condition is taken.

    **Returns:** an `optax` transformation whose `update` takes `value`, `grad` and `value_fn`.

    **Reference:** Lewis, Overton, Nonsmooth Optimization via Quasi-Newton Methods, 2013. Hager,
    Zhang, A New Conjugate Gradient Method with Guaranteed Descent, 2005. Barzilai, Borwein,
    Two-Point Step Size Gradient Methods, 1988.
    """
    checks.interval("decrease", decrease, 0, 0.5, open_low=True, open_high=True)
    checks.interval("curvature", curvature, decrease, 1, open_low=True, open_high=True)
    checks.count("max_trials", max_trials)

    def init(params):
        one = jnp.asarray(1.0, tree.real_dtype(params))
        return WolfeState(one, one)

    def update(updates, state, params=None, *, value, grad, value_fn, **extra):
        del extra
        slope = tree.vdot(grad, updates)
        rounding = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)

        def look(step):
            there = tree.axpy(params, step, updates)
            new, gradient = tree.value_and_gradient(value_fn, there)
            new_slope = tree.vdot(gradient, updates)
            armijo = new <= value + decrease * step * slope
            flat = jnp.abs(new - value) <= rounding
            level = (new_slope <= (2 * decrease - 1) * slope) & flat
            bends = new_slope > slope
            secant = step * slope / jnp.where(bends, slope - new_slope, 1)
            secant = jnp.where(bends, secant, 2 * step)
            return (armijo | level) & jnp.isfinite(new), new_slope >= curvature * slope, secant

        def shorter_or_longer(bracket):
            short_enough, long_enough, secant = look(bracket.step)
            low = jnp.where(short_enough, bracket.step, bracket.low)
            high = jnp.where(short_enough, bracket.high, bracket.step)
            done = short_enough & long_enough
            middle = jnp.where(jnp.isinf(high), 2 * bracket.step, 0.5 * (low + high))
            return _Bracket(
                jnp.where(done, bracket.step, middle), low, high, bracket.trials + 1, done, secant
            )

        def unfinished(bracket):
            return ~bracket.done & (bracket.trials < max_trials)

        zero = jnp.zeros_like(state.step_size)
        usable = (state.guess > 0) & jnp.isfinite(state.guess)
        first = jnp.where(usable, state.guess, 1)
        nothing = jnp.asarray(0, jnp.int32)
        start = _Bracket(first, zero, zero + jnp.inf, nothing, slope >= 0, state.guess)
        last = loops.while_loop(unfinished, shorter_or_longer, start)
        step = jnp.where(last.trials == 0, 0, jnp.where(last.done, last.step, last.low))
        return tree.scale(updates, step), WolfeState(step, last.secant)

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
