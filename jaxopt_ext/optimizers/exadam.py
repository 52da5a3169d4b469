"""EXAdam: Adam with cross-moment debiasing, a gradient term and a growing step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


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
        count = optax.safe_increment(state.count)
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


