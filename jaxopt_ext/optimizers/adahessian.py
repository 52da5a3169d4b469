"""AdaHessian: Adam with the diagonal of the Hessian in place of the gradient's square."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ..core import checks, loops
from ._leafwise import is_zero, next_count, one_minus_power
from .hutchinson import hutchinson_diag, missing_curvature, require_real, with_curvature


class ScaleByAdaHessianState(NamedTuple):
    """Number of updates, key of the next signs, and the two moments."""

    count: Int[Array, ""]
    key: Key[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]


def spatial_average(
    diagonal: Float[Array, "..."], block_size: int = 1, spatial_axes: tuple[int, ...] = (2, 3)
) -> Float[Array, "..."]:
    """Average a diagonal of a Hessian over neighbours that share their curvature.

    **Arguments:**

    - `diagonal`: of one leaf. Leaves of three dimensions and more are kernels of convolutions: the
      mean over their spatial axes. Matrices: the mean over blocks of consecutive entries, the last
      of which may be smaller. Vectors and scalars: unchanged.
    - `block_size`: entries per block of a matrix.
    - `spatial_axes`: of a two-dimensional kernel; one of dimension k uses the first k of them.

    **Returns:** an array of the same shape.
    """
    if diagonal.ndim > 2:
        axes = tuple(axis for axis in spatial_axes[: diagonal.ndim - 2] if axis < diagonal.ndim)
        mean = jnp.mean(diagonal, axes, keepdims=True) if axes else diagonal
        return jnp.broadcast_to(mean, diagonal.shape)
    if diagonal.ndim < 2 or block_size == 1 or diagonal.size == 0:
        return diagonal
    blocks = math.ceil(diagonal.size / block_size)
    flat = jnp.pad(diagonal.reshape(-1), (0, blocks * block_size - diagonal.size))
    sizes = jnp.full(blocks, block_size, diagonal.dtype)
    sizes = sizes.at[-1].set(diagonal.size - (blocks - 1) * block_size)
    means = flat.reshape(blocks, block_size).sum(1) / sizes
    return jnp.repeat(means, block_size)[: diagonal.size].reshape(diagonal.shape)


def scale_by_adahessian(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    hessian_power: float = 1.0,
    n_samples: int = 1,
    block_size: int = 1,
    spatial_axes: tuple[int, ...] = (2, 3),
    update_each: int = 1,
    abs_before_average: bool = True,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian's direction, without learning rate and weight decay; see `adahessian`."""
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    checks.interval("hessian_power", hessian_power, 0.0, 1.0)
    checks.count("n_samples", n_samples)
    checks.count("block_size", block_size)
    checks.count("update_each", update_each)
    for axis in spatial_axes:
        checks.count("spatial_axes", axis, minimum=0)

    def init(params):
        require_real("adahessian", params)
        zeros = optax.tree.zeros_like(params)
        return ScaleByAdaHessianState(jnp.zeros([], jnp.int32), jax.random.key(seed), zeros, zeros)

    def update(updates, state, params=None, *, hvp_fn=None, **extra_args):
        del extra_args
        if hvp_fn is None:
            raise missing_curvature("adahessian", "hvp_fn")
        key, now = jax.random.split(state.key)

        def refreshed(nu):
            diagonal = hutchinson_diag(None, params, now, n_samples, hvp_fn=hvp_fn)
            if abs_before_average:
                diagonal = jax.tree.map(jnp.abs, diagonal)
            diagonal = jax.tree.map(
                lambda d: spatial_average(d, block_size, spatial_axes), diagonal
            )
            return optax.tree.update_moment_per_elem_norm(diagonal, nu, b2, 2)

        if update_each == 1:
            nu = refreshed(state.nu)
        else:
            due = state.count % update_each == 0
            nu = loops.cond(due, refreshed, lambda nu: nu, state.nu)
        count = next_count(state.count)
        refreshes = (count - 1) // update_each + 1
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)

        def direction(m, v):
            root = jnp.sqrt(v / one_minus_power(b2, refreshes.astype(v.dtype)))
            powered = root if is_one(hessian_power) else root**hessian_power
            return m / one_minus_power(b1, count.astype(m.dtype)) / (powered + eps)

        return jax.tree.map(direction, mu, nu), ScaleByAdaHessianState(count, key, mu, nu)

    return with_curvature("adahessian", optax.GradientTransformationExtraArgs(init, update))


def is_one(value) -> bool:
    """Whether a hyperparameter is known to be one; traced ones are not."""
    return isinstance(value, float | int) and value == 1


def adahessian(
    learning_rate: optax.ScalarOrSchedule = 0.15,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
    hessian_power: float = 1.0,
    n_samples: int = 1,
    block_size: int = 1,
    spatial_axes: tuple[int, ...] = (2, 3),
    update_each: int = 1,
    abs_before_average: bool = True,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaHessian: Adam that divides by the diagonal of the Hessian.

    The diagonal is estimated on the current batch by one product with random signs z, and averaged
    over neighbours ($D = \mathrm{avg}|z \odot Hz|$, see `spatial_average`):

    $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad
    v \leftarrow \beta_2 v + (1-\beta_2) D^2, \quad
    \theta \leftarrow \theta - \eta \Big( \frac{m/(1-\beta_1^t)}
    {\big(v/(1-\beta_2^t)\big)^{k/2} + \epsilon} + \lambda\theta \Big).$$

    A step costs a gradient and a Hessian-vector product, about two gradients more. Where the
    curvature vanishes the step is $m/\epsilon$: chain `scale_by_adahessian`, `optax.clip` and
    `optax.scale_by_learning_rate` if that is too long.

    The loss of the batch that the gradient comes from is an extra argument of `update`, or the
    Hessian-vector product itself:

    ```python
    updates, state = tx.update(grads, state, params, loss_fn=lambda p: loss(p, batch))
    updates, state = tx.update(grads, state, params, hvp_fn=lambda p, z: product(p, batch, z))
    ```

    Nodes with data of their own pass an `hvp_fn` that averages over them (`jax.lax.pmean`): the
    signs, which come from `seed`, are the same on all, and absolute values must be taken last.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`, `b2`: $\beta$, in [0, 1).
    - `eps`: $\epsilon$, in units of the Hessian to the power k.
    - `weight_decay`: $\lambda$, decoupled.
    - `hessian_power`: k in [0, 1]; 0 gives momentum.
    - `n_samples`: products per estimate.
    - `block_size`, `spatial_axes`: of the averages; `(0, 1)` for kernels stored HWIO.
    - `update_each`: the diagonal is estimated at every `update_each`-th step, and $v$ is kept in
      between; t in its correction counts estimates.
    - `abs_before_average`: as the authors' code does; the paper's formula averages signed entries.
    - `seed`: of the signs.

    **Returns:** a gradient transformation with a state of two numbers per parameter.

    **Raises:** `ValueError` or `TypeError` on bad hyperparameters; from `update` without `params`,
    or without a function that gives curvature; `TypeError` from `init` on complex parameters.

    **Reference:** Yao, Gholami, Shen, Mustafa, Keutzer, Mahoney, ADAHESSIAN: An Adaptive Second
    Order Optimizer for Machine Learning, 2021, arXiv:2006.00719.
    """
    if not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    checks.nonnegative("weight_decay", weight_decay)
    scale = scale_by_adahessian(
        b1, b2, eps, hessian_power, n_samples, block_size, spatial_axes, update_each,
        abs_before_average, seed,
    )  # fmt: skip
    decay = [] if is_zero(weight_decay) else [optax.add_decayed_weights(weight_decay)]
    return optax.chain(scale, *decay, optax.scale_by_learning_rate(learning_rate))
