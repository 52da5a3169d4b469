"""Rows of the dense kernels."""

import importlib

from .cases.products import FaultTolerantCase
from .rows import FunctionRow, KernelRow, Row

_FAULTS = (
    "Güney, Arslan, Fault-Tolerant Strassen-Like Matrix Multiplication, 2022, arXiv:2210.04441"
)


def _kernel(name: str, *arguments):
    return lambda: getattr(importlib.import_module("jaxopt_ext_kernels.testing"), name)(*arguments)


def _fifteen():
    # A code with a small table: another would be the same function.
    code = importlib.import_module("jaxopt_ext_kernels").FaultTolerantProduct
    return FaultTolerantCase(code(("strassen", "winograd"), [((0, 1, 0, -1), (0, 0, 1, 1))]))


KERNELS_PRODUCTS: tuple[Row, ...] = (
    KernelRow(
        "Strassen's product",
        "kernels.strassen_matmul",
        _FAULTS,
        _kernel("StrassenCase", "winograd"),
        claim="kernels/strassen",
        system=("S015",),
    ),
    FunctionRow(
        "Fault-tolerant Strassen-like product",
        "kernels.FaultTolerantProduct",
        _FAULTS,
        _fifteen,
        claim="kernels/strassen",
        system=("S015",),
    ),
)
