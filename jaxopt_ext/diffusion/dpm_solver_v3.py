"""DPM-Solver-v3: exponential integrators whose linear part is taken from the model's statistics."""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ..core import checks, loops
from . import exponential
from .denoiser import combine
from .integrals import Integrals, Move
from .model_statistics import ModelStatistics
from .sampler import AbstractSampler, ends
from .schedules import Coefficients, Node
from .stepping import rising_orders


class AbstractDifferences(eqx.Module):
    """How derivatives follow from outputs at several levels."""

    @abc.abstractmethod
    def rows(self, places: Float[np.ndarray, " p"]) -> Float[np.ndarray, "p p"]:
        """Weights of outputs in the derivatives of orders 0 to p - 1 at the first place."""

    @abc.abstractmethod
    def ahead(self, order: int) -> int:
        """How many outputs a corrector uses after a predictor of this order."""


class Interpolation(AbstractDifferences):
    """Derivatives of the polynomial through all outputs."""

    def rows(self, places):
        return exponential.derivatives(places - places[0])

    def ahead(self, order):
        return order


class DividedDifferences(AbstractDifferences):
    """$k!$ times the divided difference of the first k + 1 outputs; less exact, and less sensitive
    to errors of the outputs."""

    def rows(self, places):
        count = len(places)
        rows = np.zeros((count, count))
        for k in range(count):
            gaps = places[: k + 1, None] - places[None, : k + 1] + np.eye(k + 1)
            rows[k, : k + 1] = math.factorial(k) / np.prod(gaps, 1)
        return rows

    def ahead(self, order):
        return order + 1


class _Output(NamedTuple):
    """$f = r\\hat\\epsilon - q x$ at a node."""

    node: Node
    noise: Coefficients
    linear: Coefficients


class _Row(NamedTuple):
    """The corrector's first weight is that of the output at the end, whose row `end` is; it is not
    asked for in the last step."""

    end: _Output
    predictor: Move
    corrector: Move
    last: Bool[np.ndarray, " n"]


class DPMSolverV3(AbstractSampler):
    """An exponential integrator whose linear part, scaling and offset are the model's own, for each
    coordinate and level of noise.

    With the statistics $l, s, b$, $f = (\\sigma\\hat\\epsilon - l x)/\\alpha$, and
    $L, S$ the integrals of $l, s$ in $\\lambda$ from the step's beginning,

    $$x_t = \\alpha_t e^{-L_t} \\Big(\\frac{x_s}{\\alpha_s}
    - \\int_{\\lambda_s}^{\\lambda_t} e^{L + S} (g + W)\\, d\\lambda\\Big), \\qquad
    g = e^{-S} f - W, \\quad W = \\int_{\\lambda_s}^{\\lambda} e^{-S} b,$$

    with g replaced by its expansion from p outputs. $l = 1$, $s = b = 0$ gives the multistep
    samplers in the predicted data, $l = b = 0$, $s = -1$ those in the predicted noise. One
    evaluation a step: the corrector makes the step again with the output at the predicted end,
    which then serves the next one; the last step is not corrected.

    Any statistics give a method of this order; good ones make its error small in few steps. Between
    their levels they are linear, so times need not be on them.

    **Arguments:**

    - `statistics`: a `ModelStatistics`, from `model_statistics`.
    - `order`: p, 1 to 3 in the paper.
    - `predictor`: `Interpolation()`, or `DividedDifferences()` for 5 or 6 evaluations.
    - `corrector`: `DividedDifferences()`, through p + 1 outputs, `Interpolation()`, through p, or
      `None`. With the first the order of convergence is at most two.
    - `corrected_above`: the time below which steps are not corrected; 1/2 under guidance.
    - `lower_order_final`: runs of fewer steps end with falling orders; 0 for none.

    **Raises:** `ValueError` if `order` is below 1, or, when run, exceeds the number of steps, or
    times leave the levels of the statistics; `TypeError` if a part is none.

    **Reference:** Zheng, Lu, Chen, Zhu, DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical
    Model Statistics, 2023, arXiv:2310.13268.
    """

    statistics: ModelStatistics
    order: int = 3
    predictor: AbstractDifferences = Interpolation()
    corrector: AbstractDifferences | None = DividedDifferences()
    corrected_above: float = 0.0
    lower_order_final: int = 10

    def __check_init__(self):
        checks.instance("statistics", self.statistics, ModelStatistics, "model_statistics(...)")
        checks.count("order", self.order)
        checks.instance("predictor", self.predictor, AbstractDifferences, "Interpolation()")
        if self.corrector is not None:
            checks.instance(
                "corrector", self.corrector, AbstractDifferences, "DividedDifferences()"
            )
        checks.count("lower_order_final", self.lower_order_final, 0)

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        count = len(here.t)
        orders = rising_orders(count, self.order, self.lower_order_final)
        levels = np.asarray(exponential.log_snr(schedule.nodes(times)))
        self.statistics.check_levels(levels)
        integrals = Integrals(self.statistics, levels)
        predicted, corrected = [], []
        for i, order in enumerate(orders):
            past = [i - k for k in range(order)]
            scale = there.alpha[i] / here.alpha[i], there.alpha[i]
            rows = self.predictor.rows(levels[past])
            row = integrals.step(past, i + 1, scale, rows, self.order)
            predicted.append(row)
            uses = 0 if self.corrector is None else self.corrector.ahead(order)
            if self.corrector is not None and uses > 1 and there.t[i] > self.corrected_above:
                nodes = [i, i + 1, *past[1 : uses - 1]]
                rows = self.corrector.rows(levels[nodes])
                row = integrals.step(nodes, i + 1, scale, rows, self.order + 1)
                corrected.append(
                    row._replace(weights=np.concatenate([row.weights[[1, 0]], row.weights[2:]]))
                )
            else:
                none = np.zeros_like(row.weights[:1])
                corrected.append(row._replace(weights=np.concatenate([none, row.weights])))
        stack = lambda rows: Move(*(np.stack(a) for a in zip(*rows, strict=True)))
        linear = integrals.linear[1:]
        shaped = np.reshape(there.alpha, (-1, *[1] * (linear.ndim - 1)))
        end = _Output(there, there.sigma / there.alpha, linear / shaped)
        return _Row(end, stack(predicted), stack(corrected), np.arange(count) == count - 1)

    def start(self, model, x, node):
        linear = self.statistics.linear_at(exponential.log_snr(node)) / node.alpha
        first = _evaluate(model, x, _Output(node, node.sigma / node.alpha, linear))
        return first, *exponential.empty(x, self.order - 1)

    def step(self, model, x, memory, row, key):
        predicted = _move(x, row.predictor, memory)

        def corrected():
            outputs = (_evaluate(model, predicted, row.end), *memory)
            return _move(x, row.corrector, outputs), outputs[:-1]

        return loops.cond(row.last, lambda: (predicted, memory), corrected)


def _evaluate(model, x, output):
    return combine((output.noise, model.noise(x, output.node)), (-output.linear, x))


def _move(x, row, outputs):
    moved = exponential.weighted(row.keep, x, row.weights, outputs)
    return combine((1.0, moved), (row.offset, jax.tree.map(jnp.ones_like, x)))
