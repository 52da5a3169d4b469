"""Every function of the family: values, proxes and derivatives against convex and brute-force
optimization."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

from jaxopt_ext import prox

RNG = np.random.default_rng(0)
N = 7
NORMAL = RNG.normal(size=N)
MATRIX = RNG.normal(size=(3, N))
RHS = RNG.normal(size=3)
LABELS = jnp.array([0, 1, 0, 2, 2, 1, 0])
WEIGHTS = RNG.uniform(0.1, 1, size=N)
P = np.array([0.5, 1.0, 0.7])
Q = np.array([0.6, 0.9, 0.4, 0.3])


def _tv2(x, isotropic):
    h, w = x.shape
    down, right = x[1:, :] - x[:-1, :], x[:, 1:] - x[:, :-1]
    if not isotropic:
        return cp.sum(cp.abs(down)) + cp.sum(cp.abs(right))
    terms = []
    for i in range(h):
        for j in range(w):
            parts = [down[i, j]] if i < h - 1 else []
            parts += [right[i, j]] if j < w - 1 else []
            if parts:
                terms.append(cp.norm(cp.hstack(parts)))
    return sum(terms)


# name: (function, shape, cvxpy objective g(u), cvxpy constraints on u)
CONVEX = {
    "Zero": (prox.Zero(), (N,), lambda u: 0, None),
    "L1": (prox.L1(0.3), (N,), lambda u: 0.3 * cp.norm1(u), None),
    "L1 weighted": (
        prox.L1(WEIGHTS),
        (N,),
        lambda u: cp.norm1(cp.multiply(WEIGHTS, u)),
        None,
    ),
    "L2Squared": (prox.L2Squared(0.7), (N,), lambda u: 0.35 * cp.sum_squares(u), None),
    "ElasticNet": (
        prox.ElasticNet(0.3, 0.5),
        (N,),
        lambda u: 0.3 * cp.norm1(u) + 0.25 * cp.sum_squares(u),
        None,
    ),
    "L2": (prox.L2(0.8), (N,), lambda u: 0.8 * cp.norm(u), None),
    "GroupLasso": (
        prox.GroupLasso(0.9),
        (4, 3),
        lambda u: 0.9 * cp.sum(cp.norm(u, axis=1)),
        None,
    ),
    "GroupLasso labels": (
        prox.GroupLasso(jnp.array([0.3, 0.5, 2.0]), LABELS, 3),
        (N,),
        lambda u: 0.3 * cp.norm(u[[0, 2, 6]]) + 0.5 * cp.norm(u[[1, 5]]) + 2 * cp.norm(u[[3, 4]]),
        None,
    ),
    "NuclearNorm": (prox.NuclearNorm(0.8), (3, 4), lambda u: 0.8 * cp.normNuc(u), None),
    "TotalVariation1D": (
        prox.TotalVariation1D(0.4),
        (N,),
        lambda u: 0.4 * cp.norm1(cp.diff(u)),
        None,
    ),
    "TotalVariation2D isotropic": (
        prox.TotalVariation2D(0.3, tol=1e-9, max_steps=20_000),
        (4, 3),
        lambda u: 0.3 * _tv2(u, True),
        None,
    ),
    "TotalVariation2D anisotropic": (
        prox.TotalVariation2D(0.3, isotropic=False, tol=1e-9, max_steps=20_000),
        (4, 3),
        lambda u: 0.3 * _tv2(u, False),
        None,
    ),
    "NonNegative": (prox.NonNegative(), (N,), lambda u: 0, lambda u: [u >= 0]),
    "Box": (
        prox.Box(-0.5, WEIGHTS),
        (N,),
        lambda u: 0,
        lambda u: [u >= -0.5, u <= WEIGHTS],
    ),
    "Simplex": (
        prox.Simplex(1.5),
        (N,),
        lambda u: 0,
        lambda u: [u >= 0, cp.sum(u) == 1.5],
    ),
    "L1Ball": (prox.L1Ball(1.2), (N,), lambda u: 0, lambda u: [cp.norm1(u) <= 1.2]),
    "L2Ball": (prox.L2Ball(0.8), (N,), lambda u: 0, lambda u: [cp.norm(u) <= 0.8]),
    "LinfBall": (prox.LinfBall(0.6), (N,), lambda u: 0, lambda u: [cp.norm_inf(u) <= 0.6]),
    "NuclearBall": (
        prox.NuclearBall(1.3),
        (3, 4),
        lambda u: 0,
        lambda u: [cp.normNuc(u) <= 1.3],
    ),
    "Hyperplane": (
        prox.Hyperplane(NORMAL, 0.5),
        (N,),
        lambda u: 0,
        lambda u: [NORMAL @ u == 0.5],
    ),
    "Halfspace": (
        prox.Halfspace(NORMAL, -0.5),
        (N,),
        lambda u: 0,
        lambda u: [NORMAL @ u <= -0.5],
    ),
    "AffineSet": (
        prox.AffineSet(MATRIX, RHS),
        (N,),
        lambda u: 0,
        lambda u: [MATRIX @ u == RHS],
    ),
    "SecondOrderCone": (
        prox.SecondOrderCone(),
        (N,),
        lambda u: 0,
        lambda u: [cp.norm(u[1:]) <= u[0]],
    ),
    "PSDCone": (
        prox.PSDCone(),
        (4, 4),
        lambda u: 0,
        lambda u: [u == u.T, u >> 0],
    ),
    "Isotonic": (prox.Isotonic(), (N,), lambda u: 0, lambda u: [cp.diff(u) >= 0]),
    "TransportPolytope": (
        prox.TransportPolytope(P, Q),
        (3, 4),
        lambda u: 0,
        lambda u: [u >= 0, cp.sum(u, axis=1) == P, cp.sum(u, axis=0) == Q],
    ),
    "Birkhoff": (
        prox.Birkhoff(4),
        (4, 4),
        lambda u: 0,
        lambda u: [u >= 0, cp.sum(u, axis=1) == 1, cp.sum(u, axis=0) == 1],
    ),
    "Scaled": (2.5 * prox.L1(0.3), (N,), lambda u: 0.75 * cp.norm1(u), None),
    "Shifted": (
        prox.Shifted(prox.L2(0.8), NORMAL),
        (N,),
        lambda u: 0.8 * cp.norm(u - NORMAL),
        None,
    ),
    "Precomposed": (
        prox.Precomposed(prox.L1(0.3), -2.0, NORMAL),
        (N,),
        lambda u: 0.3 * cp.norm1(-2 * u + NORMAL),
        None,
    ),
    "Conjugate": (
        prox.Conjugate(prox.L1(0.6)),
        (N,),
        lambda u: 0,
        lambda u: [cp.norm_inf(u) <= 0.6],
    ),
}
EACH = pytest.mark.parametrize("name", CONVEX)


def _point(name, seed=1):
    shape = CONVEX[name][1]
    x = np.random.default_rng(seed).normal(size=shape)
    return 0.5 * (x + x.T) if name == "PSDCone" else x


def _solve(name, x, step):
    _, shape, objective, constraints = CONVEX[name]
    u = cp.Variable(shape)
    goal = objective(u) + cp.sum_squares(u - x) / (2 * step)
    problem = cp.Problem(cp.Minimize(goal), constraints(u) if constraints else [])
    options = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
    problem.solve(solver=cp.CLARABEL, **options)
    return u.value, problem.value


@functools.cache
def compiled(name):
    """The prox of one function, and its value: one program for all tests."""
    function = CONVEX[name][0]
    return jax.jit(lambda x: function.prox(x, 0.7)), jax.jit(lambda x: function(x))


@EACH
def test_prox_solves_its_problem(name):
    function, step = CONVEX[name][0], 0.7
    for seed in (1, 2):
        x = _point(name, seed)
        found = np.asarray(compiled(name)[0](jnp.asarray(x)))
        wanted, _ = _solve(name, x, step)
        np.testing.assert_allclose(found, wanted, atol=3e-5)
        # Sharper: the objective at our point is not above the reference's.
        if not isinstance(function, prox.Conjugate | prox.AbstractSet):
            value = compiled(name)[1]
            goal = lambda u: float(value(jnp.asarray(u))) + np.sum((u - x) ** 2) / (2 * step)  # noqa: B023
            assert goal(found) <= goal(wanted) + 1e-8


@EACH
def test_value(name):
    function, _, objective, _ = CONVEX[name]
    if name == "Conjugate":
        with pytest.raises(TypeError, match="no given value"):
            function(jnp.zeros(N))
        return
    x = _point(name)
    project, evaluate = compiled(name)
    if isinstance(function, prox.AbstractSet):
        inside = np.asarray(project(jnp.asarray(x)))
        assert evaluate(jnp.asarray(inside)) == 0
        moved = jnp.asarray(inside + 0.4 * (x - inside))
        assert np.allclose(x, inside) or evaluate(moved) == np.inf
        return
    value = objective(cp.Constant(x))
    value = value if isinstance(value, int) else value.value
    np.testing.assert_allclose(float(evaluate(jnp.asarray(x))), value, rtol=1e-10, atol=1e-12)


@EACH
def test_firmly_nonexpansive(name):
    shape = CONVEX[name][1]
    move = compiled(name)[0]

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 2**31), st.floats(0.01, 30))
    def check(seed, scale):
        x, y = scale * np.random.default_rng(seed).normal(size=(2, *shape))
        px, py = (np.asarray(move(jnp.asarray(v))) for v in (x, y))
        slack = np.vdot(px - py, x - y) - np.sum((px - py) ** 2)
        assert slack >= -1e-6 * max(1, scale**2)

    check()


@EACH
def test_single_precision_batches_and_jit(name):
    function, shape = CONVEX[name][:2]
    batch = np.random.default_rng(3).normal(size=(3, *shape))
    if name == "PSDCone":
        batch = batch + np.swapaxes(batch, 1, 2)
    double = [compiled(name)[0](jnp.asarray(x)) for x in batch]
    single = jax.jit(jax.vmap(lambda x: function.prox(x, 0.7)))(jnp.asarray(batch, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, np.stack(double), atol=2e-3 if "2D" in name else 2e-4)


@EACH
def test_derivative_equals_differences(name):
    function = CONVEX[name][0]
    x = jnp.asarray(_point(name, 5))
    direction = np.random.default_rng(8).normal(size=x.shape)
    if name == "PSDCone":
        direction = direction + direction.T
    direction = jnp.asarray(direction)
    weights = jnp.asarray(np.random.default_rng(9).normal(size=x.shape))
    score = lambda x: jnp.vdot(weights, function.prox(x, 0.7))
    move, h = compiled(name)[0], 1e-5
    ends = [np.vdot(weights, move(jnp.asarray(x + s * h * direction))) for s in (1, -1)]
    wanted = (ends[0] - ends[1]) / (2 * h)
    both = jax.jit(lambda x, d: (jnp.vdot(jax.grad(score)(x), d), jax.jvp(score, (x,), (d,))[1]))
    reverse, forward = both(x, direction)
    tolerance = {"rtol": 2e-4, "atol": 2e-4} if "2D" in name else {"rtol": 1e-6, "atol": 1e-7}
    np.testing.assert_allclose(reverse, wanted, **tolerance)
    np.testing.assert_allclose(forward, wanted, **tolerance)


PARAMETERS = {
    "L1": lambda t: prox.L1(0.3 * t),
    "ElasticNet": lambda t: prox.ElasticNet(0.3 * t, 0.5 * t),
    "L2Squared": lambda t: prox.L2Squared(0.7 * t),
    "L2": lambda t: prox.L2(0.8 * t),
    "GroupLasso": lambda t: prox.GroupLasso(0.9 * t),
    "NuclearNorm": lambda t: prox.NuclearNorm(0.8 * t),
    "TotalVariation1D": lambda t: prox.TotalVariation1D(0.4 * t),
    "Box": lambda t: prox.Box(-0.5 * t, WEIGHTS * t),
    "Simplex": lambda t: prox.Simplex(1.5 * t),
    "L1Ball": lambda t: prox.L1Ball(1.2 * t),
    "L2Ball": lambda t: prox.L2Ball(0.8 * t),
    "LinfBall": lambda t: prox.LinfBall(0.6 * t),
    "NuclearBall": lambda t: prox.NuclearBall(1.3 * t),
    "Hyperplane": lambda t: prox.Hyperplane(NORMAL * t, 0.5),
    "Halfspace": lambda t: prox.Halfspace(NORMAL, -5.0 * t),
    "AffineSet": lambda t: prox.AffineSet(MATRIX.at[0].multiply(t), RHS * t),
    "TransportPolytope": lambda t: prox.TransportPolytope(P * t, Q * t),
    "Shifted": lambda t: prox.Shifted(prox.L2(0.8), NORMAL * t),
    "Precomposed": lambda t: prox.Precomposed(prox.L1(0.3), -2.0 * t, NORMAL),
}
MATRIX = jnp.asarray(MATRIX)


@pytest.mark.parametrize("name", PARAMETERS)
def test_derivative_in_the_parameter(name):
    x = jnp.asarray(_point(name, 5))
    weights = jnp.asarray(np.random.default_rng(9).normal(size=x.shape))
    score = lambda t: jnp.vdot(weights, PARAMETERS[name](t).prox(x, 0.7))
    both = jax.jit(jax.value_and_grad(score))
    wanted = (both(1 + 1e-6)[0] - both(1 - 1e-6)[0]) / 2e-6
    found = both(1.0)[1]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert abs(wanted) > 1e-3, "the parameter must matter here"


@pytest.mark.always(2)
@pytest.mark.parametrize(
    ("function", "bound"), [(prox.SCAD(0.5), 2.7), (prox.MCP(0.5), 3.0), (prox.L0(0.5), 9.0)]
)
def test_nonconvex_proxes_beat_a_grid(function, bound):
    penalty = jax.jit(lambda u: function(u[None]))
    prox_of = jax.jit(lambda x, step: function.prox(x[None], step)[0])
    for step in (0.3, 1.0, 2.0):
        if step >= bound:
            continue
        for x in np.linspace(-4, 4, 41) + 0.013:
            goal = lambda u: float(penalty(u)) + (u - x) ** 2 / (2 * step)  # noqa: B023
            found = float(prox_of(x, step))
            coarse = min(np.linspace(-5, 5, 401), key=goal)
            result = scipy.optimize.minimize_scalar(goal, bounds=(coarse - 0.05, coarse + 0.05))
            best = min(goal(result.x), goal(0.0), goal(x))
            assert goal(found) <= best + 1e-7


@pytest.mark.slow
def test_degenerate_points_have_finite_derivatives():
    vectors = (
        prox.L2(1.0),
        prox.L2Ball(1.0),
        prox.L1(1.0),
        prox.L1Ball(1.0),
        prox.SecondOrderCone(),
        prox.Simplex(1.0),
        prox.LinfBall(1.0),
        prox.Isotonic(),
        prox.TotalVariation1D(1.0),
    )
    matrices = (
        (prox.GroupLasso(1.0), jnp.zeros((3, 2))),
        (prox.PSDCone(), jnp.eye(3)),
        (prox.PSDCone(), -jnp.eye(3)),
        (prox.NuclearNorm(0.5), jnp.eye(3)),
        (prox.NuclearNorm(0.5), jnp.zeros((3, 2))),
    )
    functions, points = zip(*((f, jnp.zeros(4)) for f in vectors), *matrices, strict=True)

    @jax.jit
    def jacobians(points):
        at = lambda f, x: jax.jacrev(lambda x: f.prox(x, 0.5))(x)
        return [at(f, x) for f, x in zip(functions, points, strict=True)]

    for function, jacobian in zip(functions, jacobians(points), strict=True):
        assert np.all(np.isfinite(jacobian)), function
    # At the identity every eigenvalue coincides and the projection is the identity.
    direction = jnp.asarray(_point("PSDCone"))
    slope = jax.jit(lambda x, d: jax.jvp(prox.PSDCone().project, (x,), (d,))[1])
    moved = slope(jnp.eye(4), direction)
    np.testing.assert_allclose(moved, direction, atol=1e-12)


def test_pytrees_act_leafwise_or_as_one_vector():
    x = {"a": jnp.array([3.0, -1.0]), "b": (jnp.array([[0.5, 2.0]]),)}
    flat, _ = ravel_pytree(x)
    for function in (
        prox.L1(0.5),
        prox.L2(0.5),
        prox.Simplex(1.0),
        prox.L1Ball(1.0),
        prox.L2Ball(1.0),
        prox.Box(-1.0, 1.0),
        prox.ElasticNet(0.1, 0.2),
    ):
        both = jax.jit(lambda x, f=function: (f.prox(x, 0.7), f(x)))
        (moved, value), (expected, whole) = both(x), both(flat)
        np.testing.assert_allclose(
            np.concatenate([np.ravel(a) for a in jax.tree.leaves(moved)]), expected, rtol=1e-5
        )
        np.testing.assert_allclose(value, whole)
    separable = prox.Separable({"a": prox.L1(1.0), "b": (prox.NonNegative(),)})
    moved = separable.prox(x, 1.0)
    np.testing.assert_allclose(moved["a"], [2.0, 0.0])
    np.testing.assert_allclose(separable(x), 4.0)
    weighted = prox.L1({"a": jnp.array([0.0, 2.0]), "b": (1.0,)})
    np.testing.assert_allclose(weighted.prox(x, 1.0)["a"], [3.0, 0.0])
    np.testing.assert_allclose(weighted(x), 2.0 + 2.5)


def prox_of(function, x):
    """Compiled as a whole."""
    return jax.jit(lambda x: function.prox(x))(x)


def test_complex_input():
    rng = np.random.default_rng(4)
    z = jnp.asarray(rng.normal(size=5) + 1j * rng.normal(size=5))
    size = np.abs(z)
    np.testing.assert_allclose(prox_of(prox.L1(0.4), z), z * np.maximum(1 - 0.4 / size, 0))
    np.testing.assert_allclose(prox.L1(0.4)(z), 0.4 * size.sum())
    np.testing.assert_allclose(prox_of(prox.L2Ball(0.5), z), 0.5 * z / np.linalg.norm(z))
    ball = prox_of(prox.L1Ball(1.0), z)
    np.testing.assert_allclose(np.abs(ball), prox_of(prox.L1Ball(1.0), jnp.asarray(size)))
    np.testing.assert_allclose(np.angle(ball)[np.abs(ball) > 0], np.angle(z)[np.abs(ball) > 0])
    np.testing.assert_allclose(prox_of(prox.LinfBall(0.3), z), z * np.minimum(1, 0.3 / size))
    np.testing.assert_allclose(prox_of(prox.L0(0.4), z), np.where(size**2 > 0.8, z, 0))
    m = jnp.asarray(rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))
    hermitian = 0.5 * (m + m.conj().T)
    values, vectors = np.linalg.eigh(hermitian)
    expected = (vectors * np.maximum(values, 0)) @ vectors.conj().T
    np.testing.assert_allclose(prox_of(prox.PSDCone(), m), expected, atol=1e-12)
    u, s, vh = np.linalg.svd(m)
    expected = (u * np.maximum(s - 0.6, 0)) @ vh
    np.testing.assert_allclose(prox_of(prox.NuclearNorm(0.6), m), expected, atol=1e-12)
    rows = prox_of(prox.GroupLasso(0.5), m)
    scale = np.maximum(1 - 0.5 / np.linalg.norm(m, axis=1), 0)
    np.testing.assert_allclose(rows, scale[:, None] * m)


@pytest.mark.parametrize("name", ["Box", "Simplex", "L1Ball", "L2Ball", "LinfBall", "NuclearBall"])
def test_linear_minimizers(name):
    function, shape = CONVEX[name][:2]
    g = np.random.default_rng(6).normal(size=shape)
    u = cp.Variable(shape)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(g, u))), CONVEX[name][3](u))
    problem.solve(solver=cp.CLARABEL)
    corner = function.linear_minimizer(jnp.asarray(g))
    np.testing.assert_allclose(np.sum(g * np.asarray(corner)), problem.value, atol=1e-6)
    assert function.contains(corner)


def test_blocks_agree_with_the_whole():
    x = jnp.asarray(RNG.normal(size=N))
    for function in (
        prox.L1(jnp.asarray(WEIGHTS)),
        prox.L1(0.3),
        prox.ElasticNet(0.2, jnp.asarray(WEIGHTS)),
        prox.Box(-0.2, jnp.asarray(WEIGHTS)),
        prox.NonNegative(),
        prox.SCAD(0.5),
        3.0 * prox.L1(0.1),
        prox.Zero(),
    ):
        whole = function.prox(x, 0.7)
        for j in (0, N - 1):
            np.testing.assert_allclose(function.block(j).prox(x[j], 0.7), whole[j])
    rows = jnp.asarray(RNG.normal(size=(4, 3)))
    groups = prox.GroupLasso(jnp.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(groups.block(2).prox(rows[2], 0.7), groups.prox(rows, 0.7)[2])
    with pytest.raises(TypeError, match="Simplex is not separable"):
        prox.Simplex().block(0)


THRESHOLD = jax.jit(prox.simplex_threshold)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_simplex_threshold_equals_sorting(values, radius):
    v = np.array(values)
    ordered = np.sort(v)[::-1]
    excess = (np.cumsum(ordered) - radius) / np.arange(1, v.size + 1)
    tau = excess[np.flatnonzero(ordered > excess)[-1]]
    # Padded to one length, by entries that are far below any threshold.
    padded = np.full(30, v.max() - 1e4)
    padded[: v.size] = v
    found = THRESHOLD(jnp.asarray(padded), radius)
    np.testing.assert_allclose(found, tau, rtol=1e-12, atol=1e-9)


def test_bad_input_is_named():
    cases = [
        (lambda: prox.L1(-1.0), "weight must be non-negative"),
        (lambda: prox.L1(jnp.nan), "weight must be non-negative"),
        (lambda: prox.L1(jnp.array([1.0, -2.0])), "weight"),
        (lambda: prox.ElasticNet(1.0, -1.0), "l2"),
        (lambda: prox.SCAD(1.0, 2.0), r"a must be in \(2"),
        (lambda: prox.MCP(1.0, 1.0), "gamma"),
        (lambda: prox.Box(1.0, 0.0), "upper - lower"),
        (lambda: prox.Simplex(0.0), "radius must be positive"),
        (lambda: prox.L2Ball(-1.0), "radius"),
        (lambda: prox.Hyperplane(jnp.zeros(3)), "normal"),
        (lambda: prox.AffineSet(jnp.ones((2, 3)), jnp.ones(3)), "do not fit"),
        (lambda: prox.AffineSet(jnp.zeros((1, 3)), jnp.ones(1)), "row 0 of matrix is zero"),
        (lambda: prox.AffineSet(jnp.zeros((0, 3)), jnp.zeros(0)), "must have rows"),
        (lambda: prox.TransportPolytope(jnp.ones(2), jnp.ones(3)), "one total"),
        (lambda: prox.TransportPolytope(jnp.zeros(2), jnp.ones(3)), "row_sums"),
        (lambda: prox.GroupLasso(1.0, LABELS), "come together"),
        (lambda: prox.Scaled(prox.L1(), -1.0), "factor"),
        (lambda: prox.Conjugate(prox.L0()), "L0 is not convex"),
        (lambda: prox.Isotonic().project(jnp.ones((2, 2))), "takes a vector"),
        (lambda: prox.TotalVariation1D().prox(jnp.ones((2, 2))), "takes a vector"),
        (lambda: prox.TotalVariation2D().prox(jnp.ones(2)), "takes an image"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="NonNegative has no linear"):
        prox.NonNegative().linear_minimizer(jnp.ones(2))
