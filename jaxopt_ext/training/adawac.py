"""Supervision and consistency under augmentation, weighed sample by sample, and its relatives."""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, tables
from .step import AbstractTrainingStep, check_parts, descend, keep, start, value_aux_gradient


class PairBatch(NamedTuple):
    """Two views of each sample with their labels, and the samples' rows in the table of weights.

    All leaves have the samples on their leading axis. For training on one view, give it twice.
    """

    view1: PyTree[Array]
    label1: PyTree[Array]
    view2: PyTree[Array]
    label2: PyTree[Array]
    index: Int[Array, " b"]


class PairState(eqx.Module):
    """Parameters, the optimizer's state, and the table of logarithms of weights."""

    params: PyTree
    opt_state: PyTree[Array]
    log_weights: Float[Array, "n ..."]
    step: Int[Array, ""]

    @property
    def weights(self) -> Float[Array, "n ..."]:
        """The weights of all samples: for `AdaWAC`, of supervision and of consistency."""
        return jnp.exp(self.log_weights)


def entropic_update(
    log_weights: Float[Array, "*n k"], losses: Float[Array, "*n k"], step: Any
) -> Float[Array, "*n k"]:
    r"""A step of mirror ascent with the entropy over simplices,

    $$w_j \leftarrow w_j e^{\eta \ell_j} / \textstyle\sum_i w_i e^{\eta \ell_i},$$

    in logarithms, so that a weight that has become very small can return.

    **Arguments:**

    - `log_weights`: $\log w$, each row a distribution.
    - `losses`: $\ell$.
    - `step`: $\eta$.
    """
    return jax.nn.log_softmax(log_weights + step * losses, axis=-1)


def saddle_value(supervised: Float[Array, " n"], consistency: Float[Array, " n"]) -> Array:
    r"""$\frac1n\sum_i\max(\ell_i^{CE}, \ell_i^{AC})$: the objective at the best weights of each."""
    return jnp.mean(jnp.maximum(supervised, consistency))


def pair_augment(
    key: PRNGKeyArray,
    samples: tuple[PyTree[Array], PyTree[Array]],
    index: Int[Array, " b"],
    augment: Callable[[PRNGKeyArray, PyTree[Array], PyTree[Array]], tuple[PyTree, PyTree]],
) -> PairBatch:
    """Two independent augmentations of each sample.

    **Arguments:**

    - `key`: random key.
    - `samples`: inputs and labels, stacked.
    - `index`: their rows in the table of weights.
    - `augment`: `(key, input, label) -> (input, label)` of one sample; a mask must be moved with
      its image.
    """
    x, y = samples
    first, second = (jax.random.split(k, len(index)) for k in jax.random.split(key))
    view1, label1 = jax.vmap(augment)(first, x, y)
    view2, label2 = jax.vmap(augment)(second, x, y)
    return PairBatch(view1, label1, view2, label2, index)


class MeanSquare(eqx.Module):
    r"""$\lambda\,\mathrm{mean}\,(\phi - \phi')^2$ over all entries of the features of two views.

    **Arguments:**

    - `scale`: $\lambda \ge 0$.

    **Raises:** `ValueError` for a negative scale.
    """

    scale: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)

    def __check_init__(self):
        checks.nonnegative("scale", self.scale)

    def __call__(self, first: PyTree[Array], second: PyTree[Array]) -> Float[Array, ""]:
        """The loss of one sample, from features of one structure."""
        squares = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), first, second))
        entries = sum(leaf.size for leaf in jax.tree.leaves(first))
        return jnp.asarray(self.scale, squares[0].dtype) * sum(squares[1:], squares[0]) / entries


class DiceLoss(eqx.Module):
    r"""One minus the overlap of prediction and labels, by class over a whole batch,

    $$\frac1C\sum_c 1 - \frac{2\sum p_c q_c + \epsilon}{\sum p_c^2 + \sum q_c^2 + \epsilon},$$

    with $p$ the softmax of the logits and $q$ the labels, one-hot. A class that is neither there
    nor predicted costs nothing.

    **Arguments:**

    - `logits`: `(params, view) -> (..., C)`, of one sample.
    - `num_classes`: $C$.
    - `smoothing`: $\epsilon$.

    **Raises:** `TypeError` or `ValueError` for arguments that are none of these.
    """

    logits: Callable[[PyTree, PyTree[Array]], Float[Array, "*p c"]]
    num_classes: int = eqx.field(static=True)
    smoothing: float = eqx.field(static=True, default=1e-5)

    def __check_init__(self):
        if not callable(self.logits):
            raise TypeError(f"logits must be a function, got {self.logits!r}")
        checks.count("num_classes", self.num_classes)
        checks.positive("smoothing", self.smoothing)

    def __call__(self, params: PyTree, batch: PairBatch) -> Float[Array, ""]:
        """The loss of both views of a batch, with labels in 0, ..., C - 1."""
        at = lambda view: jax.vmap(self.logits, (None, 0))(params, view)
        p = jax.nn.softmax(jnp.concatenate([at(batch.view1), at(batch.view2)]), axis=-1)
        labels = jnp.concatenate([batch.label1, batch.label2])
        q = jax.nn.one_hot(labels, self.num_classes, dtype=p.dtype)
        total = lambda a: jnp.sum(a, axis=tuple(range(a.ndim - 1)))
        overlap = 2 * total(p * q) + self.smoothing
        return jnp.mean(1 - overlap / (total(p**2) + total(q**2) + self.smoothing))


Supervised = Callable[[PyTree, PyTree[Array], PyTree[Array]], tuple[Float[Array, ""], PyTree]]


class AbstractPairTraining(AbstractTrainingStep):
    r"""Training on weighed losses of pairs of views,

    $$\frac1{|I|}\sum_{i\in I}(1-r)(\beta_{i1}\ell_i^{CE} + \beta_{i2}\ell_i^{AC})
    + r\,\ell^{extra}(I),$$

    with $\ell_i^{CE}$ the mean of the losses of both views and $\ell_i^{AC}$ their consistency. The
    methods differ in their weights, through which there is no derivative.

    The batches are `PairBatch`es; `fit` takes them stacked or from a function of the step. A batch
    whose rows are outside the table, or one of which is twice in it, leaves no trace and is
    reported as not `finite`.
    """

    supervised: eqx.AbstractVar[Supervised]
    tx: eqx.AbstractVar[optax.GradientTransformation]
    num_samples: eqx.AbstractVar[int]
    consistency: eqx.AbstractVar[Callable[[PyTree, PyTree], Float[Array, ""]]]
    extra_loss: eqx.AbstractVar[Callable[[PyTree, PairBatch], Float[Array, ""]] | None]
    extra_weight: eqx.AbstractVar[Any]

    def __check_init__(self):
        check_parts(self.tx, supervised=self.supervised, consistency=self.consistency)
        if self.extra_loss is not None and not callable(self.extra_loss):
            raise TypeError(f"extra_loss must be a function or None, got {self.extra_loss!r}")
        checks.count("num_samples", self.num_samples)
        checks.interval("extra_weight", self.extra_weight, 0.0, 1.0)

    @abc.abstractmethod
    def first(self, dtype: Any) -> Float[Array, "n ..."]:
        """The table of logarithms before the first step."""

    @abc.abstractmethod
    def weigh(
        self,
        rows: Float[Array, "b ..."],
        supervised: Float[Array, " b"],
        consistency: Float[Array, " b"],
        batch: PairBatch,
    ) -> tuple[Float[Array, "b ..."], Float[Array, "b 2"]]:
        """New rows of the table, and the weights of this batch's mean."""

    def losses(self, params: PyTree, batch: PairBatch) -> tuple[Array, Array]:
        """$\\ell^{CE}$ and $\\ell^{AC}$ of each sample."""

        def one(view1, label1, view2, label2):
            first, features1 = self.supervised(params, view1, label1)
            second, features2 = self.supervised(params, view2, label2)
            return (first + second) / 2, self.consistency(features1, features2)

        return jax.vmap(one)(*batch[:4])

    def check(self, batch):
        if not isinstance(batch, PairBatch):
            raise TypeError(f"a batch must be a PairBatch, got {type(batch).__name__}")
        tables.check(batch.index, self.num_samples)

    def init(self, params, batch, key):
        del key
        self.check(batch)
        dtype = jax.eval_shape(self.losses, params, batch)[0].dtype
        state = start(self.tx, params)
        return PairState(params, state, self.first(dtype), jnp.zeros((), jnp.int32))

    def step(self, state, batch):
        self.check(batch)
        old = tables.read(state.log_weights, batch.index)

        def objective(params):
            losses = self.losses(params, batch)
            rows, weights = jax.lax.stop_gradient(self.weigh(old, *losses, batch))
            total = jnp.mean(jnp.sum(weights * jnp.stack(losses, axis=-1), axis=-1))
            if self.extra_loss is not None:
                share = jnp.asarray(self.extra_weight, total.dtype)
                total = (1 - share) * total + share * self.extra_loss(params, batch)
            return total, (rows, weights, *losses)

        value, aux, gradient = value_aux_gradient(objective, state.params)
        rows, weights, supervised, consistency = aux
        sound = tables.is_sound(batch.index, self.num_samples)
        value = jnp.where(sound, value, jnp.nan)
        params, opt_state, finite = descend(self.tx, value, gradient, state.opt_state, state.params)
        finite = finite & jnp.all(jnp.isfinite(rows))
        params = keep(finite, params, state.params)
        opt_state = keep(finite, opt_state, state.opt_state)
        table = keep(finite, tables.write(state.log_weights, batch.index, rows), state.log_weights)
        metrics = {
            "loss": value,
            "finite": finite,
            "supervised": jnp.mean(supervised),
            "consistency": jnp.mean(consistency),
            "weight": jnp.mean(weights[:, 0]),
        }
        return PairState(params, opt_state, table, state.step + 1), metrics


class AdaWAC(AbstractPairTraining):
    r"""Adaptively weighted augmentation consistency: a sample is learned from where its labels say
    more, and made consistent under augmentation where they do not,

    $$\min_\theta\max_{\beta_i\in\Delta_2}\frac1n\sum_i \beta_{i1}\ell_i^{CE}(\theta)
    + \beta_{i2}\ell_i^{AC}(\theta),$$

    by online mirror descent: on a batch, $\beta_{ij} \leftarrow \beta_{ij}e^{\eta_\beta\ell_{ij}}$,
    normalised for each sample, then a step of the optimizer with these weights. At the saddle a
    sample goes to the larger of its two losses, so that those whose labels are sparse leave
    supervision as soon as they are fitted. The weights persist between epochs, in logarithms.

    For convex losses, with steps of order $1/\sqrt T$, the duality gap of the average iterate is
    $O(1/\sqrt T)$; the last iterate has no such bound.

    **Arguments:**

    - `supervised`: `(params, view, label) -> (loss, features)` of one sample.
    - `tx`: an `optax` transformation. The paper has SGD with momentum 0.9, weight decay 1e-4, and a
      step size of 0.01 that decays.
    - `num_samples`: $n$, rows of the table of weights.
    - `consistency`: `(features, features) -> scalar`, the consistency of two views; how it is
      scaled decides who wins.
    - `weight_step`: $\eta_\beta > 0$.
    - `extra_loss`: `(params, batch) -> scalar`, `DiceLoss` in the paper's code; `None` for the
      paper's objective.
    - `extra_weight`: $r$, its share.

    **Raises:** `ValueError` or `TypeError` for arguments out of range, and for rows outside the
    table or one twice in a batch, where their numbers can be looked at.

    **Reference:** Dong, Xie, Ward, Adaptively Weighted Data Augmentation Consistency Regularization
    for Robust Optimization under Concept Shift, 2023, arXiv:2210.01891.
    """

    supervised: Supervised
    tx: optax.GradientTransformation
    num_samples: int = eqx.field(static=True)
    consistency: Callable[[PyTree, PyTree], Float[Array, ""]] = eqx.field(
        default_factory=lambda: MeanSquare()
    )
    weight_step: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    extra_loss: Callable[[PyTree, PairBatch], Float[Array, ""]] | None = None
    extra_weight: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.5)

    def __check_init__(self):
        checks.positive("weight_step", self.weight_step)

    def first(self, dtype):
        return jnp.full((self.num_samples, 2), -math.log(2), dtype)

    def weigh(self, rows, supervised, consistency, batch):
        del batch
        step = jnp.asarray(self.weight_step, rows.dtype)
        rows = entropic_update(rows, jnp.stack([supervised, consistency], axis=-1), step)
        return rows, jnp.exp(rows)


class FixedWeights(AbstractPairTraining):
    """Weights that do not change: both a half is consistency regularization; one and zero is plain
    training on pairs, or on one view, if it is given twice.

    **Arguments:** those of `AdaWAC`, and

    - `weights`: of supervision and of consistency; shape `(2,)`, or `(n, 2)` for weights of each
      sample's own, one and zero where a sample is known to have dense labels, zero and one where
      not.

    **Raises:** `ValueError` for weights of another shape or sign, and as `AdaWAC`.

    **Reference:** Dong, Xie, Ward, Adaptively Weighted Data Augmentation Consistency Regularization
    for Robust Optimization under Concept Shift, 2023, arXiv:2210.01891.
    """

    supervised: Supervised
    tx: optax.GradientTransformation
    num_samples: int = eqx.field(static=True)
    weights: Float[Array, "*n 2"] = eqx.field(
        converter=jnp.asarray, default_factory=lambda: (0.5, 0.5)
    )
    consistency: Callable[[PyTree, PyTree], Float[Array, ""]] = eqx.field(
        default_factory=lambda: MeanSquare()
    )
    extra_loss: Callable[[PyTree, PairBatch], Float[Array, ""]] | None = None
    extra_weight: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.5)

    def __check_init__(self):
        shape = jnp.shape(self.weights)
        if shape not in ((2,), (self.num_samples, 2)):
            raise ValueError(f"weights must have shape (2,) or (n, 2), got {shape}")
        checks.nonnegative("weights", self.weights)

    def first(self, dtype):
        weights = jnp.broadcast_to(self.weights, (self.num_samples, 2))
        return jnp.log(jnp.asarray(weights, dtype))

    def weigh(self, rows, supervised, consistency, batch):
        del supervised, consistency, batch
        # What a step leaves alone need not be finite: the logarithm of zero is not.
        return jnp.maximum(rows, jnp.finfo(rows.dtype).min), jnp.exp(rows)


class Reweight(AbstractPairTraining):
    r"""Samples weighed by their supervised losses, without consistency: on a batch
    $w_i \leftarrow w_i e^{\eta\ell_i}$, normalised over the batch.

    **Arguments:** those of `AdaWAC`.

    **Raises:** as `AdaWAC`.

    **Reference:** Dong, Xie, Ward, Adaptively Weighted Data Augmentation Consistency Regularization
    for Robust Optimization under Concept Shift, 2023, arXiv:2210.01891.
    """

    supervised: Supervised
    tx: optax.GradientTransformation
    num_samples: int = eqx.field(static=True)
    consistency: Callable[[PyTree, PyTree], Float[Array, ""]] = eqx.field(
        default_factory=lambda: MeanSquare()
    )
    weight_step: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    extra_loss: Callable[[PyTree, PairBatch], Float[Array, ""]] | None = None
    extra_weight: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.5)

    def __check_init__(self):
        checks.positive("weight_step", self.weight_step)

    def first(self, dtype):
        return _uniform(self.num_samples, dtype)

    def weigh(self, rows, supervised, consistency, batch):
        del batch
        step = jnp.asarray(self.weight_step, rows.dtype)
        return _over_batch(entropic_update(rows, supervised, step), consistency)


class DroReweight(AbstractPairTraining):
    r"""Distributionally robust weights of samples, without consistency: on a batch
    $w_i \leftarrow w_i^{1-\eta\tau} e^{\eta\ell_i}$, normalised over the batch; the entropy's
    weight $\tau$ keeps them from a single sample.

    **Arguments:** those of `AdaWAC`, and

    - `entropy`: $\tau \ge 0$, with $\eta\tau \le 1$.

    **Raises:** as `AdaWAC`.

    **Reference:** Dong, Xie, Ward, Adaptively Weighted Data Augmentation Consistency Regularization
    for Robust Optimization under Concept Shift, 2023, arXiv:2210.01891.
    """

    supervised: Supervised
    tx: optax.GradientTransformation
    num_samples: int = eqx.field(static=True)
    consistency: Callable[[PyTree, PyTree], Float[Array, ""]] = eqx.field(
        default_factory=lambda: MeanSquare()
    )
    weight_step: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    entropy: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.1)
    extra_loss: Callable[[PyTree, PairBatch], Float[Array, ""]] | None = None
    extra_weight: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.5)

    def __check_init__(self):
        checks.positive("weight_step", self.weight_step)
        checks.nonnegative("entropy", self.entropy)
        checks.interval("weight_step * entropy", self.weight_step * self.entropy, 0.0, 1.0)

    def first(self, dtype):
        return _uniform(self.num_samples, dtype)

    def weigh(self, rows, supervised, consistency, batch):
        del batch
        step = jnp.asarray(self.weight_step, rows.dtype)
        flat = (1 - step * jnp.asarray(self.entropy, rows.dtype)) * rows
        return _over_batch(entropic_update(flat, supervised, step), consistency)


class Trim(AbstractPairTraining):
    r"""Supervision of a part of each batch only, without consistency, with weights that sum to the
    batch's size: of samples that `keep` accepts, or of the share with the largest losses.

    **Arguments:** those of `AdaWAC`, and

    - `ratio`: share of the batch that is kept, in (0, 1]; that with the largest supervised losses.
    - `keep`: `(label) -> bool`, whether a sample is looked at at all, `jnp.any` for those with
      labels; `None` for all.

    **Raises:** `ValueError` for a share outside (0, 1], and as `AdaWAC`.

    **Reference:** Dong, Xie, Ward, Adaptively Weighted Data Augmentation Consistency Regularization
    for Robust Optimization under Concept Shift, 2023, arXiv:2210.01891.
    """

    supervised: Supervised
    tx: optax.GradientTransformation
    num_samples: int = eqx.field(static=True)
    ratio: float = eqx.field(static=True, default=1.0)
    keep: Callable[[PyTree[Array]], Bool[Array, ""]] | None = None
    consistency: Callable[[PyTree, PyTree], Float[Array, ""]] = eqx.field(
        default_factory=lambda: MeanSquare()
    )
    extra_loss: Callable[[PyTree, PairBatch], Float[Array, ""]] | None = None
    extra_weight: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.5)

    def __check_init__(self):
        checks.interval("ratio", self.ratio, 0.0, 1.0, open_low=True)

    def first(self, dtype):
        return _uniform(self.num_samples, dtype)

    def weigh(self, rows, supervised, consistency, batch):
        kept = jnp.ones_like(supervised, bool)
        if self.keep is not None:
            kept = jax.vmap(self.keep)(batch.label1)
        ranked = jnp.where(kept, supervised, -jnp.inf)
        kept = kept & (ranked >= jnp.quantile(supervised, 1 - self.ratio))
        share = kept / jnp.maximum(jnp.sum(kept), 1).astype(rows.dtype)
        return rows, _paired(share * len(share), consistency)


def _uniform(n, dtype):
    return jnp.full(n, -math.log(n), dtype)


def _paired(weights, consistency):
    return jnp.stack([weights, jnp.zeros_like(consistency)], axis=-1)


def _over_batch(rows, consistency):
    """The rows, and weights whose mean over the batch is one."""
    return rows, _paired(jnp.exp(rows) * len(rows), consistency)
