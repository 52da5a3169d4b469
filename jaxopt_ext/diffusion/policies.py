"""Which coordinates are drawn in one call: policies of parallel generation."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core import checks, loops


def naive_policy(size: int, budget: int) -> Int[np.ndarray, " budget"]:
    """`budget` calls of nearly equal numbers of coordinates.

    **Arguments:**

    - `size`: number of coordinates, D.
    - `budget`: number of calls, from 1 to D.

    **Returns:** how many coordinates are known before each call, rising from 0.
    """
    _check_budget(size, budget)
    return np.arange(budget) * size // budget


def optimal_policy(per_step_loss: Float[Array, " D"], budget: int) -> Int[Array, " budget"]:
    """The policy of `budget` calls with the least cost, by dynamic programming,

    $$C_{k,t} = \\min_{s < t} C_{k-1,s} + (t - s)\\, l_s, \\qquad C_{0,0} = 0.$$

    Measured losses are noisy; a falling regression before it makes the policy smoother.

    **Arguments:**

    - `per_step_loss`: $l_t$, minus the expected log-probability of one coordinate where t are
      known, shape `(D,)`; in nats.
    - `budget`: number of calls, from 1 to D.

    **Returns:** how many coordinates are known before each call, rising from 0.

    **Raises:** `ValueError` if the budget leaves its range.

    **Reference:** Hoogeboom, Gritsenko, Bastings, Poole, van den Berg, Salimans, Autoregressive
    Diffusion Models, 2022, arXiv:2110.02037; Watson, Ho, Norouzi, Chan, Learning to Efficiently
    Sample from Diffusion Probabilistic Models, 2021, arXiv:2106.03802.
    """
    loss = jnp.asarray(per_step_loss)
    (size,) = loss.shape
    _check_budget(size, budget)
    t = jnp.arange(size + 1)
    length = t[None, :] - t[:-1, None]
    costs = jnp.where(length > 0, length * loss[:, None], jnp.inf)

    def extend(best, _):
        through = best[:-1, None] + costs
        return jnp.min(through, 0), jnp.argmin(through, 0)

    first = jnp.where(t == 0, 0.0, jnp.inf).astype(costs.dtype)
    _, before = loops.scan(extend, first, None, length=budget)

    def back(t, before):
        start = before[t]
        return start, start

    end = jnp.asarray(size, before.dtype)
    _, policy = loops.scan(back, end, before, reverse=True)
    return policy


def policy_cost(
    per_step_loss: Float[Array, " D"], policy: Int[Array, " budget"]
) -> Float[Array, ""]:
    """$\\sum_k (p_{k+1} - p_k)\\, l_{p_k}$, the expected loss of all D coordinates, in nats.

    **Arguments:**

    - `per_step_loss`: as in `optimal_policy`.
    - `policy`: how many coordinates are known before each call.
    """
    loss, policy = jnp.asarray(per_step_loss), jnp.asarray(policy)
    ends = jnp.append(policy[1:], loss.shape[0])
    return jnp.sum((ends - policy) * loss[policy])


def check_policy(policy: Int[Array, " budget"] | None, size: int) -> Int[Array, " budget"]:
    """The policy, one coordinate a call if left out; `ValueError` unless it starts at 0 and rises
    below `size`. Numbers that are being traced are not looked at."""
    if policy is None:
        return jnp.arange(size)
    policy = jnp.asarray(policy)
    if policy.ndim != 1 or not jnp.issubdtype(policy.dtype, jnp.integer):
        raise ValueError(f"policy must be a vector of whole numbers, got {policy}")
    values = checks.concrete(policy)
    if values is not None and (
        not values.size or values[0] != 0 or np.any(np.diff(values) <= 0) or values[-1] >= size
    ):
        raise ValueError(f"policy must start at 0 and rise below {size}, got {values}")
    return policy


def _check_budget(size, budget):
    checks.count("budget", budget)
    if budget > size:
        raise ValueError(f"budget must be at most the number of coordinates {size}, got {budget}")
