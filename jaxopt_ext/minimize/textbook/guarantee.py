"""Proved rates as numbers: what a theorem says of a method after so many steps."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import AbstractSolver
from ..frank_wolfe import FrankWolfe
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

    def need(self, *names: str) -> tuple:
        """The constants of these names.

        **Raises:** `ValueError` if one was not given.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(f"this theorem needs the constants {missing}")
        return tuple(getattr(self, name) for name in names)


def _projected_gradient(steps, constants):
    beta, radius, spread = constants.need("smoothness", "radius", "spread")
    return (3 * beta * radius**2 + spread) / steps


def _conditional_gradient(steps, constants):
    beta, diameter = constants.need("smoothness", "diameter")
    return 2 * beta * diameter**2 / (steps + 1)


def _accelerated(steps, constants):
    beta, radius = constants.need("smoothness", "radius")
    return 2 * beta * radius**2 / (steps + 1) ** 2


# Methods of other files, whose classes know nothing of this one.
_ELSEWHERE: dict[type[AbstractSolver], Callable] = {
    ProximalGradient: _projected_gradient,
    FrankWolfe: _conditional_gradient,
    FISTA: _accelerated,
}


def guarantee(
    method: AbstractSolver, steps: int | Float[Array, "..."], constants: Constants
) -> Float[Array, "..."]:
    """The bound that the method's theorem puts on $f(x) - f^*$ after so many steps.

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
    return _ELSEWHERE[type(method)](steps, constants)
