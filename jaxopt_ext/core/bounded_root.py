"""Systems of equations with bounds on the unknowns."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from . import checks, tree
from .bounds import Bounds
from .problem import AbstractProblem
from .restricted import Restricted


class BoundedRootFinding(AbstractProblem):
    """Find $F(x) = 0$ with $l \\le x \\le u$.

    The residual is $x - \\Pi_{[l, u]}(x - J(x)^\\top F(x))$, zero at each solution and, as with any
    method that goes down $\\tfrac12 \\|F\\|^2$, at points within the bounds where that is
    stationary and positive. Those are no solutions: whoever solves the problem looks at `fun` too.

    **Derivatives.** At a root with a regular Jacobian that touches no bound, that of the root. A
    root at a bound has one as long as it stays within: $J^\\top F = 0$ there is a multiplier of
    zero, and rounding decides whether the bound counts as held or as free.

    **Arguments:**

    - `fun`: $F$, from a pytree to one of the same shapes.
    - `lower`, `upper`: $l$ and $u$, numbers, arrays or pytrees like `x`; infinite for no bound.

    **Raises:** `ValueError` if bounds cross, are NaN, or do not fit `x`, or if `fun` returns other
    shapes.
    """

    fun: Callable[[PyTree[Array]], PyTree[Array]]
    bounds: Bounds

    def __init__(self, fun, lower=-jnp.inf, upper=jnp.inf):
        self.fun, self.bounds = fun, Bounds(lower, upper)

    @property
    def lower(self) -> PyTree:
        """$l$, as given."""
        return self.bounds.lower

    @property
    def upper(self) -> PyTree:
        """$u$, as given."""
        return self.bounds.upper

    def objective(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$\\tfrac12 \\|F(x)\\|^2$, zero exactly at roots."""
        value = self.fun(x)
        return 0.5 * tree.vdot(value, value)

    def residual(self, x):
        moved = jax.tree.map(jnp.subtract, x, tree.gradient(self.objective, x))
        return jax.tree.map(jnp.subtract, x, self.bounds.project(moved))

    def check(self, x):
        self.bounds.check(x)
        checks.shaped_like("fun(x)", jax.eval_shape(self.fun, x), x)

    def restrict(self, rest):
        return BoundedRootFinding(Restricted(self.fun, rest, maps=True), self.lower, self.upper)
