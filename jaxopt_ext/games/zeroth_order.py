"""Saddle points of functions that can only be asked for values."""

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..core import AbstractInclusion, tree
from ..minimize.zeroth_order import AbstractBatchMethod, ValueOracle
from .extragradient import Extragradient


class _Estimated(AbstractInclusion):
    """An inclusion whose map is estimated in the directions of one key."""

    oracle: ValueOracle
    key: PRNGKeyArray

    def forward(self, z: PyTree[Array]) -> PyTree[Array]:
        return self.oracle.estimate(z, self.key)

    def backward(self, z, t=1.0):
        return self.oracle.prox(z, t)


class MirrorProxBatch(AbstractBatchMethod):
    """Mirror-prox on estimates, for `minimize.ZerothOrder` on a `MinMax`: with $t = 1 / L$ and
    $F = (G_x, -G_y)$ from the sphere of the joint space,

    $$h = J_{tG}(z - t F(z)), \\qquad z^+ = J_{tG}(z - t F(h)),$$

    each $F$ in new directions. The value is the mean of the $h$, whose gap falls as
    $L R^2 / (2 N)$ with exact maps, $R$ the largest distance from the start. It is `Extragradient`,
    run on the estimates.

    **Reference:** Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč,
    Dvurechensky, Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth
    Problems, 2022, arXiv:2201.12289. Nemirovski, Prox-Method with Rate of Convergence O(1/t) for
    Variational Inequalities, 2004.
    """

    takes_saddles = True

    def _solver(self, oracle, x):
        return Extragradient(step_size=1 / oracle.smoothness(x), average=True)

    def init(self, oracle, x):
        key = jax.random.key(0)  # the map of the start is estimated again by the first step
        return self._solver(oracle, x).init(_Estimated(oracle, key), x, key)

    def step(self, oracle, x, state, key):
        first, second = jax.random.split(key)
        slope = tree.cast_like(oracle.estimate(state.point, first), x)
        now = eqx.tree_at(lambda s: (s.slope, s.past), state, (slope, slope))
        value, new = self._solver(oracle, x).step(_Estimated(oracle, second), x, now)
        # What it found out of the value and the next point is of directions that chose them. It is
        # not used, so that a compiler drops it.
        kept = lambda s: (s.slope, s.past, s.error)
        new = eqx.tree_at(kept, new, kept(state))
        return value, new, oracle.natural(state.point, slope)

    def num_steps(self, smoothness, lipschitz, distance, accuracy):
        return smoothness * distance**2 / accuracy
