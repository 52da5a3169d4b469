"""Federated bilevel optimization: FedMBO, and what it is compared with."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, tree
from ..distributed import AbstractNetworkAlgorithm, Network, model_bits
from ..distributed.participation import participants
from .federated import (
    AbstractChain,
    AbstractSeries,
    AveragedChain,
    ClientLevel,
    Clients,
    ExchangedChains,
    OwnChains,
    OwnTruncation,
    Stages,
    check_estimator,
    client_hypergradient,
    mean_over,
)


class FederatedState(eqx.Module):
    """**Attributes:**

    - `params`: the pair $(x, y)$, stacked, the same at all nodes.
    """

    params: tuple[PyTree[Array], PyTree[Array]]


class AbstractFederatedBilevel(AbstractNetworkAlgorithm):
    """A round is a phase of lower steps and one upper step, of a server that all nodes play.

    The problem is $\\min_x \\frac1N \\sum_i f_i(x, y^*(x))$ with $y^*(x) = \\arg\\min_y
    \\frac1N \\sum_i g_i(x, y)$. Parameters are the pair $(x, y)$, and a batch is the pair of the
    clients' data of the upper and of the lower level.
    """

    upper: ClientLevel
    lower: ClientLevel
    upper_step: Scalar = eqx.field(converter=checks.scalar)
    lower_step: Scalar = eqx.field(converter=checks.scalar)
    lower_steps: int = eqx.field(static=True)
    num_terms: int = eqx.field(static=True)
    smoothness: Scalar = eqx.field(converter=checks.scalar)
    participants: int | None = eqx.field(static=True, default=None)
    series: AbstractSeries = OwnTruncation()
    batch_size: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        for name in ("upper", "lower"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function (x, y, samples) -> scalar")
        checks.positive("upper_step", self.upper_step)
        checks.positive("lower_step", self.lower_step)
        checks.count("lower_steps", self.lower_steps)
        for name in ("participants", "batch_size"):
            if getattr(self, name) is not None:
                checks.count(name, getattr(self, name))
        check_estimator(self.num_terms, self.smoothness, self.chain, self.series)

    @property
    @abc.abstractmethod
    def chain(self) -> AbstractChain:
        """Who multiplies."""

    @abc.abstractmethod
    def lower_phase(
        self,
        clients: Clients,
        x: PyTree[Array],
        y: PyTree[Array],
        network: Network,
        key: PRNGKeyArray,
    ) -> PyTree[Array]:
        """$y$ after the round's lower steps."""

    @abc.abstractmethod
    def upper_phase(
        self,
        clients: Clients,
        x: PyTree[Array],
        y: PyTree[Array],
        network: Network,
        key: PRNGKeyArray,
    ) -> PyTree[Array]:
        """$x$ after the round."""

    def stages(
        self, clients: Clients, x: PyTree[Array], y: PyTree[Array], network: Network
    ) -> Stages:
        """What the chains of this round share."""
        return Stages(
            clients,
            x,
            y,
            network,
            self.num_terms,
            self.smoothness,
            self.participants,
            self.series,
        )

    def init(self, params, batch, network, key):
        if not isinstance(params, tuple) or len(params) != 2:
            raise TypeError(f"parameters must be the pair (x, y), got {jax.tree.structure(params)}")
        return FederatedState((params[0], params[1]))

    def round(self, state, batch, network, key):
        lower, upper = jax.random.split(key)
        clients = Clients(self.upper, self.lower, batch, self.batch_size)
        x, y = state.params
        y = self.lower_phase(clients, x, y, network, lower)
        return FederatedState((self.upper_phase(clients, x, y, network, upper), y))


def _lower_slope(problem, x, y):
    return problem.lower_residual(x, y)


def _moved(z: PyTree[Array], step: Scalar, direction: PyTree[Array]) -> PyTree[Array]:
    return tree.cast_like(tree.axpy(z, -step, direction), z)


class _AbstractParallel(AbstractFederatedBilevel):
    """Gradient steps on the lower level and one on the upper."""

    def lower_phase(self, clients, x, y, network, key):
        def one(y, key):
            drawing, sampling = jax.random.split(key)
            slopes = clients.each(_lower_slope, network, sampling, x, y)
            here = participants(drawing, network.size, self.participants)
            mean = mean_over(network, self.participants, here, slopes)
            return _moved(y, self.lower_step, mean), None

        return loops.scan(one, y, jax.random.split(key, self.lower_steps))[0]

    def upper_phase(self, clients, x, y, network, key):
        slope = self.chain.estimate(self.stages(clients, x, y, network), key)
        return _moved(x, self.upper_step, slope)


class FedMBO(_AbstractParallel):
    """Federated bilevel descent whose hypergradient is a mean of chains that pass through many
    clients,

    $$y \\leftarrow y - \\beta\\, \\frac1n \\sum_{i \\in S} \\nabla_y g_i(x, y) \\quad
      (T \\text{ times}), \\qquad x \\leftarrow x - \\alpha\\, \\frac1n \\sum_{j=1}^n h_j,$$

    with fresh participants $S$ in each step and the estimators $h_j$ of `federated_hypergradient`,
    unbiased for the truncated series of the means however the clients differ. Their number n lowers
    the variance to 1/n, and the rate is $O(1/\\sqrt{nK})$ in K rounds, with $\\alpha \\sim
    \\sqrt{n/K}$ and $\\beta \\sim \\alpha$.

    **Arguments:**

    - `upper`, `lower`: $f_i$ and $g_i$, `(x, y, samples) -> scalar` of one client; the mean of the
      $g_i$ is strongly convex in $y$.
    - `upper_step`, `lower_step`: $\\alpha$ and $\\beta$.
    - `lower_steps`: T.
    - `num_terms`: Q, terms of the series.
    - `smoothness`: $\\ell$, at least the largest eigenvalue of any client's $\\nabla_{yy} g_i$.
    - `participants`: n, how many of the clients take part in each step; all if `None`.
    - `series`: `OwnTruncation()`, `CommonTruncation()` or `WholeSeries()`.
    - `batch_size`: samples that a client draws for each evaluation, from each level's data; all if
      `None`.

    A batch is the pair of the clients' data, upper and lower, each a tree with leaves
    `(n, samples, ...)` or `Padded`; parameters are the pair $(x, y)$.

    **Raises:** `ValueError` on steps or a smoothness that are not positive, or counts below 1;
    where it runs, on more participants than clients, or padded clients without a `batch_size`;
    `TypeError` on a series that is none, or parameters or a batch that are no pair.

    **Reference:** Huang, Zhang, Ji, Achieving Linear Speedup in Non-IID Federated Bilevel Learning,
    2023, arXiv:2302.05412.
    """

    @property
    def chain(self):
        return ExchangedChains()

    def bits_per_round(self, params, network):
        """At most: of a client that takes part in each step, with the longest chain. It sends T
        gradients, Q times what its chain carries, and its two parts of the hypergradient."""
        x, y = params
        passed = self.num_terms * self.series.vectors
        return (self.lower_steps + passed) * model_bits(y) + 2 * model_bits(x)


class LocalHypergradient(_AbstractParallel):
    """As `FedMBO`, but each participant multiplies with its own Hessian only, and the server takes
    the mean of the clients' hypergradients.

    That is another vector field than the mean problem's hypergradient: where clients differ it ends
    elsewhere, however many take part and however small the steps are. It sends least.

    **Arguments:** those of `FedMBO`.

    **Raises:** as `FedMBO`.

    **Reference:** Huang, Zhang, Ji, Achieving Linear Speedup in Non-IID Federated Bilevel Learning,
    2023, arXiv:2302.05412.
    """

    @property
    def chain(self):
        return OwnChains()

    def bits_per_round(self, params, network):
        """T gradients and one hypergradient."""
        x, y = params
        return self.lower_steps * model_bits(y) + model_bits(x)


class FedNest(AbstractFederatedBilevel):
    """Federated bilevel descent with one chain for all clients, whose products are means over them,
    and local steps that are corrected for how the clients differ,

    $$r \\leftarrow r - \\frac1\\ell\\, \\frac1n \\sum_{i \\in S_l} \\nabla_{yy} g_i\\, r, \\qquad
      y_i \\leftarrow y_i - \\beta \\Bigl(\\nabla_y g_i(y_i) - \\nabla_y g_i(y) +
      \\frac1n \\sum_{j \\in S} \\nabla_y g_j(y)\\Bigr), \\quad y_i = y \\text{ at first},$$

    and the mean of the $y_i$ is the new $y$; so too with $x$, whose gradients are
    $\\nabla_x f_i - \\nabla_{xy} g_i\\, v$ with $v$ fixed. With one local step these are plain
    steps. Each product waits for a sum over the clients. With a truncation, the variance by its
    length does not fall with n.

    **Arguments:** those of `FedMBO`, and

    - `local_steps`: how many a client makes in each of the T lower steps.
    - `upper_local_steps`: how many it makes on the upper level in a round.

    **Raises:** as `FedMBO`.

    **Reference:** Tarzanagh, Li, Thrampoulidis, Oymak, FedNest: Federated Bilevel, Minimax, and
    Compositional Optimization, 2022, arXiv:2205.02215.
    """

    local_steps: int = eqx.field(static=True, default=1)
    upper_local_steps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        checks.count("local_steps", self.local_steps)
        checks.count("upper_local_steps", self.upper_local_steps)

    @property
    def chain(self):
        return AveragedChain()

    def lower_phase(self, clients, x, y, network, key):
        def one(y, key):
            slope = lambda z, key: clients.each(_lower_slope, network, key, x, z)
            return self._steps(slope, y, self.lower_step, self.local_steps, network, key), None

        return loops.scan(one, y, jax.random.split(key, self.lower_steps))[0]

    def upper_phase(self, clients, x, y, network, key):
        chain, key = jax.random.split(key)
        v = self.chain.multiplier(self.stages(clients, x, y, network), chain)
        slope = lambda z, key: clients.each(client_hypergradient, network, key, z, y, v)
        return self._steps(slope, x, self.upper_step, self.upper_local_steps, network, key)

    def _steps(self, slope, z, step, number, network, key):
        """The mean of where the participants' corrected local steps end."""
        drawing, sampling, rest = jax.random.split(key, 3)
        here = participants(drawing, network.size, self.participants)
        mean = mean_over(network, self.participants, here, slope(z, sampling))
        first = _moved(z, step, mean)
        if number == 1:
            return first

        def one(local, key):
            change = jax.tree.map(jnp.subtract, slope(local, key), slope(z, key))
            return _moved(local, step, jax.tree.map(jnp.add, change, mean)), None

        ends = loops.scan(one, first, jax.random.split(rest, number - 1))[0]
        return mean_over(network, self.participants, here, ends)

    def bits_per_round(self, params, network):
        """At most: of a client that takes part in each step, with the longest chain. Of local steps
        it sends where they end too."""
        x, y = params
        lower = self.lower_steps * (1 if self.local_steps == 1 else 2)
        upper = 1 if self.upper_local_steps == 1 else 2
        return (lower + self.num_terms) * model_bits(y) + upper * model_bits(x)
