"""MultiAdam: one Adam for each group of losses, so that the scales of losses do not matter."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks
from ._leafwise import is_zero, mask_like, next_count, require_params
from ._precision import keep_wide, widen


class ScaleByMultiAdamState(NamedTuple):
    """Number of updates; moments, with a leading axis of groups.

    `nu_max`, the largest second moment so far, is `None` without `amsgrad`.
    """

    count: Int[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]
    nu_max: PyTree[Array]


def grouped_grads(
    losses: Callable[..., Float[Array, " groups"]],
) -> Callable[..., tuple[Float[Array, " groups"], PyTree[Array]]]:
    """Values and gradients of a vector of losses.

    **Arguments:**

    - `losses`: maps parameters and any further arguments to the vector of losses, one per group.

    **Returns:** a function of the same arguments that gives the vector and a tree like the
    parameters whose leaves have a leading axis of groups: what `multiadam` takes as `loss_grads`.
    """

    def values_and_grads(params, *args):
        values, pullback = jax.vjp(lambda p: losses(p, *args), params)
        if values.ndim != 1:
            raise ValueError(f"losses must return a vector, got shape {values.shape}")
        units = jnp.eye(values.size, dtype=values.dtype)
        return values, jax.vmap(lambda unit: pullback(unit)[0])(units)

    return values_and_grads


def _checked(loss_grads, moments):
    if loss_grads is None:
        raise ValueError(
            "multiadam needs loss_grads, the gradients of all groups stacked on a leading axis: "
            "update(grads, state, params, loss_grads=grouped_grads(losses)(params)[1])"
        )
    loss_grads = mask_like(loss_grads, moments)
    for grad, moment in zip(jax.tree.leaves(loss_grads), jax.tree.leaves(moments), strict=True):
        if jnp.shape(grad) != moment.shape:
            raise ValueError(
                f"loss_grads must have a leading axis of {moment.shape[0]} groups: expected shape "
                f"{moment.shape}, got {jnp.shape(grad)}"
            )
    return widen(loss_grads)


def scale_by_multiadam(
    b1: float = 0.99,
    b2: float = 0.99,
    eps: float = 1e-8,
    n_groups: int = 2,
    group_weights: Sequence[float] | Float[Array, " groups"] | None = None,
    *,
    amsgrad: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Average over groups of Adam's directions; see `multiadam`."""

    def init(params):
        stacked = jax.tree.map(lambda p: jnp.zeros((n_groups, *p.shape), p.dtype), params)
        nu = optax.tree.real(stacked)
        return ScaleByMultiAdamState(jnp.zeros([], jnp.int32), stacked, nu, nu if amsgrad else None)

    def update(updates, state, params=None, *, loss_grads=None, **extra_args):
        del updates, extra_args
        grads = _checked(loss_grads, state.mu)
        if not is_zero(weight_decay):
            require_params(params, "multiadam with weight decay")
            grads = jax.tree.map(lambda g, p: g + weight_decay * p, grads, params)
        count = next_count(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsgrad else None

        def average(m, v):
            weights = [1 / n_groups] * n_groups if group_weights is None else group_weights
            # written out: a reduction over so short an axis would be many times slower
            terms = [
                jnp.asarray(weights[i], v.dtype) * m[i] / (jnp.sqrt(v[i]) + eps)
                for i in range(n_groups)
            ]
            return sum(terms[1:], terms[0])

        direction = jax.tree.map(
            average,
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu_max if amsgrad else nu, b2, count),
        )
        return direction, ScaleByMultiAdamState(count, mu, nu, nu_max)

    return optax.GradientTransformationExtraArgs(init, update)


def multiadam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: float = 0.99,
    b2: float = 0.99,
    eps: float = 1e-8,
    n_groups: int = 2,
    group_weights: Sequence[float] | Float[Array, " groups"] | None = None,
    amsgrad: bool = False,
    agg_betas: tuple[float, float] | None = None,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""MultiAdam: the average of one Adam direction per group of losses.

    The sum of n losses of very different scales, as the residual and the boundary terms of a
    physics-informed network, is dominated by the largest. Here each has moments of its own,

    $$m_i \leftarrow \beta_1 m_i + (1-\beta_1) g_i, \quad
    v_i \leftarrow \beta_2 v_i + (1-\beta_2) g_i^2, \quad
    \theta \leftarrow \theta - \eta \sum_{i=1}^n w_i
    \frac{m_i/(1-\beta_1^t)}{\sqrt{v_i/(1-\beta_2^t)} + \epsilon},$$

    so the path does not change when a loss is multiplied by a number. The directions are averaged,
    not added: a group without gradient still takes its share of the step. Near the optimum the
    directions cancel rather than vanish: let the learning rate decay.

    The gradients of all groups, taken on the same batch, are the extra argument `loss_grads`;
    `grouped_grads` makes them. The first argument of `update` is not used:

    ```python
    losses, grads = grouped_grads(lambda params: jnp.stack([pde(params), boundary(params)]))(params)
    updates, state = tx.update(None, state, params, loss_grads=grads)
    ```

    **Arguments:**

    - `learning_rate`: $\eta$, a number or a schedule.
    - `b1`, `b2`: decays of the moments, in [0, 1); both 0.99, unlike Adam.
    - `eps`: $\epsilon$.
    - `n_groups`: n; the state takes 2n copies of the parameters.
    - `group_weights`: $w$, non-negative; 1/n each if left out.
    - `amsgrad`: divide by the largest $v_i$ so far (one more copy per group).
    - `agg_betas`: a second Adam with these decays after the average (two more copies). The official
      code corrects the bias of $m_i$ only after that second normalisation, which makes the first
      steps $1/(1-\beta_1)$ times longer; here it is corrected before.
    - `weight_decay`: $\lambda$; $\lambda\theta$ is added to the gradient of every group.

    **Raises:** `ValueError` or `TypeError` naming the argument that is out of range; at the update
    if `loss_grads` is missing or a leaf's leading axis is not n.

    **Reference:** Yao et al., MultiAdam: Parameter-wise Scale-invariant Optimizer for Multiscale
    Training of Physics-informed Neural Networks, 2023, arXiv:2306.02816.
    """
    for name, decay in (("b1", b1), ("b2", b2), ("agg_betas", agg_betas)):
        if decay is not None:
            checks.interval(name, decay, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    checks.count("n_groups", n_groups)
    checks.nonnegative("weight_decay", weight_decay)
    if group_weights is not None:
        checks.nonnegative("group_weights", group_weights)
        if np.shape(group_weights) != (n_groups,):
            raise ValueError(
                f"group_weights must have shape ({n_groups},), got {np.shape(group_weights)}"
            )
    second = optax.identity() if agg_betas is None else optax.scale_by_adam(*agg_betas, eps)
    tx = optax.chain(
        scale_by_multiadam(
            b1, b2, eps, n_groups, group_weights, amsgrad=amsgrad, weight_decay=weight_decay
        ),
        second,
        optax.scale_by_learning_rate(learning_rate),
    )
    return keep_wide(tx)
