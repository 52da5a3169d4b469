"""Rows of the kernels."""

import importlib

from .shapes import KernelRow

KERNELS: tuple[KernelRow, ...] = (
    KernelRow(
        "Block-sparse times dense",
        "kernels.bcsr_matmul",
        "Blocked compressed sparse rows; Im, Yelick, Vuduc, Sparsity, 2004",
        lambda: importlib.import_module("jaxopt_ext_kernels.testing").BCSRMatmulCase(),
        claim="kernels/spmm",
    ),
    KernelRow(
        "SMaT",
        "kernels.spmm",
        "Okanovic, Kwasniewski, Sylos Labini, Besta, Vella, Hoefler, High Performance Unstructured "
        "SpMM Computation Using Tensor Cores, SC 2024, arXiv:2408.11551",
        lambda: importlib.import_module("jaxopt_ext_kernels.testing").SpMMCase(),
        system=("S090",),
        claim="kernels/reordered_spmm",
    ),
    KernelRow(
        "SMASH",
        "kernels.spgemm",
        "Bhattarai, SMASH: Sparse Matrix Atomic Scratchpad Hashing, 2021, arXiv:2105.14156",
        lambda: importlib.import_module("jaxopt_ext_kernels.testing").SpGEMMCase(),
        system=("S175",),
        claim="kernels/spgemm",
    ),
    KernelRow(
        "Polynomials of matrices",
        "kernels.matrix_polynomials",
        "Song, Sebe, Wang, Fast Differentiable Matrix Square Root, ICLR 2022, arXiv:2201.08663",
        lambda: importlib.import_module("jaxopt_ext_kernels.testing").MatrixPolynomialsCase(),
    ),
)
