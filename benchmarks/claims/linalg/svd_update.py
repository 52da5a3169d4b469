"""Updates of a truncated decomposition against Zha and Simon's, and on a growing graph."""

import functools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg
from threadpoolctl import threadpool_limits

from benchmarks.claims import Outcome
from benchmarks.claims.linalg import _sparse
from benchmarks.timing import race
from jaxopt_ext import linalg
from jaxopt_ext_kernels import CSR

CLAIM = (
    "100 updates by 8 sparse rows give Zha and Simon's decomposition to 1e-10, with singular "
    "vectors orthonormal to 1e-9; at rank 32 and 20 entries a row, an update's time grows with an "
    "exponent below 0.2 from 10,000 to 1,000,000 columns, and with 100,000 columns it takes at "
    "most a fifth of Zha and Simon's; on block graphs that grow from 250 to 850 nodes in 50 "
    "batches, the leading subspace is nearer to the recomputed one than without updates, exactly "
    "augmented and in spaces of dimension 10; on each of 3 seeds."
)
SETTINGS = (
    "Sizes are those of the claim. After a profile on seed 0, which was then a reported one, the "
    "graph was made smaller, from 1250 nodes to 850 and from batches of 20 to 12, the chances of "
    "an edge raised from 0.01, and 0.05 more within a block, to 0.02 and 0.06, and columns drawn "
    "in another way, so that the claim takes less time. A run on seeds 2000 to 2002 failed by an "
    "exponent of 0.76: beside other work one of nine times was 1.3 ms, and eight were 44 to 76. "
    "Since then LAPACK has one thread, for both sides, where two waited for each other. Seeds "
    "3000 to 3002, on which nothing was chosen; runs before reported 0 to 2 and 1000 to 1002."
)

ALONE = True

K, S, EACH = 32, 8, 20
SIZES = (10_000, 100_000, 1_000_000)
BLOCKS, NODES, FIRST, BATCH = 4, 850, 250, 12


def run() -> Outcome:
    with threadpool_limits(1), jax.enable_x64(True):
        update = jax.jit(lambda svd, E: svd.add_rows(E), donate_argnums=0)
        table = [_row(seed, update) for seed in range(3000, 3003)]
    holds = all(
        r["gap"] <= 1e-10
        and r["not orthonormal"] <= 1e-9
        and r["exponent"] < 0.2
        and r["Zha-Simon / ours, 1e5"] >= 5
        and max(r["angle, exact"], r["angle, Lanczos"], r["angle, power"]) < r["angle, none"]
        for r in table
    )
    return Outcome(
        table,
        holds,
        "Angles in radians, of the four leading left singular vectors to those of the whole "
        "graph. Zha and Simon's update is compiled too.",
        why="ours: times of a millisecond on a machine that does other work",
    )


def _row(seed, update):
    gap, skew = _accuracy(seed)
    times = {n: _times(seed, n, update) for n in SIZES}
    slope = np.log(times[SIZES[-1]][0] / times[SIZES[0]][0]) / np.log(SIZES[-1] / SIZES[0])
    none, exact, lanczos, power = _angles(seed)
    return {
        "seed": seed,
        "gap": gap,
        "not orthonormal": skew,
        **{f"ms, {n:g}": 1e3 * times[n][0] for n in SIZES},
        "exponent": float(slope),
        "Zha-Simon / ours, 1e5": times[100_000][1],
        "angle, none": none,
        "angle, exact": exact,
        "angle, Lanczos": lanczos,
        "angle, power": power,
    }


def _accuracy(seed):
    rng = np.random.default_rng(seed)
    n = 500
    svd = _sparse.start(rng, n, 8, 900)
    u, s, v = svd.u[:100], svd.s, svd.v
    plain = jax.jit(lambda svd, E: svd.add_rows(E))
    for _ in range(100):
        E = _sparse.rows(rng, S, n, EACH)
        svd = plain(svd, E)
        u, s, v = _zha_simon(u, s, v, E.todense())
    gap = jnp.max(jnp.abs((svd.u * svd.s) @ svd.v.T - (u * s) @ v.T))
    skew = max(jnp.max(jnp.abs(f.T @ f - jnp.eye(8))) for f in (svd.u, svd.v))
    return float(gap), float(skew)


def _zha_simon(u, s, v, E):
    """In numpy, whose shapes may grow."""
    k = len(s)
    C = np.asarray(v.T @ E.T)
    Q, R = np.linalg.qr(np.asarray(E.T) - v @ C)
    F, t, Gt = np.linalg.svd(np.block([[np.diag(s), np.zeros((k, len(E)))], [C.T, R.T]]))
    return np.vstack([u @ F[:k, :k], F[k:, :k]]), t[:k], v @ Gt[:k].T[:k] + Q @ Gt[:k].T[k:]


def _times(seed, n, update):
    """Seconds of ours, and the ratio of Zha and Simon's where it is run."""
    rng = np.random.default_rng(seed)
    svd = _sparse.start(rng, n, K, 1000)
    E = _sparse.rows(rng, S, n, EACH)
    dense = (svd.u[:100], jnp.copy(svd.s), svd.v, E.todense()) if n == 100_000 else ()
    held = {"svd": svd}

    def ours():
        held["svd"] = update(held["svd"], E)
        return held["svd"].s

    candidates = {"ours": ours}
    if dense:
        candidates["Zha-Simon"] = lambda: _sparse.zha_simon(*dense)
    found = {t.name: t for t in race(candidates, reference="ours", rounds=5)}
    return found["ours"].seconds, found["Zha-Simon"].ratio if dense else 0.0


def _angles(seed):
    sizes = [NODES // BLOCKS + (i < NODES % BLOCKS) for i in range(BLOCKS)]
    chances = 0.02 + 0.06 * np.eye(BLOCKS)
    graph = nx.stochastic_block_model(sizes, chances, seed=seed)
    order = np.random.default_rng(seed).permutation(NODES)  # blocks come mixed
    A = sp.csr_array(nx.to_scipy_sparse_array(graph, dtype=float))[order][:, order]
    whole = scipy.sparse.linalg.svds(A, BLOCKS, rng=np.random.default_rng(0))[0]
    begun = linalg.TruncatedSVD.from_matrix(A[:FIRST, :FIRST], 8, capacity=(NODES, NODES))
    ways = (linalg.GramSchmidt(), linalg.Lanczos(10), linalg.RandomizedPower(10))
    angle = lambda svd: float(scipy.linalg.subspace_angles(np.asarray(svd.u)[:, :BLOCKS], whole)[0])
    batches = _batches(A)
    out = [angle(begun)]
    for way in ways:
        svd = begun
        for E, F in batches:
            svd = _grown(svd, E, F, way)
        out.append(angle(svd))
    return out


@functools.partial(jax.jit, static_argnums=3)
def _grown(svd, E, F, way):
    return svd.add_rows(E, way).add_columns(F, way)


def _batches(A):
    """New rows over the nodes that are there, and then new columns over all."""
    parts = []
    for end in range(FIRST + BATCH, NODES + 1, BATCH):
        begin = end - BATCH
        parts.append((A[begin:end, :begin].tocoo(), A[:end, begin:end].tocoo()))
    shapes = ((BATCH, NODES), (NODES, BATCH))
    return [
        tuple(CSR.from_coo(p.data, p.row, p.col, shapes[i], nnz=600) for i, p in enumerate(pair))
        for pair in parts
    ]
