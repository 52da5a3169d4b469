"""OASIS: a diagonal of the Hessian for the directions, and a learning rate that finds itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ..core import checks
from ._leafwise import is_zero, next_count, one_minus_power, rate_at
from .hutchinson import (
    missing_curvature,
    require_real,
    running_diagonal,
    scalar_dtype,
    weighted_square,
    with_curvature,
)


class OASISState(NamedTuple):
    """State of `oasis`; what the variant does not use is `None`.

    - `count`: number of updates; `key`: of the next signs.
    - `diagonal`: running estimate D of the Hessian's diagonal, before truncation.
    - `mu`: running mean of the gradients.
    - `last_params`, `last_grads`: of the update before.
    - `rate`, `growth`: learning rate η of the last update and its ratio θ to the one before.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]
    diagonal: PyTree[Array]
    mu: PyTree[Array]
    last_params: PyTree[Array]
    last_grads: PyTree[Array]
    rate: PyTree[Float[Array, ""]]
    growth: PyTree[Float[Array, ""]]


def oasis(
    eta0: float = 1e-3,
    b2: float = 0.999,
    alpha: float = 1e-5,
    n_warmup: int = 100,
    adaptive: bool = True,
    b1: float = 0.0,
    learning_rate: optax.ScalarOrSchedule | None = None,
    seed: int = 0,
    *,
    stochastic: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""OASIS: scaled by the Hessian's diagonal, with a learning rate from local smoothness.

    The diagonal starts from the mean of several products with random signs z and is then a running
    mean; the learning rate $\eta_k$ grows by at most a given factor and never exceeds the inverse
    of twice the smoothness seen between the last two points, in the norm of the scaling:

    $$D_k = \beta_2 D_{k-1} + (1-\beta_2)\, z \odot \nabla^2 F(w_k) z, \qquad
    \hat D_k = \max(|D_k|, \alpha),$$

    $$\eta_k = \min\Big(\sqrt{1+\theta_{k-1}}\,\eta_{k-1},\;
    \frac{\|w_k - w_{k-1}\|_{\hat D_k}}
    {2\,\|\nabla F(w_k)-\nabla F(w_{k-1})\|^*_{\hat D_k}}\Big), \quad
    \theta_k = \frac{\eta_k}{\eta_{k-1}}, \quad
    w_{k+1} = w_k - \eta_k \hat D_k^{-1} \nabla F(w_k).$$

    There is no bound from $\theta$ at the second step, so `eta0` matters little. Where two points
    or their gradients are equal up to rounding the learning rate stays as it is.

    The loss of the current batch is an extra argument of `update`, or the gradient and the
    Hessian-vector product as functions:

    ```python
    updates, state = tx.update(grads, state, params, loss_fn=lambda p: loss(p, batch))
    updates, state = tx.update(grads, state, params, grad_fn=grad_fn, hvp_fn=hvp_fn)
    ```

    with `grad_fn(params)` and `hvp_fn(params, z)`. Both gradients in $\eta_k$ are of this batch,
    which costs one more gradient; `grads` must be of it too.

    **Arguments:**

    - `eta0`: learning rate of the first step; small (1e-6 to 1e-3).
    - `b2`: $\beta_2$ in [0, 1); 0.95 to 0.999 on mini-batches.
    - `alpha`: $\alpha$, in units of the Hessian.
    - `n_warmup`: products for the first diagonal.
    - `adaptive`: whether $\eta_k$ is found as above; else `learning_rate` is used.
    - `b1`: a running mean of the gradients (its bias corrected) takes the gradient's place in the
      step, as is usual for networks; 0 for none.
    - `learning_rate`: a number or a schedule, if and only if not `adaptive`.
    - `seed`: of the signs.
    - `stochastic`: if false the loss is the same at every step: the last gradient is kept, for one
      more copy of the parameters, instead of computed again.

    **Returns:** a gradient transformation. The state takes one number per parameter for D, one for
    the last point if adaptive (two if not stochastic), and one for momentum.

    **Raises:** `ValueError` or `TypeError` on bad hyperparameters; from `update` without `params`,
    or without a function that gives curvature; `TypeError` from `init` on complex parameters.

    **Reference:** Jahani, Rusakov, Shi, Richtárik, Mahoney, Takáč, Doubly Adaptive Scaled Algorithm
    for Machine Learning Using Second-Order Information, 2022, arXiv:2109.05198.
    """
    checks.positive("eta0", eta0)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("alpha", alpha)
    checks.count("n_warmup", n_warmup)
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    if adaptive == (learning_rate is not None):
        raise ValueError(
            "learning_rate must be given if and only if adaptive is False, got "
            f"learning_rate={learning_rate} and adaptive={adaptive}"
        )
    if learning_rate is not None and not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    keep_grads = adaptive and not stochastic

    def init(params):
        require_real("oasis", params)
        zeros, dtype = optax.tree.zeros_like(params), scalar_dtype(params)
        return OASISState(
            count=jnp.zeros([], jnp.int32),
            key=jax.random.key(seed),
            diagonal=zeros,
            mu=None if is_zero(b1) else zeros,
            last_params=params if adaptive else None,
            last_grads=zeros if keep_grads else None,
            rate=jnp.asarray(eta0, dtype) if adaptive else None,
            # In place of infinity, which times zero is not a number.
            growth=jnp.asarray(jnp.finfo(dtype).max / 2, dtype) if adaptive else None,
        )

    def adapted(grads, state, params, scale, grad_fn):
        """The learning rate of this step, and its ratio to the last one."""
        first = state.count == 0
        before = state.last_grads if keep_grads else grad_fn(state.last_params)
        inverse = jax.tree.map(lambda d: 1 / d, scale)
        moved = jnp.sqrt(weighted_square(optax.tree.sub(params, state.last_params), scale))
        turned = jnp.sqrt(weighted_square(optax.tree.sub(grads, before), inverse))
        eps = jnp.finfo(state.rate.dtype).eps
        rounding = jnp.maximum(1e-12, eps * jnp.sqrt(weighted_square(grads, inverse)))
        known = (moved > 0) & (turned > rounding)
        local = jnp.where(known, moved / (2 * jnp.where(known, turned, 1)), state.rate)
        rate = jnp.minimum(jnp.sqrt(1 + state.growth) * state.rate, local)
        rate = jnp.where(first, state.rate, rate).astype(state.rate.dtype)
        return rate, jnp.where(first, state.growth, rate / state.rate)

    def update(updates, state, params=None, *, grad_fn=None, hvp_fn=None, **extra_args):
        del extra_args
        if hvp_fn is None:
            raise missing_curvature("oasis", "hvp_fn")
        if adaptive and stochastic and grad_fn is None:
            raise missing_curvature("oasis", "grad_fn")
        key, now = jax.random.split(state.key)
        average = {"n_warmup": n_warmup, "decay": b2, "hvp_fn": hvp_fn}
        diagonal = running_diagonal(state.diagonal, state.count, params, now, **average)
        scale = jax.tree.map(lambda d: jnp.maximum(jnp.abs(d), alpha), diagonal)
        count = next_count(state.count)
        mu, ahead = None, updates
        if state.mu is not None:
            mu = optax.tree.update_moment(updates, state.mu, b1, 1)
            ahead = jax.tree.map(
                lambda m: m / one_minus_power(b1, count.astype(m.dtype)).astype(m.dtype), mu
            )
        if adaptive:
            rate, growth = adapted(updates, state, params, scale, grad_fn)
            used = rate
        else:
            rate = growth = None
            fixed = 0.0 if learning_rate is None else learning_rate  # never None, checked above
            used = rate_at(fixed, state.count, scalar_dtype(params))
        state = OASISState(
            count,
            key,
            diagonal,
            mu,
            params if adaptive else None,
            updates if keep_grads else None,
            rate,
            growth,
        )
        return jax.tree.map(lambda g, d: -used * g / d, ahead, scale), state

    return with_curvature("oasis", optax.GradientTransformationExtraArgs(init, update))
