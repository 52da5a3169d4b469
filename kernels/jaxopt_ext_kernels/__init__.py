"""Matrix and sparse kernels, each with a Pallas and an XLA body.

- `CSR`: sparse matrices in compressed rows, linear maps by `@`.
- `BCSR`: block-sparse matrices, cut from rows in an order that `reorder_rows` finds (`RowOrder`,
  `Permutation`).
- `spmm`: sparse times dense. `bcsr_matmul`: the same of blocks alone.
- `spgemm`: sparse times sparse (`SpGEMM`), in windows of rows planned by `spgemm_symbolic`
  (`SpGEMMPlan`).

A kernel is a pure function with one signature; `implementation=None` picks Pallas on TPU and GPU
and XLA on CPU, where Pallas is only interpreted. To add one: a file with both bodies and their
derivative, a dense reference in its tests, and a row in the catalogue.
"""

from .formats import BCSR, CSR, Permutation
from .reorder import RowOrder, reorder_rows
from .spgemm import SpGEMM, SpGEMMPlan, spgemm, spgemm_symbolic
from .spmm import bcsr_matmul, spmm

__all__ = [
    "BCSR",
    "CSR",
    "Permutation",
    "RowOrder",
    "SpGEMM",
    "SpGEMMPlan",
    "bcsr_matmul",
    "reorder_rows",
    "spgemm",
    "spgemm_symbolic",
    "spmm",
]
