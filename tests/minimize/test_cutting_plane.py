"""Cutting planes: their bodies by numpy and scipy, their minima by linear programs."""

import dataclasses

import jax
import jax.numpy as jnp
import lapack
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial

import jaxopt_ext as jxt
from jaxopt_ext import prox
from jaxopt_ext.minimize import textbook
from jaxopt_ext.minimize.textbook import (
    CenterOfGravity,
    Constants,
    Ellipsoid,
    FunctionOracle,
    PolygonCentroid,
    SampledCentroid,
    Vaidya,
)

STEPS, PIECES = 200, 12


def _instances(size, n):
    rng = np.random.default_rng(5)
    return rng.normal(size=(size, PIECES, n)), rng.normal(size=(size, PIECES))


def _minimum(A, b):
    """Of the largest of affine functions on the unit box, by HiGHS."""
    n = A.shape[1]
    rows = np.concatenate([A, -np.ones((PIECES, 1))], axis=1)
    bounds = [(-1, 1)] * n + [(None, None)]
    return scipy.optimize.linprog(np.eye(n + 1)[n], rows, -b, bounds=bounds).fun


def _trace(problem, x, state):
    return problem.smooth(x), state.best.lower


def _gaps(solver, A, b, dtype=jnp.float64):
    """Values of the best points and lower bounds of each step, of a batch in one program."""

    def one(A, b):
        problem = jxt.Constrained(lambda x: jnp.max(A @ x + b), prox.Box(-1.0, 1.0))
        solution = jxt.solve(problem, solver, jnp.zeros(A.shape[1], dtype), trace=_trace)
        return solution.trace, solution.status._value, solution.residual

    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(one))(jnp.asarray(A, dtype), jnp.asarray(b, dtype))
    )


def _check_guarantees(size, solvers):
    for n, solver in solvers:
        A, b = _instances(size, n)
        best = np.array([_minimum(*pair) for pair in zip(A, b, strict=True)])
        (values, lower), status, residual = _gaps(solver, A, b)
        at = np.linspace(0, STEPS - 1, 10).astype(int)
        spread = np.max(np.abs(A).sum(2) + b, axis=1) - best
        if not isinstance(solver, Vaidya):
            for gap, most in zip(values[:, at] - best[:, None], spread, strict=True):
                constants = Constants(spread=most, radius=n**0.5, inner_radius=1.0, dimension=n)
                if isinstance(solver, CenterOfGravity):
                    constants = Constants(spread=most, dimension=n)
                bound = textbook.guarantee(solver, at + 1, constants)
                assert (gap <= bound + 1e-9).all(), type(solver)
        # What is proved holds, and says something in the end where it is known.
        assert (values >= best[:, None] - 1e-9).all()
        assert (lower <= best[:, None] + 1e-9).all(), type(solver)
        if not (isinstance(solver, CenterOfGravity) and n > 2):
            assert (values - lower)[:, -1].max() < 0.5
        assert (values[:, -1] - best).max() < 5e-3
        # There is a kink where the minimum is: nobody says converged but at a corner of the box.
        said = status == jxt.Status.converged._value
        assert said.sum() <= size // 10
        assert (values[said, -1] - best[said] <= 1e-12).all()
        assert (residual[~said] > 0).all()


FEW = [
    (3, Ellipsoid(3**0.5, max_steps=STEPS)),
    (3, Vaidya(1.0, max_steps=STEPS)),
    (2, CenterOfGravity(1.0, max_steps=STEPS)),
]


@pytest.mark.parametrize("solver", FEW, ids=lambda pair: type(pair[1]).__name__)
def test_gaps_are_below_guarantees_and_certificates(solver):
    _check_guarantees(4, [solver])


@pytest.mark.slow
def test_gaps_of_many_are_below_guarantees_and_certificates():
    """To the end, also where the minimum is a corner of the box and the residual gets small."""
    pairs = [*FEW, (3, CenterOfGravity(1.0, max_steps=STEPS))]
    _check_guarantees(20, [(n, dataclasses.replace(solver, tol=0.0)) for n, solver in pairs])


def _numpy_ellipsoid(A, b, radius, steps):
    n = A.shape[1]
    c, H = np.zeros(n), radius**2 * np.eye(n)
    for _ in range(steps):
        w = c - np.clip(c, -1, 1) if np.abs(c).max() > 1 else A[np.argmax(A @ c + b)]
        Hw, size = H @ w, w @ H @ w
        c = c - Hw / ((n + 1) * np.sqrt(size))
        H = n**2 / (n**2 - 1) * (H - 2 / (n + 1) * np.outer(Hw, Hw) / size)
    return c, H


def test_ellipsoids_by_numpy():
    A, b = (a[0] for a in _instances(1, 3))
    problem = jxt.Constrained(
        lambda x: jnp.max(jnp.asarray(A) @ x + jnp.asarray(b)), prox.Box(-1.0, 1.0)
    )
    solver = Ellipsoid(2.0, max_steps=40)
    state = jxt.solve(problem, solver, jnp.zeros(3), trace=lambda p, x, s: s.shape)
    center, H = _numpy_ellipsoid(A, b, 2.0, 40)
    np.testing.assert_allclose(state.state.center, center, rtol=1e-7)
    np.testing.assert_allclose(state.state.shape @ state.state.shape.T, H, rtol=1e-6, atol=1e-12)
    volumes = np.linalg.det(state.trace)
    ratio = (3 / 8**0.5) ** 3 * (2 / 4) ** 0.5  # of central cuts, whatever they are
    np.testing.assert_allclose(volumes[1:] / volumes[:-1], ratio, rtol=1e-9)


def test_polygons_by_scipy():
    centroid, rng = PolygonCentroid(), np.random.default_rng(0)
    body = centroid.start(2, jnp.asarray(1.0), None)
    cut, key, center = jax.jit(centroid.cut), jax.random.key(0), np.zeros(2)
    rows = [[1.0, 0, -1], [-1, 0, -1], [0, 1, -1], [0, -1, -1]]
    for _ in range(8):
        w = rng.normal(size=2)
        w /= np.linalg.norm(w)
        rows.append([*w, -w @ center])
        move, body, ok = cut(body, jnp.asarray(w), key)
        center = center + np.asarray(move)
        assert ok
        inside = scipy.spatial.HalfspaceIntersection(np.array(rows), center)
        corners = np.unique(np.round(inside.intersections, 12), axis=0)
        hull = scipy.spatial.Delaunay(corners)
        triangles = corners[hull.simplices]
        sides = triangles[:, 1:] - triangles[:, :1]
        areas = np.abs(np.linalg.det(sides))
        wanted = areas @ triangles.mean(axis=1) / areas.sum()
        np.testing.assert_allclose(center, wanted, rtol=1e-7, atol=1e-9)
        g = rng.normal(size=2)
        least = centroid.least(body, jnp.asarray(g))
        np.testing.assert_allclose(least, ((corners - center) @ g).min(), rtol=1e-7)


def test_polytopes_of_vaidya_by_numpy():
    A, b = (a[0] for a in _instances(1, 3))
    problem = jxt.Constrained(
        lambda x: jnp.max(jnp.asarray(A) @ x + jnp.asarray(b)), prox.Box(-1.0, 1.0)
    )
    trace = lambda p, x, s: (s.rows, s.room, s.used, s.center)
    solution = jxt.solve(problem, Vaidya(1.0, max_steps=STEPS), jnp.zeros(3), trace=trace)
    rows, rooms, useds, centers = (np.asarray(a) for a in solution.trace)
    for step in (0, 10, 50, 199):
        used = useds[step]
        scaled = rows[step][used] / rooms[step][used, None]
        H = scaled.T @ scaled
        scores = np.einsum("ij,jk,ik->i", scaled, np.linalg.inv(H), scaled)
        gradient = -scaled.T @ scores
        # At the center, in the norm of the Hessian.
        assert np.sqrt(gradient @ np.linalg.solve(H, gradient)) < 0.02
        np.testing.assert_allclose(scores.sum(), 3, rtol=1e-9)
    # Rooms follow the rows: those of the box tell where the center is.
    kept = useds[10][:6]
    wanted = np.concatenate([1 + centers[10], 1 - centers[10]])
    np.testing.assert_allclose(rooms[10][:6][kept], wanted[kept], rtol=1e-9)
    counts = useds.sum(axis=1)
    assert (np.abs(np.diff(counts.astype(int))) == 1).all()
    assert counts.max() <= 3 / 0.04 + 1
    assert counts.min() >= 4


def test_factorizations_wait_for_each_other():
    problem = lambda t: jxt.Smooth(lambda x: jnp.sum((x - t) ** 2))
    run = lambda t: jxt.solve(problem(t), Vaidya(2.0), jnp.zeros(2)).value
    assert not lapack.side_by_side(jax.make_jaxpr(jax.vmap(run))(jnp.ones(2)))


SHIFT = np.array([100.0, 200.0])


@pytest.mark.parametrize(
    "make",
    [Ellipsoid, Vaidya, CenterOfGravity],
    ids=lambda make: make.__name__,
)
def test_in_a_ball_far_away_in_single_precision(make):
    """Two unknowns as a pytree, a start outside of the set, and the minimum on its edge."""
    center = {"a": jnp.asarray(SHIFT[0], jnp.float32), "b": jnp.asarray(SHIFT[1:], jnp.float32)}
    ball = prox.Shifted(prox.L2Ball(1.0), center)
    far = lambda x: (x["a"] - 103) ** 2 + jnp.sum((x["b"] - 204) ** 2)
    problem = jxt.Constrained(far, ball)
    start = jax.tree.map(lambda c: c - 1, center)
    # Values of 16 and their rounding tell points of the edge apart that differ by more than 3e-3.
    solution = jxt.solve(problem, make(4.0, tol=1e-2, max_steps=300), start)
    assert solution.status == jxt.Status.converged, solution
    assert solution.value["b"].dtype == jnp.float32
    found = np.array([solution.value["a"], solution.value["b"][0]])
    np.testing.assert_allclose(found, SHIFT + np.array([0.6, 0.8]), atol=2e-2)


def test_one_unknown_is_bisection():
    problem = jxt.Smooth(lambda x: jnp.sum((x - 0.3) ** 2))
    for solver in (Ellipsoid(1.0), CenterOfGravity(1.0)):
        solution = jxt.solve(problem, solver, jnp.zeros(1), trace=lambda p, x, s: s.center[0])
        assert solution.status == jxt.Status.converged
        np.testing.assert_allclose(solution.trace[:4], [0.5, 0.25, 0.375, 0.3125])


def test_a_separating_function_in_the_place_of_a_projection():
    box = lambda x: jnp.max(jnp.abs(x)) - 1
    problem = jxt.Constrained(lambda x: jnp.sum((x - 2) ** 2) + x[0], prox.Box(-1.0, 1.0))
    start = jnp.array([3.0, -1.5])
    for make in (Ellipsoid, CenterOfGravity):
        solver = make(5.0, oracle=FunctionOracle(box), tol=1e-6)
        solution = jxt.solve(problem, solver, start, trace=lambda p, x, s: s.best.error)
        # At first there is no point of the set, and no error but a large one.
        assert solution.trace[0] == jnp.finfo(float).max / 4
        assert solution.status == jxt.Status.converged
        np.testing.assert_allclose(solution.value, 1, atol=1e-5)
        assert box(solution.value) <= 0


def test_sets_without_interior_and_minima_outside_are_not_called_solved():
    flat = jxt.Constrained(lambda x: jnp.sum((x - 0.1) ** 2 * jnp.arange(3.0)), prox.Simplex(1.0))
    solution = jxt.solve(flat, Ellipsoid(2.0, max_steps=300), jnp.ones(3))
    assert solution.status != jxt.Status.converged
    np.testing.assert_allclose(jnp.sum(solution.value), 1, rtol=1e-6)
    away = jxt.Smooth(lambda x: jnp.sum((x - 10) ** 2))
    for solver in (Ellipsoid(1.0, max_steps=300), Vaidya(1.0, max_steps=300)):
        assert jxt.solve(away, solver, jnp.zeros(3)).status != jxt.Status.converged


def test_bad_arguments_raise():
    for make in (Ellipsoid, Vaidya, CenterOfGravity):
        with pytest.raises(ValueError, match="radius"):
            make(-1.0)
        with pytest.raises(TypeError, match="oracle"):
            make(1.0, oracle="projection")
    for options in ({"drop": 1.0}, {"depth": 0.0}, {"newton_steps": 0}, {"max_rows": 2}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Vaidya(1.0, **options)
    with pytest.raises(TypeError, match="centroid"):
        CenterOfGravity(1.0, centroid="polygon")
    problem = jxt.Smooth(lambda x: jnp.sum(x**2))
    with pytest.raises(ValueError, match="unknowns, got 3"):
        jxt.solve(problem, CenterOfGravity(1.0, PolygonCentroid()), jnp.zeros(3))
    with pytest.raises(ValueError, match="7 rows"):
        jxt.solve(problem, Vaidya(1.0, max_rows=6), jnp.zeros(3))
    with pytest.raises(ValueError, match="samples"):
        jxt.solve(problem, CenterOfGravity(1.0, SampledCentroid(4)), jnp.zeros(3))
    with pytest.raises(ValueError, match="spread"):
        textbook.guarantee(Ellipsoid(1.0), 3, Constants(radius=1.0))
    with pytest.raises(TypeError, match="no theorem"):
        textbook.guarantee(Vaidya(1.0), 3, Constants())


@pytest.mark.slow
def test_five_unknowns_and_thirty_pieces_as_measured():
    rng = np.random.default_rng(11)
    A, b = rng.normal(size=(4, 30, 5)), rng.normal(size=(4, 30))
    best = []
    for one, side in zip(A, b, strict=True):
        rows = np.concatenate([one, -np.ones((30, 1))], axis=1)
        bounds = [(-1, 1)] * 5 + [(None, None)]
        best.append(scipy.optimize.linprog(np.eye(6)[5], rows, -side, bounds=bounds).fun)
    (values, _), *_ = _gaps(Vaidya(1.0, max_steps=600), A, b)
    gap = values - np.array(best)[:, None]
    assert (gap[:, [199, 399, 599]].max(axis=0) < [2e-2, 4e-4, 1e-5]).all()
    (values, _), *_ = _gaps(Ellipsoid(5**0.5, max_steps=600), A, b)
    assert (values[:, -1] - best).max() < 1e-5
