"""Training that goes on from averaged weights (ASWA, NASWA, Switch EMA); stability over seeds."""

import warnings
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..core import checks
from .weight_switch import (
    ExponentialMean,
    NormFilteredMean,
    RunningMean,
    averaged_params as averaged_params,
    weight_switch,
)


def aswa(
    inner: optax.GradientTransformation,
    steps_per_epoch: int,
    norm_filter: bool = False,
    ord: Literal[1, 2] = 2,
    denominator: Literal["accepted", "iteration"] = "accepted",
    switch: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Aggressive stochastic weight averaging, and its norm-filtered form.

    Before every step of `inner` the weights $W$ enter the mean of all weights so far,

    $$c \leftarrow c + 1, \qquad \bar W \leftarrow \bar W + (W - \bar W)/c,$$

    and at the end of each epoch training goes on from the mean, $W = \bar W$; `inner` keeps its
    state. The mean spans all epochs. The spread of predictions and of explanations over random
    seeds shrinks.

    With `norm_filter` (NASWA) weights enter only if $\|W - \bar W\|$ exceeds the mean of these
    distances since weights last entered, 0 if there are none; those that enter start the list of
    distances anew.

    Running statistics outside the weights (batch normalisation) are not averaged: recompute them.

    **Arguments:**

    - `inner`: the optimizer that takes the steps.
    - `steps_per_epoch`: updates in an epoch.
    - `norm_filter`: average as NASWA does.
    - `ord`: 1 or 2, the norm over all leaves that NASWA filters by.
    - `denominator`: what NASWA divides by: `"accepted"`, the number of weights that entered, or
      `"iteration"`, the number of steps so far.
    - `switch`: `False` leaves the training alone and only keeps the mean.

    **Returns:** a transformation; `update` needs `params`. `averaged_params` reads the mean off the
    state, which holds one copy of the weights besides the state of `inner`.

    **Raises:** `ValueError` or `TypeError` naming the argument that is out of range.

    **Reference:** Madhyastha, Jain, On Model Stability as a Function of Random Seed, 2019,
    arXiv:1909.10447.
    """
    mean = NormFilteredMean(ord, denominator)
    return weight_switch(
        inner, mean if norm_filter else RunningMean(), steps_per_epoch, switch=switch
    )


def switch_ema(
    inner: optax.GradientTransformation,
    decay: float = 0.999,
    *,
    steps_per_epoch: int,
    switch_every: int = 1,
    switch_start: int = 0,
    decay_warmup: Literal["exp", "linear"] | None = None,
    switch: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Switch EMA: an exponential average of the weights that training goes on from.

    After every step of `inner`,

    $$W^{ema} \leftarrow a W^{ema} + (1 - a) W, \qquad W^{ema}_0 = W_0,$$

    and at the end of an epoch $W = W^{ema}$; the state of `inner` and the average itself go on
    untouched. Evaluate the average, which the weights equal after a switch.

    An average whose memory $1/(1-a)$ is much longer than an epoch holds training back at the first
    weights.

    **Arguments:**

    - `inner`: the optimizer that takes the steps.
    - `decay`: $a$, in [0, 1); 0.99 to 0.9999 by task.
    - `steps_per_epoch`: updates in an epoch.
    - `switch_every`: epochs between switches; with `steps_per_epoch=1`, steps.
    - `switch_start`: number of epochs at the end of which there is no switch yet.
    - `decay_warmup`: lets the average follow the weights closely at first. With $r = 1 - a$ and t
      from 0, `"exp"` has the rate $(1-r) e^{-(1+t)/2000} + r$ and `"linear"` the rate
      $\max(r, 0.1(1-r)(1-t/100))$ in place of r.
    - `switch`: `False` leaves the training alone: plain EMA.

    **Returns:** a transformation; `update` needs `params`. `averaged_params` reads the average off
    the state, which holds one copy of the weights besides the state of `inner`.

    **Raises:** `ValueError` or `TypeError` naming the argument that is out of range; warns when
    fewer than a tenth of an average's memory pass between switches.

    **Reference:** Li et al., Switch EMA: A Free Lunch for Better Flatness and Sharpness, 2024,
    arXiv:2402.09240.
    """
    aggregator = ExponentialMean(decay, decay_warmup)
    tx = weight_switch(
        inner,
        aggregator,
        steps_per_epoch,
        switch_every=switch_every,
        switch_start=switch_start,
        switch=switch,
    )
    interval = steps_per_epoch * switch_every
    if switch and not checks.is_traced(decay) and (1 - decay) * interval < 0.1:
        warnings.warn(
            f"decay {decay} averages over {1 / (1 - decay):.0f} steps but the weights are switched "
            f"every {interval}: training will hardly leave the first weights",
            stacklevel=2,
        )
    return tx


def prediction_std(accuracies: Float[Array, "seeds ..."]) -> Float[Array, "..."]:
    """Standard deviation of accuracies over seeds, the leading axis (with n - 1 below)."""
    return jnp.std(accuracies, axis=0, ddof=1)


def jaccard_topk(
    a: Float[Array, "*batch n"], b: Float[Array, "*batch n"], k: int
) -> Float[Array, "*batch"]:
    """Overlap of the k most important features of two explanations.

    **Arguments:**

    - `a`, `b`: importances; the last axis runs over features.
    - `k`: how many features count.

    **Returns:** $|A \\cap B| / |A \\cup B|$ of the two sets of k largest entries; ties go to the
    lower index.
    """
    checks.count("k", k)
    size = a.shape[-1]
    if k > size:
        raise ValueError(f"k must be at most the number of features {size}, got {k}")

    def chosen(x):
        return jnp.any(jax.nn.one_hot(jax.lax.top_k(x, k)[1], size, dtype=bool), axis=-2)

    first, second = chosen(a), chosen(b)
    dtype = jnp.result_type(a, b)
    return jnp.sum(first & second, -1).astype(dtype) / jnp.sum(first | second, -1).astype(dtype)


def relative_entropy(
    p: Float[Array, "*batch n"], q: Float[Array, "*batch n"]
) -> Float[Array, "*batch"]:
    """Kullback-Leibler divergence of two explanations, each scaled to sum to one.

    **Arguments:**

    - `p`, `q`: non-negative importances (attention weights, absolute saliencies); the last axis
      runs over features.

    **Returns:** $\\sum_i p_i \\log(p_i / q_i)$ in nats; infinite where q is zero and p is not.
    """
    p = p / jnp.sum(p, -1, keepdims=True)
    q = q / jnp.sum(q, -1, keepdims=True)
    return jnp.sum(jax.scipy.special.rel_entr(p, q), -1)
