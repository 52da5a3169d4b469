"""Semidefinite relaxations of problems over signs, and their rounding by random hyperplanes."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...core import LinearMatrixInequality, PrimalDual, Status, checks, loops, solve
from ..interior_point import InteriorPoint

EXACT = 60
"""Up to as many signs the relaxation is solved by interior points."""


class RoundedSigns(eqx.Module):
    """What `max_cut` and `max_quadratic_form` return.

    Derivatives of `value` and `mean` are those with the signs as they are, that of `relaxed` is
    exact, $X$, and `bound` has none.

    **Attributes:**

    - `signs`: the best rounding, $\\pm 1$, shape `(n,)`.
    - `value`: its value.
    - `mean`: the mean value of all roundings.
    - `bound`: what no signs can exceed, from a dual point of the relaxation.
    - `relaxed`: the value of the relaxation, $\\langle B, X\\rangle$.
    - `vectors`: unit vectors $v_i$ with $X_{ij} = v_i^\\top v_j$, shape `(n, r)`.
    - `solved`: whether the relaxation was solved to its tolerance.
    """

    signs: Float[Array, " n"]
    value: Float[Array, ""]
    mean: Float[Array, ""]
    bound: Float[Array, ""]
    relaxed: Float[Array, ""]
    vectors: Float[Array, "n r"]
    solved: Bool[Array, ""]


class AbstractRelaxation(eqx.Module):
    """How $\\max \\langle B, X\\rangle$ over $X \\succeq 0$, $X_{ii} = 1$ is solved."""

    @abc.abstractmethod
    def __call__(
        self, form: Float[Array, "n n"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "n r"], Float[Array, " n"], Bool[Array, ""]]:
        """Unit vectors of $X$, multipliers $z$ of the diagonal, and whether it converged."""


class ExactRelaxation(AbstractRelaxation):
    """By `InteriorPoint`, through the dual $\\min \\sum_i z_i$, $B \\preceq \\mathrm{diag}(z)$.

    **Arguments:**

    - `tol`: of the solve, relative to the largest entry of $B$.
    """

    tol: float = 1e-7

    def __check_init__(self):
        checks.positive("tol", self.tol)

    def __call__(self, form, key):
        n, dtype = form.shape[0], form.dtype
        unit = jnp.max(jnp.abs(form), initial=0)
        unit = jnp.where(unit == 0, 1, unit)
        eye = jnp.eye(n, dtype=dtype)
        generators = -eye[:, :, None] * eye[:, None, :]
        problem = LinearMatrixInequality(jnp.ones(n, dtype), form / unit, generators)
        tol = max(self.tol, 1000 * float(jnp.finfo(dtype).eps))
        start = PrimalDual(jnp.zeros(n, dtype), jnp.zeros((n, n), dtype))
        solution = solve(problem, InteriorPoint(tol=tol), start)
        z, X = solution.value
        values, basis = jnp.linalg.eigh(0.5 * (X + X.T))
        vectors = basis * jnp.sqrt(jnp.maximum(values, 0))
        return _normalized(vectors), unit * z, solution.status == Status.converged


class BurerMonteiro(AbstractRelaxation):
    """By $X = VV^\\top$ with rows of $V$ on a sphere of dimension $r > \\sqrt{2n}$, where all
    second-order points are global: each row in turn becomes the best one for the others,
    $v_i \\leftarrow \\sum_{j \\ne i} B_{ij} v_j$, normalized, which never lowers the value.

    **Arguments:**

    - `rank`: $r$, by default $\\lceil\\sqrt{2n}\\rceil + 1$; static.
    - `tol`: a sweep that gains less, relative to the value, is the last.
    - `max_sweeps`: sweeps at most; static.

    **Reference:** Burer, Monteiro, A Nonlinear Programming Algorithm for Solving Semidefinite
    Programs via Low-Rank Factorization, 2003. Wang, Chang, Kolter, The Mixing Method: Low-Rank
    Coordinate Descent for Semidefinite Programming with Diagonal Constraints, 2018,
    arXiv:1706.00476.
    """

    rank: int | None = eqx.field(static=True, default=None)
    tol: float = 1e-7
    max_sweeps: int = eqx.field(static=True, default=1000)

    def __check_init__(self):
        if self.rank is not None:
            checks.count("rank", self.rank)
        checks.positive("tol", self.tol)
        checks.count("max_sweeps", self.max_sweeps)

    def __call__(self, form, key):
        n, dtype = form.shape[0], form.dtype
        rank = self.rank or int(np.ceil(np.sqrt(2 * n))) + 1
        off = form - jnp.diag(jnp.diagonal(form))
        start = _normalized(jax.random.normal(key, (n, rank), dtype))

        def turn(i, carry):
            V, gain = carry
            pull = off[i] @ V
            length = jnp.linalg.norm(pull)
            new = jnp.where(length > 0, pull / jnp.where(length > 0, length, 1), V[i])
            return V.at[i].set(new), gain + 2 * (length - jnp.vdot(pull, V[i]))

        def sweep(carry):
            V, _, sweeps, _ = carry
            V, gain = loops.fori_loop(0, n, turn, (V, jnp.zeros((), dtype)))
            size = jnp.sum(jnp.linalg.norm(off @ V, axis=1))
            done = gain <= jnp.maximum(self.tol, 4 * jnp.finfo(dtype).eps) * size
            return V, gain, sweeps + 1, done

        running = lambda carry: ~carry[3] & (carry[2] < self.max_sweeps)
        first = (start, jnp.zeros((), dtype), jnp.asarray(0, jnp.int32), jnp.asarray(False))
        V, _, _, done = loops.while_loop(running, sweep, first)
        z = jnp.linalg.norm(off @ V, axis=1) + jnp.diagonal(form)
        return V, z, done


def _normalized(V):
    length = jnp.linalg.norm(V, axis=1, keepdims=True)
    return V / jnp.where(length > 0, length, 1)


def max_quadratic_form(
    form: Float[Array, "n n"],
    key: PRNGKeyArray,
    num_roundings: int = 100,
    relaxation: AbstractRelaxation | None = None,
) -> RoundedSigns:
    """Large values of $x^\\top B x$ over $x \\in \\{-1, 1\\}^n$, by a semidefinite relaxation.

    $\\max \\langle B, X\\rangle$ over $X \\succeq 0$ with $X_{ii} = 1$ is at least the maximum.
    Its solution is a Gram matrix of unit vectors $v_i$, and $x_i = \\mathrm{sign}(v_i^\\top g)$ for
    a normal $g$ is on one side or the other of a random hyperplane.

    **Theorem.** For $B \\succeq 0$, $\\mathbb E\\, x^\\top B x \\ge \\frac2\\pi$ of the relaxation
    (Nesterov). If $B$ is a Laplacian, see `max_cut`. For other $B$ no share is promised; the bound
    holds.

    **Arguments:**

    - `form`: $B$, symmetric, shape `(n, n)`.
    - `key`: for the hyperplanes, and the start of `BurerMonteiro`.
    - `num_roundings`: hyperplanes.
    - `relaxation`: `ExactRelaxation()` or `BurerMonteiro()`; `None` for the first up to 60 signs
      and the second beyond.

    **Returns:** a `RoundedSigns`.

    **Raises:** `ValueError` for a matrix that is not square, not symmetric or not finite.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Nesterov, Semidefinite Relaxation and Nonconvex Quadratic Optimization, 1998.
    """
    return _rounded(_symmetric("form", form), key, num_roundings, relaxation)


def max_cut(
    weights: Float[Array, "n n"],
    key: PRNGKeyArray,
    num_roundings: int = 100,
    relaxation: AbstractRelaxation | None = None,
) -> RoundedSigns:
    """Large cuts of a graph, by the semidefinite relaxation of Goemans and Williamson:
    `max_quadratic_form` of a quarter of the Laplacian, $\\sum_{i<j} w_{ij} (1 - x_i x_j) / 2$.

    **Theorem.** For weights $w \\ge 0$ the expected cut is at least 0.878 of the relaxation, and so
    of the largest cut.

    **Arguments:**

    - `weights`: $w$, symmetric, shape `(n, n)`; the diagonal does not count.
    - `key`: for the hyperplanes, and the start of `BurerMonteiro`.
    - `num_roundings`: hyperplanes.
    - `relaxation`: `ExactRelaxation()` or `BurerMonteiro()`; `None` for the first up to 60 nodes
      and the second beyond.

    **Returns:** a `RoundedSigns`; the signs say on which side a node is.

    **Raises:** `ValueError` for a matrix that is not square, not symmetric or not finite.

    **Reference:** Bubeck, Convex Optimization: Algorithms and Complexity, 2015, arXiv:1405.4980.
    Goemans, Williamson, Improved Approximation Algorithms for Maximum Cut and Satisfiability
    Problems Using Semidefinite Programming, 1995.
    """
    weights = _symmetric("weights", weights)
    weights = weights - jnp.diag(jnp.diagonal(weights))
    laplacian = jnp.diag(jnp.sum(weights, axis=1)) - weights
    return _rounded(laplacian / 4, key, num_roundings, relaxation)


def _symmetric(name: str, matrix: Any) -> Array:
    matrix = jnp.asarray(matrix, jnp.result_type(matrix, jnp.float32))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{name} must be a square matrix, got shape {matrix.shape}")
    checks.finite(name, matrix)
    if not checks.is_traced(matrix):
        host = np.asarray(matrix)
        skew, scale = np.max(np.abs(host - host.T)), np.max(np.abs(host))
        if skew > 1e3 * jnp.finfo(matrix.dtype).eps * scale:
            raise ValueError(f"{name} must be symmetric, entries differ by {float(skew):.3g}")
    return 0.5 * (matrix + matrix.T)


@eqx.filter_jit
def _rounded(form, key, num_roundings, relaxation) -> RoundedSigns:
    checks.count("num_roundings", num_roundings)
    n = form.shape[0]
    if relaxation is None:
        relaxation = ExactRelaxation() if n <= EXACT else BurerMonteiro()
    checks.instance("relaxation", relaxation, AbstractRelaxation, "BurerMonteiro()")
    start, planes = jax.random.split(key)
    fixed = jax.lax.stop_gradient(form)
    V, z, solved = relaxation(fixed, start)
    # Shifted until it is feasible: any such point bounds all signs.
    over = jnp.linalg.eigvalsh(fixed - jnp.diag(z))[-1]
    bound = jnp.sum(z) + n * jnp.maximum(over, 0)
    normals = jax.random.normal(planes, (num_roundings, V.shape[1]), form.dtype)
    signs = jnp.where(normals @ V.T >= 0, 1, -1).astype(form.dtype)
    values = jnp.sum((signs @ form) * signs, axis=1)
    at = jnp.argmax(values)
    relaxed = jnp.sum((form @ V) * V)
    return RoundedSigns(signs[at], values[at], jnp.mean(values), bound, relaxed, V, solved)
