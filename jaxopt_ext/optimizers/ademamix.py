"""AdEMAMix: a fast and a very slow mean of gradients."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks
from ._leafwise import is_zero, next_count
from ._precision import keep_wide


def _log(decay: Any) -> Any:
    """ln of a decay; of 0, the ln of 1e-8, as the official code has it."""
    if isinstance(decay, float | int):
        return math.log(decay if decay > 0 else 1e-8)
    return jnp.log(jnp.where(decay > 0, decay, 1e-8))


def _progress(t: Any, num_steps: int) -> Array:
    return jnp.minimum(jnp.asarray(t, float) / num_steps, 1)


def alpha_schedule(num_steps: int, alpha: float = 5.0) -> optax.Schedule:
    r"""$\alpha_t = \min(t/T, 1)\,\alpha$, of the number t of the update, counted from 1."""
    checks.count("num_steps", num_steps)
    return lambda t: _progress(t, num_steps) * alpha


def log_beta3_schedule(num_steps: int, b1: float = 0.9, b3: float = 0.9999) -> optax.Schedule:
    r"""$\ln\beta_{3,t}$, of the number t of the update, counted from 1.

    $\beta_{3,t} = \exp\frac{\ln\beta_1 \ln\beta_3}{(1-s)\ln\beta_3 + s\ln\beta_1}$ with
    $s = t/T$, and $\beta_3$ from T on: the half-life of the slow mean grows linearly from that of
    the fast one. The logarithm keeps $1 - \beta_{3,t}$ exact in single precision.
    """
    checks.count("num_steps", num_steps)
    start, end = _log(b1), _log(b3)

    def schedule(t):
        s = _progress(t, num_steps)
        return jnp.minimum(start * end / ((1 - s) * end + s * start), end)

    return schedule


class ScaleByAdEMAMixState(NamedTuple):
    """State of `ademamix`.

    - `count`: number of updates, which the schedules look at too.
    - `fast`: the fast mean; `None` with `b1=0`.
    - `slow`: the slow mean.
    - `nu`: the second moment.
    """

    count: Int[Array, ""]
    fast: PyTree[Array]
    slow: PyTree[Array]
    nu: PyTree[Array]


def scale_by_ademamix(
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    alpha: float = 5.0,
    T_alpha: int | None = None,
    T_beta3: int | None = None,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as AdEMAMix does; see `ademamix`."""
    alpha_at = (lambda t: alpha) if T_alpha is None else alpha_schedule(T_alpha, alpha)
    log_b3 = (lambda t: _log(b3)) if T_beta3 is None else log_beta3_schedule(T_beta3, b1, b3)

    def init(params):
        zeros = optax.tree.zeros_like(params)
        fast = None if is_zero(b1) else zeros
        return ScaleByAdEMAMixState(jnp.zeros([], jnp.int32), fast, zeros, optax.tree.real(zeros))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        count = next_count(state.count)
        weight, log_decay = alpha_at(count), log_b3(count)
        slow = jax.tree.map(
            lambda g, m: _scalar(jnp.exp(log_decay), m) * m - _scalar(jnp.expm1(log_decay), m) * g,
            updates,
            state.slow,
        )
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        fast, corrected = None, updates
        if state.fast is not None:
            fast = optax.tree.update_moment(updates, state.fast, b1, 1)
            corrected = optax.tree.bias_correction(fast, b1, count)
        direction = jax.tree.map(
            lambda f, s, v: (f + _scalar(weight, s) * s) / (jnp.sqrt(v) + eps),
            corrected,
            slow,
            optax.tree.bias_correction(nu, b2, count),
        )
        return direction, ScaleByAdEMAMixState(count, fast, slow, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _scalar(value: Any, like: Array) -> Float[Array, ""]:
    return jnp.asarray(value, like.real.dtype)


def ademamix(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    alpha: float = 5.0,
    T_alpha: int | None = None,
    T_beta3: int | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""AdEMAMix: AdamW with a second, very slow mean of gradients beside the first.

    $$m_1 \leftarrow \beta_1 m_1 + (1-\beta_1) g, \quad
    m_2 \leftarrow \beta_{3,t} m_2 + (1-\beta_{3,t}) g, \quad
    v \leftarrow \beta_2 v + (1-\beta_2) g^2,$$
    $$\theta \leftarrow \theta - \eta\Big(
    \frac{m_1/(1-\beta_1^t) + \alpha_t m_2}{\sqrt{v/(1-\beta_2^t)} + \epsilon}
    + \lambda\theta\Big).$$

    The slow mean is not corrected for its start at zero: it fills slowly, and $\alpha_t$ and
    $\beta_{3,t}$ grow with it, see `alpha_schedule` and `log_beta3_schedule`. A large $\alpha$
    without those schedules can diverge early.

    `optax.contrib.ademamix` (0.2.8) is the same but calls its schedules with t - 1 and forms
    $1 - \beta_3$ as a difference, which in single precision is off by 6e-4 of itself at 0.9999.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`, `b2`, `b3`: decays of the fast mean, the second moment and the slow mean, in [0, 1).
      With `b1=0` the fast mean is the gradient itself and is not stored.
    - `alpha`: weight of the slow mean.
    - `T_alpha`, `T_beta3`: updates until the schedules reach their ends, usually the length of the
      run; `None` takes the constants from the first update on.
    - `eps`: $\epsilon$.
    - `weight_decay`: $\lambda$, decoupled.

    **Raises:** `ValueError` or `TypeError` naming the argument: decays outside [0, 1), $\beta_3 <
    \beta_1$ with a schedule between them, negative `alpha` or `weight_decay`, non-positive `eps`,
    lengths below 1.

    **Reference:** Pagliardini, Ablin, Grangier, The AdEMAMix Optimizer: Better, Faster, Older,
    2025, arXiv:2409.03137.
    """
    for name, decay in (("b1", b1), ("b2", b2)):
        checks.interval(name, decay, 0.0, 1.0, open_high=True)
    checks.interval("b3", b3, 0.0, 1.0, open_low=True, open_high=True)
    checks.nonnegative("alpha", alpha)
    checks.positive("eps", eps)
    checks.nonnegative("weight_decay", weight_decay)
    if T_beta3 is not None and not checks.is_traced((b1, b3)) and b3 < b1:
        raise ValueError(f"b3 must be at least b1 = {b1}, got {b3}")
    tx = optax.chain(
        scale_by_ademamix(b1, b2, b3, alpha, T_alpha, T_beta3, eps),
        optax.identity() if is_zero(weight_decay) else optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return keep_wide(tx)
