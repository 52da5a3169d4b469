"""Ranking of bags of instances by the area under the ROC curve, from a few instances of each."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, tables
from .step import AbstractTrainingStep, check_parts, descend, keep, start, value_aux_gradient


class AbstractPooling(eqx.Module):
    r"""A score of a bag, $h = f_2(f_1)$ with $f_1$ a mean over instances, so that a few of them
    give it without bias.

    $f_1$ is kept as a row of numbers in which nothing overflows, which need not be $f_1$ itself.
    """

    @abc.abstractmethod
    def inner(self, outputs: PyTree[Array], mask: Bool[Array, " i"]) -> PyTree[Array]:
        """$f_1$ of the instances that `mask` keeps, from the network's outputs for each."""

    @abc.abstractmethod
    def blend(self, old: PyTree[Array], new: PyTree[Array], gamma: Any) -> PyTree[Array]:
        r"""$(1-\gamma) s + \gamma f_1$."""

    @abc.abstractmethod
    def outer(self, row: PyTree[Array]) -> Float[Array, ""]:
        """$f_2(s)$."""

    @abc.abstractmethod
    def tangent(self, row: PyTree[Array], new: PyTree[Array]) -> Float[Array, ""]:
        r"""A number whose derivative in the weights is $f_2'(s)^\top\nabla f_1$, with $s$ fixed."""


def _masked_mean_log(x, mask):
    """Logarithm of the mean of the exponentials."""
    number = jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    return jax.nn.logsumexp(jnp.where(mask, x, -jnp.inf)) - jnp.log(number)


def _rate(gamma, dtype):
    """Logarithms of gamma and of what is left of one."""
    gamma = jnp.asarray(gamma, dtype)
    return jnp.log(gamma), jnp.log1p(-gamma)


class SmoothedMax(AbstractPooling):
    r"""$h = \tau\log\frac1m\sum_x e^{\phi(x)/\tau}$, near the largest score for small $\tau$.

    The network gives a scalar $\phi$; the row is $\log f_1$.

    **Arguments:**

    - `tau`: $\tau > 0$.

    **Raises:** `ValueError` for $\tau \le 0$.
    """

    tau: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.1)

    def __check_init__(self):
        checks.positive("tau", self.tau)

    def inner(self, outputs, mask):
        return _masked_mean_log(outputs / jnp.asarray(self.tau, outputs.dtype), mask)

    def blend(self, old, new, gamma):
        share, rest = _rate(gamma, new.dtype)
        return jnp.logaddexp(rest + old, share + new)

    def outer(self, row):
        return jnp.asarray(self.tau, row.dtype) * row

    def tangent(self, row, new):
        return self.outer(jnp.exp(jax.lax.stop_gradient(new - row)) * new)


class AttentionPooling(AbstractPooling):
    r"""$h = \sigma(s_1/s_2)$ with $s_1$ the mean of $e^{g(x)}\delta(x)$ and $s_2$ that of
    $e^{g(x)}$: an average of scores, weighed by attention.

    The network gives the pair $(g, \delta)$; the row is $(s_1/s_2, \log s_2)$. Its `gamma` may be a
    pair, of rates for $s_1$ and $s_2$.
    """

    def inner(self, outputs, mask):
        g, delta = outputs
        weights = jax.nn.softmax(jnp.where(mask, g, -jnp.inf))
        return jnp.sum(weights * jnp.where(mask, delta, 0)), _masked_mean_log(g, mask)

    def blend(self, old, new, gamma):
        first, second = gamma if isinstance(gamma, tuple) else (gamma, gamma)
        share, rest = _rate(second, new[1].dtype)
        total = jnp.logaddexp(rest + old[1], share + new[1])
        share, rest = _rate(first, new[1].dtype)
        kept = jnp.exp(rest + old[1] - total) * old[0]
        return kept + jnp.exp(share + new[1] - total) * new[0], total

    def outer(self, row):
        return jax.nn.sigmoid(row[0])

    def tangent(self, row, new):
        stop = jax.lax.stop_gradient
        slope = jax.nn.sigmoid(row[0]) * jax.nn.sigmoid(-row[0]) * jnp.exp(stop(new[1]) - row[1])
        return slope * (new[0] + (stop(new[0]) - row[0]) * new[1])


class MeanPooling(AbstractPooling):
    """$h$ is the mean of the scores."""

    def inner(self, outputs, mask):
        number = jnp.maximum(jnp.sum(mask), 1).astype(outputs.dtype)
        return jnp.sum(jnp.where(mask, outputs, 0)) / number

    def blend(self, old, new, gamma):
        gamma = jnp.asarray(gamma, new.dtype)
        return (1 - gamma) * old + gamma * new

    def outer(self, row):
        return row

    def tangent(self, row, new):
        return new


class MaxPooling(AbstractPooling):
    """$h$ is the largest score. That of a few instances is biased: it is for whole bags."""

    def inner(self, outputs, mask):
        return jnp.max(jnp.where(mask, outputs, -jnp.inf))

    def blend(self, old, new, gamma):
        gamma = jnp.asarray(gamma, new.dtype)
        return (1 - gamma) * old + gamma * new

    def outer(self, row):
        return row

    def tangent(self, row, new):
        return new


class BagBatch(NamedTuple):
    """A few bags.

    - `instances`: $B$ of each, leaves of shape `(S, B, ...)`.
    - `mask`: shape `(S, B)`, which of them there are.
    - `labels`: shape `(S,)`, 0 or 1, both of which must be there.
    - `index`: shape `(S,)`, the bags' rows in the table, none twice.
    """

    instances: PyTree[Array]
    mask: Bool[Array, "s b"]
    labels: Int[Array, " s"]
    index: Int[Array, " s"]


class BagSampler(eqx.Module):
    """Batches of as many positive and negative bags, and of as many instances of each, drawn
    without replacement; a function of the step, for `fit`.

    Bags are stored one behind the other, so that those of different sizes take no more room.

    **Arguments:**

    - `instances`: all of them, leaves with a common leading axis.
    - `lengths`: instances of each bag, in their order; shape `(n,)`, at least 1, known on the host.
    - `labels`: 0 or 1; shape `(n,)`.
    - `positives`, `negatives`: bags of each class in a batch.
    - `size`: $B$, instances of each; of a smaller bag all are taken, and the rest is masked. `None`
      takes whole bags.
    - `key`: random key.

    **Raises:** `ValueError` for lengths that do not add up, labels outside {0, 1}, and classes with
    fewer bags than are asked for.
    """

    instances: PyTree[Array]
    lengths: Int[Array, " n"]
    labels: Int[Array, " n"]
    positives: int = eqx.field(static=True)
    negatives: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    key: PRNGKeyArray
    offsets: Int[Array, " n"]
    longest: int = eqx.field(static=True)

    def __init__(self, instances, lengths, labels, positives, negatives, size=None, *, key):
        lengths, labels = np.asarray(lengths), np.asarray(labels)
        there = len(jax.tree.leaves(instances)[0])
        if lengths.ndim != 1 or lengths.size == 0 or lengths.min() < 1 or lengths.sum() != there:
            raise ValueError(f"lengths must be positive and add up to {there}, got {lengths}")
        if labels.shape != lengths.shape or not np.isin(labels, (0, 1)).all():
            raise ValueError(f"labels must be {len(lengths)} zeros and ones, got {labels}")
        for name, asked, found in (
            ("positives", positives, int(np.sum(labels == 1))),
            ("negatives", negatives, int(np.sum(labels == 0))),
        ):
            checks.count(name, asked)
            if asked > found:
                raise ValueError(f"{name} must be at most {found}, got {asked}")
        self.longest = int(lengths.max())
        self.size = self.longest if size is None else size
        checks.count("size", self.size)
        self.size = min(self.size, self.longest)
        self.instances = jax.tree.map(jnp.asarray, instances)
        self.lengths = jnp.asarray(lengths, jnp.int32)
        self.labels = jnp.asarray(labels, jnp.int32)
        self.offsets = jnp.asarray(np.cumsum(lengths) - lengths, jnp.int32)
        self.positives, self.negatives, self.key = positives, negatives, key

    def __call__(self, step: Int[Array, ""]) -> BagBatch:
        keys = jax.random.split(jax.random.fold_in(self.key, step), 3)
        index = jnp.concatenate(
            [
                _choose(keys[0], self.labels == 1, self.positives)[0],
                _choose(keys[1], self.labels == 0, self.negatives)[0],
            ]
        )
        there = jnp.arange(self.longest) < self.lengths[index][:, None]
        draw = lambda key, there: _choose(key, there, self.size)
        place, mask = jax.vmap(draw)(jax.random.split(keys[2], len(index)), there)
        rows = jnp.where(mask, self.offsets[index][:, None] + place, 0)
        instances = jax.tree.map(lambda leaf: leaf[rows], self.instances)
        return BagBatch(instances, mask, self.labels[index], index)


def _choose(key, allowed, number):
    """So many different places that are allowed, and which of them are, if there are fewer."""
    draws = jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0)
    values, places = jax.lax.top_k(draws, number)
    return places.astype(jnp.int32), values >= 0


def auc_margin_loss(
    scores: Float[Array, " s"],
    labels: Int[Array, " s"],
    a: Float[Array, ""],
    b: Float[Array, ""],
    alpha: Float[Array, ""],
    margin: Any = 1.0,
    coupling: Any = 1.0,
) -> Float[Array, ""]:
    r"""The saddle function of the area under the ROC curve with a margin,

    $$\mathbb E_+(h-a)^2 + \mathbb E_-(h-b)^2
    + \kappa\big(\alpha(c + \mathbb E_-h - \mathbb E_+h) - \tfrac12\alpha^2\big).$$

    At its saddle $a = \mathbb E_+h$, $b = \mathbb E_-h$, $\alpha = (c + b - a)_+$, where it is the
    variances of both classes and $\tfrac\kappa2(c+b-a)_+^2$. With $\kappa = 2$ and $\alpha$ free
    that is the mean of $(c - h_i + h_j)^2$ over pairs of a positive and a negative.

    **Arguments:**

    - `scores`, `labels`: $h$, and 0 or 1; a mean over a class that is not there is NaN.
    - `a`, `b`, `alpha`: the auxiliary variables.
    - `margin`: $c$.
    - `coupling`: $\kappa$.
    """
    good, bad = _class_means(labels, scores.dtype)
    margin, coupling = (jnp.asarray(value, scores.dtype) for value in (margin, coupling))
    gap = margin + bad(scores) - good(scores)
    return (
        good((scores - a) ** 2) + bad((scores - b) ** 2) + coupling * (alpha * gap - alpha**2 / 2)
    )


def _class_means(labels, dtype):
    positive = labels == 1
    mean = lambda where: lambda x: jnp.sum(jnp.where(where, x, 0)) / jnp.sum(where).astype(dtype)
    return mean(positive), mean(~positive)


class Primal(NamedTuple):
    """What is descended in: the network's parameters and both means."""

    params: PyTree
    a: Float[Array, ""]
    b: Float[Array, ""]


class BagState(eqx.Module):
    """State of `MIDAM`: primal and dual variables, the table of pooled numbers, visited bags."""

    primal: Primal
    alpha: Float[Array, ""]
    opt_state: PyTree[Array]
    table: PyTree[Array]
    visited: Bool[Array, " n"]
    step: Int[Array, ""]

    @property
    def params(self) -> PyTree:
        """The network's parameters."""
        return self.primal.params


class MIDAM(AbstractTrainingStep):
    r"""Maximization of the area under the ROC curve over bags, from a few instances of a few bags,

    $$\min_{w,a,b}\max_{\alpha\ge0}\ \mathbb E_+(h_i-a)^2 + \mathbb E_-(h_i-b)^2
    + \alpha(c + \mathbb E_-h_i - \mathbb E_+h_i) - \tfrac12\alpha^2,
    \qquad h_i = f_2(f_1(w; X_i)).$$

    The pooled score of a few instances is biased, as $f_2$ is not linear. So a table keeps a moving
    average of $f_1$ of each bag,

    $$s_i \leftarrow (1-\gamma)s_i + \gamma f_1(w; B_i),$$

    and the gradient passes through $f_1$ only, with $f_2'$ and all else at $s_i$. A bag that is
    seen for the first time starts at its $f_1$. After the optimizer's step in $w, a, b$,
    $\alpha \leftarrow (\alpha + \eta'(c + \mathbb E_-h - \mathbb E_+h - \alpha))_+$. With
    $\gamma = 1$ there is no memory: *naive* pooling of a part of a bag, exact pooling of a whole.

    Small $\gamma$ with fast weights divides by what is long past; tune it with the step size.

    **Arguments:**

    - `score`: `(params, instance) -> outputs`, what `pooling` wants of one instance: a scalar, or a
      pair for `AttentionPooling`.
    - `tx`: an `optax` transformation for $w, a, b$. The paper has momentum 0.1, weight decay 1e-5
      and a step size of 0.1.
    - `num_bags`: $n$, rows of the table.
    - `pooling`: how instances make a score.
    - `gamma`: $\gamma$ in (0, 1]; for attention it may be a pair, of rates for $s_1$ and $s_2$.
    - `margin`: $c$.
    - `dual_step`: $\eta' > 0$.
    - `coupling`: $\kappa$ of `auc_margin_loss`.
    - `lagged`: take the gradient at the table before its update, as the proof does; the paper's
      code takes it after.

    **Raises:** `ValueError` or `TypeError` for arguments out of range, and for batches with one
    class only, labels outside {0, 1}, bags outside the table or twice in a batch, where their
    numbers can be looked at; where not, these are reported as not `finite`.

    **Reference:** Zhu, Wang, Chen, Wang, Sonka, Wu, Yang, Provable Multi-instance Deep AUC
    Maximization with Stochastic Pooling, 2023, arXiv:2305.08040.
    """

    score: Callable[[PyTree, PyTree[Array]], PyTree[Array]]
    tx: optax.GradientTransformation
    num_bags: int = eqx.field(static=True)
    pooling: AbstractPooling = eqx.field(default_factory=lambda: SmoothedMax())
    gamma: Any = eqx.field(
        converter=lambda x: (
            tuple(map(checks.scalar, x)) if isinstance(x, tuple) else checks.scalar(x)
        ),
        default=0.9,
    )
    margin: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    dual_step: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.1)
    coupling: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    lagged: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_parts(self.tx, score=self.score)
        checks.count("num_bags", self.num_bags)
        if not isinstance(self.pooling, AbstractPooling):
            raise TypeError(f"pooling must be an AbstractPooling, got {self.pooling!r}")
        if isinstance(self.gamma, tuple) and not isinstance(self.pooling, AttentionPooling):
            raise TypeError("two rates gamma are for AttentionPooling")
        for gamma in self.gamma if isinstance(self.gamma, tuple) else (self.gamma,):
            checks.interval("gamma", gamma, 0.0, 1.0, open_low=True)
        checks.positive("dual_step", self.dual_step)
        checks.nonnegative("margin", self.margin)
        checks.positive("coupling", self.coupling)

    def inner(self, params: PyTree, instances: PyTree[Array], mask: Bool[Array, " i"]):
        """$f_1$ of one bag, from instances stacked on the leading axis."""
        return self.pooling.inner(jax.vmap(self.score, (None, 0))(params, instances), mask)

    def predict(
        self, params: PyTree, instances: PyTree[Array], mask: Bool[Array, "n i"]
    ) -> Float[Array, " n"]:
        """Scores of bags from all their instances, leaves of shape `(n, i, ...)`."""
        return jax.vmap(lambda *bag: self.pooling.outer(self.inner(params, *bag)))(instances, mask)

    def check(self, batch):
        if not isinstance(batch, BagBatch):
            raise TypeError(f"a batch must be a BagBatch, got {type(batch).__name__}")
        tables.check(batch.index, self.num_bags)
        if not isinstance(batch.labels, Tracer):
            labels = np.asarray(batch.labels)
            if np.any(other := ~np.isin(labels, (0, 1))):
                raise ValueError(f"labels must be 0 or 1, got {labels[other][0]}")
            if not np.all((labels.min(axis=-1) == 0) & (labels.max(axis=-1) == 1)):
                raise ValueError("a batch must have bags of both classes")
        if not isinstance(batch.mask, Tracer) and not np.all(
            np.any(np.asarray(batch.mask), axis=-1)
        ):
            raise ValueError("a bag has no instances: its mask is false everywhere")

    def init(self, params, batch, key):
        del key
        self.check(batch)
        bag = jax.tree.map(lambda leaf: leaf[0], (batch.instances, batch.mask))
        row = jax.eval_shape(self.inner, params, *bag)
        table = jax.tree.map(lambda s: jnp.zeros((self.num_bags, *s.shape), s.dtype), row)
        zero = jnp.zeros((), jax.eval_shape(self.pooling.outer, row).dtype)
        primal = Primal(params, zero, zero)
        visited = jnp.zeros(self.num_bags, bool)
        state = start(self.tx, primal)
        return BagState(primal, zero, state, table, visited, jnp.zeros((), jnp.int32))

    def step(self, state, batch):
        self.check(batch)
        stop, pooling = jax.lax.stop_gradient, self.pooling
        old = tables.read(state.table, batch.index)
        seen = tables.read(state.visited, batch.index)

        def objective(primal):
            new = jax.vmap(self.inner, (None, 0, 0))(primal.params, batch.instances, batch.mask)
            fixed = stop(new)
            blend = lambda old, new: pooling.blend(old, new, self.gamma)
            choose = lambda a, b: jax.vmap(jnp.where)(seen, a, b)
            rows = jax.tree.map(choose, jax.vmap(blend)(old, fixed), fixed)
            at = jax.tree.map(choose, old, fixed) if self.lagged else rows
            scores, tangents = jax.vmap(pooling.outer)(at), jax.vmap(pooling.tangent)(at, new)
            moving = scores + tangents - stop(tangents)
            args = primal.a, primal.b, state.alpha, self.margin, self.coupling
            return auc_margin_loss(moving, batch.labels, *args), (rows, scores)

        loss, (rows, scores), gradient = value_aux_gradient(objective, state.primal)
        known = jnp.all((batch.labels == 0) | (batch.labels == 1))
        known = known & tables.is_sound(batch.index, self.num_bags)
        loss = jnp.where(known, loss, jnp.nan)
        primal, opt_state, finite = descend(self.tx, loss, gradient, state.opt_state, state.primal)
        good, bad = _class_means(batch.labels, scores.dtype)
        gap = jnp.asarray(self.margin, scores.dtype) + bad(scores) - good(scores)
        ascent = jnp.asarray(self.dual_step, scores.dtype) * (gap - state.alpha)
        after = (
            jnp.maximum(state.alpha + ascent, 0),
            tables.write(state.table, batch.index, rows),
            tables.write(state.visited, batch.index, jnp.ones_like(seen)),
        )
        alpha, table, visited = keep(finite, after, (state.alpha, state.table, state.visited))
        metrics = {"loss": loss, "finite": finite, "gap": gap, "alpha": alpha}
        return BagState(primal, alpha, opt_state, table, visited, state.step + 1), metrics
