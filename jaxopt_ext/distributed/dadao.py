"""Accelerated optimization on the clocks of nodes and links."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, loops, tree
from .algorithm import AbstractNetworkAlgorithm, Loss, model_bits
from .events import Events, Kind, merge, poisson_events, run_events
from .graphs import edge_list
from .mixing import chi_1, chi_2, weighted_laplacian


def communication_rates(graph: nx.Graph, probabilities: Any = None) -> Float[np.ndarray, " edges"]:
    """Rates of the edges at which `DADAO` keeps up with one gradient of each node per unit of time:
    in all $\\sqrt{2 \\chi_1 \\chi_2}$ of the probabilities, so that the rates have
    $\\chi_1 \\chi_2 = \\tfrac12$.

    **Arguments:**

    - `probabilities`: shape `(edges,)` in the order of `edge_list`, of sum one; alike if `None`.

    **Raises:** `ValueError` if they do not sum to one, or their edges do not join all nodes.
    """
    count = graph.number_of_edges()
    if probabilities is None:
        probabilities = np.full(count, 1 / max(count, 1))
    probabilities = np.asarray(probabilities, np.float64)
    matrix = weighted_laplacian(graph, probabilities)
    if abs(probabilities.sum() - 1) > 1e-6:
        raise ValueError(f"probabilities must sum to one, got {probabilities.sum():g}")
    if not np.linalg.eigvalsh(matrix.toarray())[1] > 1e-12:
        raise ValueError("edges of probability zero are needed to join all nodes")
    return math.sqrt(2 * chi_1(matrix) * chi_2(matrix)) * probabilities


def optimal_rates(graph: nx.Graph, *, num_trials: int = 12) -> Float[np.ndarray, " edges"]:
    """Rates with $\\chi_1 \\chi_2 = \\tfrac12$ of about the least sum.

    The sum for given probabilities is $\\sqrt{2 \\chi_1 \\chi_2}$, and
    $\\sqrt{\\chi_1 \\chi_2} = \\min_c \\tfrac12 (c \\chi_1 + \\chi_2 / c)$, which is convex in the
    probabilities for each c: a semidefinite program, solved by `cvxpy` on the host. c is searched.

    **Arguments:**

    - `num_trials`: values of c that are tried.

    **Raises:** `ImportError` without `cvxpy`.
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError("optimal_rates needs cvxpy: pip install 'jaxopt-ext[rates]'") from error

    edges, n = edge_list(graph), graph.number_of_nodes()
    uniform = communication_rates(graph)
    laplacian = weighted_laplacian(graph, uniform)
    differences = np.zeros((len(edges), n))
    differences[np.arange(len(edges)), edges[:, 0]] = 1
    differences[np.arange(len(edges)), edges[:, 1]] = -1
    mean = np.ones((n, n)) / n

    # A factor of the rates is free; their sum fixes it. c is relative to equal rates.
    ratio, rates = cp.Parameter(pos=True), cp.Variable(len(edges), nonneg=True)
    connectivity, resistance = cp.Variable(), cp.Variable()
    matrix = differences.T @ cp.diag(rates) @ differences
    constraints = [
        cp.sum(rates) == uniform.sum(),
        matrix - connectivity * (np.eye(n) - mean) >> 0,
    ]
    for row in differences:
        corner = cp.reshape(2 * resistance, (1, 1), "C")
        constraints += [cp.bmat([[matrix + mean, row[:, None]], [row[None], corner]]) >> 0]
    first = cp.inv_pos(connectivity) / chi_1(laplacian)
    objective = ratio * first + resistance / chi_2(laplacian)
    problem = cp.Problem(cp.Minimize(objective), constraints)
    best = uniform
    for value in np.geomspace(0.05, 20, num_trials):
        ratio.value = value
        with warnings.catch_warnings():
            # What comes out is measured, so that a solution of low accuracy does no harm.
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=cp.CLARABEL)
        if rates.value is None:
            continue
        found = np.maximum(rates.value, 0)
        found = communication_rates(graph, found / found.sum())
        best = min(best, found, key=np.sum)
    return best


def dadao_events(
    key: PRNGKeyArray,
    graphs: nx.Graph | Sequence[nx.Graph],
    horizon: float,
    *,
    rates: Any = None,
    dwell: float = 1.0,
) -> tuple[Events, float]:
    """Events for `DADAO`: each node computes at rate 1, each edge talks at its own.

    **Arguments:**

    - `graphs`: one, or several on the same nodes that follow each other and then begin anew, each
      connected.
    - `horizon`: time in all, that is gradients of a node.
    - `rates`: of the edges, shape `(edges,)`, or a list of such, one for each graph;
      `communication_rates` if `None`.
    - `dwell`: time that each of several graphs lasts.

    **Returns:** the events, and $\\chi_1$ of the rates, the largest of all graphs.

    **Raises:** `ValueError` if some graph is disconnected or has other nodes.
    """
    checks.positive("horizon", horizon)
    checks.positive("dwell", dwell)
    if isinstance(graphs, nx.Graph):
        graphs, rates, dwell = [graphs], None if rates is None else [rates], horizon
    rates = list(map(communication_rates, graphs)) if rates is None else list(rates)
    sizes = {len(graph) for graph in graphs}
    if len(sizes) != 1 or len(rates) != len(graphs):
        raise ValueError(f"graphs of {sorted(sizes)} nodes, with {len(rates)} sets of rates")
    parts = []
    for k in range(math.ceil(horizon / dwell)):
        which, begin = k % len(graphs), k * dwell
        length = min(dwell, horizon - begin)
        part = poisson_events(
            jax.random.fold_in(key, k), graphs[which], length, edge_rates=rates[which]
        )
        parts.append(eqx.tree_at(lambda events: events.time, part, part.time + begin))
    worst = max(chi_1(weighted_laplacian(g, r)) for g, r in zip(graphs, rates, strict=True))
    return merge(*parts), worst


class _State(eqx.Module):
    vectors: PyTree[Array]
    """X, Y, Z, each followed by the one with a tilde, on a second axis: an event moves one row."""
    count: Int[Array, " local"]

    @property
    def params(self):
        """X."""
        return jax.tree.map(lambda a: a[:, 0], self.vectors)


class DADAO(AbstractNetworkAlgorithm):
    """Decoupled, accelerated, decentralized, asynchronous optimization of $\\sum_i f_i$.

    Nodes compute and links talk at the ticks of their own clocks, nobody waits, and the time to an
    accuracy grows like $\\sqrt{L / \\mu}$. Each node holds six vectors, which flow between events,

    $$\\dot X = \\eta (\\tilde X - X), \\quad \\dot{\\tilde X} = \\eta (X - \\tilde X), \\quad
      \\dot Y = \\alpha (\\tilde Y - Y), \\quad
      \\dot{\\tilde Y} = -\\theta (\\nu \\tilde X + Y + Z), \\quad
      \\dot Z = \\alpha (\\tilde Z - Z), \\quad \\dot{\\tilde Z} = \\eta (Z - \\tilde Z),$$

    and jump at them: when node i computes, $g = \\nabla f_i(X_i) - \\nu X_i - \\tilde Y_i$ and

    $$X_i \\leftarrow X_i - \\gamma g, \\quad
      \\tilde X_i \\leftarrow \\tilde X_i - \\tilde\\gamma g, \\quad
      \\tilde Y_i \\leftarrow \\tilde Y_i + (\\delta + 1) g;$$

    when i and j talk, $m = (Y + Z)_i - (Y + Z)_j$ and

    $$Z_i \\leftarrow Z_i - \\tfrac12 m, \\quad
      \\tilde Z_i \\leftarrow \\tilde Z_i - \\tilde\\beta m, \\quad
      Z_j \\leftarrow Z_j + \\tfrac12 m, \\quad
      \\tilde Z_j \\leftarrow \\tilde Z_j + \\tilde\\beta m .$$

    Here $\\nu = \\mu / 2$, $\\eta = \\tfrac18 \\sqrt{\\nu / L}$,
    $\\alpha = \\delta = \\tfrac14 \\sqrt{\\nu / L}$, $\\theta = \\tfrac12 \\sqrt{L / \\nu}$,
    $\\gamma = 1 / (4 L)$, $\\tilde\\gamma = 1 / (4 \\sqrt{L \\nu})$ and
    $\\tilde\\beta = 2 \\chi_1 \\sqrt{L / \\nu}$. A node flows when an event touches it, by the time
    since the last one.

    A round is a block of events, one after the other; after the last block nothing happens. In
    single precision it comes to about 1e-6. Gradients of minibatches, new ones for each block,
    leave noise, which `RunningAverage` reduces.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node.
    - `events`: in blocks, `dadao_events(key, graph, horizon)[0].blocks(length)`.
    - `smoothness`: L, of every node's loss.
    - `strong_convexity`: $\\mu > 0$, of every node's loss.
    - `chi_1`: of the rates of the edges, as `dadao_events` returns it.

    **Raises:** `ValueError` unless $0 < \\mu \\le L$ and the events are in blocks.

    **Reference:** Nabli, Oyallon, DADAO: Decoupled Accelerated Decentralized Asynchronous
    Optimization, 2023, arXiv:2208.00779.
    """

    loss: Loss
    events: Events
    smoothness: Float[Array, ""] = eqx.field(converter=checks.scalar)
    strong_convexity: Float[Array, ""] = eqx.field(converter=checks.scalar)
    chi_1: Float[Array, ""] = eqx.field(converter=checks.scalar)

    def __check_init__(self):
        for name in ("smoothness", "strong_convexity", "chi_1"):
            checks.positive(name, getattr(self, name))
        both = self.smoothness, self.strong_convexity
        if not checks.is_traced(both) and both[0] < both[1]:
            raise ValueError(f"strong_convexity {both[1]} exceeds smoothness {both[0]}")
        checks.instance("events", self.events, Events, "dadao_events(key, graph, 10.0)[0]")
        self.events.check_blocks()

    def init(self, params, batch, network, key):
        def leaf(a):
            zero = jnp.zeros_like(a)
            return jnp.stack([a, a, zero, zero, zero, zero], axis=1)

        count = jnp.zeros_like(network.index(), jnp.int32)
        return _State(jax.tree.map(leaf, params), count)

    def round(self, state, batch, network, key):
        events = self.events.block(state.count[0])
        vectors, _, _ = run_events(self._rule, network, state.vectors, events, data=batch, key=key)
        return _State(vectors, state.count + 1)

    def _rule(self, event, rows, data, common, key):
        mine, other = self._flow(rows[0], event.since_i), self._flow(rows[1], event.since_j)
        both = loops.cond(
            event.kind == Kind.NODE,
            lambda: (self._compute(mine, data[0]), other),
            lambda: self._talk(mine, other),
        )
        return both, common

    def _constants(self, row):
        """$\\sqrt{\\nu / L}$, $\\nu$, L and $\\chi_1$, in the precision of a node's vectors."""
        dtype = tree.real_dtype(row)
        convex, smooth, chi_1 = (
            jnp.asarray(a).astype(dtype)
            for a in (self.strong_convexity, self.smoothness, self.chi_1)
        )
        nu = convex / 2
        return jnp.sqrt(nu / smooth), nu, smooth, chi_1

    def _flow(self, row, time):
        """What the six vectors of a node become in some time without events, in closed form."""
        root, nu, _, _ = self._constants(row)
        time = time.astype(root.dtype)
        eta, alpha, theta = root / 8, root / 4, 0.5 / root
        omega = jnp.sqrt(0.125 - alpha**2 / 4)  # Y turns: alpha theta is 1/8
        # X and Z go to means at the rates -alpha and slow, and drive Y on their way.
        slow = -(alpha + eta)
        by_x, by_z = jnp.exp(-alpha * time), jnp.exp(slow * time)
        shrink = jnp.exp(-alpha * time / 2)
        cosine, sine = shrink * jnp.cos(omega * time), shrink * jnp.sin(omega * time) / omega
        share = alpha / (alpha + eta)
        of_z = slow * (slow + alpha) + 0.125

        def leaf(vectors):
            x, momentum, y, y_fast, z, z_fast = vectors
            cast = lambda a: jnp.asarray(a, x.real.dtype)
            gap, mean = (momentum - x) / 2, (momentum + x) / 2
            lag = z_fast - z
            rest = z + cast(share) * lag
            # For a push c exp(l t) of Y, c (alpha, l + alpha) / (l^2 + alpha l + 1/8) exp(l t).
            still = cast(-8 * theta) * (cast(nu) * mean + rest) * cast(alpha)
            from_x = cast(-8 * theta * nu * alpha) * gap
            from_z = cast(theta * share / of_z) * lag
            y_z, fast_z = cast(alpha) * from_z, cast(slow + alpha) * from_z
            free, fast = y - still - from_x - y_z, y_fast - still - fast_z
            half = cast(alpha / 2)
            turned = cast(cosine) * free + cast(sine) * (cast(alpha) * fast - half * free)
            turned_fast = cast(cosine) * fast + cast(sine) * (half * fast - cast(theta) * free)
            moved = (
                mean - cast(by_x) * gap,
                mean + cast(by_x) * gap,
                still + cast(by_x) * from_x + cast(by_z) * y_z + turned,
                still + cast(by_z) * fast_z + turned_fast,
                rest - cast(share * by_z) * lag,
                rest + cast((1 - share) * by_z) * lag,
            )
            return jnp.stack(moved)

        return jax.tree.map(leaf, row)

    def _compute(self, row, data):
        root, nu, smooth, _ = self._constants(row)
        x = jax.tree.map(lambda a: a[0], row)
        gradient = tree.gradient(lambda p: self.loss(p, data), x)
        step = 0.25 / smooth
        factors = jnp.stack([-step, -step / root, jnp.zeros_like(root), 1 + root / 4])

        def leaf(a, g):
            jump = g - nu.astype(g.real.dtype) * a[0] - a[3]
            return a.at[:4].add(_times(factors, jump))

        return jax.tree.map(leaf, row, gradient)

    def _talk(self, mine, other):
        root, _, _, chi_1 = self._constants(mine)
        fast = 2 * chi_1 / root
        factors = jnp.stack([jnp.full_like(fast, 0.5), fast])

        def jump(a, b):
            return _times(factors, a[2] + a[4] - b[2] - b[4])

        jumps = jax.tree.map(jump, mine, other)
        return (
            jax.tree.map(lambda a, m: a.at[4:].add(-m), mine, jumps),
            jax.tree.map(lambda a, m: a.at[4:].add(m), other, jumps),
        )

    def bits_per_round(self, params, network):
        """Of the busiest node in the busiest block: Y + Z goes to the other end."""
        return self.events.most_meetings() * model_bits(params)


def _times(factors, x):
    """Several multiples of an array, stacked."""
    return factors.astype(x.real.dtype).reshape(-1, *([1] * x.ndim)) * x
