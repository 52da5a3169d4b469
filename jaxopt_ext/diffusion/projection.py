"""Denoising as projection to the data: distances, ideal denoisers, and how fast noise may fall."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import checks
from .denoiser import AbstractDenoiser, Data, Denoiser
from .schedules import Node


class DistanceFunction(eqx.Module):
    """$f(x) = \\tfrac12 \\text{dist}_K(x)^2$ of a set K of points in $\\mathbb R^n$.

    Its gradient is $x - P_K(x)$, which a denoiser predicts as $\\rho\\, e(x, \\rho)$ where
    $\\text{dist}_K(x) \\approx \\sqrt n \\rho$.

    **Arguments:**

    - `project`: $P_K$, from points of shape `(*batch, n)` to points of K of the same shape.

    **Raises:** `TypeError` if `project` cannot be called.

    **Reference:** Permenter, Yuan, Interpreting and Improving Diffusion Models from an Optimization
    Perspective, 2024, arXiv:2306.04848.
    """

    project: Callable[[Float[Array, "*batch n"]], Float[Array, "*batch n"]]

    def __check_init__(self):
        if not callable(self.project):
            raise TypeError(f"project must be callable, got {self.project!r}")

    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
        """$f(x)$."""
        return 0.5 * jnp.sum(self.gradient(x) ** 2, -1)

    def gradient(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """$x - P_K(x)$."""
        return x - self.project(x)

    def distance(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
        """$\\text{dist}_K(x)$."""
        return jnp.linalg.norm(self.gradient(x), axis=-1)

    def denoiser(self) -> Denoiser:
        """The model that predicts $P_K(x/\\alpha)$, at every level."""
        return Denoiser(lambda x, node: self.project(x / node.alpha), Data())


class IdealDenoiser(AbstractDenoiser):
    """The denoiser of least error for finitely many points, a weighted mean of them,

    $$\\hat x_0 = \\sum_i w_i p_i, \\qquad w = \\text{softmax}_i \\Big(
    -\\frac{|x - \\alpha p_i|^2}{2 \\sigma^2} \\Big).$$

    With `smoothing` c each point stands for a Gaussian $N(p_i, c^2 I)$; then
    $\\sigma^2$ becomes $v = \\sigma^2 + \\alpha^2 c^2$ and $\\hat x_0$ is
    $\\tfrac{\\sigma^2}{v} \\sum_i w_i p_i + \\tfrac{\\alpha c^2}{v} x$. Memory and
    time are those of a product of the samples with the points.

    **Arguments:**

    - `points`: $p$, shape `(m, n)`.
    - `smoothing`: $c \\ge 0$.

    Samples have the shape `(*batch, n)`.

    **Raises:** `ValueError` if `points` is no matrix or `smoothing` is negative.

    **Reference:** Permenter, Yuan, Interpreting and Improving Diffusion Models from an Optimization
    Perspective, 2024, arXiv:2306.04848.
    """

    points: Float[Array, "m n"]
    smoothing: float = 0.0

    def __check_init__(self):
        if jnp.ndim(self.points) != 2:
            raise ValueError(f"points must be a matrix, got shape {jnp.shape(self.points)}")
        checks.nonnegative("smoothing", self.smoothing)

    def data(self, x, node):
        points = jnp.asarray(self.points)
        alpha, sigma = (jnp.asarray(a, x.dtype) for a in (node.alpha, node.sigma))
        # distances from the middle of the points, so that less cancels
        middle = jnp.mean(points, 0)
        far, y = points - middle, x / alpha - middle
        square = (sigma / alpha) ** 2
        variance = square + self.smoothing**2
        inner = jnp.matmul(y, far.T, precision=jax.lax.Precision.HIGHEST)
        weights = jax.nn.softmax((inner - 0.5 * jnp.sum(far**2, 1)) / variance)
        mean = jnp.matmul(weights, far, precision=jax.lax.Precision.HIGHEST)
        return middle + (square * mean + self.smoothing**2 * y) / variance

    def noise(self, x, node):
        return Data().noise(self.data(x, node), x, node)


def relative_projection_error(
    model: AbstractDenoiser,
    distance: DistanceFunction,
    x: Float[Array, "*batch n"],
    node: Node,
) -> Float[Array, "*batch"]:
    """$|\\hat x_0(x, t) - P_K(x/\\alpha)| / \\text{dist}_K(x/\\alpha)$, the error of denoising as
    projection; infinite or not a number for points of K.

    **Arguments:**

    - `model`: a denoiser.
    - `distance`: of the set K.
    - `x`: noisy points.
    - `node`: their level.

    **Reference:** Permenter, Yuan, Interpreting and Improving Diffusion Models from an Optimization
    Perspective, 2024, arXiv:2306.04848.
    """
    y = x / node.alpha
    error = jnp.linalg.norm(model.data(x, node) - distance.project(y), axis=-1)
    return error / distance.distance(y)


def admissible(levels: Float[np.ndarray, " m"], eta: float, nu: float) -> bool:
    """Whether DDIM along these levels stays where denoising is projection.

    Suppose that, as long as $\\sqrt n \\rho/\\nu \\le \\text{dist}_K \\le \\nu \\sqrt n \\rho$, the
    relative projection error is at most $\\eta$. A step $\\rho' = (1 - b) \\rho$ then takes a
    distance d to one in $[(1 - b (1 + \\eta)) d,\\ (1 - b (1 - \\eta)) d]$. Levels are
    admissible if from $d = \\sqrt n \\rho$ at the first of them the worst distances keep these
    bounds after every step.

    **Arguments:**

    - `levels`: $\\rho$, positive and falling.
    - `eta`: $\\eta \\in [0, 1)$.
    - `nu`: $\\nu \\ge 1$.

    **Raises:** `ValueError` if levels do not fall, or numbers leave their ranges.

    **Reference:** Permenter, Yuan, Interpreting and Improving Diffusion Models from an Optimization
    Perspective, 2024, arXiv:2306.04848.
    """
    _check(eta, nu)
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not np.all(np.diff(levels) < 0) or levels[-1] <= 0:
        raise ValueError(f"levels must be a vector of positive numbers that fall, got {levels}")
    kept = levels[1:] / levels[:-1]
    low = np.cumprod((kept - (1 - kept) * eta) / kept)
    high = np.cumprod((kept + (1 - kept) * eta) / kept)
    # a constant rate at the limit is meant to pass
    slack = 1e-12 * len(levels)
    falls = np.all(kept >= (1 - kept) * eta)  # two negative factors would look like a distance
    return bool(falls and np.all(low * nu >= 1 - slack) and np.all(high <= nu * (1 + slack)))


def constant_rate(eta: float, nu: float, num_steps: int) -> float:
    """The largest b such that `num_steps` steps $\\rho' = (1 - b) \\rho$ are `admissible`,

    $$b = \\frac{c}{\\eta + c}, \\qquad c = 1 - \\nu^{-1/N}.$$

    **Arguments:**

    - `eta`: $\\eta \\in (0, 1)$.
    - `nu`: $\\nu \\ge 1$.
    - `num_steps`: N.

    **Raises:** `ValueError` if numbers leave their ranges.

    **Reference:** Permenter, Yuan, Interpreting and Improving Diffusion Models from an Optimization
    Perspective, 2024, arXiv:2306.04848.
    """
    _check(eta, nu)
    checks.positive("eta", eta)
    checks.count("num_steps", num_steps)
    spare = -np.expm1(-np.log(nu) / num_steps)
    return float(spare / (eta + spare))


def _check(eta, nu):
    checks.interval("eta", eta, 0.0, 1.0, open_high=True)
    checks.interval("nu", nu, 1.0, float("inf"), open_high=True)
