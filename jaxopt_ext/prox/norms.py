"""Norms and norm balls. A pytree counts as one vector."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ..core import checks, tree
from .coordinatewise import Parameter, parameter_field
from .function import AbstractFunction, AbstractSet, magnitude, part
from .spectral import soft_threshold_singular_values


def _shrink_factor(norm, amount):
    kept = norm > amount
    return jnp.where(kept, 1 - amount / jnp.where(kept, norm, 1), 0)


class L2(AbstractFunction):
    """The Euclidean norm $w \\|x\\|_2$ of a whole pytree.

    **Arguments:**

    - `weight`: $w \\ge 0$.
    """

    weight: Any = parameter_field(default=1.0)
    convex = True

    def __check_init__(self):
        checks.nonnegative("weight", self.weight)

    def __call__(self, x):
        norm = tree.norm(x)
        return self.weight.astype(norm.dtype) * norm

    def prox(self, x, step=1.0):
        norm = tree.norm(x)
        factor = _shrink_factor(norm, jnp.asarray(step * self.weight, norm.dtype))
        return jax.tree.map(lambda a: factor.astype(a.real.dtype) * a, x)


class GroupLasso(AbstractFunction):
    """$\\sum_g w_g \\|x_g\\|_2$.

    Groups are the entries of the leading axis (rows of a matrix), or given by `labels`.

    **Arguments:**

    - `weight`: $w \\ge 0$, a number or one for each group.
    - `labels`: group of each entry of the leading axis, integers from 0; `None` makes each entry a
      group.
    - `num_groups`: number of labels; needed with `labels`.
    """

    weight: Any = parameter_field(default=1.0)
    labels: Int[Array, " n"] | None = None
    num_groups: int | None = None
    convex = True

    def __check_init__(self):
        checks.nonnegative("weight", self.weight)
        if (self.labels is None) != (self.num_groups is None):
            raise ValueError("labels and num_groups come together")

    def _norms(self, x):
        squares = jnp.sum(magnitude(x.reshape(x.shape[0], -1)) ** 2, axis=1)
        if self.labels is not None:
            squares = jax.ops.segment_sum(squares, self.labels, self.num_groups)
        positive = squares > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)

    def __call__(self, x):
        norms = self._norms(x)
        return jnp.sum(self.weight.astype(norms.dtype) * norms)

    def prox(self, x, step=1.0):
        norms = self._norms(x)
        factors = _shrink_factor(norms, jnp.asarray(step * self.weight, norms.dtype))
        if self.labels is not None:
            factors = factors[self.labels]
        return factors.reshape(-1, *([1] * (x.ndim - 1))) * x

    def block(self, index):
        if self.labels is not None:
            raise TypeError("GroupLasso with labels is not separable over the leading axis")
        rows = L2 if jnp.ndim(index) == 0 else GroupLasso
        return rows(part(self.weight, index))


class NuclearNorm(AbstractFunction):
    """$w \\sum_i \\sigma_i(X)$, the sum of singular values of a matrix (batched over leading axes).

    The derivative of its prox is exact also where singular values coincide.

    **Arguments:**

    - `weight`: $w \\ge 0$.
    """

    weight: Any = parameter_field(default=1.0)
    convex = True

    def __check_init__(self):
        checks.nonnegative("weight", self.weight)

    def __call__(self, x):
        total = jnp.sum(jnp.linalg.svd(x, compute_uv=False))
        return self.weight.astype(total.dtype) * total

    def prox(self, x, step=1.0):
        return soft_threshold_singular_values(
            x, jnp.asarray(step * self.weight, tree.real_dtype(x))
        )


class AbstractBall(AbstractSet):
    """A set with a radius $> 0$."""

    radius: eqx.AbstractVar[Any]

    def __check_init__(self):
        checks.positive("radius", self.radius)


def simplex_threshold(v: Float[Array, " n"], radius: Any) -> Float[Array, ""]:
    """The $\\tau$ with $\\sum_i \\max(v_i - \\tau, 0) = r$.

    Newton's method on this convex piecewise linear equation, which is Michelot's algorithm: it
    ends after finitely many passes over `v`, about ten in practice, and needs no sorting. On
    the support found, $\\tau$ is an average, and that is what derivatives see.
    """
    radius = jnp.asarray(radius, v.dtype)
    w, r = jax.lax.stop_gradient((v, radius))

    def update(tau):
        inside = w > tau
        total = jnp.sum(jnp.where(inside, w, 0))
        return (total - r) / jnp.maximum(jnp.sum(inside), 1)

    # The step never overshoots in exact arithmetic; rounding ends it where it stops rising.
    start = jnp.maximum((jnp.sum(w) - r) / w.size, jnp.max(w) - r)
    _, tau = jax.lax.while_loop(
        lambda pair: pair[1] > pair[0], lambda pair: (pair[1], update(pair[1])), (-jnp.inf, start)
    )
    inside = (w > tau) | (w == jnp.max(w))
    return (jnp.sum(jnp.where(inside, v, 0)) - radius) / jnp.sum(inside)


def _project_simplex(v, radius):
    return jnp.maximum(v - simplex_threshold(v, radius), 0)


class Simplex(AbstractBall):
    """$\\{x \\ge 0 : \\sum_i x_i = r\\}$ over a whole pytree.

    **Arguments:**

    - `radius`: $r > 0$.

    **Reference:** Michelot, A Finite Algorithm for Finding the Projection of a Point onto the
    Canonical Simplex of $R^n$, 1986.
    """

    radius: Any = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        flat, unravel = ravel_pytree(x)
        return unravel(_project_simplex(flat, self.radius))

    def linear_minimizer(self, g):
        flat, unravel = ravel_pytree(g)
        corner = jnp.zeros_like(flat).at[jnp.argmin(flat)].set(self.radius.astype(flat.dtype))
        return unravel(corner)


class L1Ball(AbstractBall):
    """$\\{x : \\sum_i |x_i| \\le r\\}$ over a whole pytree.

    **Arguments:**

    - `radius`: $r > 0$.
    """

    radius: Any = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        flat, unravel = ravel_pytree(x)
        size = magnitude(flat)
        inside = jnp.sum(size) <= self.radius
        kept = _project_simplex(size, self.radius)
        factor = jnp.where(size > 0, kept / jnp.where(size > 0, size, 1), 0)
        return unravel(jnp.where(inside, flat, flat * factor))

    def linear_minimizer(self, g):
        flat, unravel = ravel_pytree(g)
        j = jnp.argmax(magnitude(flat))
        sign = flat[j] / jnp.where(flat[j] == 0, 1, magnitude(flat[j]))
        sign = jnp.where(flat[j] == 0, 1, sign)
        return unravel(jnp.zeros_like(flat).at[j].set(-self.radius.astype(flat.dtype) * sign))


class L2Ball(AbstractBall):
    """$\\{x : \\|x\\|_2 \\le r\\}$ over a whole pytree.

    **Arguments:**

    - `radius`: $r > 0$.
    """

    radius: Any = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        norm = tree.norm(x)
        radius = self.radius.astype(norm.dtype)
        factor = jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1), 1)
        return jax.tree.map(lambda a: factor.astype(a.real.dtype) * a, x)

    def linear_minimizer(self, g):
        norm = tree.norm(g)
        factor = -self.radius.astype(norm.dtype) / jnp.where(norm > 0, norm, 1)
        return jax.tree.map(lambda a: factor.astype(a.real.dtype) * a, g)


class LinfBall(AbstractBall):
    """$\\{x : |x_i| \\le r\\}$; complex entries keep their phase.

    **Arguments:**

    - `radius`: $r > 0$, a number or broadcast against `x`.
    """

    radius: Parameter = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        def leaf(a):
            radius = jnp.asarray(self.radius, tree.real_dtype(a))
            if not jnp.iscomplexobj(a):
                return jnp.clip(a, -radius, radius)
            size = magnitude(a)
            return jnp.where(size > radius, a * radius / jnp.where(size > 0, size, 1), a)

        return jax.tree.map(leaf, x)

    def linear_minimizer(self, g):
        def leaf(a):
            size = magnitude(a)
            phase = jnp.where(size > 0, a / jnp.where(size > 0, size, 1), 1)
            return -jnp.asarray(self.radius, tree.real_dtype(a)) * phase

        return jax.tree.map(leaf, g)

    def block(self, index):
        return LinfBall(part(self.radius, index))


class NuclearBall(AbstractBall):
    """$\\{X : \\sum_i \\sigma_i(X) \\le r\\}$ for a matrix.

    **Arguments:**

    - `radius`: $r > 0$.
    """

    radius: Any = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        values = jnp.linalg.svd(x, compute_uv=False)
        threshold = jnp.maximum(simplex_threshold(values, self.radius), 0)
        return soft_threshold_singular_values(x, threshold)

    def linear_minimizer(self, g):
        u, _, vh = jnp.linalg.svd(g, full_matrices=False)
        return -self.radius.astype(tree.real_dtype(g)) * jnp.outer(u[:, 0], vh[0])
