"""Training of networks: parts that change what is trained, or with what numbers.

- Low precision: `pams_quantize` and `quantize_weights`, with derivatives; `QuantConv2d`, which
  trains in simulated integers and infers in true ones; `AlphaEMA` for the first range;
  `attention_transfer` from a teacher.
- Networks: `EDSR`, for super-resolution, in full precision or `quantized`.
"""

from .pams import (
    EDSR,
    AlphaEMA,
    QuantConv2d,
    attention_transfer,
    pams_quantize,
    quantize_weights,
)

__all__ = [
    "EDSR",
    "AlphaEMA",
    "QuantConv2d",
    "attention_transfer",
    "pams_quantize",
    "quantize_weights",
]
