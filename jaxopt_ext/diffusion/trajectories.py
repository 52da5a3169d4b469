"""Models of whole trajectories, and the sampler that jumps along them."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..core import checks
from .denoiser import (
    AbstractDenoiser,
    AbstractPrediction,
    Data,
    Denoiser,
    Preconditioned,
    Sample,
    combine,
)
from .networks import AbstractNetwork, FourierFeatures, log_ratio
from .sampler import AbstractSampler, ends, gaussian
from .schedules import Node


class AbstractTrajectory(AbstractDenoiser):
    """A denoiser that also knows where the probability-flow equation leads."""

    @abc.abstractmethod
    def jump(self, x: Sample, node: Node, target: Node) -> Sample:
        """The sample at a later, less noisy level; `x` itself if the levels are the same."""


def straight(x: Sample, data: Sample, node: Node, target: Node) -> Sample:
    """The point of less noise between `x` and the data, $\\tfrac{\\sigma_s}{\\sigma_t} x +
    (\\alpha_s - \\alpha_t \\tfrac{\\sigma_s}{\\sigma_t})\\, x_0$."""
    # Of numbers near each other the difference comes first: (t - s)/t, not 1 - s/t.
    rest = (target.alpha * node.sigma - node.alpha * target.sigma) / node.sigma
    return combine((target.sigma / node.sigma, x), (rest, data))


def jump(model: AbstractDenoiser, x: Sample, node: Node, target: Node) -> Sample:
    """The model's own jump; of a model that only denoises, a step of `DDIM()`."""
    if isinstance(model, AbstractTrajectory):
        return model.jump(x, node, target)
    return straight(x, model.data(x, node), node, target)


class TrajectoryNetwork(eqx.Module):
    """A network that is told a second level, where to go.

    The features of that level are added, through weights that start at zero, to what all blocks
    are told, or to the first hidden value where that is no vector: at first it is the network that
    it was, which may be a teacher's.

    **Arguments:**

    - `network`: an `AbstractNetwork`, made or trained for one level.
    - `embedding`: features of the second level, with a `size`; 32 random frequencies of bandwidth 1
      if not given.
    - `level`: the second node's level of noise.
    - `key`: random key.

    **Raises:** `TypeError` if `network` is none in blocks, or has no vector to add to.
    """

    network: AbstractNetwork
    embedding: Any
    weight: Array
    level: Callable[[Node], Array]
    conditions: bool = eqx.field(static=True)

    def __init__(
        self,
        network: AbstractNetwork,
        embedding: Any = None,
        level: Callable[[Node], Array] = log_ratio,
        *,
        key: PRNGKeyArray,
    ):
        checks.instance("network", network, AbstractNetwork, "MLPDenoiser((2,), key=key)")
        dtype = jnp.result_type(*jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
        if embedding is None:
            embedding = FourierFeatures(32, key=key, dtype=dtype)
        one = jnp.ones((), dtype)
        hidden, condition = eqx.filter_eval_shape(
            network.stem, jnp.zeros(network.shape, dtype), Node(one, one, one)
        )
        is_vector = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct) and leaf.ndim == 1
        self.conditions = is_vector(condition)
        told = condition if self.conditions else hidden
        if not is_vector(told):
            raise TypeError(f"network must have a vector in its stem's output, got {told!r}")
        self.network, self.embedding, self.level = network, embedding, level
        self.weight = jnp.zeros((told.shape[0], embedding.size), dtype)

    def __call__(self, x: Array, node: Node, target: Node) -> Array:
        """The output for one sample or a batch."""
        missing = x.ndim - len(self.network.shape)
        if missing == 1:
            axes = jax.tree.map(lambda a: 0 if jnp.ndim(a) else None, (node, target))
            return jax.vmap(self, (0, *axes))(x, node, target)
        if x.shape != self.network.shape:
            raise ValueError(
                f"x must be a sample of shape {self.network.shape} or a batch, got shape {x.shape}"
            )
        hidden, condition = self.network.stem(x, node)
        told = self.weight @ self.embedding(self.level(target)).astype(x.dtype)
        if self.conditions:
            condition = condition + told
        else:
            hidden = hidden + told
        for block in self.network.blocks:
            hidden = block(hidden, condition)
        return self.network.head(hidden, condition)


class _AtOneLevel(eqx.Module):
    """A network of two levels where both are the same."""

    network: Callable[[Sample, Node, Node], Sample]

    def __call__(self, x, node):
        return self.network(x, node, node)


class TrajectoryModel(AbstractTrajectory):
    r"""The solution map of the probability-flow equation from level t to level s,

    $$G(x, t, s) = \tfrac{\sigma_s}{\sigma_t} x
      + \big(\alpha_s - \alpha_t \tfrac{\sigma_s}{\sigma_t}\big)\, g(x, t, s),$$

    with g what the network predicts as the data. $G(x, t, t) = x$ whatever the network; $g(x, t,
    t)$ is the denoiser, which the slope of G at $s = t$ is that of; $g(x, t, 0)$ is a sample in one
    step. It is a denoiser for every sampler, and a trajectory for `GammaSampler`.

    **Arguments:**

    - `network`: `(x, node, target) -> output`, for one sample or a batch; a `TrajectoryNetwork`.
    - `predicts`: what it predicts, `Preconditioned(sigma_data)`; both nodes come with the times
      that this gives.

    **Raises:** `TypeError` if `predicts` is no prediction; `ValueError`, from `jump`, for a target
    that has more noise.

    **Reference:** Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon, Consistency
    Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion, 2024,
    arXiv:2310.02279.
    """

    network: Callable[[Sample, Node, Node], Sample]
    predicts: AbstractPrediction = Preconditioned()

    def __check_init__(self):
        checks.instance("predicts", self.predicts, AbstractPrediction, "Preconditioned(0.5)")

    def towards(self, x: Sample, node: Node, target: Node) -> Sample:
        """$g(x, t, s)$."""
        inner, at = self.predicts.inputs(x, node)
        _, to = self.predicts.inputs(x, target)
        return self.predicts.data(self.network(inner, at, to), x, node)

    def jump(self, x, node, target):
        here, there = (checks.concrete(n.sigma / n.alpha) for n in (node, target))
        if here is not None and there is not None and np.any(there > here * (1 + 1e-5)):
            raise ValueError(f"target must have no more noise than {here}, got {there}")
        return straight(x, self.towards(x, node, target), node, target)

    def data(self, x, node):
        return self.towards(x, node, node)

    def noise(self, x, node):
        return Data().noise(self.data(x, node), x, node)

    def denoiser(self) -> Denoiser:
        """The same denoiser as a network of one level, for `DenoisingLoss`."""
        return Denoiser(_AtOneLevel(self.network), self.predicts)


class GammaSampler(AbstractSampler):
    r"""Jumps that overshoot, and noise that leads back: with $\rho = \sigma/\alpha$ and
    $\rho_{min}$ that of the last time,

    $$\rho_s = \sqrt{1 - \gamma^2}\,(\rho_{k+1} - \rho_{min}) + \rho_{min}, \qquad
      \frac{x_{k+1}}{\alpha_{k+1}} = \frac{G(x_k, t_k, s)}{\alpha_s}
        + \sqrt{\rho_{k+1}^2 - \rho_s^2}\; z .$$

    With $\gamma = 0$ it follows the probability flow, with $\gamma = 1$ each jump goes to the end,
    which is multistep consistency sampling. The last step draws nothing. One evaluation a step, in
    any number of them down to one.

    It is meant for a `TrajectoryModel`. A model that only denoises jumps by `DDIM()`, and then
    samples have the law of the data only with $\gamma = 0$ and many steps.

    **Arguments:**

    - `gamma`: $\gamma \in [0, 1]$.

    **Raises:** `ValueError` if `gamma` lies outside [0, 1].

    **Reference:** Kim, Lai, Liao, Murata, Takida, Uesaka, He, Mitsufuji, Ermon, Consistency
    Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion, 2024,
    arXiv:2310.02279.
    """

    gamma: float = 0.0

    def __check_init__(self):
        checks.interval("gamma", self.gamma, 0.0, 1.0)

    @property
    def stochastic(self):
        return self.gamma > 0

    def plan(self, schedule, times):
        here, there = ends(schedule, times)
        if not self.stochastic:
            return here, there, np.ones(len(times) - 1), np.zeros(len(times) - 1)
        level = there.sigma / there.alpha
        low = np.sqrt(1 - self.gamma**2) * (level - level[-1]) + level[-1]
        target = schedule.nodes(schedule.time_at(-np.log(low)))
        # The last jump ends at the last time itself, not where rounding leads to.
        target = Node(*(np.append(a[:-1], b[-1]) for a, b in zip(target, there, strict=True)))
        fresh = np.sqrt(np.maximum(level**2 - low**2, 0.0))
        fresh[-1] = 0.0
        return here, target, there.alpha / target.alpha, there.alpha * fresh

    def step(self, model, x, memory, row, key):
        node, target, scale, fresh = row
        terms = [(scale, jump(model, x, node, target))]
        if self.stochastic:
            terms.append((fresh, gaussian(x, key)))
        return combine(*terms), memory
