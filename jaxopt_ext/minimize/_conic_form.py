"""Conic programs in the one form that interior points are found in."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core import (
    LinearProgram,
    PrimalDual,
    SecondOrderConeProgram,
    loops,
    tree,
)
from ..core.operators import dense
from .cones import AbstractCone, Orthant, SecondOrderCones, SemidefiniteCones, symmetrized


class Form(eqx.Module):
    """Minimize $c^\\top x$ subject to $Ex = e$ and $h - Gx \\in K$.

    Rows of $E$ that are not in use are zero, and so is their multiplier; rows of $G$ that are not
    in use are zero beside a right-hand side in the interior.
    """

    c: Float[Array, " n"]
    E: Float[Array, "p n"]
    e: Float[Array, " p"]
    used: Bool[Array, " p"]
    G: tuple[Array, ...]  # unknowns on the leading axis, then the shape of the cone
    h: tuple[Array, ...]
    cones: tuple[AbstractCone, ...] = eqx.field(static=True)

    @property
    def degree(self) -> int:
        return 1 + sum(cone.degree for cone in self.cones)

    def map(self, x):
        return tuple(jnp.tensordot(x, G, axes=1) for G in self.G)

    def adjoint(self, z):
        parts = [jnp.tensordot(G, a, axes=a.ndim) for G, a in zip(self.G, z, strict=True)]
        return sum(parts, jnp.zeros_like(self.c))


class Scaling(eqx.Module):
    """Diagonal changes of the unknowns, of the rows, and of cost and right-hand side."""

    columns: Float[Array, " n"]
    equalities: Float[Array, " p"]
    rows: tuple[Array, ...]
    cost: Float[Array, ""]
    side: Float[Array, ""]


def _inverse_root(size):
    return jnp.where(size > 0, 1 / jnp.sqrt(jnp.where(size > 0, size, 1)), 1)


def _row_size(cone, G):
    """The largest entry in each row, of one number for each cone: no other scaling keeps it."""
    size = jnp.max(jnp.abs(G), axis=0, initial=0)
    if isinstance(cone, Orthant):
        return size
    return jnp.max(size, axis=tuple(range(1, size.ndim)), keepdims=True)


def equilibrated(form: Form, sweeps: int = 8) -> tuple[Form, Scaling]:
    """Rows and columns of like size, by Ruiz' method, then cost and right-hand side."""
    dtype = form.c.dtype

    def sweep(_, s):
        E = s.equalities[:, None] * form.E * s.columns
        G = [_wide(s.columns, G) * r * G for G, r in zip(form.G, s.rows, strict=True)]
        axes = lambda G: tuple(range(1, G.ndim))
        sizes = [jnp.max(jnp.abs(E), axis=0, initial=0)]
        sizes += [jnp.max(jnp.abs(G), axis=axes(G), initial=0) for G in G]
        return Scaling(
            s.columns * _inverse_root(jnp.max(jnp.stack(sizes), axis=0)),
            s.equalities * _inverse_root(jnp.max(jnp.abs(E), axis=1, initial=0)),
            tuple(
                r * _inverse_root(_row_size(cone, G))
                for cone, r, G in zip(form.cones, s.rows, G, strict=True)
            ),
            s.cost,
            s.side,
        )

    one = jnp.ones((), dtype)
    rows = tuple(jnp.ones_like(_row_size(k, G)) for k, G in zip(form.cones, form.G, strict=True))
    start = Scaling(jnp.ones_like(form.c), jnp.ones_like(form.e), rows, one, one)
    s = loops.fori_loop(0, sweeps, sweep, start)
    G = tuple(_wide(s.columns, G) * r * G for G, r in zip(form.G, s.rows, strict=True))
    c, e = s.columns * form.c, s.equalities * form.e
    h = tuple(r * h for r, h in zip(s.rows, form.h, strict=True))
    size = lambda *parts: jnp.max(jnp.stack([jnp.max(jnp.abs(p), initial=0) for p in parts]))
    normal = lambda size: jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 1)
    cost, side = normal(size(c)), normal(size(e, *h))
    E = s.equalities[:, None] * form.E * s.columns
    scaled = Form(cost * c, E, side * e, form.used, G, tree.scale(h, side), form.cones)
    return scaled, Scaling(s.columns, s.equalities, s.rows, cost, side)


def _wide(columns, G):
    return columns.reshape(-1, *[1] * (G.ndim - 1))


def conic_form(problem: Any, x: PrimalDual) -> Form:
    if isinstance(problem, LinearProgram):
        return _linear_form(problem, x)
    if isinstance(problem, SecondOrderConeProgram):
        return _second_order_form(problem, x)
    return _matrix_form(problem, x)


def _linear_form(problem, x):
    """Each row thrice: as an equation, an upper and a lower bound, two or three of them idle."""
    A, l, u = dense(problem.A, x.primal), problem.l, problem.u
    equal = l == u
    above, below = jnp.isfinite(u) & ~equal, jnp.isfinite(l) & ~equal
    only = lambda mask, rows: jnp.where(mask[:, None], rows, 0)
    at = lambda mask, side: jnp.where(mask, side, jnp.ones_like(side))
    G = jnp.concatenate([only(above, A), only(below, -A)]).T
    h = jnp.concatenate([at(above, u), at(below, -l)])
    # NaN bounds are no rows, but have to be seen.
    h = h + jnp.where(jnp.isnan(jnp.concatenate([u, l])), jnp.nan, 0)
    e = jnp.where(equal, u, 0)
    return Form(problem.c, only(equal, A), e, equal, (G,), (h,), (Orthant(h.shape),))


def _layout(problem):
    """Where the rows of the cones are in a padded array; the last row of all is padding."""
    width, rows = max(problem.second_order), problem.b.shape[-1]
    starts = problem.zero + problem.nonnegative + np.cumsum((0, *problem.second_order[:-1]))
    place = np.full((len(problem.second_order), width), rows)
    for i, (first, size) in enumerate(zip(starts, problem.second_order, strict=True)):
        place[i, :size] = np.arange(first, first + size)
    return place


def _second_order_form(problem, x):
    A, b = dense(problem.A, x.primal), problem.b
    p, plain = problem.zero, problem.zero + problem.nonnegative
    G, h = [A[p:plain].T], [b[p:plain]]
    cones: list[AbstractCone] = [Orthant((plain - p,))]
    if problem.second_order:
        place = _layout(problem)
        G.append(jnp.moveaxis(jnp.pad(A, ((0, 1), (0, 0)))[place], -1, 0))
        h.append(jnp.pad(b, (0, 1))[place])
        cones.append(SecondOrderCones(place.shape))
    used = jnp.ones(p, bool)
    return Form(problem.c, A[:p], b[:p], used, tuple(G), tuple(h), tuple(cones))


def _matrix_form(problem, x):
    """The matrices, and a row for each sign; idle where there is none."""
    n = problem.constant.shape[-1]
    generators = problem.generators
    if not eqx.is_array(generators):
        unit = jnp.eye(problem.cost.size, dtype=problem.cost.dtype)
        generators = jax.vmap(generators)(unit)
    G = symmetrized(generators).reshape(problem.cost.size, -1, n, n)
    h = -symmetrized(problem.constant).reshape(-1, n, n)
    parts, sides = [G], [h]
    cones: list[AbstractCone] = [SemidefiniteCones(h.shape)]
    if problem.nonnegative is not None:
        signed = problem.nonnegative
        parts.append(jnp.diag(jnp.where(signed, -1, 0).astype(G.dtype)))
        sides.append(jnp.where(signed, 0, 1).astype(G.dtype))
        cones.append(Orthant(signed.shape))
    c, none = problem.cost, jnp.zeros(0, G.dtype)
    E, used = jnp.zeros((0, c.size), G.dtype), jnp.zeros(0, bool)
    return Form(c, E, none, used, tuple(parts), tuple(sides), tuple(cones))


def original(problem, form, scaling, x, y, z, primal_unit, dual_unit):
    """A primal and a dual point in the problem's own variables, divided by these numbers."""
    x = scaling.columns * x / (scaling.side * primal_unit)
    unit = scaling.cost * dual_unit
    y = scaling.equalities * y / unit
    z = tuple(r * a / unit for r, a in zip(scaling.rows, z, strict=True))
    if isinstance(problem, LinearProgram):
        upper, lower = jnp.split(z[0], 2)
        real = jnp.isfinite(problem.u), jnp.isfinite(problem.l)
        dual = jnp.where(form.used, y, 0)
        dual = dual + jnp.where(real[0] & ~form.used, upper, 0)
        return PrimalDual(x, dual - jnp.where(real[1] & ~form.used, lower, 0))
    if isinstance(problem, SecondOrderConeProgram):
        dual = [y, z[0]]
        if problem.second_order:
            place = _layout(problem)
            dual.append(z[1][place < problem.b.shape[-1]])
        return PrimalDual(x, jnp.concatenate(dual))
    return PrimalDual(x, symmetrized(z[0]).reshape(problem.constant.shape))
