"""A matrix unit measured from outside: how long a product takes, how many run side by side, and how
products, inner additions and the accumulation round.

`python -m jaxopt_ext_kernels.microbench` measures the device at hand and writes a report. A *unit*
is any function `(a, b, c) -> d` of one tile, $D = A B + C$; `unit` makes those of the device, and
probes take models in software as well. Of structured sparse products (2:4) JAX reaches one hardware
path, of GPUs of compute capability 10 (`tcgen05_mma` with metadata, in Pallas for Mosaic GPU),
which is not used here; the report names what is missing, and what it has measured is an emulation.
"""

import argparse
import functools
import json
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu, triton as plt
from jaxtyping import Array, Float, Int

from .spmm import Implementation

Unit = Callable[[Any, Any, Any], Any]
Shape = tuple[int, int, int]

SCHEMA = 1
"""Version of the report's JSON."""
QUICK = {
    "shapes": ((16, 8, 16), (16, 16, 16), (128, 128, 128)),
    "parallel": (1, 2, 4),
    "dtypes": ("float32", "bfloat16", "int8"),
    "trials": 1024,
    "sizes": (2**18, 2**22),
}
FULL = {
    "shapes": ((16, 8, 8), (16, 8, 16), (16, 16, 16), (64,) * 3, (128,) * 3, (256,) * 3),
    "parallel": (1, 2, 4, 8, 16, 32),
    "dtypes": ("float32", "tf32", "bfloat16", "float16", "float8_e4m3fn", "int8"),
    "trials": 10_000,
    "sizes": tuple(2**k for k in range(14, 27, 2)),
}
_DTYPES = FULL["dtypes"]


# The units of the device.


def _tf32(x: Array) -> Array:
    """Single precision with 10 bits of mantissa, to the nearest, half to even."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    result = jax.lax.bitcast_convert_type(rounded, jnp.float32)
    return jnp.where(jnp.isfinite(x), result, x)


def round_to(x: Any, dtype: str) -> np.ndarray:
    """The numbers that a type of the report holds, in double precision.

    **Arguments:**

    - `x`: numbers. `dtype`: the type's name; `"tf32"` is single precision cut to 10 bits.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    _check_dtype(dtype)
    x = np.asarray(x, np.float32)
    if dtype == "tf32":
        return np.asarray(_tf32(jnp.asarray(x)), np.float64)
    return np.asarray(x.astype(jnp.dtype(dtype)), np.float64)


def _check_dtype(dtype: str) -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {_DTYPES}, got {dtype!r}")


def unit(dtype: str, accumulator: str = "float32") -> Unit:
    """$D = A B + C$ on the device, compiled; inputs are rounded to `dtype`, sums are asked for in
    `accumulator`. What the compiler makes of that says `computed_in`.

    **Arguments:**

    - `dtype`: `"float32"`, `"tf32"` (emulated), `"bfloat16"`, `"float16"`, `"float8_e4m3fn"` or
      `"int8"`.
    - `accumulator`: `"float32"` or `"float16"`; of integers it is always 32 bits wide.

    **Returns:** a function of `a` (m, k), `b` (k, n) and `c` (m, n).

    **Raises:** `ValueError` for other types.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    _check_dtype(dtype)
    if accumulator not in ("float32", "float16"):
        raise ValueError(f"accumulator must be 'float32' or 'float16', got {accumulator!r}")
    return _unit(dtype, accumulator)


@functools.cache
def _unit(dtype: str, accumulator: str) -> Unit:
    return jax.jit(functools.partial(_multiply, dtype, accumulator))


def _multiply(dtype, accumulator, a, b, c):
    total = "int32" if dtype == "int8" else accumulator
    convert = _tf32 if dtype == "tf32" else lambda x: jnp.asarray(x).astype(dtype)
    precision = "highest" if dtype in ("float32", "tf32") else None
    product = jnp.matmul(convert(a), convert(b), precision=precision, preferred_element_type=total)
    return product + jnp.asarray(c).astype(total)


def compress_two_of_four(a: Float[Array, "m k"]) -> tuple[Array, Int[Array, "m half"]]:
    """The two entries of largest magnitude of each four along a row, of equals the first, and their
    places: what a sparse matrix unit reads, half of the numbers and 2 bits a number.

    **Arguments:**

    - `a`: k a multiple of four.

    **Returns:** entries and their columns, in order, both of shape (m, k / 2).

    **Raises:** `ValueError` for another shape.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    if a.ndim != 2 or a.shape[1] % 4:
        raise ValueError(f"expected rows of a multiple of four entries, got shape {a.shape}")
    m, k = a.shape
    fours = jnp.abs(a.reshape(m, k // 4, 4))
    kept = jnp.sort(jnp.argsort(-fours, axis=2)[:, :, :2], axis=2)
    places = (kept + 4 * jnp.arange(k // 4)[:, None]).reshape(m, k // 2).astype(jnp.int32)
    return jnp.take_along_axis(a, places, axis=1), places


def sparse_unit(dtype: str, accumulator: str = "float32") -> Unit:
    """$D = A_{2:4} B + C$ with the products of a 2:4 sparse unit and no others, emulated: for each
    entry that `compress_two_of_four` keeps the row of $B$ is gathered, so that it says how sums of
    half as many products round, and nothing about speed.

    **Arguments:**

    - `dtype`, `accumulator`: as for `unit`.

    **Raises:** `ValueError` for other types.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    unit(dtype, accumulator)
    return _sparse_unit(dtype, accumulator)


@functools.cache
def _sparse_unit(dtype, accumulator):
    def one(a, b, c):
        values, places = compress_two_of_four(jnp.asarray(a))
        rows = jnp.asarray(b)[places]  # (m, k / 2, n)
        multiply = lambda v, r, c: _multiply(dtype, accumulator, v[None], r, c[None])[0]
        return jax.vmap(multiply)(values, rows, jnp.asarray(c))

    return jax.jit(one)


def sparse_path(platform: str, kind: str) -> str:
    """Why 2:4 products of a device are not those of its matrix unit.

    **Arguments:**

    - `platform`, `kind`: of a `jax.Device`, its `platform` and `device_kind`.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    if platform not in ("gpu", "cuda"):
        return f"no hardware path: {kind} has no 2:4 sparse products"
    return (
        "no path from here: dots of XLA and Triton are not sparse (mma.sp, wgmma.sp); Pallas "
        "for Mosaic GPU has tcgen05_mma with metadata, for compute capability 10 only, not used"
    )


def sparse_profile(dtype: str = "float32", trials: int = 1024) -> list[dict[str, Any]]:
    """What can be said of 2:4 products on the default device: whether it has them, and how they
    round, emulated by `sparse_unit`, beside the dense unit on the same inputs.

    **Arguments:**

    - `dtype`, `trials`: as for `numeric_profile`, of whose probes those drawn `low` are taken.

    **Returns:** a row a probe: `product`, `dtype`, `status`, `measured` ("emulation"), `probe`,
    `error` and `bias` as `numeric_profile` has them, the dense unit's `dense_error`, and `ratio`,
    bytes of a compressed matrix over those of a dense one.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    device = jax.devices()[0]
    tables = (numeric_profile(u, dtype, trials) for u in (sparse_unit(dtype), unit(dtype)))
    bits = 8 * (4 if dtype == "tf32" else jnp.dtype(dtype).itemsize)
    return [
        {
            "product": "2:4",
            "dtype": dtype,
            "status": sparse_path(device.platform, device.device_kind),
            "measured": "emulation",
            "probe": sparse["probe"],
            "error": sparse["error"],
            "bias": sparse["bias"],
            "dense_error": dense["error"],
            "ratio": (bits + 2) / (2 * bits),
        }
        for sparse, dense in zip(*tables, strict=True)
        if sparse["drawn"] == "low"
    ]


def computed_in(dtype: str, accumulator: str = "float32", shape: Shape = (16, 16, 16)) -> str:
    """The types of the operands of the product in the compiled program, which a CPU may have
    widened; `"unknown"` if it is hidden in a library call.

    **Arguments:**

    - `dtype`, `accumulator`: as for `unit`. `shape`: m, n, k of the tile.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    m, n, k = shape
    sizes = ((m, k), (k, n), (m, n))
    kinds = "int8" if dtype == "int8" else "float32"
    shapes = [jax.ShapeDtypeStruct(s, kinds) for s in sizes]
    unit(dtype, accumulator)
    program = jax.jit(functools.partial(_multiply, dtype, accumulator)).lower(*shapes).compile()
    text = program.as_text() or ""
    types = dict(re.findall(r"%?([\w.\-]+) = (\w+)\[", text))
    found = re.search(r" dot\((.*?)\)", text)
    if not found:
        return "unknown"
    inside = re.findall(r"(\w+)\[[\d,]*\]", found[1])  # types stand there, or only names
    names = re.findall(r"%([\w.\-]+)", found[1])
    return ",".join(dict.fromkeys(inside or [types.get(name, "unknown") for name in names]))


# The chain, as a kernel.


def chained_dot(
    a: Float[Array, "m m"],
    x: Float[Array, "p m n"],
    c: Float[Array, "p m n"],
    steps: Int[Array, ""],
    *,
    implementation: Implementation = None,
) -> Float[Array, "p m n"]:
    """$X_i \\leftarrow A X_i + C_i$, `steps` times, for `p` independent chains: each product waits
    for the one before in its chain and for none in the others.

    Sums are in single precision and rounded to the type of $X$ at each step. In the Pallas body the
    chain runs inside of the kernel, in fast memory: on a TPU the chains are interleaved in one
    program, on a GPU each has its own. No derivative: this is what is timed.

    **Arguments:**

    - `a`, `x`, `c`: of one floating-point type.
    - `steps`: data, so that chains of all lengths are one program.
    - `implementation`: `"pallas"`, `"xla"`, or `None` for Pallas on TPU and GPU and XLA elsewhere.

    **Raises:** `ValueError` if shapes do not fit or the implementation is unknown; `TypeError` for
    other types.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    if a.ndim != 2 or x.ndim != 3 or a.shape != (x.shape[1],) * 2 or x.shape != c.shape:
        raise ValueError(f"shapes do not fit: {a.shape}, {x.shape} and {c.shape}")
    if not a.dtype == x.dtype == c.dtype or not jnp.issubdtype(a.dtype, jnp.floating):
        raise TypeError(f"expected one floating type, got {a.dtype}, {x.dtype} and {c.dtype}")
    if implementation is None:
        implementation = "xla" if jax.default_backend() == "cpu" else "pallas"
    if implementation not in ("pallas", "xla"):
        raise ValueError(f"implementation must be 'pallas', 'xla' or None, got {implementation!r}")
    steps = jnp.asarray(steps, jnp.int32)
    if 0 in x.shape:
        return x
    return (_chain_xla if implementation == "xla" else _chain_pallas)(a, x, c, steps)


def _step(a, x, c):
    total = jnp.promote_types(a.dtype, jnp.float32)
    return (jnp.dot(a, x, preferred_element_type=total) + c.astype(total)).astype(x.dtype)


@jax.jit
def _chain_xla(a, x, c, steps):
    chains = tuple(zip(x, c, strict=True))  # separate products, no batched one
    body = lambda _, xs: tuple(_step(a, x, c) for x, (_, c) in zip(xs, chains, strict=True))
    return jnp.stack(jax.lax.fori_loop(0, steps, body, tuple(x)))


@jax.jit
def _chain_pallas(a, x, c, steps):
    # The platform is known when the program is lowered, not when it is traced.
    return jax.lax.platform_dependent(
        a,
        x,
        c,
        steps,
        cpu=functools.partial(_chain_tpu, interpret=True),
        tpu=_chain_tpu,
        cuda=_chain_triton,
    )


def _padded(sides, *arrays):
    down, across = sides
    pad = lambda z, side: jnp.pad(z, ((0, 0), (0, down), (0, side)))
    a, x, c = arrays
    return pad(a[None], down)[0], pad(x, across), pad(c, across)


def _chain_tpu(a, x, c, steps, *, interpret=False):
    p, m, n = x.shape
    a, x, c = _padded((-m % 128, -n % 128), a, x, c)

    def kernel(steps, a, x, c, out):
        out[...] = x[...]

        def body(_, carry):
            for i in range(p):
                out[i] = _step(a[...], out[i], c[i])
            return carry

        jax.lax.fori_loop(0, steps[0], body, 0)

    whole = lambda z: pl.BlockSpec(z.shape, lambda i, steps: (0,) * z.ndim)
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(1,),
            in_specs=[whole(a), whole(x), whole(c)],
            out_specs=whole(x),
        ),
        interpret=interpret,
    )(steps.reshape(1), a, x, c)
    return out[:, :m, :n]


def _chain_triton(a, x, c, steps):
    p, m, n = x.shape
    side = lambda size: max(16, 1 << (size - 1).bit_length())  # powers of two
    a, x, c = _padded((side(m) - m, side(n) - n), a, x, c)

    def kernel(steps, a, x, c, out):
        matrix, constant = a[...], c[0]

        def body(_, tile):
            total = pl.dot(matrix, tile).astype(jnp.float32) + constant.astype(jnp.float32)
            return total.astype(tile.dtype)

        out[0] = jax.lax.fori_loop(0, steps[0], body, x[0])

    one = pl.BlockSpec((1, *x.shape[1:]), lambda i: (i, 0, 0))
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(p,),
        in_specs=[
            pl.BlockSpec((1,), lambda i: (0,)),
            pl.BlockSpec(a.shape, lambda i: (0, 0)),
            one,
            one,
        ],
        out_specs=one,
        compiler_params=plt.CompilerParams(),
    )(steps.reshape(1), a, x, c)
    return out[:, :m, :n]


# Times.


def slope(run: Callable[[int], Any], steps: int, repeats: int = 7, *, trust: float = 0.0) -> float:
    """Seconds of one step: the difference of `2 steps` and `steps` steps, over `steps`, which takes
    out what a launch costs; each is the least of its repeats, in turn.

    **Arguments:**

    - `run`: what takes so many steps; its result is waited for.
    - `steps`: so many that they take longer than the clock's noise.
    - `trust`: if the difference is not above this fraction of the whole, which is what noise on a
      shared machine does, the whole over its steps is taken: too slow, but no fantasy.

    **Raises:** `ValueError` if a count is below 1.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    if steps < 1 or repeats < 1:
        raise ValueError(f"steps and repeats must be at least 1, got {steps} and {repeats}")
    seconds = {steps: [], 2 * steps: []}
    jax.block_until_ready(run(steps))  # compiled and warm
    for _ in range(repeats):
        for count, times in seconds.items():
            start = time.perf_counter()
            jax.block_until_ready(run(count))
            times.append(time.perf_counter() - start)
    whole = min(seconds[2 * steps]) / (2 * steps)
    difference = (min(seconds[2 * steps]) - min(seconds[steps])) / steps
    return difference if difference > trust * whole else whole


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chains(dtype, accumulator, a, xs, cs, steps):
    """D goes into B of the next product, so that none can be hoisted, folded or skipped."""
    k = a.shape[1]

    def body(_, xs):
        ds = [_multiply(dtype, accumulator, a, x, c) for x, c in zip(xs, cs, strict=True)]
        return [d[jnp.arange(k) % d.shape[0]].astype(x.dtype) for d, x in zip(ds, xs, strict=True)]

    return jax.lax.fori_loop(0, steps, body, xs)


def _seconds(dtype, shape, parallel, seconds, repeats):
    """Seconds for one round of `parallel` products."""
    _check_dtype(dtype)
    if min(*shape, parallel) < 1:
        raise ValueError(f"sizes must be at least 1, got {shape} and {parallel} chains")
    m, n, k = shape
    rng = np.random.default_rng(0)
    if dtype == "int8":
        draw = lambda *s: jnp.asarray(rng.integers(-9, 10, s), jnp.int8)
    else:  # chains stay bounded
        draw = lambda *s: jnp.asarray(rng.normal(size=s) / (2 * max(m, k) ** 0.5), jnp.float32)
    a = draw(m, k)
    xs, cs = ([draw(*s) for _ in range(parallel)] for s in ((k, n), (m, n)))
    run = lambda steps: _chains(dtype, "float32", a, xs, cs, steps)
    jax.block_until_ready(run(8))
    start = time.perf_counter()
    jax.block_until_ready(run(8))
    steps = int(np.clip(8 * seconds / (time.perf_counter() - start), 8, 10**6))
    return slope(run, steps, repeats, trust=0.5)


def latency(
    dtype: str, shape: Shape = (16, 16, 16), *, seconds: float = 0.02, repeats: int = 7
) -> float:
    """Seconds from a product to the next that needs it.

    **Arguments:**

    - `dtype`: as for `unit`. `shape`: m, n, k of the tile.
    - `seconds`: about how long a chain is timed. `repeats`: the least of these counts.

    **Raises:** `ValueError` for another type or size.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    return _seconds(dtype, shape, 1, seconds, repeats)


def throughput(
    dtype: str,
    shape: Shape = (16, 16, 16),
    parallel: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    seconds: float = 0.02,
    repeats: int = 7,
) -> list[dict[str, Any]]:
    """Operations in a second against the number of independent chains.

    **Arguments:**

    - `dtype`, `shape`, `seconds`, `repeats`: as for `latency`.
    - `parallel`: numbers of chains.

    **Returns:** for each number of chains `flops` a second (`2 m n k` a product), whether it is the
    `knee`, the least number that reaches 95 % of the best, and the products `in_flight` by
    Little's law, throughput times latency.

    **Raises:** `ValueError` for another type or size.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    rounds = [_seconds(dtype, shape, p, seconds, repeats) for p in parallel]
    rates = np.array([p / max(s, 1e-12) for p, s in zip(parallel, rounds, strict=True)])
    knee = int(np.argmax(rates >= 0.95 * rates.max()))
    return [
        {
            "parallel": int(p),
            "flops": float(rate * 2 * np.prod(shape)),
            "knee": i == knee,
            "in_flight": float(rate * rounds[0]),
        }
        for i, (p, rate) in enumerate(zip(parallel, rates, strict=True))
    ]


@jax.jit
def _copies(x, steps):
    return jax.lax.fori_loop(0, steps, lambda _, x: x[::-1] + 1, x)


@jax.jit
def _loads(x, steps):
    return jax.lax.fori_loop(0, steps, lambda _, t: jnp.max(x * (t + 1)), jnp.float32(0))


def bandwidth(size: int, *, seconds: float = 0.02, repeats: int = 7) -> dict[str, float]:
    """Bytes in a second that are copied (read and written), and that are only read.

    **Arguments:**

    - `size`: bytes of the array. `seconds`, `repeats`: as for `latency`.

    **Raises:** `ValueError` for less than 4 bytes.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    if size < 4:
        raise ValueError(f"size must be at least 4 bytes, got {size}")
    x = jnp.ones(size // 4, jnp.float32)
    found = {"size": float(size)}
    for name, program, moved in (("copy", _copies, 2), ("load", _loads, 1)):
        jax.block_until_ready(program(x, 4))
        start = time.perf_counter()
        jax.block_until_ready(program(x, 4))
        steps = int(np.clip(4 * seconds / (time.perf_counter() - start), 4, 10**6))
        one = slope(functools.partial(program, x), steps, repeats, trust=0.5)
        found[name] = moved * x.nbytes / max(one, 1e-12)
    return found


# Numbers.


def numeric_profile(
    product: Unit, dtype: str, trials: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """Errors of three probes: one product, a sum of two products, and a product added to $C$.

    Entries are $N(0, 1)$, rounded to the type beforehand (`low`) or by the unit (`full`: then the
    error is that of the inputs too). In each tile all other products are of zeros.

    **Arguments:**

    - `product`: the unit. `dtype`: what its inputs are rounded to.
    - `trials`: at least so many results for each probe. `seed`: of the draws.

    **Returns:** for each probe and way to draw the mean `error`, the mean `relative` error, both
    against double precision, and the `bias`, the mean of the error away from zero over the mean
    error: -1 is truncation.

    **Raises:** `ValueError` for another type, or no trials.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    _check_dtype(dtype)
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    table, side, k = [], 16, 16
    for drawn in ("low", "full"):
        rng = np.random.default_rng(seed)
        for probe, used in (("multiplication", 1), ("addition", 2), ("accumulation", 1)):
            errors, exact = [], []
            for _ in range(-(-trials // side**2)):
                a, b, c = np.zeros((side, k)), np.zeros((k, side)), np.zeros((side, side))
                scale = 40 if dtype == "int8" else 1
                a[:, :used] = scale * rng.normal(size=(side, used))
                b[:used] = scale * rng.normal(size=(used, side))
                if probe == "accumulation":
                    c = scale * rng.normal(size=(side, side))
                a, b, c = (x.astype(np.float32) for x in (a, b, c))
                if drawn == "low" or dtype == "int8":
                    a, b = (round_to(np.clip(x, -127, 127), dtype) for x in (a, b))
                    c = np.rint(c) if dtype == "int8" else c
                wanted = a.astype(float) @ b.astype(float) + c.astype(float)
                found = product(*(x.astype(np.float32) for x in (a, b, c)))
                errors.append(np.asarray(found, np.float64) - wanted)
                exact.append(wanted)
            error, wanted = np.array(errors), np.array(exact)
            size = np.abs(error).mean()
            relative = np.abs(error) / np.maximum(np.abs(wanted), np.finfo(np.float32).tiny)
            away = (error * np.sign(wanted)).mean()
            table.append(
                {
                    "probe": probe,
                    "drawn": drawn,
                    "error": float(size),
                    "relative": float(relative.mean()),
                    "bias": float(away / size) if size > 0 else 0.0,
                }
            )
    return table


def chain_error(product: Unit, dtype: str, steps: int = 14, seed: int = 0) -> dict[str, Any]:
    """Relative error of $X \\leftarrow A X$ on tiles of 16, entries $N(0, 1)$, against double
    precision from the same rounded start, and the first step that overflows.

    **Arguments:**

    - `product`, `dtype`: as for `numeric_profile`. `steps`: products. `seed`: of the draw.

    **Returns:** `errors`, one a step, and `overflow`, the step's number or 0.

    **Raises:** `ValueError` for another type, or no steps.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    _check_dtype(dtype)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    a, exact = round_to(np.random.default_rng(seed).normal(size=(2, 16, 16)), dtype)
    x, zero, errors, overflow = exact, np.zeros((16, 16), np.float32), [], 0
    for step in range(1, steps + 1):
        exact = a @ exact
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.asarray(product(a.astype(np.float32), x.astype(np.float32), zero))
            x = round_to(found, dtype)
            errors.append(float(np.linalg.norm(x - exact) / np.linalg.norm(exact)))
        if not overflow and not np.all(np.isfinite(x)):
            overflow = step
    return {"errors": errors, "overflow": overflow}


def accumulator_width(product: Unit) -> dict[str, Any]:
    """How wide the accumulator is and how it rounds, by adding small products to $C = 2^k$.

    The width is the number of bits of the largest $2^k$ to which 1 can be added; at the next power
    numbers are 2 apart, and 1.5 is rounded to 2 by a nearest rounding, to 0 by truncation.

    **Arguments:**

    - `product`: the unit.

    **Returns:** `bits`, mantissa with its leading one: 24 in single precision, 11 in half; 61 if
    none was lost up to $2^{60}$; and `rounding`, `"nearest"`, `"truncation"` or `"other"`.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """

    def add(c, value):
        a, b = np.zeros((16, 16), np.float32), np.zeros((16, 16), np.float32)
        a[0, 0], b[0, 0] = value, 1
        whole = np.zeros((16, 16), np.float32)
        whole[0, 0] = c
        # The difference to C, taken by the unit too, or large numbers could not be told apart.
        return float(np.asarray(product(a, b, whole), np.float64)[0, 0]) - c

    bits = next((k for k in range(1, 61) if add(2.0**k, 1.0) != 1.0), 61)
    up, down = add(2.0**bits, 1.5), add(-(2.0**bits), -1.5)
    kinds = {(2.0, -2.0): "nearest", (0.0, 0.0): "truncation"}
    return {"bits": bits, "rounding": kinds.get((up, down), "other")}


def special_values(product: Unit, dtype: str) -> dict[str, bool]:
    """What becomes of numbers at the edges.

    **Arguments:**

    - `product`, `dtype`: as for `numeric_profile`.

    **Returns:** whether subnormal inputs and results of single precision are kept (`subnormal_in`,
    `subnormal_out`), whether $\\infty \\cdot 0$ and $\\infty - \\infty$ are NaN, and whether a NaN
    in $A$ reaches its row only (`nan_stays_in_row`).

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    _check_dtype(dtype)

    def one(a, b, c=0.0):
        tiles = [np.zeros((16, 16), np.float32) for _ in range(3)]
        for tile, value in zip(tiles, (a, b, c), strict=True):
            tile[0, 0] = value
        return np.asarray(product(*tiles), np.float64)

    kind = jnp.finfo(jnp.float32 if dtype in ("tf32", "int8") else jnp.dtype(dtype))
    with np.errstate(invalid="ignore"):
        nan = one(np.nan, 1)
        return {
            "subnormal_in": bool(one(float(kind.tiny) / 2, 1)[0, 0] != 0),
            "subnormal_out": bool(one(2.0**-64, 2.0**-63)[0, 0] != 0),
            "inf_times_zero": bool(np.isnan(one(np.inf, 0)[0, 0])),
            "inf_minus_inf": bool(np.isnan(one(np.inf, 1, -np.inf)[0, 0])),
            "nan_stays_in_row": bool(np.isnan(nan[0, 0]) and not np.isnan(nan[1:]).any()),
        }


# The report.


class Report(eqx.Module):
    """What `profile` found: tables, each a list of rows with equal keys.

    **Attributes:**

    - `device`: backend, kind of device and version of JAX.
    - `tables`: `latency`, `throughput`, `bandwidth`, `numeric`, `chain`, `accumulator`, `special`,
      `sparse`.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """

    device: dict[str, str]
    tables: dict[str, list[dict[str, Any]]]

    def to_json(self) -> str:
        """As text, with the schema's version; what is not finite becomes null."""
        plain = lambda v: None if isinstance(v, float) and not np.isfinite(v) else v
        clean = lambda v: [plain(x) for x in v] if isinstance(v, list) else plain(v)
        tables = {
            name: [{key: clean(v) for key, v in row.items()} for row in rows]
            for name, rows in self.tables.items()
        }
        return json.dumps({"schema": SCHEMA, "device": self.device, **tables}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """From what `to_json` wrote.

        **Raises:** `ValueError` for another version.
        """
        tables = json.loads(text)
        if tables.pop("schema", None) != SCHEMA:
            raise ValueError(f"expected a report of schema {SCHEMA}, got {text[:40]!r}")
        return cls(tables.pop("device"), tables)

    @property
    def ridge(self) -> dict[str, float]:
        """Operations for each byte read above which a type's peak, not the memory, is the limit."""
        bytes_per_second = max(row["load"] for row in self.tables["bandwidth"])
        peaks: dict[str, float] = {}
        for row in self.tables["throughput"]:
            peaks[row["dtype"]] = max(peaks.get(row["dtype"], 0.0), row["flops"])
        return {dtype: peak / bytes_per_second for dtype, peak in peaks.items()}

    def plot_roofline(self, ax: Any = None) -> Any:
        """Operations a second against operations for each byte, by matplotlib; gives the axes."""
        from .plots import roofline

        return roofline(self, ax)

    def plot_errors(self, ax: Any = None) -> Any:
        """Errors of chained products against their number, by matplotlib; gives the axes."""
        from .plots import errors

        return errors(self, ax)


def profile(quick: bool = True, *, seconds: float = 0.02, repeats: int = 7) -> Report:
    """Measure the default device.

    Types that it does not compute are left out of the tables of times and have a row in `special`
    that says so.

    **Arguments:**

    - `quick`: few shapes, types and chains, about a minute; else those of the paper.
    - `seconds`, `repeats`: of each time.

    **Reference:** Sun, Li, Geng, Stuijk, Corporaal, Dissecting Tensor Cores via Microbenchmarks,
    2023, arXiv:2206.02874.
    """
    settings: dict[str, Any] = QUICK if quick else FULL
    options = {"seconds": seconds, "repeats": repeats}
    names = ("latency", "throughput", "numeric", "chain", "accumulator", "special", "sparse")
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for dtype in settings["dtypes"]:
        for accumulator in ("float32", *(() if dtype != "float16" else ("float16",))):
            head = {"dtype": dtype, "accumulator": "int32" if dtype == "int8" else accumulator}
            try:
                product = unit(dtype, accumulator)
                width = accumulator_width(product)
                measured = computed_in(dtype, accumulator)
            except Exception as reason:  # a backend's refusal has no type of its own
                tables["special"].append({**head, "unsupported": type(reason).__name__})
                continue
            tables["accumulator"].append({**head, "computed_in": measured, **width})
            profile = numeric_profile(product, dtype, settings["trials"])
            tables["numeric"] += [{**head, **row} for row in profile]
            if accumulator == "float32":
                tables["sparse"] += sparse_profile(dtype, settings["trials"])
            if dtype != "int8":
                tables["chain"].append({**head, **chain_error(product, dtype)})
                tables["special"].append({**head, **special_values(product, dtype)})
            if accumulator == "float32":
                for shape in settings["shapes"]:
                    where = {"dtype": dtype, "computed_in": measured, "shape": list(shape)}
                    rows = throughput(dtype, shape, settings["parallel"], **options)
                    first = 2 * float(np.prod(shape)) * rows[0]["parallel"] / rows[0]["flops"]
                    tables["latency"].append({**where, "seconds": first})
                    tables["throughput"] += [{**where, **row} for row in rows]
    tables["bandwidth"] = [bandwidth(size, **options) for size in settings["sizes"]]
    first = jax.devices()[0]
    device = {"backend": first.platform, "kind": first.device_kind, "jax": jax.__version__}
    return Report(device, tables)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: measure, print the peaks, write `report.json` and `roofline.png`."""
    parser = argparse.ArgumentParser("python -m jaxopt_ext_kernels.microbench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all shapes and types of the paper")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("microbench"))
    parser.add_argument("--seconds", type=float, default=0.02, help="about, for each time")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    report = profile(not options.full, seconds=options.seconds, repeats=options.repeats)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(report.to_json(), encoding="utf-8")
    print(" ".join(report.device.values()))
    for row in report.tables["throughput"]:
        if row["knee"]:
            print(f"  {row['dtype']:14} {row['shape']!s:16} {row['flops'] / 1e9:10.2f} Gflop/s")
    for dtype, ridge in report.ridge.items():
        print(f"  {dtype:14} ridge at {ridge:.1f} operations for each byte")
    written = [options.out / "report.json"]
    try:
        figure = report.plot_roofline().figure
    except ImportError as missing:
        print(missing)
    else:
        figure.savefig(options.out / "roofline.png", dpi=120)
        written.append(options.out / "roofline.png")
    print("wrote", *written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
