"""Matrix square roots and equivariant layers against other ways to compute them."""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from benchmarks.timing import race
from jaxopt_ext.linalg import (
    Eigh,
    EquivariantLinear,
    Exact,
    Lyapunov,
    NewtonSchulz,
    Orthogonal,
    Pade,
    sqrtm,
)

TITLE = (
    "float32. Square roots of geometric spectra of condition 100, with the gradient of a linear "
    "function; error of the root relative to scipy's in float64. OTT-JAX's gradient solves column "
    "by column, all of them in one program that takes minutes to compile, and is not run. "
    "Equivariant maps of order 2 to 2 under O(n), 16 at once, with the slope of log time in log n, "
    "which the paper counts as 2, and as 4 for the dense matrix"
)

OURS = {
    "Padé 5, Lyapunov 8": (Pade(5), Lyapunov(8)),
    "Padé 15, Lyapunov 12": (Pade(15), Lyapunov(12)),
    "Newton-Schulz 12, unrolled": (NewtonSchulz(12), None),
    "Newton-Schulz 12, Lyapunov 12": (NewtonSchulz(12), Lyapunov(12)),
    "eigendecomposition": (Eigh(), Exact()),
}


def run() -> list[dict]:
    return [*_roots(64, 64), *_roots(1, 256), *_layers()]


def _roots(count, n):
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(count, n, n)))[0]
    A = (vectors * np.geomspace(0.01, 1, n)) @ np.swapaxes(vectors, 1, 2)
    exact = (vectors * np.geomspace(0.01, 1, n) ** 0.5) @ np.swapaxes(vectors, 1, 2)
    A, G = np.float32(A), np.float32(rng.normal(size=A.shape))
    on_device, weights = jnp.asarray(A), jnp.asarray(G)
    roots = {name: lambda A, parts=parts: sqrtm(A, *parts) for name, parts in OURS.items()}
    if importlib.util.find_spec("ott"):
        ott = importlib.import_module("ott.math.matrix_square_root")
        roots["OTT-JAX"] = lambda A: ott.sqrtm_only(A)
    forward = {name: jax.jit(f) for name, f in roots.items()}
    both = {
        name: jax.jit(jax.value_and_grad(lambda A, G, f=f: jnp.vdot(G, f(A))))
        for name, f in roots.items()
        if name != "OTT-JAX"
    }
    rows = []
    for what, candidates in (
        ("forward", {name: lambda f=f: f(on_device) for name, f in forward.items()}),
        ("with gradient", {name: lambda f=f: f(on_device, weights) for name, f in both.items()}),
    ):
        if what == "forward":
            candidates["scipy"] = lambda: np.stack([scipy.linalg.sqrtm(one) for one in A])
        for timing in race(candidates, reference="Padé 5, Lyapunov 8", rounds=3):
            row = {
                "problem": f"{count} x {n} x {n}, {what}",
                "who": timing.name,
                "ms": 1e3 * timing.seconds,
                "ratio": timing.ratio,
            }
            if what == "forward":
                found = np.asarray(candidates[timing.name](), np.float64)
                row["error"] = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
            rows.append(row)
    return rows


def _layers():
    sizes, rows = (16, 32, 64), []
    for n in sizes:
        layer = EquivariantLinear(n, 2, 2, 1, 1, Orthogonal(), bias=False, key=jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (16, 1, n, n))
        fast = jax.jit(lambda layer, x: layer(x))
        # Column by column: the images of the basis.
        basis = jnp.eye(n * n).reshape(n * n, 1, n, n)
        matrix = fast(layer, basis).reshape(n * n, n * n)
        slow = jax.jit(lambda matrix, x: x.reshape(16, -1) @ matrix)
        candidates = {"diagrams": lambda: fast(layer, x), "dense": lambda: slow(matrix, x)}  # noqa: B023
        wanted = np.asarray(slow(matrix, x))
        for timing in race(candidates, reference="diagrams", rounds=5):
            found = np.asarray(candidates[timing.name]()).reshape(16, -1)
            rows.append(
                {
                    "problem": f"equivariant, n = {n}",
                    "who": timing.name,
                    "ms": 1e3 * timing.seconds,
                    "ratio": timing.ratio,
                    "error": float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
                }
            )
    for who in ("diagrams", "dense"):
        times = [row["ms"] for row in rows if row["who"] == who]
        slope = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
        next(row for row in rows[::-1] if row["who"] == who)["slope"] = slope
    return rows
