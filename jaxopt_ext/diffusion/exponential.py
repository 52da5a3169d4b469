"""Exponential integrators of the probability-flow equation: what the samplers share.

In $\\lambda = \\log(\\alpha/\\sigma)$ the equation has a linear part, which is integrated exactly,
and an output f of the model, which is expanded about the step's beginning s. With $h = \\lambda_t -
\\lambda_s$ and $\\varphi_{k+1}(z) = \\int_0^1 e^{(1-\\tau) z} \\tau^k/k!\\, d\\tau$,

$$x_t = \\kappa x_s + c \\sum_{k \\ge 0} \\varphi_{k+1}(z)\\, h^k f^{(k)}(\\lambda_s),$$

for the noise with $\\kappa = \\alpha_t/\\alpha_s$, $z = h$, $c = -\\sigma_t h$, for the data with
$\\kappa = \\sigma_t/\\sigma_s$, $z = -h$, $c = \\alpha_t h$. A sampler is a choice of how the
derivatives follow from outputs; all of it becomes weights of outputs, on the host.
"""

import abc
import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core import loops
from .denoiser import AbstractDenoiser, Sample, combine
from .schedules import Coefficients, Node, numbers


def phi(order: int, z: Coefficients) -> Coefficients:
    """$\\varphi_0 = e^z$ and $\\varphi_{k+1}(z) = (\\varphi_k(z) - 1/k!)/z$, exact near 0 too; in
    double precision on the host, for an array of JAX in its own type."""
    xp, z = numbers(z)
    near = xp.abs(z) < 1
    small, away = xp.where(near, z, 0.0), xp.where(near, 1.0, z)
    series = xp.zeros_like(small)
    for j in reversed(range(24)):
        series = series * small + 1.0 / math.factorial(j + order)
    value = xp.exp(away)
    for k in range(order):
        value = (value - 1 / math.factorial(k)) / away
    return xp.where(near, series, value)


class AbstractForm(eqx.Module):
    """Which output of the model is expanded."""

    @abc.abstractmethod
    def evaluate(self, model: AbstractDenoiser, x: Sample, node: Node) -> Sample:
        """The output f."""

    @abc.abstractmethod
    def linear(self, here: Node, there: Node) -> tuple[Coefficients, ...]:
        """$\\kappa$, $c$ and $z$ of steps from `here` to `there`."""

    @abc.abstractmethod
    def constant(self, here: Node, there: Node) -> tuple[Coefficients, Coefficients]:
        """$\\kappa$ and $c \\varphi_1(z)$, the weight of an output that stays the same; for an
        end without noise, $\\sigma_t = 0$, too."""

    @abc.abstractmethod
    def variables(self, node: Node) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
        """$a$ and $\\rho$ of the variables in which nothing is left but the output,
        $d(x/a)/d\\rho = f$."""


class NoiseForm(AbstractForm):
    """The predicted noise is expanded."""

    def evaluate(self, model, x, node):
        return model.noise(x, node)

    def linear(self, here, there):
        h = gap(here, there)
        return there.alpha / here.alpha, -there.sigma * h, h

    def constant(self, here, there):
        keep = there.alpha / here.alpha
        return keep, there.sigma - here.sigma * keep

    def variables(self, node):
        return node.alpha, node.sigma / node.alpha


class DataForm(AbstractForm):
    """The predicted data are expanded."""

    def evaluate(self, model, x, node):
        return model.data(x, node)

    def linear(self, here, there):
        h = gap(here, there)
        return there.sigma / here.sigma, there.alpha * h, -h

    def constant(self, here, there):
        keep = there.sigma / here.sigma
        return keep, there.alpha - here.alpha * keep

    def variables(self, node):
        return node.sigma, node.alpha / node.sigma


def gap(here: Node, there: Node) -> Coefficients:
    """$h = \\lambda_t - \\lambda_s$."""
    return log_snr(there) - log_snr(here)


def log_snr(node: Node) -> Coefficients:
    """$\\lambda$."""
    xp, alpha = numbers(node.alpha)
    return xp.log(alpha) - xp.log(node.sigma)


def derivatives(places: Float[np.ndarray, "*n p"]) -> Float[np.ndarray, "*n p p"]:
    """Weights of outputs at $\\lambda_s + r_j h$ in $h^k f^{(k)}$, a row for each k < p, such that
    polynomials of degree below p are exact.

    **Arguments:**

    - `places`: the p different $r_j$ of each step; 0 is the step's beginning.
    """
    places = np.asarray(places, np.float64)
    p = places.shape[-1]
    powers = places[..., None, :] ** np.arange(p)[:, None]
    factorials = np.diag(np.array([math.factorial(k) for k in range(p)], np.float64))
    # sum_j D[k, j] r_j^i = i! [i = k]
    return np.swapaxes(np.linalg.solve(powers, np.broadcast_to(factorials, powers.shape)), -1, -2)


def weigh(
    scale: Coefficients, phis: Sequence[Coefficients], rows: Float[np.ndarray, "*n q p"]
) -> Coefficients:
    """Weights of outputs in $c \\sum_k \\varphi_{k+1} h^k f^{(k)}$, shape `(*n, p)`, by those in
    the derivatives.

    **Arguments:**

    - `scale`: $c$, shape `(*n,)`.
    - `phis`: $\\varphi_1, \\dots, \\varphi_q$, each of that shape.
    - `rows`: see `derivatives`; of that shape in front, or the same for all steps.
    """
    xp, scale = numbers(scale)
    terms = xp.stack([scale * f for f in phis], -1)
    return xp.sum(terms[..., None] * xp.asarray(rows, terms.dtype), -2)


class MultistepRow(NamedTuple):
    """A step from the output at its beginning and those before, newest first,
    $x_t = \\kappa x_s + \\sum_j w_j f_j$."""

    node: Node
    keep: Coefficients
    weights: Coefficients


def multistep(
    form: AbstractForm, model: AbstractDenoiser, x: Sample, memory: tuple, row: MultistepRow
) -> tuple[Sample, tuple]:
    """The step, and the memory behind it; `memory` holds the p - 1 outputs before, newest first."""
    outputs = (form.evaluate(model, x, row.node), *memory)
    return weighted(row.keep, x, row.weights, outputs), outputs[:-1]


def empty(x: Sample, count: int) -> tuple:
    """A memory of `count` outputs that are not known yet; their weights must be zero."""
    return tuple(jax.tree.map(jnp.zeros_like, x) for _ in range(count))


def weighted(keep, x: Sample, weights: Coefficients, outputs: tuple) -> Sample:
    """$\\kappa x + \\sum_j w_j f_j$."""
    return combine((keep, x), *((weights[j], f) for j, f in enumerate(outputs)))


class SinglestepRow(NamedTuple):
    """A step by stages inside it: stage i is $u_i = \\kappa_i x_s + \\sum_{j < i} w_{ij} f_j$, with
    $f_j$ the output at $u_j$ and its node; $u_0 = x_s$. The last row of weights gives the end.

    `stages` is how many outputs a step uses; weights of further ones are zero, and the last row is
    the end's for every step.
    """

    nodes: Node
    keep: Coefficients
    weights: Coefficients
    stages: Int[Array, ""] | Int[np.ndarray, " n"]


def singlestep(
    form: AbstractForm,
    model: AbstractDenoiser,
    x: Sample,
    row: SinglestepRow,
    *,
    uniform: bool = True,
) -> Sample:
    """The step; `uniform` says that all steps of the plan use all stages."""
    node = lambda i: Node(*(a[i] for a in row.nodes))
    outputs = (form.evaluate(model, x, node(0)),)
    count = row.keep.shape[0]
    for i in range(1, count):

        def stage(i=i, outputs=outputs):
            point = weighted(row.keep[i - 1], x, row.weights[i - 1], outputs)
            return form.evaluate(model, point, node(i))

        if uniform:
            new = stage()
        else:
            skipped = lambda outputs=outputs: jax.tree.map(jnp.zeros_like, outputs[0])
            new = loops.cond(i < row.stages, stage, skipped)
        outputs = (*outputs, new)
    return weighted(row.keep[-1], x, row.weights[-1], outputs)
