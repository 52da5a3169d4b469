"""Pairs of transformer blocks with a mixture of experts, token by token."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ...distributed import scmoe
from ..shapes.function import AbstractFunctionCase
from .draws import draws

DIM, HEADS, EXPERTS, LENGTH = 4, 2, 4, 3


class MixtureCase(AbstractFunctionCase):
    """A pair of blocks as a function of its parameters and of two sequences.

    **Arguments:**

    - `make`: `(dim, num_heads, num_experts, hidden=, key=) -> pair`.
    """

    make: Callable[..., scmoe.MoEPair] = eqx.field(static=True)

    def draw(self, seed: int, dtype: Any):
        rng = np.random.default_rng(seed)
        make = functools.partial(self.make, DIM, HEADS, EXPERTS, hidden=5)
        pair = draws(lambda: make(key=jax.random.key(0)), rng, dtype)
        return pair, jax.device_put(rng.normal(size=(2, LENGTH, DIM)).astype(dtype))

    def call(self, *arguments):
        pair, x = arguments
        return pair(x)

    def reference(self, *arguments):
        pair, x = arguments
        y, aux = reference(pair, x[None])
        return y[0], aux


def reference(pair: scmoe.MoEPair, x) -> tuple[np.ndarray, float]:
    """Outputs and auxiliary loss of a pair of blocks on several nodes, in loops over tokens.

    **Arguments:**

    - `x`: of shape `(nodes, sequences, length, dim)`.
    """
    pair = jax.tree.map(lambda a: np.asarray(a, np.float64), pair)
    x = np.asarray(x, np.float64)
    y, gates = np.empty_like(x), []
    for node, h0 in enumerate(x):
        y[node], logits = _one_node(pair, h0)
        gates.append(logits)
    aux = []
    for logits in zip(*gates, strict=True):
        probabilities = _softmax(np.concatenate(logits))
        count = probabilities.shape[1]
        shares = np.bincount(probabilities.argmax(1), minlength=count) / len(probabilities)
        if len(aux) == 1:  # of a second gate the best is not always its choice
            shares = np.mean(pair_choices(pair, x), axis=0)
        aux.append(0.01 * count * shares @ probabilities.mean(0))
    return y, float(np.mean(aux))


def pair_choices(pair, x):
    """What the second gate chooses for each token, as rows of zeros and a one."""
    rows = []
    for h0 in x:
        early, late = (_softmax(logits) for logits in _one_node(pair, h0)[1])
        for first, second in zip(early, late, strict=True):
            second = np.where(np.arange(len(second)) == first.argmax(), -1, second)
            rows.append(np.arange(len(second)) == second.argmax())
    return rows


def _one_node(pair, h0):
    backbone = pair.backbone
    points = [h0]
    points.append(h0 + _attend(backbone.attention[0], _norm(backbone.norms[0], h0)))
    points.append(points[-1] + _perceptron(backbone.mlp, _norm(backbone.norms[1], points[-1])))
    hb = points[-1] + _attend(backbone.attention[1], _norm(backbone.norms[2], points[-1]))
    u, width = _norm(backbone.norms[3], hb), h0.shape[-1]
    y = hb.reshape(-1, width).copy()
    if hasattr(pair, "shared"):
        shared = _perceptron(pair.shared.expert, u)
        if pair.shared.weight is not None:
            shared = shared / (1 + np.exp(-u @ pair.shared.weight))[..., None]
        y += shared.reshape(y.shape)
    late = u.reshape(y.shape)
    early = late
    if hasattr(pair, "norm"):
        early = _norm(pair.norm, points[pair.position - 1]).reshape(y.shape)
    logits = [early @ pair.gate.weight]
    choices = _route(pair, early, logits[0], getattr(pair, "k", 1), y)
    if hasattr(pair, "late_gate"):
        logits.append(late @ pair.late_gate.weight)
        _route(pair, late, logits[1], 1, y, avoid=[c[0] for c in choices])
    return y.reshape(h0.shape), logits


def _route(pair, tokens, logits, k, y, avoid=None):
    """Add to each token's output what its experts make of it; first choices come first."""
    probabilities = _softmax(logits)
    capacity = math.ceil(pair.experts.capacity_factor * k * len(tokens) / logits.shape[1])
    choices = []
    for t, row in enumerate(probabilities):
        allowed = [e for e in range(len(row)) if avoid is None or e != avoid[t]]
        choices.append(sorted(allowed, key=lambda e: (-row[e], e))[:k])
    used = np.zeros(logits.shape[1], int)
    for rank in range(k):
        for t, chosen in enumerate(choices):
            e = chosen[rank]
            used[e] += 1
            if used[e] > capacity:
                continue
            gate = probabilities[t, e]
            if k > 1:
                gate /= probabilities[t, chosen].sum()
            expert = jax.tree.map(lambda a: a[e], pair.experts.stack)  # noqa: B023
            y[t] += gate * _perceptron(expert, tokens[t])
    return choices


def _softmax(z):
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def _norm(norm, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight + norm.bias


def _perceptron(expert, u):
    z = u @ expert.up + expert.up_bias
    z = z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2
    return z @ expert.down + expert.down_bias


def _attend(attention, x):
    out = np.zeros_like(x)
    width = x.shape[-1] // attention.num_heads
    for s, sequence in enumerate(x):
        q, k, v = (sequence @ w for w in (attention.query, attention.key, attention.value))
        for h in range(attention.num_heads):
            part = slice(h * width, (h + 1) * width)
            for t in range(len(sequence)):
                weights = _softmax(k[: t + 1, part] @ q[t, part] / np.sqrt(width))
                out[s, t, part] = weights @ v[: t + 1, part]
    return out @ attention.output
