"""How a sample is made to agree with a measurement."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core import checks
from .denoiser import Sample, combine
from .measurement import AbstractMeasurement, Measured
from .schedules import Node


class AbstractConsistency(eqx.Module):
    """A move of one sample towards those that have the measurement y."""

    @abc.abstractmethod
    def impose(
        self, measurement: AbstractMeasurement, x: Sample, y: Measured, node: Node
    ) -> Sample:
        """The sample moved."""

    def free(self, measurement: AbstractMeasurement, direction: Sample) -> Sample:
        """What of a direction is not taken back by the move, or should not be gone at all."""
        del measurement
        return direction

    @property
    def looks(self) -> bool:
        """Whether the move depends on y."""
        return True


class Projection(AbstractConsistency):
    """The nearest sample that has it, $x + H^+ (y - Hx) = (I - H^+ H) x + H^+ y$."""

    def impose(self, measurement, x, y, node):
        return combine((1, x), (1, measurement.pseudo_inverse(_residual(measurement, x, y))))


class Transpose(AbstractConsistency):
    """A step along the transpose, $x + c H^T (y - Hx)$; for $c = 1$ and orthonormal rows, a mask's
    among them, it is the projection.

    **Arguments:**

    - `step_size`: $c$.

    **Raises:** `ValueError` if it is not positive.
    """

    step_size: float = 1.0

    def __check_init__(self):
        checks.positive("step_size", self.step_size)

    def impose(self, measurement, x, y, node):
        return combine((1, x), (self.step_size, measurement.adjoint(_residual(measurement, x, y))))


class Kaczmarz(AbstractConsistency):
    """A step of simultaneous algebraic reconstruction, $x + \\lambda H^T(y - Hx) / H^T H 1$, entry
    by entry; for tomography. Directions keep to what was not measured.

    **Arguments:**

    - `relaxation`: $\\lambda$, a number or a function of the `Node`.

    **Raises:** `ValueError` if it is a number that is not positive.
    """

    relaxation: float | Callable[[Node], Any] = 1.0

    def __check_init__(self):
        if not callable(self.relaxation):
            checks.positive("relaxation", self.relaxation)

    def impose(self, measurement, x, y, node):
        step = self.relaxation(node) if callable(self.relaxation) else self.relaxation
        back = measurement.adjoint(_residual(measurement, x, y))
        total = measurement.adjoint(measurement.forward(jax.tree.map(jnp.ones_like, x)))
        seen = lambda a, n: jnp.where(n > 0, a / jnp.where(n > 0, n, 1), 0)
        return combine((1, x), (step, jax.tree.map(seen, back, total)))

    def free(self, measurement, direction):
        return measurement.unmeasured(direction)


class Unconstrained(AbstractConsistency):
    """Nothing is imposed."""

    def impose(self, measurement, x, y, node):
        return x

    @property
    def looks(self):
        return False


def _residual(measurement, x, y):
    return jax.tree.map(jnp.subtract, y, measurement.forward(x))
