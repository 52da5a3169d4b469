"""Norms and norm balls. A pytree counts as one vector."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ..core import checks, loops, tree
from .coordinatewise import Parameter, parameter_field
from .function import (
    AbstractFunction,
    AbstractSet,
    align,
    amount_of,
    largest,
    norm_and_direction,
    number,
    over,
    part,
    polar,
    pull,
    require_array,
    require_real,
    root,
    spread,
    unit_of,
)
from .spectral import soft_threshold_derivative, soft_threshold_singular_values


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
        norm, _ = norm_and_direction(x)
        return number("weight", self.weight, norm.dtype) * norm

    def prox(self, x, step=1.0):
        norm, direction = norm_and_direction(x)
        amount = amount_of(step, self.weight, norm.dtype)

        def leaf(a, d):
            dtype = a.real.dtype
            return pull(a, norm.astype(dtype), d, amount.astype(dtype))

        return jax.tree.map(leaf, x, direction)


class GroupLasso(AbstractFunction):
    """$\\sum_g w_g \\|x_g\\|_2$.

    Groups are the entries of the leading axis (rows of a matrix), or given by `labels`.

    **Arguments:**

    - `weight`: $w \\ge 0$, a number or one for each group.
    - `labels`: group of each entry of the leading axis, integers from 0; `None` makes each entry a
      group.
    - `num_groups`: number of labels; needed with `labels`.

    **Raises:** `ValueError` if a label is not below `num_groups`, or if `x` does not have one entry
    for each label or weight.
    """

    weight: Any = parameter_field(default=1.0)
    labels: Int[Array, " n"] | None = eqx.field(
        converter=lambda labels: None if labels is None else jnp.asarray(labels), default=None
    )
    num_groups: int | None = eqx.field(static=True, default=None)
    convex = True

    def __check_init__(self):
        checks.nonnegative("weight", self.weight)
        if (self.labels is None) != (self.num_groups is None):
            raise ValueError("labels and num_groups come together")
        if self.labels is None or self.num_groups is None:
            return
        checks.count("num_groups", self.num_groups)
        if not jnp.issubdtype(self.labels.dtype, jnp.integer):
            raise TypeError(f"labels must be integers, got {self.labels.dtype}")
        checks.interval("labels", self.labels, 0, self.num_groups, open_high=True)

    def _polar(self, x):
        """Norm of each group, and each entry over the norm of its group, safe at all scales."""
        if not (hasattr(x, "shape") and x.ndim):
            raise ValueError("GroupLasso takes one array with a leading axis")
        axes = tuple(range(1, x.ndim))
        ids = jnp.arange(x.shape[0]) if self.labels is None else self.labels
        groups = x.shape[0] if self.labels is None else self.num_groups
        if ids.shape != x.shape[:1]:
            raise ValueError(f"{ids.size} labels do not fit x of shape {x.shape}")

        def entries(value):  # of its group, for each entry
            value = value if self.labels is None else value[ids]
            return value.reshape(-1, *(1 for _ in axes))

        def total(value, combine):
            return value if self.labels is None else combine(value, ids, groups)

        tops = jnp.max(largest(x), axis=axes, initial=0)
        unit = unit_of(jnp.maximum(total(tops, jax.ops.segment_max), 0))
        scaled = x / entries(unit)
        squares = jnp.sum(scaled.real**2 + scaled.imag**2, axis=axes)
        norms = root(total(squares, jax.ops.segment_sum))
        return unit * norms, over(scaled, entries(norms)), entries

    def __call__(self, x):
        norms, _, _ = self._polar(x)
        return jnp.sum(spread(self.weight, norms) * norms)

    def prox(self, x, step=1.0):
        checks.positive("step", step)
        norms, direction, entries = self._polar(x)
        amounts = jnp.broadcast_to(spread(step * self.weight, norms), norms.shape)
        return pull(x, entries(norms), direction, entries(amounts))

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
        return number("weight", self.weight, total.dtype) * total

    def prox(self, x, step=1.0):
        return soft_threshold_singular_values(x, amount_of(step, self.weight, tree.real_dtype(x)))


class AbstractBall(AbstractSet):
    """A set with a radius $> 0$."""

    radius: eqx.AbstractVar[Any]

    def __check_init__(self):
        checks.positive("radius", self.radius)


def _centred_threshold(v: Float[Array, " n"], radius: Any):
    """Entries less the largest, the threshold there, and which entries are above it."""
    radius = number("radius", radius, v.dtype)
    centred = v - jax.lax.stop_gradient(jnp.max(v))
    w, r = jax.lax.stop_gradient((centred, radius))

    def update(tau):
        inside = w > tau
        total = jnp.sum(jnp.where(inside, w, 0))
        return (total - r) / jnp.maximum(jnp.sum(inside), 1)

    # The step never overshoots in exact arithmetic; rounding ends it where it stops rising.
    start = jnp.maximum((jnp.sum(w) - r) / w.size, -r)
    _, tau = loops.while_loop(
        lambda pair: pair[1] > pair[0], lambda pair: (pair[1], update(pair[1])), (-jnp.inf, start)
    )
    inside = ~(w <= tau) | (w == 0)  # all of them for NaN, which must not vanish
    return centred, (jnp.sum(jnp.where(inside, centred, 0)) - radius) / jnp.sum(inside), inside


def simplex_threshold(v: Float[Array, " n"], radius: Any) -> Float[Array, ""]:
    """The $\\tau$ with $\\sum_i \\max(v_i - \\tau, 0) = r$.

    Newton's method on this convex piecewise linear equation, which is Michelot's algorithm, needs
    no sorting. Each pass over `v` lowers the product of the equation's value and slope fourfold, so
    that half of $\\log_2 n$ plus the bits of the type bounds their number; ten is usual. On the
    support found, $\\tau$ is an average, and that is what derivatives see. Only differences of
    entries are summed, so that an offset costs no digits.
    """
    _, tau, _ = _centred_threshold(v, radius)
    return tau + jax.lax.stop_gradient(jnp.max(v))


def _project_simplex(v, radius):
    centred, tau, inside = _centred_threshold(v, radius)
    # Entries at the threshold stay at zero, in the derivative too: it projects on a face.
    return jnp.where(inside & ~(centred < tau), centred - tau, 0)


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
        require_real("Simplex", x)
        flat, unravel = ravel_pytree(x)
        if flat.size == 0:
            raise ValueError("there is no simplex of vectors without entries")
        return unravel(_project_simplex(flat, self.radius))

    def linear_minimizer(self, g):
        require_real("Simplex", g)
        flat, unravel = ravel_pytree(g)
        radius = number("radius", self.radius, flat.dtype)
        return unravel(jnp.zeros_like(flat).at[jnp.argmin(flat)].set(radius))


class L1Ball(AbstractBall):
    """$\\{x : \\sum_i |x_i| \\le r\\}$ over a whole pytree.

    **Arguments:**

    - `radius`: $r > 0$.
    """

    radius: Any = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        flat, unravel = ravel_pytree(x)
        if flat.size == 0:
            return x
        size, phase = polar(flat)
        inside = jnp.sum(size) <= self.radius
        return unravel(jnp.where(inside, flat, phase * _project_simplex(size, self.radius)))

    def linear_minimizer(self, g):
        flat, unravel = ravel_pytree(g)
        size, phase = polar(flat)
        j = jnp.argmax(size)
        sign = jnp.where(size[j] == 0, 1, phase[j])
        radius = number("radius", self.radius, size.dtype)
        return unravel(jnp.zeros_like(flat).at[j].set(-radius * sign))


class L2Ball(AbstractBall):
    """$\\{x : \\|x\\|_2 \\le r\\}$ over a whole pytree.

    **Arguments:**

    - `radius`: $r > 0$.
    """

    radius: Any = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        norm, direction = norm_and_direction(x)
        radius = number("radius", self.radius, norm.dtype)
        inside = norm <= radius
        return jax.tree.map(
            lambda a, d: jnp.where(inside, a, radius.astype(a.real.dtype) * d), x, direction
        )

    def linear_minimizer(self, g):
        norm, direction = norm_and_direction(g)
        radius = number("radius", self.radius, norm.dtype)
        return jax.tree.map(lambda d: -radius.astype(d.real.dtype) * d, direction)


class LinfBall(AbstractBall):
    """$\\{x : |x_i| \\le r\\}$; complex entries keep their phase.

    **Arguments:**

    - `radius`: $r > 0$, a number or broadcast against `x`.
    """

    radius: Parameter = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        def leaf(a, radius):
            size, phase = polar(a)
            return jnp.where(size <= radius, a, radius * phase)

        return jax.tree.map(leaf, x, spread(self.radius, x))

    def linear_minimizer(self, g):
        def leaf(a, radius):
            size, phase = polar(a)
            return -radius * jnp.where(size == 0, 1, phase)

        return jax.tree.map(leaf, g, spread(self.radius, g))

    def aligned(self, x):
        return LinfBall(align(self.radius, x))

    def block(self, index):
        return LinfBall(part(self.radius, index))


@jax.custom_jvp
def _project_singular_values(x, radius):
    """Singular values that are projected on a simplex, from differences that keep their digits."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return (u * _project_simplex(s, radius)) @ vh


@_project_singular_values.defjvp
def _project_singular_values_jvp(primals, tangents):
    x, radius = primals
    x_dot, radius_dot = tangents
    s = jnp.linalg.svd(jax.lax.stop_gradient(x), compute_uv=False)
    kept = _project_simplex(s, jax.lax.stop_gradient(radius)) > 0
    count = jnp.maximum(jnp.sum(kept), 1)
    # The threshold is a mean over the singular values above it, which <K, x> is the sum of.
    level = (jnp.sum(kept * s) - jax.lax.stop_gradient(radius)) / count
    K = soft_threshold_derivative(x, jnp.zeros_like(x), level, -jnp.ones_like(level))
    inner = lambda y: jnp.real(jnp.vdot(K, y))
    t, t_dot = (inner(x) - radius) / count, (inner(x_dot) - radius_dot) / count
    slope = soft_threshold_derivative(x, x_dot, t, t_dot)
    return _project_singular_values(x, radius), slope


class NuclearBall(AbstractBall):
    """$\\{X : \\sum_i \\sigma_i(X) \\le r\\}$ for a matrix.

    **Arguments:**

    - `radius`: $r > 0$.
    """

    radius: Any = parameter_field(default=1.0)
    convex = True

    def project(self, x):
        require_array("NuclearBall", x, "a matrix", 2)
        if x.size == 0:
            return x
        values = jnp.linalg.svd(x, compute_uv=False)
        inside = jnp.sum(values) <= self.radius
        outside = _project_singular_values(x, number("radius", self.radius, values.dtype))
        return jnp.where(inside, x, outside)

    def linear_minimizer(self, g):
        require_array("NuclearBall", g, "a matrix", 2)
        u, _, vh = jnp.linalg.svd(g, full_matrices=False)
        return -number("radius", self.radius, tree.real_dtype(g)) * jnp.outer(u[:, 0], vh[0])
