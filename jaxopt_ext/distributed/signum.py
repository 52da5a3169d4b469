"""Signum: a majority vote on signs."""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from ..core import checks, loops
from .compression.average import gathered
from .compression.bits import pack, unpack


def signum(
    axis_name: str | None = None, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Each worker votes with one bit an entry, the signs of its momentum,

    $$m_k \\leftarrow \\mu m_k + (1 - \\mu) g_k, \\qquad
      \\text{update} = \\mathrm{sign} \\sum_k \\mathrm{sign}(m_k),$$

    with sign(0) = 1 for a vote, and 0 for a draw. All bits travel in one message. Scale it with a
    negative step size.

    **Arguments:**

    - `axis_name`: the axis of `shard_map` or `vmap` over the workers; `None` for one worker.
    - `decay`: $\\mu \\in [0, 1)$.

    A NaN in a worker's gradient stays in its momentum, and makes what all workers get NaN.

    **Reference:** Bernstein, Zhao, Azizzadenesheli, Anandkumar, signSGD with Majority Vote is
    Communication Efficient and Fault Tolerant, 2019, arXiv:1810.05291.
    """
    checks.interval("decay", decay, 0, 1, open_high=True)
    trace = optax.trace(decay)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        own = jax.tree.map(lambda g: (1 - decay) * g, updates)
        momentum, state = trace.update(own, state)
        flat, unravel = ravel_pytree(momentum)
        bad = jnp.isnan(jnp.sum(flat))
        bits = pack((flat < 0).astype(jnp.uint8), 1)
        message = (bits, bad.astype(jnp.uint8)[None])
        if axis_name is None:
            everyone = jax.tree.map(lambda a: a[None], message)
        else:
            everyone = gathered(message, axis_name)

        def add(total, message):
            bits, bad = message
            votes = 1 - 2 * unpack(bits, flat.size, 1)
            return (total[0] + votes, total[1] | bad[0]), None

        start = jnp.zeros(flat.size, jnp.int32), jnp.zeros((), jnp.uint8)
        (total, bad), _ = loops.scan(add, start, everyone)
        vote = jnp.where(bad > 0, jnp.nan, jnp.sign(total)).astype(flat.dtype)
        return unravel(vote), state

    return optax.GradientTransformationExtraArgs(trace.init, update)
