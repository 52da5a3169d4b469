"""Accelerated decentralized optimization by function values alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks, tree
from ..minimize.sphere import SphereSmoothing
from .algorithm import AbstractNetworkAlgorithm, Loss, model_bits
from .network import column
from .slowly_varying import AbstractGossip


class _State(eqx.Module):
    params: PyTree[Array]
    point: PyTree[Array]
    weight: Float[Array, " local"]
    count: Int[Array, " local"]


class DecentralizedZerothOrder(AbstractNetworkAlgorithm):
    """Accelerated gradients on the smoothed mean of losses that nodes can only ask for values.

    By similar triangles on $\\tfrac1m \\sum_i f_i$, with $a$ from $a^2 L = A + a$ and
    $L = \\sqrt d M_2 / g$,

    $$y_i = \\frac{A x_i + a v_i}{A + a}, \\qquad
      v^+ = \\mathrm{gossip}_T\\bigl(v - a G(y)\\bigr), \\qquad
      x_i^+ = \\frac{A x_i + a v_i^+}{A + a}, \\qquad A^+ = A + a,$$

    where $G(y)_i$ is node i's estimate from $2 B$ values of its own loss (`SphereSmoothing`). As
    the gossip keeps the mean, the nodes' means follow the method of one machine on the mean of the
    losses, but for what T steps leave of the nodes' differences; with `ChebyshevGossip` T is of the
    order of $\\sqrt\\chi$, up to a logarithm. A round here is one iteration, with T rounds of talk.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node; it is called, never differentiated.
    - `smoothing`: radius, directions of a node's estimate, and sphere.
    - `lipschitz`: $M_2$, of every node's loss in the Euclidean norm.
    - `gossip`: how they talk, `ChebyshevGossip` say.
    - `inner_steps`: T.
    - `shared`: all nodes ask the same directions, so that their mean is the estimate of the mean
      loss; otherwise each its own, so that the noise of their mean is less.

    **Raises:** `ValueError` unless `lipschitz` is positive and T at least 1.

    **Reference:** Gasnikov, Novitskii, Novitskii, Abdukhakimov, Kamzolov, Beznosikov, Takáč,
    Dvurechensky, Gu, The Power of First-Order Smooth Optimization for Black-Box Non-Smooth
    Problems, 2022, arXiv:2201.12289.
    """

    loss: Loss
    smoothing: SphereSmoothing
    lipschitz: Float[Array, ""] = eqx.field(converter=checks.scalar)
    gossip: AbstractGossip
    inner_steps: int = eqx.field(static=True)
    shared: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        checks.instance("smoothing", self.smoothing, SphereSmoothing, "SphereSmoothing(0.1, 10)")
        checks.positive("lipschitz", self.lipschitz)
        checks.instance("gossip", self.gossip, AbstractGossip, "ChebyshevGossip((0.1, 1.0))")
        checks.count("inner_steps", self.inner_steps)
        if not isinstance(self.shared, bool):
            raise TypeError(f"shared must be True or False, got {self.shared!r}")

    def init(self, params, batch, network, key):
        zero = jnp.zeros_like(network.index())
        return _State(params, params, zero.astype(tree.real_dtype(params)), zero.astype(jnp.int32))

    def round(self, state, batch, network, key):
        one = jax.tree.map(lambda a: a[0], state.params)
        smoothness = self.smoothing.smoothness(self.lipschitz, one)
        a = (1 + jnp.sqrt(1 + 4 * smoothness * state.weight)) / (2 * smoothness)
        share = a / (state.weight + a)

        def toward(v):
            leaf = lambda x, v: x + column(share.astype(x.real.dtype), x) * (v - x)
            return jax.tree.map(leaf, state.params, v)

        def estimate(y, batch, key):
            return self.smoothing.gradient(lambda p: self.loss(p, batch), y, key)

        keys, axis = (key, None) if self.shared else (network.keys(key), 0)
        gradients = jax.vmap(estimate, (0, 0, axis))(toward(state.point), batch, keys)
        down = lambda v, g: v - column(a.astype(v.real.dtype), v) * g
        moved = jax.tree.map(down, state.point, gradients)
        first = state.count[0] * self.inner_steps
        point = self.gossip(network, moved, self.inner_steps, None, first)
        return _State(toward(point), point, state.weight + a, state.count + 1)

    def bits_per_round(self, params, network):
        return self.inner_steps * network.max_degree * model_bits(params)
