"""Gradient steps on a lower level, to be differentiated through."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, PyTree

from ..core import Scalar, checks, loops, tree


def descend(
    fun: Callable[[PyTree[Array]], Float[Array, ""]],
    y: PyTree[Array],
    step_size: Scalar,
    num_steps: int,
    *,
    project: Callable[[PyTree[Array]], PyTree[Array]] | None = None,
    keep: bool = False,
) -> PyTree[Array]:
    """`num_steps` times $y \\leftarrow P(y - s \\nabla f(y))$.

    Derivatives go through all steps, of which only the iterates are kept.

    **Arguments:**

    - `fun`: $f$.
    - `y`: the start.
    - `step_size`: $s$.
    - `num_steps`: static, 0 or more.
    - `project`: $P$; `None` for the identity.
    - `keep`: return the iterates before each step too, on a leading axis.

    **Returns:** the last iterate; with `keep`, the pair of it and the others.

    **Raises:** `TypeError` or `ValueError` on a `num_steps` that is no count.
    """
    checks.count("num_steps", num_steps, minimum=0)

    @jax.checkpoint
    def step(y):
        moved = tree.cast_like(tree.axpy(y, -step_size, tree.gradient(fun, y)), y)
        return moved if project is None else tree.cast_like(project(moved), y)

    last, before = loops.scan(lambda y, _: (step(y), y if keep else None), y, length=num_steps)
    return (last, before) if keep else last
