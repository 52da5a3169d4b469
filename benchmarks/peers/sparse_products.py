"""Products with sparse matrices against scipy's, those of `jax.experimental.sparse` and dense ones.

Sparse MKL is not raced: its binding, `sparse_dot_mkl`, is no dependency. It has neither derivatives
nor a place inside a compiled program, in batches or on an accelerator.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.experimental import sparse

from benchmarks.timing import race
from jaxopt_ext_kernels import BCSR, CSR, bcsr_matmul, reorder_rows, spgemm, spgemm_symbolic, spmm

TITLE = (
    "float32; times dense: blocks of 32 x 32 in 2048 x 2048 times 128 columns, by share of blocks "
    "kept; 1024 x 1024 with entries anywhere, and with 16 x 16 blocks half full in shuffled rows, "
    "by density and number of columns k, with the density from which on the dense product is "
    "faster than ours; sparse times sparse: a graph of 1024 nodes and 8192 edges with hubs, and "
    "its first 128 nodes, squared, with places that were recorded too"
)

DENSITIES = (1e-4, 1e-3, 1e-2, 1e-1)
COLUMNS = (8, 64, 512)


def run() -> list[dict]:
    rng = np.random.default_rng(0)
    return [*_blocks(rng), *_unstructured(rng), *_squares(rng)]


def _rows(what, candidates, wanted, rounds=3):
    table = []
    for timing in race(candidates, reference="ours", rounds=rounds):
        gap = float(np.max(np.abs(np.asarray(candidates[timing.name]()) - wanted)))
        table.append(
            {
                "what": what,
                "who": timing.name,
                "ms": 1e3 * timing.seconds,
                "ratio": timing.ratio,
                "error": gap,
            }
        )
    return table


def _blocks(rng):
    dense = jnp.asarray(rng.normal(size=(2048, 128)), jnp.float32)
    product, kernel = jax.jit(lambda a, b: a @ b), jax.jit(bcsr_matmul)
    table = []
    for share in (0.01, 0.05, 0.2):
        mask = np.kron(rng.random((64, 64)) < share, np.ones((32, 32)))
        matrix = (mask * rng.normal(size=mask.shape)).astype(np.float32)
        ours, coo = BCSR.from_dense(matrix, (32, 32)), sparse.BCOO.fromdense(matrix)
        blocks, full = sparse.BCSR.fromdense(matrix), jnp.asarray(matrix)
        candidates = {
            "ours": lambda a=ours: kernel(a, dense),
            "BCOO": lambda a=coo: product(a, dense),
            "jax BCSR": lambda a=blocks: product(a, dense),
            "dense": lambda a=full: product(a, dense),
        }
        table += _rows(f"{share:g} of blocks", candidates, matrix @ np.asarray(dense))
    return table


def _unstructured(rng):
    """Times by structure, density and columns, and where the dense product takes over."""
    table = []
    product = jax.jit(lambda a, b: a @ b)
    kernel = jax.jit(spmm)
    for structure in ("anywhere", "shuffled blocks"):
        faster = {k: [] for k in COLUMNS}
        for density in DENSITIES:
            host = _matrix(structure, density, rng)
            csr = CSR.from_scipy(host)
            if structure == "anywhere":
                ours = csr
            else:
                ours = BCSR.from_csr(csr, (16, 16), reorder_rows(csr, (16, 16)))
            coo, blocks = sparse.BCOO.from_scipy_sparse(host), sparse.BCSR.from_scipy_sparse(host)
            full = csr.todense()
            for k in COLUMNS:
                dense = jnp.asarray(rng.normal(size=(1024, k)), jnp.float32)
                other = np.asarray(dense)
                candidates = {
                    "ours": lambda a=ours, b=dense: kernel(a, b),
                    "scipy": lambda a=host, b=other: a @ b,
                    "BCOO": lambda a=coo, b=dense: product(a, b),
                    "jax BCSR": lambda a=blocks, b=dense: product(a, b),
                    "dense": lambda a=full, b=dense: product(a, b),
                }
                rows = _rows(f"{structure}, {density:g}, k = {k}", candidates, host @ other)
                table += rows
                if rows[-1]["ratio"] < 1:
                    faster[k].append(density)
        for k, densities in faster.items():
            first = f"{min(densities):g}" if densities else f"none up to {DENSITIES[-1]:g}"
            table.append({"what": f"{structure}, k = {k}", "who": f"dense wins from {first}"})
    return table


def _matrix(structure, density, rng):
    n, block = 1024, 16
    if structure == "anywhere":
        mask = rng.random((n, n)) < density
    else:
        kept = rng.random((n // block, n // block)) < min(2 * density, 1)
        mask = np.kron(kept, np.ones((block, block))) * (rng.random((n, n)) < 0.5)
        mask = mask[rng.permutation(n)]
    return sp.csr_array((mask * rng.normal(size=mask.shape)).astype(np.float32))


def _squares(rng):
    count = 8192
    rows, columns = np.zeros((2, count), int)
    for _ in range(10):
        u = rng.random(count)
        rows = 2 * rows + (u >= 0.76)
        columns = 2 * columns + (((u >= 0.57) & (u < 0.76)) | (u >= 0.95))
    values = rng.normal(size=count).astype(np.float32)
    graph = sp.coo_array((values, (rows, columns)), shape=(1024, 1024)).tocsr()
    kernel, square = jax.jit(spgemm), jax.jit(lambda a: a @ a)
    table = []
    for size in (1024, 128):
        host = graph[:size, :size]
        ours, full = CSR.from_scipy(host), jnp.asarray(host.toarray())
        plan, record = (spgemm_symbolic(ours, ours, record=known) for known in (False, True))
        candidates = {
            "ours": lambda a=ours, p=plan: kernel(a, a, p).matrix.values,
            "ours, recorded": lambda a=ours, p=record: kernel(a, a, p).matrix.values,
            "scipy": lambda a=host: (a @ a).data,
            "dense": lambda a=full: square(a),
        }
        if size == 128:  # room for every pair of entries, which for all of the graph is 800 MB
            coo = sparse.BCOO.from_scipy_sparse(host)
            candidates["BCOO"] = lambda a=coo: square(a).data
        times = race(candidates, reference="ours", rounds=3)
        gap = np.max(np.abs(kernel(ours, ours, plan).matrix.todense() - (host @ host).toarray()))
        table += [
            {
                "what": f"graph of {size}, squared",
                "who": t.name,
                "ms": 1e3 * t.seconds,
                "ratio": t.ratio,
                "error": float(gap) if t.name == "ours" else "",
            }
            for t in times
        ]
    return table
