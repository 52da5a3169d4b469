"""Several objectives at once."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from . import tree
from .gram import combine, gram, min_norm_weights
from .problem import AbstractProblem
from .restricted import Restricted


class MultiObjective(AbstractProblem):
    """Minimize several differentiable functions in the sense of Pareto:
    $\\min_x (f_1(x), \\ldots, f_m(x))$.

    The residual is the point of least norm in the convex hull of the gradients,
    $J(x)^\\top w$ with $w = \\arg\\min_{w \\in \\Delta} \\|J(x)^\\top w\\|$. It is zero exactly
    where no direction reduces all objectives at first order, at the Pareto-stationary points, which
    are many: which one a solver finds depends on the solver and on its start.

    The implicit derivative is that at fixed weights: of the point that is stationary for
    $\\sum_i w_i f_i$ with the $w$ of the solution. Where all objectives have one minimizer in
    common it is the derivative of that; with one objective the problem is `Smooth`.

    **Arguments:**

    - `objectives`: `x -> f(x)`, real, of shape `(m,)`, $m \\ge 1$.
    """

    objectives: Callable[[PyTree[Array]], Float[Array, " m"]]

    def __check_init__(self):
        if not callable(self.objectives):
            raise TypeError(f"objectives must be a function x -> (m,), got {self.objectives!r}")

    def count(self, x: PyTree[Array]) -> int:
        """$m$, the number of objectives."""
        return jax.eval_shape(self.objectives, x).shape[0]

    def jacobian(
        self, x: PyTree[Array], weights: Float[Array, "k m"] | None = None
    ) -> PyTree[Array]:
        """The gradients of the objectives, a pytree like `x` with a leading axis of $m$.

        **Arguments:**

        - `x`: where.
        - `weights`: gradients of these $k$ weighted sums instead.
        """
        if weights is None:
            weights = jnp.eye(self.count(x), dtype=tree.real_dtype(x))
        row = lambda w: tree.gradient(lambda x: jnp.vdot(w, self.objectives(x)), x)
        return jax.vmap(row)(weights)

    def restrict(self, rest):
        return dataclasses.replace(self, objectives=Restricted(self.objectives, rest))

    def residual(self, x):
        rows = self.jacobian(x)
        weights = min_norm_weights(gram(jax.lax.stop_gradient(rows)))
        return combine(rows, weights)

    def check(self, x):
        out = jax.eval_shape(self.objectives, x)
        if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) != 1 or out.shape[0] < 1:
            raise ValueError(f"objectives must return an array of shape (m,), m >= 1, got {out}")
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(f"objectives must be real floating-point numbers, got {out.dtype}")

    def tags(self):
        return frozenset({lx.symmetric_tag})
