r"""Distances between two samples of points, $x_1..x_n$ and $y_1..y_m$.

They may be of different sizes; a point is an array of any shape and is looked at as a vector.
`squared_mmd` compares by a kernel, `energy_distance` by plain distances, `sliced_wasserstein` along
lines, `frechet_distance` means and covariances only. All are differentiable in the points, also in
`vmap`.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from . import checks
from .solver import Scalar, scalar_field

Points = Float[Array, "n ..."]


class AbstractKernel(eqx.Module):
    """A positive definite function of two points."""

    @abc.abstractmethod
    def gram(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """$k(x_i, y_j)$."""

    def at(self, y: Float[Array, "m d"]) -> "AbstractKernel":
        """The kernel with what it takes from the data filled in."""
        del y
        return self


class RBF(AbstractKernel):
    r"""$k(x, y) = \exp(-\gamma |x - y|^2)$.

    **Arguments:**

    - `gamma`: positive; one over the median of the squared distances within the second sample if
      `None`, over their mean where most of its points are equal, 1 where all are.

    **Raises:** `ValueError` if `gamma` is not positive.
    """

    gamma: Scalar | None = eqx.field(converter=checks.scalar, default=None)

    def __check_init__(self):
        if self.gamma is not None:
            checks.positive("gamma", self.gamma)

    def at(self, y):
        if self.gamma is not None:
            return self
        rows, columns = np.triu_indices(len(y), 1)
        squares = jax.lax.stop_gradient(_squared_distances(y, y)[rows, columns])
        median = jnp.median(squares)
        size = jnp.where(median == 0, jnp.mean(squares), median)
        return RBF(1 / jnp.where(size == 0, 1, size))

    def gram(self, x, y):
        if self.gamma is None:
            return self.at(y).gram(x, y)
        return jnp.exp(-jnp.asarray(self.gamma, x.dtype) * _squared_distances(x, y))


class Polynomial(AbstractKernel):
    r"""$k(x, y) = (\gamma x^\top y + c)^p$; with the defaults and features of a network the kernel
    of the kernel Inception distance.

    **Arguments:**

    - `degree`: $p$.
    - `gamma`: $\gamma$, positive; $1/d$ if `None`.
    - `offset`: $c$, non-negative.

    **Raises:** `ValueError` or `TypeError` naming the argument that is out of range.

    **Reference:** Binkowski, Sutherland, Arbel, Gretton, Demystifying MMD GANs, 2018,
    arXiv:1801.01401.
    """

    degree: int = eqx.field(static=True, default=3)
    gamma: Scalar | None = eqx.field(converter=checks.scalar, default=None)
    offset: Scalar = scalar_field(1.0)

    def __check_init__(self):
        checks.count("degree", self.degree)
        if self.gamma is not None:
            checks.positive("gamma", self.gamma)
        checks.nonnegative("offset", self.offset)

    def gram(self, x, y):
        gamma = 1 / x.shape[1] if self.gamma is None else jnp.asarray(self.gamma, x.dtype)
        return (gamma * _product(x, y) + jnp.asarray(self.offset, x.dtype)) ** self.degree


class NegativeDistance(AbstractKernel):
    """$k(x, y) = -|x - y|$, positive definite on weights of sum zero: all that a difference of two
    laws needs."""

    def gram(self, x, y):
        square = _squared_distances(x, y)
        apart = square > 0  # the root has no derivative at zero
        return -jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)


def _product(x, y):
    return jnp.matmul(x, y.T, precision="highest")


def _squared_distances(x, y):
    # Around a common point less is cancelled.
    center = jax.lax.stop_gradient(jnp.mean(y, axis=0))
    x, y = x - center, y - center
    square = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1) - 2 * _product(x, y)
    return jnp.maximum(square, 0)


def _vectors(x, y, least: int):
    x, y = (jnp.asarray(a) for a in (x, y))
    for name, a in (("x", x), ("y", y)):
        if a.ndim == 0 or a.shape[0] < least:
            raise ValueError(f"{name} must hold at least {least} points, got shape {a.shape}")
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(f"{name} must be of a floating-point type, got {a.dtype}")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"points must have one shape, got {x.shape[1:]} and {y.shape[1:]}")
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return (a.reshape(a.shape[0], -1).astype(dtype) for a in (x, y))


def squared_mmd(
    x: Points, y: Points, kernel: AbstractKernel | None = None, unbiased: bool = True
) -> Float[Array, ""]:
    r"""The squared maximum mean discrepancy of a kernel $k$,

    $$\frac{\sum_{i \ne j} k(x_i, x_j)}{n(n-1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{m(m-1)}
      - \frac{2 \sum_{ij} k(x_i, y_j)}{nm},$$

    whose mean is zero for samples of one law. Values are not bounded below by zero.

    **Arguments:**

    - `x`: the first sample, points on the leading axis.
    - `y`: the second, the data say, from which a kernel may take its width.
    - `kernel`: `RBF()`, `Polynomial()`, `NegativeDistance()`; the first if not given.
    - `unbiased`: leave the diagonals out; otherwise the value is that of the two empirical laws,
      and non-negative.

    **Raises:** `ValueError` if points differ in shape, or there are fewer than two of them.

    **Reference:** Gretton, Borgwardt, Rasch, Scholkopf, Smola, A Kernel Two-Sample Test, 2012.
    """
    x, y = _vectors(x, y, 2)
    kernel = RBF() if kernel is None else kernel
    checks.instance("kernel", kernel, AbstractKernel, "RBF()")
    kernel = kernel.at(y)

    def within(x):
        n = len(x)
        others = jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0, kernel.gram(x, x)))
        if unbiased:
            return others / (n * (n - 1))
        # One by one, where no difference of large numbers blurs that a point is at itself.
        same = jax.vmap(lambda a: kernel.gram(a[None], a[None])[0, 0])(x)
        return (others + jnp.sum(same)) / n**2

    return within(x) + within(y) - 2 * jnp.mean(kernel.gram(x, y))


def energy_distance(x: Points, y: Points, unbiased: bool = False) -> Float[Array, ""]:
    r"""$2\,\mathbb E|X - Y| - \mathbb E|X - X'| - \mathbb E|Y - Y'|$ of the two empirical laws.

    It is `squared_mmd` with the kernel $-|x - y|$: a squared distance, zero for equal laws only.

    **Arguments:**

    - `x`, `y`: the samples, points on the leading axis.
    - `unbiased`: leave out the distance of a point to itself, as `squared_mmd` does.

    **Raises:** `ValueError` if points differ in shape, or there are fewer than two of them.

    **Reference:** Szekely, Rizzo, Energy Statistics: A Class of Statistics Based on Distances,
    2013.
    """
    return squared_mmd(x, y, NegativeDistance(), unbiased)


def sliced_wasserstein(
    x: Points, y: Points, key: PRNGKeyArray, num_projections: int = 200
) -> Float[Array, ""]:
    r"""The sliced Wasserstein distance of order 2: the root of the mean, over random unit vectors
    $u$, of the squared Wasserstein distance of the numbers $u^\top x_i$ and $u^\top y_j$.

    On a line sorted numbers belong together; samples of different sizes are compared as step
    functions, without interpolation.

    **Arguments:**

    - `x`, `y`: the samples, points on the leading axis.
    - `key`: random key.
    - `num_projections`: number of directions.

    **Raises:** `ValueError` if points differ in shape.

    **Reference:** Bonneel, Rabin, Peyre, Pfister, Sliced and Radon Wasserstein Barycenters of
    Measures, 2015.
    """
    checks.count("num_projections", num_projections)
    x, y = _vectors(x, y, 1)
    n, m = len(x), len(y)
    directions = jax.random.normal(key, (x.shape[1], num_projections), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=0)
    project = lambda a: jnp.sort(jnp.matmul(a, directions, precision="highest"), axis=0)
    # Both step functions are constant between multiples of 1/n and 1/m; in units of 1/(nm).
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate([[0], ends[:-1]])
    weights = jnp.asarray((ends - starts) / (n * m), x.dtype)
    gap = project(x)[starts // m] - project(y)[starts // n]
    mean = jnp.mean(weights @ gap**2)
    apart = mean > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, mean, 1)), mean)


def frechet_distance(x: Points, y: Points) -> Float[Array, ""]:
    r"""The squared Wasserstein distance of order 2 of the normal laws with the samples' moments,

    $$|\mu_x - \mu_y|^2 + \operatorname{tr}\big(C_x + C_y
      - 2 (C_x^{1/2} C_y C_x^{1/2})^{1/2}\big).$$

    The last trace is the sum of the singular values of $X Y^\top$ for centred samples $X$, $Y$, up
    to a factor: no covariance is formed, so singular ones do no harm.

    **Arguments:**

    - `x`, `y`: the samples, points on the leading axis; features of a network, say.

    **Raises:** `ValueError` if points differ in shape, or there are fewer than two of them.

    **Reference:** Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, GANs Trained by a Two
    Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017, arXiv:1706.08500.
    """
    x, y = _vectors(x, y, 2)
    means = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    scaled = lambda a, mean: (a - mean) / jnp.sqrt(jnp.asarray(len(a) - 1, a.dtype))
    x, y = scaled(x, means[0]), scaled(y, means[1])
    spread = jnp.sum(x**2) + jnp.sum(y**2) - 2 * _nuclear(x, y)
    return jnp.sum((means[0] - means[1]) ** 2) + jnp.maximum(spread, 0)


@jax.custom_jvp
def _nuclear(x, y):
    """The sum of the singular values of $x y^\\top$."""
    return _factors(x, y)[0]


def _factors(x, y):
    # The second factorization needs the first, so in a batch they run one behind the other.
    left, sizes, right = jnp.linalg.svd(x, full_matrices=False)
    with jax.default_matmul_precision("highest"):
        outer, values, inner = jnp.linalg.svd((y @ right.T) * sizes, full_matrices=False)
        # x y^T = left (y right^T sizes)^T = (left inner^T) values outer^T
        return jnp.sum(values), left @ inner.T, outer


@_nuclear.defjvp
def _nuclear_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    value, left, right = _factors(x, y)
    with jax.default_matmul_precision("highest"):
        # The derivative in a matrix is the product of its singular vectors.
        return value, jnp.vdot(left.T @ dx, right.T @ y) + jnp.vdot(left.T @ x, right.T @ dy)
