"""Mixtures of experts spread over nodes, with a shortcut that takes their talk off the critical
path.

A transformer has a mixture of experts in every second block. All classes here are such a *pair* of
blocks, pre-norm and causal,

$$h_a = h_0 + \\mathrm{Att}_1(h_0), \\quad h_1 = h_a + \\mathrm{MLP}(h_a), \\quad
  h_b = h_1 + \\mathrm{Att}_2(h_1), \\quad y = h_b + \\text{mixture},$$

each part behind a normalization of its own. They differ in what the mixture looks at.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..core import checks
from .network import Network

BALANCE = 0.01
"""Weight of the auxiliary loss."""


class Expert(eqx.Module):
    """A perceptron of one hidden layer, $W_2^\\top \\mathrm{gelu}(W_1^\\top u + b_1) + b_2$.

    **Arguments:**

    - `dim`, `hidden`: width of the tokens and of the hidden layer.
    """

    up: Float[Array, "dim hidden"]
    up_bias: Float[Array, " hidden"]
    down: Float[Array, "hidden dim"]
    down_bias: Float[Array, " dim"]

    def __init__(self, dim: int, hidden: int, *, key: PRNGKeyArray):
        up, down = jax.random.split(key)
        self.up = _normal(up, (dim, hidden))
        self.up_bias = jnp.zeros(hidden)
        self.down = _normal(down, (hidden, dim))
        self.down_bias = jnp.zeros(dim)

    def __call__(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return jax.nn.gelu(u @ self.up + self.up_bias) @ self.down + self.down_bias


class Gate(eqx.Module):
    """Logits $W_g^\\top v$ of the experts, in single precision at least; with a key they are noisy,
    $W_g^\\top v + \\mathrm{softplus}(W_n^\\top v) \\epsilon$, $\\epsilon \\sim N(0, I)$.

    **Arguments:**

    - `dim`, `num_experts`: width of the tokens and number of logits.
    - `noisy`: whether there is a $W_n$; without, keys are not looked at.
    """

    weight: Float[Array, "dim experts"]
    noise: Float[Array, "dim experts"] | None

    def __init__(self, dim: int, num_experts: int, *, noisy: bool = False, key: PRNGKeyArray):
        self.weight = _normal(key, (dim, num_experts))
        self.noise = jnp.zeros((dim, num_experts)) if noisy else None

    def __call__(
        self, v: Float[Array, "tokens dim"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens experts"]:
        # Half precision would send tokens elsewhere than their gradients think.
        v = v.astype(jnp.promote_types(v.dtype, jnp.float32))
        logits = v @ self.weight.astype(v.dtype)
        if self.noise is None or key is None:
            return logits
        scale = jax.nn.softplus(v @ self.noise.astype(v.dtype))
        return logits + scale * jax.random.normal(key, logits.shape, logits.dtype)


class Routing(eqx.Module):
    """Where each token goes: its `k` choices, best first.

    **Attributes:**

    - `experts`: the experts chosen.
    - `gates`: their weights in the sum; differentiable.
    - `positions`: the token's place among those of its expert.
    - `kept`: whether that place is below the capacity; other choices are dropped.
    - `probabilities`: softmax of the logits.
    """

    experts: Int[Array, "tokens k"]
    gates: Float[Array, "tokens k"]
    positions: Int[Array, "tokens k"]
    kept: Bool[Array, "tokens k"]
    probabilities: Float[Array, "tokens experts"]


def route(
    logits: Float[Array, "tokens experts"],
    k: int,
    capacity: int,
    avoid: Int[Array, " tokens"] | None = None,
) -> Routing:
    """Send each token to the `k` most probable experts, the lower number first where they tie.

    One gate is the probability itself; several are renormalised. Places are given out in the order
    of the tokens, first choices before second.

    **Arguments:**

    - `capacity`: places at each expert.
    - `avoid`: an expert that each token must not choose.

    **Raises:** `ValueError` if `k` exceeds the number of experts that may be chosen, or
    `capacity` is below 1.
    """
    checks.count("k", k)
    checks.count("capacity", capacity)
    tokens, num_experts = logits.shape
    if k > num_experts - (avoid is not None):
        raise ValueError(f"k must be at most the number of experts to choose from, got {k}")
    probabilities = jax.nn.softmax(logits)
    allowed = probabilities
    if avoid is not None:
        here = avoid[:, None] == jnp.arange(num_experts)
        allowed = jnp.where(here, -1, probabilities)
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(allowed), k)
    gates = jnp.take_along_axis(probabilities, experts, axis=1)
    if k > 1:
        gates = gates / jnp.sum(gates, axis=1, keepdims=True)
    order = experts.T.reshape(-1)
    chosen = (order[:, None] == jnp.arange(num_experts)).astype(jnp.int32)
    positions = jnp.sum(chosen * (jnp.cumsum(chosen, axis=0) - 1), axis=1, dtype=jnp.int32)
    positions = positions.reshape(k, tokens).T
    return Routing(experts, gates, positions, positions < capacity, probabilities)


def dispatch(
    x: Float[Array, "tokens dim"], routing: Routing, capacity: int
) -> Float[Array, "experts capacity dim"]:
    """Each expert's tokens in their places; places without a token are zero."""
    tokens, dim = x.shape
    k = routing.experts.shape[1]
    empty = jnp.zeros((routing.probabilities.shape[1], capacity, dim), x.dtype)
    places = jnp.where(routing.kept, routing.positions, capacity)
    copies = jnp.broadcast_to(x[:, None], (tokens, k, dim))
    return empty.at[routing.experts, places].set(copies, mode="drop")


def combine(
    done: Float[Array, "experts capacity dim"], routing: Routing
) -> Float[Array, "tokens dim"]:
    """The sum of what a token's experts made of it, times their gates; zero of what was dropped."""
    places = jnp.where(routing.kept, routing.positions, 0)
    gates = routing.gates.astype(done.dtype)
    return jnp.sum(
        jnp.where(routing.kept[..., None], gates[..., None] * done[routing.experts, places], 0),
        axis=1,
    )


class _Attention(eqx.Module):
    query: Float[Array, "dim dim"]
    key: Float[Array, "dim dim"]
    value: Float[Array, "dim dim"]
    output: Float[Array, "dim dim"]
    num_heads: int = eqx.field(static=True)

    def __init__(self, dim, num_heads, *, key):
        self.query, self.key, self.value, self.output = (
            _normal(k, (dim, dim)) for k in jax.random.split(key, 4)
        )
        self.num_heads = num_heads

    def __call__(self, x):
        *batch, length, _ = x.shape
        heads = lambda w: (x @ w).reshape(*batch, length, self.num_heads, -1)
        q, k, v = heads(self.query), heads(self.key), heads(self.value)
        scores = jnp.einsum("...qhc,...khc->...hqk", q, k) / math.sqrt(q.shape[-1])
        past = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
        return jnp.einsum("...hqk,...khc->...qhc", weights, v).reshape(x.shape) @ self.output


class Backbone(eqx.Module):
    """The parts of a pair of blocks that are no mixture.

    **Arguments:**

    - `dim`: width of the tokens.
    - `num_heads`: heads of attention, which must divide `dim`.
    - `hidden`: width of the perceptron's hidden layer.
    """

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm, eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: tuple[_Attention, _Attention]
    mlp: Expert

    def __init__(self, dim: int, num_heads: int, hidden: int, *, key: PRNGKeyArray):
        checks.count("dim", dim)
        checks.count("num_heads", num_heads)
        checks.count("hidden", hidden)
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {dim}")
        first, second, mlp = jax.random.split(key, 3)
        self.norms = (_norm(dim), _norm(dim), _norm(dim), _norm(dim))
        self.attention = (
            _Attention(dim, num_heads, key=first),
            _Attention(dim, num_heads, key=second),
        )
        self.mlp = Expert(dim, hidden, key=mlp)

    def __call__(self, h: Array, start: int = 1, stop: int = 4) -> Array:
        """From one point to a later one; 1 is $h_0$, 2 is $h_a$, 3 is $h_1$ and 4 is $h_b$."""
        names = ("attention_1", "mlp", "attention_2")
        parts = (self.attention[0], self.mlp, self.attention[1])
        steps = list(zip(names, parts, self.norms[:3], strict=True))
        for name, part, norm in steps[start - 1 : stop - 1]:
            with jax.named_scope(name):
                h = h + part(_each(norm, h))
        return h

    def last(self, hb: Array) -> Array:
        """$u = \\mathrm{LN}(h_b)$."""
        return _each(self.norms[3], hb)


class SharedExpert(eqx.Module):
    """An expert that sees every token, behind a gate $\\sigma(w^\\top u)$ if `gated`."""

    expert: Expert
    weight: Float[Array, " dim"] | None

    def __init__(self, dim: int, hidden: int, *, gated: bool = False, key: PRNGKeyArray):
        self.expert = Expert(dim, hidden, key=key)
        self.weight = jnp.zeros(dim) if gated else None

    def __call__(self, u: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        with jax.named_scope("shared_expert"):
            out = self.expert(u)
            return out if self.weight is None else jax.nn.sigmoid(u @ self.weight)[..., None] * out


class Experts(eqx.Module):
    """Experts spread over the nodes of a network, node by node in order.

    **Arguments:**

    - `num_experts`: $E$, a multiple of the number of nodes.
    - `capacity_factor`: $c$; a node has $\\lceil c k T / E \\rceil$ places at each expert for the
      choices of its $T$ tokens.
    """

    stack: Expert
    """All experts on a leading axis; where nodes run, those of the local nodes."""
    num_experts: int = eqx.field(static=True)
    capacity_factor: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        hidden: int,
        num_experts: int,
        capacity_factor: float = 1.25,
        *,
        key: PRNGKeyArray,
    ):
        checks.count("num_experts", num_experts)
        checks.positive("capacity_factor", capacity_factor)
        keys = jax.random.split(key, num_experts)
        self.stack = jax.vmap(lambda k: Expert(dim, hidden, key=k))(keys)
        self.num_experts = num_experts
        self.capacity_factor = float(capacity_factor)

    def capacity(self, tokens: int, k: int) -> int:
        """Places at each expert for one node's tokens.

        **Raises:** `ValueError` if there are none.
        """
        places = math.ceil(self.capacity_factor * k * tokens / self.num_experts)
        checks.count("capacity", places)
        return places

    def send(
        self,
        gate: Gate,
        v: Float[Array, "local tokens dim"],
        k: int,
        network: Network,
        key: PRNGKeyArray | None,
        avoid: Int[Array, "local tokens"] | None = None,
    ) -> tuple[Float[Array, "local experts places dim"], Routing]:
        """Choose experts and send the tokens there: one all-to-all."""
        if self.num_experts % network.size:
            raise ValueError(
                f"{self.num_experts} experts do not spread evenly over {network.size} nodes"
            )
        capacity = self.capacity(v.shape[1], k)
        with jax.named_scope("route"):
            keys = None if key is None else network.keys(key)
            logits = jax.vmap(gate, (0, None if keys is None else 0))(v, keys)
            choose = lambda logits, avoid: route(logits, k, capacity, avoid)
            routing = jax.vmap(choose, (0, None if avoid is None else 0))(logits, avoid)
            packed = jax.vmap(lambda v, r: dispatch(v, r, capacity))(v, routing)
            return network.all_to_all(packed, 0, 1), routing

    def compute(
        self, arrived: Float[Array, "local experts places dim"]
    ) -> Float[Array, "local experts places dim"]:
        """The experts at work."""
        local, count = arrived.shape[:2]
        cut = lambda a: a.reshape(local, count, *a.shape[1:])
        with jax.named_scope("experts"):
            work = jax.vmap(jax.vmap(lambda expert, tokens: expert(tokens)))
            return work(jax.tree.map(cut, self.stack), arrived)

    def receive(
        self,
        done: Float[Array, "local experts places dim"],
        routing: Routing,
        network: Network,
    ) -> Float[Array, "local tokens dim"]:
        """Send what the experts made back and sum it: one all-to-all."""
        with jax.named_scope("combine"):
            return jax.vmap(combine)(network.all_to_all(done, 1, 0), routing)


def balance_loss(routing: Routing, network: Network) -> Float[Array, " local"]:
    """$0.01 \\, E \\sum_e f_e P_e$ with the share $f_e$ of first choices and the mean probability
    $P_e$, both over the tokens of all nodes; 0.01 if the experts are used alike.

    **Arguments:**

    - `routing`: stacked over the local nodes.
    """
    num_experts = routing.probabilities.shape[-1]
    first = routing.experts[..., 0, None] == jnp.arange(num_experts)
    # The mean of products over nodes would be another loss.
    shares, means = network.mean(
        (
            jnp.mean(first.astype(routing.probabilities.dtype), axis=1),
            jnp.mean(routing.probabilities, axis=1),
        )
    )
    return BALANCE * num_experts * jnp.sum(shares * means, axis=-1)


class TopKMoE(eqx.Module):
    """A pair of blocks with a mixture of the best `k` experts,
    $y = h_b + \\sum_{e \\in \\text{top-}k} G_e(u) E_e(u)$, $u = \\mathrm{LN}(h_b)$.

    Both all-to-alls wait for the second attention, and the output for them.

    **Arguments:**

    - `dim`, `num_heads`, `num_experts`: see `Backbone` and `Experts`.
    - `hidden`: width of the experts and of the perceptron; 4 `dim` if `None`.
    - `k`: experts for each token.
    - `capacity_factor`: see `Experts`.
    - `noisy`: see `Gate`.

    **Raises:** `ValueError` if `k` exceeds `num_experts` or `num_heads` does not divide `dim`; when
    called, if the nodes do not divide `num_experts`.

    **Reference:** Lepikhin et al., GShard: Scaling Giant Models with Conditional Computation and
    Automatic Sharding, 2020, arXiv:2006.16668.
    """

    backbone: Backbone
    gate: Gate
    experts: Experts
    k: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_experts: int,
        *,
        hidden: int | None = None,
        k: int = 2,
        capacity_factor: float = 1.25,
        noisy: bool = False,
        key: PRNGKeyArray,
    ):
        parts = _parts(dim, num_heads, num_experts, hidden, k, capacity_factor, noisy, key)
        self.backbone, self.gate, self.experts, _ = parts
        self.k = k

    def __call__(
        self, x: Array, network: Network | None = None, key: PRNGKeyArray | None = None
    ) -> tuple[Array, Array]:
        """Outputs and auxiliary loss; see `ScMoEPair`."""
        if network is None:
            return _alone(self, x, key)
        hb = self.backbone(x)
        u = _tokens(self.backbone.last(hb))
        arrived, routing = self.experts.send(self.gate, u, self.k, network, key)
        routed = self.experts.receive(self.experts.compute(arrived), routing, network)
        return hb + routed.reshape(hb.shape), balance_loss(routing, network)


class SharedExpertMoE(eqx.Module):
    """A pair of blocks with one expert for all tokens beside the best of the others,
    $y = h_b + S(u) + G_e(u) E_e(u)$, $u = \\mathrm{LN}(h_b)$.

    Only the shared expert may run beside the all-to-alls.

    **Arguments:** those of `TopKMoE`, with `k` = 1, and

    - `shared_gate`: whether the shared expert has a gate.

    **Raises:** as `TopKMoE`.

    **Reference:** Rajbhandari et al., DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and
    Training to Power Next-Generation AI Scale, 2022, arXiv:2201.05596.
    """

    backbone: Backbone
    gate: Gate
    experts: Experts
    shared: SharedExpert
    k: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_experts: int,
        *,
        hidden: int | None = None,
        k: int = 1,
        capacity_factor: float = 1.25,
        noisy: bool = False,
        shared_gate: bool = False,
        key: PRNGKeyArray,
    ):
        parts = _parts(dim, num_heads, num_experts, hidden, k, capacity_factor, noisy, key)
        self.backbone, self.gate, self.experts, key = parts
        self.shared = SharedExpert(dim, hidden or 4 * dim, gated=shared_gate, key=key)
        self.k = k

    def __call__(
        self, x: Array, network: Network | None = None, key: PRNGKeyArray | None = None
    ) -> tuple[Array, Array]:
        """Outputs and auxiliary loss; see `ScMoEPair`."""
        if network is None:
            return _alone(self, x, key)
        hb = self.backbone(x)
        u = self.backbone.last(hb)
        arrived, routing = self.experts.send(self.gate, _tokens(u), self.k, network, key)
        shared = self.shared(u)
        routed = self.experts.receive(self.experts.compute(arrived), routing, network)
        return hb + shared + routed.reshape(hb.shape), balance_loss(routing, network)


class ScMoEPair(eqx.Module):
    """A pair of blocks whose routed experts look at an earlier point $s$,

    $$y = h_b + S(u) + \\sum_{e \\in \\text{top-}k} G_e(v) E_e(v), \\qquad
      u = \\mathrm{LN}(h_b), \\quad v = \\mathrm{LN}'(s).$$

    Tokens leave right behind $s$ and are needed in the last sum only: with the default position
    both all-to-alls and the routed experts may run beside the perceptron, the second attention and
    the shared expert. `overlap_report` counts what may.

    **Arguments:**

    - `dim`: width of the tokens.
    - `num_heads`: heads of attention, which must divide `dim`.
    - `num_experts`: $E$.
    - `hidden`: width of experts and perceptron; 4 `dim` if `None`.
    - `position`: 1 for $s = h_0$, 2 for $s = h_a$, 3 for $s = h_1$.
    - `k`: experts for each token.
    - `capacity_factor`: $c$; each node has $\\lceil c k T / E \\rceil$ places at each expert for
      its $T$ tokens, and what overflows contributes zero.
    - `noisy`: whether the gate learns a noise, drawn where a key is given.
    - `shared_gate`: whether the shared expert has a gate.

    **Raises:** `ValueError` if `k` exceeds `num_experts`, `num_heads` does not divide `dim`, or
    `position` is another; when called, if the nodes do not divide `num_experts`.

    **Reference:** Cai, Jiang, Qin, Cui, Kim, Huang, Shortcut-connected Expert Parallelism for
    Accelerating Mixture-of-Experts, 2025, arXiv:2404.05019.
    """

    backbone: Backbone
    gate: Gate
    experts: Experts
    shared: SharedExpert
    norm: eqx.nn.LayerNorm
    position: int = eqx.field(static=True)
    k: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_experts: int,
        *,
        hidden: int | None = None,
        position: int = 2,
        k: int = 1,
        capacity_factor: float = 1.25,
        noisy: bool = False,
        shared_gate: bool = False,
        key: PRNGKeyArray,
    ):
        self.position = _position(position)
        parts = _parts(dim, num_heads, num_experts, hidden, k, capacity_factor, noisy, key)
        self.backbone, self.gate, self.experts, key = parts
        self.shared = SharedExpert(dim, hidden or 4 * dim, gated=shared_gate, key=key)
        self.norm = _norm(dim)
        self.k = k

    def __call__(
        self, x: Array, network: Network | None = None, key: PRNGKeyArray | None = None
    ) -> tuple[Array, Array]:
        """Outputs and auxiliary loss.

        **Arguments:**

        - `x`: $h_0$, of shape `(sequences, length, dim)`. With a network a leading axis has the
          local nodes, each with its own sequences, and the experts are those of the local nodes:
          `expert_parallel` cuts them.
        - `key`: for the noise of the gate, different on each node.

        **Returns:** $y$, shaped like `x`, and `balance_loss`, a scalar or one for each local node.
        """
        if network is None:
            return _alone(self, x, key)
        s = self.backbone(x, 1, self.position)
        # The tokens leave before anything that need not come first.
        v = _tokens(_each(self.norm, s))
        arrived, routing = self.experts.send(self.gate, v, self.k, network, key)
        h = self.backbone(s, self.position, 4)
        done = self.experts.compute(arrived)
        shared = self.shared(self.backbone.last(h))
        routed = self.experts.receive(done, routing, network).reshape(h.shape)
        return h + shared + routed, balance_loss(routing, network)


class DGMoEPair(eqx.Module):
    """A pair of blocks with two gates over the same experts: the best expert of an earlier point
    $v = \\mathrm{LN}'(s)$ and the best *other* one of $u = \\mathrm{LN}(h_b)$,

    $$y = h_b + G_e(v) E_e(v) + G'_{e'}(u) E_{e'}(u), \\qquad e' \\neq e.$$

    Half of the talk is that of `ScMoEPair`, the other half that of `TopKMoE`. The auxiliary loss is
    the mean of the two gates'.

    **Arguments:** those of `ScMoEPair`, without `k` and `shared_gate`.

    **Raises:** as `ScMoEPair`, and `ValueError` if there is only one expert.

    **Reference:** Cai, Jiang, Qin, Cui, Kim, Huang, Shortcut-connected Expert Parallelism for
    Accelerating Mixture-of-Experts, 2025, arXiv:2404.05019.
    """

    backbone: Backbone
    gate: Gate
    late_gate: Gate
    experts: Experts
    norm: eqx.nn.LayerNorm
    position: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_experts: int,
        *,
        hidden: int | None = None,
        position: int = 2,
        capacity_factor: float = 1.25,
        noisy: bool = False,
        key: PRNGKeyArray,
    ):
        self.position = _position(position)
        parts = _parts(dim, num_heads, num_experts, hidden, 2, capacity_factor, noisy, key)
        self.backbone, self.gate, self.experts, key = parts
        self.late_gate = Gate(dim, num_experts, noisy=noisy, key=key)
        self.norm = _norm(dim)

    def __call__(
        self, x: Array, network: Network | None = None, key: PRNGKeyArray | None = None
    ) -> tuple[Array, Array]:
        """Outputs and auxiliary loss; see `ScMoEPair`."""
        if network is None:
            return _alone(self, x, key)
        early, late = (None, None) if key is None else jax.random.split(key)
        s = self.backbone(x, 1, self.position)
        v = _tokens(_each(self.norm, s))
        arrived, first = self.experts.send(self.gate, v, 1, network, early)
        h = self.backbone(s, self.position, 4)
        done = self.experts.compute(arrived)
        u = _tokens(self.backbone.last(h))
        taken = first.experts[..., 0]
        arrived, second = self.experts.send(self.late_gate, u, 1, network, late, taken)
        routed = self.experts.receive(done, first, network)
        routed += self.experts.receive(self.experts.compute(arrived), second, network)
        aux = (balance_loss(first, network) + balance_loss(second, network)) / 2
        return h + routed.reshape(h.shape), aux


MoEPair = TopKMoE | SharedExpertMoE | ScMoEPair | DGMoEPair


def expert_parallel(
    pair: MoEPair,
    x: Float[Array, "n sequences length dim"],
    network: Network,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "n sequences length dim"], Float[Array, ""]]:
    """A pair of blocks on the nodes of a network: tokens are spread, each node holds its share of
    the experts, and everything else is at every node. Differentiable, in the pair too.

    **Arguments:**

    - `x`: each node's sequences.
    - `network`: `Network.clients` is enough, since experts are no neighbours.
    - `key`: for noisy gates.

    **Returns:** outputs shaped like `x`, and the auxiliary loss.

    **Raises:** `ValueError` if the nodes do not divide the number of experts, or `x` has another
    number of nodes.

    **Reference:** Cai, Jiang, Qin, Cui, Kim, Huang, Shortcut-connected Expert Parallelism for
    Accelerating Mixture-of-Experts, 2025, arXiv:2404.05019.
    """
    if x.ndim != 4 or x.shape[0] != network.size:
        raise ValueError(
            f"x must have shape ({network.size}, sequences, length, dim), got {x.shape}"
        )
    if pair.experts.num_experts % network.size:
        raise ValueError(
            f"{pair.experts.num_experts} experts do not spread evenly over {network.size} nodes"
        )
    nowhere = jax.tree.map(lambda _: False, pair)
    spread = jax.tree.map(lambda _: True, pair.experts)
    experts, rest = eqx.partition(pair, eqx.tree_at(lambda p: p.experts, nowhere, spread))

    def at_nodes(experts, x, common):
        rest, key = common
        return eqx.combine(experts, rest)(x, network, key)

    y, aux = network.parallel(at_nodes)(experts, x, (rest, key))
    return y, jnp.mean(aux)


def _parts(dim, num_heads, num_experts, hidden, k, capacity_factor, noisy, key):
    hidden = 4 * dim if hidden is None else hidden
    checks.count("k", k)
    checks.count("num_experts", num_experts)
    if k > num_experts:
        raise ValueError(f"k must be at most the number of experts, {num_experts}, got {k}")
    backbone, gate, experts, rest = jax.random.split(key, 4)
    return (
        Backbone(dim, num_heads, hidden, key=backbone),
        Gate(dim, num_experts, noisy=noisy, key=gate),
        Experts(dim, hidden, num_experts, capacity_factor, key=experts),
        rest,
    )


def _alone(pair, x, key):
    """A network of one node, whose axis nobody sees."""
    if x.ndim != 3:
        raise ValueError(f"x must have shape (sequences, length, dim), got {x.shape}")
    y, aux = pair(x[None], Network.clients(1), key)
    return y[0], aux[0]


def _position(position: int) -> int:
    if position not in (1, 2, 3):
        raise ValueError(f"position must be 1, 2 or 3, got {position!r}")
    return position


def _normal(key, shape):
    return jax.random.normal(key, shape) / math.sqrt(shape[0])


def _norm(dim: int) -> eqx.nn.LayerNorm:
    return eqx.nn.LayerNorm(dim)


def _each(norm: eqx.nn.LayerNorm, x: Array) -> Array:
    return jax.vmap(norm)(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _tokens(x: Float[Array, "local sequences length dim"]) -> Float[Array, "local tokens dim"]:
    return x.reshape(x.shape[0], -1, x.shape[-1])
