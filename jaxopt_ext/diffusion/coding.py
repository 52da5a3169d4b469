"""Lossless coding with autoregressive diffusion models, on the host."""

import struct

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from ..core import checks
from .autoregressive import AbstractOrderModel

_BITS = 16  # of a probability
_LOW = np.uint64(1 << 31)  # states lie in [2^31, 2^63), and give and take 32 bits at a time
_WORD = np.uint64(32)


def compress(
    model: AbstractOrderModel,
    x: Int[Array | np.ndarray, "*n D"],
    key: PRNGKeyArray,
    policy: Int[Array, " b"] | None = None,
) -> bytes:
    """The bytes of one sample or of a batch, by range asymmetric numeral systems.

    The model is called once for each of the policy's calls and stages, on the whole batch; a sample
    takes about $-\\log_2 p(x \\mid \\varsigma)$ bits and at most 64 more, the batch 4 bytes more.
    The order $\\varsigma$ follows from the key, and is the same for the whole batch.

    The decoder must come to the same probabilities to the last bit: the same model, program and
    kind of machine.

    **Arguments:**

    - `model`: an `OrderAgnostic` or `Upscale` model of few enough classes, below $2^{15}$.
    - `x`: values, shape `(D,)` or `(n, D)`.
    - `key`: random key, known to the decoder.
    - `policy`: how many coordinates are known before each call; one a call if left out.

    **Returns:** the bytes.

    **Raises:** `ValueError` if values are out of range or a policy does not rise from 0.

    **Reference:** Hoogeboom, Gritsenko, Bastings, Poole, van den Berg, Salimans, Autoregressive
    Diffusion Models, 2022, arXiv:2110.02037; Duda, Asymmetric Numeral Systems, 2013,
    arXiv:1311.2540.
    """
    x = np.asarray(x)
    single = x.ndim == 1
    x = np.atleast_2d(x)
    if x.shape[1:] != (model.size,) or not np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"x must be whole numbers of shape (n, {model.size}), got {x.shape}")
    checks.interval("x", x, 0, model.num_classes - 1)
    x = jnp.asarray(x, jnp.int32)
    # What is written last is read first, so all intervals are found before any is written.
    intervals = []
    for stage, low, places, order in _calls(model, key, policy):
        counts = _counts(model, x, stage, low, order)
        symbols = np.asarray(_symbols(model, x, stage))
        for i in places:
            intervals.append(_interval(counts[:, i], symbols[:, i]))
    state = np.full(len(x), _LOW, np.uint64)
    words = []
    for start, count in reversed(intervals):
        full = state >= ((_LOW >> np.uint64(_BITS)) << _WORD) * count
        words.append(state[full].astype(np.uint32))
        state = np.where(full, state >> _WORD, state)
        state = ((state // count) << np.uint64(_BITS)) + state % count + start
    stream = np.concatenate(words[::-1]) if words else np.zeros(0, np.uint32)
    head = struct.pack("<I", 0 if single else len(x))
    return head + state.astype("<u8").tobytes() + stream.astype("<u4").tobytes()


def decompress(
    model: AbstractOrderModel,
    data: bytes,
    key: PRNGKeyArray,
    policy: Int[Array, " b"] | None = None,
) -> Int[np.ndarray, "*n D"]:
    """The values behind the bytes of `compress`, with the same model, key and policy.

    **Raises:** `ValueError` if the bytes are too few, too many, or not those of such a model.
    """
    if len(data) < 12:
        raise ValueError(f"data must have at least 12 bytes, got {len(data)}")
    (num,) = struct.unpack("<I", data[:4])
    lanes = max(num, 1)
    if len(data) < 4 + 8 * lanes or (len(data) - 4 - 8 * lanes) % 4:
        raise ValueError(f"{len(data)} bytes do not hold {lanes} samples")
    state = np.frombuffer(data, "<u8", lanes, 4).astype(np.uint64)
    stream = np.frombuffer(data, "<u4", offset=4 + 8 * lanes).astype(np.uint64)
    used = 0
    x = np.zeros((lanes, model.size), np.int32)
    mask = np.uint64((1 << _BITS) - 1)
    for stage, low, places, order in _calls(model, key, policy):
        canvas = jnp.asarray(x)
        counts = _counts(model, canvas, stage, low, order)
        symbols = np.zeros_like(x)
        for i in places:
            ends = np.cumsum(counts[:, i], -1)
            place = (state & mask).astype(np.int64)
            symbols[:, i] = (place[:, None] >= ends).sum(-1)
            start, count = _interval(counts[:, i], symbols[:, i])
            state = count * (state >> np.uint64(_BITS)) + (state & mask) - start
            empty = state < _LOW
            taken = stream[used : used + empty.sum()]
            if len(taken) < empty.sum():
                raise ValueError("data end before all values are decoded")
            state[empty] = (state[empty] << _WORD) | taken
            used += len(taken)
        drawn = np.asarray(_put(model, canvas, stage, jnp.asarray(symbols)))
        x[:, places] = drawn[:, places]
    if used != len(stream) or np.any(state != _LOW):
        raise ValueError("data are not those of this model, key and policy")
    return x[0] if num == 0 else x


def _calls(model, key, policy):
    """Stage, number of known coordinates, the coordinates drawn and the order, call by call."""
    keys = jax.random.split(key, model.stages)
    orders = [np.asarray(jax.random.permutation(k, model.size)) for k in keys]
    stages, lows, highs = (np.asarray(a) for a in model.calls(policy))
    for stage, low, high in zip(stages, lows, highs, strict=True):
        order = orders[stage]
        places = np.flatnonzero((order >= low) & (order < high))
        yield jnp.asarray(stage), jnp.asarray(low), places, jnp.asarray(order)


def _counts(model, x, stage, low, order):
    """Probabilities of all symbols as whole numbers of sum 2^16, each at least 1."""
    logs = np.asarray(_logs(model, x, stage, low, order), np.float64)
    size = logs.shape[-1]
    if np.any(np.isnan(logs)) or np.any(logs > 1e-3):  # whole numbers would hide it
        raise ValueError("probabilities cannot be coded: not finite")
    counts = np.floor(np.exp(logs) * ((1 << _BITS) - 2 * size)).astype(np.int64) + 1
    rest = (1 << _BITS) - counts.sum(-1, keepdims=True)
    if size > 1 << (_BITS - 1) or np.any(rest < 0):
        raise ValueError("probabilities cannot be coded: not finite, or too many classes")
    largest = np.argmax(counts, -1)[..., None]
    np.put_along_axis(counts, largest, np.take_along_axis(counts, largest, -1) + rest, -1)
    return counts


def _interval(counts, symbols):
    """Start and length of the symbols' intervals, one for each sample."""
    ends = np.cumsum(counts, -1)
    pick = lambda a: np.take_along_axis(a, symbols[:, None].astype(np.int64), -1)[:, 0]
    length = pick(counts)
    return (pick(ends) - length).astype(np.uint64), length.astype(np.uint64)


@eqx.filter_jit
def _logs(model, x, stage, low, order):
    one = lambda x: model.conditionals(x, stage, order < low, low)
    return jax.vmap(one)(x)


@eqx.filter_jit
def _symbols(model, x, stage):
    return jax.vmap(lambda x: model.symbols(x, stage))(x)


@eqx.filter_jit
def _put(model, x, stage, symbols):
    return jax.vmap(lambda x, s: model.put(x, stage, s))(x, symbols)
