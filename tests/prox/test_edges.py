"""Kinks, ties, zeros, extreme scales, offsets, empty and complex input, and what must raise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from jaxopt_ext import prox

RNG = np.random.default_rng(0)
SINGLE = jnp.float32


# Compilation is what these tests cost: each function has one program for each type and shape.
PROGRAMS = {}


def _program(kind, function, make):
    key = kind, id(function)
    if key not in PROGRAMS:
        PROGRAMS[key] = (
            function,
            jax.jit(make()),
        )  # holds the function, so that its id stays its own
    return PROGRAMS[key][1]


def proximal(function, x, step=1.0):
    return _program("prox", function, lambda: lambda x, step: function.prox(x, step))(x, step)


def jacobian(function, x, step=0.5):
    prox_at = lambda step: lambda x: function.prox(x, step)
    both = lambda x, step: (jax.jacrev(prox_at(step))(x), jax.jacfwd(prox_at(step))(x))
    rows, columns = _program("jacobian", function, lambda: both)(x, step)
    np.testing.assert_allclose(rows, columns, atol=1e-12)
    return np.asarray(rows).reshape(x.size, x.size)


WITHOUT_WEIGHT = {
    "L1": (prox.L1(0.0), (3,)),
    "L2Squared": (prox.L2Squared(0.0), (3,)),
    "ElasticNet": (prox.ElasticNet(0.0, 0.0), (3,)),
    "L0": (prox.L0(0.0), (3,)),
    "SCAD": (prox.SCAD(0.0), (3,)),
    "MCP": (prox.MCP(0.0), (3,)),
    "L2": (prox.L2(0.0), (3,)),
    "GroupLasso": (prox.GroupLasso(0.0), (3, 2)),
    "GroupLasso labels": (prox.GroupLasso(0.0, jnp.array([0, 1, 1]), 2), (3,)),
    "NuclearNorm": (prox.NuclearNorm(0.0), (3, 2)),
    "TotalVariation1D": (prox.TotalVariation1D(0.0), (3,)),
}


@pytest.mark.parametrize("name", WITHOUT_WEIGHT)
def test_without_weight_the_prox_is_the_identity_also_at_zero(name):
    function, shape = WITHOUT_WEIGHT[name]
    for x in (jnp.zeros(shape), jnp.ones(shape), jnp.asarray(RNG.normal(size=shape))):
        np.testing.assert_allclose(proximal(function, x, 0.5), x, atol=1e-12)
        np.testing.assert_allclose(jacobian(function, x), np.eye(x.size), atol=1e-12)


def test_one_coefficient_without_penalty_among_others():
    function = prox.L1(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(jacobian(function, jnp.zeros(2)), np.diag([1.0, 0.0]))


def test_a_bound_that_is_touched_holds_its_entry():
    value = jnp.array([1.0, 2.0])
    point = prox.Box(value, value)
    fixed = lambda t, x: jnp.sum(prox.Box(t * value, t * value).project(x))
    slope = jax.jit(jax.grad(fixed))
    for x in (value, value + 1, value - 1):
        assert np.all(jacobian(point, x) == 0)
        np.testing.assert_allclose(slope(1.0, x), 3.0)


SIMPLEX = prox.Simplex(1.0)


@pytest.mark.parametrize("x", [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [2.0, 2.0, 1.5], [0.0, 0.0, 0.0]])
def test_the_derivative_on_a_face_of_the_simplex_projects_on_it(x):
    x = jnp.array(x)
    found = jacobian(SIMPLEX, x)
    inside = np.asarray(proximal(SIMPLEX, x)) > 0
    wanted = np.diag(inside.astype(float)) - np.outer(inside, inside) / inside.sum()
    np.testing.assert_allclose(found, wanted, atol=1e-12)


BALLS = (prox.L1Ball(9.0), prox.L2Ball(9.0), prox.LinfBall(9.0), prox.NuclearBall(9.0))


@pytest.mark.always(1)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_inside_of_a_ball_nothing_moves(scale):
    x = scale * jnp.outer(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0, 1.0]))  # of rank one
    for ball in BALLS:
        np.testing.assert_array_equal(proximal(ball, x), x)
        np.testing.assert_allclose(jacobian(ball, x), np.eye(6), atol=1e-12)


def _slope(function):
    return jax.jit(lambda x, d: jax.jvp(lambda x: function.prox(x, 1.0), (x,), (d,))[1])


SLOPES = {"psd": _slope(prox.PSDCone()), "nuclear": _slope(prox.NuclearNorm(1.0))}


@pytest.mark.always(2)
@pytest.mark.parametrize("kind", ["nuclear", "psd"])
@pytest.mark.parametrize("gap", [1e-6, 3e-6, 1e-5, 1e-3])
def test_nearly_equal_spectra_in_single_precision(kind, gap):
    """Digits must not cancel in the divided differences. The oracle knows the eigenvectors."""
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    values = np.array([3.0, 3.0 * (1 + gap), 0.2])
    x, direction = q * values @ q.T, np.random.default_rng(3).normal(size=(3, 3))
    direction = direction + direction.T  # then the singular values' derivative is the eigenvalues'
    low, high = values[:, None], values[None, :]
    if kind == "psd":
        table = np.ones((3, 3))
    else:
        above = (low > 1) & (high > 1)
        soft = lambda v: np.maximum(v - 1, 0)
        table = np.where(above, 1, (soft(low) - soft(high)) / np.where(low == high, 1, low - high))
    wanted = q @ (table * (q.T @ direction @ q)) @ q.T
    single = [jnp.asarray(v, SINGLE) for v in (x, direction)]
    found = SLOPES[kind](*single)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.slow
def test_complex_derivatives_equal_differences():
    z = RNG.normal(size=(3, 4, 2)) @ np.array([1, 1j])
    direction = jnp.asarray(RNG.normal(size=(3, 4, 2)) @ np.array([1, 1j]))
    for function in (
        prox.L1(0.6),
        prox.L2(0.6),
        prox.SCAD(0.3),
        prox.MCP(0.3),
        prox.ElasticNet(0.6, 0.3),
        prox.GroupLasso(0.6),
        prox.NuclearNorm(0.9),
        prox.NuclearBall(1.5),
        prox.L1Ball(1.5),
        prox.L2Ball(1.5),
        prox.LinfBall(0.7),
        prox.Hyperplane(jnp.asarray(z), 0.3),
        prox.Conjugate(prox.L2(0.6)),
        prox.Shifted(prox.L1(0.6), 1j),
    ):
        x = jnp.asarray(z * (1 + 0.2j))
        move = jax.jit(lambda t, f=function, x=x: f.prox(x + t * direction, 0.7))
        wanted = (move(1e-6) - move(-1e-6)) / 2e-6
        found = jax.jit(lambda t, move=move: jax.jvp(move, (t,), (1.0,)))(0.0)[1]
        np.testing.assert_allclose(found, wanted, atol=1e-7, err_msg=str(function))


HOMOGENEOUS = {
    "L1": lambda s: prox.L1(s),
    "L2": lambda s: prox.L2(s),
    "GroupLasso": lambda s: prox.GroupLasso(s),
    "GroupLasso labels": lambda s: prox.GroupLasso(s, jnp.array([0, 1, 0]), 2),
    "NuclearNorm": lambda s: prox.NuclearNorm(s),
    "L0": lambda s: prox.L0(s),
    "Simplex": lambda s: prox.Simplex(s),
    "L1Ball": lambda s: prox.L1Ball(s),
    "L2Ball": lambda s: prox.L2Ball(s),
    "LinfBall": lambda s: prox.LinfBall(s),
    "NuclearBall": lambda s: prox.NuclearBall(s),
    "SecondOrderCone": lambda s: prox.SecondOrderCone(),
    "Isotonic": lambda s: prox.Isotonic(),
    "PSDCone": lambda s: prox.PSDCone(),
    "TotalVariation1D": lambda s: prox.TotalVariation1D(s),
}
COMPLEX = ("L1", "L2", "GroupLasso", "L1Ball", "L2Ball", "LinfBall")
PAIR = jax.jit(lambda f, x, d: jax.jvp(lambda x: f.prox(x, 1.0), (x,), (d,)))


@pytest.mark.always(8)
@pytest.mark.parametrize("exponent", [-25, 25])
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_scales_whose_squares_do_not_fit_in_single_precision(name, exponent):
    """The problem in other units has the same solution and derivative in other units."""
    shape = (3, 3) if name in ("NuclearNorm", "NuclearBall", "PSDCone") else (3,)
    if name == "GroupLasso":
        shape = (3, 2)
    x = np.random.default_rng(4).normal(size=shape)
    if name == "PSDCone":
        x = x + x.T
    scale = np.float32(10.0) ** exponent
    weight = scale**2 if name == "L0" and exponent < 0 else scale
    if name == "L0" and exponent > 0:
        weight = np.float32(np.inf)
    kinds = (SINGLE, jnp.complex64) if name in COMPLEX else (SINGLE,)
    for dtype in kinds:
        # Entries next to zero too: no derivative may divide by them.
        point = jnp.asarray(x * (1 + 1j) if dtype == jnp.complex64 else x, dtype)
        direction = jnp.ones_like(point)
        if name == "L0":
            function = prox.L0(jnp.asarray(weight, SINGLE))
            found = proximal(function, scale * point)
            wanted = 0 * point if exponent > 0 else scale * point
            np.testing.assert_allclose(found / scale, wanted / scale, rtol=1e-5)
            continue
        plain, units = (HOMOGENEOUS[name](jnp.float32(0.6) * s) for s in (np.float32(1), scale))
        value, slope = PAIR(plain, point, direction)
        found, moved = PAIR(units, scale * point, direction)
        np.testing.assert_allclose(found / scale, value, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(moved, slope, rtol=2e-4, atol=2e-5)


@pytest.mark.always(1)
@pytest.mark.parametrize("dtype", [SINGLE, jnp.complex64])
def test_small_entries_beside_large_ones_have_finite_derivatives(dtype):
    x = jnp.array([3.0, 1e-20, 0.0, -1e-30, 1.0], dtype)
    labelled = prox.GroupLasso(0.5, jnp.array([0, 1, 1, 2, 0]), 3)
    for function in (
        prox.L1(0.0),
        prox.L1(jnp.array([0.5, 0.0, 0.0, 0.0, 0.5])),
        prox.L1Ball(1.0),
        prox.L2Ball(1.0),
        prox.LinfBall(1.0),
        prox.GroupLasso(0.0),
        labelled,
        prox.L2(0.0),
    ):
        prox_at = lambda x, f=function: f.prox(x, 1.0)
        value = lambda x, f=function: jnp.sum(jnp.abs(f.prox(x, 1.0)))
        both = lambda x, p=prox_at, v=value: (jax.jvp(p, (x,), (x * 0 + 1,))[1], jax.grad(v)(x))
        for slopes in jax.jit(both)(x):
            assert np.all(np.isfinite(slopes)), function


FUSED, UNIFORM = (
    prox.TotalVariation1D(3.0),
    prox.TransportPolytope(jnp.ones(3) / 3, jnp.ones(4) / 4),
)
ISOTONIC = prox.Isotonic()


@pytest.mark.always(1)
@pytest.mark.parametrize("offset", [1e4, 1e6, -1e6])
def test_an_offset_costs_no_digits(offset):
    """Single against double precision, on the same rounded input."""
    x = jnp.asarray(RNG.normal(size=2000) + offset, SINGLE)
    precise = jnp.asarray(x, float)
    total = proximal(SIMPLEX, x)
    np.testing.assert_allclose(total, proximal(SIMPLEX, precise), atol=1e-6)
    np.testing.assert_allclose(np.sum(total, dtype=float), 1, atol=1e-5)
    for function in (ISOTONIC, FUSED):
        single, double = proximal(function, x), proximal(function, precise)
        gap = np.abs(np.asarray(single, float) - np.asarray(double))
        assert np.max(gap) <= np.spacing(np.float32(abs(offset))), function
    image = jnp.asarray(RNG.normal(size=(3, 4)) + offset, SINGLE)
    single, double = proximal(UNIFORM, image), proximal(UNIFORM, image.astype(float))
    np.testing.assert_allclose(single, double, atol=1e-6)


P, Q = jnp.array([0.5, 1.0, 0.7]), jnp.array([0.6, 0.9, 0.4, 0.3])
PLAN = prox.TransportPolytope(P, Q)


@pytest.mark.always(1)
@pytest.mark.parametrize("dtype", [SINGLE, float])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2, 1e5])
def test_transport_keeps_its_sums_at_all_scales(scale, dtype):
    """Optimal if it has the sums and `x - y` separates: it is `u + v` on the support, less off."""
    eps = float(jnp.finfo(dtype).eps)
    for seed in range(4):
        x = jnp.asarray(scale * np.random.default_rng(seed).normal(size=(3, 4)), dtype)
        y = np.asarray(proximal(PLAN, x), float)
        assert y.min() >= 0
        np.testing.assert_allclose(y.sum(axis=1), P, atol=20 * eps)
        np.testing.assert_allclose(y.sum(axis=0), Q, atol=20 * eps)
        # The variational inequality, by linear programming over the polytope.
        slope = (y - np.asarray(x, float)).ravel()
        rows = np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))
        best = scipy.optimize.linprog(
            slope, A_eq=np.vstack(rows), b_eq=np.concatenate([P, Q]), method="highs"
        ).fun
        assert slope @ y.ravel() - best <= 100 * eps * max(1, scale)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [SINGLE, float])
def test_large_transport_problems_of_large_numbers(dtype):
    """Nearly linear programs, whose supports Newton's method alone does not find."""
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.1, 1, 30), rng.uniform(0.1, 1, 20)
    p *= q.sum() / p.sum()
    plan, eps = prox.TransportPolytope(p, q), float(jnp.finfo(dtype).eps)
    for scale in (1e2, 1e6):
        x = scale * rng.normal(size=(30, 20))
        y = np.asarray(proximal(plan, jnp.asarray(x, dtype)), float)
        np.testing.assert_allclose(y.sum(axis=1), p, atol=1e3 * eps)
        np.testing.assert_allclose(y.sum(axis=0), q, atol=1e3 * eps)
        rows = np.kron(np.eye(30), np.ones(20)), np.kron(np.ones(30), np.eye(20))
        best = scipy.optimize.linprog(
            (y - x).ravel(), A_eq=np.vstack(rows), b_eq=np.concatenate([p, q]), method="highs"
        ).fun
        assert np.vdot(y - x, y) - best <= 1e3 * eps * scale


@pytest.mark.always(1)
@pytest.mark.parametrize(
    ("make", "bound"),
    [(prox.SCAD, 2.7), (prox.MCP, 3.0)],
    ids=["scad", "mcp"],
)
def test_long_steps_of_nonconvex_penalties(make, bound):
    """From `bound` on, the objective has two local minima: brute force says which is lower."""
    grid = np.linspace(-12, 12, 240_001)
    function = make(0.9)
    scalar = jax.jit(jax.vmap(lambda u: function(u[None])))
    penalties = np.asarray(scalar(jnp.asarray(grid)))
    points = np.linspace(-8, 8, 97) + 0.0137
    moved = jax.jit(lambda x, step: function.prox(x, step))
    slope = jax.jit(jax.grad(lambda s: jnp.sum(function.prox(jnp.asarray(points), s))))
    for step in (bound - 0.3, bound, bound + 1e-3, bound + 1, 4.5, 4.7, 6.0, 20.0):
        found = np.asarray(moved(jnp.asarray(points), step))
        reached = np.asarray(scalar(jnp.asarray(found))) + (found - points) ** 2 / (2 * step)
        best = [np.min(penalties + (grid - x) ** 2 / (2 * step)) for x in points]
        np.testing.assert_allclose(reached, best, atol=1e-7)
        assert np.isfinite(slope(step))


ALL = {
    **{name: make(0.6) for name, make in HOMOGENEOUS.items()},
    "ElasticNet": prox.ElasticNet(),
    "L2Squared": prox.L2Squared(),
    "SCAD": prox.SCAD(),
    "MCP": prox.MCP(),
    "NonNegative": prox.NonNegative(),
    "Box": prox.Box(-1.0, 1.0),
    "Hyperplane": prox.Hyperplane(jnp.ones(3)),
    "Halfspace": prox.Halfspace(jnp.ones(3)),
    "AffineSet": prox.AffineSet(jnp.ones((1, 3)), jnp.ones(1)),
    "TotalVariation2D": prox.TotalVariation2D(),
    "TransportPolytope": prox.Birkhoff(3),
    "Conjugate": prox.Conjugate(prox.L1()),
}
MATRICES = ("NuclearNorm", "NuclearBall", "PSDCone", "TotalVariation2D", "TransportPolytope")


@pytest.mark.parametrize("name", ALL)
def test_a_nan_never_vanishes(name):
    x = jnp.ones((3, 3) if name in MATRICES else (3,))
    for step in (0.5, 9.0):
        broken = x.at[(1,) * x.ndim].set(jnp.nan)
        assert np.any(np.isnan(proximal(ALL[name], broken, step)))
        if jnp.issubdtype(x.dtype, jnp.floating) and name in COMPLEX:
            assert np.any(np.isnan(proximal(ALL[name], broken + 0j, step)))
    if name != "Conjugate":
        assert jax.jit(lambda x: ALL[name](x))(broken) != 0
    leaves = jax.tree.leaves(ALL[name])
    if leaves and name not in ("TotalVariation2D", "TransportPolytope", "AffineSet"):
        times = lambda a, t: t * a if jnp.issubdtype(a.dtype, jnp.inexact) else a
        spoil = lambda t: jax.tree.map(lambda a: times(a, t), ALL[name]).prox(3 * x, 0.5)
        assert np.any(np.isnan(jax.jit(spoil)(jnp.nan)))


@pytest.mark.parametrize("name", ALL)
def test_empty_and_single_entries(name):
    function = ALL[name]
    fixed = ("Hyperplane", "Halfspace", "AffineSet", "TransportPolytope", "GroupLasso labels")
    if name in fixed:
        pytest.skip("has its size in its data")
    shape = (0, 0) if name in MATRICES else (0,)
    if name in ("Simplex", "SecondOrderCone"):
        with pytest.raises(ValueError, match=r"without entries|first entry"):
            function.prox(jnp.zeros(shape))
    else:
        assert proximal(function, jnp.zeros(shape)).shape == shape
        if name != "Conjugate":
            assert jax.jit(lambda x: function(x))(jnp.zeros(shape)) == 0
    one = jnp.full((1, 1) if name in MATRICES else (1,), 2.0)
    wanted = {
        **dict.fromkeys(("L1", "L2", "GroupLasso", "NuclearNorm"), 1.7),
        **dict.fromkeys(("Simplex", "L1Ball", "L2Ball", "LinfBall", "NuclearBall"), 0.6),
        **dict.fromkeys(("L0", "SecondOrderCone", "Isotonic", "PSDCone", "NonNegative"), 2.0),
        **dict.fromkeys(("TotalVariation1D", "TotalVariation2D"), 2.0),
        **dict.fromkeys(("Box", "Conjugate"), 1.0),
        "ElasticNet": 1.0,
        "L2Squared": 2 / 1.5,
        "SCAD": (2 - 3.7 * 0.5 / 2.7) / (1 - 0.5 / 2.7),
        "MCP": 1.5 / (1 - 0.5 / 3),
    }[name]
    found = proximal(function, one, 0.5)
    np.testing.assert_allclose(found, np.full(one.shape, wanted), rtol=1e-12)
    assert np.all(np.isfinite(jacobian(function, one)))


def test_no_order_no_complex_numbers():
    vector, matrix = jnp.ones(3, complex), jnp.ones((3, 3), complex)
    for function in (
        prox.NonNegative(),
        prox.Box(0.0, 1.0),
        prox.Simplex(),
        prox.SecondOrderCone(),
        prox.Isotonic(),
        prox.TotalVariation1D(),
    ):
        with pytest.raises(TypeError, match="takes real numbers"):
            function.prox(vector)
    for function in (prox.Birkhoff(3), prox.TotalVariation2D()):
        with pytest.raises(TypeError, match="takes real numbers"):
            function.prox(matrix)


X3, X33 = jnp.ones(3), jnp.ones((3, 3))
RAISES = {
    "weights": (lambda: prox.L1(jnp.ones((3, 1))).prox(X3), r"\(3, 1\) does not fit x of shape"),
    "weights of L2": (lambda: prox.L2(X3).prox(X3), "weight must be one number"),
    "radius": (lambda: prox.L1Ball(X3).project(X3), "radius must be one number"),
    "group weights": (lambda: prox.GroupLasso(jnp.ones((3, 1)))(X33), "does not fit"),
    "labels": (lambda: prox.GroupLasso(1.0, [0, 1], 2).prox(X3), "2 labels do not fit"),
    "label": (lambda: prox.GroupLasso(1.0, [0, 5, 1], 3), r"labels must be in \[0, 3\)"),
    "normal": (lambda: prox.Hyperplane(X3).project(X3[:, None]), "normal must be shaped like x"),
    "half-space": (lambda: prox.Halfspace(X3).project(X3[:, None]), "normal must be shaped"),
    "affine": (lambda: prox.AffineSet(X33, X3).project(X33), "AffineSet takes a vector"),
    "transport": (
        lambda: prox.TransportPolytope(jnp.ones(2), jnp.ones(4) / 2).project(jnp.ones((4, 2))),
        r"takes shape \(2, 4\), got \(4, 2\)",
    ),
    "psd": (lambda: prox.PSDCone().project(jnp.ones((2, 3))), "square"),
    "cone": (lambda: prox.SecondOrderCone().project(X33), "a vector"),
    "ball of tensors": (lambda: prox.NuclearBall().project(jnp.ones((2, 3, 3))), "a matrix"),
    "offset": (lambda: prox.Shifted(prox.L1(), X33).prox(X3), "does not fit"),
    "no order of bounds": (lambda: prox.Box(jnp.nan, 1.0), "upper - lower"),
    "bounds in a tree": (lambda: prox.Box(0.0, {"a": -1.0}), "upper - lower"),
    "scale": (lambda: prox.Precomposed(prox.L1(), 0.0), "magnitude of scale"),
    "made of L0": (lambda: prox.Conjugate(2.0 * prox.L0()), "not convex"),
    "shifted MCP": (lambda: prox.Conjugate(prox.Shifted(prox.MCP(), 1.0)), "not convex"),
    "sum with SCAD": (lambda: prox.Conjugate(prox.Separable((prox.L1(), prox.SCAD()))), "convex"),
    "number in jit": (lambda: jax.jit(lambda x: prox.L1(-1.0).prox(x))(X3), "weight must be"),
    "bounds in jit": (lambda: jax.jit(lambda x: prox.Box(1.0, 0.0).project(x))(X3), "upper"),
    "factor in jit": (lambda: jax.jit(lambda x: (0.0 * prox.L1()).prox(x))(X3), "factor"),
}
STEPS = (prox.L1(), prox.L2(), prox.GroupLasso(), 2.0 * prox.L1(), prox.TotalVariation1D())
STEPS += (prox.Conjugate(prox.L1()), prox.Precomposed(prox.L1(), 2.0))


@pytest.mark.parametrize("name", RAISES)
def test_raises(name):
    call, message = RAISES[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan])
def test_steps_are_positive(step):
    for function in STEPS:
        with pytest.raises(ValueError, match="step must be positive"):
            function.prox(X3, step)
    for function in (prox.NuclearNorm(), prox.TotalVariation2D()):
        with pytest.raises(ValueError, match="step must be positive"):
            function.prox(X33, step)


def test_made_functions_are_as_convex_as_their_parts():
    for function, convex in ((prox.L1(), True), (prox.L0(), False)):
        made = (2.0 * function, prox.Shifted(function, 1.0), prox.Precomposed(function, 2.0))
        for g in (*made, prox.Separable({"a": prox.Zero(), "b": function})):
            assert g.convex is convex


@pytest.mark.slow
def test_products_and_moves_of_sets_project_and_have_corners():
    x = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([0.2, 5.0])}
    sets = {"a": prox.Simplex(2.0), "b": prox.Shifted(prox.L1Ball(1.0), 1.0)}
    product = prox.Separable(sets)
    projected = product.project(x)
    np.testing.assert_allclose(projected["a"], [2.0, 0.0])
    np.testing.assert_allclose(projected["b"], [1.0, 2.0])
    assert product(projected) == 0
    assert product(x) == np.inf
    corner = product.linear_minimizer(x)
    np.testing.assert_allclose(corner["a"], [0.0, 2.0])
    np.testing.assert_allclose(corner["b"], [1.0, 0.0])
    problem = jxt.Constrained(
        lambda t: sum(jnp.sum((t[k] - x[k]) ** 2) for k in ("a", "b")), product
    )
    for solver in (jxt.minimize.FISTA(), jxt.minimize.PairwiseFrankWolfe()):
        value = jxt.solve(problem, solver, projected).value
        np.testing.assert_allclose(value["b"], projected["b"], atol=1e-4)
    with pytest.raises(TypeError, match="L1 is not a set"):
        prox.Separable((prox.L1(),)).project((X3,))
    with pytest.raises(TypeError, match="no linear minimization oracle"):
        prox.Shifted(prox.L1(), 1.0).linear_minimizer(X3)


def test_blocks_of_made_functions_and_of_column_parameters():
    x = jnp.asarray(RNG.normal(size=(4, 3)))
    columns = jnp.array([0.1, 0.4, 0.8])
    for function in (
        prox.L1(columns),
        prox.ElasticNet(columns, 0.3),
        prox.Box(-columns, columns),
        prox.LinfBall(columns),
        prox.Shifted(prox.L1(columns), columns),
        prox.Precomposed(prox.L1(0.3), -2.0, columns),
        2.0 * prox.MCP(columns),
        prox.Conjugate(prox.L1(columns)),
    ):
        aligned = function.aligned(x)
        whole = proximal(function, x, 0.5)
        np.testing.assert_allclose(proximal(aligned, x, 0.5), whole)
        if isinstance(function, prox.Conjugate):
            continue
        for j in (0, 3):
            found = aligned.block(j).prox(x[j], 0.5)
            np.testing.assert_allclose(found, whole[j], err_msg=str(function))


def test_finite_corners_of_unbounded_boxes_where_the_slope_is_zero():
    box = prox.Box(jnp.array([-jnp.inf, 0.0, -jnp.inf]), jnp.array([1.0, jnp.inf, jnp.inf]))
    np.testing.assert_array_equal(box.linear_minimizer(jnp.zeros(3)), [1.0, 0.0, 0.0])


@pytest.mark.slow
def test_heavy_total_variation_in_the_plane_leaves_the_mean():
    image = jnp.asarray(RNG.normal(size=(12, 10)))
    for isotropic in (True, False):
        for scale in (1e-3, 1.0, 1e3):
            function = prox.TotalVariation2D(100.0 * scale, isotropic=isotropic)
            found = function.prox(scale * image)
            np.testing.assert_allclose(found / scale, jnp.mean(image), atol=5e-4)


@pytest.mark.slow
def test_passes_over_geometric_sequences_stay_few():
    """The worst case of Michelot's algorithm drops one entry a pass; precision bounds it."""
    for base in (1.1, 1.5, 2.0, 3.0):
        v = -(base ** np.arange(600.0)[: int(np.log(1e280) / np.log(base))])
        for radius in (1.0, 1e10, 1e100):
            ordered = np.sort(v)[::-1]
            excess = (np.cumsum(ordered) - radius) / np.arange(1, v.size + 1)
            tau = excess[np.flatnonzero(ordered > excess)[-1]]
            found = prox.simplex_threshold(jnp.asarray(v), radius)
            np.testing.assert_allclose(found, tau, rtol=1e-10)
            w, passes, last = v, 0, -np.inf
            current = max((v.sum() - radius) / v.size, v.max() - radius)
            while current > last:
                inside = w > current
                last, current = current, (w[inside].sum() - radius) / max(inside.sum(), 1)
                passes += 1
            assert passes <= 0.5 * (np.log2(v.size) + 53) + 2
