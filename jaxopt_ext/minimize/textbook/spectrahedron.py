"""The spectrahedron, and its geometry of matrix entropy."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import checks
from ...prox import AbstractSet, Simplex
from ..cones import symmetrized
from ..mirror_descent import AbstractMirrorMap


def _check(x):
    if getattr(x, "ndim", 0) != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(f"the spectrahedron is of square matrices, got {checks.shapes_of(x)}")
    return symmetrized(x)


class Spectrahedron(AbstractSet):
    """$\\{X \\succeq 0 : \\mathrm{tr} X = r\\}$ of symmetric matrices.

    A projection has the eigenvectors of what is projected, and its eigenvalues projected on a
    simplex. Only the symmetric part is looked at.

    **Arguments:**

    - `trace`: $r > 0$.

    **Raises:** `ValueError` unless `trace` is positive, and for what is no square matrix.
    """

    trace: Any = eqx.field(converter=checks.scalar, default=1.0)
    convex = True

    def __check_init__(self):
        checks.positive("trace", self.trace)

    def project(self, x: Float[Array, "d d"]) -> Float[Array, "d d"]:
        values, vectors = jnp.linalg.eigh(_check(x))
        return (vectors * Simplex(self.trace).project(values)) @ vectors.T

    def linear_minimizer(self, g):
        vectors = jnp.linalg.eigh(_check(g))[1]
        return jnp.asarray(self.trace, g.dtype) * jnp.outer(vectors[:, 0], vectors[:, 0])


class MatrixEntropy(AbstractMirrorMap):
    """Negative von Neumann entropy, $\\mathrm{tr}\\, X \\log X$, on a spectrahedron: the
    exponentiated gradient of matrices,

    $$U \\propto \\exp(\\log X - t G), \\qquad \\mathrm{tr}\\, U = \\mathrm{tr} X .$$

    It is strongly convex with constant 1 in the trace norm where the trace is 1 (the book has
    $\\frac12$), and $D(X, I / d) \\le \\log d$. Start with a positive definite matrix, $I / d$ say.
    Only the symmetric part of a gradient is looked at.

    **Raises:** `ValueError` for what is no square matrix.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980,
    section 4.3. Tsuda, Rätsch, Warmuth, Matrix Exponentiated Gradient Updates for On-line Learning
    and Bregman Projection, 2005.
    """

    def step(self, problem, x, gradient, step_size):
        values, vectors = jnp.linalg.eigh(_check(x))
        moved = symmetrized((vectors * _log(values)) @ vectors.T - step_size * _check(gradient))
        logs, vectors = jnp.linalg.eigh(moved)
        weights = jnp.exp(logs - logs[-1])
        weights = jnp.trace(x) * weights / jnp.sum(weights)
        return symmetrized((vectors * weights) @ vectors.T)

    def divergence(self, x, y):
        values = jnp.linalg.eigvalsh(_check(x))
        own = jnp.sum(jnp.where(values > 0, values * _log(values), 0))
        # One behind the other: two decompositions side by side may wait for one another.
        below, vectors = jnp.linalg.eigh(_check(y) + 0 * own)
        cross = jnp.sum(_log(below) * jnp.sum(vectors * (_check(x) @ vectors), axis=0))
        return own - cross - jnp.trace(x) + jnp.trace(y)


def _log(values):
    """Of eigenvalues, not below the smallest number."""
    return jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))
