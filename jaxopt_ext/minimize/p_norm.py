"""The mirror map of a p-norm."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core import Constrained, Scalar, checks, scalar_field
from .mirror_descent import AbstractMirrorMap


class PNorm(AbstractMirrorMap):
    """$\\Phi(x) = \\frac{1}{2 (p - 1)} \\|x\\|_p^2$, strongly convex in the p-norm with constant 1.

    A step goes there and back, $u = \\nabla\\Phi^*(\\nabla\\Phi(x) - t g)$, with

    $$\\nabla\\Phi(x)_i = \\frac{|x_i|^{p-1} \\mathrm{sign}(x_i)}{(p - 1) \\|x\\|_p^{p-2}}$$

    and $\\nabla\\Phi^*$ of the same form for $q = p / (p - 1)$. It is for unknowns that are free.
    With $p = 1 + 1 / \\log d$ it is the geometry of the 1-norm, where solutions are sparse.

    **Arguments:**

    - `p`: in (1, 2]; 2 is the Euclidean step.

    **Raises:** `ValueError` for another p; `TypeError` on a `Constrained` problem.

    **Reference:** Ben-Tal, Margalit, Nemirovski, The Ordered Subsets Mirror Descent Optimization
    Method with Applications to Tomography, 2001.
    """

    p: Scalar = scalar_field(1.5)

    def __check_init__(self):
        checks.interval("p", self.p, 1, 2, open_low=True)

    def _dual(self, x):
        """$\\nabla\\Phi(x)$ of a flat vector."""
        return _half_square(x, self.p) / (self.p - 1)

    def step(self, problem, x, gradient, step_size):
        if isinstance(problem, Constrained):
            raise TypeError("PNorm has steps for free unknowns, not on a Constrained problem")
        flat, unravel = ravel_pytree(x)
        slope, _ = ravel_pytree(gradient)
        moved = self._dual(flat) - step_size * slope
        q = self.p / (self.p - 1)
        # The conjugate of the scaled half square is that of the other norm, scaled inversely.
        return unravel(_half_square((self.p - 1) * moved, q).astype(flat.dtype))

    def divergence(self, x, y):
        x, y = ravel_pytree(x)[0], ravel_pytree(y)[0]
        value = lambda v: 0.5 * jnp.square(_norm(v, self.p)[1]) / (self.p - 1)
        return value(x) - value(y) - jnp.vdot(self._dual(y), x - y)


def _norm(x, p):
    """The largest magnitude, by which a vector is divided first, and the p-norm."""
    top = jnp.max(jnp.abs(x), initial=0)
    scaled = jnp.abs(x) / jnp.where(top > 0, top, 1)
    return top, top * jnp.sum(scaled**p) ** (1 / p)


def _half_square(x, p):
    """The gradient of half of the squared p-norm; zero at zero."""
    _, norm = _norm(x, p)
    unit = x / jnp.where(norm > 0, norm, 1)
    return norm * jnp.sign(unit) * jnp.abs(unit) ** (p - 1)
