"""What is chosen on seeds is chosen on some of them, and reported on others."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

TUNING = 3


def keys(count: int) -> jax.Array:
    """`TUNING` keys to choose a setting on, and then `count` keys to report."""
    fresh = jax.random.split(jax.random.key(10), count)
    return jnp.concatenate([jax.random.split(jax.random.key(0), TUNING), fresh])


def chosen(values: jax.Array, best: Callable = np.nanargmin) -> tuple[int, np.ndarray]:
    """From values `(settings, keys)`: the setting that is best on the keys to choose on.

    **Returns:** its index, and each setting's mean over the keys to report.
    """
    values = np.asarray(values, np.float64)
    return int(best(values[:, :TUNING].mean(1))), values[:, TUNING:].mean(1)
