"""EGN: exact Gauss-Newton steps from a system of the size of the batch."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks, loops
from ._leafwise import is_zero, next_count, one_minus_power, rate_at, require_params
from ._precision import keep_wide
from .hutchinson import require_real, scalar_dtype
from .per_sample import flat_jacobian

Loss = Literal["mse", "ce", "bce"]
Reset = Literal["increase", "goldstein", "conservative"]


class EGNState(NamedTuple):
    """State of `egn`; what the variant does not use is `None`.

    - `count`: number of updates.
    - `velocity`: running mean of the directions, like the parameters.
    - `step_size`: the last one that the line search accepted.
    - `damping`: λ for the next step.
    """

    count: Int[Array, ""]
    velocity: PyTree[Array]
    step_size: PyTree[Float[Array, ""]]
    damping: PyTree[Float[Array, ""]]


def egn(
    predict_fn: Callable[[PyTree[Array], Any], Float[Array, "..."]],
    loss: Loss = "mse",
    learning_rate: optax.ScalarOrSchedule = 1.0,
    damping: float = 1.0,
    momentum: float = 0.0,
    line_search: bool = False,
    adaptive_damping: bool = False,
    *,
    reset: Reset = "increase",
    armijo: float = 0.1,
    decrease: float = 0.8,
    increase: float = 1.5,
    max_trials: int = 15,
) -> optax.GradientTransformationExtraArgs:
    r"""Exact Gauss-Newton: the damped Gauss-Newton step without any d x d matrix.

    For the mean loss of b samples with c outputs each, Jacobian J of the outputs (bc x d),
    block-diagonal Hessian Q of the loss in them, and r minus its gradient in them, the step

    $$\Big(\tfrac1b J^\top Q J + \lambda I\Big) p = \tfrac1b J^\top r
    \qquad\text{is}\qquad
    p = J^\top \delta, \quad (Q J J^\top + b \lambda I)\, \delta = r$$

    (Duncan and Guttman), at a cost of $O(b^2c^2 d + b^3c^3)$ and the memory of J. The small system
    is positive definite for squared error, with $Q = I$, and solved by Cholesky; else it is
    unsymmetric and solved by LU, as Q has no inverse for the softmax.

    The batch is an extra argument of `update`; the gradients are not used and may be `None`:

    ```python
    updates, state = tx.update(None, state, params, batch=(x, y))
    ```

    **Arguments:**

    - `predict_fn`: maps parameters (in at least float32) and one input to its output: a scalar or
      a vector; logits for `"ce"` and `"bce"`.
    - `loss`: of one sample, summed over outputs:

        - `"mse"`: $\tfrac12 \|y - \phi\|^2$; y like the outputs.
        - `"ce"`: softmax cross-entropy; y a label, or a distribution over the c classes.
        - `"bce"`: sigmoid cross-entropy; y in [0, 1], like the outputs.

    - `learning_rate`: of the step, a number or a schedule; the largest one if `line_search`.
    - `damping`: λ, in units of the curvature. In rounding it is at least ten times the machine
      epsilon of the mean diagonal of $QJJ^\top$.
    - `momentum`: β; the mean of the directions $v \leftarrow \beta v + (1-\beta) p$, bias
      corrected, is stepped along. One number per parameter.
    - `line_search`: multiply the step size by `decrease` until the loss on the batch falls by
      `armijo` times what its slope promises, or `max_trials` are over.
    - `adaptive_damping`: λ is multiplied by 1.01 if the loss falls by less than a quarter of what
      the model promises, by 0.99 if by more than three quarters. One more evaluation of the loss,
      which is of the step as it leaves here.
    - `reset`: where the next search starts: `"increase"`: `increase` times the last step size;
      `"conservative"`: the last one; `"goldstein"`: the last one, which grows as long as the loss
      falls by more than 1 - `armijo` times what its slope promises.

    **Returns:** a gradient transformation. Its state is of a few bytes without momentum.

    **Raises:** `ValueError` or `TypeError` on bad hyperparameters; from `update` without `params`
    or `batch`, or with targets that do not fit the outputs.

    **Reference:** Korbit, Adeoye, Bemporad, Zanon, Exact Gauss-Newton Optimization for Training
    Deep Neural Networks, 2024, arXiv:2405.14402.
    """
    if not callable(predict_fn):
        raise TypeError(f"predict_fn must be a function of (params, input), got {predict_fn!r}")
    if loss not in Loss.__args__:
        raise ValueError(f"loss must be one of {Loss.__args__}, got {loss!r}")
    if reset not in Reset.__args__:
        raise ValueError(f"reset must be one of {Reset.__args__}, got {reset!r}")
    if not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    checks.nonnegative("damping", damping)
    checks.interval("momentum", momentum, 0.0, 1.0, open_high=True)
    checks.interval("armijo", armijo, 0.0, 0.5, open_low=True)
    checks.interval("decrease", decrease, 0.0, 1.0, open_low=True, open_high=True)
    checks.interval("increase", increase, 1.0, float("inf"))
    checks.count("max_trials", max_trials)

    def init(params):
        require_real("egn", params)
        dtype, count = scalar_dtype(params), jnp.zeros([], jnp.int32)
        return EGNState(
            count,
            None if is_zero(momentum) else optax.tree.zeros_like(params),
            rate_at(learning_rate, count, dtype) if line_search else None,
            jnp.asarray(damping, dtype) if adaptive_damping else None,
        )

    def search(value_at, value, slope, start, largest):
        """Step size and value that satisfy the conditions, as far as trials go."""
        rounding = jnp.finfo(value.dtype).eps

        def too_long(alpha, at):
            return ~(value - at + rounding >= -armijo * alpha * slope)

        def too_short(alpha, at):
            falls = value - at > -(1 - armijo) * alpha * slope
            return falls & (alpha < largest) & (reset == "goldstein")

        def wrong(trial):
            alpha, at, trials = trial
            return (too_long(alpha, at) | too_short(alpha, at)) & (trials < max_trials)

        def change(trial):
            alpha, at, trials = trial
            longer = jnp.minimum(increase * alpha, largest)
            alpha = jnp.where(too_long(alpha, at), decrease * alpha, longer)
            return alpha, value_at(alpha), trials + 1

        first = start, value_at(start), jnp.zeros([], jnp.int32)
        alpha, at, _ = loops.while_loop(wrong, change, first)
        return alpha, at

    def update(updates, state, params=None, *, batch=None, **extra_args):
        del updates, extra_args
        require_params(params, "egn")
        if batch is None:
            raise ValueError(
                "egn needs batch, inputs and targets stacked on leading axes: "
                "update(None, state, params, batch=(x, y))"
            )
        inputs, targets = batch
        flat, unravel = ravel_pytree(params)
        outputs, jacobian = flat_jacobian(predict_fn, params, inputs)
        outputs, jacobian = outputs.astype(flat.dtype), jacobian.astype(flat.dtype)
        samples = outputs.shape[0]
        targets = _targets(loss, targets, outputs)
        residual = _residual(loss, outputs, targets)
        penalty = state.damping if adaptive_damping else jnp.asarray(damping, jacobian.dtype)
        direction = gauss_newton_direction(loss, jacobian, outputs, residual, penalty)

        count = next_count(state.count)
        velocity = None
        if state.velocity is not None:
            velocity = optax.tree.update_moment(unravel(direction), state.velocity, momentum, 1)
            mean = ravel_pytree(velocity)[0]
            direction = mean / one_minus_power(momentum, count.astype(mean.dtype))

        def value_at(alpha):
            moved = unravel(flat + alpha * direction)
            predicted = jax.vmap(lambda x: jnp.ravel(predict_fn(moved, x)))(inputs)
            return _value(loss, predicted.astype(flat.dtype), targets)

        alpha = rate_at(learning_rate, state.count, flat.dtype)
        value = _value(loss, outputs, targets)
        gradient = -jnp.ravel(residual) @ jacobian / samples
        slope = jnp.dot(gradient, direction)
        step_size, after = None, None
        if line_search:
            growth = increase if reset == "increase" else 1.0
            start = jnp.minimum(growth * state.step_size, alpha)
            step_size, after = search(value_at, value, slope, start, alpha)
            alpha = step_size
        if adaptive_damping:
            after = value_at(alpha) if after is None else after
            penalty = _adapted(
                loss, penalty, jacobian, outputs, alpha * direction, alpha * slope, after - value
            )
        new = EGNState(count, velocity, step_size, penalty if adaptive_damping else None)
        return unravel(alpha * direction), new

    return keep_wide(optax.GradientTransformationExtraArgs(init, update))


def gauss_newton_direction(
    loss: Loss,
    jacobian: Float[Array, "bc d"],
    outputs: Float[Array, "b c"],
    residual: Float[Array, "b c"],
    damping: Float[Array, ""],
) -> Float[Array, " d"]:
    """The damped Gauss-Newton direction by the small system; see `egn`."""
    rows, samples = jacobian.shape[0], outputs.shape[0]
    matrix = _times_hessian(loss, outputs, jacobian @ jacobian.T)
    floor = 10 * jnp.finfo(matrix.dtype).eps * jnp.trace(matrix) / rows
    shift = jnp.maximum(samples * damping, floor).astype(matrix.dtype)
    # A zero Jacobian without damping: any multiplier gives a zero step.
    shift = jnp.where(shift > 0, shift, 1)
    matrix = matrix + shift * jnp.eye(rows, dtype=matrix.dtype)
    if loss == "mse":
        operator, solver = (
            lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag),
            lx.Cholesky(),
        )
    else:
        operator, solver = lx.MatrixLinearOperator(matrix), lx.LU()
    multiplier = lx.linear_solve(operator, jnp.ravel(residual), solver, throw=False).value
    return multiplier @ jacobian


def _targets(loss, targets, outputs):
    """Targets shaped like the outputs, labels turned into indicators."""
    targets = jnp.asarray(targets)
    if loss == "ce":
        if outputs.shape[1] < 2:
            raise ValueError(f"loss 'ce' needs at least two logits, got {outputs.shape[1]}; 'bce'?")
        if jnp.issubdtype(targets.dtype, jnp.integer):
            targets = jax.nn.one_hot(targets.reshape(-1), outputs.shape[1], dtype=outputs.dtype)
    if targets.size != outputs.size or targets.shape[0] != outputs.shape[0]:
        raise ValueError(f"targets of shape {targets.shape} do not fit outputs {outputs.shape}")
    return targets.reshape(outputs.shape).astype(outputs.dtype)


def _value(loss, outputs, targets):
    """Mean over samples of the loss, summed over outputs."""
    match loss:
        case "mse":
            each = 0.5 * (targets - outputs) ** 2
        case "ce":
            each = optax.softmax_cross_entropy(outputs, targets)
        case "bce":
            each = optax.sigmoid_binary_cross_entropy(outputs, targets)
    return jnp.sum(each) / outputs.shape[0]


def _residual(loss, outputs, targets):
    """Minus the gradient of each sample's loss in its outputs."""
    match loss:
        case "mse":
            return targets - outputs
        case "ce":
            return targets - jax.nn.softmax(outputs)
        case "bce":
            return targets - jax.nn.sigmoid(outputs)


def _times_hessian(loss, outputs, matrix):
    """Q times a matrix (or vector) with one row per output."""
    if loss == "mse":
        return matrix
    blocks = matrix.reshape(*outputs.shape, -1)
    if loss == "bce":
        p = jax.nn.sigmoid(outputs)[..., None]
        return (p * (1 - p) * blocks).reshape(matrix.shape)
    weighted = jax.nn.softmax(outputs)[..., None] * blocks
    projected = jax.nn.softmax(outputs)[..., None] * jnp.sum(weighted, 1, keepdims=True)
    return (weighted - projected).reshape(matrix.shape)


def _adapted(loss, damping, jacobian, outputs, step, promised, change):
    """Damping after a step with first-order change `promised` and actual change `change`."""
    image = jacobian @ step
    curvature = jnp.dot(image, _times_hessian(loss, outputs, image)) / outputs.shape[0]
    model = promised + curvature / 2
    agreement = change / jnp.where(model == 0, 1, model)
    factor = jnp.where(agreement < 0.25, 1.01, jnp.where(agreement > 0.75, 0.99, 1.0))
    return (damping * jnp.where(model == 0, 1.0, factor)).astype(damping.dtype)
