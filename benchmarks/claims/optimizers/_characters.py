"""A small character transformer on the help texts of the standard library."""

import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._seeds import TUNING, keys

CONTEXT, WIDTH, LAYERS, HEADS, BATCH = 32, 32, 2, 4, 16


def _load():
    text = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8)[:300_000]
    letters, numbers = np.unique(codes, return_inverse=True)
    cut = 9 * len(numbers) // 10
    return (
        len(letters),
        jnp.asarray(numbers[:cut], jnp.int32),
        jnp.asarray(numbers[cut:], jnp.int32),
    )


VOCABULARY, TRAIN, VALID = _load()


def network(key):
    """Parameters: matrices with 1/sqrt(n) entries, and the two scales of each block."""
    keys = iter(jax.random.split(key, 3 + 4 * LAYERS))
    draw = lambda m, n: jax.random.normal(next(keys), (m, n), jnp.float32) / m**0.5
    block = lambda: {
        "qkv": draw(WIDTH, 3 * WIDTH),
        "out": draw(WIDTH, WIDTH),
        "up": draw(WIDTH, 4 * WIDTH),
        "down": draw(4 * WIDTH, WIDTH),
        "scales": jnp.ones((2, WIDTH), jnp.float32),
    }
    return {
        "letters": draw(VOCABULARY, WIDTH),
        "places": draw(CONTEXT, WIDTH),
        "blocks": [block() for _ in range(LAYERS)],
        "head": draw(WIDTH, VOCABULARY),
    }


def _normed(x, scale):
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def logits(params, letters):
    """Scores of the next letter after each prefix of one sequence."""
    length = letters.shape[0]
    x = params["letters"][letters] + params["places"][:length]
    past = jnp.tril(jnp.ones((length, length), bool))
    for block in params["blocks"]:
        qkv = _normed(x, block["scales"][0]) @ block["qkv"]
        q, k, v = jnp.split(qkv.reshape(length, HEADS, -1), 3, axis=-1)
        scores = jnp.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(past, scores, -1e9))
        x = x + jnp.einsum("hij,jhd->ihd", weights, v).reshape(length, -1) @ block["out"]
        x = x + jax.nn.gelu(_normed(x, block["scales"][1]) @ block["up"]) @ block["down"]
    return _normed(x, 1.0) @ params["head"]


def loss(params, sequences):
    """Cross-entropy in nats per letter of a batch of sequences of CONTEXT + 1 letters."""
    scores = jax.vmap(lambda s: logits(params, s[:-1]))(sequences)
    return optax.softmax_cross_entropy_with_integer_labels(scores, sequences[:, 1:]).mean()


def draw(text, key, size=BATCH):
    """Sequences from random places."""
    starts = jax.random.randint(key, (size,), 0, text.shape[0] - CONTEXT - 1)
    return jax.vmap(lambda s: jax.lax.dynamic_slice(text, (s,), (CONTEXT + 1,)))(starts)


def train(tx, key, num_steps, every):
    """Validation loss after every `every` steps."""
    init_key, data_key, valid_key = jax.random.split(key, 3)
    params = network(init_key)
    held_out = draw(VALID, valid_key, 256)

    def step(carry, key):
        params, state = carry
        gradient = jax.grad(loss)(params, draw(TRAIN, key))
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def stretch(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, loss(carry[0], held_out)

    keys = jax.random.split(data_key, num_steps).reshape(-1, every)
    return jax.lax.scan(stretch, (params, tx.init(params)), keys)[1]


def race(method, rates, num_steps, count=TUNING):
    """Final validation losses of `method(rate)`.

    **Returns:** by rate, the means over the keys to choose on; the rate that is chosen by them; and
    its mean over `count` keys to report.
    """
    one = lambda rate, key: train(method(rate), key, num_steps, num_steps)[-1]
    mean = jax.jit(lambda rate, keys: jax.vmap(lambda key: one(rate, key))(keys).mean())
    both = keys(count)
    tuning = [float(mean(rate, both[:TUNING])) for rate in rates]
    rate = rates[int(np.nanargmin(tuning))]
    return tuning, rate, float(mean(rate, both[TUNING:]))
