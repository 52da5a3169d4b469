"""Linear systems that few entries decide: those of a linear model's loss beside a prox that works
entry by entry."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from . import loops, tree
from .dense import solve_checked
from .objectives import AbstractLinearLoss


class ActiveSystem(eqx.Module):
    """The Jacobian $J = I - D + D X^\\top C X$ of a residual, with diagonal $D$ and $C$.

    Where most of $D$ is zero, at the kinks of an l1 norm say, the few other entries $A$ are found
    by a factorization of

    $$S = I - D_A + D_A^{1/2} X_A^\\top C X_A D_A^{1/2},$$

    and the rest by one product:

    - of $Jv = b$: $v_N = b_N$ and $v_A = D_A^{1/2} S^{-1} D_A^{-1/2} (b_A - D_A X_A^\\top C X_N
      b_N)$,
    - of $J^\\top u = b$: $u_A = D_A^{-1/2} S^{-1} D_A^{1/2} b_A$ and $u_N = b_N - X_N^\\top C X_A
      D_A u_A$.

    **Arguments:**

    - `matrix`: $X$, shape `(n, d)`.
    - `curvatures`: the diagonal of $C$.
    - `slopes`: the diagonal of $D$.

    **Reference:** Bertrand, Klopfenstein, Massias, Blondel, Vaiter, Gramfort, Salmon, Implicit
    Differentiation for Fast Hyperparameter Selection in Non-Smooth Convex Learning, 2022,
    arXiv:2105.01637.
    """

    matrix: Float[Array, "n d"]
    curvatures: Float[Array, " n"]
    slopes: Float[Array, " d"]

    def solve(
        self, b: Float[Array, " d"], tolerance: Any, limit: int, *, transposed: bool
    ) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """$J^{-1} b$, or $J^{-\\top} b$, and whether it was found.

        It is not where more than `limit` entries are active, or $S$ is singular.
        """
        limit = min(limit, b.size)
        active = self.slopes != 0
        _, index = jax.lax.top_k(active.astype(b.dtype), limit)
        few = jnp.sum(active) <= limit
        make = lambda operand: self._solve(operand[0], operand[1], tolerance, transposed)
        otherwise = jnp.zeros_like(b), jnp.zeros_like(few)
        return loops.if_due(few, make, (b, index), otherwise)

    def _solve(self, b: Float[Array, " d"], index: Int[Array, " k"], tolerance, transposed):
        slopes = self.slopes[index]
        active = slopes != 0  # else it fills the list up
        roots = jnp.sqrt(jnp.where(active, slopes, 0))
        inverses = jnp.where(active, 1 / jnp.where(active, roots, 1), 0)
        columns = self.matrix[:, index]
        weighted = self.curvatures[:, None] * columns
        gram = jnp.matmul(columns.T, weighted, precision="highest")
        system = jnp.diag(jnp.where(active, 1 - slopes, 1)) + roots[:, None] * gram * roots
        if transposed:
            right = roots * b[index]
        else:
            inactive = jnp.where(self.slopes != 0, 0, b)
            right = inverses * b[index] - roots * ((self.matrix @ inactive) @ weighted)
        small, solved = solve_checked(system, right, tolerance)
        if transposed:
            passive = b - (weighted @ (roots * small)) @ self.matrix
            small = inverses * small
        else:
            passive = b
            small = roots * small
        there = jnp.where(active, index, b.size)
        return passive.at[there].set(small, mode="drop"), solved


def active_system(smooth: Any, prox: Any, x: Any) -> ActiveSystem | None:
    """That of $x - \\mathrm{prox}_g(x - \\nabla f(x))$, without derivatives; `None` if it has
    another form, or data are spread over a mesh with explicit axes.

    **Arguments:**

    - `smooth`: $f$.
    - `prox`: $g$, a function or set of `jaxopt_ext.prox`.
    - `x`: where.
    """
    slopes_of = getattr(prox, "prox_slopes", None)
    if not isinstance(smooth, AbstractLinearLoss) or slopes_of is None:
        return None
    matrix, targets = smooth.matrix, smooth.targets
    if not (eqx.is_array(x) and eqx.is_array(matrix) and x.ndim == 1 and matrix.ndim == 2):
        return None
    if x.dtype != matrix.dtype or jnp.iscomplexobj(x) or jnp.ndim(targets) != 1:
        return None
    if tree.is_spread(x) or tree.is_spread(matrix):
        return None
    dynamic, static = eqx.partition((smooth, prox, x), eqx.is_inexact_array)
    smooth, prox, x = eqx.combine(jax.lax.stop_gradient(dynamic), static)
    slopes = prox.prox_slopes(x - tree.gradient(smooth, x))
    if slopes is None:
        return None
    z = smooth.matrix @ x
    slope = lambda z: tree.gradient(smooth.of_predictions, z)
    _, curvatures = jax.jvp(slope, (z,), (jnp.ones_like(z),))
    return ActiveSystem(smooth.matrix, curvatures.astype(x.dtype), slopes.astype(x.dtype))
