"""Matrix and sparse kernels, each with a Pallas and an XLA body.

- `CSR`: sparse matrices in compressed rows, linear maps by `@`.
- `BCSR`: block-sparse matrices, cut from rows in an order that `reorder_rows` finds (`RowOrder`,
  `Permutation`).
- `spmm`: sparse times dense. `bcsr_matmul`: the same of blocks alone.
- `strassen_matmul`: dense products with fewer multiplications, by `bilinear` algorithms, each a
  `Bilinear`. `FaultTolerantProduct`: a code of them that survives lost workers,
  `distributed_matmul` spreads it over devices; `search_parities` and `relations` find what it
  stands on, `coded_products` is its kernel.
- `spgemm`: sparse times sparse (`SpGEMM`), in windows of rows planned by `spgemm_symbolic`
  (`SpGEMMPlan`), with a `ProductRecord` where the places stay; `HashTable` says how it merges.
- `matrix_polynomials`: polynomials of small matrices that share their powers.
- `quantize`, `int8_matmul`, `int8_conv2d`: 8-bit integers, summed in 32.
- `microbench`: probes of the device's matrix unit, and a report of them.

A kernel is a pure function with one signature; `implementation=None` picks Pallas on TPU and GPU
and XLA on CPU, where Pallas is only interpreted. To add one: a file with both bodies and their
derivative, a dense reference in its tests, and a row in the catalogue.
"""

import importlib
from typing import TYPE_CHECKING

from .formats import BCSR, CSR, Permutation
from .polynomials import matrix_polynomials
from .quantized import int8_conv2d, int8_matmul, quantize
from .reorder import RowOrder, reorder_rows
from .spgemm import HashTable, ProductRecord, SpGEMM, SpGEMMPlan, spgemm, spgemm_symbolic
from .spmm import bcsr_matmul, spmm
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
    "CSR",
    "Bilinear",
    "FaultTolerantProduct",
    "HashTable",
    "Permutation",
    "ProductRecord",
    "RowOrder",
    "SpGEMM",
    "SpGEMMPlan",
    "bcsr_matmul",
    "bilinear",
    "coded_products",
    "distributed_matmul",
    "int8_conv2d",
    "int8_matmul",
    "matrix_polynomials",
    "microbench",
    "quantize",
    "relations",
    "reorder_rows",
    "search_parities",
    "spgemm",
    "spgemm_symbolic",
    "spmm",
    "strassen_matmul",
]


def __getattr__(name: str):
    if name == "microbench":  # also a program, which must not be imported before it runs
        return importlib.import_module(".microbench", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
