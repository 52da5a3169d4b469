"""EXAdam: Adam with cross-moment debiasing, a gradient term and a growing step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from ..core import checks
from ._leafwise import is_zero, next_count
from ._precision import keep_wide


class ScaleByEXAdamState(NamedTuple):
    """Number of updates and the two moments."""

    count: Int[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]


def scale_by_exadam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    dynamic_step_size: bool = True,
    cross_debias: bool = True,
    grad_acceleration: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as EXAdam does; see `exadam`."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ScaleByEXAdamState(jnp.zeros([], jnp.int32), zeros, optax.tree.real(zeros))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        count = next_count(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)

        def direction(g, m, v):
            p1, p2 = (jnp.asarray(b**count, v.dtype) for b in (b1, b2))
            d1 = d2 = 1
            if cross_debias:
                m_square = jnp.real(m * jnp.conj(m))
                d1 = 1 + v / (v + eps) * p2
                d2 = 1 + m_square / (m_square + eps) * p1
            numerator = m + g if grad_acceleration else m
            scale = d1 / (1 - p1) / (jnp.sqrt(v / (1 - p2) * d2) + eps)
            if dynamic_step_size:
                scale = scale * jnp.log(jnp.sqrt(2 * (count + 1).astype(v.dtype)))
            return scale * numerator

        return jax.tree.map(direction, updates, mu, nu), ScaleByEXAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def exadam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    dynamic_step_size: bool = True,
    *,
    cross_debias: bool = True,
    grad_acceleration: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""EXAdam: Adam whose moments correct each other, with a gradient term and a growing step.

    With $m, v$ as in Adam and t counted from 1,

    $$d_1 = 1 + \frac{v}{v+\epsilon}\beta_2^t, \quad d_2 = 1 + \frac{m^2}{m^2+\epsilon}\beta_1^t,
    \quad \theta \leftarrow (1 - \eta\lambda)\theta - \eta \ln\sqrt{2(t+1)}\;
    \frac{(m + g)\, d_1 / (1-\beta_1^t)}{\sqrt{v d_2/(1-\beta_2^t)} + \epsilon}.$$

    The first steps are long: the gradient is divided by $1-\beta_1^t$ too, which makes the first
    about $11\eta$. The logarithm grows without bound, so decay $\eta$ in long runs. $\epsilon$
    tells small moments from large ones, so the method depends on the scale of the loss.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`, `b2`: decays of the two moments, in [0, 1).
    - `eps`: $\epsilon$.
    - `weight_decay`: $\lambda$, decoupled and scaled by $\eta$ alone.
    - `dynamic_step_size`: the logarithm; later versions of the official code drop it.
    - `cross_debias`: $d_1$ and $d_2$; 1 if switched off.
    - `grad_acceleration`: the term g in the numerator. Without the three switches it is AdamW.

    **Raises:** `ValueError` for decays outside [0, 1), non-positive `eps` or negative
    `weight_decay`.

    **Reference:** Adly, EXAdam: The Power of Adaptive Cross-Moments, 2024, arXiv:2412.20302.
    """
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    checks.nonnegative("weight_decay", weight_decay)
    tx = optax.chain(
        scale_by_exadam(
            b1,
            b2,
            eps,
            dynamic_step_size=dynamic_step_size,
            cross_debias=cross_debias,
            grad_acceleration=grad_acceleration,
        ),
        optax.identity() if is_zero(weight_decay) else optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return keep_wide(tx)
