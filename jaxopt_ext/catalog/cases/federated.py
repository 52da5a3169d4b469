"""A joint loss as two levels."""

from typing import Any

import equinox as eqx

from ...distributed import AbstractNetworkAlgorithm


class TwoLevels(AbstractNetworkAlgorithm):
    """An algorithm over pairs of parameters, with names for the two: the loss of both is either
    level, so that the joint minimum is the solution.

    **Arguments:**

    - `algorithm`: what runs.
    """

    algorithm: AbstractNetworkAlgorithm

    @staticmethod
    def level(loss):
        """A level that asks the joint loss."""
        return lambda a, b, batch: loss({"a": a, "b": b}, batch)

    def init(self, params, batch, network, key):
        return self._named(self.algorithm.init(_pair(params), (batch, batch), network, key))

    def round(self, state, batch, network, key):
        state = eqx.tree_at(lambda s: s.params, state, _pair(state.params))
        return self._named(self.algorithm.round(state, (batch, batch), network, key))

    def bits_per_round(self, params, network):
        return self.algorithm.bits_per_round(_pair(params), network)

    @staticmethod
    def _named(state) -> Any:
        a, b = state.params
        return eqx.tree_at(lambda s: s.params, state, {"a": a, "b": b})


def _pair(params):
    return params["a"], params["b"]
