"""Accelerated gossip while links change, and Nesterov's method on top of it."""

import abc
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int, PyTree

from ..core import checks, loops, tree
from .algorithm import AbstractGradientAlgorithm, Loss, model_bits
from .gossip import chebyshev_start, chebyshev_step
from .graphs import edge_list
from .mixing import Sparse, laplacian_spectrum, weighted_laplacian
from .network import Network, Weights
from .time_varying import TimeVarying

Schedule = Callable[[Int[Array, ""]], Weights]
"""The weights of a round, by its number."""


def laplacian_schedule(
    network: Network, laplacians: Iterable[Any], lam_max: Any = None
) -> tuple[TimeVarying, float]:
    """The matrices $W_k = I - L_k / \\lambda_{\\max}$ as a schedule for a network.

    **Arguments:**

    - `network`: on a graph that has every edge of every round.
    - `laplacians`: $L_k$, sparse or dense, symmetric with rows that sum to zero.
    - `lam_max`: a bound on all their eigenvalues; the largest there is if `None`.

    **Returns:** the schedule, repeated after the last matrix, and $\\lambda_{\\max}$.

    **Raises:** `ValueError` if some matrix is no Laplacian, has a weight off the edges of the
    network, or an eigenvalue above `lam_max`.
    """
    laplacians = [Sparse(matrix).astype(np.float64) for matrix in laplacians]
    largest = 0.0
    for k, matrix in enumerate(laplacians):
        scale = max(float(np.abs(matrix.data).max(initial=0)), 1e-30)
        lopsided = np.abs((matrix - matrix.T).data).max(initial=0) > 1e-9 * scale
        if lopsided or np.abs(matrix.sum(axis=1)).max() > 1e-9 * scale * matrix.shape[0]:
            raise ValueError(f"matrix {k} is no Laplacian: symmetric, with rows of sum zero")
        largest = max(largest, laplacian_spectrum(matrix)[1])
    bound = largest if lam_max is None else float(lam_max)
    checks.positive("lam_max", bound)
    if largest > bound * (1 + 1e-9):
        raise ValueError(f"lam_max is {bound:g}, but there is an eigenvalue {largest:g}")
    identity = scipy.sparse.eye_array(network.size, format="csr")
    matrices = (identity - matrix / bound for matrix in laplacians)
    return TimeVarying.of(network, matrices), bound


class AbstractGossip(eqx.Module):
    """Steps of talk that bring nodes closer to their mean and keep it.

    One step mixes once, with $W_k$ of its round; $L_k = I - W_k$ is the Laplacian of the round, so
    that a step down its quadratic form is mixing.
    """

    @abc.abstractmethod
    def start(self, x: PyTree[Array]) -> PyTree[Array]:
        """The state before the first step; its first entry holds the nodes' values."""

    @abc.abstractmethod
    def step(self, state: PyTree[Array], descent: Callable, round: Int[Array, ""]) -> PyTree[Array]:
        """One step.

        **Arguments:**

        - `descent`: `x -> L_k x`, to be called once.
        - `round`: its number.
        """

    def __call__(
        self,
        network: Network,
        x: PyTree[Array],
        num_steps: int,
        schedule: Schedule | None = None,
        first: int | Int[Array, ""] = 0,
    ) -> PyTree[Array]:
        """Values after some steps.

        **Arguments:**

        - `x`: stacked node values.
        - `num_steps`: each sends a value over every edge.
        - `schedule`: from the number of a round to its symmetric doubly stochastic weights; the
          network's own in each round if `None`.
        - `first`: number of the first round.
        """
        checks.count("num_steps", num_steps, minimum=0)

        def one(k, state):
            weights = None if schedule is None else schedule(first + k)
            descent = lambda y: jax.tree.map(jnp.subtract, y, network.mix(y, weights))
            return self.step(state, descent, first + k)

        return loops.fori_loop(0, num_steps, one, self.start(x))[0] if num_steps else x


def _check_spectrum(spectrum):
    low, high = spectrum
    checks.positive("spectrum", low)
    checks.positive("spectrum", high)
    if not checks.is_traced(spectrum) and low > high:
        raise ValueError(f"spectrum must be (low, high), got {spectrum}")


class PlainGossip(AbstractGossip):
    """$x \\leftarrow x - h L_k x$, which needs of the order of $\\chi$ rounds.

    **Arguments:**

    - `step_size`: $h$; 1 is $x \\leftarrow W_k x$.
    """

    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar, default=1.0)

    def __check_init__(self):
        checks.positive("step_size", self.step_size)

    def start(self, x):
        return (x,)

    def step(self, state, descent, round):
        return (tree.axpy(state[0], -self.step_size, descent(state[0])),)


class NesterovGossip(AbstractGossip):
    """Nesterov's method on $f_k(x) = \\tfrac12 x^\\top L_k x$, for links that are lost for good,

    $$y^+ = x - \\tfrac1M L_k x, \\qquad x^+ = y^+ + \\beta (y^+ - y), \\qquad
      \\beta = \\frac{\\sqrt M - \\sqrt m}{\\sqrt M + \\sqrt m}, \\qquad y_0 = x_0 .$$

    If no lost link returns, $L_{k+1} \\preceq L_k$, and all graphs hold a connected skeleton, then
    with $z_k = x_k + \\sqrt{M / m} (x_k - y_k)$

    $$\\bigl(1 - \\sqrt{m / M}\\bigr)^{-k}
      \\bigl[ f_k(y_k) + \\tfrac m2 \\|z_k - \\bar x\\|^2 \\bigr]$$

    never grows, so that of the order of $\\sqrt\\chi$ rounds do, $\\chi = M / m$. The error itself
    may grow for a while. A link that returns may raise the sum by any factor: use
    `RestartedGossip` there.

    **Arguments:**

    - `spectrum`: m and M, bounds of the non-zero eigenvalues of $I - W_k$: $m \\le \\lambda_2$ of
      the *skeleton*, the part that stays, not of the current graph; $M \\ge \\lambda_{\\max}(L_k)$
      for all k, which is 1 for `laplacian_schedule`.

    **Raises:** `ValueError` if they are not positive, or m > M.

    **Reference:** Metelev, Rogozin, Kovalev, Gasnikov, Is Consensus Acceleration Possible in
    Decentralized Optimization over Slowly Time-Varying Networks?, 2023, arXiv:2301.11817.
    """

    spectrum: tuple[Float[Array, ""], Float[Array, ""]]

    def __init__(self, spectrum: tuple[Any, Any]):
        self.spectrum = checks.scalar(spectrum[0]), checks.scalar(spectrum[1])

    def __check_init__(self):
        _check_spectrum(self.spectrum)

    def start(self, x):
        return x, x

    def step(self, state, descent, round):
        old, x = state
        low, high = map(jnp.sqrt, self.spectrum)
        y = tree.axpy(x, -1 / self.spectrum[1], descent(x))
        moved = jax.tree.map(jnp.subtract, y, old)
        return y, tree.axpy(y, (high - low) / (high + low), moved)


class ChebyshevGossip(AbstractGossip):
    """Chebyshev's polynomial in one Laplacian, the best there is while the graph stays as it is;
    see `chebyshev_gossip`, of which this is the form with steps.

    It is not stable under changes: use `RestartedGossip` where there are any.

    **Arguments:**

    - `spectrum`: bounds m and M of the non-zero eigenvalues of $I - W_k$.

    **Reference:** Scaman, Bach, Bubeck, Lee, Massoulié, Optimal Algorithms for Smooth and Strongly
    Convex Distributed Optimization in Networks, 2017, arXiv:1702.08704.
    """

    spectrum: tuple[Float[Array, ""], Float[Array, ""]]

    def __init__(self, spectrum: tuple[Any, Any]):
        self.spectrum = checks.scalar(spectrum[0]), checks.scalar(spectrum[1])

    def __check_init__(self):
        _check_spectrum(self.spectrum)

    def start(self, x):
        return chebyshev_start(x)

    def step(self, state, descent, round):
        return chebyshev_step(state, descent, self.spectrum)


class RestartedGossip(AbstractGossip):
    """A method that forgets its momentum where the graph may change, for graphs that are free to
    change, but every B rounds only.

    Within B rounds it must gain more than a restart costs: $B \\ge \\sqrt\\chi \\log(4 \\chi)$.

    **Arguments:**

    - `gossip`: what runs between changes, such as `ChebyshevGossip`.
    - `period`: B; it restarts before rounds 0, B, 2B, ...

    **Reference:** Metelev, Rogozin, Kovalev, Gasnikov, Is Consensus Acceleration Possible in
    Decentralized Optimization over Slowly Time-Varying Networks?, 2023, arXiv:2301.11817.
    """

    gossip: AbstractGossip
    period: int = eqx.field(static=True)

    def __check_init__(self):
        checks.instance("gossip", self.gossip, AbstractGossip, "ChebyshevGossip((0.1, 1.0))")
        checks.count("period", self.period)

    @staticmethod
    def shortest_period(spectrum: tuple[float, float]) -> int:
        """$\\lceil \\sqrt\\chi \\log(4 \\chi) \\rceil$ for $\\chi = M / m$."""
        _check_spectrum(spectrum)
        chi = spectrum[1] / spectrum[0]
        return int(np.ceil(np.sqrt(chi) * np.log(4 * chi)))

    def start(self, x):
        return self.gossip.start(x)

    def step(self, state, descent, round):
        fresh = self.gossip.start(state[0])
        restart = round % self.period == 0
        state = jax.tree.map(lambda a, b: jnp.where(restart, a, b), fresh, state)
        return self.gossip.step(state, descent, round)


def accelerated_gossip(
    network: Network,
    x: PyTree[Array],
    num_steps: int,
    spectrum: tuple[Any, Any],
    schedule: Schedule | None = None,
) -> PyTree[Array]:
    """K steps of `NesterovGossip`, for links that are lost and do not return.

    **Arguments:**

    - `x`: stacked node values.
    - `num_steps`: K, each a value on every edge.
    - `spectrum`: m and M, see `NesterovGossip`.
    - `schedule`: from the number of a round to its weights, such as `laplacian_schedule` makes;
      the network's own if `None`.

    **Reference:** Metelev, Rogozin, Kovalev, Gasnikov, Is Consensus Acceleration Possible in
    Decentralized Optimization over Slowly Time-Varying Networks?, 2023, arXiv:2301.11817.
    """
    return NesterovGossip(spectrum)(network, x, num_steps, schedule)


class _State(eqx.Module):
    params: PyTree[Array]
    point: PyTree[Array]
    count: Int[Array, " local"]


class AcceleratedDGD(AbstractGradientAlgorithm):
    """Nesterov's method at each node, with accelerated gossip in place of a mean,

    $$y^+ = \\mathrm{gossip}_T\\bigl(x - \\alpha \\nabla f(x)\\bigr), \\qquad
      x^+ = y^+ + \\beta (y^+ - y), \\qquad
      \\beta = \\frac{1 - \\sqrt{\\alpha \\mu}}{1 + \\sqrt{\\alpha \\mu}} ,$$

    of $\\tfrac1n \\sum_i f_i$. With $\\alpha = 1 / L$ it needs, to an accuracy $\\epsilon$,
    $O(\\sqrt{L / \\mu} \\sqrt\\chi \\log^2 \\tfrac1\\epsilon)$ rounds of talk, as T must grow like
    $\\sqrt\\chi \\log \\tfrac1\\epsilon$: what T steps leave of the nodes' differences stays in the
    result.

    A round here is one iteration, with T rounds of talk.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `step_size`: $\\alpha$; 1 / L where every node's loss is L-smooth.
    - `strong_convexity`: $\\mu > 0$, of the mean of the losses.
    - `gossip`: how they talk: `NesterovGossip`, `ChebyshevGossip`, `RestartedGossip`.
    - `inner_steps`: T.
    - `schedule`: from the number of a round of talk, $T r, \\dots, T r + T - 1$ in iteration r, to
      its weights; the network's own if `None`.

    **Raises:** `ValueError` unless $0 < \\alpha \\mu \\le 1$ and T is at least 1.

    **Reference:** Metelev, Rogozin, Kovalev, Gasnikov, Is Consensus Acceleration Possible in
    Decentralized Optimization over Slowly Time-Varying Networks?, 2023, arXiv:2301.11817.
    """

    loss: Loss
    step_size: Float[Array, ""] = eqx.field(converter=checks.scalar)
    strong_convexity: Float[Array, ""] = eqx.field(converter=checks.scalar)
    gossip: AbstractGossip
    inner_steps: int = eqx.field(static=True)
    schedule: Schedule | None = None

    def __check_init__(self):
        checks.positive("strong_convexity", self.strong_convexity)
        checks.instance("gossip", self.gossip, AbstractGossip, "NesterovGossip((0.1, 1.0))")
        checks.count("inner_steps", self.inner_steps)
        product = self.step_size * self.strong_convexity
        if not checks.is_traced(product) and product > 1:
            raise ValueError(f"step_size times strong_convexity must be at most 1, got {product}")

    def init(self, params, batch, network, key):
        return _State(params, params, jnp.zeros_like(network.index(), jnp.int32))

    def round(self, state, batch, network, key):
        adapted = self.descend(state.point, self.gradients(state.point, batch))
        first = state.count[0] * self.inner_steps
        params = self.gossip(network, adapted, self.inner_steps, self.schedule, first)
        root = jnp.sqrt(self.step_size * self.strong_convexity)
        moved = jax.tree.map(jnp.subtract, params, state.params)
        point = tree.axpy(params, (1 - root) / (1 + root), moved)
        return _State(params, point, state.count + 1)

    def bits_per_round(self, params, network):
        return self.inner_steps * network.max_degree * model_bits(params)


class BridgeSwap(NamedTuple):
    """What `bridge_swap` returns.

    **Attributes:**

    - `graph`: all edges of all rounds.
    - `laplacians`: of each round, sparse; for `laplacian_schedule`.
    """

    graph: nx.Graph
    laplacians: list[scipy.sparse.csr_array]


def bridge_swap(n: int, rounds: int | None = None) -> BridgeSwap:
    """Graphs that change by two edges a round and let nothing through: no method can be fast.

    Nodes 0 and 1 are the centres of two stars, and one more node, the bridge, is joined to both.
    In each round the bridge is cut from node 1, which leaves it a leaf of node 0, and a leaf of
    node 1 is joined to node 0: the new bridge. What node 0 knows reaches a bridge, and is then a
    leaf's; node 1 hears of it only when all its leaves are used up, after about n / 2 rounds,
    though the condition number of each graph is of the order of n. The two edges of the bridge
    have weight n / 4, others 1.

    **Arguments:**

    - `n`: nodes, at least 5.
    - `rounds`: how many graphs; as many as there are changes, $\\lceil (n - 3) / 2 \\rceil + 1$, if
      `None`. A schedule of them begins anew after the last.

    **Raises:** `ValueError` if n is too small, or there are no leaves for so many rounds.

    **Reference:** Metelev, Rogozin, Kovalev, Gasnikov, Is Consensus Acceleration Possible in
    Decentralized Optimization over Slowly Time-Varying Networks?, 2023, arXiv:2301.11817.
    """
    checks.count("n", n, minimum=5)
    right = list(range(n - -(-(n - 3) // 2), n))  # leaves of node 1
    left, bridges = range(3, right[0]), [2, *right]
    rounds = len(bridges) if rounds is None else rounds
    checks.count("rounds", rounds)
    if rounds > len(bridges):
        raise ValueError(f"with {n} nodes there are {len(bridges)} rounds, not {rounds}")
    graph = nx.empty_graph(n)
    graph.add_edges_from((0, i) for i in [*left, *bridges[:rounds]])
    graph.add_edges_from((1, i) for i in bridges)
    edges = edge_list(graph).tolist()
    laplacians = []
    for k in range(rounds):
        present = {(0, i): 1.0 for i in [*left, *bridges[:k]]}
        present |= {(1, i): 1.0 for i in bridges[k + 1 :]}
        present |= {(0, bridges[k]): n / 4, (1, bridges[k]): n / 4}
        weights = [present.get(tuple(edge), 0.0) for edge in edges]
        laplacians.append(weighted_laplacian(graph, weights))
    return BridgeSwap(graph, laplacians)
