"""Losses of linear models, with the structure that coordinate methods use.

Each is a smooth function of $z = Xw$: an average over the rows of $X$ of a scalar loss. Solvers
that change one coordinate keep $z$ up to date instead of computing it again.

A sparse matrix, `CSR` or `BCSR` of `jaxopt_ext_kernels`, may stand for $X$; it is never made dense.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import checks
from .operators import as_matrix, entrywise


class AbstractLinearLoss(eqx.Module):
    """$f(w) = \\frac1n \\sum_i \\ell(x_i^\\top w, y_i)$.

    **Arguments:**

    - `matrix`: $X$, shape `(n, d)`, dense or sparse.
    - `targets`: $y$, one entry per row.
    """

    matrix: eqx.AbstractVar[Float[Array, "n d"]]
    targets: eqx.AbstractVar[Array]

    def __check_init__(self):
        n = self.matrix.shape
        if len(n) < 2 or jnp.shape(self.targets)[: len(n) - 1] != n[:-1]:
            raise ValueError(
                f"matrix must have one row per target, got {n} and {jnp.shape(self.targets)}"
            )
        if 0 in n:
            raise ValueError(f"matrix must have rows and columns, got shape {n}")

    def __call__(self, w: Float[Array, "d *k"]) -> Float[Array, ""]:
        return self.of_predictions(self.matrix @ w)

    def of_predictions(self, z: Float[Array, "n *k"]) -> Float[Array, ""]:
        """The loss as a function of $z = Xw$."""
        return jnp.mean(self.losses(z))

    @abc.abstractmethod
    def losses(self, z: Float[Array, "n *k"]) -> Float[Array, " n"]:
        """$\\ell(z_i, y_i)$ for every row."""

    @property
    @abc.abstractmethod
    def curvature(self) -> float:
        """An upper bound on $\\ell''$ in $z$."""

    def coordinate_lipschitz(self) -> Float[Array, " d"]:
        """Upper bounds on $\\partial^2 f / \\partial w_j^2$."""
        squares = entrywise(lambda entries: jnp.square(jnp.abs(entries)), self.matrix)
        if isinstance(squares, jax.Array):
            return self.curvature * jnp.mean(squares, axis=0)
        n = squares.shape[0]
        return self.curvature * (jnp.ones(n, squares.dtype) @ squares) / n


class SquaredLoss(AbstractLinearLoss):
    """Least squares, $\\frac1{2n} \\|Xw - y\\|^2$; `targets` may have several columns."""

    matrix: Float[Array, "n d"] = eqx.field(converter=as_matrix)
    targets: Float[Array, "n *k"] = eqx.field(converter=jnp.asarray)

    def losses(self, z):
        squares = jnp.square(jnp.abs(z - self.targets))
        return 0.5 * jnp.sum(squares.reshape(squares.shape[0], -1), axis=1)

    @property
    def curvature(self):
        return 1.0


class LogisticLoss(AbstractLinearLoss):
    """Binary logistic regression, $\\frac1n \\sum_i \\log(1 + e^{z_i}) - y_i z_i$, with $y_i$ in
    $\\{0, 1\\}$."""

    matrix: Float[Array, "n d"] = eqx.field(converter=as_matrix)
    targets: Float[Array, " n"] = eqx.field(converter=jnp.asarray)

    def losses(self, z):
        return jax.nn.softplus(z) - self.targets * z

    @property
    def curvature(self):
        return 0.25


class MulticlassLogisticLoss(AbstractLinearLoss):
    """Multinomial logistic regression on integer classes; `w` has shape `(d, classes)`."""

    matrix: Float[Array, "n d"] = eqx.field(converter=as_matrix)
    targets: Int[Array, " n"] = eqx.field(converter=jnp.asarray)

    def losses(self, z):
        chosen = jnp.take_along_axis(z, self.targets[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(z, axis=1) - chosen

    @property
    def curvature(self):
        return 0.5


class HuberLoss(AbstractLinearLoss):
    """Huber's loss: quadratic within `delta` of the target, linear outside."""

    matrix: Float[Array, "n d"] = eqx.field(converter=as_matrix)
    targets: Float[Array, " n"] = eqx.field(converter=jnp.asarray)
    delta: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)

    def __check_init__(self):
        checks.positive("delta", self.delta)

    def losses(self, z):
        gap = jnp.abs(z - self.targets)
        inner = jnp.minimum(gap, self.delta)
        return inner * (gap - 0.5 * inner)

    @property
    def curvature(self):
        return 1.0


class PoissonLoss(AbstractLinearLoss):
    """Poisson regression with log link, $\\frac1n \\sum_i e^{z_i} - y_i z_i$. Its curvature has no
    bound, so methods that need one must search for a step size."""

    matrix: Float[Array, "n d"] = eqx.field(converter=as_matrix)
    targets: Float[Array, " n"] = eqx.field(converter=jnp.asarray)

    def losses(self, z):
        return jnp.exp(z) - self.targets * z

    @property
    def curvature(self):
        return float("inf")
