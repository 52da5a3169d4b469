"""Hypergradients of a mean over clients, by a series whose factors different clients multiply.

The clients' levels $f_i$ and $g_i$ differ, and the hypergradient of their means,

$$\\nabla_x \\bar f - \\nabla_{xy} \\bar g\\, v, \\qquad
  v = \\frac1\\ell \\sum_{q=0}^{Q-1} \\Bigl(I - \\frac1\\ell \\nabla_{yy} \\bar g\\Bigr)^q
  \\nabla_y \\bar f,$$

is no mean of what clients find alone: an expected product is the product of expectations only where
the factors are independent.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import Bilevel, Scalar, checks, loops, tree
from ..distributed import Network, Padded
from ..distributed.local import minibatch
from ..distributed.network import column
from ..distributed.participation import participants
from .hypergradient import cross, hessian

ClientLevel = Callable[[PyTree[Array], PyTree[Array], PyTree[Array]], Float[Array, ""]]
"""A level of one client, `(x, y, samples) -> scalar`."""


class Clients(eqx.Module):
    """The local clients: their levels, their data, and which part of it they look at.

    **Arguments:**

    - `upper`, `lower`: $f_i$ and $g_i$, `(x, y, samples) -> scalar` of one client.
    - `batch`: the pair of their data, each a tree with leaves `(local, samples, ...)`, or `Padded`.
    - `batch_size`: samples that are drawn for each evaluation; all if `None`.

    **Raises:** `TypeError` if the batch is no such pair; where it runs, `ValueError` if clients are
    padded and there is no `batch_size`.
    """

    upper: ClientLevel
    lower: ClientLevel
    batch: tuple[PyTree[Array], PyTree[Array]]
    batch_size: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if not isinstance(self.batch, tuple) or len(self.batch) != 2:
            raise TypeError(
                "a batch must be the pair (upper data, lower data) of the clients, got "
                f"{jax.tree.structure(self.batch)}"
            )

    def each(
        self,
        fun: Callable[..., PyTree[Array]],
        network: Network,
        key: PRNGKeyArray,
        *stacked: PyTree[Array],
    ) -> PyTree[Array]:
        """`fun(problem, *one)` at each client, with the `Bilevel` of samples that it draws.

        **Arguments:**

        - `key`: common; the clients draw from keys of their own.
        - `stacked`: what goes to `fun`, with a row for each local client.
        """

        def one(batch, key, *rows):
            first, second = jax.random.split(key)
            upper = _samples(batch[0], first, self.batch_size)
            lower = _samples(batch[1], second, self.batch_size)
            problem = Bilevel(
                lambda x, y: self.upper(x, y, upper), lambda x, y: self.lower(x, y, lower)
            )
            return fun(problem, *rows)

        return jax.vmap(one)(self.batch, network.keys(key), *stacked)


def _samples(data, key, size):
    if isinstance(data, Padded):
        return minibatch(data.data, data.count, key, size)
    return data if size is None else minibatch(data, None, key, size)


def mean_over(
    network: Network, count: int | None, here: Bool[Array, " n"], value: PyTree[Array]
) -> PyTree[Array]:
    """The mean over the clients that take part, at each local client. What others found is not
    looked at.

    **Arguments:**

    - `count`: how many they are; all if `None`.
    - `here`: which they are, as from `participants`.
    """
    if count is None:
        return network.mean(value)
    local = network.local(here)
    kept = jax.tree.map(lambda a: jnp.where(column(local, a), a, 0), value)
    # How many they are is known: nobody need ask.
    return tree.scale(network.mean(kept), network.size / count)


class AbstractSeries(eqx.Module):
    """What of the series a chain of products estimates.

    A chain multiplies $r_l = (I - H_l / \\ell)\\, r_{l-1}$ and carries what it needs from client to
    client.
    """

    @abc.abstractmethod
    def lengths(self, key: PRNGKeyArray, num_terms: int, n: int) -> Int[Array, " n"]:
        """How many products each of n chains makes, at most `num_terms` - 1."""

    @abc.abstractmethod
    def start(self, r: PyTree[Array]) -> tuple[PyTree[Array], ...]:
        """What a chain carries before its first product, $r_0$ first."""

    @abc.abstractmethod
    def extend(
        self, carried: tuple[PyTree[Array], ...], r: PyTree[Array]
    ) -> tuple[PyTree[Array], ...]:
        """What it carries after one more product, which gave `r`."""

    @abc.abstractmethod
    def value(self, carried: tuple[PyTree[Array], ...], num_terms: int) -> PyTree[Array]:
        """$\\ell v$ at the end."""

    @property
    @abc.abstractmethod
    def vectors(self) -> int:
        """How many vectors shaped like $y$ a chain carries."""


class _AbstractTruncation(AbstractSeries):
    """One random term in place of the sum, $\\ell v = Q r_{Q'}$, $Q'$ uniform on 0, ..., Q - 1."""

    def start(self, r):
        return (r,)

    def extend(self, carried, r):
        return (r,)

    def value(self, carried, num_terms):
        return tree.scale(carried[0], num_terms)

    @property
    def vectors(self):
        return 1


class OwnTruncation(_AbstractTruncation):
    """Each chain ends at a random term of its own, times Q. The variance of a mean of n chains is
    1/n of that of one."""

    def lengths(self, key, num_terms, n):
        return jax.random.randint(key, (n,), 0, num_terms, jnp.int32)


class CommonTruncation(_AbstractTruncation):
    """All chains end at the same random term, times Q. Chains are half as long as the series, but
    the variance by the term does not fall with their number."""

    def lengths(self, key, num_terms, n):
        return jnp.broadcast_to(jax.random.randint(key, (), 0, num_terms, jnp.int32), (n,))


class WholeSeries(AbstractSeries):
    """Each chain makes all products and sums them. It carries the sum too, and twice as much
    travels, for far less variance."""

    def lengths(self, key, num_terms, n):
        return jnp.full((n,), num_terms - 1, jnp.int32)

    def start(self, r):
        return r, r

    def extend(self, carried, r):
        return r, jax.tree.map(jnp.add, carried[1], r)

    def value(self, carried, num_terms):
        return carried[1]

    @property
    def vectors(self):
        return 2


class Stages(eqx.Module):
    """What all chains share: where they are, and how a product is made."""

    clients: Clients
    x: PyTree[Array]
    y: PyTree[Array]
    network: Network
    num_terms: int = eqx.field(static=True)
    smoothness: Scalar
    participants: int | None = eqx.field(static=True)
    series: AbstractSeries

    def draw(self, key) -> Bool[Array, " n"]:
        """Which clients take part in a stage."""
        return participants(key, self.network.size, self.participants)

    def mean(self, here: Bool[Array, " n"], value: PyTree[Array]) -> PyTree[Array]:
        """The mean over them."""
        return mean_over(self.network, self.participants, here, value)

    def gradients(self, key) -> tuple[PyTree[Array], PyTree[Array]]:
        """$\\nabla_x f_i$ and $\\nabla_y f_i$."""
        slope = lambda problem, *point: tree.gradient(lambda p: problem.upper(*p), point)
        return self.clients.each(slope, self.network, key, self.x, self.y)

    def multiply(self, key, r) -> PyTree[Array]:
        """$(I - H_i / \\ell)\\, r_i$."""

        def one(problem, x, y, r):
            return tree.cast_like(tree.axpy(r, -1 / self.smoothness, hessian(problem, x, y, r)), r)

        return self.clients.each(one, self.network, key, self.x, self.y, r)

    def cross(self, key, carried) -> PyTree[Array]:
        """$\\nabla_{xy} g_i\\, v_i$."""
        v = self.multiplier(carried)
        return self.clients.each(cross, self.network, key, self.x, self.y, v)

    def multiplier(self, carried) -> PyTree[Array]:
        value = self.series.value(carried, self.num_terms)
        return tree.cast_like(tree.scale(value, 1 / self.smoothness), self.y)


def _repeat(step, carry, last, number, key):
    """`step(l, key, carry)` for l = 1, ..., `last`, which may be traced and is at most `number`.

    It is a scan of conditionals, so that it has derivatives; all clients take the same branch.
    """
    if not number:
        return carry

    def one(carry, inputs):
        l, key = inputs
        go = lambda key, carry: step(l, key, carry)
        return loops.cond(l <= last, go, lambda key, carry: carry, key, carry), None

    numbers = jnp.arange(1, number + 1, dtype=jnp.int32)
    return loops.scan(one, carry, (numbers, jax.random.split(key, number)))[0]


def _parallel(stages: Stages, key, move) -> PyTree[Array]:
    """The mean of as many chains as there are participants.

    `move(key, x)` brings what is at the clients to others; tables of all clients move by the order
    that it returns beside.
    """
    begin, lengths, steps, last = jax.random.split(key, 4)
    drawing, sampling = jax.random.split(begin)
    network, series = stages.network, stages.series
    begun = stages.draw(drawing)
    own, r = stages.gradients(sampling)
    lengths = series.lengths(lengths, stages.num_terms, network.size)
    longest = jnp.max(jnp.where(begun, lengths, 0))

    def multiply(l, key, carried, lengths):
        longer = series.extend(carried, stages.multiply(key, carried[0]))
        going = network.local(l <= lengths)
        return jax.tree.map(lambda a, b: jnp.where(column(going, a), a, b), longer, carried)

    def step(l, key, carry):
        moving, sampling = jax.random.split(key)
        carried, here, lengths = carry
        carried, order = move(moving, carried)
        here, lengths = here[order], lengths[order]
        # Of the last move come clients for the cross product alone.
        go = lambda carried: multiply(l, sampling, carried, lengths)
        return loops.cond(l <= longest, go, lambda carried: carried, carried), here, lengths

    carry = series.start(r), begun, lengths
    carried, ended, _ = _repeat(step, carry, longest + 1, stages.num_terms, steps)
    through = stages.cross(last, carried)
    # The two means are over different clients: where chains begin and where they end.
    return jax.tree.map(jnp.subtract, stages.mean(begun, own), stages.mean(ended, through))


class AbstractChain(eqx.Module):
    """Which clients make the products of one estimate."""

    @abc.abstractmethod
    def estimate(self, stages: Stages, key: PRNGKeyArray) -> PyTree[Array]:
        """The hypergradient, at each local client."""


class ExchangedChains(AbstractChain):
    """As many chains as participants. Before each product a random permutation, common to all,
    sends every chain to a client that the others are not at: the factors of one chain are of
    independent clients, and n chains have 1/n of the variance."""

    def estimate(self, stages, key):
        network = stages.network

        def move(key, x):
            order = jax.random.permutation(key, network.size)
            return network.permute(x, order), order

        return _parallel(stages, key, move)


class OwnChains(AbstractChain):
    """As many chains as participants, each at one client to its end. What is sent is one vector,
    and what is estimated is the mean of the clients' own hypergradients: biased where they
    differ, however many take part."""

    def estimate(self, stages, key):
        stay = lambda key, x: (x, jnp.arange(stages.network.size))
        return _parallel(stages, key, stay)


class AveragedChain(AbstractChain):
    """One chain, each of whose products is a mean over clients drawn afresh, who all wait for each
    other. Unbiased; with a truncation, its variance does not fall with their number."""

    def multiplier(self, stages: Stages, key: PRNGKeyArray) -> PyTree[Array]:
        """$v$, at each local client."""
        begin, lengths, steps = jax.random.split(key, 3)
        series = stages.series

        def mean(key, value):
            drawing, sampling = jax.random.split(key)
            return stages.mean(stages.draw(drawing), value(sampling))

        def step(l, key, carried):
            r = mean(key, lambda key: stages.multiply(key, carried[0]))
            return series.extend(carried, r)

        longest = series.lengths(lengths, stages.num_terms, 1)[0]
        start = series.start(mean(begin, lambda key: stages.gradients(key)[1]))
        found = _repeat(step, start, longest, stages.num_terms - 1, steps)
        return stages.multiplier(found)

    def estimate(self, stages, key):
        chain, drawing, sampling = jax.random.split(key, 3)
        v = self.multiplier(stages, chain)
        each = stages.clients.each(
            client_hypergradient, stages.network, sampling, stages.x, stages.y, v
        )
        return stages.mean(stages.draw(drawing), each)


def client_hypergradient(
    problem: Bilevel, x: PyTree[Array], y: PyTree[Array], v: PyTree[Array]
) -> PyTree[Array]:
    """$\\nabla_x f - \\nabla_{xy} g\\, v$."""
    own = tree.gradient(lambda x: problem.upper(x, y), x)
    return jax.tree.map(jnp.subtract, own, cross(problem, x, y, v))


def check_estimator(num_terms: Any, smoothness: Any, chain: Any, series: Any) -> None:
    """The errors that `federated_hypergradient` names."""
    checks.count("num_terms", num_terms)
    checks.positive("smoothness", smoothness)
    checks.instance("chain", chain, AbstractChain, "ExchangedChains()")
    checks.instance("series", series, AbstractSeries, "OwnTruncation()")


def federated_hypergradient(
    clients: Clients,
    x: PyTree[Array],
    y: PyTree[Array],
    network: Network,
    key: PRNGKeyArray,
    *,
    num_terms: int,
    smoothness: Scalar,
    participants: int | None = None,
    chain: AbstractChain | None = None,
    series: AbstractSeries | None = None,
) -> PyTree[Array]:
    """An estimate of the hypergradient of the clients' means. To be run at the nodes, in a round or
    in `network.parallel`.

    With the default chain and series, estimator $j$ of n begins at client $i_0$ of its own,

    $$r_0 = \\nabla_y f_{i_0}, \\qquad
      r_l = \\Bigl(I - \\frac1\\ell \\nabla_{yy} g_{i_l}\\Bigr) r_{l-1}, \\quad l = 1, \\dots, Q',
      \\qquad h_j = \\nabla_x f_{i_0} - \\nabla_{xy} g_{i'}\\, \\frac Q\\ell\\, r_{Q'},$$

    with $Q'$ uniform on 0, ..., Q - 1, and all clients $i_l$ and $i'$ drawn afresh, different ones
    for the estimators of one stage. The mean of the $h_j$ is an unbiased estimate of the truncated
    series of the *mean* levels, however the clients differ, with a variance of 1/n.

    **Arguments:**

    - `clients`: levels and data.
    - `x`, `y`: stacked over the local clients, and the same at all.
    - `key`: common to all clients.
    - `num_terms`: Q.
    - `smoothness`: $\\ell$, at least the largest eigenvalue of any client's $\\nabla_{yy} g_i$:
      else factors may expand.
    - `participants`: n, how many clients take part in each stage; all if `None`. Others compute
      too, wherever the nodes live, and what they find is not looked at.
    - `chain`: who multiplies, `ExchangedChains()` if `None`.
    - `series`: what a chain estimates, `OwnTruncation()` if `None`.

    **Returns:** the estimate, stacked, the same at all clients.

    **Raises:** `ValueError` on a `num_terms` below 1, a smoothness that is not positive, or more
    participants than clients; `TypeError` on a chain or series that is none.

    **Reference:** Huang, Zhang, Ji, Achieving Linear Speedup in Non-IID Federated Bilevel Learning,
    2023, arXiv:2302.05412.
    """
    chain = ExchangedChains() if chain is None else chain
    series = OwnTruncation() if series is None else series
    check_estimator(num_terms, smoothness, chain, series)
    checks.instance("clients", clients, Clients, "Clients(upper, lower, batch)")
    stages = Stages(clients, x, y, network, num_terms, smoothness, participants, series)
    return chain.estimate(stages, key)
