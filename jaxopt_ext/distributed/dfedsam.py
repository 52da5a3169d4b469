"""Decentralized federated learning with sharpness-aware local steps and several gossip steps."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops
from .algorithm import AbstractNetworkAlgorithm, Loss, model_bits
from .gossip import chebyshev_gossip
from .local import AbstractLocalSolver, LocalSAM, LocalSGD
from .network import Network
from .participation import participants


class AbstractAveraging(eqx.Module):
    """How clients bring their models together at the end of a round."""

    @abc.abstractmethod
    def average(
        self, network: Network, x: PyTree[Array], key: PRNGKeyArray | None = None
    ) -> PyTree[Array]:
        """The models after the talk, stacked as they came.

        **Arguments:**

        - `key`: of the round, for those that draw.
        """

    @abc.abstractmethod
    def bits(self, params: PyTree[Array], network: Network) -> int:
        """Bits that the busiest client sends."""


class MultipleGossip(AbstractAveraging):
    """Q steps of gossip, $x \\leftarrow W^Q z$ (MGS); one is plain gossip.

    **Arguments:**

    - `num_steps`: Q.

    **Reference:** Shi, Shen, Wei, Sun, Yuan, Wang, Tao, Improving the Model Consistency of
    Decentralized Federated Learning, 2023, arXiv:2302.04083.
    """

    num_steps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.count("num_steps", self.num_steps)

    def average(self, network, x, key=None):
        return loops.fori_loop(0, self.num_steps, lambda _, z: network.mix(z), x)

    def bits(self, params, network):
        return self.num_steps * network.max_degree * model_bits(params)


class ChebyshevAverage(AbstractAveraging):
    """Q steps of `chebyshev_gossip`, which bring the clients closer than Q plain ones.

    **Arguments:**

    - `num_steps`: Q.
    - `spectrum`: `laplacian_spectrum(graph)`.

    **Reference:** Scaman, Bach, Bubeck, Lee, Massoulié, Optimal Algorithms for Smooth and Strongly
    Convex Distributed Optimization in Networks, 2017, arXiv:1702.08704.
    """

    num_steps: int = eqx.field(static=True)
    spectrum: tuple[Any, Any]

    def __check_init__(self):
        checks.count("num_steps", self.num_steps)

    def average(self, network, x, key=None):
        return chebyshev_gossip(network, x, self.num_steps, self.spectrum)

    def bits(self, params, network):
        return self.num_steps * network.max_degree * model_bits(params)


class ServerAverage(AbstractAveraging):
    """The mean over all clients, or over those drawn for the round, by a server: any network,
    `Network.clients` too.

    Everybody holds the result, and those that were not drawn begin the next round from it too.
    What they trained meanwhile is not looked at.

    **Arguments:**

    - `participants`: how many clients are drawn in each round, uniformly without replacement; all
      if `None`; static.
    - `weights`: of all clients, shape `(n,)`, such as their numbers of samples; equal if `None`.

    **Raises:** `ValueError` if it runs on fewer clients than that, or on another number than it has
    weights of.

    **Reference:** McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning
    of Deep Networks from Decentralized Data, 2017, arXiv:1602.05629.
    """

    participants: int | None = eqx.field(static=True, default=None)
    weights: Float[Array, " n"] | None = eqx.field(
        default=None, converter=lambda w: None if w is None else jnp.asarray(w)
    )

    def __check_init__(self):
        if self.participants is not None:
            checks.count("participants", self.participants)
        if self.weights is not None:
            checks.nonnegative("weights", self.weights)

    def average(self, network, x, key=None):
        n = network.size
        if self.participants is None and self.weights is None:
            return network.mean(x)
        weights = jnp.ones(n, jnp.float32) if self.weights is None else self.weights
        if weights.shape != (n,):
            raise ValueError(f"weights must have shape {(n,)}, got {weights.shape}")
        if self.participants is not None:
            if key is None:
                raise ValueError("clients are drawn from a key")
            weights = jnp.where(participants(key, n, self.participants), weights, 0)
        return network.mean(x, network.local(weights))

    def bits(self, params, network):
        return model_bits(params)


class _State(eqx.Module):
    params: PyTree[Array]
    count: Int[Array, " local"]
    """Rounds done, at each client."""


class DecentralizedFederated(AbstractNetworkAlgorithm):
    """Federated learning without a server: in each round every client trains on its own data, and
    then they talk,

    $$z_i = \\mathrm{Local}_K(x_i;\\ \\eta_t), \\qquad x = W^Q z, \\qquad \\eta_t = \\eta\\, d^t .$$

    The objective is the mean of the clients' losses. `dfedsam`, `dfedsam_mgs`, `dfedavg`, `fedavg`
    and `fedsam` compose the methods of the paper; D-PSGD is one local step of `LocalSGD`, with the
    talk after the step.

    A batch is a tree with leaves `(n, samples, ...)`, or `Padded` for clients that have more and
    less of them; minibatches are drawn from it.

    **Arguments:**

    - `loss`: `(params, minibatch) -> scalar` of one client.
    - `local`: `LocalSGD` or `LocalSAM`.
    - `averaging`: `MultipleGossip(Q)`, `ChebyshevAverage` or `ServerAverage`.
    - `decay`: d, in (0, 1], by which the step size falls from round to round.

    **Raises:** `TypeError` if `local` or `averaging` is something else; `ValueError` on a decay
    outside of (0, 1].

    **Reference:** Shi, Shen, Wei, Sun, Yuan, Wang, Tao, Improving the Model Consistency of
    Decentralized Federated Learning, 2023, arXiv:2302.04083.
    """

    loss: Loss
    local: AbstractLocalSolver
    averaging: AbstractAveraging = MultipleGossip(1)
    decay: Scalar = eqx.field(converter=checks.scalar, default=0.998)

    def __check_init__(self):
        checks.instance("local", self.local, AbstractLocalSolver, "LocalSGD(0.1, 5)")
        checks.instance("averaging", self.averaging, AbstractAveraging, "MultipleGossip(4)")
        checks.interval("decay", self.decay, 0, 1, open_low=True)

    def init(self, params, batch, network, key):
        return _State(params, jnp.zeros_like(network.index(), jnp.int32))

    def round(self, state, batch, network, key):
        scale = self.decay ** state.count[0]
        trained = self.local.run_all(self.loss, state.params, batch, network.keys(key), scale)
        # The clients' own keys are folds by 0, ..., n - 1.
        draw = jax.random.fold_in(key, network.size)
        return _State(self.averaging.average(network, trained, draw), state.count + 1)

    def bits_per_round(self, params, network):
        return self.averaging.bits(params, network)


def dfedsam(
    loss: Loss,
    step_size: Any,
    num_steps: int,
    *,
    rho: Any = 0.01,
    batch_size: int | None = 128,
    momentum: Any = 0.0,
    weight_decay: Any = 5e-4,
    decay: Any = 0.998,
) -> DecentralizedFederated:
    """DFedSAM: `LocalSAM` and one gossip step.

    **Arguments:**

    - `loss`, `decay`: see `DecentralizedFederated`.
    - `rho`, `step_size`, `num_steps`, `batch_size`, `momentum`, `weight_decay`: see `LocalSAM`. The
      paper has a step size of 0.1, five epochs of steps, and a rho of 0.01 to 0.5.

    **Reference:** Shi, Shen, Wei, Sun, Yuan, Wang, Tao, Improving the Model Consistency of
    Decentralized Federated Learning, 2023, arXiv:2302.04083.
    """
    local = LocalSAM(rho, step_size, num_steps, batch_size, momentum, weight_decay)
    return DecentralizedFederated(loss, local, MultipleGossip(1), decay)


def dfedsam_mgs(
    loss: Loss,
    step_size: Any,
    num_steps: int,
    *,
    gossip_steps: int = 4,
    rho: Any = 0.01,
    batch_size: int | None = 128,
    momentum: Any = 0.0,
    weight_decay: Any = 5e-4,
    decay: Any = 0.998,
) -> DecentralizedFederated:
    """DFedSAM-MGS: `LocalSAM` and several gossip steps, each a model on every edge.

    **Arguments:**

    - `gossip_steps`: Q.
    - the others: see `dfedsam`.

    **Reference:** Shi, Shen, Wei, Sun, Yuan, Wang, Tao, Improving the Model Consistency of
    Decentralized Federated Learning, 2023, arXiv:2302.04083.
    """
    local = LocalSAM(rho, step_size, num_steps, batch_size, momentum, weight_decay)
    return DecentralizedFederated(loss, local, MultipleGossip(gossip_steps), decay)


def dfedavg(
    loss: Loss,
    step_size: Any,
    num_steps: int,
    *,
    batch_size: int | None = 128,
    momentum: Any = 0.0,
    weight_decay: Any = 5e-4,
    decay: Any = 0.998,
) -> DecentralizedFederated:
    """DFedAvg: `LocalSGD` and one gossip step; with a momentum, 0.9 in the paper, DFedAvgM; with
    one step, D-PSGD.

    **Arguments:** see `dfedsam`.

    **Reference:** Sun, Li, Wang, Decentralized Federated Averaging, 2021, arXiv:2104.11375.
    """
    local = LocalSGD(step_size, num_steps, batch_size, momentum, weight_decay)
    return DecentralizedFederated(loss, local, MultipleGossip(1), decay)


def fedavg(
    loss: Loss,
    step_size: Any,
    num_steps: int,
    *,
    batch_size: int | None = 128,
    momentum: Any = 0.0,
    weight_decay: Any = 5e-4,
    decay: Any = 0.998,
    participants: int | None = None,
) -> DecentralizedFederated:
    """FedAvg: `LocalSGD` and a server's mean, of all clients or of those drawn for the round.

    **Arguments:**

    - `participants`: see `ServerAverage`.
    - the others: see `dfedsam`.

    **Reference:** McMahan, Moore, Ramage, Hampson, Agüera y Arcas, Communication-Efficient Learning
    of Deep Networks from Decentralized Data, 2017, arXiv:1602.05629.
    """
    local = LocalSGD(step_size, num_steps, batch_size, momentum, weight_decay)
    return DecentralizedFederated(loss, local, ServerAverage(participants), decay)


def fedsam(
    loss: Loss,
    step_size: Any,
    num_steps: int,
    *,
    rho: Any = 0.01,
    batch_size: int | None = 128,
    momentum: Any = 0.0,
    weight_decay: Any = 5e-4,
    decay: Any = 0.998,
    participants: int | None = None,
) -> DecentralizedFederated:
    """FedSAM: `LocalSAM` and a server's mean, of all clients or of those drawn for the round.

    **Arguments:**

    - `participants`: see `ServerAverage`.
    - the others: see `dfedsam`.

    **Reference:** Qu, Li, Duan, Liu, Tang, Lu, Generalized Federated Learning via Sharpness Aware
    Minimization, 2022, arXiv:2206.02618.
    """
    local = LocalSAM(rho, step_size, num_steps, batch_size, momentum, weight_decay)
    return DecentralizedFederated(loss, local, ServerAverage(participants), decay)
