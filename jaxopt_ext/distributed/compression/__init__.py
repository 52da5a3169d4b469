"""Messages of few bits.

A compressor is a module: `compress(x, key)` gives a message, a pytree of static shape that is as
small in memory as `bits(shape)` says; `decompress(message, shape)` tells what it means; calling
the compressor does both. `delta(shape)` or `omega(shape)` says how much is lost:

- contractive: $E\\|C(x) - x\\|^2 \\le (1 - \\delta)\\|x\\|^2$;
- unbiased: $E\\,C(x) = x$ and $E\\|C(x) - x\\|^2 \\le \\omega\\|x\\|^2$; `Scaled` makes it
  contractive with $\\delta = 1/(1 + \\omega)$.

$x$ is a pytree of real arrays. Each leaf is a vector of its own, or with `per_leaf=False` all
leaves together are one. A zero gives zero, and a NaN stays visible.

- Some entries: `TopK`, `BlockTopK`, `RandK`, `RandBlock`.
- All entries, roughly: `ScaledSign`, `QSGD`, `Natural`, `Grid` (absolute error).
- Matrices: `LowRank`, `UnbiasedLowRank`, `Atomo`.
- `Identity`.

Use `TopK` or `LowRank` with error feedback for gradients, `QSGD`, `Natural` or `RandK` with
`unbiased=True` without, and `Grid` where an error must not grow with the value.

**Memory.** `LowRank` starts each message from the last one. Such a compressor has
`init(x, key) -> state`, `compress(x, key, state)` and `advance(state, message) -> state`; the state
of all others is empty. What it becomes depends on messages only, so receivers could follow it.

**Keys.** Where `shared_key`, randomness is not sent: sender and receivers must have one key, which
`decompress(message, shape, key)` needs, and messages of one key may be averaged as they are.

**Error feedback** is a rule apart from the compressor. A rule has

- for the sender `init(start, compressor, key) -> state` and
  `apply(state, value, compressor, key) -> (message, state)`;
- for receivers `listen(start) -> memory` and `receive(memory, increment) -> (estimate, memory)`,
  linear, where the increment is the decompressed message, or the mean of many.

Rules: `NoFeedback`, `EF14`, `EF21`, `ErrorControl`. A reference $h^*$ known to all, as in ideal
error control, is `EF14` on $v - h^*$, with $h^*$ added to the estimate. `ChocoGossip` is averaging
over a network with the copies of `EF21`, or another rule; `distributed.CompressedGossip` puts it
under any algorithm that mixes.

`mean_message` is the mean of all nodes' messages at all nodes, `mean_message_over` over an axis of
`shard_map`; what travels is packed. `message_keys` are the keys to compress with.
"""

from .average import mean_message, mean_message_over, message_keys
from .choco import ChocoGossip
from .compressor import AbstractCompressor, Identity, Scaled
from .feedback import EF14, EF21, AbstractFeedback, ErrorControl, FeedbackState, NoFeedback
from .low_rank import Atomo, LowRank, LowRankMessage, UnbiasedLowRank
from .quantizers import QSGD, Grid, Natural, QuantizedMessage, ScaledSign
from .sparse import BlockTopK, RandBlock, RandK, SparseMessage, TopK

__all__ = [
    "EF14",
    "EF21",
    "QSGD",
    "AbstractCompressor",
    "AbstractFeedback",
    "Atomo",
    "BlockTopK",
    "ChocoGossip",
    "ErrorControl",
    "FeedbackState",
    "Grid",
    "Identity",
    "LowRank",
    "LowRankMessage",
    "Natural",
    "NoFeedback",
    "QuantizedMessage",
    "RandBlock",
    "RandK",
    "Scaled",
    "ScaledSign",
    "SparseMessage",
    "TopK",
    "UnbiasedLowRank",
    "mean_message",
    "mean_message_over",
    "message_keys",
]
