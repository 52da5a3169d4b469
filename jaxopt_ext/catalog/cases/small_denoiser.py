"""A network of two arrays and batches for it, which rows of training denoisers start from."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...diffusion.schedules import Node


def sigma(node: Node) -> Array:
    """The node's level of noise."""
    return jnp.asarray(node.sigma)


class Line(eqx.Module):
    """Of one sample or a batch, and of one node or two, the second one a target's."""

    weight: Float[Array, "n n"]
    shift: Float[Array, " n"]
    level: Callable[[Node], Array] = eqx.field(static=True, default=sigma)

    def __call__(self, x, node, *target):
        return jnp.tanh(x @ self.weight.T) + self.shift * sum(map(self.level, (node, *target)))


def normal(dtype: Any) -> Callable[..., Array]:
    """A function that draws an array of a shape; the same ones each time."""
    rng = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)


def line(size: int, dtype: Any, level: Callable[[Node], Array] = sigma) -> Line:
    """The network of samples of a size."""
    draw = normal(dtype)
    return Line(draw(size, size) / 2, draw(size), level)


def samples(batch: int, size: int) -> Callable[[int, Any], Array]:
    """From a number of steps and a type to a batch for each."""

    def batches(num_steps, dtype):
        rng = np.random.default_rng(1)
        return jnp.asarray(rng.normal(size=(num_steps, batch, size)), dtype)

    return batches
