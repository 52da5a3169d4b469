"""Stochastic approximation by a token that walks over a graph."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, tree
from .algorithm import AbstractNetworkAlgorithm, Loss, model_bits
from .graphs import check_graph, edge_list
from .mixing import Sparse


class Chain(eqx.Module):
    """A reversible Markov chain on the nodes of a graph.

    Build one with `metropolis_hastings`, `simple_random_walk` or `Chain.of`; `lazy` slows it down.

    **Attributes:**

    - `neighbors`: where it may go from each node, `(n, k)`; the node itself is the last.
    - `probabilities`: of these, `(n, k)`.
    - `target`: $\\mu$, its stationary law, `(n,)`.
    """

    neighbors: Int[Array, "n k"]
    probabilities: Float[Array, "n k"]
    target: Float[Array, " n"]

    @staticmethod
    def of(matrix: Any, target: Any) -> "Chain":
        """The chain of a matrix, sparse or dense.

        **Arguments:**

        - `matrix`: P, row-stochastic.
        - `target`: $\\mu$, positive, of sum one, with $\\mu_i P_{ij} = \\mu_j P_{ji}$.

        **Raises:** `ValueError` if they are none such, or some node is never reached.
        """
        matrix = Sparse(matrix).astype(np.float64)
        target = np.asarray(target, np.float64)
        n = matrix.shape[0]
        if matrix.shape != (n, n) or target.shape != (n,):
            raise ValueError(f"expected shapes (n, n) and (n,), got {matrix.shape}, {target.shape}")
        checks.positive("target", target)
        if abs(target.sum() - 1) > 1e-6 or np.abs(matrix.sum(axis=1) - 1).max() > 1e-6:
            raise ValueError("target and the rows of the matrix must sum to one")
        flow = np.abs((_diagonal(target) @ matrix - (_diagonal(target) @ matrix).T).data)
        if (matrix.data < 0).any() or flow.max(initial=0) > 1e-6 * target.max():
            raise ValueError("the chain must be reversible with respect to its target")
        if n > 1 and not nx.is_connected(nx.from_scipy_sparse_array(matrix)):
            raise ValueError("the chain does not reach all nodes")
        own = matrix.diagonal()
        rest = Sparse(matrix - _diagonal(own))
        rest.eliminate_zeros()
        counts = np.diff(rest.indptr)
        width = int(counts.max(initial=0)) + 1
        neighbors = np.tile(np.arange(n)[:, None], (1, width))
        probabilities = np.zeros((n, width))
        rows = np.repeat(np.arange(n), counts)
        columns = np.arange(len(rows)) - np.repeat(rest.indptr[:-1], counts)
        neighbors[rows, columns], probabilities[rows, columns] = rest.indices, rest.data
        probabilities[:, -1] = own
        return Chain(
            jnp.asarray(neighbors, jnp.int32), jnp.asarray(probabilities), jnp.asarray(target)
        )

    def lazy(self, stay: float = 0.5) -> "Chain":
        """The chain that stays where it is with some probability first."""
        checks.interval("stay", stay, 0, 1, open_high=True)
        slower = (1 - stay) * self.probabilities
        return eqx.tree_at(lambda c: c.probabilities, self, slower.at[:, -1].add(stay))

    def matrix(self) -> Float[np.ndarray, "n n"]:
        """P, dense."""
        n = len(self.target)
        matrix = np.zeros((n, n))
        np.add.at(matrix, (np.arange(n)[:, None], np.asarray(self.neighbors)), self.probabilities)
        return matrix


def _diagonal(values):
    return Sparse((values, (np.arange(len(values)),) * 2))


def metropolis_hastings(graph: nx.Graph, target: Any = None) -> Chain:
    """$P_{ij} = \\min(1 / d_i,\\ \\mu_j / (\\mu_i d_j))$ on edges, the rest on the diagonal.

    **Arguments:**

    - `target`: $\\mu$, positive, of any sum; uniform if `None`.
    """
    check_graph(graph)
    n, edges = len(graph), edge_list(graph)
    target = np.ones(n) if target is None else np.asarray(target, np.float64)
    if target.shape != (n,):
        raise ValueError(f"target must have shape {(n,)}, got {target.shape}")
    checks.positive("target", target)
    i, j = np.concatenate([edges, edges[:, ::-1]]).T
    degrees = np.maximum(np.bincount(i, minlength=n), 1)
    moves = Sparse(
        (np.minimum(1 / degrees[i], target[j] / target[i] / degrees[j]), (i, j)), shape=(n, n)
    )
    return Chain.of(moves + _diagonal(1 - moves.sum(axis=1)), target / target.sum())


def simple_random_walk(graph: nx.Graph) -> Chain:
    """To each neighbour with the same probability; $\\mu_i$ is proportional to the degree."""
    check_graph(graph)
    n, edges = len(graph), edge_list(graph)
    if n == 1:
        return Chain.of(np.ones((1, 1)), np.ones(1))
    i, j = np.concatenate([edges, edges[:, ::-1]]).T
    degrees = np.bincount(i, minlength=n)
    return Chain.of(Sparse((1 / degrees[i], (i, j)), shape=(n, n)), degrees / degrees.sum())


def _uniform_chain(network):
    """`metropolis_hastings` of a network, whose tables may be traced."""
    tables, n = network._graph(), network.size
    mask, around = jnp.asarray(tables.mask), jnp.asarray(tables.neighbors)
    degrees = jnp.maximum(jnp.sum(mask, axis=1), 1)
    moves = jnp.where(mask, 1 / jnp.maximum(degrees[:, None], degrees[around]), 0)
    rest = 1 - jnp.sum(moves, axis=1, keepdims=True)
    neighbors = jnp.concatenate([around, jnp.arange(n)[:, None]], axis=1)
    return Chain(neighbors, jnp.concatenate([moves, rest], axis=1), jnp.full((n,), 1 / n))


class WalkState(eqx.Module):
    """Where a token is.

    **Attributes:**

    - `node`, `previous`: its node, and the one before.
    - `visits`: x, the weighted share of its visits to each node, `(n,)`.
    - `count`: steps done.
    """

    node: Int[Array, ""]
    previous: Int[Array, ""]
    visits: Float[Array, " n"]
    count: Int[Array, ""]


class AbstractWalk(eqx.Module):
    """A token that moves from node to node; states batch by `vmap`."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of nodes."""

    @abc.abstractmethod
    def init(self, start: int | Int[Array, ""] = 0) -> WalkState:
        """Before the first step, at some node."""

    @abc.abstractmethod
    def step(self, state: WalkState, key: PRNGKeyArray) -> WalkState:
        """The next node."""


def _start(node, n, dtype):
    node = jnp.asarray(node, jnp.int32)
    return WalkState(node, node, jnp.full((n,), 1 / n, dtype), jnp.zeros((), jnp.int32))


def _moved(state, node, exponent):
    """With visits $x + \\gamma (\\delta - x)$, $\\gamma_m = (m + 1)^{-a}$; m counts from 1."""
    x, count = state.visits, state.count + 1
    share = (count + 1).astype(x.dtype) ** -jnp.asarray(exponent).astype(x.dtype)
    x = (1 - share) * x
    x = x.at[node].add(share)
    # In exact arithmetic the sum is one.
    x = jnp.where(count % 1024 == 0, x / jnp.sum(x), x)
    return WalkState(node.astype(jnp.int32), state.node, x, count)


class SelfRepellentWalk(AbstractWalk):
    """A walk that avoids where it has been often,

    $$\\mathbb P(X_{m+1} = j) \\propto P_{X_m j} \\Bigl(\\frac{x_j}{\\mu_j}\\Bigr)^{-\\alpha},
      \\qquad x \\leftarrow x + \\gamma_{m+1} (\\delta_{X_{m+1}} - x), \\qquad
      \\gamma_m = (m + 1)^{-a},$$

    so that x comes to $\\mu$ with a covariance of the order of $1 / \\alpha$. The walker needs x of
    the neighbours only. $\\alpha = 0$ is the chain itself.

    Before x is near $\\mu$, which takes long for a near 1/2 or a large $\\alpha$, there is no gain.

    **Arguments:**

    - `chain`: P and $\\mu$.
    - `alpha`: $\\alpha \\ge 0$, how much it avoids.
    - `exponent`: a, in (1/2, 1].

    **Raises:** `ValueError` if they lie elsewhere.

    **Reference:** Doshi, Hu, Eun, Self-Repellent Random Walks on General Graphs, 2023,
    arXiv:2305.05097.
    """

    chain: Chain
    alpha: Float[Array, ""] = eqx.field(converter=checks.scalar)
    exponent: Float[Array, ""] = eqx.field(converter=checks.scalar, default=0.8)

    def __check_init__(self):
        checks.instance("chain", self.chain, Chain, "metropolis_hastings(graph)")
        checks.nonnegative("alpha", self.alpha)
        checks.finite("alpha", self.alpha)
        checks.interval("exponent", self.exponent, 0.5, 1, open_low=True)

    @property
    def size(self):
        return self.chain.target.shape[0]

    def init(self, start=0):
        return _start(start, self.size, self.chain.target.dtype)

    def logits(self, node: Int[Array, ""], visits: Float[Array, " n"]) -> Float[Array, " k"]:
        """Logarithms of the probabilities of `chain.neighbors[node]`, up to a constant."""
        around = self.chain.neighbors[node]
        small = jnp.finfo(visits.dtype).tiny
        often = jnp.log(jnp.maximum(visits[around], small)) - jnp.log(self.chain.target[around])
        return jnp.log(self.chain.probabilities[node]) - self.alpha.astype(often.dtype) * often

    def step(self, state, key):
        choice = jax.random.categorical(key, self.logits(state.node, state.visits))
        return _moved(state, self.chain.neighbors[state.node, choice], self.exponent)


class NonBacktrackingWalk(AbstractWalk):
    """To each neighbour but the last node with the same probability; back only from a dead end.

    It is a chain on directed edges, whose visits are proportional to the degree; a baseline.

    **Arguments:**

    - `graph`: connected, of at least two nodes.

    **Reference:** Alon, Benjamini, Lubetzky, Sodin, Non-Backtracking Random Walks Mix Faster, 2007.
    """

    chain: Chain

    def __init__(self, graph: nx.Graph):
        self.chain = simple_random_walk(graph)

    @property
    def size(self):
        return self.chain.target.shape[0]

    def init(self, start=0):
        return _start(start, self.size, self.chain.target.dtype)

    def step(self, state, key):
        around = self.chain.neighbors[state.node]
        possible = self.chain.probabilities[state.node] > 0
        onward = possible & (around != state.previous)
        onward = jnp.where(jnp.any(onward), onward, possible)
        choice = jax.random.categorical(key, jnp.where(onward, 0.0, -jnp.inf))
        return _moved(state, around[choice], 1.0)


class IndependentSampling(AbstractWalk):
    """A token that jumps anywhere, to node i with probability $\\mu_i$: what walks are compared to.

    **Arguments:**

    - `target`: $\\mu$, not negative, of any sum.
    """

    target: Float[Array, " n"] = eqx.field(converter=jnp.asarray)

    def __check_init__(self):
        checks.nonnegative("target", self.target)

    @property
    def size(self):
        return self.target.shape[0]

    def init(self, start=0):
        return _start(start, self.size, self.target.dtype)

    def step(self, state, key):
        return _moved(state, jax.random.categorical(key, jnp.log(self.target)), 1.0)


class _State(eqx.Module):
    params: PyTree[Array]
    momentum: PyTree[Array] | None
    walk: WalkState
    """Stacked: node, previous and count are known everywhere, each node has its own visits."""


class _AbstractToken(AbstractNetworkAlgorithm):
    """What is done with the gradient of the node where the token is."""

    loss: eqx.AbstractVar[Loss]
    walk: eqx.AbstractVar[AbstractWalk | Callable[[Chain], AbstractWalk]]
    exponent: eqx.AbstractVar[Float[Array, ""]]
    scale: eqx.AbstractVar[Float[Array, ""]]

    def __check_init__(self):
        checks.interval("exponent", self.exponent, 0.5, 1, open_low=True)
        checks.positive("scale", self.scale)
        if not callable(self.walk):
            checks.instance("walk", self.walk, AbstractWalk, "SelfRepellentWalk(chain, 5.0)")

    def _walk(self, network, params):
        walk = self.walk
        if not isinstance(walk, AbstractWalk):
            walk = walk(_uniform_chain(network))
        if walk.size != network.size:
            raise ValueError(f"a walk on {walk.size} nodes, in a network of {network.size}")
        dtype = tree.real_dtype(params)
        return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, walk)

    def _begin(self, params, network, momentum):
        # A walk is one: all nodes begin with the parameters of the first.
        first = network.pick(params, 0)
        params = jax.tree.map(lambda a, v: jnp.broadcast_to(v, a.shape), params, first)
        walk = self._walk(network, params).init()
        return _State(params, momentum, self._spread(walk, network))

    def _spread(self, walk, network):
        known = lambda a: jnp.broadcast_to(a, network.index().shape)
        return WalkState(
            known(walk.node), known(walk.previous), network.local(walk.visits), known(walk.count)
        )

    def _go(self, state, batch, network, key):
        """The walk's next state, the gradient there, and the size of the step."""
        here = jax.tree.map(lambda a: a[0], state.walk)
        here = eqx.tree_at(lambda w: w.visits, here, network.gather(state.walk.visits))
        there = self._walk(network, state.params).step(here, key)
        params = jax.tree.map(lambda a: a[0], state.params)
        gradient = network.at(
            there.node, lambda data: tree.gradient(lambda p: self.loss(p, data), params), batch
        )
        dtype = tree.real_dtype(state.params)
        decay = (there.count + 1).astype(dtype) ** -self.exponent.astype(dtype)
        size = self.scale.astype(dtype) * decay
        return self._spread(there, network), gradient, size

    def bits_per_round(self, params, network):
        """The token's node hands the parameters on; its neighbours tell it their visits."""
        return model_bits(params) + 32 * network.max_degree


def _minus(x, size, step):
    """For all nodes alike."""
    return jax.tree.map(lambda a, g: a - size.astype(a.real.dtype) * g, x, step)


class TokenSGD(_AbstractToken):
    """Stochastic gradient descent on $\\sum_i \\mu_i f_i$ by a token that carries the parameters,

    $$\\theta \\leftarrow \\theta - \\beta_{m+1} \\nabla f_{X_{m+1}}(\\theta), \\qquad
      \\beta_m = c\\,(m + 1)^{-b} .$$

    With a `SelfRepellentWalk` of exponent a, the covariance of $\\theta$ is of the order of
    $1 / \\alpha^2$ if b > a; for b < a it is that of the chain itself: see
    `asymptotic_covariance`.

    One round is one step of the token. All nodes know its parameters after each.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `walk`: the token's, or a function that makes it of the network's own
      Metropolis-Hastings chain, of uniform $\\mu$.
    - `exponent`: b, in (1/2, 1].
    - `scale`: c > 0.

    **Raises:** `ValueError` if they lie elsewhere; in a run, if the walk is on other nodes.

    **Reference:** Hu, Doshi, Eun, Accelerating Distributed Stochastic Optimization via
    Self-Repellent Random Walks, 2024, arXiv:2401.09665.
    """

    loss: Loss
    walk: AbstractWalk | Callable[[Chain], AbstractWalk]
    exponent: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    scale: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)

    def init(self, params, batch, network, key):
        return self._begin(params, network, None)

    def round(self, state, batch, network, key):
        walk, gradient, size = self._go(state, batch, network, key)
        return _State(_minus(state.params, size, gradient), None, walk)


class TokenHeavyBall(_AbstractToken):
    """The heavy ball by a token,

    $$\\theta \\leftarrow \\theta - \\beta_{m+1} v, \\qquad
      v \\leftarrow v + \\beta_{m+1} \\bigl(\\nabla f_{X_{m+1}}(\\theta_m) - v\\bigr),$$

    with the old v and $\\theta_m$ on the right. The token carries both.

    **Arguments:** see `TokenSGD`.

    **Reference:** Hu, Doshi, Eun, Accelerating Distributed Stochastic Optimization via
    Self-Repellent Random Walks, 2024, arXiv:2401.09665.
    """

    loss: Loss
    walk: AbstractWalk | Callable[[Chain], AbstractWalk]
    exponent: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)
    scale: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)

    def init(self, params, batch, network, key):
        return self._begin(params, network, jax.tree.map(jnp.zeros_like, params))

    def round(self, state, batch, network, key):
        walk, gradient, size = self._go(state, batch, network, key)
        params = _minus(state.params, size, state.momentum)
        pull = jax.tree.map(jnp.subtract, state.momentum, gradient)
        return _State(params, _minus(state.momentum, size, pull), walk)

    def bits_per_round(self, params, network):
        return 2 * model_bits(params) + 32 * network.max_degree


def _spectrum(matrix, target):
    """Eigenvalues below one, and eigenvectors $u_i = D^{1/2} v_i$ of $P^\\top$, as columns."""
    matrix, target = np.asarray(matrix, np.float64), np.asarray(target, np.float64)
    root = np.sqrt(target)
    values, vectors = np.linalg.eigh(root[:, None] * matrix / root[None])
    return values[:-1], root[:, None] * vectors[:, :-1]


def _check_theory(alpha, *exponents):
    checks.nonnegative("alpha", alpha)
    for exponent in exponents:
        checks.interval("exponent", exponent, 0.5, 1, open_low=True)


def visit_covariance(
    matrix: Float[np.ndarray, "n n"], target: Float[np.ndarray, " n"], alpha: float, exponent: float
) -> Float[np.ndarray, "n n"]:
    """The limit of $\\gamma_m^{-1} \\mathrm{Cov}(x_m)$ of a `SelfRepellentWalk`,

    $$\\sum_i \\frac{1}{2 \\alpha (1 + \\lambda_i) + 2 - [a = 1]}
      \\frac{1 + \\lambda_i}{1 - \\lambda_i} u_i u_i^\\top .$$

    **Arguments:**

    - `matrix`, `target`: P and $\\mu$ of the chain, reversible.
    - `alpha`, `exponent`: of the walk.
    """
    _check_theory(alpha, exponent)
    values, vectors = _spectrum(matrix, target)
    slope = 2 * alpha * (1 + values) + 2 - (exponent == 1)
    return (vectors * ((1 + values) / (1 - values) / slope)) @ vectors.T


def asymptotic_covariance(
    matrix: Float[np.ndarray, "n n"],
    target: Float[np.ndarray, " n"],
    field: Float[np.ndarray, "n d"],
    jacobian: Float[np.ndarray, "d d"],
    alpha: float,
    walk_exponent: float,
    exponent: float,
) -> Float[np.ndarray, "d d"]:
    """The limit V of $\\beta_m^{-1} \\mathrm{Cov}(\\theta_m)$ of stochastic approximation along a
    `SelfRepellentWalk`, with $\\gamma_m = (m + 1)^{-a}$ and $\\beta_m = (m + 1)^{-b}$.

    It solves $J V + V J^\\top + [b = 1] V + U = 0$ with

    $$U = \\sum_i \\frac{1 + \\lambda_i}{1 - \\lambda_i}
      \\frac{q_i q_i^\\top}{(1 + \\alpha (1 + \\lambda_i))^2}, \\qquad
      q_i = \\sum_j H(\\theta^\\star, j)\\, u_{ij},$$

    if a < b; with $\\alpha = 0$ in U if a > b; and is a block of the joint equation of
    $(\\theta, x)$ if a = b.

    **Arguments:**

    - `matrix`, `target`: P and $\\mu$ of the chain, reversible.
    - `field`: $H(\\theta^\\star, j)$, of mean zero under $\\mu$; of gradient descent, less the
      gradients.
    - `jacobian`: J of the mean field at $\\theta^\\star$; of gradient descent, less the Hessian.
    - `alpha`, `walk_exponent`: $\\alpha$ and a of the walk.
    - `exponent`: b.

    **Raises:** `ValueError` if an exponent lies outside of (1/2, 1], or J, with half of the
    identity if b = 1, is not stable.

    **Reference:** Hu, Doshi, Eun, Accelerating Distributed Stochastic Optimization via
    Self-Repellent Random Walks, 2024, arXiv:2401.09665.
    """
    a, b = walk_exponent, exponent
    _check_theory(alpha, a, b)
    values, vectors = _spectrum(matrix, target)
    field, jacobian = np.asarray(field, np.float64), np.asarray(jacobian, np.float64)
    d, n = len(jacobian), len(vectors)
    if field.shape != (n, d) or jacobian.shape != (d, d):
        raise ValueError(f"expected shapes (n, d) and (d, d), got {field.shape}, {jacobian.shape}")
    weights = (1 + values) / (1 - values)
    q = field.T @ vectors
    shift = 0.5 * (b == 1)
    if np.linalg.eigvals(jacobian).real.max() >= -shift:
        raise ValueError("the mean field is not stable, or its step too small for b = 1")
    if a != b:
        repelled = alpha if b > a else 0.0
        noise = (q * (weights / (1 + repelled * (1 + values)) ** 2)) @ q.T
        return scipy.linalg.solve_continuous_lyapunov(jacobian + shift * np.eye(d), -noise)
    both = np.concatenate([q, vectors])
    drift = np.zeros((d + n, d + n))
    drift[:d, :d] = jacobian
    pull = np.asarray(matrix).T + np.eye(n)
    drift[:d, d:] = -alpha * field.T @ pull
    drift[d:, d:] = -alpha * pull - np.eye(n)
    noise = (both * weights) @ both.T
    joint = scipy.linalg.solve_continuous_lyapunov(drift + shift * np.eye(d + n), -noise)
    return joint[:d, :d]
