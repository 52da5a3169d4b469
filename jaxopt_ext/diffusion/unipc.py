"""UniPC: exponential integrators of any order, and a corrector for any sampler."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from ..core import checks, loops
from . import exponential
from .denoiser import AbstractDenoiser, AbstractPrediction, Data, Noise, Sample
from .exponential import AbstractForm, DataForm, MultistepRow
from .sampler import AbstractSampler, ends
from .schedules import Coefficients, Node
from .stepping import by_order, rising_orders

ALWAYS = 2**31 - 1
"""As `lower_order_final`: the last steps of every run have falling orders."""


class AbstractVariant(eqx.Module):
    """What stands for $\\varphi_2$ where a step has two outputs; further ones are weighed so that
    polynomials are exact."""

    @abc.abstractmethod
    def second(self, z: Coefficients) -> Coefficients:
        """The weight of $h f'$, over $c$."""


class BH1(AbstractVariant):
    """1/2, from $B(h) = h$; for very few steps without guidance."""

    def second(self, z):
        return np.full_like(z, 0.5)


class BH2(AbstractVariant):
    """$\\varphi_1(z)/2$, from $B(h) = e^h - 1$."""

    def second(self, z):
        return 0.5 * exponential.phi(1, z)


class Varying(AbstractVariant):
    """$\\varphi_2(z)$ itself: the coefficients of the exact integral."""

    def second(self, z):
        return exponential.phi(2, z)


class UniP(AbstractSampler):
    """The predictor of UniPC, a multistep exponential integrator of any order p,

    $$x_t = \\kappa x_s + c \\sum_{k < p} \\varphi_{k+1}(z)\\, h^k f^{(k)},$$

    with the derivatives of the polynomial through the last p outputs; $\\kappa, c, z$ as in
    `exponential`. Order 1 is `DDIM()`, orders 2 and 3 are `DPMSolverPP(MultiStep(order))`. One
    evaluation a step. Single steps with inner points are `DPMSolverPP(SingleStep(order))`.

    The first steps have orders 1, 2, ..., the last ones ..., 2, 1, and one that ends without noise
    has order 1. That is what few steps with a trained model want; with falling orders no run has
    more than the second order of convergence, so set `lower_order_final=0` where that is asked for.

    **Arguments:**

    - `order`: p.
    - `variant`: `BH2()`, `BH1()` or `Varying()`.
    - `form`: which output is expanded, `DataForm()` or `NoiseForm()`.
    - `lower_order_final`: runs of fewer steps end with falling orders: all, or with 0 none.

    **Raises:** `ValueError` if `order` is below 1 or, when run, exceeds the number of steps;
    `TypeError` if `variant` or `form` is none.

    **Reference:** Zhao, Bai, Rao, Zhou, Lu, UniPC: A Unified Predictor-Corrector Framework for Fast
    Sampling of Diffusion Models, 2023, arXiv:2302.04867.
    """

    order: int = 3
    variant: AbstractVariant = BH2()
    form: AbstractForm = DataForm()
    lower_order_final: int = ALWAYS

    def __check_init__(self):
        _check(self.order, self.variant, self.form, self.lower_order_final)

    @property
    def reaches_zero(self):
        return True

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        keep, weights = _predictor(self, here, there)
        return MultistepRow(here, keep, weights)

    def start(self, model, x, node):
        return exponential.empty(x, self.order - 1)

    def step(self, model, x, memory, row, key):
        return exponential.multistep(self.form, model, x, memory, row)


class _Correction(NamedTuple):
    """The step once more with the output at its end, newest first, and whether it is made."""

    keep: Coefficients
    weights: Coefficients
    made: Bool[np.ndarray, " n"]


class _UniPCRow(NamedTuple):
    there: Node
    keep: Coefficients
    weights: Coefficients
    correction: _Correction


class UniPC(AbstractSampler):
    """A predictor and a corrector of order p with one evaluation a step.

    `UniP` predicts $x_t$; the output there joins those of the steps before, and the step is made
    once more from $x_s$ with the polynomial through all p + 1. That output, from the predicted
    point, serves the next step too, so the corrector costs nothing and its order is p + 1. The last
    step is not corrected.

    **Arguments:**

    - `order`: p; 3, and 2 for strong guidance or very few steps.
    - `variant`, `form`, `lower_order_final`: as in `UniP`.

    **Raises:** as `UniP`.

    **Reference:** Zhao, Bai, Rao, Zhou, Lu, UniPC: A Unified Predictor-Corrector Framework for Fast
    Sampling of Diffusion Models, 2023, arXiv:2302.04867.
    """

    order: int = 3
    variant: AbstractVariant = BH2()
    form: AbstractForm = DataForm()
    lower_order_final: int = ALWAYS

    def __check_init__(self):
        _check(self.order, self.variant, self.form, self.lower_order_final)

    @property
    def reaches_zero(self):
        return True

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        return _UniPCRow(there, *_predictor(self, here, there), _corrector(self, here, there))

    def start(self, model, x, node):
        return self.form.evaluate(model, x, node), *exponential.empty(x, self.order - 1)

    def step(self, model, x, memory, row, key):
        predicted = exponential.weighted(row.keep, x, row.weights, memory)
        return _correct(self.form, model, x, predicted, memory, row.there, row.correction)


class UniC(AbstractSampler):
    """The corrector of UniPC after the steps of another sampler, whose order of convergence it
    raises by one, at no further evaluation.

    The other sampler does not ask again for the output at the point where a step begins: it gets
    the one that the corrector has, from the predicted point. `UniC(p, base=UniP(p))` is `UniPC(p)`.

    **Arguments:**

    - `order`: p, that of `base`.
    - `base`: a sampler that draws no noise and evaluates the model at the beginning of its steps.
    - `variant`, `form`, `lower_order_final`: as in `UniP`.

    **Raises:** `TypeError` if `base` is no sampler, `ValueError` if it draws noise; and as `UniP`.

    **Reference:** Zhao, Bai, Rao, Zhou, Lu, UniPC: A Unified Predictor-Corrector Framework for Fast
    Sampling of Diffusion Models, 2023, arXiv:2302.04867.
    """

    order: int
    base: AbstractSampler
    variant: AbstractVariant = BH2()
    form: AbstractForm = DataForm()
    lower_order_final: int = ALWAYS

    def __check_init__(self):
        _check(self.order, self.variant, self.form, self.lower_order_final)
        checks.instance("base", self.base, AbstractSampler, "DDIM()")
        if self.base.stochastic:
            raise ValueError(f"base must not draw noise, got {self.base!r}")

    @property
    def reaches_zero(self):
        return self.base.reaches_zero

    def evaluations(self, num_steps):
        return self.base.evaluations(num_steps)

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        return self.base.plan(schedule, times), here, there, _corrector(self, here, there)

    def start(self, model, x, node):
        outputs = self.form.evaluate(model, x, node), *exponential.empty(x, self.order - 1)
        return outputs, self.base.start(model, x, node)

    def step(self, model, x, memory, row, key):
        row, here, there, correction = row
        outputs, inner = memory
        predicts = Data() if isinstance(self.form, DataForm) else Noise()
        known = _KnownAt(model, here, x, predicts, outputs[0])
        predicted, inner = self.base.step(known, x, inner, row, key)
        x, outputs = _correct(self.form, model, x, predicted, outputs, there, correction)
        return x, (outputs, inner)


class _KnownAt(AbstractDenoiser):
    """A model that is not asked for its output at one point of one node, since that is known."""

    model: AbstractDenoiser
    node: Node
    point: Sample
    predicts: AbstractPrediction
    output: Sample

    def noise(self, x, node):
        known = lambda: self.predicts.noise(self.output, x, node)
        return loops.cond(self._is(x, node), known, lambda: self.model.noise(x, node))

    def data(self, x, node):
        known = lambda: self.predicts.data(self.output, x, node)
        return loops.cond(self._is(x, node), known, lambda: self.model.data(x, node))

    def _is(self, x, node):
        same = jax.tree.map(lambda a, b: jnp.all(a == b), x, self.point)
        return (node.t == self.node.t) & jnp.all(jnp.stack(jax.tree.leaves(same)))


def _check(order, variant, form, lower_order_final):
    checks.count("order", order)
    checks.instance("variant", variant, AbstractVariant, "BH2()")
    checks.instance("form", form, AbstractForm, "DataForm()")
    checks.count("lower_order_final", lower_order_final, 0)


def _predictor(sampler, here, there):
    """$\\kappa$, and weights of the outputs at the step's beginning and before."""
    count = len(here.t)
    orders = rising_orders(count, sampler.order, sampler.lower_order_final)
    keep, weights = np.zeros(count), np.zeros((count, sampler.order))
    for order, among, begin, end, places in by_order(orders, here, there):
        keep[among], weights[among, :order] = _weights(sampler, begin, end, places)
    if there.sigma[-1] == 0:
        keep[-1], weights[-1, 0] = (a[-1] for a in sampler.form.constant(here, there))
    return keep, weights


def _corrector(sampler, here, there):
    """The same with the output at the step's end in front; none in the last step."""
    count = len(here.t)
    orders = rising_orders(count, sampler.order, sampler.lower_order_final)
    keep, weights = np.ones(count), np.zeros((count, sampler.order + 1))
    for order, among, begin, end, places in by_order(orders[:-1], here, there):
        extended = np.concatenate([places, np.ones((len(among), 1))], 1)
        keep[among], rows = _weights(sampler, begin, end, extended)
        weights[among, 0], weights[among, 1 : order + 1] = rows[:, -1], rows[:, :-1]
    return _Correction(keep, weights, np.arange(count) < count - 1)


def _weights(sampler, begin, end, places) -> tuple[Coefficients, Any]:
    keep, scale, z = sampler.form.linear(begin, end)
    phis: list[Any] = [exponential.phi(k + 1, z) for k in range(places.shape[1])]
    if len(phis) == 2:
        phis[1] = sampler.variant.second(z)
    return keep, exponential.weigh(scale, phis, exponential.derivatives(places))


def _correct(form, model, x, predicted, outputs, there, row):
    """The corrected point and the outputs with the new one; the predicted ones in the last step."""

    def corrected():
        every = (form.evaluate(model, predicted, there), *outputs)
        return exponential.weighted(row.keep, x, row.weights, every), every[:-1]

    return loops.cond(row.made, corrected, lambda: (predicted, outputs))
