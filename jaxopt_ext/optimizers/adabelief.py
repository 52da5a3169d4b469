"""AdaBelief: Adam with the variance of gradients around their mean for a second moment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..core import checks
from ._leafwise import abs_square, is_zero, next_count, one_minus_power
from ._precision import keep_wide
from .weighted_projection import Projection, project_updates


class ScaleByAdaBeliefState(NamedTuple):
    """State of `optax.scale_by_belief`; the largest variance so far, `None` without `amsgrad`."""

    belief: Any
    nu_max: PyTree[Array]


def scale_by_adabelief(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    rectify: bool = False,
    amsgrad: bool = False,
    degenerate_to_sgd: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as AdaBelief does; see `adabelief`."""
    amsgrad = amsgrad and not rectify

    def init(params):
        belief: Any = optax.scale_by_belief().init(params)
        return ScaleByAdaBeliefState(belief, belief.nu if amsgrad else None)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        count = next_count(state.belief.count)
        mu = optax.tree.update_moment(updates, state.belief.mu, b1, 1)

        def variance(g, m, s):
            # eps_root is added first: behind the decayed s, as in optax, XLA computes all of s a
            # second time for the step and copies the old one, in more than twice the time.
            return ((1 - b2) * abs_square(g - m) + eps_root) + b2 * s

        nu = jax.tree.map(variance, updates, mu, state.belief.nu)
        belief = optax.ScaleByBeliefState(count, mu, nu)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsgrad else None
        direction = jax.tree.map(
            lambda m, s: m / (jnp.sqrt(s) + eps),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu_max if amsgrad else nu, b2, count),
        )
        if rectify:
            direction = rectified(direction, belief, b1, b2, degenerate_to_sgd)
        return direction, ScaleByAdaBeliefState(belief, nu_max)

    return optax.GradientTransformationExtraArgs(init, update)


def rectified(direction, belief, b1, b2, degenerate_to_sgd):
    """The adaptive direction times RAdam's factor; momentum while its variance is infinite."""
    limit = 2 / (1 - b2) - 1

    def leaf(adaptive, momentum):
        t = belief.count.astype(adaptive.real.dtype)
        length = limit - 2 * t * b2**t / one_minus_power(b2, t)
        tractable = length >= 5
        safe = jnp.where(tractable, length, 5)
        ratio = (safe - 4) * (safe - 2) * limit / ((limit - 4) * (limit - 2) * safe)
        plain = momentum if degenerate_to_sgd else jnp.zeros_like(momentum)
        return jnp.where(tractable, jnp.sqrt(ratio) * adaptive, plain)

    mean = optax.tree.bias_correction(belief.mu, b1, belief.count)
    return jax.tree.map(leaf, direction, mean)


def adabelief(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    weight_decay: float = 0.0,
    rectify: bool = False,
    amsgrad: bool = False,
    *,
    degenerate_to_sgd: bool = True,
    projection: Projection | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBelief: long steps where gradients agree with their running mean, short ones elsewhere.

    $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad
    s \leftarrow \beta_2 s + (1-\beta_2)(g - m)^2 + \epsilon_s, \quad
    \theta \leftarrow \Pi\Big((1 - \eta\lambda)\theta -
    \eta \frac{m/(1-\beta_1^t)}{\sqrt{s/(1-\beta_2^t)} + \epsilon}\Big),$$

    with the new m in the residual, and $\epsilon_s$ kept in the state, where it adds up to
    $\epsilon_s/(1-\beta_2)$. A constant gradient makes s small and the steps long.

    Without the variants it is `optax.adabelief`, in half its time.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`, `b2`: decays, in [0, 1).
    - `eps`: $\epsilon$, outside the root. The paper's first networks used 1e-8.
    - `eps_root`: $\epsilon_s$, added to s at every step.
    - `weight_decay`: $\lambda$, decoupled.
    - `rectify`: multiply the step by RAdam's factor
      $\sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}$ with
      $\rho_\infty = 2/(1-\beta_2) - 1$ and
      $\rho_t = \rho_\infty - 2t\beta_2^t/(1-\beta_2^t)$; while $\rho_t < 5$ take the corrected
      momentum as it is.
    - `amsgrad`: divide by the largest s so far (one more copy of the parameters); as in the
      official code it has no effect together with `rectify`.
    - `degenerate_to_sgd`: with `rectify`, whether steps with $\rho_t < 5$ are taken at all.
    - `projection`: `(y, D) -> x`, see `weighted_projection`; none if left out.

    **Raises:** `ValueError` for decays outside [0, 1), non-positive `eps`, negative `eps_root` or
    `weight_decay`, or `rectify` with $\beta_2 \le 0.6$, where $\rho_\infty \le 4$.

    **Reference:** Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed
    Gradients, 2020, arXiv:2010.07468.
    """
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.6 if rectify else 0.0, 1.0, open_low=rectify, open_high=True)
    checks.positive("eps", eps)
    checks.nonnegative("eps_root", eps_root)
    checks.nonnegative("weight_decay", weight_decay)
    options = dict(rectify=rectify, amsgrad=amsgrad, degenerate_to_sgd=degenerate_to_sgd)
    tx = optax.chain(
        scale_by_adabelief(b1, b2, eps, eps_root, **options),
        optax.identity() if is_zero(weight_decay) else optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )

    def weights(state):
        scaling = state[0]
        variance = scaling.belief.nu if scaling.nu_max is None else scaling.nu_max
        corrected = optax.tree.bias_correction(variance, b2, scaling.belief.count)
        return jax.tree.map(lambda s: jnp.sqrt(jnp.real(s)) + eps, corrected)

    return keep_wide(project_updates(tx, projection, weights, "adabelief"))
