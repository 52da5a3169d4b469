"""Training steps."""

import jax.numpy as jnp
import numpy as np
import optax

from .. import training
from .shapes import Row, TrainingRow

# Two layers, so that a gradient has a depth, on a batch of four.
WIDTH, BATCH, SAMPLES = 3, 4, 12


def _start(dtype):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return {"inner": draw(WIDTH, WIDTH) / 2, "outer": draw(WIDTH)}


def _hidden(params, x):
    return jnp.tanh(x @ params["inner"])


def _score(params, x):
    return _hidden(params, x) @ params["outer"]


def _data(num_steps, dtype, *shape):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(num_steps, *shape, WIDTH)), dtype)


def _regression(num_steps, dtype):
    x = _data(num_steps, dtype, BATCH)
    return x, jnp.sum(x, axis=-1)


def _squares(params, batch, context):
    del context
    x, y = batch
    error = jnp.mean((_score(params, x) - y) ** 2)
    return error, {"root": jnp.sqrt(error)}


def _pairs(num_steps, dtype):
    x, y = _regression(num_steps, dtype)
    index = jnp.arange(num_steps * BATCH, dtype=jnp.int32).reshape(num_steps, BATCH) % SAMPLES
    return training.PairBatch(x, y, x + 0.1, y, index)


def _supervised(params, view, label):
    return (_score(params, view) - label) ** 2, _hidden(params, view)


def _supervised_alone():
    # Nothing to be consistent about, and weights that stay what they are: half of the loss.
    ours = training.AdaWAC(
        _supervised, optax.adam(0.1), SAMPLES, lambda a, b: 0 * a[0], weight_step=1e-30
    )

    def half(params, batch, context):
        del context
        mean = lambda x, y: jnp.mean((_score(params, x) - y) ** 2)
        views = mean(batch.view1, batch.label1), mean(batch.view2, batch.label2)
        return (views[0] + views[1]) / 4, {}

    return ours, training.GradientStep(half, optax.adam(0.1))


def _bags(num_steps, dtype):
    index = jnp.arange(num_steps * BATCH, dtype=jnp.int32).reshape(num_steps, BATCH) % SAMPLES
    labels = jnp.tile(jnp.asarray([0, 1, 1, 0], jnp.int32), (num_steps, 1))
    mask = jnp.ones((num_steps, BATCH, 2), bool).at[:, 0, 1].set(False)
    return training.BagBatch(_data(num_steps, dtype, BATCH, 2), mask, labels, index)


def _bag_score(params, x):
    return jnp.tanh(_score(params, x))


def _branch_loss(params, x, y, branch):
    del branch
    return jnp.mean((_score(params, x) - y) ** 2)


def _clean_alone():
    ours = training.ConcurrentAdversarial(
        _branch_loss, training.FGSM(0.1, bounds=None), optax.adam(0.1), weights=(1.0, 0.0)
    )
    return ours, training.GradientStep(_squares, optax.adam(0.1))


TRAINING: tuple[Row, ...] = (
    TrainingRow(
        "Training by gradients",
        "training.GradientStep",
        "Robbins, Monro, A Stochastic Approximation Method, 1951",
        lambda: training.GradientStep(_squares, optax.adam(0.1)),
        start=_start,
        batches=_regression,
    ),
    TrainingRow(
        "AdaWAC",
        "training.AdaWAC",
        "Dong, Xie, Ward, Adaptively Weighted Data Augmentation Consistency Regularization for "
        "Robust Optimization under Concept Shift, 2023, arXiv:2210.01891",
        lambda: training.AdaWAC(_supervised, optax.adam(0.1), SAMPLES),
        system=("S163",),
        claim="training/adawac",
        start=_start,
        batches=_pairs,
        plain=_supervised_alone,
    ),
    TrainingRow(
        "MIDAM",
        "training.MIDAM",
        "Zhu, Wang, Chen, Wang, Sonka, Wu, Yang, Provable Multi-instance Deep AUC Maximization "
        "with Stochastic Pooling, 2023, arXiv:2305.08040",
        lambda: training.MIDAM(_bag_score, optax.adam(0.1), SAMPLES, gamma=0.5),
        system=("S145",),
        claim="training/midam",
        start=_start,
        batches=_bags,
    ),
    TrainingRow(
        "Concurrent adversarial training",
        "training.ConcurrentAdversarial",
        "Liu, Chen, Cheng, Hsieh, You, Concurrent Adversarial Learning for Large-Batch Training, "
        "2022, arXiv:2106.00221",
        lambda: training.ConcurrentAdversarial(
            _branch_loss, training.FGSM(0.1, bounds=None), optax.adam(0.1)
        ),
        system=("S077",),
        claim="training/concurrent_adversarial",
        start=_start,
        batches=_regression,
        plain=_clean_alone,
        delay=1,
    ),
)
