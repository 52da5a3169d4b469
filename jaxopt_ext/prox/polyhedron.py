"""Polyhedra given by inequalities and equalities."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core import checks, loops
from .function import (
    MEMBERSHIP,
    AbstractSet,
    norm_and_direction,
    require_array,
    require_real,
    unit_of,
)


def _unit_rows(matrix, rhs):
    """Rows of length one, which change nothing in the set; zero rows stay. Their lengths count as
    constants, also for derivatives."""
    top = unit_of(jnp.max(jnp.abs(matrix), axis=1))
    scaled = jax.lax.stop_gradient(matrix) / top[:, None]
    length = top * unit_of(jnp.sqrt(jnp.sum(scaled**2, axis=1)))
    return matrix / length[:, None], rhs / length


class _Search(eqx.Module):
    """State of the dual active-set method."""

    point: Float[Array, " n"]
    active: Int[Array, " k"]
    """Rows that hold with equality, linearly independent; the first `count` entries are used."""
    multipliers: Float[Array, " k"]
    count: Int[Array, ""]
    entering: Int[Array, ""]
    """The row that is being made to hold, or -1."""
    multiplier: Float[Array, ""]
    skipped: Bool[Array, " m"]
    """Rows that depend on active ones and hold but for rounding."""
    halted: Bool[Array, ""]
    steps: Int[Array, ""]


def _search(x, rows, rhs, equalities, tolerance) -> _Search:
    """Goldfarb and Idnani's dual method for the nearest point: one violated row after the other
    enters; rows whose multipliers would turn negative leave.

    The first `equalities` rows are equalities and never leave. The basis is factorized afresh in
    each step, and the point moved back onto the active rows, so that nothing accumulates.
    """
    m, n = rows.shape
    k = min(m, n)
    eps = jnp.finfo(x.dtype).eps
    slots = jnp.arange(k)
    index = jnp.arange(m)
    # What is left of the rounding of x, where the answer is zero.
    floor = eps * norm_and_direction(x)[0]

    def step(s: _Search) -> _Search:
        used = slots < s.count
        basis = jnp.where(used[:, None], rows[s.active], 0)
        q, r = jnp.linalg.qr(basis.T)
        q = jnp.where(used, q, 0)
        r = r + jnp.diag(jnp.where(used, 0, 1).astype(r.dtype))

        def back(point):
            gap = jnp.where(used, basis @ point - jnp.where(used, rhs[s.active], 0), 0)
            return point - q @ jax.scipy.linalg.solve_triangular(r, gap, trans=1)

        point = back(s.point)
        # Equalities first, then the row that is violated most.
        gap = rows @ point - rhs
        size = jnp.maximum(norm_and_direction(point)[0] + floor, jnp.abs(rhs))
        excess = jnp.where(index < equalities, jnp.abs(gap), gap)
        holding = jnp.zeros(m, bool).at[jnp.where(used, s.active, m)].set(True, mode="drop")
        violated = (excess > tolerance * eps * size) & ~holding & ~s.skipped
        candidate = jnp.argmax(jnp.where(violated, excess, -jnp.inf))
        equality_left = violated & (index < equalities)
        candidate = jnp.where(jnp.any(equality_left), jnp.argmax(equality_left), candidate)
        candidate = candidate.astype(jnp.int32)
        fresh = s.entering < 0
        entering = jnp.where(fresh, candidate, s.entering)
        done = fresh & ~jnp.any(violated)
        multiplier = jnp.where(fresh, 0, s.multiplier)

        # An equality that is below its value enters with the opposite sign.
        normal, gap = rows[entering], gap[entering]
        sign = jnp.where((entering < equalities) & (gap < 0), -1, 1).astype(x.dtype)
        normal, gap = sign * normal, jnp.maximum(sign * gap, 0)
        inner = q.T @ normal
        direction = normal - q @ inner
        again = q.T @ direction  # orthogonal to the last digit
        direction, inner = direction - q @ again, inner + again
        drop = jax.scipy.linalg.solve_triangular(r, inner)
        square = jnp.vdot(direction, direction)
        independent = (square > (10 * n * eps) ** 2) & (s.count < k)
        full = jnp.where(independent, gap / jnp.where(independent, square, 1), jnp.inf)
        may_leave = used & (s.active >= equalities) & (drop > 0)
        ratios = jnp.where(may_leave, s.multipliers / jnp.where(may_leave, drop, 1), jnp.inf)
        leaving = jnp.argmin(ratios)
        partial = jnp.maximum(ratios[leaving], 0)
        length = jnp.minimum(full, partial)
        stuck = ~(length < jnp.inf)  # no point meets this row and the active ones
        rounding = fresh & (gap <= MEMBERSHIP * eps * size[entering])
        skip, stuck = stuck & rounding & ~done, stuck & ~rounding
        enters = (full <= partial) & ~stuck & ~skip & ~done
        leaves = (full > partial) & ~stuck & ~skip & ~done
        halted = done | stuck
        length = jnp.where(halted | skip, 0, length)
        moved = point - jnp.where(independent, length, 0) * direction
        multipliers = jnp.where(used, s.multipliers - length * drop, 0)
        multiplier = multiplier + length

        place = enters & (slots == s.count)
        active = jnp.where(place, entering, s.active)
        multipliers = jnp.where(place, sign * multiplier, multipliers)
        # The order of the others stays, so that the used entries come first.
        shift = leaves & (slots >= leaving)
        active = jnp.where(shift, jnp.roll(active, -1), active)
        multipliers = jnp.where(shift, jnp.roll(multipliers, -1), multipliers)
        count = s.count + enters.astype(s.count.dtype) - leaves.astype(s.count.dtype)
        entering = jnp.where(enters | skip | halted, -1, entering)
        skipped = s.skipped | (skip & (index == candidate))
        return _Search(
            moved, active, multipliers, count, entering, multiplier, skipped, halted, s.steps + 1
        )

    zero = jnp.asarray(0, jnp.int32)
    start = _Search(
        x,
        jnp.zeros(k, jnp.int32),
        jnp.zeros(k, x.dtype),
        zero,
        zero - 1,
        jnp.zeros((), x.dtype),
        jnp.zeros(m, bool),
        jnp.asarray(False),
        zero,
    )
    limit = 20 * (m + n) + 50
    return loops.while_loop(lambda s: ~s.halted & (s.steps < limit), step, start)


class Polyhedron(AbstractSet):
    """$\\{x : G x \\le h,\\ A x = b\\}$ for a vector $x$.

    The projection is exact: the dual active-set method of Goldfarb and Idnani, of some $m + n$
    steps of $O(n^3 + m n)$ each, for up to some hundreds of rows. Rows may be zero, redundant,
    dependent or of any scale, and the set may have no interior. Where it is empty, the result is
    NaN. Derivatives, in `x` and in all data, are those of the projection on the face of the active
    rows with positive multipliers.

    A point belongs to the set if each row holds within a thousand roundings of the
    larger of $\\|G_i\\| \\|x\\|$ and $|h_i|$.

    **Arguments:**

    - `G`: shape `(m, n)`.
    - `h`: shape `(m,)`; infinite where a row does not bind.
    - `A`, `b`: equalities, of shapes `(k, n)` and `(k,)`, or `None`.

    **Raises:** `ValueError` if shapes do not fit.

    **Reference:** Goldfarb, Idnani, A Numerically Stable Dual Method for Solving Strictly Convex
    Quadratic Programs, 1983.
    """

    G: Float[Array, "m n"] = eqx.field(converter=jnp.asarray)
    h: Float[Array, " m"] = eqx.field(converter=jnp.asarray)
    A: Float[Array, "k n"] | None = eqx.field(
        converter=lambda a: None if a is None else jnp.asarray(a), default=None
    )
    b: Float[Array, " k"] | None = eqx.field(
        converter=lambda a: None if a is None else jnp.asarray(a), default=None
    )
    convex = True

    def __check_init__(self):
        if (self.A is None) != (self.b is None):
            raise ValueError("A and b come together")
        for names, matrix, rhs in (("G and h", self.G, self.h), ("A and b", self.A, self.b)):
            if matrix is None or rhs is None:
                continue
            for value in (matrix, rhs):
                if not jnp.issubdtype(value.dtype, jnp.floating):
                    raise TypeError(f"{names} must hold real floating-point numbers")
            if matrix.ndim != 2 or rhs.ndim != 1 or matrix.shape[0] != rhs.shape[0]:
                raise ValueError(f"{names} do not fit: shapes {matrix.shape} and {rhs.shape}")
            checks.finite(names[0], matrix)
        if self.A is not None and self.A.shape[1] != self.G.shape[1]:
            raise ValueError(f"A and G do not fit: shapes {self.A.shape} and {self.G.shape}")

    def _rows(self, x):
        """Equalities, then inequalities, in the type of `x`, and the number of the former."""
        require_array("Polyhedron", x, "a vector", 1)
        require_real("Polyhedron", x)
        if x.shape[0] != self.G.shape[1]:
            raise ValueError(f"G of shape {self.G.shape} does not fit x of shape {x.shape}")
        matrix, rhs = self.G.astype(x.dtype), self.h.astype(x.dtype)
        if self.A is None or self.b is None:
            return matrix, rhs, 0
        matrix = jnp.concatenate([self.A.astype(x.dtype), matrix])
        return matrix, jnp.concatenate([self.b.astype(x.dtype), rhs]), self.A.shape[0]

    def contains(self, x, atol: Any = None):
        if atol is not None:
            return AbstractSet.contains(self, x, atol)
        matrix, rhs, equalities = self._rows(x)
        return _holds(x, *_unit_rows(matrix, rhs), equalities)

    def project(self, x):
        matrix, rhs, equalities = self._rows(x)
        if 0 in matrix.shape:
            return x
        rows, rhs = _unit_rows(matrix, rhs)
        frozen = jax.lax.stop_gradient((x, rows, rhs))
        found = _search(*frozen, equalities, tolerance=_TOLERANCE)
        # Zero, where it is the answer, shows as what is left of roundings of roundings.
        eps = jnp.finfo(x.dtype).eps
        moved, far = (norm_and_direction(v)[0] for v in (found.point, frozen[0]))
        left = moved <= 1e2 * eps**2 * far
        zero = jnp.zeros_like(found.point)
        gone = left & _holds(zero, *frozen[1:], equalities)
        point = jnp.where(gone, zero, found.point)
        holds = _holds(point, *frozen[1:], equalities)

        # The face: x - p is normal to it, and p on it. The derivative is that of this system.
        slots = jnp.arange(found.active.size)
        positive = (found.multipliers > 0) | (found.active < equalities)
        used = (slots < found.count) & positive
        basis = jnp.where(used[:, None], rows[found.active], 0)
        n = x.size
        corner = jnp.diag(jnp.where(used, 0, -1).astype(x.dtype))
        system = jnp.concatenate(
            [
                jnp.concatenate([jnp.eye(n, dtype=x.dtype), basis.T], axis=1),
                jnp.concatenate([basis, corner], axis=1),
            ]
        )
        target = jnp.concatenate([x, jnp.where(used, rhs[found.active], 0)])
        slope = jnp.linalg.solve(system, target)[:n]
        projected = point + (slope - jax.lax.stop_gradient(slope))
        return jnp.where(holds, projected, jnp.nan)


_TOLERANCE = 10.0


def _holds(x, rows, rhs, equalities):
    gap = rows @ x - rhs
    gap = jnp.where(jnp.arange(rhs.size) < equalities, jnp.abs(gap), gap)
    size = jnp.maximum(norm_and_direction(x)[0], jnp.abs(rhs))
    return jnp.all(gap <= MEMBERSHIP * jnp.finfo(x.dtype).eps * size) & jnp.all(jnp.isfinite(x))
