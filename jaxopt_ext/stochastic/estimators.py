"""Estimators of a gradient from minibatches, with and without variance reduction.

- `FullGradient`, `Minibatch`, `Momentum`: all samples, some, some with those of the past.
- `SVRG`, `SPIDER`, `PAGE`: a full gradient, or a big batch, now and then, and differences between.
- `STORM`: differences and momentum, never a big batch.
- `MSVR`: the same for the rows of a table, of which a step measures a few.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, scalar_field, tables, tree
from .oracle import Measurement, Oracle, change, measure, population, root_of_population


class Estimate(eqx.Module):
    """An estimate of $\\nabla f(x)$ and what the next one is made from.

    **Attributes:**

    - `gradient`: shaped like $x$.
    - `exact`: whether it is the full gradient, as it was computed.
    - `samples`: per-sample gradients so far.
    - `age`: updates so far.
    - `memory`: of `SVRG`, the snapshot and its full gradient.
    """

    gradient: PyTree[Array]
    exact: Bool[Array, ""]
    samples: Int[Array, ""]
    age: Int[Array, ""]
    memory: PyTree[Array] = None


def _first(found: Measurement, memory=None) -> Estimate:
    return Estimate(found.gradient, found.exact, found.samples, jnp.asarray(0, jnp.int32), memory)


def _next(estimate: Estimate, found: Measurement, memory=None) -> Estimate:
    samples = estimate.samples + found.samples
    return Estimate(found.gradient, found.exact, samples, estimate.age + 1, memory)


def _inexact(gradient, samples: int) -> Measurement:
    return Measurement(gradient, jnp.asarray(False), jnp.asarray(samples, jnp.int32))


class AbstractEstimator(eqx.Module):
    """A way to estimate the gradient along a sequence of points.

    `oracle` is what `minibatches` makes of a problem. Under `vmap` a big batch is computed in each
    step, and only used where it is due.
    """

    @abc.abstractmethod
    def init(self, oracle: Oracle, x: PyTree[Array], key: PRNGKeyArray) -> Estimate:
        """The estimate at the first point."""

    @abc.abstractmethod
    def update(
        self,
        oracle: Oracle,
        x: PyTree[Array],
        before: PyTree[Array],
        estimate: Estimate,
        key: PRNGKeyArray,
    ) -> Estimate:
        """The estimate at `x`, given that at the point `before` it."""


def _check_batch(name, value):
    if value is not None:
        checks.count(name, value)


class FullGradient(AbstractEstimator):
    """The gradient itself."""

    def init(self, oracle, x, key):
        return _first(measure(oracle, x, None, key))

    def update(self, oracle, x, before, estimate, key):
        return _next(estimate, measure(oracle, x, None, key))


class Minibatch(AbstractEstimator):
    """$v = \\nabla f_B(x)$ with a new batch each time.

    **Arguments:**

    - `batch`: its size.
    """

    batch: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.count("batch", self.batch)

    def init(self, oracle, x, key):
        return _first(measure(oracle, x, self.batch, key))

    def update(self, oracle, x, before, estimate, key):
        return _next(estimate, measure(oracle, x, self.batch, key))


class Momentum(AbstractEstimator):
    """$v = m v_{\\text{old}} + (1 - m) \\nabla f_B(x)$, biased by the way since the old gradients.

    **Arguments:**

    - `momentum`: $m \\in [0, 1)$.
    - `batch`: size of $B$.
    """

    momentum: Scalar = scalar_field(0.9)
    batch: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.interval("momentum", self.momentum, 0, 1, open_high=True)
        checks.count("batch", self.batch)

    def init(self, oracle, x, key):
        return _first(measure(oracle, x, self.batch, key))

    def update(self, oracle, x, before, estimate, key):
        found = measure(oracle, x, self.batch, key)
        gap = jax.tree.map(jnp.subtract, estimate.gradient, found.gradient)
        mixed = tree.axpy(found.gradient, self.momentum, gap)
        exact = found.exact & (self.momentum == 0)
        return _next(estimate, Measurement(mixed, exact, found.samples))


class SVRG(AbstractEstimator):
    """$v = \\nabla f_B(x) - \\nabla f_B(s) + \\nabla f(s)$, with the snapshot $s$ taken anew every
    `period` updates.

    **Arguments:**

    - `period`: updates between snapshots; `None` for $\\lceil n / b \\rceil$.
    - `batch`: $b$, the size of $B$.

    **Raises:** `ValueError` without a `period` for an `Expectation`.

    **Reference:** Johnson, Zhang, Accelerating Stochastic Gradient Descent using Predictive
    Variance Reduction, 2013.
    """

    period: int | None = eqx.field(static=True, default=None)
    batch: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        _check_batch("period", self.period)
        checks.count("batch", self.batch)

    def _period(self, oracle):
        if self.period is not None:
            return self.period
        root_of_population(oracle, "period")
        return -(-population(oracle) // self.batch)

    def init(self, oracle, x, key):
        self._period(oracle)
        found = measure(oracle, x, None, key)
        return _first(found, (x, found.gradient))

    def update(self, oracle, x, before, estimate, key):
        def renewed():
            found = measure(oracle, x, None, key)
            return found, (x, found.gradient)

        def corrected():
            snapshot, full = estimate.memory
            new, old, samples = change(oracle, x, snapshot, self.batch, key)
            gradient = jax.tree.map(lambda f, a, b: f + (a - b), full, new, old)
            return _inexact(gradient, samples), (snapshot, full)

        due = (estimate.age + 1) % self._period(oracle) == 0
        return _next(estimate, *loops.cond(due, renewed, corrected))


def _recursive(oracle, x, before, estimate, big_batch, batch, due, key):
    """A big batch where it is due, the old estimate plus a difference elsewhere."""

    def renewed():
        return measure(oracle, x, big_batch, key)

    def moved():
        new, old, samples = change(oracle, x, before, batch, key)
        gradient = jax.tree.map(lambda v, a, b: v + (a - b), estimate.gradient, new, old)
        return _inexact(gradient, samples)

    return _next(estimate, loops.cond(due, renewed, moved))


class SPIDER(AbstractEstimator):
    """$v = v_{\\text{old}} + \\nabla f_B(x) - \\nabla f_B(x_{\\text{old}})$ with one batch at both
    points, and anew from a big batch every `period` points, the first among them.

    **Arguments:**

    - `period`: points from one big batch to the next; `None` for $\\lceil \\sqrt n \\rceil$.
    - `batch`: size of $B$; `None` for $\\lceil \\sqrt n \\rceil$.
    - `big_batch`: samples of a big batch; `None` for the full gradient.

    **Raises:** `ValueError` for an `Expectation` without `period` or `batch`.

    **Reference:** Fang, Li, Lin, Zhang, SPIDER: Near-Optimal Non-Convex Optimization via Stochastic
    Path Integrated Differential Estimator, 2018, arXiv:1807.01695.
    """

    period: int | None = eqx.field(static=True, default=None)
    batch: int | None = eqx.field(static=True, default=None)
    big_batch: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        for name in ("period", "batch", "big_batch"):
            _check_batch(name, getattr(self, name))

    def _sizes(self, oracle):
        """Numbers given, or those of the paper."""
        period = self.period or root_of_population(oracle, "period")
        return period, self.batch or root_of_population(oracle, "batch")

    def init(self, oracle, x, key):
        self._sizes(oracle)
        return _first(measure(oracle, x, self.big_batch, key))

    def update(self, oracle, x, before, estimate, key):
        period, batch = self._sizes(oracle)
        due = (estimate.age + 1) % period == 0
        return _recursive(oracle, x, before, estimate, self.big_batch, batch, due, key)


class PAGE(AbstractEstimator):
    """As `SPIDER`, but a coin says when the big batch is due.

    **Arguments:**

    - `probability`: that of a big batch, in (0, 1]; `None` for $b / (b + b_{\\text{big}})$.
    - `batch`: $b$, size of the batch of a difference; `None` for $\\lceil \\sqrt n \\rceil$.
    - `big_batch`: $b_{\\text{big}}$; `None` for the full gradient.

    **Raises:** `ValueError` for an `Expectation` without `batch`, or without both `big_batch` and
    `probability`.

    **Reference:** Li, Bao, Zhang, Richtárik, PAGE: A Simple and Optimal Probabilistic Gradient
    Estimator for Nonconvex Optimization, 2021, arXiv:2008.10898.
    """

    probability: Scalar | None = scalar_field(None)
    batch: int | None = eqx.field(static=True, default=None)
    big_batch: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.probability is not None:
            checks.interval("probability", self.probability, 0, 1, open_low=True)
        for name in ("batch", "big_batch"):
            _check_batch(name, getattr(self, name))

    def sizes(self, oracle):
        """The small batch and the probability, given or those of the paper."""
        batch = self.batch or root_of_population(oracle, "batch")
        if self.probability is not None:
            return batch, self.probability
        if self.big_batch is None:
            root_of_population(oracle, "probability")
        big = self.big_batch or population(oracle)
        return batch, batch / (batch + big)

    def init(self, oracle, x, key):
        self.sizes(oracle)
        return _first(measure(oracle, x, self.big_batch, key))

    def update(self, oracle, x, before, estimate, key):
        batch, probability = self.sizes(oracle)
        coin, key = jax.random.split(key)
        due = jax.random.bernoulli(coin, probability)
        return _recursive(oracle, x, before, estimate, self.big_batch, batch, due, key)


class STORM(AbstractEstimator):
    """$v = \\nabla f_B(x) + (1 - a) (v_{\\text{old}} - \\nabla f_B(x_{\\text{old}}))$.

    **Arguments:**

    - `weight`: $a \\in (0, 1]$, that of the new batch.
    - `batch`: size of $B$.

    **Reference:** Cutkosky, Orabona, Momentum-Based Variance Reduction in Non-Convex SGD, 2019,
    arXiv:1905.10018.
    """

    weight: Scalar = scalar_field(0.1)
    batch: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.interval("weight", self.weight, 0, 1, open_low=True)
        checks.count("batch", self.batch)

    def init(self, oracle, x, key):
        return _first(measure(oracle, x, self.batch, key))

    def update(self, oracle, x, before, estimate, key):
        new, old, samples = change(oracle, x, before, self.batch, key)
        return _next(estimate, _inexact(storm(estimate.gradient, new, old, self.weight), samples))


def storm(
    estimate: PyTree[Array], new: PyTree[Array], old: PyTree[Array], weight: Scalar
) -> PyTree[Array]:
    """$h_{\\text{new}} + (1 - a) (v - h_{\\text{old}})$, the update of `STORM`.

    **Arguments:**

    - `estimate`: $v$.
    - `new`, `old`: one batch measured at the new point and at the old one.
    - `weight`: $a$.
    """
    return tree.axpy(new, 1 - weight, jax.tree.map(jnp.subtract, estimate, old))


class MSVR(eqx.Module):
    """Rows $s_i \\approx h_i(x)$ for $i \\le m$, of which each step measures $I$: the multi-block
    single-probe variance-reduced estimator

    $$s_i \\leftarrow (1 - a) s_i + a\\, h_i(x) + g\\, (h_i(x) - h_i(x_{\\text{old}}))$$

    of the rows that are measured, with one batch at both points, while the others stay. What a row
    has missed since it was last measured is made up for by $g$, in expectation if

    $$g = \\frac{m - I}{I (1 - a)} + (1 - a) .$$

    With $I = m$ that is `STORM`, with $g = 0$ a moving average. A large $g$ asks for small steps:
    with a moderate $a$ it makes methods diverge that are stable with a small one.

    **Arguments:**

    - `weight`: $a \\in (0, 1]$.
    - `correction`: $g \\ge 0$; `None` for the smaller of 1 and the number above.

    **Raises:** `ValueError` outside of these.

    **Reference:** Jiang, Li, Wang, Zhang, Yang, Multi-block-Single-probe Variance Reduced Estimator
    for Coupled Compositional Optimization, 2022, arXiv:2207.08540.
    """

    weight: Scalar = scalar_field(0.9)
    correction: Scalar | None = eqx.field(converter=checks.scalar, default=None)

    def __check_init__(self):
        checks.interval("weight", self.weight, 0, 1, open_low=True)
        if self.correction is not None:
            checks.nonnegative("correction", self.correction)

    def factor(self, total: int, measured: int) -> Scalar:
        """$g$ for $m$ and $I$."""
        if self.correction is not None:
            return self.correction
        left = 1 - jnp.asarray(self.weight)
        if total == measured:
            return left
        missed = (total - measured) / measured / jnp.where(left > 0, left, 1)
        return jnp.where(left > 0, jnp.minimum(missed + left, 1), 1)

    def update(
        self,
        table: PyTree[Array],
        index: Int[Array, " I"],
        new: PyTree[Array],
        old: PyTree[Array],
    ) -> PyTree[Array]:
        """The table after a step.

        **Arguments:**

        - `table`: the rows $s$, stacked on a leading axis $m$.
        - `index`: which are measured, none twice.
        - `new`, `old`: $h_i(x)$ and $h_i(x_{\\text{old}})$ of these, on a leading axis $I$.
        """
        rows = tables.read(table, index)
        total = jnp.shape(jax.tree.leaves(table)[0])[0]
        gap = tree.axpy(tree.scale(new, self.weight), 1 - self.weight, rows)
        change = jax.tree.map(jnp.subtract, new, old)
        return tables.write(table, index, tree.axpy(gap, self.factor(total, len(index)), change))
