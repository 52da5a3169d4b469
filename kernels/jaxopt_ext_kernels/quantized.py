"""Products and convolutions of 8-bit integers, summed in 32 bits.

Integers have no derivatives: training simulates them in floating point, with derivatives of its
own, and comes here for inference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu, triton as plt
from jaxtyping import Array, Float, Int8, Int32

from .spmm import Implementation

# Of so many products of 8-bit integers all partial sums are below 2^24, the integers that single
# precision holds.
_EXACT = 1024


def quantize(
    x: Float[Array, "*shape"], alpha: Float[Array, ""], bits: int = 8
) -> Int8[Array, "*shape"]:
    """$\\mathrm{round}(\\mathrm{clip}(x, -\\alpha, \\alpha)\\, q / \\alpha)$ with
    $q = 2^{b-1} - 1$ levels a side, so never $-2^{b-1}$; half to even.

    Times $\\alpha / q$ it is what `training.pams_quantize` gives, to the bit. NaN, which integers
    have not, becomes zero.

    **Arguments:**

    - `x`: of any shape.
    - `alpha`: $\\alpha > 0$, one for the array or of a shape that broadcasts.
    - `bits`: $b$, 2 to 8.

    **Raises:** `ValueError` for other bits; `TypeError` if `x` is not floating-point.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be an integer from 2 to 8, got {bits!r}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating-point, got {x.dtype}")
    q = 2 ** (int(bits) - 1) - 1
    levels = jnp.round(jnp.clip(x, -alpha, alpha) * (q / alpha))
    return jnp.where(jnp.isnan(levels), 0, levels).astype(jnp.int8)


def int8_matmul(
    x: Int8[Array, "m n"], w: Int8[Array, "n k"], *, implementation: Implementation = None
) -> Int32[Array, "m k"]:
    """$x w$ of 8-bit integers, exact in 32 bits as long as $n < 2^{17}$; beyond, it may wrap.

    No derivative.

    **Arguments:**

    - `x`, `w`: of any shapes that fit; use `vmap` for batches.
    - `implementation`: `"pallas"`, `"xla"`, or `None` for Pallas on TPU and GPU and XLA elsewhere.

    **Raises:** `ValueError` if shapes do not fit or the implementation is unknown; `TypeError` for
    other types.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """
    implementation = _checked(implementation, x=x, w=w)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(f"shapes do not fit: {x.shape} times {w.shape}")
    if 0 in (*x.shape, *w.shape):
        return jnp.zeros((x.shape[0], w.shape[1]), jnp.int32)
    return _xla(x, w) if implementation == "xla" else _pallas(x, w)


def _checked(implementation: Implementation, **arrays: Array) -> Implementation:
    for name, array in arrays.items():
        if array.dtype != jnp.int8:
            raise TypeError(f"{name} must be of 8-bit integers, got {array.dtype}")
    if implementation is None:
        return "xla" if jax.default_backend() == "cpu" else "pallas"
    if implementation not in ("pallas", "xla"):
        raise ValueError(f"implementation must be 'pallas', 'xla' or None, got {implementation!r}")
    return implementation


@jax.jit
def _xla(x, w):
    return jnp.dot(x, w, preferred_element_type=jnp.int32)


@jax.jit
def _pallas(x, w):
    # The platform is known when the program is lowered, not when it is traced.
    return jax.lax.platform_dependent(
        x,
        w,
        cpu=functools.partial(_tpu_call, interpret=True),
        tpu=_tpu_call,
        cuda=_triton_call,
    )


def _padded(x, rows, columns):
    return jnp.pad(x, ((0, -x.shape[0] % rows), (0, -x.shape[1] % columns)))


def _tpu_call(x, w, *, interpret=False):
    """One program for each tile of rows, columns and the inner dimension, which comes last: the sum
    stays in fast memory. A tile of 8-bit integers has 32 rows at least."""
    m, k = x.shape[0], w.shape[1]
    rows = 128 if m > 32 else 32
    x, w = _padded(x, rows, 128), _padded(w, 128, 128)

    def kernel(x, w, out):
        @pl.when(pl.program_id(2) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += jnp.dot(x[...], w[...], preferred_element_type=jnp.int32)

    out = pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(_xla, x, w),  # which knows the axes of a mesh too
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(x.shape[0] // rows, w.shape[1] // 128, x.shape[1] // 128),
            in_specs=[
                pl.BlockSpec((rows, 128), lambda i, j, l: (i, l)),
                pl.BlockSpec((128, 128), lambda i, j, l: (l, j)),
            ],
            out_specs=pl.BlockSpec((rows, 128), lambda i, j, l: (i, j)),
        ),
        interpret=interpret,
    )(x, w)
    return out[:m, :k]


def _triton_call(x, w):
    """One program for each tile of the output, which walks along the inner dimension."""
    m, k, tile = x.shape[0], w.shape[1], 64
    x, w = _padded(x, tile, tile), _padded(w, tile, tile)

    def kernel(x, w, out):
        def add(l, total):
            inner = pl.ds(l * tile, tile)
            return total + pl.dot(x[:, inner], w[inner, :])

        start = jnp.zeros((tile, tile), jnp.int32)
        out[...] = jax.lax.fori_loop(0, w.shape[0] // tile, add, start)

    out = pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(_xla, x, w),
        grid=(x.shape[0] // tile, w.shape[1] // tile),
        in_specs=[
            pl.BlockSpec((tile, x.shape[1]), lambda i, j: (i, 0)),
            pl.BlockSpec((w.shape[0], tile), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((tile, tile), lambda i, j: (i, j)),
        compiler_params=plt.CompilerParams(),
    )(x, w)
    return out[:m, :k]


def int8_conv2d(
    x: Int8[Array, "batch in_channels height width"],
    w: Int8[Array, "out_channels in_channels kernel_height kernel_width"],
    stride: int = 1,
    padding: int = 0,
    *,
    implementation: Implementation = None,
) -> Int32[Array, "batch out_channels out_height out_width"]:
    """Convolution of 8-bit integers, exact in 32 bits.

    The Pallas body gathers the patches and multiplies them by `int8_matmul`. So does the plain
    one, unless patches have at most 1024 entries: then it is a convolution in single precision,
    which no sum exceeds and for which CPUs have fast code. No derivative.

    **Arguments:**

    - `x`: images. `w`: filters.
    - `stride`, `padding`: in both directions; zeros are padded on all sides.
    - `implementation`: `"pallas"`, `"xla"`, or `None` for Pallas on TPU and GPU and XLA elsewhere.

    **Raises:** `ValueError` if shapes do not fit, `stride` is below 1 or `padding` negative;
    `TypeError` for other types.

    **Reference:** Li, Yan, Lin, Zheng, Zhang, Yang, Ji, PAMS: Quantized Super-Resolution via
    Parameterized Max Scale, 2020, arXiv:2011.04212.
    """
    implementation = _checked(implementation, x=x, w=w)
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1]:
        raise ValueError(f"shapes do not fit: images {x.shape}, filters {w.shape}")
    if stride < 1 or padding < 0:
        raise ValueError(f"stride must be at least 1, padding 0, got {stride} and {padding}")
    reach = [x.shape[i] + 2 * padding - w.shape[i] for i in (2, 3)]
    if min(reach) < 0 or 0 in w.shape[2:]:
        raise ValueError(f"filters {w.shape} do not fit into padded images {x.shape}")
    sizes = [r // stride + 1 for r in reach]
    if 0 in (*x.shape, *w.shape):
        return jnp.zeros((x.shape[0], w.shape[0], *sizes), jnp.int32)
    if implementation == "xla" and np.prod(w.shape[1:]) <= _EXACT:
        return _float_convolution(x, w, stride, padding)
    x = jnp.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    # One shifted image for each place of the filter, which are few.
    ends = [(size - 1) * stride + 1 for size in sizes]
    patches = jnp.stack(
        [
            x[:, :, i : i + ends[0] : stride, j : j + ends[1] : stride]
            for i in range(w.shape[2])
            for j in range(w.shape[3])
        ],
        axis=2,
    )
    columns = jnp.moveaxis(patches, 0, 2).reshape(np.prod(w.shape[1:]), -1)
    out = int8_matmul(w.reshape(w.shape[0], -1), columns, implementation=implementation)
    return jnp.moveaxis(out.reshape(w.shape[0], x.shape[0], *sizes), 0, 1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _float_convolution(x, w, stride, padding):
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)
    # 8-bit integers are exact in the fast passes of accelerators, and sums are kept in full.
    out = jax.lax.conv_general_dilated(x, w, (stride,) * 2, [(padding,) * 2] * 2)
    return out.astype(jnp.int32)
