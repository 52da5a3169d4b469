"""Which clients take part in a round."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from ..core import checks


def participants(key: PRNGKeyArray, n: int, count: int | None) -> Bool[Array, " n"]:
    """So many of the clients, drawn uniformly without replacement: the first places of a random
    permutation.

    As a weight, `network.mean(x, network.local(participants(...)))`, it is a mean over them only.

    **Arguments:**

    - `key`: common to all clients, so that they draw alike.
    - `n`: number of clients.
    - `count`: how many take part; all, without a draw, if `None`.

    **Raises:** `ValueError` if there are fewer clients than that, or `count` is below 1.
    """
    if count is None:
        return jnp.ones(n, bool)
    checks.count("count", count)
    if count > n:
        raise ValueError(f"of {n} clients {count} cannot take part")
    return jax.random.permutation(key, n) < count
