"""Any method of gossip, with compressed messages."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..core import checks
from .algorithm import AbstractNetworkAlgorithm, model_bits
from .compression import ChocoGossip
from .network import Network

_SILENT = frozenset(
    [
        "size",
        "max_degree",
        "num_edges",
        "index",
        "local",
        "degrees",
        "keys",
        "edge_keys",
        "neighbor_table",
        "edge_table",
        "local_weights",
    ]
)


class _Talk:
    """A network that mixes by one round of compressed gossip: what an algorithm sees while it is
    traced. It collects what each call of `mix` leaves behind."""

    def __init__(self, network: Network, step: Any):
        self._network, self._step, self.after = network, step, []

    def __getattr__(self, name: str):
        if name not in _SILENT:
            raise TypeError(
                f"CompressedGossip takes algorithms that talk by `mix`, not by `{name}`"
            )
        return getattr(self._network, name)

    def mix(self, x, weights=None, *, channel=None, key=None):
        if weights is not None or channel is not None:
            raise ValueError("compressed messages need constant weights, and no other channel")
        x, state = self._step(len(self.after), x)
        self.after.append(state)
        return x


class _State(eqx.Module):
    params: PyTree[Array]
    inner: Any
    talk: tuple[Any, ...]
    """For each call of `mix` in a round."""


class CompressedGossip(AbstractNetworkAlgorithm):
    """Another algorithm, whose nodes tell their neighbours less: each of its products $W x$ becomes
    one round of `ChocoGossip`,

    $$x + \\gamma \\sum_j w_{ij} (\\hat x_j - \\hat x_i),$$

    with the estimates $\\hat x$ of a compressor and a rule of error feedback. The mean over the
    nodes is that of $W x$, so that trackers still track. With `GradientTracking` this is C-GT: as
    the values settle the estimates do, and the optimum is reached at a linear rate; so with
    `AdaptThenCombineTracking`. `EXTRA` and `ExactDiffusion` diverge, since they take the products
    of two rounds to be by one matrix. With the identity and $\\gamma = 1$ it is the algorithm
    itself.

    The algorithm must talk by `Network.mix`, with the network's own weights, outside of loops.

    **Arguments:**

    - `algorithm`: `GradientTracking(loss, 0.1)`, say, with a smaller step than it takes alone.
    - `gossip`: compressor, $\\gamma$ and rule.

    **Raises:** `TypeError` on what is neither; where it runs, if the algorithm talks otherwise;
    `ValueError` if it has weights or a channel of its own.

    **Reference:** Liao, Li, Huang, Pu, A Compressed Gradient Tracking Method for Decentralized
    Optimization with Linear Convergence, 2022, arXiv:2103.13748.
    """

    algorithm: AbstractNetworkAlgorithm
    gossip: ChocoGossip

    def __check_init__(self):
        checks.instance("algorithm", self.algorithm, AbstractNetworkAlgorithm, "EXTRA(loss, 0.1)")
        checks.instance("gossip", self.gossip, ChocoGossip, "ChocoGossip(TopK(0.1), 0.1)")

    def init(self, params, batch, network, key):
        inner_key, key = jax.random.split(key)

        def start(inner_key):
            talk: Any = _Talk(network, lambda _, x: (x, x))
            inner = self.algorithm.init(params, batch, talk, inner_key)
            if talk.after:
                raise TypeError(f"{type(self.algorithm).__name__} talks before its first round")
            return inner

        def told(inner, inner_key):
            talk: Any = _Talk(network, lambda _, x: (x, x))
            self.algorithm.round(inner, batch, talk, inner_key)
            return tuple(talk.after)

        inner = start(inner_key)
        values = jax.eval_shape(told, inner, inner_key)
        keys = jax.random.split(key, len(values))
        talk = tuple(self.gossip.init(x, network, k) for x, k in zip(values, keys, strict=True))
        return _State(inner.params, inner, talk)

    def round(self, state, batch, network, key):
        inner_key, key = jax.random.split(key)

        def step(k: int, x):
            own = jax.random.fold_in(key, k)
            return self.gossip.round(x, state.talk[k], network, own)

        talk: Any = _Talk(network, step)
        inner = self.algorithm.round(state.inner, batch, talk, inner_key)
        return _State(inner.params, inner, tuple(talk.after))

    def bits_per_round(self, params, network):
        """As many messages as the algorithm would send models.

        **Raises:** `ValueError` if that is no whole number.
        """
        one = network.max_degree * model_bits(params)
        whole = self.algorithm.bits_per_round(params, network)
        if not one or whole % one:
            raise ValueError(f"{type(self.algorithm).__name__} does not send whole models")
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params)
        return whole // one * network.max_degree * self.gossip.compressor.bits(like)
