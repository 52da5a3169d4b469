"""What the conformance suite asks of a kernel."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .formats import BCSR, CSR
from .microbench import chained_dot
from .polynomials import matrix_polynomials
from .quantized import int8_conv2d, int8_matmul
from .spgemm import spgemm, spgemm_symbolic
from .spmm import Implementation, bcsr_matmul, spmm
from .strassen import strassen_matmul


def _array(numbers, dtype):
    """On the device; the type is changed on the host, which compiles nothing."""
    return jax.device_put(np.asarray(numbers).astype(dtype))


def _with_type(matrix, dtype):
    return eqx.tree_at(lambda m: m.values, matrix, _array(matrix.values, dtype))


class AbstractKernelCase(eqx.Module):
    """A kernel with a way to draw inputs and a dense reference."""

    @abc.abstractmethod
    def draw(self, seed: int, dtype: Any) -> tuple[Any, ...]:
        """Arguments of a random shape, empty and ragged ones included."""

    @abc.abstractmethod
    def large(self, dtype: Any) -> tuple[Any, ...]:
        """Arguments of a shape that suits accelerators."""

    @abc.abstractmethod
    def call(self, *arguments: Any, implementation: str | None = None) -> Array:
        """The kernel."""

    @abc.abstractmethod
    def reference(self, *arguments: Any) -> Any:
        """The same by dense algebra that shares no code with the kernel."""

    def compare(self, found: Any, wanted: Any, tolerance: float) -> None:
        """Fail unless a result equals its reference, leaf by leaf: integers exactly, numbers within
        a relative and absolute tolerance."""
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert np.shape(a) == np.shape(b), (np.shape(a), np.shape(b))
            close = tolerance if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else 0
            np.testing.assert_allclose(a, b, rtol=close, atol=close)

    @abc.abstractmethod
    def differentiable(self, *arguments: Any) -> list[Array]:
        """The arrays that the kernel has derivatives in."""

    @abc.abstractmethod
    def replace(self, arguments: tuple[Any, ...], arrays: list[Array]) -> tuple[Any, ...]:
        """The arguments with those arrays in them."""


class BCSRMatmulCase(AbstractKernelCase):
    """`bcsr_matmul`."""

    def _make(self, rng, shape, block, k, density, dtype):
        mask = rng.random((-(-shape[0] // block[0]), -(-shape[1] // block[1]))) < density
        mask = np.kron(mask, np.ones(block))[: shape[0], : shape[1]]
        matrix = (mask * rng.normal(size=shape)).astype(np.float64)
        dense = _array(rng.normal(size=(shape[1], k)), dtype)
        return _with_type(BCSR.from_dense(matrix, block), dtype), dense

    def draw(self, seed, dtype):
        rng = np.random.default_rng(seed)
        block = tuple(int(b) for b in rng.integers(1, 6, 2))
        shape = tuple(int(s) for s in rng.integers(0, 14, 2))
        return self._make(
            rng, shape, block, int(rng.integers(0, 5)), rng.choice([0, 0.3, 1]), dtype
        )

    def large(self, dtype):
        return self._make(np.random.default_rng(0), (256, 512), (16, 128), 256, 0.3, dtype)

    def call(self, *arguments, implementation: Implementation = None):
        return bcsr_matmul(*arguments, implementation=implementation)

    def reference(self, *arguments):
        matrix, dense = arguments
        return _assembled(matrix) @ np.asarray(dense, np.float64)

    def differentiable(self, *arguments):
        return [arguments[0].values, arguments[1]]

    def replace(self, arguments, arrays):
        return eqx.tree_at(lambda s: s.values, arguments[0], arrays[0]), arrays[1]


class SpMMCase(AbstractKernelCase):
    """`spmm` of blocks cut from rows and columns in any order."""

    def _make(self, seed, mask, block, k, dtype):
        orders = [np.random.default_rng(0).permutation(size) for size in mask.shape]
        rng = np.random.default_rng(seed)
        matrix = CSR.from_dense(mask * rng.normal(size=mask.shape))
        sparse = BCSR.from_csr(matrix, block, *orders)
        return _with_type(sparse, dtype), _array(rng.normal(size=(mask.shape[1], k)), dtype)

    def draw(self, seed, dtype):
        # Three patterns, because each is compiled: entries here and there, full, and without rows.
        shape, block, k, density = [
            ((11, 7), (4, 2), 3, 0.2),
            ((5, 9), (2, 3), 2, 1),
            ((0, 3), (2, 2), 1, 1),
        ][seed % 3]
        mask = np.random.default_rng(0).random(shape) < density
        return self._make(seed, mask, block, k, dtype)

    def large(self, dtype):
        mask = np.random.default_rng(0).random((256, 512)) < 2e-4
        return self._make(0, mask, (16, 128), 256, dtype)

    def call(self, *arguments, implementation: Implementation = None):
        return spmm(*arguments, implementation=implementation)

    def reference(self, *arguments):
        matrix, dense = arguments
        blocks = _assembled(matrix)
        out = np.zeros(blocks.shape)
        rows, columns = (np.asarray(p.order) for p in (matrix.row_order, matrix.column_order))
        out[np.ix_(rows, columns)] = blocks
        return out @ np.asarray(dense, np.float64)

    def differentiable(self, *arguments):
        return [arguments[0].values, arguments[1]]

    def replace(self, arguments, arrays):
        return eqx.tree_at(lambda s: s.values, arguments[0], arrays[0]), arrays[1]


class SpGEMMCase(AbstractKernelCase):
    """`spgemm`, its result made dense; its own tests look at the places."""

    def _make(self, seed, sizes, density, window, dtype):
        m, k, n = sizes
        rng = np.random.default_rng(0)
        masks = rng.random((m, k)) < density, rng.random((k, n)) < density
        rng = np.random.default_rng(seed)
        factors = [CSR.from_dense(mask * rng.normal(size=mask.shape)) for mask in masks]
        plan = spgemm_symbolic(*factors, window=window)
        return *(_with_type(a, dtype) for a in factors), plan

    def draw(self, seed, dtype):
        # Three patterns, because each is compiled: some empty rows, one full window, no product.
        sizes, density, window = [
            ((9, 6, 7), 0.3, 10),
            ((3, 5, 4), 1, 64),
            ((3, 0, 2), 1, 4),
        ][seed % 3]
        return self._make(seed, sizes, density, window, dtype)

    def large(self, dtype):
        return self._make(0, (16, 20, 24), 0.1, 60, dtype)

    def call(self, *arguments, implementation: Implementation = None):
        return spgemm(*arguments, implementation=implementation).matrix.todense()

    def reference(self, *arguments):
        A, B = (_spread(matrix) for matrix in arguments[:2])
        return A @ B

    def differentiable(self, *arguments):
        return [matrix.values for matrix in arguments[:2]]

    def replace(self, arguments, arrays):
        factors = zip(arguments[:2], arrays, strict=True)
        return *(matrix.with_values(values) for matrix, values in factors), arguments[2]


def _spread(matrix):
    """The entries, each in its place."""
    out = np.zeros(matrix.shape)
    np.add.at(out, (np.asarray(matrix.rows), np.asarray(matrix.columns)), np.asarray(matrix.values))
    return out


def _assembled(matrix):
    """The blocks, where they are cut."""
    m, n = matrix.shape
    r, c = matrix.block
    out = np.zeros((matrix.block_rows * r, max(matrix.block_columns * c, n)))
    for value, i, j in zip(
        *map(np.asarray, (matrix.values, matrix.rows, matrix.columns)), strict=True
    ):
        out[i * r : (i + 1) * r, j * c : (j + 1) * c] += np.asarray(value, np.float64)
    return out[:m, :n]


class StrassenCase(AbstractKernelCase):
    """`strassen_matmul`, one level.

    **Arguments:**

    - `algorithm`: its name.
    """

    algorithm: str = eqx.field(static=True)

    def _make(self, rng, sizes, dtype):
        m, n, k = sizes
        return tuple(_array(rng.normal(size=s), dtype) for s in ((m, n), (n, k)))

    def draw(self, seed, dtype):
        # Few shapes, because each is compiled: odd, one row, empty in each place.
        sizes = [(5, 6, 3), (1, 4, 7), (0, 2, 3), (3, 0, 2), (2, 3, 0)][seed % 5]
        return self._make(np.random.default_rng(seed), sizes, dtype)

    def large(self, dtype):
        return self._make(np.random.default_rng(0), (256, 512, 256), dtype)

    def call(self, *arguments, implementation: Implementation = None):
        return strassen_matmul(*arguments, algorithm=self.algorithm, implementation=implementation)

    def reference(self, *arguments):
        A, B = (np.asarray(x, np.float64) for x in arguments)
        return A @ B

    def differentiable(self, *arguments):
        return list(arguments)

    def replace(self, arguments, arrays):
        return tuple(arrays)


class Int8MatmulCase(AbstractKernelCase):
    """`int8_matmul`; the type asked for is not looked at."""

    def _make(self, seed, m, n, k):
        rng = np.random.default_rng(seed)
        return tuple(_array(rng.integers(-128, 128, s), jnp.int8) for s in ((m, n), (n, k)))

    def draw(self, seed, dtype):
        # Few shapes, because each is compiled.
        m, n, k = [(5, 131, 3), (1, 4, 7), (3, 0, 2), (0, 2, 3)][seed % 4]
        return self._make(seed, m, n, k)

    def large(self, dtype):
        return self._make(0, 256, 512, 128)

    def call(self, *arguments, implementation: Implementation = None):
        return int8_matmul(*arguments, implementation=implementation)

    def reference(self, *arguments):
        x, w = (np.asarray(a, np.int64) for a in arguments)
        return x @ w

    def differentiable(self, *arguments):
        return []

    def replace(self, arguments, arrays):
        return arguments


class Int8Conv2dCase(AbstractKernelCase):
    """`int8_conv2d`; the type asked for is not looked at.

    **Arguments:**

    - `stride`, `padding`: of the convolution.
    """

    stride: int = eqx.field(static=True)
    padding: int = eqx.field(static=True)

    def _make(self, seed, images, filters):
        rng = np.random.default_rng(seed)
        return tuple(_array(rng.integers(-128, 128, s), jnp.int8) for s in (images, filters))

    def draw(self, seed, dtype):
        images, filters = [
            ((2, 3, 7, 6), (4, 3, 3, 3)),
            ((1, 1, 1, 4), (1, 1, 1, 2)),
            ((0, 2, 3, 3), (2, 2, 3, 3)),
        ][seed % 3]
        return self._make(seed, images, filters)

    def large(self, dtype):
        return self._make(0, (2, 32, 16, 16), (64, 32, 3, 3))

    def call(self, *arguments, implementation: Implementation = None):
        images, filters = arguments
        return int8_conv2d(
            images, filters, self.stride, self.padding, implementation=implementation
        )

    def reference(self, *arguments):
        x, w = (np.asarray(a, np.int64) for a in arguments)
        x = np.pad(x, ((0, 0), (0, 0), (self.padding,) * 2, (self.padding,) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
        return np.einsum("bcijkl,ockl->boij", windows[:, :, :: self.stride, :: self.stride], w)

    def differentiable(self, *arguments):
        return []

    def replace(self, arguments, arrays):
        return arguments


class ChainedDotCase(AbstractKernelCase):
    """`chained_dot`, two chains of two steps."""

    def _make(self, seed, sizes, dtype):
        p, m, n = sizes
        rng = np.random.default_rng(seed)
        draw = lambda *s: _array(rng.normal(size=s), dtype)
        a = _array(rng.normal(size=(m, m)) / max(1, 2 * m**0.5), dtype)
        return a, draw(p, m, n), draw(p, m, n), _array(2, jnp.int32)

    def draw(self, seed, dtype):
        # Few shapes, because each is compiled.
        return self._make(seed, [(2, 3, 5), (1, 1, 2), (2, 0, 3)][seed % 3], dtype)

    def large(self, dtype):
        return self._make(0, (2, 256, 128), dtype)

    def call(self, *arguments, implementation: Implementation = None):
        return chained_dot(*arguments, implementation=implementation)

    def reference(self, *arguments):
        a, x, c = (np.asarray(v, np.float64) for v in arguments[:3])
        for _ in range(int(arguments[3])):
            x = np.einsum("ij,pjk->pik", a, x) + c
        return x

    def differentiable(self, *arguments):
        return []

    def replace(self, arguments, arrays):
        return arguments


class MatrixPolynomialsCase(AbstractKernelCase):
    """`matrix_polynomials`."""

    def _make(self, seed, batch, n, q, k, dtype):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(*batch, n, n)) / max(1, 2 * n**0.5)
        return _array(X, dtype), _array(rng.normal(size=(q, k)), dtype)

    def draw(self, seed, dtype):
        # Few shapes, because each is compiled: a pair, one constant, no matrix, one of side zero.
        shapes = [((3,), 5, 2, 4), ((), 2, 1, 1), ((2, 0), 3, 2, 3), ((), 0, 1, 2)]
        batch, n, q, k = shapes[seed % 4]
        return self._make(seed, batch, n, q, k, dtype)

    def large(self, dtype):
        return self._make(0, (4,), 96, 2, 6, dtype)

    def call(self, *arguments, implementation: Implementation = None):
        return matrix_polynomials(*arguments, implementation=implementation)

    def reference(self, *arguments):
        X, coefficients = (np.asarray(a, np.float64) for a in arguments)
        powers = np.stack([np.linalg.matrix_power(X, j) for j in range(coefficients.shape[1])])
        return np.tensordot(coefficients, powers, 1)

    def differentiable(self, *arguments):
        return list(arguments)

    def replace(self, arguments, arrays):
        return tuple(arrays)
