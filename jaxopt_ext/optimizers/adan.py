"""Adan: Nesterov momentum estimated from differences of gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from ..core import checks
from ._leafwise import is_zero, next_count
from ._precision import keep_wide


class ScaleByAdanState(NamedTuple):
    """Moments of gradients, of their differences and of their squares; minus the last gradient.

    The sign makes storing it a computation: a plain copy would not fit into the donated buffer of
    the old one.
    """

    count: Int[Array, ""]
    m: PyTree[Array]
    v: PyTree[Array]
    n: PyTree[Array]
    negative: PyTree[Array]

    def restart(self) -> "ScaleByAdanState":
        """The state before the first step: the next difference of gradients is zero again."""
        return jax.tree.map(jnp.zeros_like, self)


def restart_adan(state: PyTree) -> PyTree:
    """Restart every Adan inside an optimizer's state; schedules go on.

    **Arguments:**

    - `state`: state of `adan`, bare or inside `optax.chain` and other wrappers.

    **Returns:** the state with moments, counter and last gradient at zero.
    """

    def is_adan(node):
        return isinstance(node, ScaleByAdanState)

    return jax.tree.map(lambda s: s.restart() if is_adan(s) else s, state, is_leaf=is_adan)


def scale_by_adan(
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    coef: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as Adan does; see `adan`.

    `optax.scale_by_adan` is `coef=1 - b2`.
    """
    weight = b2 if coef is None else coef

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ScaleByAdanState(
            jnp.zeros([], jnp.int32), zeros, zeros, optax.tree.real(zeros), zeros
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        first = state.count == 0
        count = next_count(state.count)
        difference = jax.tree.map(
            lambda g, last: jnp.where(first, jnp.zeros_like(g), g + last), updates, state.negative
        )
        lookahead = jax.tree.map(lambda g, d: g + weight * d, updates, difference)
        m = optax.tree.update_moment(updates, state.m, b1, 1)
        v = optax.tree.update_moment(difference, state.v, b2, 1)
        n = optax.tree.update_moment_per_elem_norm(lookahead, state.n, b3, 2)
        direction = jax.tree.map(
            lambda m, v, n: (m + weight * v) / (jnp.sqrt(n + eps_root) + eps),
            optax.tree.bias_correction(m, b1, count),
            optax.tree.bias_correction(v, b2, count),
            optax.tree.bias_correction(n, b3, count),
        )
        # n is never negative: this is -g, computed after v and n have read the old one, whose
        # buffer it takes. Otherwise both are copied, which costs half as much as all the rest.
        negative = jax.tree.map(lambda g, v, n: jnp.where(n < 0, v, -g), updates, v, n)
        return direction, ScaleByAdanState(count, m, v, n, negative)

    return optax.GradientTransformationExtraArgs(init, update)


def adan(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
    max_grad_norm: float | None = None,
    *,
    eps_root: float = 0.0,
    coef: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adan: Adam with a Nesterov momentum that needs no gradient at a shifted point.

    With $d_t = g_t - g_{t-1}$, $d_1 = 0$ and $c = \beta_2$,

    $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) d, \quad
    n \leftarrow \beta_3 n + (1-\beta_3)(g + c d)^2,$$
    $$u = \frac{m/(1-\beta_1^t) + c\, v/(1-\beta_2^t)}{\sqrt{n/(1-\beta_3^t)} + \epsilon}, \qquad
    \theta \leftarrow (\theta - \eta u)/(1 + \eta\lambda).$$

    The decays are those of the official code, one minus those of the paper. `optax.adan` (0.2.8)
    differs: it weighs the differences by $c = 1 - \beta_2 = 0.08$ where paper and official code
    have 0.92, adds `eps_root` = 1e-8 inside the root, and decays as AdamW.

    Successive gradients come from different batches; that is intended. To restart (moments, counter
    and difference) use `restart_adan`.

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`, `b2`, `b3`: decays of the three moments, in [0, 1).
    - `eps`: $\epsilon$.
    - `weight_decay`: $\lambda$, a proximal step on $\lambda\|\theta\|^2/2$.
    - `no_prox`: decay as AdamW does, $\theta \leftarrow (1 - \eta\lambda)\theta - \eta u$.
    - `max_grad_norm`: clip gradients to this global norm before all else.
    - `eps_root`: added inside the root.
    - `coef`: $c$, $\beta_2$ if left out.

    **Raises:** `ValueError` for decays outside [0, 1), non-positive `eps` or `max_grad_norm`,
    negative `weight_decay` or `eps_root`.

    **Reference:** Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
    Models, 2024, arXiv:2208.06677.
    """
    for name, decay in (("b1", b1), ("b2", b2), ("b3", b3)):
        checks.interval(name, decay, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    checks.nonnegative("weight_decay", weight_decay)
    checks.nonnegative("eps_root", eps_root)
    if max_grad_norm is not None:
        checks.positive("max_grad_norm", max_grad_norm)

    def proximal(count):
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        return rate / (1 + rate * weight_decay)

    # (theta - lr u) / (1 + lr wd) is a step of lr / (1 + lr wd) along u + wd theta
    tx = optax.chain(
        optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm),
        scale_by_adan(b1, b2, b3, eps, eps_root, coef),
        optax.identity() if is_zero(weight_decay) else optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate if no_prox else proximal),
    )
    return keep_wide(tx)
