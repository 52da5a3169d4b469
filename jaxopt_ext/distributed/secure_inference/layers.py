"""Layers of integers."""

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from ...core import checks
from .zero_knowledge import _integers


def quantize(a: Float[np.ndarray, "..."]) -> tuple[Int[np.ndarray, "..."], float]:
    """Integers of 8 bits and their unit: $a \\approx$ unit $\\cdot$ integers, the largest 127."""
    a = np.asarray(a, np.float64)
    unit = float(np.max(np.abs(a), initial=0)) / 127 or 1.0
    return np.round(a / unit).astype(np.int8), unit


def with_bias(
    matrix: Int[np.ndarray, "m n"], bias: Int[np.ndarray, " m"]
) -> Int[np.ndarray, "m n+1"]:
    """$W x + b$ as a matrix: the bias is a last column, and $x$ gets a last entry 1."""
    matrix, bias = _integers("matrix", matrix, 2), _integers("bias", bias, 1)
    return np.concatenate([matrix.astype(np.int64), bias.astype(np.int64)[:, None]], axis=1)


def convolution_matrix(
    kernel: Int[np.ndarray, "out in h w"], height: int, width: int
) -> Int[np.ndarray, "m n"]:
    """The matrix of a convolution of a ravelled image `(in, height, width)`, without padding, as
    networks define it: the kernel is not flipped.

    **Raises:** `ValueError` if the kernel is larger than the image.
    """
    kernel = _integers("kernel", kernel, 4)
    out, channels, h, w = kernel.shape
    rows, columns = height - h + 1, width - w + 1
    if min(rows, columns) < 1:
        raise ValueError(f"a kernel {(h, w)} is larger than an image {(height, width)}")
    matrix = np.zeros((out, rows, columns, channels, height, width), np.int64)
    for i in range(rows):
        for j in range(columns):
            matrix[:, i, j, :, i : i + h, j : j + w] = kernel
    return matrix.reshape(out * rows * columns, -1)


class IntegerLayer(eqx.Module):
    """$\\mathrm{clip}(\\mathrm{round}(2^{-s} (W x + b)))$ in integers, after $\\max(0, \\cdot)$ if
    `relu`: the same bit for bit on every machine.

    **Arguments:**

    - `matrix`: $W$, integers of 8 bits.
    - `bias`: $b$, integers.
    - `shift`: $s \\ge 0$; the result is clipped to 8 bits, but for `shift` = 0, where it stays as
      it is.
    - `relu`: whether negative entries become zero.
    """

    matrix: Int[np.ndarray, "m n"]
    bias: Int[np.ndarray, " m"]
    shift: int = eqx.field(static=True, default=0)
    relu: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        _integers("matrix", self.matrix, 2)
        _integers("bias", self.bias, 1)
        checks.count("shift", self.shift, 0)

    def __call__(self, x: Int[np.ndarray, "*batch n"]) -> Int[np.ndarray, "*batch m"]:
        return self.finish(np.asarray(x, np.int64) @ self.matrix.astype(np.int64).T + self.bias)

    def finish(self, y: Int[np.ndarray, "*batch m"]) -> Int[np.ndarray, "*batch m"]:
        """What is behind $W x + b$, which a verifier computes from the opened integers."""
        y = np.maximum(y, 0) if self.relu else y
        if not self.shift:
            return y
        return np.clip(y + (1 << self.shift - 1) >> self.shift, -128, 127)
