"""A matrix unit of known behaviour, in software."""

import importlib
from typing import Any

import numpy as np

from ..shapes.function import AbstractFunctionCase


class WidthCase(AbstractFunctionCase):
    """The width and the rounding of an accumulator of so many bits."""

    def draw(self, seed: int, dtype: Any):
        return (np.asarray(11 + 3 * seed),)

    def call(self, *arguments):
        (bits,) = arguments

        def product(a, b, c):  # truncates
            exact = np.asarray(a, float) @ np.asarray(b, float) + np.asarray(c, float)
            mantissa, exponent = np.frexp(exact)
            return np.ldexp(np.trunc(mantissa * 2.0**bits), exponent - bits)

        probe = importlib.import_module("jaxopt_ext_kernels.microbench").accumulator_width
        found = probe(product)
        return np.asarray(found["bits"]), np.asarray(found["rounding"] == "truncation")

    def reference(self, *arguments):
        return arguments[0], np.asarray(True)
