"""Shortcut-connected experts against experts that everything waits for."""

import functools
import pydoc_data.topics

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh

from benchmarks.claims import Outcome
from jaxopt_ext import distributed as dd

CLAIM = (
    "In a model of characters with two pairs of blocks and four experts, ScMoE with one routed "
    "expert reaches a validation loss within 2% of the top-2 mixture's and not above the top-1 "
    "mixture's after as many steps, on 3 seeds, while its all-to-alls carry half of the bytes of "
    "top-2 and depend on none of the perceptron, the second attention and the shared expert, where "
    "those of top-2 wait for all of the backbone."
)
SETTINGS = (
    "Text: the topics of Python's own help, characters of ASCII, the last tenth for validation. "
    "Width 64, 4 heads, sequences of 32, batches of 8, 60 steps of Adam with the auxiliary loss. "
    "ScMoE, top-1 and top-2 each take the step size of one grid, 0.002 * 2^k, k = 0..3, whose "
    "validation loss is least after as many steps on seed 0, the other variants that of ScMoE; "
    "seeds 10 to 12 are reported."
)
VARIANTS = {
    "ScMoE": dd.ScMoEPair,
    "top-1": functools.partial(dd.TopKMoE, k=1),
    "top-2": dd.TopKMoE,
    "shared expert": dd.SharedExpertMoE,
    "ScMoE, k = 2": functools.partial(dd.ScMoEPair, k=2),
    "DGMoE": dd.DGMoEPair,
}
TUNED = ("ScMoE", "top-1", "top-2")
TUNING, REPORTED = 0, (10, 11, 12)
GRID = 0.002 * 2.0 ** np.arange(4)
DIM, HEADS, EXPERTS, LENGTH, BATCH, STEPS = 64, 4, 4, 32, 8, 60
SYMBOLS = 128
FAST = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}


class _Model(eqx.Module):
    embedding: jax.Array
    places: jax.Array
    pairs: dd.ScMoEPair  # or another; both on a leading axis
    norm: eqx.nn.LayerNorm

    def __init__(self, make, key):
        first, second, embed, place = jax.random.split(key, 4)
        self.embedding = jax.random.normal(embed, (SYMBOLS, DIM))
        self.places = jax.random.normal(place, (LENGTH, DIM))
        keys = jnp.stack([first, second])
        self.pairs = jax.vmap(lambda k: make(DIM, HEADS, EXPERTS, key=k))(keys)
        self.norm = eqx.nn.LayerNorm(DIM)

    def __call__(self, text):
        x, aux = jax.lax.scan(
            lambda x, pair: pair(x), self.embedding[text] + self.places, self.pairs
        )
        return jax.vmap(jax.vmap(self.norm))(x) @ self.embedding.T / 8, jnp.sum(aux)


def run() -> Outcome:
    text = "".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    text = np.frombuffer(text, np.uint8).astype(np.int32)
    cut = len(text) * 9 // 10
    losses, chosen = {}, {}
    for name, make in VARIANTS.items():
        after = functools.partial(
            _after, make, jax.jit(_train, compiler_options=FAST), jnp.asarray(text), cut
        )
        if name in TUNED:
            tuned = [after(step, TUNING) for step in GRID]
            chosen[name] = GRID[int(np.argmin(np.where(np.isfinite(tuned), tuned, np.inf)))]
        step = chosen.get(name, chosen["ScMoE"])
        losses[name] = np.array([after(step, seed) for seed in REPORTED])
    table = []
    for name, make in VARIANTS.items():
        reports = _reports(make)
        table.append(
            {
                "variant": name,
                "step size": float(chosen.get(name, chosen["ScMoE"])),
                **{
                    f"loss, seed {s}": float(v) for s, v in zip(REPORTED, losses[name], strict=True)
                },
                "bytes sent": sum(r.bytes for r in reports),
                "free share": min(r.independent for r in reports),
            }
        )
    quality = np.all(losses["ScMoE"] <= 1.02 * losses["top-2"]) and np.all(
        losses["ScMoE"] <= losses["top-1"]
    )
    ours, theirs = (_reports(VARIANTS[name]) for name in ("ScMoE", "top-2"))
    free = all({"mlp", "attention_2", "shared_expert"} <= r.beside for r in ours)
    bound = all({"attention_1", "mlp", "attention_2"} <= r.before for r in theirs)
    half = 2 * sum(r.bytes for r in ours) == sum(r.bytes for r in theirs)
    return Outcome(
        table,
        bool(quality and free and bound and half),
        "Validation loss in nats for each character. Bytes sent: of one pair of blocks forward, by "
        "one of 4 devices with 512 tokens each, at capacity 1. Free share: of the multiplications "
        "of the pair, what may run beside each all-to-all, at least. No seconds are claimed: on "
        "CPU nothing overlaps in time, and the TPU compiler overlaps all-to-alls only if asked to.",
        why="scale: after 60 steps of so small a model losses differ by more between seeds than "
        "between variants; ScMoE is ahead of top-2 on each seed, of top-1 on two of three",
    )


def _after(make, train, text, cut, step_size, seed):
    model, data = jax.random.split(jax.random.key(seed))
    return float(train(_Model(make, model), text[:cut], text[cut:], step_size, data))


def _train(model, text, validation, step_size, data_key):
    """Validation loss after training."""
    data_key, check_key = jax.random.split(data_key)
    optimizer = optax.adam(step_size)

    def batch(text, key, count):
        starts = jax.random.randint(key, (count,), 0, len(text) - LENGTH - 1)
        rows = jnp.asarray(text)[starts[:, None] + jnp.arange(LENGTH + 1)]
        return rows[:, :-1], rows[:, 1:]

    def loss(model, text, key, count, balance):
        x, y = batch(text, key, count)
        logits, aux = model(x)
        fit = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))
        return fit + balance * aux

    def step(carry, key):
        model, state = carry
        slope = jax.grad(loss)(model, text, key, BATCH, 1.0)
        change, state = optimizer.update(slope, state)
        return (optax.apply_updates(model, change), state), None

    keys = jax.random.split(data_key, STEPS)
    (model, _), _ = jax.lax.scan(step, (model, optimizer.init(model)), keys)
    checks = jax.random.split(check_key, 16)
    return jnp.mean(jax.lax.map(lambda k: loss(model, validation, k, BATCH, 0.0), checks))


def _reports(make):
    network = dd.Network.clients(4, AbstractMesh((4,), ("nodes",)), "nodes")
    key = jax.random.key(0)
    pair = jax.eval_shape(lambda: make(DIM, HEADS, EXPERTS, capacity_factor=1.0, key=key))
    x = jax.ShapeDtypeStruct((4, 8, 64, DIM), jnp.float32)
    return dd.overlap_report(jax.jit(lambda p, x: dd.expert_parallel(p, x, network)).trace(pair, x))
