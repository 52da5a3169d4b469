"""The contract of network algorithms."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core import checks, tree
from .network import Network

Loss = Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]]


def model_bits(params: PyTree[Array]) -> int:
    """Bits of one node's parameters, stacked over the nodes; shapes are enough."""
    leaves = jax.tree.leaves(params)
    return sum(8 * a.dtype.itemsize * math.prod(a.shape[1:]) for a in leaves)


def node_gradients(loss: Loss, params: PyTree[Array], batch: PyTree[Array]) -> PyTree[Array]:
    """The gradient of each node's loss on its own batch, both stacked over the nodes."""
    return jax.vmap(lambda p, b: tree.gradient(lambda q: loss(q, b), p))(params, batch)


def at_each_node(value: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """The same at each local node, of which there are as many as `like` has rows."""
    local = len(jax.tree.leaves(like)[0])
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (local, *a.shape)), value)


class AbstractNetworkAlgorithm(eqx.Module):
    """Rounds of local work and talk.

    All leaves of `params`, of a state and of a batch are stacked over the nodes.
    """

    @abc.abstractmethod
    def init(
        self, params: PyTree[Array], batch: PyTree[Array], network: Network, key: PRNGKeyArray
    ) -> Any:
        """The state before the first round. It must have a field `params`."""

    @abc.abstractmethod
    def round(self, state: Any, batch: PyTree[Array], network: Network, key: PRNGKeyArray) -> Any:
        """One round."""

    def bits_per_round(self, params: PyTree[Array], network: Network) -> int:
        """Bits that the busiest node sends in one round, messages only.

        Here: its parameters once to each neighbour, or to the server. Override it where more or
        less travels.

        **Arguments:**

        - `params`: stacked over the nodes; shapes are enough.
        """
        return network.max_degree * model_bits(params)


class AbstractGradientAlgorithm(AbstractNetworkAlgorithm):
    """An algorithm that takes gradients of local losses with one step size.

    **Attributes:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha > 0$.
    """

    loss: eqx.AbstractVar[Loss]
    step_size: eqx.AbstractVar[Float[Array, ""]]

    def __check_init__(self):
        checks.positive("step_size", self.step_size)

    def gradients(self, params: PyTree[Array], batch: PyTree[Array]) -> PyTree[Array]:
        """Each node's gradient on its own batch."""
        return node_gradients(self.loss, params, batch)

    def descend(self, params: PyTree[Array], direction: PyTree[Array]) -> PyTree[Array]:
        """$x - \\alpha d$."""
        return jax.tree.map(
            lambda a, d: a - self.step_size.astype(a.real.dtype) * d, params, direction
        )
