"""Project and Forget against programs with all half-spaces written down, and loops in numpy."""

import contextlib
import dataclasses
import importlib
import itertools

import cvxpy as cp
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
import scipy.stats

import jaxopt_ext as jxt
from jaxopt_ext import minimize
from jaxopt_ext.minimize import (
    AbsoluteError,
    Dijkstra,
    Entropy,
    FloydWarshall,
    ForgetAll,
    HalfSpaces,
    LargestError,
    ListOracle,
    LogDet,
    MatrixQuadratic,
    Pairs,
    ProjectAndForget,
    Quadratic,
    RandomTriangleOracle,
    RelativeEntropy,
    ShortestPathOracle,
    correlation_clustering,
    itml,
    metric_nearness,
    project_with_oracle,
)
from jaxopt_ext.minimize.bregman import MetricPoint

RNG = np.random.default_rng(11)
SLOW = pytest.mark.slow


def symmetric(upper):
    upper = np.triu(upper, 1)
    return upper + upper.T


def pairs(matrix):
    return np.asarray(matrix)[np.triu_indices(len(matrix), 1)]


def triangles(n):
    """All triangle inequalities of a complete graph, $Tx \\le 0$."""
    number = {pair: k for k, pair in enumerate(itertools.combinations(range(n), 2))}
    rows = []
    for triple in itertools.combinations(range(n), 3):
        sides = [number[pair] for pair in itertools.combinations(triple, 2)]
        for side in sides:
            rows.append(np.zeros(len(number)))
            rows[-1][sides] = -1
            rows[-1][side] = 1
    return np.array(rows)


def least(objective, x, *constraints):
    problem = cp.Problem(cp.Minimize(objective(x)), list(constraints))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return problem.value, x.value


@SLOW
def test_nearest_metric_equals_the_program_with_all_triangles():
    n = 6
    D = symmetric(RNG.uniform(size=(n, n)))
    T, x = triangles(n), cp.Variable(n * (n - 1) // 2)
    _, wanted = least(lambda x: cp.sum_squares(x - pairs(D)), x, T @ x <= 0)
    found = metric_nearness(D, solver=ProjectAndForget(tol=1e-8))
    assert found.solution.status == jxt.Status.converged
    np.testing.assert_allclose(pairs(found.distances), wanted, atol=1e-7)
    assert np.max(T @ pairs(found.distances)) <= 1e-8
    trace = found.solution.trace
    assert trace["remembered"][-1] < 0.3 * len(T)
    assert found.solution.state.found.excess(found.solution.value.primal).shape == (
        trace["remembered"][-1],
    )


@pytest.mark.slow
def test_the_violation_falls_linearly_and_drawn_oracles_find_the_same():
    n = 12
    D = symmetric(np.random.default_rng(0).uniform(size=(n, n)))
    found = metric_nearness(D, solver=ProjectAndForget(tol=1e-8))
    trace = found.solution.trace
    assert trace["remembered"][-1] < 0.1 * len(triangles(n))
    fall = scipy.stats.linregress(np.arange(10), np.log(trace["violation"][-10:]))
    assert fall.slope < -0.2
    assert fall.rvalue**2 > 0.98
    settings = ProjectAndForget(tol=1e-5, max_steps=2000)
    for forget in (settings.forget, ForgetAll()):
        again = metric_nearness(
            D,
            oracle=RandomTriangleOracle(n, 150),
            solver=dataclasses.replace(settings, forget=forget),
            key=jax.random.key(2),
        )
        assert again.solution.status == jxt.Status.converged
        np.testing.assert_allclose(again.distances, found.distances, atol=1e-4)


def test_triangles_drawn_at_random():
    """Each in its own form, none twice, and of nodes that are three."""
    cuts = RandomTriangleOracle(6, 500).separate(np.zeros(15), -np.inf, jax.random.key(0))
    dense = np.zeros((len(cuts.rows.index), 15))
    np.put_along_axis(dense, cuts.rows.index, cuts.rows.coefficient, axis=1)
    order = lambda rows: rows[np.lexsort(rows.T)]
    np.testing.assert_array_equal(order(dense), order(triangles(6)))


@pytest.mark.slow
def test_few_half_spaces_are_remembered_of_many():
    for n, rounds, share in ((40, 10, 0.02), (80, 60, 0.02)):
        D = symmetric(RNG.uniform(size=(n, n)))
        found = metric_nearness(D, solver=ProjectAndForget(max_steps=rounds))
        assert found.solution.trace["violation"][-1] < 0.05
        every = n * (n - 1) * (n - 2) // 2
        assert found.solution.trace["remembered"][-1] < share * every


DISCREPANCIES = {
    "squares": (None, lambda x, d, w: 0.5 * cp.sum(cp.multiply(w, cp.square(x - d))), 1),
    "entropy": (RelativeEntropy(), lambda x, d, w: cp.sum(cp.multiply(w, cp.kl_div(x, d))), 1),
    "absolute": (AbsoluteError(0.5), lambda x, d, w: w @ cp.abs(x - d), 1.5),
    "largest": (LargestError(0.5), lambda x, d, w: cp.norm_inf(cp.multiply(w, x - d)), 1.5),
}


@SLOW
@pytest.mark.parametrize("name", DISCREPANCIES)
def test_every_discrepancy_is_least_or_within_its_fraction(name):
    n, rng = 6, np.random.default_rng(0)  # draws of its own: some take many more rounds
    discrepancy, objective, factor = DISCREPANCIES[name]
    D, W = symmetric(rng.uniform(0.1, 1, (n, n))), symmetric(rng.uniform(1, 2, (n, n)))
    d, w, x, T = pairs(D), pairs(W), cp.Variable(n * (n - 1) // 2), triangles(n)
    best, wanted = least(lambda x: objective(x, d, w), x, T @ x <= 0)
    options = {} if discrepancy is None else {"discrepancy": discrepancy}
    solver = ProjectAndForget(tol=1e-8, sweeps=10, max_steps=3000)
    found = metric_nearness(D, W, solver=solver, **options)
    assert found.solution.status == jxt.Status.converged
    value = pairs(found.distances)
    assert np.max(T @ value) <= 1e-7
    assert objective(value, d, w).value <= factor * best + 1e-6
    if factor == 1:
        np.testing.assert_allclose(value, wanted, atol=1e-6)


def by_hand(d, n, rounds, sweeps):
    """Rounds in plain Python: paths by networkx, multipliers in a dictionary."""
    names = list(itertools.combinations(range(n), 2))
    number = {pair: k for k, pair in enumerate(names)}
    x, z, bound, sizes = d.copy(), {}, np.zeros(len(d)), []
    for _ in range(rounds):
        graph = nx.Graph()
        for k, (i, j) in enumerate(names):
            graph.add_edge(i, j, length=max(x[k], 0))
        listed = dict(z)
        for k, (i, j) in enumerate(names):
            path = nx.dijkstra_path(graph, i, j, weight="length")
            steps = frozenset(number[tuple(sorted(e))] for e in itertools.pairwise(path))
            if x[k] > sum(max(x[f], 0) for f in steps) + 1e-9:
                listed.setdefault((k, steps), 0.0)
        sizes.append(len(listed))
        for _ in range(sweeps):
            for k, steps in listed:
                slack = sum(x[f] for f in steps) - x[k]
                c = min(listed[k, steps], slack / (1 + len(steps)))
                x[k] += c
                for f in steps:
                    x[f] -= c
                listed[k, steps] -= c
            for k in range(len(d)):
                c = min(bound[k], x[k])
                x[k], bound[k] = x[k] - c, bound[k] - c
        z = {name: value for name, value in listed.items() if value > 0}
    return x, sizes


# Tests that take these share their compiled rounds.
SPREAD = symmetric(np.random.default_rng(1).uniform(size=(6, 6)))
FOUR_ROUNDS = ProjectAndForget(max_steps=4, capacity=1, tol=1e-8)


def test_a_bar_moves_once_a_round(monkeypatch):
    moves = []

    @contextlib.contextmanager
    def bar(total, description, *, enabled):
        yield lambda steps, **shown: moves.append((total, steps, enabled, shown))

    module = importlib.import_module("jaxopt_ext.minimize.project_and_forget")
    monkeypatch.setattr(module, "progress_bar", bar)
    solution = metric_nearness(SPREAD, solver=FOUR_ROUNDS, progress=False).solution
    assert len(moves) == solution.steps > 1
    assert all(move[:3] == (4, 1, False) for move in moves)
    assert moves[-1][3]["remembered"] == solution.trace["remembered"][-1]


def test_rounds_equal_a_loop_in_python():
    found = metric_nearness(SPREAD, solver=FOUR_ROUNDS)
    wanted, sizes = by_hand(pairs(SPREAD), 6, 4, 2)
    np.testing.assert_allclose(pairs(found.distances), wanted, atol=1e-9)
    np.testing.assert_array_equal(found.solution.trace["visited"], sizes)
    assert found.solution.status == jxt.Status.step_limit
    assert int(found.solution.steps) == 4


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=SLOW), jnp.float64])
def test_each_projection_lands_on_its_hyperplane(dtype):
    """With the gradient moved along the half-space's normal."""
    rng = np.random.default_rng(0)
    tol = 1e-9 if dtype == jnp.float64 else 2e-4
    A, b = rng.normal(size=(20, 6)), rng.uniform(-1, 1, 20)
    A[:, 5] = -np.abs(A[:, 5])  # so that each has positive points
    A[:, 4] = np.abs(A[:, 4])
    A[rng.uniform(size=A.shape) < 0.3] = 0
    A[:, 3:] += [0, 0.5, -0.5]
    rows = jax.tree.map(
        lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else None),
        HalfSpaces.from_matrix(A, b),
    )
    weights, x = rng.uniform(1, 3, 6).astype(dtype), rng.uniform(1, 2, 6).astype(dtype)
    root = rng.normal(size=(6, 6))
    matrix = (root @ root.T + 6 * np.eye(6)).astype(dtype)
    many = np.full(20, 1e3, dtype)  # so that no visit stops short

    @jax.jit
    def run(x, rows, many, on):
        each = []
        for bregman in (Quadratic(x, weights), Entropy(x, weights), MatrixQuadratic(x, matrix)):
            correct = lambda r, z, f=bregman: f.correct(x, r, z, on)
            found, dual = jax.vmap(correct)(rows, many)
            each.append((found, dual, jax.vmap(jax.grad(bregman))(found) - jax.grad(bregman)(x)))
        return each

    for (found, dual, moved), (stays, same, _) in zip(
        run(x, rows, many, True), run(x, rows, many, False), strict=True
    ):
        on = np.sum(A * np.asarray(found), axis=1) - b
        np.testing.assert_allclose(on, 0, atol=30 * tol)
        np.testing.assert_allclose(moved, (many - dual)[:, None] * A, atol=300 * tol)
        np.testing.assert_allclose(stays, np.tile(x, (20, 1)), rtol=1e-6)
        np.testing.assert_array_equal(same, many)
        assert found.dtype == dtype


@SLOW
def test_pair_projections_are_those_of_the_divergence():
    rng = np.random.default_rng(1)
    points = MetricPoint(jnp.eye(3) + 0.1, jnp.asarray([0.4, 2.0]))
    bregman = LogDet(jnp.eye(3), jnp.ones(2), 0.7)
    slope = jax.jit(jax.grad(bregman))
    for sign in (1.0, -1.0):
        row = Pairs(jnp.asarray(rng.normal(size=3)), jnp.asarray(sign), jnp.asarray(1))
        found, dual = bregman.correct(points, row, jnp.asarray(50.0), jnp.asarray(True))
        np.testing.assert_allclose(row.vector @ found.matrix @ row.vector, found.slack[1])
        moved = jax.tree.map(jnp.subtract, slope(found), slope(points))
        c = (50.0 - dual) * sign
        np.testing.assert_allclose(moved.matrix, c * jnp.outer(row.vector, row.vector), atol=1e-8)
        np.testing.assert_allclose(moved.slack, [0, -c], atol=1e-8)
        back = bregman.from_slope(slope(found))
        np.testing.assert_allclose(back.matrix, found.matrix, atol=1e-8)
        np.testing.assert_allclose(back.slack, found.slack, atol=1e-8)


def test_shortest_paths_of_both_searches():
    """On a sparse graph, with edges of length zero and below."""
    graph = nx.gnm_random_graph(15, 35, seed=4)
    edges = np.array(graph.edges)
    x = np.round(RNG.uniform(-0.1, 1, len(edges)), 1)
    for (i, j), length in zip(edges, x, strict=True):
        graph[i][j]["length"] = max(length, 0)
    lengths = dict(nx.all_pairs_dijkstra_path_length(graph, weight="length"))
    shorter = np.array([x[k] - lengths[i][j] for k, (i, j) in enumerate(edges)])
    for search in (FloydWarshall(), Dijkstra()):
        oracle = ShortestPathOracle(15, edges, search)
        cuts = oracle.separate(x, 1e-9, jax.random.key(0))
        assert len(cuts.rows.index) == np.sum(shorter > 1e-9) > 5
        np.testing.assert_array_equal(cuts.rows.index[:, 0], np.flatnonzero(shorter > 1e-9))
        np.testing.assert_allclose(oracle.violation(x), np.max(shorter), atol=1e-6)
        clipped = np.sum(cuts.rows.coefficient * np.maximum(x, 0)[cuts.rows.index], axis=1)
        np.testing.assert_allclose(clipped, shorter[shorter > 1e-9], atol=1e-6)
        for row, coefficient in zip(cuts.rows.index, cuts.rows.coefficient, strict=True):
            cycle = edges[row[coefficient != 0]]
            assert len(cycle) >= 3
            assert np.all(np.unique(cycle, return_counts=True)[1] == 2)  # each node twice


@SLOW
def test_relaxed_clustering_is_within_its_fraction_of_the_linear_program():
    """Of a sparse graph too, whose cycle inequalities say what all triangles say of its edges."""
    n = 8
    S = symmetric(RNG.normal(size=(n, n)) * (RNG.uniform(size=(n, n)) < 0.6))
    signed, x = pairs(S), cp.Variable(n * (n - 1) // 2)
    given = 1.0 * (signed < 0)
    cost = lambda x: np.abs(signed) @ cp.abs(x - given)
    best, _ = least(cost, x, triangles(n) @ x <= 0, x >= 0, x <= 1)
    found = correlation_clustering(S, 0.1, solver=ProjectAndForget(sweeps=10, tol=1e-7))
    assert found.solution.status == jxt.Status.converged
    assert best - 1e-6 <= found.cost <= 1.1 * best + 1e-6
    assert best / 1.1 - 1e-6 <= found.lower_bound <= best + 1e-9
    assert np.min(found.distances) >= -1e-6
    assert np.max(found.distances) <= 1 + 1e-6
    np.testing.assert_array_equal(found.edges, np.stack(np.nonzero(np.triu(S)), axis=1))


@SLOW
def test_learned_metric_keeps_its_pairs_and_has_derivatives():
    points = RNG.normal(size=(20, 3))
    near, far = np.array([[0, 1], [2, 3], [4, 5], [6, 6]]), np.array([[0, 10], [1, 12], [3, 15]])
    solver = ProjectAndForget(tol=1e-10, sweeps=10)

    def learned(scale, upper):
        prior = scale * jnp.eye(3)
        return itml(points, near, far, upper, 4.0, 0.5, prior=prior, solver=solver)

    found = learned(1.0, 0.5)
    assert found.solution.status == jxt.Status.converged
    assert np.linalg.eigvalsh(found.matrix)[0] > 0
    slack = np.asarray(found.solution.value.primal.slack)
    gap = lambda p: points[p[:, 0]] - points[p[:, 1]]
    square = lambda p: np.einsum("ki,ij,kj->k", gap(p), found.matrix, gap(p))
    assert np.all(square(near) <= slack[:4] + 1e-8)
    assert np.all(square(far) >= slack[4:] - 1e-8)
    drawn = itml(points, near, far, 0.5, 4.0, 0.5, probability=0.5, solver=solver)
    np.testing.assert_allclose(drawn.matrix, found.matrix, atol=1e-7)
    score = lambda *p: jnp.sum(jnp.sin(jnp.arange(9.0).reshape(3, 3) * learned(*p).matrix))
    slopes = jax.grad(score, argnums=(0, 1))(1.0, 0.5)
    ahead, behind = score(1 + 1e-5, 0.5 + 2e-5), score(1 - 1e-5, 0.5 - 2e-5)
    np.testing.assert_allclose(slopes[0] + 2 * slopes[1], (ahead - behind) / 2e-5, rtol=1e-5)


@SLOW
def test_derivatives_of_nearest_metrics_equal_differences():
    n = 6
    D, W = symmetric(RNG.uniform(size=(n, n))), symmetric(RNG.uniform(1, 2, (n, n)))
    along = [symmetric(RNG.normal(size=(n, n))) for _ in range(2)]
    solver = ProjectAndForget(tol=1e-11)
    score = lambda D, W: jnp.sum(jnp.cos(3 * metric_nearness(D, W, solver=solver).distances))
    slopes = jax.grad(score, argnums=(0, 1))(jnp.asarray(D), jnp.asarray(W))
    h = 1e-5
    ends = [score(D + s * h * along[0], W + s * h * along[1]) for s in (1, -1)]
    found = sum(np.vdot(slope, a) for slope, a in zip(slopes, along, strict=True))
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * h), rtol=1e-5)


def _program(rng, m=30, n=5):
    A, root = rng.normal(size=(m, n)), rng.normal(size=(n, n))
    A[3], A[4] = 0, A[5]  # a row of zeros, and one twice
    middle = A @ rng.normal(size=n)
    lower, upper = middle - rng.uniform(0, 1, m), middle + rng.uniform(0, 1, m)
    lower[:5] = -np.inf
    lower[10] = upper[10] = middle[10]
    return root @ root.T + np.eye(n), 5 * rng.normal(size=n), A, lower, upper


@SLOW
def test_programs_with_few_slots_and_drawn_rows():
    """One slot more than rows are active is enough."""
    P, q, A, l, u = _program(np.random.default_rng(3))
    problem, x = jxt.QuadraticProgram(P, q, A, l, u), cp.Variable(5)
    finite = np.isfinite(l)
    goal = lambda x: 0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x
    _, wanted = least(goal, x, A @ x <= u, A[finite] @ x >= l[finite])
    for options in (
        {"capacity": 6, "probability": 0.5},
        {"probability": 0.5, "forget": ForgetAll()},
    ):
        solver = ProjectAndForget(tol=1e-8, max_steps=20_000, sweeps=5, **options)
        found = jxt.solve(problem, solver)
        assert found.status == jxt.Status.converged
        np.testing.assert_allclose(found.value.primal, wanted, atol=1e-6)
        assert np.sum(np.asarray(found.value.dual) != 0) <= 6
    again = jxt.solve(problem, ProjectAndForget(tol=1e-7), found.value)
    assert int(again.steps) == 1  # from the multipliers, and no other start


def test_programs_without_a_solution_say_so():
    eye, rows = np.eye(2), np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    solver = ProjectAndForget()

    def status(P, l, u):
        return jxt.solve(jxt.QuadraticProgram(P, np.array([1.0, 2]), rows, l, u), solver).status

    inf = np.inf
    assert status(eye, [1.0, -inf, -1], [inf, 0.0, 1]) == jxt.Status.infeasible
    assert status(eye, [0.0, 0, 1], [inf, inf, 2]) == jxt.Status.infeasible
    assert status(np.diag([1.0, 0]), [0.0, 0, -1], [1.0, 1, 1]) == jxt.Status.breakdown
    assert status(np.diag([1.0, -1]), [0.0, 0, -1], [1.0, 1, 1]) == jxt.Status.breakdown


@SLOW
def test_lists_without_a_solution_say_so():
    apart = ListOracle.from_matrix(np.array([[1.0, 1], [-1, -1]]), np.array([-1.0, 0]))
    assert project_with_oracle(Quadratic(np.ones(2)), apart).status == jxt.Status.infeasible


@SLOW
@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_lists_and_a_dense_quadratic(probability):
    P, c, A, _, u = _program(np.random.default_rng(5))
    u = u + 0.5 * np.abs(A @ c)
    x = cp.Variable(5)
    _, wanted = least(lambda x: cp.quad_form(x - c, cp.psd_wrap(P)), x, A @ x <= u)
    oracle = ListOracle.from_matrix(A, u, probability)
    solver = ProjectAndForget(tol=1e-8, max_steps=3000, sweeps=10)
    found = project_with_oracle(MatrixQuadratic(c, P), oracle, solver=solver)
    assert found.status == jxt.Status.converged
    np.testing.assert_allclose(found.value.primal, wanted, atol=1e-6)


@SLOW
def test_what_is_a_metric_stays_in_single_precision_too():
    X = RNG.normal(size=(6, 2)).astype(np.float32)
    D = np.linalg.norm(X[:, None] - X, axis=-1)
    found = metric_nearness(D)
    assert found.distances.dtype == jnp.float32
    assert int(found.solution.steps) == 1
    np.testing.assert_allclose(found.distances, 0.5 * (D + D.T), atol=1e-6)
    spread = symmetric(RNG.uniform(size=(6, 6)).astype(np.float32))
    rough = metric_nearness(spread, solver=ProjectAndForget(tol=1e-5))
    assert rough.solution.status == jxt.Status.converged
    assert rough.solution.residual.dtype == jnp.float32
    fine = metric_nearness(spread.astype(np.float64)).distances
    np.testing.assert_allclose(rough.distances, fine, atol=1e-4)


def test_bad_input():
    D = SPREAD
    cases = [
        (lambda: metric_nearness(D[:3]), "square"),
        (lambda: metric_nearness(np.triu(D)), "symmetric"),
        (lambda: metric_nearness(D + np.eye(6)), "diagonal"),
        (lambda: metric_nearness(-D), "negative"),
        (lambda: metric_nearness(D, np.ones((3, 3))), "fit"),
        (lambda: metric_nearness(D, -np.ones((6, 6))), "weights"),
        (lambda: metric_nearness(0 * D, discrepancy=RelativeEntropy()), "center"),
        (lambda: metric_nearness(D, oracle=ShortestPathOracle(7)), "variables"),
        (lambda: metric_nearness(D, solver=ProjectAndForget(forget=ForgetAll())), "random"),
        (lambda: correlation_clustering(0 * D), "no edge"),
        (lambda: correlation_clustering(D, 0.0), "gamma"),
        (lambda: AbsoluteError(-1.0), "gamma"),
        (lambda: LargestError(0.0), "gamma"),
        (lambda: ShortestPathOracle(3, [[0, 3]]), "outside"),
        (lambda: ShortestPathOracle(3, [[0, 1], [1, 0]]), "twice"),
        (lambda: RandomTriangleOracle(2, 5), "num_nodes"),
        (lambda: ListOracle.from_matrix(np.eye(3), np.ones(2)), "row per bound"),
        (lambda: ListOracle.from_matrix(np.eye(3), np.ones(3), 0.0), "probability"),
        (
            lambda: project_with_oracle(
                Quadratic(np.ones(2)), ListOracle.from_matrix(np.eye(3), np.ones(3))
            ),
            "entry 2",
        ),
        (lambda: MatrixQuadratic(np.ones(2), -np.eye(2)), "definite"),
        (lambda: MatrixQuadratic(np.ones(2), np.eye(3)), "shape"),
        (lambda: HalfSpaces(np.zeros((2, 3), int), np.zeros((2, 2)), np.zeros(2)), "shape"),
        (lambda: itml(D, [], [], 1.0, 2.0), "no pair"),
        (lambda: itml(D, [[0, 9]], [], 1.0, 2.0), "outside"),
        (lambda: itml(D, [], [[1, 1]], 1.0, 2.0), "equal points"),
        (lambda: itml(D, [[0, 1]], [], 1.0, 2.0, 0.0), "gamma"),
        (lambda: ProjectAndForget(sweeps=0), "sweeps"),
        (lambda: ProjectAndForget(capacity=0), "capacity"),
        (lambda: ProjectAndForget(probability=0.0), "probability"),
    ]
    for make, match in cases:
        with pytest.raises(ValueError, match=match):
            make()
    with pytest.raises(TypeError, match="forget"):
        ProjectAndForget(forget=3)
    with pytest.raises(TypeError, match="host"):
        jax.jit(lambda D: metric_nearness(D).distances)(D)
    with pytest.raises(RuntimeError, match="limit"):
        metric_nearness(SPREAD, solver=FOUR_ROUNDS, throw=True)
    spoiled = SPREAD.copy()
    spoiled[0, 1] = spoiled[1, 0] = np.nan
    found = metric_nearness(spoiled, solver=FOUR_ROUNDS)
    assert found.solution.status == jxt.Status.nonfinite
    assert minimize.complete_graph(3).tolist() == [[0, 1], [0, 2], [1, 2]]
