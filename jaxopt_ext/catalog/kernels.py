"""Rows of the kernels."""

import importlib

from .rows import KernelRow

KERNELS: tuple[KernelRow, ...] = (
    KernelRow(
        "Block-sparse times dense",
        "kernels.bcsr_matmul",
        "Blocked compressed sparse rows; Im, Yelick, Vuduc, Sparsity, 2004",
        lambda: importlib.import_module("jaxopt_ext_kernels.testing").BCSRMatmulCase(),
        claim="kernels/spmm",
    ),
)
