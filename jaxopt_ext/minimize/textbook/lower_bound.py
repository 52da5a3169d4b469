"""Functions on which first-order methods can do no better than their rates."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import Scalar, checks


class HardestNonsmooth(eqx.Module):
    """$f(x) = \\max_{i \\le t} x_i + \\frac\\alpha2 |x|^2$.

    A method whose steps are combinations of subgradients, and which is told the first of the
    largest entries, sees one new coordinate a step: from zero it has $f \\ge 0$ for $t$ steps,
    while the least value is $-1 / (2 \\alpha t)$, at $x_i = -1 / (\\alpha t)$. On the ball of
    radius $R$ it is Lipschitz with $1 + \\alpha R$.

    **Arguments:**

    - `pieces`: $t$, at most the number of unknowns.
    - `strong_convexity`: $\\alpha$.

    **Raises:** `ValueError` for bad numbers, or fewer unknowns than pieces.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 3.5. Nemirovski, Yudin, Problem Complexity and Method Efficiency in Optimization, 1983.
    """

    pieces: int = eqx.field(static=True)
    strong_convexity: Scalar = eqx.field(converter=checks.scalar, default=1.0)

    def __check_init__(self):
        checks.count("pieces", self.pieces)
        checks.positive("strong_convexity", self.strong_convexity)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        if x.ndim != 1 or x.shape[0] < self.pieces:
            raise ValueError(f"x must be a vector of at least {self.pieces}, got shape {x.shape}")
        # By the index: the derivative of a maximum would share between ties.
        top = x[jnp.argmax(x[: self.pieces])]
        return top + 0.5 * self.strong_convexity.astype(x.dtype) * jnp.vdot(x, x)

    def minimum(self) -> Float[Array, ""]:
        """The least value."""
        return -1 / (2 * self.strong_convexity * self.pieces)


class HardestQuadratic(eqx.Module):
    """$f(x) = \\frac{\\beta - \\alpha}{8} (x^\\top A_k x - 2 x_1) + \\frac\\alpha2 |x|^2$ with the
    tridiagonal $A_k$ that has 2 on the diagonal and -1 beside it.

    A gradient has one more entry that is not zero than the points before. So with $\\alpha = 0$,
    $k = 2 t + 1$ and a start at zero, $f - f^* \\ge \\frac{3 \\beta}{32} |x^*|^2 / (t + 1)^2$
    after $t$ steps of a first-order method.

    **Arguments:**

    - `unknowns`: $k$.
    - `smoothness`: $\\beta$.
    - `strong_convexity`: $\\alpha \\ge 0$.

    **Raises:** `ValueError` for bad numbers, or a point of another shape.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 3.5. Nesterov, Introductory Lectures on Convex Optimization, 2004.
    """

    unknowns: int = eqx.field(static=True)
    smoothness: Scalar = eqx.field(converter=checks.scalar, default=1.0)
    strong_convexity: Scalar = eqx.field(converter=checks.scalar, default=0.0)

    def __check_init__(self):
        checks.count("unknowns", self.unknowns)
        checks.positive("smoothness", self.smoothness)
        checks.nonnegative("strong_convexity", self.strong_convexity)

    def __call__(self, x: Float[Array, " k"]) -> Float[Array, ""]:
        if x.shape != (self.unknowns,):
            raise ValueError(f"x must have shape ({self.unknowns},), got {x.shape}")
        alpha, beta = self.strong_convexity.astype(x.dtype), self.smoothness.astype(x.dtype)
        square = x[0] ** 2 + jnp.sum(jnp.diff(x) ** 2) + x[-1] ** 2
        return (beta - alpha) / 8 * (square - 2 * x[0]) + alpha / 2 * jnp.vdot(x, x)

    def solution(self) -> Float[Array, " k"]:
        """The minimizer."""
        k, scale = self.unknowns, (self.smoothness - self.strong_convexity) / 4
        A = 2 * jnp.eye(k) - jnp.eye(k, k=1) - jnp.eye(k, k=-1)
        matrix = scale * A + self.strong_convexity * jnp.eye(k)
        return jnp.linalg.solve(matrix, scale * jnp.eye(k)[0])
