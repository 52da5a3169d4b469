"""Gossip with compressed messages."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ...core import Scalar, checks
from ..network import Network, column
from .average import message_keys
from .compressor import AbstractCompressor, structs
from .feedback import EF21, AbstractFeedback, FeedbackState


class _State(eqx.Module):
    sender: FeedbackState
    pull: PyTree[Array] | None
    """What a receiver remembers, summed: $\\sum_j w_{ij} (m_j - m_i)$."""


class ChocoGossip(eqx.Module):
    """Averaging over a network, with messages of any compressor,

    $$q_i = C(x_i - \\hat x_i), \\qquad \\hat x_j \\leftarrow \\hat x_j + q_j, \\qquad
      x_i \\leftarrow x_i + \\gamma \\sum_j w_{ij} (\\hat x_j - \\hat x_i).$$

    The mean over the nodes does not change, whatever is lost. The copy $\\hat x_i$ is that of
    `EF21`; another rule of error feedback has estimates $\\hat x$ of its own. Rules are linear, so
    that of what it knows of its neighbours a node holds the weighted sum only. All messages travel
    as they are packed.

    **Arguments:**

    - `compressor`: a contractive one.
    - `step_size`: $\\gamma > 0$; 1 for the identity, less for a smaller $\\delta$.
    - `feedback`: `EF21()` if not given. With `ErrorControl` consensus is exact too; `NoFeedback`
      and `EF14` leave an error where the values do not vanish.

    **Reference:** Koloskova, Stich, Jaggi, Decentralized Stochastic Optimization and Gossip
    Algorithms with Compressed Communication, 2019, arXiv:1902.00340.
    """

    compressor: AbstractCompressor
    step_size: Scalar = eqx.field(converter=checks.scalar)
    feedback: AbstractFeedback = EF21()

    def __check_init__(self):
        checks.instance("compressor", self.compressor, AbstractCompressor, "TopK(0.1)")
        checks.positive("step_size", self.step_size)
        checks.instance("feedback", self.feedback, AbstractFeedback, "EF21()")

    def init(self, x: PyTree[Array], network: Network, key: PRNGKeyArray) -> _State:
        """Nothing is known.

        **Arguments:**

        - `x`: values of the local nodes, stacked on a leading axis; shapes are enough.
        - `network`, `key`: as for `round`.
        """
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), x)
        start = jax.vmap(lambda value, k: self.feedback.init(value, self.compressor, k))
        keys = message_keys(self.compressor, network, key)
        return _State(start(zeros, keys), self.feedback.listen(zeros))

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
        read = jax.vmap(lambda message: self.compressor.decompress(message, one, key))
        talk = jax.vmap(lambda s, value, k: self.feedback.apply(s, value, self.compressor, k))
        message, sender = talk(state.sender, x, message_keys(self.compressor, network, key))
        own = read(message)

        def add(total: Any, message: Any, mask: Array, weight: Array):
            del mask  # the weight is zero where there is no neighbour

            def leaf(t, v, b):
                w = column(weight.astype(v.dtype), v)
                return jnp.where(w == 0, t, t + w * (v - b))

            return jax.tree.map(leaf, total, read(message), own)

        zeros = jax.tree.map(jnp.zeros_like, x)
        increment = network.fold(add, zeros, message, network.local_weights()[1])
        estimate, pull = self.feedback.receive(state.pull, increment)
        moved = jax.tree.map(lambda a, e: a + self.step_size.astype(a.dtype) * e, x, estimate)
        return moved, _State(sender, pull)
