"""AdaBound and AMSBound: adaptive rates between bounds that close on one rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from ..core import checks
from ._leafwise import is_zero, next_count, one_minus_power, rate_at, require_params
from ._precision import keep_wide
from .weighted_projection import Projection, project_updates


class AdaBoundState(NamedTuple):
    """State of `adabound`.

    - `count`: number of updates.
    - `mu`, `nu`: the two moments.
    - `nu_max`: the largest second moment so far; `None` without `amsbound`.
    """

    count: Int[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]
    nu_max: PyTree[Array]


def adabound(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    final_lr: float = 0.1,
    gamma: float = 1e-3,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsbound: bool = False,
    decoupled: bool = False,
    *,
    bias_correction: bool = True,
    sqrt_decay: bool = False,
    projection: Projection | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaBound: begins as Adam and ends as SGD with momentum.

    With the moments m, v of Adam, each coordinate's rate is clipped between two bounds,

    $$\eta_t = \mathrm{clip}\Big(\frac{s_t}{\sqrt v + \epsilon},\;
    \alpha_t\big(1 - \tfrac{1}{\gamma t + 1}\big),\; \alpha_t\big(1 + \tfrac{1}{\gamma t}\big)
    \Big), \qquad \theta \leftarrow \Pi(\theta - \eta_t m), \qquad
    s_t = \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t}.$$

    At t = 1 they are nearly 0 and infinity, and they close on $\alpha_t$ = `final_lr` times
    $\eta_t/\eta_0$ of a schedule. m itself is not corrected: its correction is in $s_t$, and is
    lost where the clip binds.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule; a schedule moves the bounds as well.
    - `b1`, `b2`: decays of the moments, in [0, 1).
    - `final_lr`: the rate of SGD at the end.
    - `gamma`: how fast the bounds close, in (0, 1); the paper takes $1-\beta_2$.
    - `eps`: $\epsilon$.
    - `weight_decay`: $\lambda$; $\lambda\theta$ is added to the gradient.
    - `amsbound`: divide by the largest v so far (AMSBound).
    - `decoupled`: subtract $\lambda\theta$ from the parameters instead, not multiplied by any rate,
      as the official AdaBoundW does.
    - `bias_correction`: off, $s_t = \eta$, as in the paper's listing.
    - `sqrt_decay`: divide the clipped rate by $\sqrt t$, as in the paper's theorems.
    - `projection`: `(y, D) -> x` with D one over the rates, see `weighted_projection`.

    **Raises:** `ValueError` for decays outside [0, 1), `gamma` outside (0, 1), non-positive `eps`
    or `final_lr`, or negative `weight_decay`.

    **Reference:** Luo, Xiong, Liu, Sun, Adaptive Gradient Methods with Dynamic Bound of Learning
    Rate, 2019, arXiv:1902.09843.
    """
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("final_lr", final_lr)
    checks.interval("gamma", gamma, 0.0, 1.0, open_low=True, open_high=True)
    checks.positive("eps", eps)
    checks.nonnegative("weight_decay", weight_decay)
    coupled = not decoupled and not is_zero(weight_decay)

    def init(params):
        zeros = optax.tree.zeros_like(params)
        nu = optax.tree.real(zeros)
        return AdaBoundState(jnp.zeros([], jnp.int32), zeros, nu, nu if amsbound else None)

    def rates(state):
        """The rate of every coordinate at the step that led to this state."""
        start = learning_rate(0) if callable(learning_rate) else learning_rate

        def leaf(v):
            t = state.count.astype(v.dtype)
            lr = rate_at(learning_rate, state.count - 1, v.dtype)
            final = final_lr * lr / start if callable(learning_rate) else final_lr
            low, high = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
            if bias_correction:
                lr = lr * jnp.sqrt(one_minus_power(b2, t)) / one_minus_power(b1, t)
            rate = jnp.clip(lr / (jnp.sqrt(v) + eps), low, high)
            return rate / jnp.sqrt(t) if sqrt_decay else rate

        return jax.tree.map(leaf, state.nu_max if amsbound else state.nu)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if not is_zero(weight_decay):
            require_params(params, "adabound with weight decay")
        if coupled:
            updates = jax.tree.map(lambda g, p: g + weight_decay * p, updates, params)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsbound else None
        state = AdaBoundState(next_count(state.count), mu, nu, nu_max)
        steps = jax.tree.map(lambda m, rate: -rate * m, mu, rates(state))
        if decoupled and not is_zero(weight_decay):
            steps = jax.tree.map(lambda u, p: u - weight_decay * p, steps, params)
        return steps, state

    tx = optax.GradientTransformationExtraArgs(init, update)
    weights = lambda state: jax.tree.map(lambda rate: 1 / rate, rates(state))
    return keep_wide(project_updates(tx, projection, weights, "adabound"))


def amsbound(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    final_lr: float = 0.1,
    gamma: float = 1e-3,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    *,
    bias_correction: bool = True,
    sqrt_decay: bool = False,
    projection: Projection | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AMSBound: AdaBound that divides by the largest second moment so far.

    **Arguments**, **raises:** as `adabound`.

    **Reference:** as for `adabound`.
    """
    return adabound(
        learning_rate,
        b1,
        b2,
        final_lr,
        gamma,
        eps,
        weight_decay,
        True,
        decoupled,
        bias_correction=bias_correction,
        sqrt_decay=sqrt_decay,
        projection=projection,
    )
