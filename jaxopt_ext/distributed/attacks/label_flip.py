"""An attack on data."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ...core import checks


class LabelFlip(eqx.Module):
    """Labels $y \\to C - 1 - y$ of bad nodes, who then work honestly on them.

    Twice gives the labels back.

    **Arguments:**

    - `num_classes`: $C$; labels are $0, \\dots, C - 1$; static.

    **Reference:** Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization,
    2021, arXiv:2012.10333.
    """

    num_classes: int = eqx.field(static=True)

    def __check_init__(self):
        checks.count("num_classes", self.num_classes, 2)

    def __call__(
        self, labels: Int[Array, "..."], faulty: Bool[Array, " n"] | None = None
    ) -> Int[Array, "..."]:
        """The labels as the nodes see them.

        **Arguments:**

        - `labels`: integers; stacked over the nodes if `faulty` is given.
        - `faulty`: which nodes are bad, all if `None`.

        **Raises:** `TypeError` if the labels are no integers; `ValueError` if there is not one
        `faulty` for each node.
        """
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        flipped = self.num_classes - 1 - labels
        if faulty is None:
            return flipped
        faulty = jnp.asarray(faulty, bool)
        if labels.ndim < 1 or faulty.shape != labels.shape[:1]:
            raise ValueError(
                f"faulty must have shape {labels.shape[:1]} as labels have, got {faulty.shape}"
            )
        return jnp.where(faulty.reshape(-1, *[1] * (labels.ndim - 1)), flipped, labels)
