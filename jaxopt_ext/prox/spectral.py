"""Functions of singular values, with derivatives that survive repeated ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.spectral import positive_part_derivative


@jax.custom_jvp
def soft_threshold_singular_values(
    x: Float[Array, "*b m n"], threshold: Float[Array, ""]
) -> Float[Array, "*b m n"]:
    """$U \\max(\\Sigma - t, 0) V^*$."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return (u * jnp.maximum(s - threshold, 0)[..., None, :]) @ vh


@soft_threshold_singular_values.defjvp
def _soft_threshold_jvp(primals, tangents):
    (x, t), (x_dot, t_dot) = primals, tangents
    value = soft_threshold_singular_values(x, t)
    return value, soft_threshold_derivative(x, x_dot, t, t_dot)


def soft_threshold_derivative(x, x_dot, t, t_dot):
    """The derivative of soft thresholding, that can itself be differentiated.

    The singular values of x are eigenvalues of $D = [[0, x], [x^*, 0]]$, of which $D - t$ has the
    positive part $\\sum_i (\\sigma_i - t)_+ (u_i, v_i) (u_i, v_i)^* / 2$.
    """
    m, n = x.shape[-2:]
    identity = jnp.eye(m + n, dtype=x.dtype)
    # Without threshold it is the identity, which is not what the positive part is at zero.
    free = jnp.where(t == 0, x_dot, 0)
    moved = positive_part_derivative(
        _dilate(x) - t * identity, _dilate(x_dot - free) - t_dot * identity
    )
    return 2 * moved[..., :m, m:] + free


def _dilate(x):
    m, n = x.shape[-2:]
    batch = x.shape[:-2]
    adjoint = jnp.swapaxes(x.conj(), -1, -2)
    top = jnp.concatenate([jnp.zeros((*batch, m, m), x.dtype), x], axis=-1)
    bottom = jnp.concatenate([adjoint, jnp.zeros((*batch, n, n), x.dtype)], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)
