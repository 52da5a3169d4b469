"""Matrix and sparse kernels, each with a Pallas and an XLA body.

- `BCSR`: block-sparse matrices. `bcsr_matmul`: block-sparse times dense.
- `strassen_matmul`: dense products with fewer multiplications, by `bilinear` algorithms, each a
  `Bilinear`. `FaultTolerantProduct`: a code of them that survives lost workers,
  `distributed_matmul` spreads it over devices; `search_parities` and `relations` find what it
  stands on, `coded_products` is its kernel.
- `quantize`, `int8_matmul`, `int8_conv2d`: 8-bit integers, summed in 32.
- `microbench`: probes of the device's matrix unit, and a report of them.

A kernel is a pure function with one signature; `implementation=None` picks Pallas on TPU and GPU
and XLA on CPU, where Pallas is only interpreted. To add one: a file with both bodies and their
derivative, a dense reference in its tests, and a row in the catalogue.
"""

import importlib
from typing import TYPE_CHECKING

from .formats import BCSR
from .quantized import int8_conv2d, int8_matmul, quantize
from .spmm import bcsr_matmul
from .strassen import (
    Bilinear,
    FaultTolerantProduct,
    bilinear,
    coded_products,
    distributed_matmul,
    relations,
    search_parities,
    strassen_matmul,
)

if TYPE_CHECKING:
    from . import microbench as microbench

__all__ = [
    "BCSR",
    "Bilinear",
    "FaultTolerantProduct",
    "bcsr_matmul",
    "bilinear",
    "coded_products",
    "distributed_matmul",
    "int8_conv2d",
    "int8_matmul",
    "microbench",
    "quantize",
    "relations",
    "search_parities",
    "strassen_matmul",
]


def __getattr__(name: str):
    if name == "microbench":  # also a program, which must not be imported before it runs
        return importlib.import_module(".microbench", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
