"""The one model that samplers call, whatever its network predicts."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core import checks
from .schedules import Node

Sample = PyTree[Float[Array, "..."]]


def combine(*terms: tuple[Any, Sample]) -> Sample:
    """Sum of coefficient times sample, in the samples' types."""
    coefficients, samples = zip(*terms, strict=True)

    def leaf(*parts):
        scaled = [jnp.asarray(c, p.dtype) * p for c, p in zip(coefficients, parts, strict=True)]
        return sum(scaled[1:], scaled[0])

    return jax.tree.map(leaf, *samples)


class AbstractPrediction(eqx.Module):
    """What a network predicts, and how noise and data follow from it."""

    @abc.abstractmethod
    def noise(self, output: Sample, x: Sample, node: Node) -> Sample:
        """$\\epsilon$ of $x = \\alpha x_0 + \\sigma\\epsilon$."""

    @abc.abstractmethod
    def data(self, output: Sample, x: Sample, node: Node) -> Sample:
        """$x_0$."""

    def inputs(self, x: Sample, node: Node) -> tuple[Sample, Node]:
        """What the network is called with."""
        return x, node


class Noise(AbstractPrediction):
    """The network predicts the noise $\\epsilon$."""

    def noise(self, output, x, node):
        return output

    def data(self, output, x, node):
        return combine((1 / node.alpha, x), (-node.sigma / node.alpha, output))


class Data(AbstractPrediction):
    """The network predicts the data $x_0$."""

    def noise(self, output, x, node):
        return combine((1 / node.sigma, x), (-node.alpha / node.sigma, output))

    def data(self, output, x, node):
        return output


class Velocity(AbstractPrediction):
    """The network predicts $v = \\alpha\\epsilon - \\sigma x_0$.

    **Reference:** Salimans, Ho, Progressive Distillation for Fast Sampling of Diffusion Models,
    2022, arXiv:2202.00512.
    """

    def noise(self, output, x, node):
        square = node.alpha**2 + node.sigma**2
        return combine((node.sigma / square, x), (node.alpha / square, output))

    def data(self, output, x, node):
        square = node.alpha**2 + node.sigma**2
        return combine((node.alpha / square, x), (-node.sigma / square, output))


class Score(AbstractPrediction):
    """The network predicts the score $\\nabla \\log p_t(x) = -\\epsilon/\\sigma$."""

    def noise(self, output, x, node):
        return combine((-node.sigma, output))

    def data(self, output, x, node):
        return combine((1 / node.alpha, x), (node.sigma**2 / node.alpha, output))


class Preconditioned(AbstractPrediction):
    """The network F predicts data through scaled inputs and outputs,

    $$x_0 = c_{skip} \\tfrac{x}{\\alpha}
    + c_{out} F\\big(c_{in} \\tfrac{x}{\\alpha}, c_{noise}\\big),$$
    $$c_{skip} = \\tfrac{s_d^2}{\\rho^2 + s_d^2},
    \\quad c_{out} = \\tfrac{\\rho s_d}{\\sqrt{\\rho^2 + s_d^2}},
    \\quad c_{in} = \\tfrac{1}{\\sqrt{\\rho^2 + s_d^2}},
    \\quad c_{noise} = \\tfrac14\\log\\rho,$$

    with $\\rho = \\sigma/\\alpha$. F gets $c_{noise}$ as the time of its node.

    **Arguments:**

    - `sigma_data`: $s_d$, the standard deviation of the data.

    **Reference:** Karras, Aittala, Aila, Laine, Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, arXiv:2206.00364.
    """

    sigma_data: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        checks.positive("sigma_data", self.sigma_data)

    def inputs(self, x, node):
        ratio = node.sigma / node.alpha
        scale = 1 / (node.alpha * jnp.sqrt(ratio**2 + self.sigma_data**2))
        return combine((scale, x)), node._replace(t=0.25 * jnp.log(ratio))

    def data(self, output, x, node):
        ratio = node.sigma / node.alpha
        total = ratio**2 + self.sigma_data**2
        skip = self.sigma_data**2 / total / node.alpha
        return combine((skip, x), (ratio * self.sigma_data / jnp.sqrt(total), output))

    def noise(self, output, x, node):
        return Data().noise(self.data(output, x, node), x, node)


class AbstractDenoiser(eqx.Module):
    """What samplers evaluate: noise and data of a noisy sample, whose noise and data they are,
    $x = \\alpha x_0 + \\sigma\\epsilon$."""

    @abc.abstractmethod
    def noise(self, x: Sample, node: Node) -> Sample:
        """The predicted noise in `x`."""

    @abc.abstractmethod
    def data(self, x: Sample, node: Node) -> Sample:
        """The predicted data behind `x`."""


class Denoiser(AbstractDenoiser):
    """A network with what it predicts.

    **Arguments:**

    - `network`: `(x, node) -> output`, both shaped like one sample or a batch; `node.t`,
      `node.alpha` and `node.sigma` are scalars.
    - `predicts`: `Noise()`, `Data()`, `Velocity()`, `Score()` or `Preconditioned()`.
    """

    network: Callable[[Sample, Node], Sample]
    predicts: AbstractPrediction = Noise()

    def __check_init__(self):
        if not isinstance(self.predicts, AbstractPrediction):
            raise TypeError(f"predicts must be an AbstractPrediction, got {self.predicts!r}")

    def noise(self, x, node):
        return self.predicts.noise(self.network(*self.predicts.inputs(x, node)), x, node)

    def data(self, x, node):
        return self.predicts.data(self.network(*self.predicts.inputs(x, node)), x, node)
