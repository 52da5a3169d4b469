"""Linear systems by random sketches of their rows."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core import checks, loops
from ..core.operators import LinearMap, as_map
from .mlmc import AbstractRowSampler, ImportanceRows, UniformRows


class AbstractSketch(eqx.Module):
    """Random combinations of the equations of a system."""

    size: eqx.AbstractVar[int]
    """How many combinations a sketch has."""

    @abc.abstractmethod
    def __call__(
        self, key: PRNGKeyArray, A: LinearMap, b: Float[Array, " m"]
    ) -> tuple[Float[Array, "q n"], Float[Array, " q"]]:
        """$S^\\top A$ and $S^\\top b$, for a matrix `(m, n)` or a `core.operators.Map`."""


def _pulled(A, S):
    if eqx.is_array(A):
        return S @ A
    return jax.vmap(as_map(A).adjoint)(S)


class GaussianSketch(AbstractSketch):
    """Normal combinations of all rows, $O(mn)$ each.

    **Arguments:**

    - `size`: how many at once.

    **Reference:** Gower, Richtárik, Randomized Iterative Methods for Linear Systems, 2015,
    arXiv:1506.03296.
    """

    size: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.count("size", self.size)

    def __call__(self, key, A, b):
        S = jax.random.normal(key, (self.size, b.size), b.dtype)
        return _pulled(A, S), S @ b


class KaczmarzSketch(AbstractSketch):
    """Single rows, $O(n)$ each.

    **Arguments:**

    - `size`: how many at once.
    - `rows`: how they are drawn: `UniformRows()`, or `ImportanceRows()`, in proportion to the
      squares of their lengths, which needs a matrix.

    **Reference:** Strohmer, Vershynin, A Randomized Kaczmarz Algorithm with Exponential
    Convergence, 2009, arXiv:math/0702226.
    """

    size: int = eqx.field(static=True, default=1)
    rows: AbstractRowSampler = UniformRows()

    def __check_init__(self):
        checks.count("size", self.size)
        checks.instance("rows", self.rows, AbstractRowSampler, "UniformRows()")

    def __call__(self, key, A, b):
        matrix = A if eqx.is_array(A) else b[:, None]
        if matrix is not A and isinstance(self.rows, ImportanceRows):
            raise TypeError("ImportanceRows() needs the rows of a matrix, got a linear map")
        rows = self.rows.draw(key, matrix, matrix, range(b.size), self.size).rows
        if matrix is A:
            return A[rows], b[rows]
        return _pulled(A, jax.nn.one_hot(rows, b.size, dtype=b.dtype)), b[rows]


class Sketched(NamedTuple):
    """What `sketch_and_project` found.

    **Attributes:**

    - `x`: the approximate solution.
    - `residual`: $|Ax - b|$.
    - `sketches`: how many were drawn.
    """

    x: Float[Array, " n"]
    residual: Float[Array, ""]
    sketches: Int[Array, ""]


def sketch_and_project(
    sketch: AbstractSketch,
    A: LinearMap,
    b: Float[Array, " m"],
    x: Float[Array, " n"],
    target: Float[Array, ""],
    max_sketches: Int[Array, ""] | int,
    key: PRNGKeyArray,
    period: int | None = None,
) -> Sketched:
    """Project onto the solutions of one sketched system after the other,

    $$x \\leftarrow x - A^\\top S (S^\\top A A^\\top S)^+ S^\\top (Ax - b).$$

    For a system that has solutions the expected distance to the nearest falls linearly.

    **Arguments:**

    - `sketch`: how $S$ is drawn.
    - `A`, `b`: the system; a matrix or a `core.operators.Map`.
    - `x`: where to start.
    - `target`: it ends where $|Ax - b|$ is at most this,
    - `max_sketches`: or after so many.
    - `key`: a random key.
    - `period`: the residual is looked at after every so many, by default as many as have the size
      of the system.

    **Returns:** a `Sketched`.

    **Reference:** Gower, Richtárik, Randomized Iterative Methods for Linear Systems, 2015,
    arXiv:1506.03296.
    """
    checks.instance("sketch", sketch, AbstractSketch, "GaussianSketch()")
    period = max(1, b.size // sketch.size) if period is None else period
    checks.count("period", period)
    gap = lambda x: jnp.linalg.norm(as_map(A)(x) - b)

    def project(i, carry):
        x, key = carry
        SA, Sb = sketch(jax.random.fold_in(key, i), A, b)
        left = SA @ x - Sb
        if sketch.size == 1:
            square = jnp.sum(SA * SA)
            # A row of zeros says nothing.
            return x - SA[0] * jnp.where(
                square > 0, left[0] / jnp.where(square > 0, square, 1), 0
            ), key
        return x - SA.T @ (jnp.linalg.pinv(SA @ SA.T, hermitian=True) @ left), key

    def body(carry):
        found, key = carry
        key, own = jax.random.split(key)
        x, _ = loops.fori_loop(0, period, project, (found.x, own))
        return Sketched(x, gap(x), found.sketches + period), key

    def unfinished(carry):
        found, _ = carry
        return (found.residual > target) & (found.sketches < max_sketches)

    start = Sketched(x, gap(x), jnp.asarray(0, jnp.int32))
    return loops.while_loop(unfinished, body, (start, key))[0]
