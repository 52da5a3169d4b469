"""Small programs of Gram matrices against enumeration, cvxpy, and certificates on ugly inputs."""

import itertools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.sharding import AxisType, PartitionSpec as P

from jaxopt_ext.core.gram import combine, gram, min_norm_weights, nonnegative_program
from jaxopt_ext.multiobjective import dual_cone_weights, nash_weights

TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-8}
M, SIZE = 6, 20
"""Most tests ask for batches of this shape, which share their programs."""
CONE = jax.jit(jax.vmap(dual_cone_weights, (0, None)))
ONE_CONE = jax.jit(dual_cone_weights)
SIMPLEX = jax.jit(jax.vmap(min_norm_weights))
NASH = jax.jit(jax.vmap(nash_weights))


def draw(seed, size, m, d):
    """Jacobians: plain, with equal, opposite and zero rows, and with rows of different units."""
    rng = np.random.default_rng(seed)
    J = rng.normal(size=(size, m, d))
    kind = np.arange(size) % 5
    J[kind == 1, 1] = J[kind == 1, 0]
    J[kind == 2, m - 1] = 0
    J[kind == 3, 1] = -2 * J[kind == 3, 0]
    J[kind == 4] *= 10.0 ** rng.uniform(-2, 2, (np.sum(kind == 4), m, 1))
    return J


def enumerate_supports(G, c):
    """The least of v'Gv/2 - c'v over v >= 0, among the solutions on all supports."""
    best, m = (0.0, np.zeros(len(c))), len(c)
    for size in range(1, m + 1):
        for support in itertools.combinations(range(m), size):
            inner = G[np.ix_(support, support)]
            v = np.zeros(m)
            v[list(support)] = np.linalg.lstsq(inner, c[list(support)], rcond=1e-12)[0]
            value = 0.5 * v @ G @ v - c @ v
            if v.min() >= -1e-10 and value < best[0]:
                best = value, v
    return best[1]


def nearest_in_hull(J):
    """The least norm over all affine hulls of subsets whose least point is inside."""
    best = min(J, key=np.linalg.norm)
    for size in range(2, len(J) + 1):
        for support in itertools.combinations(range(len(J)), size):
            rows = J[list(support)]
            t = np.linalg.lstsq((rows[1:] - rows[0]).T, -rows[0], rcond=1e-12)[0]
            if t.min() >= -1e-12 and t.sum() <= 1 + 1e-12:
                point = rows[0] + t @ (rows[1:] - rows[0])
                best = min(best, point, key=np.linalg.norm)
    return best


@pytest.mark.parametrize("d", [8, pytest.param(3, marks=pytest.mark.slow)])
def test_enumeration_of_supports_agrees(d, dtype):
    m = M
    J = np.asarray(jnp.asarray(draw(0, SIZE, m, d), dtype), float)
    G = jax.vmap(gram)(jnp.asarray(J, dtype))
    cone, hull = CONE(G, jnp.eye(m, dtype=dtype)), SIMPLEX(G)
    assert cone.dtype == hull.dtype == dtype
    tolerance = TOLERANCE[dtype]
    assert np.all(np.asarray(cone) >= np.eye(m))
    np.testing.assert_allclose(np.sum(hull, axis=1), 1, rtol=1e-6)
    assert np.all(np.asarray(hull) >= 0)
    for rows, w, v in zip(J, np.asarray(hull, float), np.asarray(cone, float), strict=True):
        size = np.linalg.norm(rows)
        found, wanted = np.linalg.norm(w @ rows), np.linalg.norm(nearest_in_hull(rows))
        assert abs(found - wanted) <= tolerance * size
        exact = rows @ rows.T
        for u, mine in zip(np.eye(m), v, strict=True):
            weights = u + enumerate_supports(exact, -exact @ u)
            np.testing.assert_allclose(mine @ rows, weights @ rows, atol=tolerance * size)


@pytest.mark.slow
def test_many_objectives_have_certificates(dtype):
    """Of 32: an inner product is zero where the weight is more than it has to be, else positive;
    also with a quarter as many coordinates, where the Gram matrix is singular."""
    for d in (40, 8):
        J = np.array(jnp.asarray(draw(1, SIZE, 32, d), dtype), float)
        J /= np.maximum(np.linalg.norm(J, axis=2, keepdims=True), 1e-12)
        G = jax.vmap(gram)(jnp.asarray(J, dtype))
        w = np.asarray(CONE(G, jnp.eye(32, dtype=dtype)), float)
        along = np.einsum("nkm,nmd,nld->nkl", w, J, J)
        tolerance = 10 * TOLERANCE[dtype]
        assert along.min() >= -tolerance
        assert np.abs((w - np.eye(32)) * along).sum(axis=2).max() <= tolerance
        p = np.einsum("nm,nmd->nd", np.asarray(SIMPLEX(G), float), J)
        norm = np.linalg.norm(p, axis=1)
        low = np.einsum("nmd,nd->nm", J, p).min(axis=1) / np.maximum(norm, 1e-300)
        assert np.max(norm - np.maximum(low, 0)) <= tolerance


def certified(rows, dtype):
    """How much the projections of all rows conflict and miss, in units of the longest row."""
    m = len(rows)
    rows = np.asarray(jnp.asarray(rows / np.linalg.norm(rows, axis=1).max(), dtype), float)
    w = np.asarray(ONE_CONE(gram(jnp.asarray(rows, dtype)), jnp.eye(m, dtype=dtype)), float)
    along = w @ rows @ rows.T
    return max(-along.min(), np.abs((w - np.eye(m)) * along).sum(axis=1).max(), -w.min())


def hard(m):
    """Jacobians: plain, of low rank, and so close to singular that gradients do not converge."""
    rng = np.random.default_rng(6)
    left, right = (np.linalg.qr(rng.normal(size=(m, m)))[0] for _ in range(2))
    return (
        rng.normal(size=(m, m)),
        rng.normal(size=(m, m // 4)),
        left * np.geomspace(1, 1e-5, m) @ right,
    )


def test_more_than_can_be_factorized_have_certificates():
    for rows in hard(20):
        assert certified(rows, jnp.float64) <= 1e-8


@pytest.mark.slow
def test_a_hundred_objectives_have_certificates(dtype):
    for rows in hard(100):
        assert certified(rows, dtype) <= 10 * TOLERANCE[dtype]


@pytest.mark.slow
def test_nonnegative_least_squares_agree_at_256():
    """What is left of a row by its polar cone is its projection."""
    rows = np.random.default_rng(8).normal(size=(256, 300))
    rows -= rows.mean(axis=0)
    w = np.asarray(ONE_CONE(gram(jnp.asarray(rows)), jnp.eye(256)))
    for i in (0, 100, 255):
        left = rows[i] + rows.T @ scipy.optimize.nnls(rows.T, -rows[i])[0]
        np.testing.assert_allclose(w[i] @ rows, left, atol=1e-7)


@pytest.mark.slow
def test_more_than_can_be_factorized_in_a_batch_and_in_shard_map():
    """One member's programs do not converge without factorizations; another is not a number."""
    plain, low, close = hard(20)
    low = np.pad(low, ((0, 0), (0, 15)))
    rows = jnp.asarray(np.stack([plain, close, low, 2 * plain])).at[3, 0, 0].set(jnp.nan)
    G = jax.vmap(gram)(rows)
    project = lambda G: jax.vmap(lambda G: dual_cone_weights(G, jnp.eye(20)))(G)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(project, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    looped = np.stack([ONE_CONE(one, jnp.eye(20)) for one in G])
    assert np.all(np.isnan(looped[3]))
    for found in (jax.jit(project)(G), jax.jit(spread)(G)):
        assert np.all(np.isnan(found[3]))
        np.testing.assert_allclose(found[:3] @ rows[:3], looped[:3] @ rows[:3], atol=1e-9)


def test_too_few_turns_are_reported():
    """One turn will do exactly where the first guess of the support is right."""
    rows = np.random.default_rng(2).normal(size=(M, M))
    G = gram(jnp.asarray(rows - 0.5 * rows.mean(axis=0)))
    solve = lambda turns: jax.vmap(lambda c: nonnegative_program(G, c, turns=turns))(-G)
    few, all_ = jax.jit(lambda: (solve(1), solve(None)))()
    wrong = np.any((np.asarray(all_) > 0) != (np.asarray(-G) > 0), axis=1)
    assert 0 < wrong.sum() < M
    np.testing.assert_array_equal(np.isnan(few).all(axis=1), wrong)
    np.testing.assert_allclose(few[~wrong], all_[~wrong], atol=1e-6)


@pytest.mark.slow
def test_cvxpy_agrees_at_32():
    J = draw(2, 1, 32, 20)[0]
    J[:8] -= 2
    w = np.asarray(CONE(gram(jnp.asarray(J))[None], jnp.eye(32)))[0]
    d, g = cp.Variable(20), cp.Parameter(20)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(d - g)), [J @ d >= 0])
    for i in (0, 5, 20):
        g.value = J[i]
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(w[i] @ J, d.value, atol=1e-7)


def test_nash_weights_solve_their_equation(dtype):
    J = draw(3, SIZE, M, 8)
    J[3::5, 1] *= -1  # opposite rows have no solution
    J[3, 1] = -J[3, 0]
    G = jax.vmap(gram)(jnp.asarray(J, dtype))
    w = NASH(G)
    assert w.dtype == dtype
    zero = jnp.diagonal(G, axis1=1, axis2=2) == 0
    missed = np.asarray(jnp.where(zero, 0, w * jnp.einsum("nij,nj->ni", G, w) - 1))
    assert np.all(np.asarray(w) > 0)
    assert np.max(np.abs(np.delete(missed, 3, axis=0))) < TOLERANCE[dtype]
    assert np.all(np.isfinite(w))
    np.testing.assert_allclose(w[3, 0], w[3, 1], rtol=0.1)


def test_extremes_and_nan(dtype):
    """Zero, NaN, and matrices in units far apart."""
    good = jax.vmap(gram)(jnp.asarray(draw(4, SIZE, M, 8), dtype))
    units = jnp.asarray(10.0 ** np.linspace(-12, 12, SIZE), dtype)
    scaled = good * units[:, None, None]
    special = scaled.at[0].set(0).at[1, 2, 3].set(jnp.nan)
    U = jnp.diag(jnp.arange(1, M + 1)).astype(dtype)
    cone, hull = CONE(special, U), SIMPLEX(special)
    np.testing.assert_array_equal(cone[0], U)
    np.testing.assert_allclose(hull[0], np.full(M, 1 / M), rtol=1e-6)
    nash = NASH(special)
    np.testing.assert_allclose(nash[0], 1, rtol=1e-5)
    assert np.all(np.isnan(cone[1]))
    assert np.all(np.isnan(hull[1]))
    assert np.all(np.isnan(nash[1]))
    plain = [4, 9, 14, 19, 5, 10, 15]  # of these the weights are unique
    np.testing.assert_allclose(hull[plain, :], SIMPLEX(good)[plain, :], rtol=1e-2, atol=1e-4)
    for i in plain:
        rows = np.sqrt(np.diag(good[i]))
        np.testing.assert_allclose(
            cone[i] * rows, CONE(good, U)[i] * rows, rtol=1e-2, atol=1e-2 * np.max(rows)
        )


def test_a_batch_equals_a_loop():
    G = jax.vmap(gram)(jnp.asarray(draw(5, SIZE, M, 8)))
    c = jnp.einsum("nij,nj->ni", G, jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, M))))
    one = jax.jit(nonnegative_program)
    looped = np.stack([G_ @ one(G_, c_) for G_, c_ in zip(G, c, strict=True)])
    batch = jax.jit(jax.vmap(lambda G, c: G @ nonnegative_program(G, c)))(G, c)
    np.testing.assert_allclose(batch, looped, rtol=1e-8, atol=1e-8)


def test_rows_may_be_trees_with_complex_leaves():
    rng = np.random.default_rng(0)
    rows = {"a": rng.normal(size=(3, 2, 2)), "b": rng.normal(size=(3, 4)) + 1j}
    flat = np.concatenate([rows["a"].reshape(3, 4), rows["b"].real, rows["b"].imag], axis=1)
    np.testing.assert_allclose(gram(rows), flat @ flat.T, rtol=1e-12)
    w = jnp.asarray([0.5, -1, 2])
    np.testing.assert_allclose(combine(rows, w)["b"], w @ rows["b"], rtol=1e-12)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(m, m\)"):
        dual_cone_weights(jnp.ones((2, 3)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"\(k, 2\), got \(1, 3\)"):
        dual_cone_weights(jnp.eye(2), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="m >= 1"):
        nash_weights(jnp.zeros((0, 0)))
