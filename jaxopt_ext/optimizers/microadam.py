"""MicroAdam: Adam from a short window of sparse gradients, the rest fed back in four bits."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ..core import checks
from ._leafwise import (
    init_leaves,
    is_zero,
    leafwise_transformation,
    one_minus_power,
    rate_at,
    wide,
)
from .quantize import (
    Quantized4Bit,
    block_positions,
    dequantize_4bit,
    empty_4bit,
    index_dtype,
    quantize_4bit,
    topk_blocks,
    topk_counts,
)


class LeafState(NamedTuple):
    """State of one leaf of d entries.

    - `indices`, `values`: the last m sparse gradients, one a row, as `topk_blocks` gives them.
    - `error`: what they left out: 4-bit codes, d numbers, or `None`.
    """

    indices: Int[Array, "m k"]
    values: Float[Array, "m k"]
    error: Quantized4Bit | Float[Array, " d"] | None


class MicroAdamState(NamedTuple):
    """State of `microadam`: a counter, a key for stochastic rounding, one `LeafState` a leaf."""

    count: Int[Array, ""]
    key: Key[Array, ""] | None
    leaves: PyTree[LeafState]


def microadam(
    learning_rate: optax.ScalarOrSchedule,
    m: int = 10,
    k: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    quant_block_size: int = 64,
    topk_block_size: int = 32768,
    error_feedback: Literal["4bit", "dense", "none"] = "4bit",
    rounding: Literal["nearest", "stochastic"] = "nearest",
    value_dtype: Any = jnp.bfloat16,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose moments are summed anew at each step from the last m sparse gradients.

    Each leaf is flattened. The gradient plus the error kept from before, a = g + e, is cut into
    blocks; the fraction k of largest magnitude of each goes to the window, and what is left is the
    new error, kept as 4-bit codes between the extremes of small buckets. With V_r the sparse vector
    of age r in the window (0 the newest) and t counting from 1,

    $$\hat m = \frac{1-β_1}{1-β_1^t} \sum_{r<m} β_1^r V_r, \quad
    \hat v = \frac{1-β_2}{1-β_2^t} \sum_{r<m} β_2^r V_r^2, \quad
    θ = (1 - ηλ) θ - η \frac{\hat m}{ε + \sqrt{\hat v}}.$$

    Entries that are nowhere in the window do not move. With k = 1 and m above the number of steps
    it is Adam.

    **Arguments:**

    - `learning_rate`: η, a number or a schedule.
    - `m`: length of the window.
    - `k`: fraction kept of each block, in (0, 1]; at least one entry.
    - `b1`, `b2`, `eps`: β₁, β₂, ε.
    - `weight_decay`: λ, decoupled.
    - `quant_block_size`: entries per bucket of the error. Larger is smaller (two floats per bucket)
      and coarser; the authors' runs use very large ones.
    - `topk_block_size`: entries per block of the selection; up to 32768, indices take two bytes.
    - `error_feedback`: `"4bit"`; `"dense"` keeps the error exactly; `"none"` drops it.
    - `rounding`: of the codes: `"nearest"`, or `"stochastic"`, the theory's unbiased quantizer.
    - `value_dtype`: of the window's values; two bytes by default.
    - `seed`: for stochastic rounding.

    **Returns:** a gradient transformation. The state of d parameters takes 4 m k d bytes for the
    window, d/2 for the codes and 8 d / `quant_block_size` for their ranges: with the defaults about
    1.03 d bytes, where Adam's takes 8 d.

    **Raises:** `ValueError` on bad hyperparameters, and from `update` if `weight_decay` is used
    without `params`; `TypeError` from `init` on complex leaves.

    **Reference:** Modoranu, Safaryan, Malinovsky, Kurtic, Robert, Richtárik, Alistarh, MicroAdam:
    Accurate Adaptive Optimization with Low Space Overhead and Provable Convergence, 2024,
    arXiv:2405.15593.
    """
    if not callable(learning_rate):
        checks.nonnegative("learning_rate", learning_rate)
    checks.count("m", m)
    checks.interval("k", k, 0.0, 1.0, open_low=True)
    checks.interval("b1", b1, 0.0, 1.0, open_high=True)
    checks.interval("b2", b2, 0.0, 1.0, open_high=True)
    checks.positive("eps", eps)
    checks.nonnegative("weight_decay", weight_decay)
    checks.count("quant_block_size", quant_block_size)
    checks.count("topk_block_size", topk_block_size)
    if error_feedback not in ("4bit", "dense", "none"):
        raise ValueError(
            f"error_feedback must be '4bit', 'dense' or 'none', got {error_feedback!r}"
        )
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding must be 'nearest' or 'stochastic', got {rounding!r}")

    def init_leaf(path, leaf):
        if jnp.iscomplexobj(leaf):
            raise TypeError(f"microadam needs real parameters, got {leaf.dtype} at {path}")
        dtype, d = wide(leaf.dtype), leaf.size
        full, many, few = topk_counts(d, topk_block_size, k)
        shape = (m, full * many + few)
        error = {
            "4bit": lambda: empty_4bit(d, quant_block_size, dtype),
            "dense": lambda: jnp.zeros(d, dtype),
            "none": lambda: None,
        }[error_feedback]()
        return LeafState(
            jnp.zeros(shape, index_dtype(topk_block_size)), jnp.zeros(shape, value_dtype), error
        )

    def init(params) -> Any:
        return MicroAdamState(
            jnp.zeros((), jnp.int32),
            jax.random.key(seed) if rounding == "stochastic" else None,
            init_leaves(params, init_leaf),
        )

    def compress(left, state, index):
        """The new error from what the window did not take."""
        if error_feedback == "4bit":
            key = None
            if rounding == "stochastic":
                key = jax.random.fold_in(jax.random.fold_in(state.key, state.count), index)
            return quantize_4bit(left, quant_block_size, key)
        return left if error_feedback == "dense" else None

    def update_leaf(state, index, gradient, leaf, value):
        dtype, d = gradient.dtype, gradient.size
        a = gradient.reshape(-1)
        if error_feedback == "4bit":
            a = a + dequantize_4bit(leaf.error, d, quant_block_size)
        elif error_feedback == "dense":
            a = a + leaf.error
        relative, taken = topk_blocks(a, topk_block_size, k)
        left = a.at[block_positions(relative, d, topk_block_size, k)].set(
            0, unique_indices=True, mode="promise_in_bounds"
        )
        row = state.count % m
        indices = leaf.indices.at[row].set(relative)
        values = leaf.values.at[row].set(taken.astype(leaf.values.dtype))

        age = (row - jnp.arange(m)) % m
        window = values.astype(dtype)
        positions = block_positions(indices, d, topk_block_size, k)
        weigh = lambda decay: (decay ** age.astype(dtype))[:, None]
        total = lambda x: jnp.zeros(d, dtype).at[positions].add(x, mode="promise_in_bounds")
        steps = state.count.astype(dtype) + 1
        mean = total(weigh(b1) * window) * ((1 - b1) / one_minus_power(b1, steps))
        square = total(weigh(b2) * window**2) * ((1 - b2) / one_minus_power(b2, steps))
        rate = rate_at(learning_rate, state.count, dtype)
        step = -rate * (mean / (eps + jnp.sqrt(square))).reshape(gradient.shape)
        if not is_zero(weight_decay):
            step = step - rate * weight_decay * value
        return step, LeafState(indices, values, compress(left, state, index))

    return leafwise_transformation(init, update_leaf, weight_decay)
