"""Projections in a weighted norm, for methods with a rate per coordinate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .. import prox
from ..core import loops, tree
from ._leafwise import require_params

Projection = Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]]


def weighted_projection(feasible: prox.AbstractSet) -> Projection:
    r"""The projection onto a set in the norm $\|x\|_D^2 = \sum_i D_i |x_i|^2$.

    A method with the rate $1/D_i$ at coordinate i must project in this norm, or its steps along
    the border of the set are wrong. For boxes it is clipping. For the ball it is
    $x_i = D_i y_i / (D_i + \mu)$, the multiplier $\mu \ge 0$ of $\|x\| \le r$ found by bisection.

    **Arguments:**

    - `feasible`: `prox.Box`, `prox.NonNegative`, `prox.LinfBall` or `prox.L2Ball`.

    **Returns:** a function `(y, D) -> x` of pytrees shaped alike, with $D \ge 0$. Where D is zero
    and the ball binds, x is zero.

    **Raises:** `TypeError` for other sets.
    """
    if isinstance(feasible, prox.Box | prox.NonNegative | prox.LinfBall):
        return lambda y, weights: feasible.project(y)
    if isinstance(feasible, prox.L2Ball):
        return lambda y, weights: _project_ball(y, weights, feasible.radius)
    raise TypeError(
        "a weighted projection is known for Box, NonNegative, LinfBall and L2Ball, got "
        f"{type(feasible).__name__}"
    )


def _project_ball(y, weights, radius):
    dtype = tree.real_dtype(y)
    radius = jnp.asarray(radius, dtype)
    pulled = jax.tree.map(lambda a, d: d * a, y, weights)

    def shrunk(multiplier):
        return jax.tree.map(lambda p, d: p / (d + multiplier), pulled, weights)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        outside = tree.norm(shrunk(middle)) > radius
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    # At the multiplier ||D y|| / r the point is inside: each entry is below r D y / ||D y||.
    bounds = jnp.zeros((), dtype), tree.norm(pulled) / radius
    _, multiplier = loops.fori_loop(0, 2 * jnp.finfo(dtype).nmant, halve, bounds)
    return tree.where(tree.norm(y) > radius, shrunk(multiplier), y)


def project_updates(
    inner: optax.GradientTransformation,
    projection: Projection | None,
    weights: Callable[[PyTree], PyTree[Array]],
    name: str,
) -> optax.GradientTransformationExtraArgs:
    """Let the steps of `inner` end in a set: x + u becomes its projection.

    **Arguments:**

    - `inner`: gives updates, ready to be added.
    - `projection`: `(y, D) -> x`; `None` is no constraint.
    - `weights`: D, shaped like the parameters, from the state of `inner`.
    - `name`: of the method, for errors.
    """
    inner = optax.with_extra_args_support(inner)
    if projection is None:
        return inner

    def update(updates, state, params=None, **extra_args):
        require_params(params, f"{name} with a projection")
        updates, state = inner.update(updates, state, params, **extra_args)
        target = jax.tree.map(jnp.add, params, updates)
        target = projection(target, weights(state))
        return jax.tree.map(jnp.subtract, target, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
