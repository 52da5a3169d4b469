"""Scaling matrices by hand, and the constrained dogleg method beside scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxopt_ext as jxt
from benchmarks.claims.minimize.scaled_trust_region import PROBLEMS
from jaxopt_ext.minimize import (
    ColemanLi,
    ConvexCombination,
    Elliptical,
    HagerMairZhang,
    HeinkenschlossUlbrich,
    KanzowKlug,
    ScaledDogleg,
    Spherical,
)

INF = np.inf
# Inside with both signs of the slope and none, near a bound with both, one-sided, and free.
X = np.array([1.0, 1.0, 1.0, 0.01, 0.01, 1.0, 1.0, 1.0, 1.0])
L = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -INF, -INF])
U = np.array([4.0, 4.0, 4.0, 4.0, 4.0, INF, INF, 4.0, INF])
G = np.array([2.0, -2.0, 0.0, 2.0, -2.0, 2.0, -2.0, 2.0, -2.0])
BY_HAND = [
    (ColemanLi(), [1, 3, 1, 0.01, 3.99, 1, 1, 1, 1]),
    (KanzowKlug(), [1, 3, 1, 0.01, 2.01, 1, 3, 5, 1]),
    (KanzowKlug(0.5), [1, 2, 1, 0.01, 1.01, 1, 2, 4, 1]),
    # The nearest bound: 1 1 1 .01 .01 1 1 3 inf; at p = 2 all but none of |g| = 2 pass.
    (HeinkenschlossUlbrich(), [1, 3, 1, 0.01, 3.99, 1, 1, 1, 1]),
    (HagerMairZhang(), [1 / 3, 3 / 5, 1, 0.01 / 2.01, 3.99 / 5.99, 1 / 3, 1, 1, 1]),
    (HagerMairZhang(2.0), [0.25, 3 / 8, 0.5, 0.01 / 2.02, 3.99 / 9.98, 0.25, 0.5, 0.5, 0.5]),
]


def test_scalings_by_hand():
    two = ColemanLi(), KanzowKlug()
    evenly, unevenly = ConvexCombination(two), ConvexCombination(two, [0.25, 0.75])
    # |g| is below the square of the distance; neither is; the distance is below that of |g|.
    slopes, halves = np.array([0.2, 0.5, 0.8]), np.full(3, 0.5)

    @jax.jit
    def scalings(*at):
        hand = [scaling(*at) for scaling, _ in BY_HAND]
        near = HeinkenschlossUlbrich()(halves, slopes, np.zeros(3), np.full(3, 3.0))
        return hand, near, evenly(*at), unevenly(*at)

    hand, near, even, uneven = scalings(X, G, L, U)
    for (scaling, wanted), found in zip(BY_HAND, hand, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=repr(scaling))
    np.testing.assert_array_equal(near, [0.5, 1, 0.5])
    a, b = (np.array(v) for _, v in BY_HAND[:2])
    np.testing.assert_allclose(even, (a + b) / 2, rtol=1e-6)
    np.testing.assert_allclose(uneven, 0.25 * a + 0.75 * b, rtol=1e-6)


MIXED = ConvexCombination((ColemanLi(), KanzowKlug()))
SETS = {  # a start of the second root if there is one, and how many starts go to one
    "powell": (None, 3, MIXED),
    "himmelblau": (None, 3, HeinkenschlossUlbrich()),
    "combustion": (None, 3, ColemanLi()),
    "trigexp": (None, 3, KanzowKlug()),
    "bratu": (np.zeros(30), 3, MIXED),
    "chandrasekhar": (np.linspace(1, 4, 30), 2, HagerMairZhang()),
}


@pytest.mark.always(1)
@pytest.mark.parametrize("name", SETS)
def test_roots_in_the_box_equal_those_of_scipy(name):
    """All starts lead to a root but the last of Chandrasekhar's equation, which lies beyond a pole
    and which scipy's reflective trust region does not solve either. Two equations have two."""
    fun, size, low, high = PROBLEMS[name]
    other, solved, scaling = SETS[name]
    low, high = np.full(size, low), np.full(size, high)
    starts = np.stack([low + nu * (high - low) for nu in (0.25, 0.5, 0.75)])
    problem = jxt.BoundedRootFinding(fun, low, high)
    solve = lambda x: jxt.solve(problem, ScaledDogleg(scaling, tol=1e-11), x)
    solution = jax.jit(lambda starts: jax.lax.map(solve, starts))(starts)
    found, ok = np.asarray(solution.value), solution.status._value == jxt.Status.converged._value
    assert np.sum(ok) == solved

    compiled, slope = jax.jit(fun), jax.jit(jax.jacobian(fun))
    theirs, roots = [], []
    for start in [*starts, *([] if other is None else [other])]:
        by_scipy = scipy.optimize.least_squares(
            lambda x: np.asarray(compiled(x)),
            start,
            lambda x: np.asarray(slope(x)),
            (low, high),
            **dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15),
        )
        theirs.append(np.linalg.norm(by_scipy.fun) <= 1e-11)
        if theirs[-1] and not any(np.allclose(by_scipy.x, x, 1e-6, 1e-9) for x in roots):
            roots.append(by_scipy.x)
    np.testing.assert_array_equal(theirs[:3], ok)
    assert len(roots) == (1 if other is None else 2)
    for x in found[ok]:
        assert np.all((x > low) & (x < high))
        assert np.linalg.norm(compiled(x)) <= 1e-11
        nearest = min(roots, key=lambda root: np.linalg.norm(root - x))
        np.testing.assert_allclose(x, nearest, rtol=1e-8, atol=1e-10)


def test_steps_of_a_free_dogleg_against_numpy_and_quadratic_in_the_end():
    """Without bounds scalings give the plain method."""
    x, radius, wanted, sizes = np.array([0.3, 0.2]), 0.3, [], []
    curved = lambda x: np.array([x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7])
    norm = np.linalg.norm
    while not sizes or sizes[-1] > 1e-8:
        F, J = curved(x), np.array([[2 * x[0], 1], [1, 2 * x[1]]])
        g, newton = J.T @ F, -np.linalg.solve(J, F)
        while True:
            t = min((g @ g) / norm(J @ g) ** 2, radius / norm(g))
            pc = -t * g
            q = max(0.99995, 1 - norm(newton)) * newton - pc
            s = -(F + J @ pc) @ (J @ q) / norm(J @ q) ** 2
            roots = np.roots([q @ q, 2 * q @ pc, min(pc @ pc - radius**2, 0)])
            p = pc + np.clip(s, roots.min(), roots.max()) * q
            if norm(F) - norm(F + J @ p) < 0.1 * (norm(F) - norm(F + J @ pc)):
                p = pc
            ratio = (norm(F) - norm(curved(x + p))) / (norm(F) - norm(F + J @ p))
            if ratio >= 0.25:
                break
            radius = min(radius / 4, norm(p) / 2)
        radius = max(radius, 2 * norm(p)) if ratio >= 0.75 else radius
        x = x + p
        wanted.append(x)
        sizes.append(norm(curved(x)))
    assert 5 < len(sizes) < 15
    assert sizes[-1] < 10 * sizes[-2] ** 2 < 1e-4
    solver = ScaledDogleg(KanzowKlug(), Spherical(), radius=0.3, tol=0.0, max_steps=len(wanted))
    problem = jxt.BoundedRootFinding(PROBLEMS["himmelblau"][0])
    trace = lambda problem, x, state: x
    found = jxt.solve(problem, solver, jnp.array([0.3, 0.2]), trace=trace).trace
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


@pytest.mark.slow
def test_paths_without_bounds_are_the_same_for_both_scalings_and_regions():
    """Where Coleman and Li's scaling and Kanzow and Klug's are the identity."""
    fun = PROBLEMS["trigexp"][0]
    problem = jxt.BoundedRootFinding(fun)
    trace = lambda problem, x, state: x
    start = 2 * np.random.default_rng(0).normal(size=8)

    def path(scaling, region):
        solver = ScaledDogleg(scaling, region, radius=0.5, tol=0.0, max_steps=12)
        return jxt.solve(problem, solver, start, trace=trace).trace

    scalings, regions = (ColemanLi(), KanzowKlug()), (Spherical(), Elliptical())
    run = jax.jit(lambda: [[path(scaling, region) for region in regions] for scaling in scalings])
    paths = np.asarray(run()).reshape(4, 12, 8)
    sizes = [float(jnp.linalg.norm(fun(x))) for x in paths[0]]
    assert sizes[0] > 1 > 1e-10 > sizes[-1]
    for other in paths[1:]:
        np.testing.assert_allclose(other, paths[0], rtol=1e-13, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_stationary_points_without_a_root_end_as_such(dtype):
    """Inside, at a bound, and where the Jacobian is singular; far below the limit of steps."""
    solver = ScaledDogleg(tol=1e-8, max_steps=300)
    lows = np.array([[-INF, -INF], [0.0, 0.0], [-3.0, -3.0]], dtype)
    highs = np.array([[INF, INF], [1.0, 1.0], [3.0, 3.0]], dtype)

    def solve(at):
        kind, low, high = at
        together = lambda x: jnp.sum(x) + jnp.array([1.0, -2.0], x.dtype)
        fun = lambda x: jnp.stack([x**2 + 1, x - jnp.array([2, 0.5], x.dtype), together(x)])[kind]
        solution = jxt.solve(
            jxt.BoundedRootFinding(fun, low, high), solver, jnp.full_like(low, 0.7)
        )
        return solution.value, solution.status._value, solution.steps

    each = jax.jit(lambda *at: jax.lax.map(solve, at))
    values, codes, steps = map(np.asarray, each(np.arange(3), lows, highs))
    assert np.all(codes == jxt.Status.breakdown._value)
    assert np.all(steps < 50)
    rounding = 30 * np.finfo(dtype).eps
    np.testing.assert_allclose(values[0], 0, atol=np.sqrt(rounding))
    np.testing.assert_allclose(values[1], [1, 0.5], atol=np.sqrt(rounding))
    assert np.all(values[1] < 1)
    np.testing.assert_allclose(values[1][0], 1, atol=rounding)
    np.testing.assert_allclose(np.sum(values[2]), 0.5, atol=rounding)


def test_what_has_no_root_says_so_and_what_lies_at_bounds_is_found():
    """x^2 + 1, and a root that a bound keeps out; then a root at a corner, one variable fixed."""
    solver = ScaledDogleg(region=Elliptical(), tol=1e-8)
    lows = np.array([[-INF, -INF, -INF], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    highs = np.array([[INF, INF, INF], [1.0, 1.0, 1.0], [4.0, 2.0, 3.0]])
    starts = np.array([[0.7, 0.7, 0.7], [0.7, 0.7, 0.7], [4.0, 2.0, 3.0]])

    def solve(at):
        kind, low, high, start = at
        corner = lambda x: jnp.array([x[0] + x[1] ** 2 - 1, x[1], x[2] - 3])
        fun = lambda x: jnp.stack([x**2 + 1, x - 2, corner(x)])[kind]
        solution = jxt.solve(jxt.BoundedRootFinding(fun, low, high), solver, start)
        return solution.value, solution.status._value

    each = jax.jit(lambda *at: jax.lax.map(solve, at))
    values, codes = map(np.asarray, each(np.arange(3), lows, highs, starts))
    assert np.all(codes[:2] == jxt.Status.breakdown._value)
    np.testing.assert_allclose(values[:2], [[0] * 3, [1] * 3], atol=1e-7)
    assert codes[2] == jxt.Status.converged._value
    np.testing.assert_allclose(values[2], [1, 0, 3], atol=1e-7)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: KanzowKlug(0.0), ValueError),
        (lambda: HeinkenschlossUlbrich(1.0), ValueError),
        (lambda: HagerMairZhang(-1.0), ValueError),
        (lambda: ConvexCombination(()), ValueError),
        (lambda: ConvexCombination((ColemanLi(),), [0.5]), ValueError),
        (lambda: ConvexCombination((ColemanLi(),), [0.5, 0.5]), ValueError),
        (lambda: ConvexCombination((0.5,)), TypeError),
        (lambda: ScaledDogleg(1.0), TypeError),
        (lambda: ScaledDogleg(region="ball"), TypeError),
        (lambda: ScaledDogleg(step_back=1.0), ValueError),
        (lambda: ScaledDogleg(radius=0.0), ValueError),
    ],
)
def test_bad_settings_raise(make, error):
    with pytest.raises(error, match="got"):
        make()
