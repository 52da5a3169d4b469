"""Newton systems of interior points."""

import jax
import jax.numpy as jnp

from ..core import loops, tree
from ._conic_form import Form
from .cones import Orthant


def proximal_weight(dtype) -> float:
    return 1e-3 * float(jnp.finfo(dtype).eps) ** 0.5


def polyhedral(cones):
    return all(isinstance(cone, Orthant) for cone in cones)


def _by_squares(parts, E, corner, proximal):
    """Solves $Hx + E^\\top y = a$, $Ex - \\mathrm{diag}(c) y = b$, with $H$ the sum of the squares
    of `parts` and of the proximal term, nearly."""
    n = E.shape[1]
    H = sum((G @ G.T for G in parts), proximal * jnp.eye(n, dtype=E.dtype))
    H = H + jnp.diag(_rounding(H) * (1 + jnp.diagonal(H)))
    if not E.shape[0]:
        factor = jax.scipy.linalg.cho_factor(H)
        return lambda a, b: (jax.scipy.linalg.cho_solve(factor, a), b)
    factor = jax.scipy.linalg.lu_factor(jnp.block([[H, E.T], [E, -jnp.diag(corner)]]))
    return lambda a, b: jnp.split(jax.scipy.linalg.lu_solve(factor, jnp.concatenate([a, b])), [n])


def _by_roots(parts, E, corner, proximal):
    """The same without the loss of half of the digits in the squares, which where cones are round
    is that of steps between points whose angle to the boundary is small. It costs three times as
    much."""
    n = E.shape[1]
    # The equations' squares change no solution, and without them the matrix may be singular.
    R = _root(jnp.concatenate([*parts, E.T, proximal**0.5 * jnp.eye(n, dtype=E.dtype)], axis=1))
    lower = lambda R, a: jax.scipy.linalg.solve_triangular(R, a, trans=1)
    upper = lambda R, a: jax.scipy.linalg.solve_triangular(R, a)
    if not E.shape[0]:
        return lambda a, b: (upper(R, lower(R, a)), b)
    V = lower(R, E.T)
    S = _root(jnp.concatenate([V.T, jnp.diag(jnp.sqrt(corner))], axis=1))

    def inverse(a, b):
        a = lower(R, a + E.T @ b)
        y = upper(S, lower(S, V.T @ a - b))
        return upper(R, a - V @ y), y

    return inverse


def _rounding(A):
    return 30 * float(jnp.finfo(A.dtype).eps)


def _root(A):
    """The triangular $R$ with $R^\\top R = A A^\\top$, as accurate as one from a QR factorization
    of $A^\\top$: Cholesky of the product, which may lose its smallest parts in rounding, and again
    of that of the rows that it made nearly orthogonal.

    **Reference:** Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, Roundoff Error Analysis of the
    CholeskyQR2 Algorithm, 2015.
    """

    def factor(A):
        H = A @ A.T
        return jnp.linalg.cholesky(H + jnp.diag(_rounding(A) * (1 + jnp.diagonal(H)))).T

    first = factor(A)
    return factor(jax.scipy.linalg.solve_triangular(first, A, trans=1)) @ first


def factorized(form: Form, refinements: int):
    """Solves $E^\\top y + G^\\top z = a$, $Ex = b$, $Gx - z = d$, with $G$ scaled."""
    dtype, n = form.c.dtype, form.c.size
    idle = jnp.where(form.used, 0, 1).astype(dtype)
    # A proximal term, which stays: along directions that no row sees, steps are finite.
    proximal = proximal_weight(dtype)
    parts = [G.reshape(n, -1) for G in form.G]
    prepare = _by_squares if polyhedral(form.cones) else _by_roots
    inverse = prepare(parts, form.E, idle + proximal, proximal)

    def approximate(a, b, d):
        x, y = inverse(a + form.adjoint(d), b)
        return x, y, jax.tree.map(jnp.subtract, form.map(x), d)

    def solve(a, b, d):
        def refine(_, found):
            x, y, z = found
            gaps = (
                a - proximal * x - form.E.T @ y - form.adjoint(z),
                b - form.E @ x + (idle + proximal) * y,
                jax.tree.map(lambda d, u, v: d - u + v, d, form.map(x), z),
            )
            return jax.tree.map(jnp.add, found, approximate(*gaps))

        return loops.fori_loop(0, refinements, refine, approximate(a, b, d))

    return solve


def in_metric(form: Form, scales) -> Form:
    """The form whose cones' rows are measured by the scalings of a point."""
    rows = zip(form.cones, scales, form.G, form.h, strict=True)
    scaled = [
        (jax.vmap(lambda g, cone=cone, w=w: cone.scale_slack(w, g))(G), cone.scale_slack(w, h))
        for cone, w, G, h in rows
    ]
    G, h = zip(*scaled, strict=True)
    return Form(form.c, form.E, form.e, form.used, G, h, form.cones)


def moved_within(form: Form, point, moved, inside, length):
    """`moved(length)`, with a length that is halved while rounding puts it outside, seven times at
    most, and the point itself if that is not enough."""
    tries, _, new = loops.while_loop(
        lambda carry: (carry[0] < 8) & ~inside(carry[2]),
        lambda carry: (carry[0] + 1, 0.5 * carry[1], moved(0.5 * carry[1])),
        (jnp.asarray(0, jnp.int32), length, moved(length)),
    )
    # Not a number in the data must stay visible.
    stays = (tries >= 8) & tree.all_finite((form.c, form.E, form.e, form.G, form.h))
    return tree.where(stays, point, new)
