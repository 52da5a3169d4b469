"""Matrix and sparse kernels, each with a Pallas and an XLA body.

- `CSR`: sparse matrices in compressed rows, linear maps by `@`.
- `BCSR`: block-sparse matrices. `bcsr_matmul`: block-sparse times dense.

A kernel is a pure function with one signature; `implementation=None` picks Pallas on TPU and GPU
and XLA on CPU, where Pallas is only interpreted. To add one: a file with both bodies and their
derivative, a dense reference in its tests, and a row in the catalogue.
"""

from .formats import BCSR, CSR
from .spmm import bcsr_matmul

__all__ = ["BCSR", "CSR", "bcsr_matmul"]
