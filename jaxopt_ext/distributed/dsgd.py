"""Distributed stochastic gradient descent: with weights that decay, for losses that are neither
convex nor smooth; and the loss that it sees, averaged over the directions in which nodes differ."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, tree
from ..core.operators import Map, as_map
from .algorithm import AbstractNetworkAlgorithm, Loss, node_gradients
from .mixing import Matrix, check_mixing, laplacian_spectrum
from .network import Network, Weights

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]
"""A number for each round; those of optax are such."""


class PowerDecay(eqx.Module):
    """Weights $c\\, k^{-\\tau}$, $k = 1, 2, \\dots$

    **Arguments:**

    - `coefficient`: $c > 0$.
    - `exponent`: $\\tau \\ge 0$.

    **Raises:** `ValueError` on others.
    """

    coefficient: Scalar = eqx.field(converter=checks.scalar)
    exponent: Scalar = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        checks.positive("coefficient", self.coefficient)
        checks.nonnegative("exponent", self.exponent)

    def __call__(self, k: Int[Array, ""]) -> Float[Array, ""]:
        """The weight of round k, counted from 1."""
        return self.coefficient * jnp.asarray(k) ** -self.exponent


def consensus_decay(graph: nx.Graph, exponent: Any = 0.3) -> PowerDecay:
    """$\\beta_k = k^{-\\tau} / \\lambda_{\\max}(L)$, with which every round of `DistributedSGD`
    brings the nodes closer.

    **Arguments:**

    - `graph`: of the network, with two nodes or more.
    - `exponent`: $\\tau$, in [0, 1) and below that of the step size.
    """
    return PowerDecay(1 / laplacian_spectrum(graph)[1], exponent)


def _check_decay(step_size: Any, consensus: Any) -> None:
    """The conditions on power laws; other schedules are taken on trust."""
    if not (isinstance(step_size, PowerDecay) and isinstance(consensus, PowerDecay)):
        return
    if checks.is_traced((step_size, consensus)):
        return
    a, b = np.asarray(step_size.exponent), np.asarray(consensus.exponent)
    for ok, what in (
        (a <= 1, "the sum of the step sizes is infinite only if their exponent is at most 1"),
        (a > 0.5, "the sum of their squares is finite only if their exponent is above 1/2"),
        (b < a, "consensus / step_size grows only if the exponent of consensus is the smaller one"),
    ):
        if not np.all(ok):
            raise ValueError(f"{what}, got step_size {a} and consensus {b}")


def _scale(value: Any) -> Any:
    """Zero is known when the program is compiled, which then draws nothing."""
    if isinstance(value, float | int):
        return checks.scalar(value) if value else None
    return value


class _State(eqx.Module):
    params: PyTree[Array]
    count: Int[Array, " local"]
    """Rounds done, at each node."""


def _start(params, network):
    return _State(params, jnp.zeros_like(network.index(), jnp.int32))


class DistributedSGD(AbstractNetworkAlgorithm):
    """Distributed stochastic gradient descent for $\\min_x \\sum_i f_i(x)$, where the $f_i$ need be
    neither convex nor smooth,

    $$x_i \\leftarrow x_i + \\beta_k \\sum_{j \\sim i} (x_j - x_i) - \\alpha_k (v_i + \\xi_i),
      \\qquad v_i \\in \\partial f_i(x_i), \\quad k = 1, 2, \\dots$$

    With $\\alpha_k = c_a k^{-\\tau_a}$ and $\\beta_k = c_b k^{-\\tau_b}$, where
    $1/2 < \\tau_a \\le 1$ and $0 \\le \\tau_b < \\tau_a$, the nodes agree in the limit, on a
    critical point of the sum; noise whose mean over the nodes reaches every direction keeps them
    off regular saddle points. Nodes differ by the order of $\\alpha_k / \\beta_k$ after k rounds,
    so that no tolerance is reached fast. At a kink `jax.grad` picks one generalised gradient.

    One value travels along each edge in a round.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha$, a function of k; `PowerDecay(0.5, 0.8)` is a usual start.
    - `consensus`: $\\beta$, a function of k, not divided by the degree; `consensus_decay(graph)` is
      a usual start. While $\\beta_k \\lambda_{\\max}(L) \\ge 2$ the nodes move apart.
    - `noise_scale`: standard deviation of $\\xi$, normal and new at each node in each round; 0 for
      losses whose batches are noisy by themselves.

    **Raises:** `ValueError` if both are a `PowerDecay` whose exponents break one of the conditions,
    with its name; `TypeError` if one is no function.

    **Reference:** Swenson, Murray, Poor, Kar, Distributed Stochastic Gradient Descent:
    Nonconvexity, Nonsmoothness, and Convergence to Local Minima, 2022, arXiv:2003.02818.
    """

    loss: Loss
    step_size: Schedule
    consensus: Schedule
    noise_scale: Scalar | None = eqx.field(converter=_scale, default=0.0)

    def __check_init__(self):
        for name, value in (("step_size", self.step_size), ("consensus", self.consensus)):
            if not callable(value):
                raise TypeError(f"{name} must be a function such as PowerDecay, got {value!r}")
        if self.noise_scale is not None:
            checks.nonnegative("noise_scale", self.noise_scale)
        _check_decay(self.step_size, self.consensus)

    def init(self, params, batch, network, key):
        return _start(params, network)

    def round(self, state, batch, network, key):
        k = state.count[0] + 1
        direction = node_gradients(self.loss, state.params, batch)
        if self.noise_scale is not None:
            draw = jax.vmap(optax.tree.random_like)(network.keys(key), state.params)
            direction = tree.axpy(direction, self.noise_scale, draw)
        mixed = network.mix(state.params, _gossip(network, self.consensus(k)))
        return _State(tree.axpy(mixed, -self.step_size(k), direction), state.count + 1)


def _gossip(network: Network, beta: Float[Array, ""]) -> Weights:
    """$I - \\beta L$."""
    mask = jnp.asarray(network._graph().mask)
    return 1 - beta * jnp.sum(mask, axis=1), beta * mask


class SubspaceConstrainedSGD(eqx.Module):
    """Stochastic gradient descent for $\\min h(x)$ over the kernel of a positive semidefinite Q,
    by a penalty that grows,

    $$x \\leftarrow x - \\alpha_k \\bigl(\\nabla h(x) + \\gamma_k Q x + \\xi\\bigr), \\qquad
      \\gamma_k = \\beta_k / \\alpha_k \\to \\infty .$$

    With $h(x) = \\sum_i f_i(x_i)$ and $Q = L \\otimes I$ this is `DistributedSGD`.

    **Arguments:**

    - `gradient`: `x -> ` a generalised gradient of h, a tree like x.
    - `constraint`: Q, a matrix or a `lineax` operator.
    - `step_size`, `consensus`: $\\alpha$ and $\\beta$, functions of k = 1, 2, ..., see
      `DistributedSGD`.

    **Raises:** as `DistributedSGD`.

    **Reference:** Swenson, Murray, Poor, Kar, Distributed Stochastic Gradient Descent:
    Nonconvexity, Nonsmoothness, and Convergence to Local Minima, 2022, arXiv:2003.02818.
    """

    gradient: Callable[[PyTree[Array]], PyTree[Array]]
    constraint: Map = eqx.field(converter=as_map)
    step_size: Schedule
    consensus: Schedule

    def __check_init__(self):
        _check_decay(self.step_size, self.consensus)

    def init(self, x: PyTree[Array]) -> Int[Array, ""]:
        """The number of steps done: none."""
        return jnp.zeros((), jnp.int32)

    def step(
        self, x: PyTree[Array], count: Int[Array, ""], noise: PyTree[Array] | None = None
    ) -> tuple[PyTree[Array], Int[Array, ""]]:
        """One step.

        **Arguments:**

        - `x`, `count`: from `init` or the step before.
        - `noise`: $\\xi$, like x; none if `None`.
        """
        k = count + 1
        direction = self.gradient(x)
        if noise is not None:
            direction = tree.axpy(direction, 1, noise)
        moved = tree.axpy(x, -self.consensus(k), self.constraint(x))
        return tree.axpy(moved, -self.step_size(k), direction), k


class DecentralizedSGD(AbstractNetworkAlgorithm):
    """D-SGD, gossip and a stochastic gradient at the node's own old model,

    $$w_j \\leftarrow \\sum_i P_{ji}(r)\\, w_i - \\eta_r\\, \\nabla f_j(w_j; \\xi_j),$$

    with a step size and a mixing matrix that may change from round to round. The mean over the
    nodes follows gradient descent on the loss averaged over normal perturbations whose covariance
    is that of the nodes, see `average_direction_gradient`: D-SGD prefers flat minima.
    `DecentralizedGradient` is the same with constants; on `complete(n)`, whose matrix is the mean,
    this is centralized SGD (C-SGD).

    One value travels along each edge in a round.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\eta$, a number, or a function of the round r = 0, 1, ..., as in optax or
      `warmup_step_decay`.
    - `weights`: the mixing matrix of a round, a function such as `TimeVarying` or
      `RandomRelabelling`; the network's own if `None`.

    **Raises:** `ValueError` on a step size that is not positive.

    **Reference:** Zhu, He, Chen, Song, Tao, Decentralized SGD and Average-direction SAM are
    Asymptotically Equivalent, 2023, arXiv:2306.02913.
    """

    loss: Loss
    step_size: Scalar | Schedule = eqx.field(converter=checks.scalar)
    weights: Callable[[Int[Array, ""]], Weights] | None = None

    def __check_init__(self):
        if not callable(self.step_size):
            checks.positive("step_size", self.step_size)

    def init(self, params, batch, network, key):
        return _start(params, network)

    def round(self, state, batch, network, key):
        r = state.count[0]
        gradient = node_gradients(self.loss, state.params, batch)
        mixed = network.mix(state.params, None if self.weights is None else self.weights(r))
        step: Any = self.step_size(r) if callable(self.step_size) else self.step_size
        return _State(tree.axpy(mixed, -step, gradient), state.count + 1)


class RandomRelabelling(eqx.Module):
    """A schedule of weights in which the nodes of one mixing matrix P are drawn anew in each round:
    round r mixes with $\\Pi_r P\\, \\Pi_r^\\top$, for a uniform permutation $\\Pi_r$.

    Every node may meet every other: build it with `RandomRelabelling.of` for a network on
    `complete(n)`, where on a mesh each value goes to all n - 1 others. For few nodes.

    **Reference:** Zhu, He, Chen, Song, Tao, Decentralized SGD and Average-direction SAM are
    Asymptotically Equivalent, 2023, arXiv:2306.02913.
    """

    matrix: Float[Array, "n n"]
    neighbors: Int[np.ndarray, "n k"]
    mask: Bool[np.ndarray, "n k"]
    key: PRNGKeyArray

    @staticmethod
    def of(network: Network, graph: nx.Graph, mixing: Matrix, key: PRNGKeyArray):
        """The schedule.

        **Arguments:**

        - `network`: on `complete(n)`.
        - `graph`, `mixing`: of n nodes, and a symmetric doubly stochastic matrix on its edges.
        - `key`: round r draws from `fold_in(key, r)`.

        **Raises:** `ValueError` on another network or matrix.
        """
        tables, n = network._graph(), network.size
        if tables.mask.shape[1] != n - 1:
            raise ValueError(
                f"relabelled nodes meet anywhere: the network must be on complete({n}), got one "
                f"of degree {tables.mask.shape[1]}"
            )
        if graph.number_of_nodes() != n:
            raise ValueError(f"the graph must have {n} nodes, got {graph.number_of_nodes()}")
        dense = jnp.asarray(check_mixing(graph, mixing).toarray())
        return RandomRelabelling(dense, tables.neighbors, tables.mask, key)

    def __call__(self, round: int | Int[Array, ""]) -> Weights:
        """The weights of a round."""
        n = self.matrix.shape[0]
        order = jax.random.permutation(jax.random.fold_in(self.key, round), n)
        matrix = self.matrix[order[:, None], order]
        table = jnp.take_along_axis(matrix, jnp.asarray(self.neighbors), axis=1)
        return jnp.diagonal(matrix), jnp.where(jnp.asarray(self.mask), table, 0)


def warmup_step_decay(peak: Any, num_rounds: int, warmup_rounds: int = 0) -> Schedule:
    """A linear warm-up, and a tenth of the rate after 40% and again after 80% of the rounds.

    **Arguments:**

    - `peak`: the largest rate.
    - `num_rounds`: of the whole run.
    - `warmup_rounds`: rounds until the peak.
    """
    checks.positive("peak", peak)
    checks.count("num_rounds", num_rounds)
    checks.count("warmup_rounds", warmup_rounds, minimum=0)
    drops = {int(0.4 * num_rounds): 0.1, int(0.8 * num_rounds): 0.1}
    decay = optax.piecewise_constant_schedule(1.0, drops)
    return lambda r: peak * jnp.minimum(1.0, (r + 1) / max(warmup_rounds, 1)) * decay(r)


def weight_diversity(params: PyTree[Array]) -> PyTree[Array]:
    """$d_j = w_j - \\bar w$, each node's deviation from the mean; their covariance is
    $\\Xi = \\frac1m \\sum_j d_j d_j^\\top$.

    **Arguments:**

    - `params`: stacked over the nodes.
    """
    return jax.tree.map(lambda a: a - jnp.mean(a, axis=0), params)


def trace_diversity(params: PyTree[Array]) -> Float[Array, ""]:
    """$\\mathrm{tr}\\, \\Xi = \\frac1m \\sum_j \\|w_j - \\bar w\\|^2$."""
    deviations = weight_diversity(params)
    return tree.vdot(deviations, deviations) / _nodes(deviations)


def _nodes(stacked: PyTree[Array]) -> int:
    return jax.tree.leaves(stacked)[0].shape[0]


Draw = Callable[[PRNGKeyArray], PyTree[Array]]


def _from(deviations: PyTree[Array]) -> Draw:
    """Draws from $N(0, \\Xi)$, as $m^{-1/2} \\sum_j z_j d_j$."""
    m = _nodes(deviations)

    def draw(key):
        z = jax.random.normal(key, (m,), tree.real_dtype(deviations)) / math.sqrt(m)
        return jax.tree.map(lambda d: jnp.tensordot(z.astype(d.real.dtype), d, 1), deviations)

    return draw


def _averaged(loss, w, draw: Draw, key, num_samples: int):
    """Value and gradient of a loss, averaged over antithetic pairs of draws."""
    checks.count("num_samples", num_samples, minimum=2)
    if num_samples % 2:
        raise ValueError(f"num_samples must be even, half of them opposite, got {num_samples}")
    at = lambda sign, eps: tree.value_and_gradient(loss, tree.axpy(w, sign, eps))

    def pair(total, key):
        eps = draw(key)
        both = jax.tree.map(jnp.add, at(1, eps), at(-1, eps))
        return jax.tree.map(jnp.add, total, both), None

    zero = jnp.zeros((), jax.eval_shape(loss, w).dtype), jax.tree.map(jnp.zeros_like, w)
    total, _ = loops.scan(pair, zero, jax.random.split(key, num_samples // 2))
    return tree.scale(total, 1 / num_samples)


def average_direction_gradient(
    loss: Callable[[PyTree[Array]], Float[Array, ""]],
    w: PyTree[Array],
    deviations: PyTree[Array],
    key: PRNGKeyArray,
    num_samples: int = 2,
) -> PyTree[Array]:
    """An unbiased estimate of $\\mathbb E_\\epsilon \\nabla \\ell(w + \\epsilon)$,
    $\\epsilon \\sim N(0, \\Xi)$.

    At the mean of the nodes this is the step of D-SGD up to the cube of their deviations,

    $$\\frac1m \\sum_j \\nabla \\ell(w_j) = \\mathbb E_\\epsilon \\nabla \\ell(\\bar w + \\epsilon)
      + O\\Bigl(\\frac1m \\sum_j \\|d_j\\|^3\\Bigr).$$

    Draws are $m^{-1/2} \\sum_j z_j d_j$ with normal $z_j$, so that the covariance is exact and
    never formed; they come in pairs $\\pm \\epsilon$.

    **Arguments:**

    - `loss`: `w -> scalar`.
    - `w`: one model.
    - `deviations`: stacked over the m nodes, from `weight_diversity`.
    - `key`, `num_samples`: an even number of draws, one after the other.

    **Returns:** a tree like `w`.

    **Raises:** `ValueError` on an odd number of draws.

    **Reference:** Zhu, He, Chen, Song, Tao, Decentralized SGD and Average-direction SAM are
    Asymptotically Equivalent, 2023, arXiv:2306.02913.
    """
    return _averaged(loss, w, _from(deviations), key, num_samples)[1]


def average_direction_expansion(
    loss: Callable[[PyTree[Array]], Float[Array, ""]],
    w: PyTree[Array],
    deviations: PyTree[Array],
) -> PyTree[Array]:
    """What `average_direction_gradient` estimates, to second order and without draws,

    $$\\nabla \\ell(w) + \\frac1{2m} \\sum_j D^3 \\ell(w)[d_j, d_j, \\cdot\\,] .$$

    The third derivatives are two nested forward derivatives of the gradient; those of a network of
    ReLUs are zero.

    **Arguments:**

    - `loss`: `w -> scalar`, three times differentiable.
    - `w`: one model.
    - `deviations`: stacked over the m nodes, from `weight_diversity`.

    **Returns:** a tree like `w`.

    **Reference:** Zhu, He, Chen, Song, Tao, Decentralized SGD and Average-direction SAM are
    Asymptotically Equivalent, 2023, arXiv:2306.02913.
    """
    gradient = lambda p: tree.gradient(loss, p)

    def curved(d):
        along = lambda p: jax.jvp(gradient, (p,), (d,))[1]
        return jax.jvp(along, (w,), (d,))[1]

    third = jax.tree.map(lambda a: jnp.mean(a, axis=0), jax.vmap(curved)(deviations))
    return tree.axpy(gradient(w), 0.5, third)


class _SAMState(eqx.Module):
    params: PyTree[Array]
    key: PRNGKeyArray


class AverageDirectionSAM(eqx.Module):
    """Average-direction sharpness-aware minimization: one model descends on
    $\\mathbb E_\\epsilon\\, \\ell(w + \\epsilon)$, as D-SGD does in the mean of its nodes.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar`.
    - `step_size`: > 0.
    - `deviations`: of nodes, stacked; $\\epsilon \\sim N(0, \\Xi)$ with their covariance.
    - `radius`: $\\epsilon \\sim N(0, r^2 I)$ instead. Give one of the two.
    - `num_samples`: draws in a step, an even number.

    **Raises:** `ValueError` if both or none of `deviations` and `radius` are given, or on a step
    size or radius that is not positive.

    **Reference:** Zhu, He, Chen, Song, Tao, Decentralized SGD and Average-direction SAM are
    Asymptotically Equivalent, 2023, arXiv:2306.02913.
    """

    loss: Loss
    step_size: Scalar = eqx.field(converter=checks.scalar)
    deviations: PyTree[Array] | None = None
    radius: Scalar | None = eqx.field(converter=checks.scalar, default=None)
    num_samples: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        checks.positive("step_size", self.step_size)
        if (self.deviations is None) == (self.radius is None):
            raise ValueError("give either deviations or a radius")
        if self.radius is not None:
            checks.positive("radius", self.radius)

    def init(self, params: PyTree[Array], key: PRNGKeyArray) -> _SAMState:
        """The state before the first step."""
        return _SAMState(params, key)

    def step(
        self, state: _SAMState, batch: PyTree[Array] = None
    ) -> tuple[_SAMState, dict[str, Array]]:
        """One step of descent.

        **Returns:** the state, and `loss`, the averaged one before the step.
        """
        key, draws = jax.random.split(state.key)
        if self.deviations is None:
            draw = lambda k: tree.scale(optax.tree.random_like(k, state.params), self.radius)
        else:
            draw = _from(self.deviations)
        loss = lambda p: self.loss(p, batch)
        value, gradient = _averaged(loss, state.params, draw, draws, self.num_samples)
        params = tree.axpy(state.params, -self.step_size, gradient)
        return _SAMState(params, key), {"loss": value}


def predictive_moments(
    predict: Callable[[PyTree[Array], Any], Float[Array, "..."]], params: PyTree[Array], x: Any
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Mean and variance over the nodes of what their models predict: an uncertainty for free.

    **Arguments:**

    - `predict`: `(params, x) -> prediction` of one model.
    - `params`: stacked over the nodes.
    - `x`: inputs, the same for all nodes.
    """
    predictions = jax.vmap(lambda p: predict(p, x))(params)
    return jnp.mean(predictions, axis=0), jnp.var(predictions, axis=0)


def smoothing_bound(lipschitz: Any, smoothness: Any, deviations: PyTree[Array]) -> Float[Array, ""]:
    """How smooth the averaged loss is at most: $\\min(a / s, b)$ for a loss that is a-Lipschitz and
    b-smooth, where $s^2$ is the least eigenvalue of $\\Xi$.

    With no more nodes than parameters $\\Xi$ is singular, and the bound is b.

    **Arguments:**

    - `lipschitz`, `smoothness`: a and b, > 0.
    - `deviations`: stacked over the m nodes, from `weight_diversity`.
    """
    checks.positive("lipschitz", lipschitz)
    checks.positive("smoothness", smoothness)
    m = _nodes(deviations)
    rows = jnp.concatenate([a.reshape(m, -1) for a in jax.tree.leaves(deviations)], axis=1)
    if m <= rows.shape[1]:
        return jnp.asarray(smoothness, rows.dtype)
    least = jnp.min(jnp.linalg.svd(rows / math.sqrt(m), compute_uv=False))
    # Not a / s, which is infinite where nodes agree.
    return jnp.where(
        least * smoothness > lipschitz, lipschitz / jnp.where(least > 0, least, 1), smoothness
    )
