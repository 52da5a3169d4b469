"""Gradient tracking over noisy links, with variance-reduced aggregation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks
from .algorithm import AbstractNetworkAlgorithm, Loss, model_bits, node_gradients
from .links import Quantized, receive
from .network import Channel, Network

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]
"""A number for each round, counted from 0."""


class Harmonic(eqx.Module):
    """$\\alpha_k = a/(k + k_0)$.

    **Arguments:**

    - `coefficient`: $a > 0$; on losses of strong convexity $\\mu$ more than $1/\\mu$, for an error
      of order $1/k$.
    - `offset`: $k_0 > 0$; $a/k_0$ is the first step. $5a$ if `None`.
    """

    coefficient: Float[Array, ""] = eqx.field(converter=checks.scalar)
    offset: Float[Array, ""] | None = eqx.field(
        default=None, converter=lambda k: None if k is None else checks.scalar(k)
    )

    def __check_init__(self):
        checks.positive("coefficient", self.coefficient)
        if self.offset is not None:
            checks.positive("offset", self.offset)

    def __call__(self, k):
        offset = 5 * self.coefficient if self.offset is None else self.offset
        return self.coefficient / (k + offset)


class PowerGain(eqx.Module):
    """$(1 + k/s)^{-p}$; constant for $p = 0$.

    **Arguments:**

    - `scale`: $s > 0$, in rounds.
    - `exponent`: $p \\ge 0$.
    """

    scale: Float[Array, ""] = eqx.field(default=50.0, converter=checks.scalar)
    exponent: Float[Array, ""] = eqx.field(default=0.6, converter=checks.scalar)

    def __check_init__(self):
        checks.positive("scale", self.scale)
        checks.nonnegative("exponent", self.exponent)

    def __call__(self, k):
        return (1 + k / self.scale) ** -self.exponent


class VarianceReducedAggregation(eqx.Module):
    """Neighbours' values over links with noise, whose variance vanishes.

    Of a variable v that changes from round to round the sender transmits
    $m = \\bigl(v^+ - (1 - \\beta_k) v\\bigr)/\\beta_k$; the link delivers $m + \\xi$, and the
    receiver keeps

    $$z \\leftarrow (1 - \\beta_k) z + \\beta_k (m + \\xi) .$$

    The error $e = z - v$ then obeys $e \\leftarrow (1 - \\beta_k) e + \\beta_k \\xi$ whatever v
    does: for $\\beta_k$ of order 1/k its variance is of order 1/k, and without noise it is zero.

    The message grows as $\\beta_k$ falls where v still moves, so that a quantizer needs an absolute
    error and room, as `compression.Grid` has.

    **Arguments:**

    - `channel`: what a link makes of a message; `None` for perfect ones. See `receive`.

    **Reference:** Zhao, Liu, Efficient Gradient Tracking Algorithms for Distributed Optimization
    Problems with Inexact Communication, 2025, arXiv:2501.05737.
    """

    channel: Channel | None = None

    def init(self, v: PyTree[Array], network: Network) -> PyTree[Array]:
        """What nodes hold of their neighbours, `(local, k, ...)`: the first values, sent whole."""
        return network.neighbors(v)[0]

    def message(self, new: PyTree[Array], old: PyTree[Array], gain: Any) -> PyTree[Array]:
        """m, from the values after and before the round."""

        def leaf(a, b):
            beta = jnp.asarray(gain, a.real.dtype)
            return b + (a - b) / beta

        return jax.tree.map(leaf, new, old)

    def update(self, z: PyTree[Array], received: PyTree[Array], gain: Any) -> PyTree[Array]:
        """What a node holds after the round."""
        return jax.tree.map(lambda a, m: a + jnp.asarray(gain, a.real.dtype) * (m - a), z, received)

    def exchange(self, z, new, old, gain, network: Network, key):
        """One round of messages.

        **Arguments:**

        - `z`: what is held, `(local, k, ...)`.
        - `new`, `old`: v after and before, `(local, ...)`.
        - `gain`: $\\beta_k$, the same at all nodes.
        - `key`: of the round.
        """
        sent = self.message(new, old, gain)
        return self.update(z, _deliver(network, sent, self.channel, key), gain)


def _deliver(network, x, channel, key):
    return network.neighbors(x)[0] if channel is None else receive(network, x, channel, key)[0]


def _pull(network: Network, z: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
    """$\\sum_j w_{ij} (z_{ij} - v_i)$."""
    weights = network.local(jnp.asarray(network._graph().weights))

    def leaf(a, b):
        w = weights.reshape(*weights.shape, *([1] * (b.ndim - 1))).astype(b.real.dtype)
        return jnp.sum(jnp.where(w == 0, 0, w * (a - b[:, None])), axis=1)

    return jax.tree.map(leaf, z, v)


def _plus(x, *terms):
    """x plus multiples, in the types of x."""
    for factor, y in terms:
        x = jax.tree.map(lambda a, b, f=factor: a + jnp.asarray(f, a.real.dtype) * b, x, y)
    return x


def _bits(params, network, channel):
    """Both variables, to each neighbour."""
    one = model_bits(params)
    if isinstance(channel, Quantized):
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params)
        one = channel.compressor.bits(like)
    return 2 * network.max_degree * one


def _count(network):
    return jnp.zeros(network.index().shape, jnp.int32)


class _State(eqx.Module):
    params: PyTree[Array]
    total: PyTree[Array]
    """s: what has gone through a node."""
    held: tuple[PyTree[Array], PyTree[Array]]
    """z of the parameters and of s."""
    count: Int[Array, " local"]


class _StochasticState(eqx.Module):
    params: PyTree[Array]
    total: PyTree[Array]
    held: tuple[PyTree[Array], PyTree[Array]]
    count: Int[Array, " local"]
    old: PyTree[Array]
    """The parameters of the round before."""
    direction: PyTree[Array]
    """h: the estimate of the node's gradient there."""


def _start(params, network, aggregation):
    zeros = jax.tree.map(jnp.zeros_like, params)
    # Everybody knows that sums begin at zero.
    shape = network.neighbor_table()[1].shape
    empty = jax.tree.map(lambda a: jnp.zeros((*shape, *a.shape[1:]), a.dtype), zeros)
    return params, zeros, (aggregation.init(params, network), empty), _count(network)


def _track(algorithm, state, gradients, network, key):
    """A round of both algorithms: parameters, s, and what is held of them."""
    k = state.count[0]
    alpha = algorithm.step_size(k)
    beta = jnp.where(k == 0, 1, jnp.minimum(1, algorithm.ratio * alpha))
    around_x, around_s = state.held
    step = _plus(_pull(network, around_s, state.total), (1, gradients))
    total = _plus(state.total, (1, step))
    pull = _pull(network, around_x, state.params)
    params = _plus(state.params, (algorithm.consensus * alpha, pull), (-alpha, step))
    held = VarianceReducedAggregation(algorithm.channel).exchange(
        state.held, (params, total), (state.params, state.total), beta, network, key
    )
    return params, total, held


def _check(algorithm):
    for name, example in (("step_size", "Harmonic(8.0)"), ("channel", "GaussianNoise(1.0)")):
        value = getattr(algorithm, name)
        if not callable(value) and not (name == "channel" and value is None):
            raise TypeError(f"{name} must be a function such as {example}, got {value!r}")


class VRADGT(AbstractNetworkAlgorithm):
    """Gradient tracking that reaches the optimum over noisy links: variance-reduced aggregation
    and a cumulative tracker, on one timescale,

    $$s_i^+ = s_i + \\sum_j w_{ij} (z^s_{ij} - s_i) + \\nabla f_i(x_i), \\qquad y_i = s_i^+ - s_i,$$
    $$x_i^+ = x_i + c\\,\\alpha_k \\sum_j w_{ij} (z^x_{ij} - x_i) - \\alpha_k y_i,$$

    with $z^x, z^s$ what `VarianceReducedAggregation` makes of the neighbours' values, with
    $\\beta_k = \\min(1, b\\,\\alpha_k)$ and $\\beta_0 = 1$. The mean of $y_i$ is the mean gradient
    up to an error that vanishes, where the tracker of `GradientTracking` adds up all noise. The
    consensus gain falls as the step size does, since the errors of $z^x$ last for about k rounds.
    $E\\|x - x^*\\|^2$ is of order 1/k on strongly convex losses.

    Two values travel along each edge in a round. The published recursion was not at hand: this is
    a scheme with its parts, the aggregation and the cumulative tracker, on one timescale.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha_k$, such as `Harmonic(8)`.
    - `channel`: what links do to messages: `GaussianNoise`, `LaplaceNoise`, `Quantized`; `None` if
      nothing.
    - `consensus`: c > 0.
    - `ratio`: b > 0.

    **Raises:** `TypeError` if `step_size` is no schedule; `ValueError` on a number out of range.

    **Reference:** Zhao, Liu, Efficient Gradient Tracking Algorithms for Distributed Optimization
    Problems with Inexact Communication, 2025, arXiv:2501.05737.
    """

    loss: Loss
    step_size: Schedule
    channel: Channel | None = None
    consensus: Float[Array, ""] = eqx.field(default=4.0, converter=checks.scalar)
    ratio: Float[Array, ""] = eqx.field(default=1.0, converter=checks.scalar)

    def __check_init__(self):
        _check(self)
        checks.positive("consensus", self.consensus)
        checks.positive("ratio", self.ratio)

    def init(self, params, batch, network, key):
        return _State(*_start(params, network, VarianceReducedAggregation()))

    def round(self, state, batch, network, key):
        gradients = node_gradients(self.loss, state.params, batch)
        params, total, held = _track(self, state, gradients, network, key)
        return _State(params, total, held, state.count + 1)

    def bits_per_round(self, params, network):
        """Parameters and sums, to each neighbour; the first parameters are sent whole once."""
        return _bits(params, network, self.channel)


class VRADSGT(AbstractNetworkAlgorithm):
    """`VRADGT` for stochastic gradients: in place of $\\nabla f_i(x_i)$ it uses

    $$h^+ = g(x^+; \\zeta) + (1 - b^g_k) \\bigl(h - g(x; \\zeta)\\bigr), \\qquad
      b^g_k = \\min(1, 2\\alpha_k), \\qquad h_0 = g(x_0),$$

    with the batch $\\zeta$ of the round at both points, so that the noise of gradients is reduced
    as that of links is. Two gradients a round.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node; batches may change from round to round.
    - `step_size`, `channel`, `consensus`, `ratio`: see `VRADGT`.

    **Raises:** as `VRADGT`.

    **Reference:** Zhao, Liu, Efficient Gradient Tracking Algorithms for Distributed Optimization
    Problems with Inexact Communication, 2025, arXiv:2501.05737.
    """

    loss: Loss
    step_size: Schedule
    channel: Channel | None = None
    consensus: Float[Array, ""] = eqx.field(default=4.0, converter=checks.scalar)
    ratio: Float[Array, ""] = eqx.field(default=1.0, converter=checks.scalar)

    def __check_init__(self):
        _check(self)
        checks.positive("consensus", self.consensus)
        checks.positive("ratio", self.ratio)

    def init(self, params, batch, network, key):
        start = _start(params, network, VarianceReducedAggregation())
        return _StochasticState(*start, params, jax.tree.map(jnp.zeros_like, params))

    def round(self, state, batch, network, key):
        k = state.count[0]
        keep = jnp.where(k == 0, 0, 1 - jnp.minimum(1, 2 * self.step_size(k - 1)))
        new = node_gradients(self.loss, state.params, batch)
        old = node_gradients(self.loss, state.old, batch)
        direction = _plus(new, (keep, state.direction), (-keep, old))
        params, total, held = _track(self, state, direction, network, key)
        return _StochasticState(params, total, held, state.count + 1, state.params, direction)

    def bits_per_round(self, params, network):
        """As `VRADGT`."""
        return _bits(params, network, self.channel)


class _RobustState(eqx.Module):
    params: PyTree[Array]
    total: PyTree[Array]
    count: Int[Array, " local"]


class RobustTracking(AbstractNetworkAlgorithm):
    """A cumulative tracker whose consensus gains fall, so that the noise of links dies out,

    $$s_i^+ = s_i + \\gamma_k \\sum_j w_{ij} (\\tilde s_j - s_i) + \\nabla f_i(x_i), \\qquad
      x_i^+ = x_i + \\delta_k \\sum_j w_{ij} (\\tilde x_j - x_i) - \\alpha_k (s_i^+ - s_i),$$

    with $\\tilde x_j, \\tilde s_j$ the neighbours' values as they come out of their links. With
    gains that fall slower than the step size it has two timescales and is slow; with
    $\\gamma_k = 1$ and $\\delta_k = c\\,\\alpha_k$ it is `VRADGT` without aggregation.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha_k$.
    - `channel`: see `VRADGT`.
    - `consensus`, `tracking`: the gains $\\delta_k$ and $\\gamma_k$.

    **Raises:** `TypeError` if `step_size` is no schedule.

    **Reference:** Pu, A Robust Gradient Tracking Method for Distributed Optimization over Directed
    Networks, 2020, arXiv:2003.13980.
    """

    loss: Loss
    step_size: Schedule
    channel: Channel | None = None
    consensus: Schedule = eqx.field(default_factory=PowerGain)
    tracking: Schedule = eqx.field(default_factory=PowerGain)

    def __check_init__(self):
        _check(self)

    def init(self, params, batch, network, key):
        return _RobustState(params, jax.tree.map(jnp.zeros_like, params), _count(network))

    def round(self, state, batch, network, key):
        k = state.count[0]
        alpha = self.step_size(k)
        around = _deliver(network, (state.params, state.total), self.channel, key)
        pulls = _pull(network, around, (state.params, state.total))
        gradients = node_gradients(self.loss, state.params, batch)
        step = _plus(gradients, (self.tracking(k), pulls[1]))
        total = _plus(state.total, (1, step))
        params = _plus(state.params, (self.consensus(k), pulls[0]), (-alpha, step))
        return _RobustState(params, total, state.count + 1)

    def bits_per_round(self, params, network):
        """As `VRADGT`."""
        return _bits(params, network, self.channel)
