"""The nearest metric by Project and Forget, against quadratic programs with all triangles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import race, seconds
from jaxopt_ext.minimize import ProjectAndForget, metric_nearness

TITLE = (
    "The metric nearest to uniform dissimilarities, to a violation of 1e-2 and alone of 0.1: all "
    "triangle inequalities by OSQP and Clarabel for 50 points, the few that matter by Project and "
    "Forget also for 200, 500 and 1000, where all of them would be 4, 62 and 498 million rows; MB "
    "are of the rows kept, all or at most, in the same sparse format"
)
LIMIT = 3  # entries of a triangle inequality; a row of a longer path has more


def run() -> list[dict]:
    with jax.enable_x64(True):
        return _together(50) + [_alone(n) for n in (200, 500, 1000)]


def _distances(n):
    upper = np.triu(np.random.default_rng(0).uniform(size=(n, n)), 1)
    return upper + upper.T


def _rows(n):
    return n * (n - 1) * (n - 2) // 2


def _megabytes(rows, entries):
    """An index of 4 bytes and a number of 8 for each entry, and a bound for each row."""
    return (12 * entries + 8 * rows) / 1e6


def _ours(D, tol):
    solver = ProjectAndForget(capacity=4096, tol=tol, max_steps=400)
    return metric_nearness(jnp.asarray(D), solver=solver, progress=False)


def _kept(found):
    """Rows on the list at most, and how long one can be."""
    rows = found.solution.state.found
    return int(np.max(found.solution.trace["visited"])), int(rows.index.shape[1])


def _violation(D):
    """The largest of all triangles."""
    x = np.asarray(D)
    return max(float(np.max(x - x[:, [k]] - x[[k], :])) for k in range(len(x)))


def _full(D):
    """All triangles as a sparse matrix, in the order of the edges."""
    import scipy.sparse as sp

    n = len(D)
    i, j, k = np.array(list(itertools.combinations(range(n), 3))).T
    number = lambda u, v: u * (2 * n - u - 1) // 2 + v - u - 1
    edges = np.stack([number(i, j), number(i, k), number(j, k)], axis=1)
    signs = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    columns = np.repeat(edges, 3, axis=0)
    values = np.tile(signs, (len(edges), 1))
    index = np.repeat(np.arange(len(columns)), 3)
    shape = len(columns), n * (n - 1) // 2
    return sp.csc_matrix((values.ravel() * 1.0, (index, columns.ravel())), shape)


def _peer(name, A, given, tol):
    import scipy.sparse as sp

    size = given.size
    # Distances are not negative: that follows from the triangles.
    if name == "OSQP":
        import osqp

        solver = osqp.OSQP()
        low, high = np.full(A.shape[0], -np.inf), np.zeros(A.shape[0])
        options = {"verbose": False, "eps_abs": tol, "eps_rel": tol, "max_iter": 100_000}
        solver.setup(sp.identity(size, format="csc"), -given, A, low, high, **options)
        return solver.solve().x
    import clarabel

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tol
    P, cones = sp.identity(size, format="csc"), [clarabel.NonnegativeConeT(A.shape[0])]
    return np.array(
        clarabel.DefaultSolver(P, -given, A, np.zeros(A.shape[0]), cones, settings).solve().x
    )


def _together(n, tol=1e-2):
    D, pairs, found = _distances(n), np.triu_indices(n, 1), {}
    given, A = D[pairs], _full(D)

    def ours():
        found["ours"] = _ours(D, tol)
        return found["ours"].distances

    def theirs(name, accuracy):
        def call():
            x = np.zeros((n, n))
            x[pairs] = _peer(name, A, given, accuracy)
            found[name] = x + x.T
            return found[name]

        return call

    calls = {"ours": ours, "OSQP": theirs("OSQP", 1e-4), "Clarabel": theirs("Clarabel", 1e-6)}
    table = []
    for t in race(calls, reference="ours", rounds=1):
        x = found[t.name].distances if t.name == "ours" else found[t.name]
        rows, width = _kept(found["ours"]) if t.name == "ours" else (_rows(n), LIMIT)
        table.append(
            {
                "points": n,
                "who": t.name,
                "s": t.seconds,
                "ratio": t.ratio,
                "rows": rows,
                "MB": _megabytes(rows, rows * width),
                "violation": _violation(x),
                "objective": 0.5 * float(np.sum((np.asarray(x)[pairs] - given) ** 2)),
            }
        )
    return table


def _alone(n, tol=0.1):
    D, found = _distances(n), {}

    def call():
        found["ours"] = _ours(D, tol)
        return found["ours"].distances

    elapsed = seconds(call)  # compiling is next to nothing of it
    rows, width = _kept(found["ours"])
    return {
        "points": n,
        "who": "ours",
        "s": elapsed,
        "rows": rows,
        "MB": _megabytes(rows, rows * width),
        "MB of all": _megabytes(_rows(n), LIMIT * _rows(n)),
        "violation": _violation(found["ours"].distances),
        "rounds": int(found["ours"].solution.steps),
    }
