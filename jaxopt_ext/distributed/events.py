"""Asynchronous time: schedules of events, made once and run by a scan.

- `poisson_events`: clocks of nodes and edges; `random_walks`: tokens that move along edges;
  `link_failures`: links that go down and up. `merge` puts several in one order of time.
- `without_failed` drops what a broken link would have carried; `with_delays` cuts a message into
  its sending and its arrival.
- `run_events` runs a rule over them. An event reads and writes the rows of two nodes, whatever the
  number of nodes.

Schedules are drawn on the host from a key: the same key, the same schedule on every machine.
"""

import enum
import heapq
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core import checks, loops, tree
from .graphs import check_graph, edge_list
from .network import Network


class Kind(enum.IntEnum):
    """What happens in an event."""

    NOTHING = 0
    """Padding."""
    NODE = 1
    """The clock of node i = j."""
    EDGE = 2
    """Nodes i and j meet; `tag` is the number of their edge in `edge_list`."""
    TOKEN = 3
    """Token `tag` moves from i to j; the two may be one."""
    DOWN = 4
    """The link of i and j breaks; `tag` is its number."""
    UP = 5
    """It is whole again."""
    SEND = 6
    """Node i sends a message to j; `tag` is its slot among those under way."""
    ARRIVE = 7
    """It arrives, and its slot is free again."""


class Events(eqx.Module):
    """Events in order of time, in arrays of one length; `events[3]` is one of them, and those of a
    `scan` are scalars.

    **Attributes:**

    - `time`: since the start.
    - `kind`: see `Kind`.
    - `i`, `j`: nodes.
    - `tag`: of an edge, a token or a message.
    - `since_i`, `since_j`: time since an earlier event touched the node, or since the start. A
      `NODE`, `EDGE` and `TOKEN` event touches both of its nodes, `SEND` the first, `ARRIVE` the
      second, others none. They are computed in double precision, so that lazily updated nodes do
      not lose what the difference of two late times would.
    - `number`: place in the whole schedule.
    """

    time: Float[Array, " m"]
    kind: Int[Array, " m"]
    i: Int[Array, " m"]
    j: Int[Array, " m"]
    tag: Int[Array, " m"]
    since_i: Float[Array, " m"]
    since_j: Float[Array, " m"]
    number: Int[Array, " m"]

    def __len__(self) -> int:
        return self.time.shape[0]

    def __getitem__(self, index: Any) -> "Events":
        return jax.tree.map(lambda a: a[index], self)

    def blocks(self, length: int) -> "Events":
        """Cut into blocks, shape `(blocks, length)`, the last filled up with events in which
        nothing happens: one for each round of an algorithm that holds them."""
        checks.count("length", length)
        number = max(-(-len(self) // length), 1)
        fill = number * length - len(self)

        def leaf(a):
            return jnp.pad(a, (0, fill)).reshape(number, length)

        return jax.tree.map(leaf, self)

    def block(self, count: Int[Array, ""]) -> "Events":
        """The block of a round, of those that `blocks` made; nothing happens after the last."""
        number = self.time.shape[0]
        events = self[jnp.minimum(count, number - 1)]
        kind = jnp.where(count < number, events.kind, Kind.NOTHING)
        return eqx.tree_at(lambda e: e.kind, events, kind)

    def most_meetings(self) -> int:
        """Of the busiest node in the busiest of the blocks."""
        edge = np.asarray(self.kind) == Kind.EDGE
        ends = np.asarray(self.i), np.asarray(self.j)
        count = lambda k: np.bincount(
            np.concatenate([end[k][edge[k]] for end in ends]), minlength=1
        )
        return int(max(count(k).max() for k in range(len(edge))))

    def check_blocks(self) -> None:
        """Raise `ValueError` unless these are blocks."""
        if self.time.ndim != 2:
            raise ValueError(
                f"events must be in blocks, as `events.blocks(100)`, got {self.time.shape}"
            )


def _generator(key: PRNGKeyArray) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).reshape(-1))


def _host(events: Events) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(events, name)) for name in ("time", "kind", "i", "j", "tag")}


def _events(time, kind, i, j, tag) -> Events:
    """Sorted by time, those of one time as they come, with what follows from the order."""
    time = np.asarray(time, np.float64)
    order = np.argsort(time, kind="stable")
    time = time[order]
    kind, i, j, tag = (np.asarray(a, np.int64)[order] for a in (kind, i, j, tag))
    m = len(time)
    both = (kind == Kind.NODE) | (kind == Kind.EDGE) | (kind == Kind.TOKEN)
    at = np.arange(m)
    first, second = both | (kind == Kind.SEND), both | (kind == Kind.ARRIVE)
    # Touches as node and place in one number, so that one search finds the last before a place.
    touches = np.unique(np.concatenate([(i * m + at)[first], (j * m + at)[second]]))

    def since(node):
        found = np.searchsorted(touches, node * m + at) - 1
        last = touches[np.maximum(found, 0)] if len(touches) else np.zeros(m, np.int64)
        touched = (found >= 0) & (last // max(m, 1) == node)
        return time - np.where(touched, time[last % max(m, 1)], 0.0)

    kinds, ends, others, tags, numbers = (
        jnp.asarray(a, jnp.int32) for a in (kind, i, j, tag, np.arange(m))
    )
    since_i, since_j = jnp.asarray(since(i)), jnp.asarray(since(j))
    return Events(jnp.asarray(time), kinds, ends, others, tags, since_i, since_j, numbers)


def merge(*events: Events) -> Events:
    """All events in one order of time; those of the same time in the order of the arguments."""
    parts = list(map(_host, events))
    return _events(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def _rates(name: str, value: Any, count: int) -> np.ndarray:
    checks.nonnegative(name, value)
    try:
        return np.broadcast_to(np.asarray(value, np.float64), (count,))
    except ValueError:
        raise ValueError(f"{name} must be one number or {count}, got {np.shape(value)}") from None


def poisson_events(
    key: PRNGKeyArray,
    graph: nx.Graph,
    horizon: float,
    *,
    node_rates: Any = 1.0,
    edge_rates: Any = 1.0,
) -> Events:
    """Independent Poisson clocks of nodes and of edges up to a time.

    **Arguments:**

    - `horizon`: the time.
    - `node_rates`: ticks of each node in a unit of time, one number or `(n,)`.
    - `edge_rates`: of each edge, one number or `(edges,)` in the order of `edge_list`.
    """
    check_graph(graph)
    checks.positive("horizon", horizon)
    n, edges = graph.number_of_nodes(), edge_list(graph)
    rates = np.concatenate(
        [_rates("node_rates", node_rates, n), _rates("edge_rates", edge_rates, len(edges))]
    )
    draw, total = _generator(key), rates.sum()
    # Given their number, the times of a Poisson process are independent and uniform.
    count = draw.poisson(total * horizon)
    time = np.sort(draw.uniform(0, horizon, count))
    clock = draw.choice(len(rates), count, p=rates / total) if count else np.zeros(0, int)
    ends = np.concatenate([np.repeat(np.arange(n)[:, None], 2, axis=1), edges])
    kind = np.where(clock < n, Kind.NODE, Kind.EDGE)
    i, j = ends[clock].T
    return _events(time, kind, i, j, np.where(clock < n, 0, clock - n))


def random_walks(
    key: PRNGKeyArray,
    graph: nx.Graph,
    horizon: float,
    *,
    num_tokens: int = 1,
    rate: float = 1.0,
    transition: Any = None,
    start: Any = None,
) -> Events:
    """Tokens that move along edges at the ticks of Poisson clocks, up to a time.

    **Arguments:**

    - `num_tokens`: tokens, each with a clock of its own.
    - `rate`: moves of a token in a unit of time.
    - `transition`: row-stochastic matrix `(n, n)`, sparse or dense; the simple random walk if
      `None`.
    - `start`: node of each token, `(num_tokens,)`; drawn uniformly if `None`.
    """
    check_graph(graph)
    checks.count("num_tokens", num_tokens)
    checks.positive("horizon", horizon)
    checks.positive("rate", rate)
    n, edges, draw = graph.number_of_nodes(), edge_list(graph), _generator(key)
    if transition is None:
        ends = np.concatenate([edges, edges[:, ::-1]]).T
        transition = scipy.sparse.coo_array((np.ones(len(ends[0])), tuple(ends)), shape=(n, n))
        transition = transition.tocsr() if n > 1 else scipy.sparse.eye_array(1, format="csr")
        transition = (scipy.sparse.diags_array(1 / transition.sum(axis=1)) @ transition).tocsr()
    transition = scipy.sparse.csr_array(transition)
    sums = transition.sum(axis=1)
    if transition.shape != (n, n) or np.abs(sums - 1).max() > 1e-6 or transition.data.min() < 0:
        raise ValueError(f"transition must be a row-stochastic matrix {(n, n)}")
    where = draw.integers(n, size=num_tokens) if start is None else np.array(start)
    count = draw.poisson(num_tokens * rate * horizon)
    time = np.sort(draw.uniform(0, horizon, count))
    token, uniform = draw.integers(num_tokens, size=count), draw.uniform(size=count)
    rows = [
        (transition.indices[a:b], np.cumsum(transition.data[a:b]))
        for a, b in zip(transition.indptr[:-1], transition.indptr[1:], strict=True)
    ]
    i, j = np.zeros(count, int), np.zeros(count, int)
    for m in range(count):
        i[m] = where[token[m]]
        targets, upto = rows[i[m]]
        j[m] = targets[min(np.searchsorted(upto, uniform[m], side="right"), len(targets) - 1)]
        where[token[m]] = j[m]
    return _events(time, np.full(count, Kind.TOKEN), i, j, token)


def link_failures(
    key: PRNGKeyArray, graph: nx.Graph, horizon: float, *, failure_rate: Any, repair_rate: Any
) -> Events:
    """Links that are whole at first, break, and are repaired, up to a time.

    **Arguments:**

    - `failure_rate`: of a whole link, one number or one for each edge in the order of `edge_list`:
      it stays whole for an exponential time of mean 1 / rate.
    - `repair_rate`: of a broken link.
    """
    check_graph(graph)
    checks.positive("horizon", horizon)
    edges, draw = edge_list(graph), _generator(key)
    rates = (
        _rates("failure_rate", failure_rate, len(edges)),
        _rates("repair_rate", repair_rate, len(edges)),
    )
    times, kinds, tags = [], [], []
    for e in range(len(edges)):
        time, whole = 0.0, True
        while True:
            rate = rates[0][e] if whole else rates[1][e]
            time += draw.exponential(1 / rate) if rate else np.inf
            if time > horizon:
                break
            times.append(time)
            kinds.append(Kind.DOWN if whole else Kind.UP)
            tags.append(e)
            whole = not whole
    tags = np.asarray(tags, int)
    i, j = edges[tags].T
    return _events(times, kinds, i, j, tags)


def without_failed(events: Events, graph: nx.Graph) -> Events:
    """Without the meetings of two nodes whose link is down at the time, and the moves of tokens
    over it, after which the token stays where it was: give tokens `EDGE` events if others follow.

    **Arguments:**

    - `events`: with `DOWN` and `UP` among them, see `merge`; these stay.

    **Raises:** `ValueError` if there are moves of tokens, whose later places would be wrong.
    """
    parts, down = _host(events), np.zeros(graph.number_of_edges(), bool)
    if np.any(parts["kind"] == Kind.TOKEN):
        raise ValueError("tokens that cannot move would be elsewhere later: draw them anew")
    keep = np.ones(len(events), bool)
    for m, (kind, tag) in enumerate(
        zip(parts["kind"].tolist(), parts["tag"].tolist(), strict=True)
    ):
        if kind in (Kind.DOWN, Kind.UP):
            down[tag] = kind == Kind.DOWN
        elif kind == Kind.EDGE:
            keep[m] = not down[tag]
    return _events(**{name: a[keep] for name, a in parts.items()})


def with_delays(key: PRNGKeyArray, events: Events, delay: Any) -> tuple[Events, int]:
    """Each meeting of two nodes becomes a message on its way: `EDGE` becomes `SEND` from i to j, or
    from j to i with probability one half, and `ARRIVE`.

    **Arguments:**

    - `delay`: mean of the exponential delay, or the delay of each event, shape `(m,)`.

    **Returns:** the events, and the number of slots: a rule that keeps messages in a buffer of so
    many under their `tag` has each until it arrives.
    """
    checks.nonnegative("delay", delay)
    parts, draw = _host(events), _generator(key)
    m = len(events)
    delays = draw.exponential(delay, m) if np.ndim(delay) == 0 else _rates("delay", delay, m)
    flip = draw.integers(2, size=m).astype(bool)
    sent = parts["kind"] == Kind.EDGE
    i = np.where(sent & flip, parts["j"], parts["i"])
    j = np.where(sent & flip, parts["i"], parts["j"])
    tag, free, busy, slots = parts["tag"].copy(), [], [], 0
    arrival = parts["time"] + delays
    for e in np.nonzero(sent)[0].tolist():
        # At one time what is sent comes before what arrives, so that its slot is not free yet.
        while busy and busy[0][0] < parts["time"][e]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            free.append(slots)
            slots += 1
        tag[e] = heapq.heappop(free)
        heapq.heappush(busy, (arrival[e], int(tag[e])))
    kind = np.where(sent, Kind.SEND, parts["kind"])
    columns = (
        (parts["time"], kind, i, j, tag),
        (
            arrival[sent],
            np.full(sent.sum(), Kind.ARRIVE),
            i[sent],
            j[sent],
            tag[sent],
        ),
    )
    return _events(*(np.concatenate(pair) for pair in zip(*columns, strict=True))), slots


Rule = Callable[..., tuple[tuple[PyTree[Array], ...], PyTree[Array]]]


def run_events(
    rule: Rule,
    network: Network,
    state: PyTree[Array],
    events: Events,
    *,
    data: PyTree[Array] = None,
    common: PyTree[Array] = None,
    buffer: PyTree[Array] = None,
    key: PRNGKeyArray | None = None,
) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array]]:
    """Run a rule over events, one after the other.

    An event costs two rows of the state, not the state. On a mesh the rows of both nodes go to all
    devices, each of which runs the rule: call it inside of `network.parallel`, and take it for the
    same numbers, not for speed.

    **Arguments:**

    - `rule`: `rule(event, (x_i, x_j), (data_i, data_j), common, key) -> ((x_i, x_j), common)`, with
      the rows of the two nodes; `jax.lax.switch(event.kind, ...)` tells events apart, or in
      `shard_map` with its check on `jaxopt_ext.core.loops.cond`. Where i = j the first row counts.
    - `state`: stacked over the local nodes.
    - `events`: of one length; those of a `Events.blocks` row by row.
    - `data`: stacked too; read only.
    - `common`: small things that all nodes know, such as counters; copied for each event.
    - `buffer`: values by `tag`, with as many rows as there are tags: of messages under way, tokens
      or edges. If given, the rows that the rule gets and returns are three, the third that of the
      event's tag; `NODE` events have tag 0 and should return it as it is.
    - `key`: each event gets a key of its own, by its number in the schedule; `jax.random.key(0)`
      if `None`.

    **Returns:** the state, what is common, and the buffer.
    """
    key = jax.random.key(0) if key is None else key

    def one(carry, event):
        state, common, buffer = carry
        read = lambda row: jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, row, keepdims=False), buffer
        )
        rows = network.pick(state, event.i), network.pick(state, event.j)
        rows = rows if buffer is None else (*rows, read(event.tag))
        known = network.pick(data, event.i), network.pick(data, event.j)
        own = jax.random.fold_in(key, event.number)
        # A conditional, whose operands and results are arrays of their own: fused with the writes
        # below, the reads above would make a compiler copy the state to be safe.
        new, common = loops.cond(
            event.kind == Kind.NOTHING,
            lambda: (rows, common),
            lambda: tree.cast_like(rule(event, rows, known, common, own), (rows, common)),
        )
        state = network.put(network.put(state, event.j, new[1]), event.i, new[0])
        if buffer is not None:
            write = lambda a, v: jax.lax.dynamic_update_index_in_dim(a, v, event.tag, 0)
            buffer = jax.tree.map(write, buffer, new[2])
        return (state, common, buffer), None

    return loops.scan(one, (state, common, buffer), events)[0]
