"""Products by Strassen's and Winograd's recursions against XLA's own."""

import jax
import jax.numpy as jnp

from benchmarks.timing import race
from jaxopt_ext_kernels import strassen_matmul

TITLE = "Square matrices in float32, by number of rows and levels; above 1 jnp.dot wins"


def run() -> list[dict]:
    table = []
    for n in (1024, 2048, 4096):
        A, B = jax.random.normal(jax.random.key(0), (2, n, n), jnp.float32)
        candidates = {"jnp.dot": jax.jit(jnp.dot)}
        for algorithm in ("strassen", "winograd"):
            for levels in (1, 2, 3):
                candidates[f"{algorithm}, {7**levels} products"] = jax.jit(
                    lambda A, B, levels=levels, algorithm=algorithm: strassen_matmul(
                        A, B, levels=levels, algorithm=algorithm
                    )
                )
        timed = {name: lambda fun=fun, A=A, B=B: fun(A, B) for name, fun in candidates.items()}
        for timing in race(timed, reference="jnp.dot", rounds=3):
            row = {"rows": n, "who": timing.name, "ms": 1e3 * timing.seconds, "ratio": timing.ratio}
            table.append(row)
    return table
