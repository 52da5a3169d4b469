"""Gossip with compressed messages."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ...core import Scalar, checks
from ..network import Network, column
from .average import message_keys
from .compressor import AbstractCompressor, structs
from .feedback import EF21, FeedbackState


class _State(eqx.Module):
    sender: FeedbackState
    mixed: PyTree[Array]


class ChocoGossip(eqx.Module):
    """Averaging over a network, with messages of any compressor,

    $$q_i = C(x_i - \\hat x_i), \\qquad \\hat x_j \\leftarrow \\hat x_j + q_j, \\qquad
      x_i \\leftarrow x_i + \\gamma \\sum_j w_{ij} (\\hat x_j - \\hat x_i).$$

    The mean over the nodes does not change, whatever is lost. The copy $\\hat x_i$ is that of
    `EF21`; of the neighbours' copies a node holds $s_i = \\sum_j w_{ij} \\hat x_j$ only. All
    messages travel as they are packed.

    **Arguments:**

    - `compressor`: a contractive one.
    - `step_size`: $\\gamma > 0$; 1 for the identity, less for a smaller $\\delta$.

    **Reference:** Koloskova, Stich, Jaggi, Decentralized Stochastic Optimization and Gossip
    Algorithms with Compressed Communication, 2019, arXiv:1902.00340.
    """

    compressor: AbstractCompressor
    step_size: Scalar = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.instance("compressor", self.compressor, AbstractCompressor, "TopK(0.1)")
        checks.positive("step_size", self.step_size)

    def init(self, x: PyTree[Array], network: Network, key: PRNGKeyArray) -> _State:
        """Copies at zero.

        **Arguments:**

        - `x`: values of the local nodes, stacked on a leading axis.
        - `network`, `key`: as for `round`.
        """
        zeros = jax.tree.map(jnp.zeros_like, x)
        start = jax.vmap(lambda value, k: EF21().init(value, self.compressor, k))
        return _State(start(zeros, message_keys(self.compressor, network, key)), zeros)

    def round(
        self, x: PyTree[Array], state: _State, network: Network, key: PRNGKeyArray
    ) -> tuple[PyTree[Array], _State]:
        """Every node talks once to its neighbours.

        **Arguments:**

        - `x`: values of the local nodes, stacked on a leading axis.
        - `state`: from `init` or the round before.
        - `network`: who talks to whom, and the weights.
        - `key`: common to all nodes.

        **Returns:** the new values and the new state.
        """
        one = structs(jax.tree.map(lambda a: a[0], x))
        read = lambda message: self.compressor.decompress(message, one, key)
        talk = jax.vmap(lambda s, value, k: EF21().apply(s, value, self.compressor, k))
        message, sender = talk(state.sender, x, message_keys(self.compressor, network, key))
        own, weights = network.local_weights()

        def add(total, message, mask, weight):
            del mask  # the weight is zero where there is no neighbour
            meaning = jax.vmap(read)(message)
            return jax.tree.map(
                lambda t, v: t + column(weight.astype(v.dtype), v) * v, total, meaning
            )

        total = add(jax.tree.map(jnp.zeros_like, x), message, None, own)
        total = network.fold(add, total, message, weights)
        mixed = jax.tree.map(jnp.add, state.mixed, total)
        moved = jax.tree.map(
            lambda a, s, h: a + self.step_size.astype(a.dtype) * (s - h), x, mixed, sender.copy
        )
        return moved, _State(sender, mixed)
