"""Bregman projections on half-spaces, one at a time, with the correction of their multipliers.

A strictly convex function $\\phi$ measures how far a point is moved. The Bregman projection of $x$
on the hyperplane $\\langle a, x\\rangle = b$ is the point on it with

$$\\nabla\\phi(x^+) = \\nabla\\phi(x) + \\theta a ,$$

and $\\theta < 0$ exactly if $\\langle a, x\\rangle > b$. In methods of Hildreth's and Dykstra's
kind each half-space has a multiplier $z \\ge 0$, and a visit moves by $c = \\min(z, \\theta)$
only, $z^+ = z - c$: what earlier visits did too much is taken back, and
$\\nabla\\phi(x) + \\sum_i z_i a_i = 0$ always holds.
"""

import abc
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core import checks, loops, operators, tree

Numbers = Array | np.ndarray
Rows = TypeVar("Rows", bound="AbstractRows")


class AbstractRows(eqx.Module):
    """Half-spaces $\\langle a_i, x\\rangle \\le b_i$, stacked: array leaves have a leading axis."""

    @abc.abstractmethod
    def excess(self, x: PyTree[Array]) -> Float[Array, " k"]:
        """$\\langle a_i, x\\rangle - b_i$ for every row."""

    @abc.abstractmethod
    def pulled(self, dual: Float[Array, " k"], x: PyTree[Array]) -> PyTree[Array]:
        """$\\sum_i z_i a_i$, shaped like `x`."""


class HalfSpaces(AbstractRows):
    """Half-spaces with few entries each, $\\sum_l a_{il}\\, x_{j_{il}} \\le b_i$.

    **Arguments:**

    - `index`: $j$, shape `(k, length)`.
    - `coefficient`: $a$, shape `(k, length)`; zero where a row is shorter.
    - `bound`: $b$, shape `(k,)`.
    - `disjoint`: no two rows share an entry, so that they can be projected on all at once.

    **Raises:** `ValueError` if shapes do not fit.
    """

    index: Int[Numbers, "k length"]
    coefficient: Float[Numbers, "k length"]
    bound: Float[Numbers, " k"]
    disjoint: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        shapes = checks.shapes_of((self.index, self.coefficient, self.bound))
        if len(shapes[0]) != 2 or shapes[1] != shapes[0] or shapes[2] != shapes[0][:1]:
            raise ValueError(
                f"index and coefficient must have shape (k, length), bound (k,), got {shapes}"
            )

    @classmethod
    def from_matrix(cls, A: Any, b: Any) -> "HalfSpaces":
        """$Ax \\le b$ for a matrix of numbers; zeros are left out.

        **Raises:** `ValueError` if shapes do not fit.
        """
        A, b = np.asarray(A), np.asarray(b)
        if A.ndim != 2 or b.shape != A.shape[:1]:
            raise ValueError(f"A must be a matrix with a row per bound, got {A.shape}, {b.shape}")
        length = max(1, int(np.max(np.sum(A != 0, axis=1), initial=0)))
        index = np.argsort(A == 0, axis=1, kind="stable")[:, :length]
        return cls(index, np.take_along_axis(A, index, axis=1), b)

    def excess(self, x):
        return jnp.sum(self.coefficient * x[self.index], axis=1) - self.bound

    def pulled(self, dual, x):
        return jnp.zeros_like(x).at[self.index].add(self.coefficient * dual[:, None])


class AbstractBregman(eqx.Module, Generic[Rows]):
    """A strictly convex function $\\phi$ with its projections on half-spaces of one kind."""

    @abc.abstractmethod
    def __call__(self, x: PyTree[Array]) -> Float[Array, ""]:
        """$\\phi(x)$."""

    @abc.abstractmethod
    def from_slope(self, slope: PyTree[Array] | None) -> PyTree[Array]:
        """The $x$ with $\\nabla\\phi(x)$ equal to `slope`; the minimizer of $\\phi$ for `None`."""

    @abc.abstractmethod
    def correct(
        self, x: PyTree[Array], row: Rows, dual: Float[Array, ""], active: Bool[Array, ""]
    ) -> tuple[PyTree[Array], Float[Array, ""]]:
        """Visit one half-space: the next $x$ and $z$; the same as before where it is not active."""

    @abc.abstractmethod
    def correct_all(
        self, x: PyTree[Array], rows: Rows, dual: Float[Array, " k"]
    ) -> tuple[PyTree[Array], Float[Array, " k"]]:
        """Visit all half-spaces at once, of which no two share an entry."""


def sweep(
    bregman: AbstractBregman,
    x: PyTree[Array],
    rows: AbstractRows,
    dual: Float[Array, " k"],
    active: Bool[Array, " k"] | None = None,
) -> tuple[PyTree[Array], Float[Array, " k"]]:
    """Visit half-spaces, one after the other.

    **Arguments:**

    - `bregman`: $\\phi$.
    - `x`, `dual`: the point, and the multipliers, shape `(k,)`.
    - `rows`: the half-spaces.
    - `active`: which of them, shape `(k,)`; all if `None`.

    **Returns:** the next point and multipliers.
    """
    active = jnp.ones(dual.shape, bool) if active is None else active
    # Multipliers go in and out with the rows: in the carry they would be copied at each visit.
    return loops.scan(lambda x, visit: bregman.correct(x, *visit), x, (rows, dual, active))


class AbstractSeparable(AbstractBregman[HalfSpaces]):
    """A sum over the entries: a visit changes only those of the row."""

    center: eqx.AbstractVar[Float[Array, " n"]]
    weights: eqx.AbstractVar[Float[Array, " n"]]

    @abc.abstractmethod
    def multiplier(self, x: Array, weights: Array, a: Array, bound: Array) -> Array:
        """$\\theta$, from the entries of the row on the last axis."""

    @abc.abstractmethod
    def moved(self, x: Array, weights: Array, pull: Array) -> Array:
        """What each entry changes by, if the gradient is to change by `pull`."""

    def _visit(self, x, row, dual, active):
        old, weights = x[row.index], self.weights[row.index]
        theta = self.multiplier(old, weights, row.coefficient, row.bound)
        c = jnp.where(active, jnp.minimum(dual, theta), 0)
        change = self.moved(old, weights, c[..., None] * row.coefficient)
        # Adding where a row is padded adds zero.
        return x.at[row.index].add(change), dual - c

    def correct(self, x, row, dual, active):
        return self._visit(x, row, dual, active)

    def correct_all(self, x, rows, dual):
        return self._visit(x, rows, dual, True)


def _positive(name: str, value: Array) -> None:
    """Raise on any that is zero or less; not on NaN, which shows in a status."""
    value = jax.lax.stop_gradient(value)
    if not checks.is_traced(value) and np.any(np.asarray(value) <= 0):
        raise ValueError(f"{name} must be positive, got {value}")


def _prepared(center, weights):
    center = checks.inexact_tree("center", center)
    if center.ndim != 1:
        raise ValueError(f"center must be a vector, got shape {center.shape}")
    weights = jnp.asarray(1.0 if weights is None else weights, center.dtype)
    if weights.shape not in ((), center.shape):
        raise ValueError(f"weights {weights.shape} must be like the center {center.shape}")
    _positive("weights", weights)
    return center, jnp.broadcast_to(weights, center.shape)


class Quadratic(AbstractSeparable):
    """$\\phi(x) = \\tfrac12 \\sum_j w_j (x_j - c_j)^2$.

    With it $\\theta = (b - \\langle a, x\\rangle) / \\sum_j a_j^2 / w_j$.

    **Arguments:**

    - `center`: $c$, shape `(n,)`.
    - `weights`: $w > 0$, a number or of shape `(n,)`; one if `None`.

    **Raises:** `ValueError` on weights that do not fit or are not positive.
    """

    center: Float[Array, " n"]
    weights: Float[Array, " n"]

    def __init__(self, center: Any, weights: Any = None):
        self.center, self.weights = _prepared(center, weights)

    def __call__(self, x):
        return 0.5 * jnp.sum(self.weights * (x - self.center) ** 2)

    def from_slope(self, slope):
        return self.center if slope is None else self.center + slope / self.weights

    def multiplier(self, x, weights, a, bound):
        size = jnp.sum(a * a / weights, axis=-1)
        room = bound - jnp.sum(a * x, axis=-1)
        return jnp.where(size > 0, room / jnp.where(size > 0, size, 1), jnp.inf)

    def moved(self, x, weights, pull):
        return pull / weights


class Entropy(AbstractSeparable):
    """$\\phi(x) = \\sum_j w_j \\bigl(x_j \\log(x_j / c_j) - x_j + c_j\\bigr)$ on positive $x$.

    With it $x_j^+ = x_j e^{\\theta a_j / w_j}$, and $\\theta$ is the root of an increasing
    function, which is found by Newton's method on the logarithms of its positive and its negative
    part, within a bracket. Half-spaces without positive points, $x_1 \\le 0$ say, are not allowed
    for: points run into zero.

    **Arguments:**

    - `center`: $c > 0$, shape `(n,)`.
    - `weights`: $w > 0$, a number or of shape `(n,)`; one if `None`.

    **Raises:** `ValueError` on weights that do not fit, or a center or weights not positive.
    """

    center: Float[Array, " n"]
    weights: Float[Array, " n"]

    def __init__(self, center: Any, weights: Any = None):
        self.center, self.weights = _prepared(center, weights)
        _positive("center", self.center)

    def __call__(self, x):
        # x log x is zero at zero.
        safe = jnp.where(x > 0, x, 1)
        entropy = jnp.where(x > 0, x * jnp.log(safe / self.center), 0)
        return jnp.sum(self.weights * (jnp.where(x < 0, jnp.inf, entropy) - x + self.center))

    def from_slope(self, slope):
        return self.center if slope is None else self.center * jnp.exp(slope / self.weights)

    def multiplier(self, x, weights, a, bound):
        rate = a / weights
        log_x = jnp.log(x)
        up = jnp.where(a > 0, jnp.log(jnp.where(a > 0, a, 1)) + log_x, -jnp.inf)
        down = jnp.where(a < 0, jnp.log(jnp.where(a < 0, -a, 1)) + log_x, -jnp.inf)
        plus = jnp.log(jnp.maximum(-bound, 0))[..., None]
        minus = jnp.log(jnp.maximum(bound, 0))[..., None]

        def gap(theta):
            """log of what holds the point in, less log of what pulls it out, and the slope."""
            shift = theta[..., None] * rate
            total = lambda logs, rest: jax.nn.logsumexp(
                jnp.concatenate([logs + shift, rest], axis=-1), axis=-1
            )
            high, low = total(up, plus), total(down, minus)
            share = lambda logs, whole: jnp.where(
                logs == -jnp.inf, 0, jnp.exp(logs + shift - whole[..., None])
            )
            slope = jnp.sum(rate * (share(up, high) - share(down, low)), axis=-1)
            return high - low, slope

        # Beyond it exponentials leave the range of the type.
        reach = 0.5 * jnp.log(jnp.finfo(x.dtype).max)
        edge = reach / jnp.max(jnp.abs(rate), axis=-1)

        def improve(_, carry):
            theta, lower, upper = carry
            value, slope = gap(theta)
            lower = jnp.where(value <= 0, theta, lower)
            upper = jnp.where(value >= 0, theta, upper)
            newton = theta - value / slope
            inside = (newton >= lower) & (newton <= upper)
            return jnp.where(inside, newton, 0.5 * (lower + upper)), lower, upper

        empty = jnp.all(a == 0, axis=-1)
        edge = jnp.where(empty, 1, edge)
        theta = loops.fori_loop(0, 16, improve, (jnp.zeros_like(edge), -edge, edge))[0]
        return jnp.where(empty, jnp.inf, theta)

    def moved(self, x, weights, pull):
        return x * jnp.expm1(pull / weights)


class MatrixQuadratic(AbstractBregman[HalfSpaces]):
    """$\\phi(x) = \\tfrac12 (x - c)^\\top Q (x - c)$; a visit moves by $\\theta\\, Q^{-1} a$.

    **Arguments:**

    - `center`: $c$, shape `(n,)`.
    - `matrix`: $Q$, symmetric positive definite, shape `(n, n)`.

    **Raises:** `ValueError` if $Q$ is not symmetric positive definite or does not fit.
    """

    center: Float[Array, " n"]
    matrix: Float[Array, "n n"]
    inverse: Float[Array, "n n"]

    def __init__(self, center: Any, matrix: Any):
        self.center = checks.inexact_tree("center", center)
        self.matrix = jnp.asarray(matrix, self.center.dtype)
        operators.require_size("matrix", self.matrix, self.center.shape * 2)
        fixed = jax.lax.stop_gradient(self.matrix)
        self.inverse, definite = inverse_of(fixed)
        if not checks.is_traced((definite, fixed)):
            host = np.asarray(fixed)
            skew, scale = np.max(np.abs(host - host.T)), np.max(np.abs(host))
            if not definite or not skew <= 1e3 * jnp.finfo(host.dtype).eps * scale:
                raise ValueError("matrix must be symmetric positive definite")

    def __call__(self, x):
        return 0.5 * (x - self.center) @ (self.matrix @ (x - self.center))

    def from_slope(self, slope):
        return self.center if slope is None else self.center + self.inverse @ slope

    def correct(self, x, row, dual, active):
        direction = self.inverse[:, row.index] @ row.coefficient
        size = row.coefficient @ direction[row.index]
        theta = (row.bound - row.coefficient @ x[row.index]) / jnp.where(size > 0, size, 1)
        c = jnp.where(active, jnp.minimum(dual, jnp.where(size > 0, theta, jnp.inf)), 0)
        return x + c * direction, dual - c

    def correct_all(self, x, rows, dual):
        # Through the inverse rows do share entries.
        return sweep(self, x, rows, dual)


def inverse_of(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Any]:
    """The inverse of a positive definite matrix, and whether it is one; the identity if not."""
    factor = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(*matrix.shape, dtype=matrix.dtype)
    root = jax.scipy.linalg.solve_triangular(factor, eye, trans=1, lower=True)
    inverse = root @ root.T
    definite = tree.all_finite(inverse)
    return jnp.where(definite, inverse, eye), definite


class MetricPoint(NamedTuple):
    """A Mahalanobis matrix, shape `(d, d)`, and the distance that each pair is held to, `(m,)`."""

    matrix: Float[Array, "d d"]
    slack: Float[Array, " m"]


class Pairs(AbstractRows):
    """$s_i (v_i^\\top A v_i - \\xi_i) \\le 0$: similar points closer than $\\xi$ ($s = 1$), others
    farther ($s = -1$).

    **Arguments:**

    - `vector`: $v$, the difference of two points, shape `(k, d)`.
    - `sign`: $s$, shape `(k,)`.
    - `index`: which of the slacks is $\\xi_i$, shape `(k,)`.
    """

    vector: Float[Numbers, "k d"]
    sign: Float[Numbers, " k"]
    index: Int[Numbers, " k"]

    def excess(self, x):
        square = jnp.einsum("ki,ij,kj->k", self.vector, x.matrix, self.vector)
        return self.sign * (square - x.slack[self.index])

    def pulled(self, dual, x):
        signed = self.sign * dual
        matrix = jnp.einsum("k,ki,kj->ij", signed, self.vector, self.vector)
        return MetricPoint(matrix, jnp.zeros_like(x.slack).at[self.index].add(-signed))


class LogDet(AbstractBregman[Pairs]):
    """$\\phi(A, \\xi) = D(A, A_0) + \\gamma \\sum_i D(\\xi_i, \\xi_{0i})$ with the divergence
    $D(A, B) = \\mathrm{tr}(AB^{-1}) - \\log\\det(AB^{-1}) - d$.

    With $p = v^\\top A v$ a pair has $\\theta = s\\,\\frac{\\gamma}{1+\\gamma} (1/p - 1/\\xi)$, and
    a visit is $A^+ = A + \\beta A v v^\\top A$, $\\beta = sc/(1 - scp)$,
    $\\xi^+ = \\gamma\\xi/(\\gamma + sc\\,\\xi)$. Every $A$ is positive definite.

    **Arguments:**

    - `prior`: $A_0$, symmetric positive definite, shape `(d, d)`.
    - `slack`: $\\xi_0 > 0$, shape `(m,)`.
    - `gamma`: $\\gamma > 0$, how hard it is to give way.

    **Raises:** `ValueError` if `slack` or `gamma` is not positive, or `prior` not square.
    """

    prior: Float[Array, "d d"]
    slack: Float[Array, " m"]
    gamma: Float[Array, ""]

    def __init__(self, prior: Any, slack: Any, gamma: Any = 1.0):
        self.prior = checks.inexact_tree("prior", prior)
        self.slack = jnp.asarray(slack, self.prior.dtype)
        self.gamma = jnp.asarray(gamma, self.prior.dtype)
        if self.prior.ndim != 2 or self.prior.shape[0] != self.prior.shape[1]:
            raise ValueError(f"prior must be a square matrix, got shape {self.prior.shape}")
        for name, value in (("slack", self.slack), ("gamma", self.gamma)):
            _positive(name, value)

    def __call__(self, x):
        d = self.prior.shape[0]
        even = 0.5 * (x.matrix + x.matrix.T)  # so that gradients are symmetric
        ratio = jnp.linalg.solve(self.prior, even)
        ratios = x.slack / self.slack
        matrix = jnp.trace(ratio) - jnp.linalg.slogdet(ratio)[1] - d
        return matrix + self.gamma * jnp.sum(ratios - jnp.log(ratios) - 1)

    def from_slope(self, slope):
        if slope is None:
            return MetricPoint(self.prior, self.slack)
        matrix = jnp.linalg.inv(jnp.linalg.inv(self.prior) - slope.matrix)
        slack = self.gamma / (self.gamma / self.slack - slope.slack)
        return MetricPoint(0.5 * (matrix + matrix.T), slack)

    def correct(self, x, row, dual, active):
        v, s, xi = row.vector, row.sign, x.slack[row.index]
        image = x.matrix @ v
        p = v @ image
        theta = s * self.gamma / (1 + self.gamma) * (1 / p - 1 / xi)
        c = s * jnp.where(active, jnp.minimum(dual, theta), 0)
        matrix = x.matrix + c / (1 - c * p) * jnp.outer(image, image)
        slack = x.slack.at[row.index].set(self.gamma * xi / (self.gamma + c * xi))
        return MetricPoint(matrix, slack), dual - s * c

    def correct_all(self, x, rows, dual):
        # All rows share the matrix.
        return sweep(self, x, rows, dual)


__all__ = [
    "AbstractBregman",
    "AbstractRows",
    "AbstractSeparable",
    "Entropy",
    "HalfSpaces",
    "LogDet",
    "MatrixQuadratic",
    "MetricPoint",
    "Pairs",
    "Quadratic",
]
