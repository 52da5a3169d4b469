"""Collaborative learning without a server, where some nodes are bad."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..core import Scalar, checks, loops, scalar_field, tree
from .algorithm import AbstractNetworkAlgorithm, Loss, at_each_node, model_bits
from .attacks.attack import AbstractAttack, honest_nodes, nodes
from .network import Network
from .robust import NNA, AbstractAggregator, TrimmedMean
from .robust.rows import ravel_rows

StepSize = Callable[[Int[Array, ""]], Float[Array, ""]]


class StaircaseStepSize(eqx.Module):
    """$\\eta_t = \\eta_0 / (1 + s \\lfloor t/s \\rfloor / d)$.

    **Arguments:**

    - `initial`: $\\eta_0 > 0$.
    - `every`: $s$, rounds on one step of the stairs; static.
    - `decay`: $d > 0$, rounds after which the step size is one half.

    **Reference:** Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative
    Learning with Linear Gradient Overhead, 2023, arXiv:2210.00253.
    """

    initial: Scalar = scalar_field(0.75)
    every: int = eqx.field(static=True, default=50)
    decay: Scalar = scalar_field(50.0)

    def __check_init__(self):
        checks.positive("initial", self.initial)
        checks.count("every", self.every)
        checks.positive("decay", self.decay)

    def __call__(self, t: Int[Array, ""]) -> Float[Array, ""]:
        """The step size of round t, counted from 0."""
        return self.initial / (1 + self.every * (t // self.every) / self.decay)


class _State(eqx.Module):
    params: PyTree[Array]
    momentum: PyTree[Array]
    attack: Any
    """What the attack remembers, at each node."""
    rounds: Int[Array, " local"]


class MoNNA(AbstractNetworkAlgorithm):
    """Momentum and nearest-neighbour averaging: everybody sends its parameters after a local step,
    and each good node averages those nearest to its own,

    $$m_i \\leftarrow \\beta m_i + (1 - \\beta) g_i, \\qquad
      \\theta_{i,1/2} = \\theta_i - \\eta_t m_i, \\qquad
      \\theta_i \\leftarrow \\mathrm{NNA}_i(\\theta_{1,1/2}, \\dots, \\theta_{n,1/2}),$$

    with $m_i = 0$ at first, and no correction for that. A node does not wait for the last `missing`
    messages, since bad nodes may stay silent; of the others it averages all but the $f$ farthest.
    That is simulated at its worst: the bad nodes' messages all arrive, and good ones are missing,
    drawn anew at each node. Every node talks to every other.

    The rows of bad nodes in `params` hold what they sent: leave them out of a metric. They get no
    state of their own from the attack, which looks at parameters after the local step; of
    `SignFlip` that makes minus the mean of the good ones.

    With `rule=Mean()` and `missing=0` this is decentralized SGD; with `TrimmedMean(f)`,
    `GeometricMedian()` or `CenteredClip(tau)`, which starts from the node's own parameters, it is
    what the method is compared with.

    **Arguments:**

    - `loss`: `(params, batch) -> scalar` of one node; real parameters.
    - `step_size`: $\\eta > 0$, or a function of the round such as `StaircaseStepSize()`.
    - `f`: the number of bad nodes that are withstood, $n > 2f$; static. What is proven needs
      $n \\ge 11f$.
    - `momentum`: $\\beta \\in [0, 1)$.
    - `attack`: what bad nodes send, from `attacks`.
    - `faulty`: the numbers of the bad nodes; without an attack they work on their own batches like
      the good ones, whatever the labels there; static.
    - `missing`: how many messages a node does not wait for, $f$ if `None`; 0 for all; static.
    - `coordination_steps`: how often nodes talk in a round; static.
    - `rule`: an aggregator, that gets the node's own parameters as pivot and as state; `NNA(f)` if
      `None`.
    - `clip`: the largest norm of a gradient; no limit if `None`.
    - `poisoned`: a loss, such as that with other labels: bad nodes send the mean of the good ones
      less $\\eta_t$ times the mean of its gradients there. Instead of an attack.

    **Raises:** `ValueError` if the graph is not complete, $n \\le 2f$, or the arguments do not fit;
    it warns if $n < 11f$. `TypeError` for clients of a server.

    **Reference:** Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative
    Learning with Linear Gradient Overhead, 2023, arXiv:2210.00253.
    """

    loss: Loss
    step_size: Scalar | StepSize = eqx.field(converter=checks.scalar)
    f: int = eqx.field(static=True)
    momentum: Scalar = scalar_field(0.99)
    attack: AbstractAttack | None = None
    faulty: tuple[int, ...] = eqx.field(static=True, default=(), converter=nodes)
    missing: int | None = eqx.field(static=True, default=None)
    coordination_steps: int = eqx.field(static=True, default=1)
    rule: AbstractAggregator | None = None
    clip: Scalar | None = eqx.field(
        default=None, converter=lambda c: None if c is None else checks.scalar(c)
    )
    poisoned: Loss | None = None

    def __check_init__(self):
        _check(self)
        checks.interval("momentum", self.momentum, 0, 1, open_high=True)
        checks.count("coordination_steps", self.coordination_steps)
        if self.clip is not None:
            checks.positive("clip", self.clip)
        if self.poisoned is not None and (self.attack is not None or not self.faulty):
            raise ValueError("poisoned needs faulty nodes, and no attack")

    def init(self, params, batch, network, key):
        _check_network(self, network, self.rule)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _State(params, zeros, _memory(self, params, key), _rounds(network))

    def round(self, state, batch, network, key):
        step = _step_size(self.step_size, state.rounds[0])
        gradient = _gradients(self.loss, state.params, batch)
        if self.clip is not None:
            gradient = jax.vmap(lambda g: _clipped(g, self.clip))(gradient)
        momentum = jax.tree.map(
            lambda m, g: _average(self.momentum.astype(g.dtype), m, g), state.momentum, gradient
        )
        params = _descend(state.params, step, momentum)
        sent = None
        if self.poisoned is not None:
            sent = self._poison(network, state.params, params, batch, step)
        rule = NNA(self.f) if self.rule is None else self.rule
        memory = state.attack
        for number in range(self.coordination_steps):
            params, memory = _talk(
                self, network, params, rule, memory, jax.random.fold_in(key, number), sent
            )
        return _State(params, momentum, memory, state.rounds + 1)

    def bits_per_round(self, params, network):
        return self.coordination_steps * network.max_degree * model_bits(params)

    def _poison(self, network, old, new, batch, step):
        honest = network.local(honest_nodes(self.faulty, network.size))
        gradient = _gradients(self.poisoned, old, batch)
        return _descend(network.mean(new, honest), step, network.mean(gradient, honest))


class LEARN(AbstractNetworkAlgorithm):
    """Robust rules twice in a round, on gradients and on parameters, and no momentum,

    $$\\theta_{i,1/2} = \\theta_i - \\eta_t\\, \\mathrm{rule}_i(g_1, \\dots, g_n), \\qquad
      \\theta_i \\leftarrow \\mathrm{rule}_i(\\theta_{1,1/2}, \\dots, \\theta_{n,1/2}).$$

    The noise must vanish from the batches: let them grow with the round. A baseline of `MoNNA`,
    with which it shares the arguments; an attack acts on both messages, and is asked anew for each.

    **Arguments:**

    - `loss`, `step_size`, `f`, `attack`, `faulty`, `missing`: see `MoNNA`.
    - `rule`: an aggregator, `TrimmedMean(f)` if `None`.

    **Raises:** see `MoNNA`.

    **Reference:** El Mhamdi, Farhadkhani, Guerraoui, Guirguis, Hoang, Rouault, Collaborative
    Learning in the Jungle (Decentralized, Byzantine, Heterogeneous, Asynchronous and Nonconvex
    Learning), 2021, arXiv:2008.00742.
    """

    loss: Loss
    step_size: Scalar | StepSize = eqx.field(converter=checks.scalar)
    f: int = eqx.field(static=True)
    attack: AbstractAttack | None = None
    faulty: tuple[int, ...] = eqx.field(static=True, default=(), converter=nodes)
    missing: int | None = eqx.field(static=True, default=None)
    rule: AbstractAggregator | None = None

    def __check_init__(self):
        _check(self)

    def init(self, params, batch, network, key):
        _check_network(self, network, TrimmedMean(self.f) if self.rule is None else self.rule)
        first, second = jax.random.split(key)
        memory = _memory(self, params, first), _memory(self, params, second)
        return _State(params, None, memory, _rounds(network))

    def round(self, state, batch, network, key):
        step = _step_size(self.step_size, state.rounds[0])
        rule = TrimmedMean(self.f) if self.rule is None else self.rule
        first, second = jax.random.split(key)
        gradient = _gradients(self.loss, state.params, batch)
        gradient, on_gradients = _talk(self, network, gradient, rule, state.attack[0], first)
        params = _descend(state.params, step, gradient)
        params, on_params = _talk(self, network, params, rule, state.attack[1], second)
        return _State(params, None, (on_gradients, on_params), state.rounds + 1)

    def bits_per_round(self, params, network):
        return 2 * network.max_degree * model_bits(params)


def at_honest(
    rule: AbstractAggregator,
    honest: int,
    missing: int = 0,
    key: PRNGKeyArray | None = None,
) -> Callable[[Float[Array, "n d"]], Float[Array, " d"]]:
    """What a rule makes of the messages at the good nodes, on average over them: a rule for
    `attacks.LineSearch` that fits `MoNNA`.

    Which messages will be missing where, nobody knows beforehand, the attack neither: it looks at
    one draw, always the same.

    **Arguments:**

    - `rule`: an aggregator, that gets the node's own row as pivot and as state.
    - `honest`: the number of good nodes, whose rows come first.
    - `missing`: how many messages a node does not wait for.
    - `key`: draws which they are; needed if there are any.
    """
    checks.count("honest", honest)
    checks.count("missing", missing, 0)
    if missing and key is None:
        raise ValueError("missing messages are drawn: a key is needed")

    def average(rows):
        nodes = jnp.arange(honest)
        bad = jnp.arange(len(rows)) >= honest

        def heard(i):
            if key is None or not missing:
                return None
            return _heard(i, bad, missing, jax.random.fold_in(key, i))

        return jnp.mean(
            jax.vmap(lambda i: rule(rows, rows[i], rows[i], mask=heard(i)))(nodes), axis=0
        )

    return average


def reduction_constants(
    before: PyTree[Array], after: PyTree[Array], honest: Bool[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """$\\alpha$ and $\\lambda$ of a round of talk: how much it draws the good nodes together, and
    how far it moves their mean, both in units of the variance before,

    $$\\Gamma(x) = \\mathrm{mean}_i \\|x_i - \\bar x\\|^2, \\qquad
      \\alpha = \\frac{\\Gamma(y)}{\\Gamma(x)}, \\qquad
      \\lambda = \\frac{\\|\\bar y - \\bar x\\|^2}{\\Gamma(x)},$$

    over good $i$. For $n \\ge 11f$ nearest-neighbour averaging has $\\alpha \\le 9.88 f/(n - f)$
    and $\\lambda \\le 9 f/(n - f)$. NaN if the good nodes agree before.

    **Arguments:**

    - `before`, `after`: $x$ and $y$, stacked over all nodes, ravelled across leaves.
    - `honest`: which nodes are good.

    **Reference:** Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative
    Learning with Linear Gradient Overhead, 2023, arXiv:2210.00253.
    """
    x, y = ravel_rows(before)[0], ravel_rows(after)[0]
    if x.shape != y.shape or jnp.shape(honest) != x.shape[:1]:
        raise ValueError(
            f"before, after and honest do not fit: {x.shape}, {y.shape} and {jnp.shape(honest)}"
        )
    honest = jnp.asarray(honest, bool)[:, None]
    count = jnp.sum(honest).astype(x.dtype)
    mean = lambda a: jnp.sum(jnp.where(honest, a, 0), axis=0) / count
    spread = lambda a: jnp.sum(mean((a - mean(a)) ** 2))
    return spread(y) / spread(x), jnp.sum((mean(y) - mean(x)) ** 2) / spread(x)


def _check(algorithm):
    """What `MoNNA` and `LEARN` share."""
    if not callable(algorithm.step_size):
        checks.positive("step_size", algorithm.step_size)
    checks.count("f", algorithm.f, 0)
    if algorithm.missing is not None:
        checks.count("missing", algorithm.missing, 0)
    if algorithm.rule is not None:
        checks.instance("rule", algorithm.rule, AbstractAggregator, "NNA(2)")
    if algorithm.attack is not None:
        checks.instance("attack", algorithm.attack, AbstractAttack, "ALIE(2)")
        if not algorithm.faulty:
            raise ValueError("an attack needs faulty nodes")
    if len(algorithm.faulty) > algorithm.f:
        raise ValueError(f"f = {algorithm.f}, but {len(algorithm.faulty)} nodes are faulty")


def _check_network(algorithm, network, rule):
    n, f = network.size, algorithm.f
    if network.num_edges != n * (n - 1) // 2:
        raise ValueError(f"every node must talk to every other: take the graph complete({n})")
    if n <= 2 * f:
        raise ValueError(f"n > 2 f is needed, got n = {n}, f = {f}")
    if _missing(algorithm) > f:
        raise ValueError(f"missing must be at most f = {f}, got {algorithm.missing}")
    if rule is not None:
        # NNA counts its f from those that came, so that the node's own row is always left.
        rule.check(n if isinstance(rule, NNA) else n - _missing(algorithm))
    honest_nodes(algorithm.faulty, n)
    if n < 11 * f:
        warnings.warn(f"nothing is proven for n = {n} < 11 f = {11 * f}", stacklevel=3)


def _missing(algorithm):
    return algorithm.f if algorithm.missing is None else algorithm.missing


def _memory(algorithm, params, key):
    if algorithm.attack is None:
        return None
    row = jax.tree.map(lambda a: a[0], params)
    return at_each_node(algorithm.attack.init(row, key), params)


def _rounds(network: Network):
    return jnp.zeros_like(network.index(), jnp.int32)


def _step_size(step_size, t):
    return step_size(t) if callable(step_size) else step_size


def _gradients(loss, params, batch):
    return jax.vmap(lambda p, b: tree.gradient(lambda q: loss(q, b), p))(params, batch)


def _clipped(gradient, largest):
    norm = tree.norm(gradient)
    scale = jnp.where(norm > largest, largest / jnp.where(norm > 0, norm, 1), 1)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)


def _average(weight, old, new):
    return weight * old + (1 - weight) * new


def _descend(params, step, direction):
    return jax.tree.map(lambda a, d: a - step.astype(a.dtype) * d, params, direction)


def _talk(algorithm, network, values, rule, memory, key, sent=None):
    """One exchange: each good node's result of the rule, and what the bad ones sent."""
    adversary, arrival, draws = jax.random.split(key, 3)
    faulty = algorithm.faulty
    if sent is not None:
        bad = network.local(~honest_nodes(faulty, network.size))
        values = jax.tree.map(lambda a, b: _choose(bad, b, a), values, sent)
    rows = network.gather(values)
    if algorithm.attack is not None:
        first = jax.tree.map(lambda a: a[0], memory)
        rows, first = algorithm.attack.corrupt(rows, faulty, adversary, first)
        memory = at_each_node(first, values)
        values = jax.tree.map(network.local, rows)
    masks = _arrivals(network, faulty, _missing(algorithm), arrival)

    def one(_, node):
        own, mask, key = node
        return None, rule.aggregate(rows, own, own, key, mask)

    # One node after the other: all at once would hold n models for each.
    mixed = loops.scan(one, None, (values, masks, network.keys(draws)))[1]
    if algorithm.attack is not None or sent is not None:
        bad = network.local(~honest_nodes(faulty, network.size))
        mixed = jax.tree.map(lambda a, b: _choose(bad, b, a), mixed, values)
    return mixed, memory


def _choose(which, a, b):
    return jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _arrivals(
    network: Network, faulty: tuple[int, ...], missing: int, key: PRNGKeyArray
) -> Bool[Array, "local n"]:
    """Whose messages each local node has: its own, those of all bad nodes, and of the other good
    ones as many as there is room for, drawn at random."""
    bad = ~honest_nodes(faulty, network.size)
    one = lambda i, key: _heard(i, bad, missing, key)
    return jax.vmap(one)(network.index(), network.keys(key))


def _heard(i, bad, missing, key):
    """Whose messages node i has."""
    n = len(bad)
    late = jnp.where(bad, -1.0, jax.random.uniform(key, (n,), jnp.float32))
    late = jnp.where(jnp.arange(n) == i, -2.0, late)
    return jnp.argsort(jnp.argsort(late)) < n - missing
