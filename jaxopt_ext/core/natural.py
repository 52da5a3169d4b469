"""The natural map, whose zeros are the solutions of problems with a prox."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def natural(function: Any, x: PyTree[Array], slope: PyTree[Array]) -> PyTree[Array]:
    """$x - \\mathrm{prox}_g(x - v)$; without $g$ that is $v$, also where $x$ is so large that
    $x - v$ rounds to $x$.

    **Arguments:**

    - `function`: $g$, a function or set with a prox; `None` for zero.
    - `x`, `slope`: $x$ and $v$.
    """
    if function is None:
        return slope
    return jax.tree.map(jnp.subtract, x, function.prox(jax.tree.map(jnp.subtract, x, slope), 1.0))
