"""Flats, half-spaces and cones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core import checks, loops, tree
from ..core.spectral import positive_part
from .coordinatewise import parameter_field
from .function import (
    AbstractSet,
    corrected,
    largest,
    norm_and_direction,
    require_array,
    require_real,
    unit_of,
)


def _check_normal(normal):
    leaves = jax.tree.leaves(normal)
    if not checks.is_traced(leaves):  # on the host, also inside of jit
        checks.positive("the norm of normal", max(np.max(np.abs(n), initial=0) for n in leaves))


def _gap(x, normal, offset):
    """$\\langle a, x\\rangle - b$ and $a$, both over the largest entry of $a$."""
    shapes = [jax.tree.map(jnp.shape, v) for v in (normal, x)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"normal must be shaped like x: got {shapes[0]} for x shaped {shapes[1]}")
    sizes = [jnp.max(largest(jnp.asarray(n)), initial=0) for n in jax.tree.leaves(normal)]
    unit = unit_of(jnp.max(jnp.stack(sizes)))
    normal = jax.tree.map(lambda n: n / unit, normal)
    return tree.vdot(normal, x) - offset / unit, normal


def _move_along(x, normal, gap):
    """Lower the inner product of `x` with `normal` by `gap`, by the shortest way."""
    scale = gap / tree.vdot(normal, normal)
    return jax.tree.map(lambda a, n: a - (scale * n).astype(a.dtype), x, normal)


class Hyperplane(AbstractSet):
    """$\\{x : \\langle a, x\\rangle = b\\}$.

    **Arguments:**

    - `normal`: $a \\ne 0$, shaped like `x`.
    - `offset`: $b$.
    """

    normal: PyTree[Array] = parameter_field()
    offset: Any = parameter_field(default=0.0)
    convex = True

    def __check_init__(self):
        _check_normal(self.normal)

    def project(self, x):
        def once(x):
            gap, normal = _gap(x, self.normal, self.offset)
            return _move_along(x, normal, gap)

        return corrected(once, x)


class Halfspace(AbstractSet):
    """$\\{x : \\langle a, x\\rangle \\le b\\}$.

    **Arguments:**

    - `normal`: $a \\ne 0$, shaped like `x`.
    - `offset`: $b$.
    """

    normal: PyTree[Array] = parameter_field()
    offset: Any = parameter_field(default=0.0)
    convex = True

    def __check_init__(self):
        _check_normal(self.normal)

    def project(self, x):
        def once(x):
            gap, normal = _gap(x, self.normal, self.offset)
            return _move_along(x, normal, jnp.maximum(gap, 0))

        return corrected(once, x)


class AffineSet(AbstractSet):
    """$\\{x : A x = b\\}$ for a vector $x$; of all least-squares solutions if there is no other.

    The pseudo-inverse is computed once, at construction, so $A$ may have dependent rows.

    **Arguments:**

    - `matrix`: $A$, shape `(m, n)` with $m \\ge 1$.
    - `rhs`: $b$, shape `(m,)`.

    **Raises:** `ValueError` if shapes do not fit or a row of $A$ is zero while its $b$ is not.
    """

    matrix: Float[Array, "m n"]
    rhs: Float[Array, " m"]
    pseudo_inverse: Float[Array, "n m"]
    convex = True

    def __init__(self, matrix, rhs):
        self.matrix, self.rhs = jnp.asarray(matrix), jnp.asarray(rhs)
        if self.matrix.ndim != 2 or self.matrix.shape[:1] != self.rhs.shape:
            raise ValueError(
                f"matrix and rhs do not fit: shapes {self.matrix.shape} and {self.rhs.shape}"
            )
        if 0 in self.matrix.shape:
            raise ValueError(f"matrix must have rows and columns, got shape {self.matrix.shape}")
        if not checks.is_traced((self.matrix, self.rhs)):
            # on the host, also inside of jit
            empty = np.all(np.asarray(self.matrix) == 0, axis=1) & (np.asarray(self.rhs) != 0)
            if np.any(empty):
                row = int(np.argmax(empty))
                raise ValueError(f"row {row} of matrix is zero but rhs there is {self.rhs[row]}")
        self.pseudo_inverse = jnp.linalg.pinv(self.matrix)

    def project(self, x):
        require_array("AffineSet", x, "a vector", 1)
        if jnp.iscomplexobj(self.matrix) or jnp.iscomplexobj(self.rhs):
            x = x.astype(jnp.result_type(x.dtype, jnp.complex64))
        inverse, A, b = (
            part.astype(x.dtype) for part in (self.pseudo_inverse, self.matrix, self.rhs)
        )

        def once(x):
            return x - inverse @ (A @ x - b)

        projected = corrected(once, x)
        # Zero, where it is the answer, shows as what is left of roundings of roundings.
        eps = jnp.finfo(x.dtype).eps
        left = jnp.max(largest(projected)) <= 1e2 * eps**2 * jnp.max(largest(x))
        gone = left & jnp.all(b == 0)
        return projected - jnp.where(gone, jax.lax.stop_gradient(projected), 0)


class SecondOrderCone(AbstractSet):
    """$\\{(t, v) : \\|v\\|_2 \\le t\\}$ for a vector whose first entry is $t$."""

    convex = True

    def project(self, x):
        require_array("SecondOrderCone", x, "a vector", 1)
        require_real("SecondOrderCone", x)
        if x.size == 0:
            raise ValueError("SecondOrderCone takes a vector with a first entry")
        t = x[0]
        norm, direction = norm_and_direction(x[1:])
        half = 0.5 * t + 0.5 * norm
        edge = jnp.concatenate([half[None], half * direction])
        return jnp.where(norm <= t, x, jnp.where(norm <= -t, jnp.zeros_like(x), edge))


class PSDCone(AbstractSet):
    """Hermitian positive semidefinite matrices, batched over leading axes.

    A matrix that is not Hermitian is projected too: its Hermitian part is the nearest. The
    derivative is exact also where eigenvalues coincide.
    """

    convex = True

    def project(self, x: Float[Array, "*b n n"]) -> Float[Array, "*b n n"]:
        if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
            raise ValueError(f"PSDCone takes square matrices, got shape {x.shape}")
        return positive_part(0.5 * (x + jnp.swapaxes(x.conj(), -1, -2)))


class TransportPolytope(AbstractSet):
    """$\\{X \\ge 0 : X 1 = p, X^\\top 1 = q\\}$, the couplings of two vectors of equal mass.

    The projection is $\\max(Z + u 1^\\top + 1 v^\\top, 0)$ with multipliers found by a semismooth
    Newton method with line search on the dual, in stages from a small multiple of $Z$, so that
    entries of any size do. On the support found, the multipliers solve a linear system, and that is
    what derivatives see. Where no multipliers meet the sums, the result is NaN.

    **Arguments:**

    - `row_sums`, `column_sums`: $p > 0$ of shape `(m,)` and $q > 0$ of shape `(n,)`.

    **Reference:** Blondel, Seguy, Rolet, Smooth and Sparse Optimal Transport, 2018,
    arXiv:1710.06276. Li, Sun, Toh, On the Efficient Computation of a Generalized Jacobian of the
    Projector over the Birkhoff Polytope, 2020, arXiv:1702.05934.
    """

    row_sums: Float[Array, " m"] = eqx.field(converter=jnp.asarray)
    column_sums: Float[Array, " n"] = eqx.field(converter=jnp.asarray)
    convex = True

    def __check_init__(self):
        checks.positive("row_sums", self.row_sums)
        checks.positive("column_sums", self.column_sums)
        if not checks.is_traced((self.row_sums, self.column_sums)):
            p, q = (float(np.sum(np.asarray(v))) for v in (self.row_sums, self.column_sums))
            if abs(p - q) > 1e-4 * p:
                raise ValueError(f"row_sums and column_sums must have one total: {p} and {q}")

    def project(self, x):
        m, n = self.row_sums.size, self.column_sums.size
        require_real("TransportPolytope", x)
        if jnp.shape(x) != (m, n):
            raise ValueError(f"TransportPolytope takes shape {(m, n)}, got {jnp.shape(x)}")
        # What is constant along a row or a column changes nothing but digits.
        x = x - jax.lax.stop_gradient(jnp.mean(x, axis=1, keepdims=True))
        x = x - jax.lax.stop_gradient(jnp.mean(x, axis=0, keepdims=True))
        sums = jnp.concatenate([self.row_sums, self.column_sums]).astype(x.dtype)
        # In units of the mean sum, so that the tolerances below are relative.
        unit = jax.lax.stop_gradient(jnp.mean(sums))
        x, sums = x / unit, sums / unit
        start, target = jax.lax.stop_gradient((x, sums))
        eps = jnp.finfo(x.dtype).eps
        total = jnp.sum(target)

        def along(w):
            return w[:m, None] + w[None, m:]

        def excess(y):
            return jnp.concatenate([jnp.sum(y, axis=1), jnp.sum(y, axis=0)]) - target

        # Newton's method on the dual. The multipliers are added to x at once, so that near the
        # solution nothing is larger than the sums and no digits cancel.
        def newton(carry):
            z, steps = carry
            y = jnp.maximum(z, 0)
            g = excess(y)
            damping = jnp.sqrt(eps) * jnp.minimum(1, jnp.linalg.norm(g)) + 10 * eps
            hessian = _support_hessian(z > 0, x.dtype)
            move = -jnp.linalg.solve(hessian + damping * jnp.eye(m + n, dtype=x.dtype), g)
            slope, rounding = jnp.vdot(g, move), 5 * eps * jnp.sum(y**2)

            def too_long(pair):
                t, halvings = pair
                moved = jnp.maximum(z + t * along(move), 0)
                change = 0.5 * jnp.sum((moved - y) * (moved + y)) - t * jnp.vdot(target, move)
                return (change > 1e-4 * t * slope + rounding) & (halvings < 30)

            t, _ = loops.while_loop(
                too_long,
                lambda pair: (0.5 * pair[0], pair[1] + 1),
                (jnp.ones((), x.dtype), jnp.asarray(0, jnp.int32)),
            )
            return z + t * along(move), steps + 1

        def error(z):
            return jnp.linalg.norm(excess(jnp.maximum(z, 0)))

        def solve(z):
            return loops.while_loop(
                lambda carry: (error(carry[0]) > 100 * eps * total) & (carry[1] < 100),
                newton,
                (z, jnp.asarray(0, jnp.int32)),
            )[0]

        # From a multiple of x that is as small as the sums, whose projection is easy, in stages:
        # the multipliers of one, scaled like x, are nearly those of the next.
        def stage(carry):
            z, part = carry
            larger = jnp.minimum(_GROWTH * part, 1)
            return solve(larger / part * z), larger

        part = jnp.minimum(total / jnp.maximum(jnp.sum(jnp.abs(start)), total), 1)
        z, _ = loops.while_loop(
            lambda carry: (carry[1] < 1) & (error(carry[0]) <= jnp.sqrt(eps) * total),
            stage,
            (solve(part * start), part),
        )
        found = error(z) <= jnp.sqrt(eps) * total  # False for NaN
        support = z > 0
        inverse = jnp.linalg.pinv(_support_hessian(support, x.dtype), hermitian=True)

        def meet(y, sums):
            """Move the support of `y` to the sums."""
            y = jnp.where(support, y, 0)
            w = inverse @ (sums - jnp.concatenate([jnp.sum(y, axis=1), jnp.sum(y, axis=0)]))
            return jnp.where(support, y + along(w), 0)

        value = jnp.maximum(meet(z, target), 0)
        slope = meet(x, sums)  # the derivative's, whose own value has lost digits
        projected = value + (slope - jax.lax.stop_gradient(slope))
        return jnp.where(found, unit * projected, jnp.nan)


_GROWTH = 4.0


def _support_hessian(support, dtype):
    s = support.astype(dtype)
    top = jnp.concatenate([jnp.diag(jnp.sum(s, axis=1)), s], axis=1)
    bottom = jnp.concatenate([s.T, jnp.diag(jnp.sum(s, axis=0))], axis=1)
    return jnp.concatenate([top, bottom], axis=0)


def Birkhoff(size: int) -> TransportPolytope:
    """Doubly stochastic matrices of one size."""
    checks.count("size", size)
    return TransportPolytope(jnp.ones(size), jnp.ones(size))
