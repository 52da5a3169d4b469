"""Rows of the kernels."""

import importlib

from .row import Row

KERNELS: tuple[Row, ...] = (
    Row(
        "Block-sparse times dense",
        "kernels.bcsr_matmul",
        "kernel",
        "Blocked compressed sparse rows; Im, Yelick, Vuduc, Sparsity, 2004",
        lambda: importlib.import_module("jaxopt_ext_kernels.testing").BCSRMatmulCase(),
        claim="kernels/spmm",
    ),
)
