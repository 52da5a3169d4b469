"""Proved rates as numbers: what a theorem says of a method after so many steps."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import AbstractSolver
from ..block_coordinate import BlockCoordinateDescent, Random
from ..frank_wolfe import FrankWolfe
from ..gradient_descent import GradientDescent
from ..interior_point import InteriorPoint, ShortStep
from ..mirror_descent import MirrorDescent
from ..proximal_gradient import FISTA, ProximalGradient


class Constants(eqx.Module):
    """What theorems are stated in. A method asks for those that its own theorem needs.

    **Arguments:**

    - `radius`: $R$, a bound on the distance from the start to a solution, or $R^2$ on the range of
      the mirror map over the set.
    - `diameter`: $D$ of the set.
    - `inner_radius`: $r$ of a ball inside of the set.
    - `spread`: $B$, the largest less the smallest value on the set.
    - `lipschitz`: $L$ of the function.
    - `smoothness`: $\\beta$ of its gradient.
    - `strong_convexity`: $\\alpha$ of the function.
    - `mirror_convexity`: $\\rho$ of the mirror map.
    - `second_moment`: $B_g$, the square root of a bound on $\\mathbb E \\|g\\|_*^2$.
    - `noise`: $\\sigma$, the square root of a bound on the variance of a stochastic gradient.
    - `dimension`: $n$.
    - `coordinate_smoothness`: $\\beta_i$ of each partial derivative in its own coordinate, shape
      `(n,)`.
    - `coupling`: $\\beta_{12}$ of a saddle, how each side's gradient changes with the other side.
    - `barrier`: $\\nu$, the parameter of a barrier.
    - `dual`: the constants of the other side of a saddle.
    """

    radius: float | Float[Array, ""] | None = None
    diameter: float | Float[Array, ""] | None = None
    inner_radius: float | Float[Array, ""] | None = None
    spread: float | Float[Array, ""] | None = None
    lipschitz: float | Float[Array, ""] | None = None
    smoothness: float | Float[Array, ""] | None = None
    strong_convexity: float | Float[Array, ""] | None = None
    mirror_convexity: float | Float[Array, ""] | None = None
    second_moment: float | Float[Array, ""] | None = None
    noise: float | Float[Array, ""] | None = None
    dimension: int | None = None
    coordinate_smoothness: Float[Array, " n"] | None = None
    coupling: float | Float[Array, ""] | None = None
    barrier: float | Float[Array, ""] | None = None
    dual: "Constants | None" = None

    def need(self, *names: str) -> tuple:
        """The constants of these names.

        **Raises:** `ValueError` if one was not given.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(f"this theorem needs the constants {missing}")
        return tuple(getattr(self, name) for name in names)


def _projected_gradient(method, steps, constants):
    """Of steps of $1 / \\beta$."""
    beta, radius, spread = constants.need("smoothness", "radius", "spread")
    return (3 * beta * radius**2 + spread) / steps


def _conditional_gradient(method, steps, constants):
    beta, diameter = constants.need("smoothness", "diameter")
    return 2 * beta * diameter**2 / (steps + 1)


def _accelerated(method, steps, constants):
    beta, radius = constants.need("smoothness", "radius")
    return 2 * beta * radius**2 / (steps + 1) ** 2


def _gradient_descent(method, steps, constants):
    """Of steps of $2 / (\\alpha + \\beta)$."""
    beta, alpha, radius = constants.need("smoothness", "strong_convexity", "radius")
    return beta / 2 * radius**2 * jnp.exp(-4 * steps / (beta / alpha + 1))


def _mirror_descent(method, steps, constants):
    """Of steps that halve from the first until they pass, which $\\rho / \\beta$ does."""
    beta, radius, rho = constants.need("smoothness", "radius", "mirror_convexity")
    least = jnp.minimum(method.step_size, rho / (2 * beta))
    return radius**2 / (least * steps)


def _coordinate_descent(method, steps, constants):
    """Of the mean, after sweeps of $n$ draws: $(1 - \\alpha / \\sum_i \\beta_i^\\gamma)^{n s}$
    of the spread, with $\\alpha$ in the norm $\\sum_i \\beta_i^{1 - \\gamma} x_i^2$; without
    it $2 R^2 \\sum_i \\beta_i^\\gamma / (n s)$, with $R$ in that norm."""
    if not isinstance(method.selection, Random):
        raise TypeError("no theorem is known of BlockCoordinateDescent but with Random()")
    (beta,) = constants.need("coordinate_smoothness")
    total, draws = jnp.sum(beta**method.selection.power), beta.shape[0] * steps
    if constants.strong_convexity is None:
        (radius,) = constants.need("radius")
        return 2 * radius**2 * total / draws
    alpha, spread = constants.need("strong_convexity", "spread")
    return spread * (1 - alpha / total) ** draws


def _short_steps(method, steps, constants):
    """Of the complementarity $\\mu$, which is 1 in the beginning; the embedding that is followed
    adds one to the barrier's parameter."""
    if not isinstance(method.path, ShortStep):
        raise TypeError("no theorem is known of InteriorPoint but with the path ShortStep()")
    (barrier,) = constants.need("barrier")
    return (1 + method.path.rate / jnp.sqrt(barrier + 1)) ** -steps


# Methods of other files, whose classes know nothing of this one.
_ELSEWHERE: dict[type[AbstractSolver], Callable] = {
    ProximalGradient: _projected_gradient,
    FrankWolfe: _conditional_gradient,
    FISTA: _accelerated,
    GradientDescent: _gradient_descent,
    MirrorDescent: _mirror_descent,
    BlockCoordinateDescent: _coordinate_descent,
    InteriorPoint: _short_steps,
}


def guarantee(
    method: AbstractSolver, steps: int | Float[Array, "..."], constants: Constants
) -> Float[Array, "..."]:
    """The bound that the method's theorem puts on $f(x) - f^*$ after so many steps.

    Of saddle points it is on the gap, of methods that draw on the mean, of `InteriorPoint` with
    short steps on the complementarity, relative to that of the start. `GradientDescent` is meant
    with steps of $2 / (\\alpha + \\beta)$, `ProximalGradient` and `FISTA` with $1 / \\beta$ or
    less and without a search that goes beyond it, `BlockCoordinateDescent` with a `Random` order
    and in sweeps.

    **Arguments:**

    - `method`: a solver with a theorem.
    - `steps`: how many, one number or several.
    - `constants`: of the problem, see `Constants`.

    **Returns:** the bound, shaped like `steps`.

    **Raises:** `TypeError` if no theorem is known of the method, `ValueError` if the theorem needs
    a constant that was not given.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    """
    steps = jnp.asarray(steps, float)
    own = getattr(method, "guarantee", None)
    if own is not None:
        return own(steps, constants)
    if type(method) not in _ELSEWHERE:
        raise TypeError(f"no theorem is known of {type(method).__name__}")
    return _ELSEWHERE[type(method)](method, steps, constants)
