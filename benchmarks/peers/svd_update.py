"""Updates of a truncated decomposition against recomputation by ARPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from threadpoolctl import threadpool_limits

from benchmarks.timing import race
from jaxopt_ext.linalg import TruncatedSVD
from jaxopt_ext_kernels import CSR

TITLE = (
    "Ten rows more for 2000 rows of 20 entries, rank 16, float64, by number of columns; LAPACK has "
    "one thread, for both"
)


def run() -> list[dict]:
    table = []
    with threadpool_limits(1), jax.enable_x64(True):
        update = jax.jit(lambda svd, E: svd.add_rows(E))
        in_place = jax.jit(lambda svd, E: svd.add_rows(E), donate_argnums=0)
        for n in (2000, 20_000, 100_000):
            rng = np.random.default_rng(0)
            # A decaying weight of the columns makes a spectrum that ARPACK converges on.
            scale = sp.diags_array(1 / np.sqrt(1 + np.arange(n)))
            draw = lambda m: sp.csr_array(
                sp.random_array((m, n), density=20 / n, rng=rng) @ scale  # noqa: B023
            )
            A, E = draw(2000), draw(10)
            whole = sp.csr_array(sp.vstack([A, E]))
            svd = TruncatedSVD.from_matrix(A, 16, capacity=(4000, n))
            rows = CSR.from_scipy(E)
            held = {"svd": jax.tree.map(jnp.copy, svd)}

            def ours(held=held, rows=rows):
                held["svd"] = in_place(held["svd"], rows)
                return held["svd"].s

            candidates = {
                "ours": ours,
                "ARPACK": lambda whole=whole: scipy.sparse.linalg.svds(
                    whole, 16, rng=np.random.default_rng(0)
                ),
            }
            exact = np.sort(scipy.sparse.linalg.svds(whole, 16, return_singular_vectors=False))[
                ::-1
            ]
            errors = {"ours": np.max(np.abs(update(svd, rows).s - exact) / exact[0]), "ARPACK": 0.0}
            for timing in race(candidates, reference="ours", rounds=3):
                table.append(
                    {
                        "columns": n,
                        "who": timing.name,
                        "ms": 1e3 * timing.seconds,
                        "ratio": timing.ratio,
                        "error of s": float(errors[timing.name]),
                    }
                )
    return table
