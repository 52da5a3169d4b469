"""Projections for Kronecker weights, exact and sketched."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ... import linalg
from ..shapes.function import AbstractFunctionCase

N, M = 3, 6


class ProjectionCase(AbstractFunctionCase):
    """A query after an update of which one eigenvalue is pending.

    **Arguments:**

    - `form`: `OneSided` or `TwoSided`.
    """

    form: Any = eqx.field(static=True)

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        A = rng.normal(size=(M, N * N))
        U, _ = np.linalg.qr(rng.normal(size=(N, N)))
        lam = rng.uniform(1, 2, N)
        cast = lambda a: jnp.asarray(a, dtype)
        built = linalg.KroneckerProjection.build(cast(A), cast(U), cast(lam), form=self.form)
        later = built.update(cast(lam * np.where(np.arange(N) == seed % N, 1.5, 1.001)))
        return cast(A), later, cast(rng.normal(size=N * N))

    def call(self, *arguments):
        _, projection, h = arguments
        return projection.query(h)

    def reference(self, *arguments):
        A, projection, h = arguments
        return dense(A, projection) @ np.asarray(h, np.float64)


class SketchedCase(ProjectionCase):
    """What each sketch says of a query."""

    def draw(self, seed, dtype):
        A, projection, h = super().draw(seed, dtype)
        key = jax.random.key(seed)
        return A, linalg.SketchedProjection.build(projection, 3, 2, key), h

    def call(self, *arguments):
        _, sketched, h = arguments
        return sketched.answers(h)

    def reference(self, *arguments):
        A, sketched, h = arguments
        U = np.asarray(sketched.projection.U, np.float64)
        T = np.kron(U, np.eye(N) if isinstance(self.form, linalg.OneSided) else U)
        P = dense(A, sketched.projection)
        R = np.asarray(sketched.sketches, np.float64)
        return np.stack([P @ T @ r.T @ r @ T.T @ np.asarray(h, np.float64) for r in R])


def dense(A, projection):
    """The projection with everything formed."""
    A, U, lam = (np.asarray(a, np.float64) for a in (A, projection.U, projection.answered))
    if isinstance(projection.form, linalg.OneSided):
        W = np.kron((U * lam) @ U.T, np.eye(len(U)))
    else:
        root = (U * np.sqrt(lam)) @ U.T
        W = np.kron(root, root)
    B = A @ W
    return B.T @ np.linalg.solve(B @ B.T, B)
