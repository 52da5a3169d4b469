"""States that keep their types inside of `jax.shard_map`."""

import optax

from ..core import loops


def on_each_device(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """In `shard_map`, a state that varies over what the parameters vary over, from `init` on.

    So a training loop can carry it: else zeros, which are the same on all devices, would turn into
    what was computed from a device's own gradients. Elsewhere it is `tx`.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params):
        return loops.vary(tx.init(params), loops.varying_axes(params))

    def update(updates, state, params=None, **extra_args):
        updates, new = tx.update(updates, state, params, **extra_args)
        return updates, loops.vary_like(new, state) if loops.in_shard_map() else new

    return optax.GradientTransformationExtraArgs(init, update)
