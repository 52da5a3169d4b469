"""Rows of the dense kernels."""

import importlib

import jaxopt_ext as jxt

from .cases.microbench import WidthCase
from .cases.products import FaultTolerantCase
from .cases.quantized import AttentionCase, QuantizeCase, QuantizedConvolutionCase
from .shapes import FunctionRow, KernelRow, Row

_FAULTS = (
    "Güney, Arslan, Fault-Tolerant Strassen-Like Matrix Multiplication, 2022, arXiv:2210.04441"
)
_PAMS = (
    "Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via Parameterized Max "
    "Scale, 2020, arXiv:2011.04212"
)
_PROBES = (
    "Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks: Latency, "
    "Throughput and Numeric Behaviors, 2023, arXiv:2206.02874"
)
_INTEGERS = {
    "types": "takes 8-bit integers only",
    "derivatives": "a function of integers has no derivative",
}
_ROUNDED = {"gradient": "looks through the rounding, so it is none of a difference"}


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
    KernelRow(
        "8-bit product",
        "kernels.int8_matmul",
        _PAMS,
        _kernel("Int8MatmulCase"),
        claim="training/pams",
        system=("S178",),
        opt_outs=_INTEGERS,
    ),
    KernelRow(
        "8-bit convolution",
        "kernels.int8_conv2d",
        _PAMS,
        _kernel("Int8Conv2dCase", 2, 1),
        claim="training/pams",
        system=("S178",),
        opt_outs=_INTEGERS,
    ),
    FunctionRow(
        "Parameterized max scale (PAMS)",
        "training.pams_quantize",
        _PAMS,
        lambda: QuantizeCase(jxt.training.pams_quantize),
        claim="training/pams",
        system=("S178",),
        opt_outs=_ROUNDED,
    ),
    FunctionRow(
        "Quantized convolution",
        "training.QuantConv2d",
        _PAMS,
        lambda: QuantizedConvolutionCase(jxt.training.QuantConv2d),
        claim="training/pams",
        system=("S178",),
        opt_outs=_ROUNDED,
    ),
    FunctionRow(
        "Structured knowledge transfer",
        "training.attention_transfer",
        _PAMS,
        lambda: AttentionCase(jxt.training.attention_transfer),
        claim="training/pams",
        system=("S178",),
    ),
    KernelRow(
        "Chained products",
        "kernels.microbench.chained_dot",
        _PROBES,
        _kernel("ChainedDotCase"),
        claim="kernels/microbench",
        system=("S144",),
        opt_outs={"derivatives": "what is timed is the product, not its derivative"},
    ),
    FunctionRow(
        "Probe of an accumulator",
        "kernels.microbench.accumulator_width",
        _PROBES,
        WidthCase,
        claim="kernels/microbench",
        system=("S144",),
        host="asks a unit, which may be a model in software, for one product after another",
        opt_outs={
            "single": "a measurement has no precision of its own",
            "dtype": "a measurement has no precision of its own",
            "gradient": "a number of bits has no derivative",
            "nan": "gives integers, which have no NaN",
        },
    ),
)
