"""Fast products: Strassen's and Winograd's, and a code of both that survives lost workers.

A product of $2 \\times 2$ block matrices is computed from products of sums of blocks,

$$D_p = \\Big( \\sum_i U_{pi} A_i \\Big) \\Big( \\sum_j V_{pj} B_j \\Big), \\qquad
  C_k = \\sum_p W_{kp} D_p,$$

blocks numbered row by row. As a vector of coefficients of the 16 products $A_i B_j$ each $D_p$ is
$u_p \\otimes v_p$, and $C$ can be had from those products whose vectors span the four of $C$: seven
are enough, and any two different sets of seven share what neither of them loses alone.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu, triton as plt
from jaxtyping import Array, Bool, Float, Int, Num

from . import _exact
from .spmm import Implementation

Row = tuple[int, ...]

_STRASSEN: tuple[tuple[Row, Row], ...] = (
    ((1, 0, 0, 1), (1, 0, 0, 1)),
    ((0, 0, 1, 1), (1, 0, 0, 0)),
    ((1, 0, 0, 0), (0, 1, 0, -1)),
    ((0, 0, 0, 1), (-1, 0, 1, 0)),
    ((1, 1, 0, 0), (0, 0, 0, 1)),
    ((-1, 0, 1, 0), (1, 1, 0, 0)),
    ((0, 1, 0, -1), (0, 0, 1, 1)),
)
_WINOGRAD: tuple[tuple[Row, Row], ...] = (
    ((1, 0, 0, 0), (1, 0, 0, 0)),
    ((0, 1, 0, 0), (0, 0, 1, 0)),
    ((0, 0, 0, 1), (1, -1, -1, 1)),
    ((1, 0, -1, 0), (0, -1, 0, 1)),
    ((0, 0, 1, 1), (-1, 1, 0, 0)),
    ((1, 1, -1, -1), (0, 0, 0, 1)),
    ((1, 0, -1, -1), (1, -1, 0, 1)),
)
# Found by `search_parities`, as the tests do again.
_PARITIES: tuple[tuple[Row, Row], ...] = (
    ((0, 0, 1, -1), (0, 1, -1, -1)),
    ((0, 1, 1, 0), (0, 0, 1, -1)),
)
_ALGORITHMS = {"strassen": _STRASSEN, "winograd": _WINOGRAD}
_LARGEST = 16


def _targets() -> np.ndarray:
    """The blocks of $C$ as combinations of the products $A_i B_j$, shape `(4, 16)`."""
    targets = np.zeros((4, 4, 4), np.int64)
    for i, j, k in itertools.product(range(2), repeat=3):
        targets[2 * i + j, 2 * i + k, 2 * k + j] = 1
    return targets.reshape(4, 16)


def _vectors(products: Sequence[tuple[Row, Row]]) -> np.ndarray:
    """$u_p \\otimes v_p$, shape `(p, 16)`."""
    return np.array([np.outer(u, v).ravel() for u, v in products], np.int64).reshape(-1, 16)


class Bilinear(eqx.Module):
    """An algorithm for the product of $2 \\times 2$ block matrices: $U$, $V$ and $W$.

    **Arguments:**

    - `products`: for each product its coefficients $u_p$ and $v_p$ of the blocks of $A$ and $B$.

    **Raises:** `ValueError` if they are no rows of four integers, or the blocks of $C$ are no
    integer combination of the products.

    **Reference:** Strassen, Gaussian elimination is not optimal, 1969.
    """

    products: tuple[tuple[Row, Row], ...] = eqx.field(static=True)
    combination: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __init__(self, products: Sequence[tuple[Sequence[int], Sequence[int]]]):
        self.products = _checked(products)
        found = _exact.combinations(_vectors(self.products), _targets())
        if found is None or np.any(found[1] != 1):
            raise ValueError(f"a product is no integer combination of {list(self.products)}")
        self.combination = tuple(tuple(int(w) for w in row) for row in found[0])

    @property
    def U(self) -> np.ndarray:
        """Coefficients of the blocks of $A$, shape `(p, 4)`."""
        return np.array([u for u, _ in self.products], np.int32)

    @property
    def V(self) -> np.ndarray:
        """Coefficients of the blocks of $B$, shape `(p, 4)`."""
        return np.array([v for _, v in self.products], np.int32)

    @property
    def W(self) -> np.ndarray:
        """Coefficients of the products in the blocks of $C$, shape `(4, p)`."""
        return np.array(self.combination, np.int32)


def _checked(
    products: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[tuple[Row, Row], ...]:
    rows = np.asarray([[u, v] for u, v in products])
    if rows.shape[1:] != (2, 4) or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"products must be pairs of rows of four integers, got {products}")
    row = lambda r: tuple(int(x) for x in r)
    return tuple((row(u), row(v)) for u, v in rows)


@functools.cache
def bilinear(name: str) -> Bilinear:
    """Strassen's or Winograd's algorithm, seven products each; how $C$ is combined from them is
    solved for, over the rationals.

    **Arguments:**

    - `name`: `"strassen"` or `"winograd"`.

    **Raises:** `ValueError` for another name.

    **Reference:** Strassen, Gaussian elimination is not optimal, 1969; Winograd, On multiplication
    of 2 x 2 matrices, 1971.
    """
    if name not in _ALGORITHMS:
        raise ValueError(f"algorithm must be one of {sorted(_ALGORITHMS)}, got {name!r}")
    return Bilinear(_ALGORITHMS[name])


# The products of sums of blocks, and their derivative.


def coded_products(
    A: Num[Array, "m n"],
    B: Num[Array, "n k"],
    U: Int[Array, "p 4"],
    V: Int[Array, "p 4"],
    *,
    implementation: Implementation = None,
) -> Num[Array, "p half_m half_k"]:
    """$D_p = (\\sum_i U_{pi} A_i)(\\sum_j V_{pj} B_j)$, of the four blocks of $A$ and of $B$.

    The Pallas body forms the sums tile by tile, in fast memory, and multiplies them there: the
    sums, which are as large as the matrices for each $p$, are never written.

    Half-precision inputs are summed and multiplied in single precision; products are of the
    precision that `jax.default_matmul_precision` asks for. Has derivatives in `A` and `B`; the
    Pallas body in reverse mode. On a CPU that body is interpreted, which does not trace in
    `shard_map` with its check on.

    **Arguments:**

    - `A`, `B`: of any shapes that fit; odd sizes are padded by zeros.
    - `U`, `V`: coefficients; data, so that each device of a mesh may have its own.
    - `implementation`: `"pallas"`, `"xla"`, or `None` for Pallas on TPU and GPU and XLA elsewhere
      and for integers.

    **Returns:** the products, of shape `(p, ceil(m / 2), ceil(k / 2))`, in the wider type of the
    two, integers in 32 bits at least.

    **Raises:** `ValueError` if shapes do not fit or the implementation is unknown; `TypeError` for
    integers in the Pallas body, or coefficients that are not.

    **Reference:** Güney, Arslan, Fault-Tolerant Strassen-Like Matrix Multiplication, 2022,
    arXiv:2210.04441.
    """
    _check_pair(A, B)
    U, V = jnp.asarray(U), jnp.asarray(V)
    if U.ndim != 2 or U.shape[1] != 4 or U.shape != V.shape:
        raise ValueError(f"U and V must have one shape (p, 4), got {U.shape} and {V.shape}")
    for name, array in (("U", U), ("V", V)):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, got {array.dtype}")
    dtype = _out_type(A, B)
    implementation = _chosen(implementation, dtype)
    A, B = _even(A), _even(B)
    if 0 in (*A.shape, *B.shape, len(U)):
        return jnp.zeros((len(U), A.shape[0] // 2, B.shape[1] // 2), dtype)
    body = _xla if implementation == "xla" else _pallas
    work = _accumulator(dtype)
    coefficients = U.astype(jnp.int32), V.astype(jnp.int32)
    return body(A.astype(work), B.astype(work), *coefficients).astype(dtype)


def _check_pair(A: Array, B: Array) -> None:
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
        raise ValueError(f"shapes do not fit: {A.shape} times {B.shape}")


def _out_type(A: Array, B: Array):
    dtype = jnp.result_type(A, B)
    if jnp.issubdtype(dtype, jnp.bool_):
        raise TypeError(f"matrices must be numbers, got {dtype}")
    return jnp.promote_types(dtype, jnp.int32) if jnp.issubdtype(dtype, jnp.integer) else dtype


def _accumulator(dtype):
    integer = jnp.issubdtype(dtype, jnp.integer)
    return dtype if integer else jnp.promote_types(dtype, jnp.float32)


def _chosen(implementation: Implementation, dtype) -> Literal["pallas", "xla"]:
    real = jnp.issubdtype(dtype, jnp.floating)
    if implementation is None:
        return "pallas" if real and jax.default_backend() != "cpu" else "xla"
    if implementation not in ("pallas", "xla"):
        raise ValueError(f"implementation must be 'pallas', 'xla' or None, got {implementation!r}")
    if implementation == "pallas" and not real:
        raise TypeError(f"the Pallas body multiplies real floating-point numbers, got {dtype}")
    return implementation


def _even(x: Array) -> Array:
    return jnp.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2)))


def _blocks(x: Array) -> Array:
    """The four blocks, row by row, shape `(4, m / 2, n / 2)`."""
    m, n = x.shape
    return x.reshape(2, m // 2, 2, n // 2).swapaxes(1, 2).reshape(4, m // 2, n // 2)


def _whole(blocks: Array) -> Array:
    """The matrix of four blocks."""
    _, m, n = blocks.shape
    return blocks.reshape(2, 2, m, n).swapaxes(1, 2).reshape(2 * m, 2 * n)


def _sums(coefficients: Array, x: Array) -> Array:
    # Coefficients are exact in bfloat16, matrices are not: no fast passes here.
    blocks = _blocks(x)
    return jnp.einsum("pi,imn->pmn", coefficients.astype(x.dtype), blocks, precision="highest")


def _xla(A: Array, B: Array, U: Array, V: Array) -> Array:
    return jnp.einsum("pmn,pnk->pmk", _sums(U, A), _sums(V, B))


@jax.custom_vjp
def _pallas(A: Array, B: Array, U: Array, V: Array) -> Array:
    # The platform is known when the program is lowered, not when it is traced.
    return jax.lax.platform_dependent(
        A,
        B,
        U,
        V,
        cpu=functools.partial(_tpu_call, interpret=True),
        tpu=_tpu_call,
        cuda=_triton_call,
    )


def _pallas_forward(A, B, U, V):
    return _pallas(A, B, U, V), (A, B, U, V)


def _pallas_backward(saved, cotangent):
    A, B, U, V = saved
    left = jnp.einsum("pmk,pnk->pmn", cotangent, _sums(V, B))
    right = jnp.einsum("pmn,pmk->pnk", _sums(U, A), cotangent)
    back = lambda c, x: _whole(jnp.einsum("pi,pmn->imn", c.astype(x.dtype), x, precision="highest"))
    zero = lambda x: np.zeros(x.shape, jax.dtypes.float0)  # of integers
    return back(U, left), back(V, right), zero(U), zero(V)


_pallas.defvjp(_pallas_forward, _pallas_backward)


def _tiled(x: Array, tile: int) -> Array:
    """Each block padded to a multiple of the tile, and the matrix of those blocks."""
    _, m, n = (blocks := _blocks(x)).shape
    return _whole(jnp.pad(blocks, ((0, 0), (0, -m % tile), (0, -n % tile))))


def _tpu_call(A: Array, B: Array, U: Array, V: Array, *, interpret: bool = False) -> Array:
    """One program for each product and each tile of its rows, columns and inner dimension, which
    comes last, so that a tile of the output stays in fast memory until it is summed."""
    m, k = A.shape[0] // 2, B.shape[1] // 2
    tile = 256 if min(m, k, A.shape[1] // 2) >= 256 else 128
    A, B = _tiled(A, tile), _tiled(B, tile)
    rows, inner, columns = (s // (2 * tile) for s in (*A.shape, B.shape[1]))

    def kernel(U, V, *refs):
        *tiles, out = refs
        p, step = pl.program_id(0), pl.program_id(3)

        def combined(coefficients, four):
            terms = [coefficients[p, i].astype(out.dtype) * four[i][...] for i in range(4)]
            return (terms[0] + terms[1]) + (terms[2] + terms[3])

        @pl.when(step == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        left, right = combined(U, tiles[:4]), combined(V, tiles[4:])
        out[...] += jnp.dot(left, right, preferred_element_type=out.dtype)[None]

    block = (tile, tile)
    # The four blocks are four views of one array.
    corners = list(itertools.product(range(2), repeat=2))
    at_A = lambda r, c: pl.BlockSpec(block, lambda p, i, j, l, U, V: (i + r * rows, l + c * inner))
    at_B = lambda r, c: pl.BlockSpec(
        block, lambda p, i, j, l, U, V: (l + r * inner, j + c * columns)
    )
    out = pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(_xla, A, B, U, V),  # which knows the mesh axes too
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(U.shape[0], rows, columns, inner),
            in_specs=[*(at_A(r, c) for r, c in corners), *(at_B(r, c) for r, c in corners)],
            out_specs=pl.BlockSpec((1, *block), lambda p, i, j, l, U, V: (p, i, j)),
        ),
        interpret=interpret,
    )(U, V, *[A] * 4, *[B] * 4)
    return out[:, :m, :k]


def _triton_call(A: Array, B: Array, U: Array, V: Array) -> Array:
    """One program for each product and tile of the output, which walks along the inner one."""
    m, k, tile = A.shape[0] // 2, B.shape[1] // 2, 64
    A, B = _tiled(A, tile), _tiled(B, tile)
    rows, inner, columns = (s // (2 * tile) for s in (*A.shape, B.shape[1]))

    def kernel(U, V, A, B, out):
        p, i, j = (pl.program_id(axis) for axis in range(3))

        def combined(coefficients, whole, row, column, height, width):
            terms = []
            for corner, (r, c) in enumerate(itertools.product(range(2), repeat=2)):
                down = pl.ds((row + r * height) * tile, tile)
                across = pl.ds((column + c * width) * tile, tile)
                terms.append(coefficients[p, corner].astype(whole.dtype) * whole[down, across])
            return (terms[0] + terms[1]) + (terms[2] + terms[3])

        def add(l, total):
            left = combined(U, A, i, l, rows, inner)
            right = combined(V, B, l, j, inner, columns)
            return total + pl.dot(left, right).astype(total.dtype)

        out[0] = jax.lax.fori_loop(0, inner, add, jnp.zeros((tile, tile), out.dtype))

    everything = lambda array: pl.BlockSpec(array.shape, lambda p, i, j: (0,) * array.ndim)
    out = pl.pallas_call(
        kernel,
        out_shape=jax.eval_shape(_xla, A, B, U, V),  # which knows the mesh axes too
        grid=(U.shape[0], rows, columns),
        in_specs=[everything(array) for array in (U, V, A, B)],
        out_specs=pl.BlockSpec((1, tile, tile), lambda p, i, j: (p, i, j)),
        compiler_params=plt.CompilerParams(),
    )(U, V, A, B)
    return out[:, :m, :k]


# The recursion.


def strassen_matmul(
    A: Num[Array, "m n"],
    B: Num[Array, "n k"],
    *,
    levels: int = 1,
    algorithm: str | Bilinear = "strassen",
    leaf: Callable[[Array, Array], Array] | None = None,
    implementation: Implementation = None,
) -> Num[Array, "m k"]:
    """$C = A B$ with $7^l$ products of blocks of $2^{-l}$ of the size, instead of $8^l$.

    Exact for integers, also where they overflow, since sums and products modulo $2^{32}$ do not
    mind the order. Floating-point errors grow by a constant factor with each level, and are bounded
    by the largest entries of the matrices, not by those of the row and column concerned: scale
    badly scaled matrices first.

    Half-precision inputs are multiplied in single precision. The derivatives are products by the
    same algorithm, $\\bar A = \\bar C B^\\top$ and $\\bar B = A^\\top \\bar C$, and not the
    recursion backwards; reverse mode only, of any order.

    **Arguments:**

    - `A`, `B`: of any shapes that fit; odd sizes are padded by zeros at every level.
    - `levels`: $l$; zero is the plain product.
    - `algorithm`: `"strassen"`, `"winograd"`, or a `Bilinear` of one's own.
    - `leaf`: product of the smallest blocks, under `vmap`; `jnp.dot` by default.
    - `implementation`: of the last level: `"pallas"` forms the sums of blocks and multiplies them
      in one kernel, and takes no `leaf`; `"xla"`; `None` is Pallas on TPU and GPU, for
      floating-point numbers.

    **Returns:** $C$, in the wider type of the two, integers in 32 bits at least.

    **Raises:** `ValueError` if shapes do not fit, `levels` is negative, or a name is unknown;
    `TypeError` for numbers that the Pallas body does not multiply, or `levels` that is no integer.

    **Reference:** Strassen, Gaussian elimination is not optimal, 1969; Winograd, On multiplication
    of 2 x 2 matrices, 1971. As the parts of a code: Güney, Arslan, Fault-Tolerant Strassen-Like
    Matrix Multiplication, 2022, arXiv:2210.04441.
    """
    _check_pair(A, B)
    if isinstance(levels, bool) or not isinstance(levels, int | np.integer):
        raise TypeError(f"levels must be an int, got {levels!r}")
    if levels < 0:
        raise ValueError(f"levels must not be negative, got {levels}")
    algorithm = bilinear(algorithm) if isinstance(algorithm, str) else algorithm
    if not isinstance(algorithm, Bilinear):
        raise TypeError(f"algorithm must be a name or a Bilinear, got {algorithm!r}")
    dtype = _out_type(A, B)
    if leaf is not None and implementation == "pallas":
        raise ValueError(f"the Pallas body has a product of its own, got leaf {leaf!r}")
    chosen = _chosen(implementation if leaf is None else "xla", dtype)
    if 0 in (*A.shape, *B.shape):
        return jnp.zeros((A.shape[0], B.shape[1]), dtype)
    work = _accumulator(dtype)
    scheme = (int(levels), algorithm, leaf or jnp.dot, chosen)
    return _program(scheme, A.astype(work), B.astype(work)).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _strassen(scheme, A, B):
    levels, algorithm, leaf, implementation = scheme
    return _recurse(levels, algorithm, leaf, implementation, A, B)


def _strassen_forward(scheme, A, B):
    return _strassen(scheme, A, B), (A, B)


def _strassen_backward(scheme, saved, cotangent):
    A, B = saved
    return _strassen(scheme, cotangent, B.T), _strassen(scheme, A.T, cotangent)


_strassen.defvjp(_strassen_forward, _strassen_backward)
_program = jax.jit(_strassen, static_argnums=0)


def _recurse(levels, algorithm, leaf, implementation, A, B):
    if not levels:
        return leaf(A, B)
    rows, columns = A.shape[0], B.shape[1]
    A, B = _even(A), _even(B)
    if levels == 1 and implementation == "pallas":
        U, V = jnp.asarray(algorithm.U), jnp.asarray(algorithm.V)
        products = coded_products(A, B, U, V, implementation="pallas")
    else:
        sums = _static_sums(algorithm.U, _blocks(A)), _static_sums(algorithm.V, _blocks(B))
        below = functools.partial(_recurse, levels - 1, algorithm, leaf, implementation)
        products = jax.vmap(below)(*map(jnp.stack, sums))
    return _whole(jnp.stack(_static_sums(algorithm.W, products)))[:rows, :columns]


def _static_sums(coefficients: np.ndarray, blocks: Array) -> list[Array]:
    """Sums of blocks with coefficients that are known: additions, which fuse, and no products."""
    sums = []
    for row in coefficients:
        total = None
        for i in np.flatnonzero(row):
            c = int(row[i])
            term = blocks[i] if abs(c) == 1 else abs(c) * blocks[i]
            if total is None:
                total = term if c > 0 else -term
            else:
                total = total + term if c > 0 else total - term
        sums.append(jnp.zeros_like(blocks[0]) if total is None else total)
    return sums


# The code.


def relations(
    products: Sequence[tuple[Sequence[int], Sequence[int]]], limit: int = 1
) -> Int[np.ndarray, "found p"]:
    """All combinations of products that vanish whatever $A$ and $B$, up to sign: each gives any
    product in it from the others. Found on the host, by looking the sums of one half up in those
    of the other; nothing is rounded.

    **Arguments:**

    - `products`: pairs $(u_p, v_p)$ of rows of four integers.
    - `limit`: coefficients go from `-limit` to `limit`.

    **Returns:** the coefficients, those of fewest products first.

    **Raises:** `ValueError` if products are no such pairs, `limit` is below 1, or there are more
    than $10^6$ combinations of a half.

    **Reference:** Güney, Arslan, Fault-Tolerant Strassen-Like Matrix Multiplication, 2022,
    arXiv:2210.04441.
    """
    products = _checked(products)
    if limit < 1 or (2 * limit + 1) ** ((len(products) + 1) // 2) > 10**6:
        raise ValueError(f"limit {limit} is below 1 or too large for {len(products)} products")
    return _exact.vanishing(_vectors(products), limit)


def search_parities(
    products: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[tuple[tuple[Row, Row], ...], int]:
    """Two products that make every pair of failures recoverable, with the fewest bad triples.

    All $u, v \\in \\{-1, 0, 1\\}^4$ up to sign are tried, 1600 candidates and so 1.3 million pairs,
    against every pair and triple of lost products that the others cannot make up for. A parity has
    to be a product, computed by one worker; sums of results would be lost with their parts.

    **Arguments:**

    - `products`: pairs $(u_p, v_p)$ that survive any one failure.

    **Returns:** the two parities, the first best in the order of the candidates, and the number of
    triples of failures, among all products and the two, that are not recoverable.

    **Raises:** `ValueError` if a single failure is not recoverable, or no two parities repair all
    pairs.

    **Reference:** Güney, Arslan, Fault-Tolerant Strassen-Like Matrix Multiplication, 2022,
    arXiv:2210.04441.
    """
    products = _checked(products)
    bad = {k: _bad_sets(products, k) for k in (1, 2, 3)}
    if bad[1]:
        raise ValueError(f"product {bad[1][0][0]} alone cannot be lost")
    signed = itertools.product((-1, 0, 1), repeat=4)
    rows = [r for r in signed if next((x for x in r if x), -1) > 0]
    candidates = list(itertools.product(rows, rows))
    vectors = _vectors(candidates)
    every = _vectors(products)
    allowed = np.ones((len(candidates),) * 2, bool)
    # Besides lost triples, a lost parity with a lost pair that the other does not repair.
    cost = np.zeros((len(candidates),) * 2, np.int32)
    for lost in [*bad[2], *bad[3]]:
        alone, both = _repairs(np.delete(every, lost, axis=0), vectors)
        if len(lost) == 2:
            allowed &= both
            cost += ~alone[:, None]
            cost += ~alone[None, :]
        else:
            cost += ~both
    allowed &= np.triu(np.ones_like(allowed), 1)
    if not allowed.any():
        raise ValueError("no two parities make all pairs of failures recoverable")
    cost = np.where(allowed, cost, np.iinfo(np.int32).max)
    first, second = np.unravel_index(np.argmin(cost), cost.shape)
    return (candidates[first], candidates[second]), int(cost[first, second])


def _bad_sets(products: Sequence[tuple[Row, Row]], size: int) -> list[tuple[int, ...]]:
    sets = list(itertools.combinations(range(len(products)), size))
    lost = np.zeros((len(sets), len(products)), bool)
    np.put_along_axis(lost, np.array(sets), True, axis=1)
    good = _recoverable(products, lost)
    return [s for s, fine in zip(sets, good, strict=True) if not fine]


def _repairs(alive: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each candidate, and each pair of them, puts $C$ into the span of what is alive.

    What is alive is divided out: a candidate is then the row of integers that functionals which
    vanish on it take. If that leaves a line of $C$, one candidate on that line is enough, or two
    in a plane with it, but not on a line of their own; if it leaves a plane, two are needed.
    """
    functionals = _exact.null_space(alive)
    missing = _targets() @ functionals.T
    left = _exact.rank(missing)
    beyond = _exact.null_space(np.concatenate([alive, _targets()]))
    line = _lines(vectors @ functionals.T)
    outside = _lines(vectors @ beyond.T)  # zero for those that lie in the span of C
    in_span, useless = outside == 0, line == 0
    apart = line[:, None] != line
    if left == 1:
        alone = in_span & ~useless
        both = (outside[:, None] == outside) & ~in_span & apart
        return alone, alone[:, None] | alone | both
    alone = np.zeros(len(vectors), bool)
    if left > 2:
        return alone, apart & False
    useful = in_span & ~useless
    return alone, useful[:, None] & useful & apart


def _lines(rows: np.ndarray) -> np.ndarray:
    """A number for each line through the origin that rows of integers span; 0 if they are zero."""
    divisor = np.maximum(np.gcd.reduce(rows, axis=1, initial=0), 1)
    rows = rows // divisor[:, None]
    leading = rows[np.arange(len(rows)), np.argmax(rows != 0, axis=1)] if rows.shape[1] else 1
    rows = rows * np.where(leading < 0, -1, 1)[:, None] if rows.shape[1] else rows
    numbers = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1) + 1
    return np.where(rows.any(axis=1), numbers, 0)


def _recoverable(products: Sequence[tuple[Row, Row]], lost: np.ndarray) -> np.ndarray:
    """For sets of lost products, whether $C$ is in the span of the others.

    $C = W_0 D$, and as well $(W_0 + Z N) D$ for all $Z$, where $N$ are the relations: it is, if
    one of these does without the lost ones.
    """
    vectors = _vectors(products)
    found = _exact.combinations(vectors, _targets())
    if found is None:
        raise ValueError(f"the product is no combination of {list(products)}")
    return _exact.in_row_space(lost, _exact.null_space(vectors.T), found[0])


def _patterns(count: int) -> np.ndarray:
    """All subsets of `count`; bit `i` of a row's number says whether `i` is in it."""
    return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(bool)


@functools.cache
def _table(products: tuple[tuple[Row, Row], ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each set of products that are alive its place in the table of coefficients, 0 if $C$ is
    lost, and the table, `(places, 4, p)`: least-norm coefficients, which keep errors small."""
    alive = _patterns(len(products))
    good = _recoverable(products, ~alive)
    vectors = np.where(alive[good, :, None], _vectors(products), 0).astype(float)
    # Singular values of these integers are above 0.05; which of them are zero is known to be safe.
    coefficients = _targets() @ np.linalg.pinv(vectors, rcond=1e-8)
    coefficients[np.abs(coefficients) < 1e-12] = 0
    place = np.where(good, np.cumsum(good), 0).astype(np.int32)
    return place, np.concatenate([np.full_like(coefficients[:1], np.nan), coefficients])


class FaultTolerantProduct(eqx.Module):
    """$C = A B$ by products on workers of which some may fail.

    The products of several algorithms for $2 \\times 2$ blocks, and parities, one for each worker.
    With Strassen's and Winograd's and two parities any two of the 16 workers may fail, and of the
    560 triples all but 4; of three copies of Strassen's, which are 21 workers, any two, and all
    triples but 7.

    What can be recovered from which workers is found exactly, once, by elimination over the
    integers; decoding looks the pattern up and takes the combination of least norm. `alive` is
    data: one program serves all patterns. Called with `A`, `B` and `alive` it encodes and decodes.

    Only the topmost level is protected: a worker may multiply as it likes, by `strassen_matmul`
    say, but what it then loses inside is its own.

    **Arguments:**

    - `products`: algorithms by name or as `Bilinear`, one or more, also copies of one.
    - `parity`: pairs $(u, v)$ of four coefficients each, more products. By default the best two for
      `("strassen", "winograd")`, and none for others.

    **Raises:** `ValueError` if a name is unknown, a parity is none, or there are more than 16
    different products.

    **Reference:** Güney, Arslan, Fault-Tolerant Strassen-Like Matrix Multiplication, 2022,
    arXiv:2210.04441.
    """

    products: tuple[tuple[Row, Row], ...] = eqx.field(static=True)
    group: tuple[int, ...] = eqx.field(static=True)
    sign: tuple[int, ...] = eqx.field(static=True)
    distinct: tuple[tuple[Row, Row], ...] = eqx.field(static=True)
    place: Int[Array, " patterns"]
    coefficients: Float[Array, "places 4 groups"]

    def __init__(
        self,
        products: Sequence[str | Bilinear] = ("strassen", "winograd"),
        parity: Sequence[tuple[Sequence[int], Sequence[int]]] | None = None,
    ):
        if isinstance(products, str) or not len(products):
            raise ValueError(f"products must be a list of algorithms, got {products!r}")
        if parity is None:
            parity = _PARITIES if tuple(products) == ("strassen", "winograd") else ()
        algorithms = [bilinear(p) if isinstance(p, str) else p for p in products]
        together = tuple(row for a in algorithms for row in a.products)
        self.products = together + (_checked(parity) if len(parity) else ())
        numbers: dict[bytes, int] = {}
        group, sign, kept = [], [], []
        for product, vector in zip(self.products, _vectors(self.products), strict=True):
            leading = int(vector[np.argmax(vector != 0)])
            if not leading:
                raise ValueError(f"a product must not be zero, got {product}")
            s = 1 if leading > 0 else -1
            number = numbers.setdefault((s * vector).tobytes(), len(numbers))
            if number == len(kept):
                kept.append((tuple(s * x for x in product[0]), product[1]))
            group.append(number)
            sign.append(s)
        if len(kept) > _LARGEST:
            raise ValueError(f"at most {_LARGEST} different products, got {len(kept)}")
        self.group, self.sign = tuple(group), tuple(sign)
        self.distinct = tuple(kept)
        place, table = _table(self.distinct)
        self.place = jnp.asarray(place)
        self.coefficients = jnp.asarray(table)

    @property
    def nodes(self) -> int:
        """The number of workers."""
        return len(self.products)

    @property
    def U(self) -> np.ndarray:
        """Coefficients of the blocks of $A$, shape `(nodes, 4)`."""
        return np.array([u for u, _ in self.products], np.int32)

    @property
    def V(self) -> np.ndarray:
        """Coefficients of the blocks of $B$, shape `(nodes, 4)`."""
        return np.array([v for _, v in self.products], np.int32)

    def encode(
        self,
        A: Float[Array, "m n"],
        B: Float[Array, "n k"],
        *,
        implementation: Implementation = None,
    ) -> Float[Array, "nodes half_m half_k"]:
        """The workers' products, by `coded_products`."""
        U, V = jnp.asarray(self.U), jnp.asarray(self.V)
        return coded_products(A, B, U, V, implementation=implementation)

    def weights(
        self, alive: Bool[Array, " nodes"], dtype=None
    ) -> tuple[Float[Array, "4 nodes"], Bool[Array, ""]]:
        """The combination of the workers' products that gives the blocks of $C$, zero for those
        that failed, and whether there is one; if not, it is NaN.

        **Arguments:**

        - `alive`: which workers have answered.
        - `dtype`: of the result.
        """
        alive = jnp.asarray(alive)
        if alive.shape != (self.nodes,):
            raise ValueError(f"alive must have shape {(self.nodes,)}, got {alive.shape}")
        if alive.dtype != bool:
            raise TypeError(f"alive must be boolean, got {alive.dtype}")
        groups = self.coefficients.shape[-1]
        answers = jnp.zeros(groups, jnp.int32).at[np.array(self.group)].add(alive)
        bits = (1 << np.arange(groups)).astype(np.int32)
        place = self.place[jnp.sum(jnp.where(answers > 0, bits, 0))]
        dtype = self.coefficients.dtype if dtype is None else dtype
        whole = jax.lax.stop_gradient(self.coefficients)[place].astype(dtype)
        # The answers of copies are averaged.
        share = jnp.asarray(self.sign, dtype) / jnp.maximum(answers, 1)[np.array(self.group)]
        spread = whole[:, np.array(self.group)] * share
        ok = place > 0
        return jnp.where(alive | ~ok, spread, 0).astype(dtype), ok

    def decode(
        self,
        results: Float[Array, "nodes half_m half_k"],
        alive: Bool[Array, " nodes"],
        shape: tuple[int, int] | None = None,
    ) -> tuple[Float[Array, "m k"], Bool[Array, ""]]:
        """$C$ from the answers, and whether it could be recovered; if not, it is NaN.

        **Arguments:**

        - `results`: what the workers sent; what failed ones did is not looked at, NaN included.
        - `alive`: which have answered.
        - `shape`: of $C$, if it is odd; by default twice that of a result.

        **Raises:** `ValueError` if shapes do not fit; `TypeError` for integers, of which decoding
        may take halves.
        """
        if results.ndim != 3 or results.shape[0] != self.nodes:
            raise ValueError(f"expected {self.nodes} matrices, got shape {results.shape}")
        if not jnp.issubdtype(results.dtype, jnp.floating):
            raise TypeError(f"results must be floating-point, got {results.dtype}")
        weights, ok = self.weights(alive, _accumulator(results.dtype))
        heard = jnp.where(jnp.asarray(alive)[:, None, None], results, 0).astype(weights.dtype)
        blocks = jnp.einsum("cp,pmk->cmk", weights, heard, precision="highest")
        return _cut(_whole(blocks), shape).astype(results.dtype), ok

    def __call__(
        self,
        A: Float[Array, "m n"],
        B: Float[Array, "n k"],
        alive: Bool[Array, " nodes"],
        *,
        implementation: Implementation = None,
    ) -> tuple[Float[Array, "m k"], Bool[Array, ""]]:
        """$C$ from the workers that are alive, and whether it could be recovered."""
        results = self.encode(A, B, implementation=implementation)
        return self.decode(results, alive, (A.shape[0], B.shape[1]))

    def unrecoverable(self) -> tuple[int, ...]:
        """How many sets of `0, 1, ..., nodes` failed workers lose $C$; exact."""
        copies = np.bincount(self.group)
        kinds = np.unique(copies)
        lost = _patterns(len(copies))[::-1]
        bad = lost[_table(self.distinct)[0] == 0]
        numbers = np.stack([bad[:, copies == kind].sum(1) for kind in kinds], axis=1)
        total = [0] * (self.nodes + 1)
        for dead, times in zip(*np.unique(numbers, axis=0, return_counts=True), strict=True):
            # A product is lost if all of its copies are; else any but all of them may be.
            polynomial = [int(times)]
            for kind, some in zip(kinds, dead, strict=True):
                all_of = [0] * int(kind) + [1]
                fewer = [math.comb(int(kind), i) for i in range(int(kind))]
                for factor in [all_of] * int(some) + [fewer] * int(sum(copies == kind) - some):
                    polynomial = _multiply(polynomial, factor)
            for power, coefficient in enumerate(polynomial):
                total[power] += coefficient
        return tuple(total)

    def failure_probability(self, p: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Probability that $C$ is lost if each worker fails with probability $p$ by itself,
        $\\sum_k N_k p^k (1 - p)^{n - k}$ with the $N_k$ of `unrecoverable`; differentiable.

        **Arguments:**

        - `p`: in [0, 1], any shape.

        **Raises:** `ValueError` for a probability outside.
        """
        if not isinstance(p, Tracer) and not np.all(np.abs(np.asarray(p) - 0.5) <= 0.5):
            raise ValueError(f"p must be in [0, 1], got {p}")
        p = jnp.asarray(p, jnp.result_type(p, float))[..., None]
        counts, k = np.array(self.unrecoverable()), np.arange(self.nodes + 1)
        return jnp.sum(counts.astype(p.dtype) * p**k * (1 - p) ** (self.nodes - k), axis=-1)


def _multiply(a: list[int], b: list[int]) -> list[int]:
    product = [0] * (len(a) + len(b) - 1)
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        product[i + j] += x * y
    return product


def _cut(C: Array, shape: tuple[int, int] | None) -> Array:
    if shape is None:
        return C
    if any(not 0 <= whole - wanted <= 1 for whole, wanted in zip(C.shape, shape, strict=True)):
        raise ValueError(f"shape {shape} does not fit blocks that make {C.shape}")
    return C[: shape[0], : shape[1]]


def distributed_matmul(
    A: Float[Array, "m n"],
    B: Float[Array, "n k"],
    mesh: jax.sharding.Mesh,
    axis: str,
    alive: Bool[Array, " nodes"],
    code: FaultTolerantProduct | None = None,
    *,
    implementation: Implementation = None,
) -> tuple[Float[Array, "m k"], Bool[Array, ""]]:
    """$C = A B$ with the products of a code spread over the devices of a mesh.

    Every device has $A$ and $B$, forms its own sums of blocks and multiplies them. Decoding is a
    combination of the answers, so each device weights its own, in place of zeros if it is dead, and
    one sum over the axis, of the size of $C$, gives all of them $C$.

    **Arguments:**

    - `A`, `B`: floating-point, of any shapes that fit.
    - `mesh`, `axis`: the devices; a code of more nodes than devices gives some of them several,
      fewer nodes leave some idle.
    - `alive`: which nodes of the code have answered; data, so that nothing is compiled anew.
    - `code`: by default Strassen's and Winograd's products and two parities, 16 nodes. Inside of
      `jit` it is best made outside.

    **Returns:** $C$ on all devices, and whether it could be recovered; if not, $C$ is NaN.

    **Raises:** `ValueError` if shapes do not fit or the mesh has no such axis; `TypeError` for
    integers.

    **Reference:** Güney, Arslan, Fault-Tolerant Strassen-Like Matrix Multiplication, 2022,
    arXiv:2210.04441.
    """
    _check_pair(A, B)
    if axis not in mesh.shape:
        raise ValueError(f"the mesh has axes {tuple(mesh.shape)}, not {axis!r}")
    dtype = _out_type(A, B)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"matrices must be floating-point, got {dtype}")
    code = FaultTolerantProduct() if code is None else code
    weights, ok = code.weights(alive, _accumulator(dtype))
    each = -(-code.nodes // mesh.shape[axis])
    idle = each * mesh.shape[axis] - code.nodes
    pad = lambda x: jnp.pad(jnp.asarray(x), ((0, idle), *((0, 0),) * (x.ndim - 1)))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())
    def blocks(A, B, *nodes):
        first = jax.lax.axis_index(axis) * each
        own = lambda x: jax.lax.dynamic_slice_in_dim(x, first, each)
        U, V, alive, weights = map(own, nodes)
        results = coded_products(A, B, U, V, implementation=implementation)
        results = jnp.where(alive[:, None, None], results, 0).astype(weights.dtype)
        return jax.lax.psum(jnp.einsum("pc,pmk->cmk", weights, results, precision="highest"), axis)

    nodes = map(pad, (code.U, code.V, jnp.asarray(alive), weights.T))
    C = _whole(blocks(A, B, *nodes))
    return _cut(C, (A.shape[0], B.shape[1])).astype(dtype), ok
