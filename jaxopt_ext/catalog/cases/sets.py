"""Minimizers of set functions, where their answer is known."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...minimize import submodular
from ..shapes.function import AbstractFunctionCase

SIZE = 6


class CutCase(AbstractFunctionCase):
    """The best set of a cut, less a modular function: a convex problem, which is solved exactly.

    **Arguments:**

    - `minimizer`: what solves it.
    """

    minimizer: Any

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        edges = np.triu(rng.random((SIZE, SIZE)), 1)
        return jnp.asarray(edges + edges.T, dtype), jnp.asarray(1.5 * rng.normal(size=SIZE), dtype)

    def call(self, *arguments):
        edges, prizes = arguments
        cut, prizes = submodular.Cut(edges), submodular.Modular(prizes)
        found = self.minimizer(submodular.DifferenceOfSubmodular(cut, prizes))
        return found.mask, found.value

    def reference(self, *arguments):
        edges, prizes = (np.asarray(a, np.float64) for a in arguments)
        sets = np.array(list(itertools.product([False, True], repeat=SIZE)))
        values = [edges[np.ix_(S, ~S)].sum() - prizes[S].sum() for S in sets]
        return sets[np.argmin(values)], np.min(values)
