"""Polynomials of small matrices."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu, triton as plt
from jaxtyping import Array, Float

from .spmm import Implementation

HIGHEST = jax.lax.Precision.HIGHEST

_LARGEST = 256
"""Sides up to which a matrix, a power of it and a few sums stay in fast memory."""


def matrix_polynomials(
    X: Float[Array, "*b n n"],
    coefficients: Float[Array, "q k"],
    *,
    implementation: Implementation = None,
) -> Float[Array, "q *b n n"]:
    """Polynomials of the same matrices, $P_i(X) = \\sum_{j<k} c_{ij} X^j$, as the numerator and the
    denominator of a Padé approximant are.

    They share the powers of $X$: $k - 2$ products for all of them. The Pallas body has a program
    for each matrix, in whose fast memory the powers stay: $X$ is read once and each $P_i$ written
    once. The XLA body reads and writes every power, which for a CPU lie in its caches.

    Derivatives in both arguments; those of the Pallas body, of first order and in reverse mode, are
    those of the XLA body.

    **Arguments:**

    - `X`: square.
    - `coefficients`: of ascending powers, at least one.
    - `implementation`: `"pallas"`, `"xla"`, or `None` for Pallas on TPU and GPU, if the sides are
      at most 256 (GPU: 128), and XLA elsewhere.

    **Returns:** in the type of $X$, computed in single precision at least.

    **Raises:** `ValueError` if shapes do not fit, the implementation is unknown, or matrices are
    too large for the Pallas body; `TypeError` for another type.

    **Reference:** Song, Sebe, Wang, Fast Differentiable Matrix Square Root, 2022,
    arXiv:2201.08663.
    """
    X, coefficients = jnp.asarray(X), jnp.asarray(coefficients)
    if X.ndim < 2 or X.shape[-1] != X.shape[-2]:
        raise ValueError(f"X must be square, got shape {X.shape}")
    if coefficients.ndim != 2 or not coefficients.shape[1]:
        raise ValueError(f"coefficients must have shape (q, k), k >= 1, got {coefficients.shape}")
    for name, array in (("X", X), ("coefficients", coefficients)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be real and floating-point, got {array.dtype}")
    n, backend = X.shape[-1], jax.default_backend()
    largest = _LARGEST // 2 if backend == "gpu" else _LARGEST
    if implementation is None:
        implementation = "xla" if backend == "cpu" or n > largest else "pallas"
    if implementation not in ("pallas", "xla"):
        raise ValueError(f"implementation must be 'pallas', 'xla' or None, got {implementation!r}")
    if implementation == "pallas" and n > largest:
        raise ValueError(f"the Pallas body takes matrices of side {largest} at most, got {n}")
    wide = jnp.promote_types(X.dtype, jnp.float32)
    stack = X.reshape(math.prod(X.shape[:-2]), n, n).astype(wide)
    q = coefficients.shape[0]
    if 0 in stack.shape or not q:
        return jnp.zeros((q, *X.shape), X.dtype)
    body = _xla if implementation == "xla" else _pallas
    return body(stack, coefficients.astype(wide)).reshape(q, *X.shape).astype(X.dtype)


def _sums(X, coefficient, q, k, multiply):
    """The polynomials, power by power."""
    n = X.shape[-1]
    at = lambda axis: jax.lax.broadcasted_iota(jnp.int32, (n, n), axis)
    identity = (at(0) == at(1)).astype(X.dtype)
    sums = [coefficient(i, 0) * identity + jnp.zeros_like(X) for i in range(q)]
    power = X
    for j in range(1, k):
        power = X if j == 1 else multiply(power, X)
        sums = [total + coefficient(i, j) * power for i, total in enumerate(sums)]
    return sums


@jax.jit
def _xla(X, coefficients):
    multiply = functools.partial(jnp.matmul, precision=HIGHEST)
    q, k = coefficients.shape
    return jnp.stack(_sums(X, lambda i, j: coefficients[i, j], q, k, multiply))


@jax.custom_vjp
def _pallas(X, coefficients):
    # The platform is known when the program is lowered, not when it is traced.
    return jax.lax.platform_dependent(
        X,
        coefficients,
        cpu=functools.partial(_tpu_call, interpret=True),
        tpu=_tpu_call,
        cuda=_triton_call,
    )


_pallas.defvjp(
    lambda X, coefficients: (_pallas(X, coefficients), (X, coefficients)),
    lambda saved, cotangent: jax.vjp(_xla, *saved)[1](cotangent),
)


def _padded(X, n):
    more = n - X.shape[-1]
    return jnp.pad(X, ((0, 0), (0, more), (0, more)))  # whose powers are those of X, padded


def _tpu_call(X, coefficients, *, interpret=False):
    n, (q, k) = X.shape[-1], coefficients.shape
    X = _padded(X, n + -n % 128)

    def kernel(coefficients, X, out):
        multiply = functools.partial(jnp.dot, precision=HIGHEST, preferred_element_type=X.dtype)
        sums = _sums(X[...], lambda i, j: coefficients[i, j], q, k, multiply)
        for i, total in enumerate(sums):
            out[i] = total

    out = pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(_xla, X, coefficients),  # which knows the axes of a mesh too
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(X.shape[0],),
            in_specs=[pl.BlockSpec((None, *X.shape[1:]), lambda b, c: (b, 0, 0))],
            out_specs=pl.BlockSpec((q, None, *X.shape[1:]), lambda b, c: (0, b, 0, 0)),
        ),
        interpret=interpret,
    )(coefficients, X)
    return out[:, :, :n, :n]


def _triton_call(X, coefficients):
    n, (q, k) = X.shape[-1], coefficients.shape
    X = _padded(X, max(16, 1 << (n - 1).bit_length()))  # powers of two
    width = 1 << (k - 1).bit_length()
    table = jnp.pad(coefficients, ((0, 0), (0, width - k)))

    def kernel(coefficients, X, out):
        multiply = functools.partial(pl.dot, precision=HIGHEST)
        sums = _sums(X[...], lambda i, j: coefficients[i, j], q, k, multiply)
        for i, total in enumerate(sums):
            out[i] = total

    out = pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(_xla, X, coefficients),
        grid=(X.shape[0],),
        in_specs=[
            pl.BlockSpec(table.shape, lambda b: (0, 0)),
            pl.BlockSpec((None, *X.shape[1:]), lambda b: (b, 0, 0)),
        ],
        out_specs=pl.BlockSpec((q, None, *X.shape[1:]), lambda b: (0, b, 0, 0)),
        compiler_params=plt.CompilerParams(),
    )(table, X)
    return out[:, :, :n, :n]
