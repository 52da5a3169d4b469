"""The methods of the textbook: below their guarantees, and equal to loops in numpy."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxopt_ext as jxt
from benchmarks import rates
from jaxopt_ext import minimize, prox
from jaxopt_ext.minimize import textbook as tb

RNG = np.random.default_rng(3)


EVERY = (*rates.RATES, *rates.RANDOM_RATES)


def check_rates(seed, instances, names):
    for name, curves in rates.measure(seed, instances, names).items():
        gaps, bounds = curves
        assert np.all(np.isfinite(bounds)), name
        assert np.all(np.isfinite(gaps)), name
        assert np.min(gaps) >= -1e-12, name
        assert rates.worst_ratio(name, curves) <= 1, (name, rates.worst_ratio(name, curves))


def test_gaps_are_below_their_guarantees():
    check_rates(0, 4, [name for name in EVERY if name not in rates.LANDED][::4])


@pytest.mark.slow
def test_gaps_are_below_their_guarantees_on_many():
    check_rates(1, 20, EVERY)


A = RNG.normal(size=(6, 3))
A -= A.mean(axis=0)
POINT = np.array([0.3, -0.2, 0.4])


def pieces(x):
    return jnp.max(A @ (x - POINT))


def piece(x):
    return A[np.argmax(A @ (x - POINT))]


def run(problem, method, start, **options):
    return jxt.solve(problem, method, start, **options)


def test_subgradients_are_those_of_a_loop():
    x, points = np.zeros(3), []
    method = tb.ProjectedSubgradient(0.5, 2.0, tol=0.0, max_steps=40)
    for _ in range(40):
        points.append(x)
        x = x - 0.5 / (2.0 * 40**0.5) * piece(x)
        x = x / max(1, np.linalg.norm(x) / 0.5)
    problem = jxt.Constrained(pieces, prox.L2Ball(0.5))
    solution = run(problem, method, jnp.zeros(3))
    np.testing.assert_allclose(solution.value, np.mean(points, axis=0), atol=1e-12)
    assert solution.status == jxt.Status.step_limit
    best = tb.ProjectedSubgradient(0.5, 2.0, tb.BestPoint(), tol=0.0, max_steps=40)
    least = min(float(pieces(p)) for p in points)
    np.testing.assert_allclose(pieces(run(problem, best, jnp.zeros(3)).value), least, atol=1e-12)


def test_weights_of_strongly_convex_subgradients_and_a_run_that_goes_on():
    x, points, t = np.zeros(3), [], 30
    for s in range(1, t + 1):
        points.append(x)
        x = x - 2 / (0.7 * (s + 1)) * (piece(x) + 0.7 * x)
    weights = 2 * np.arange(1, t + 1) / (t * (t + 1))
    problem = jxt.Smooth(lambda x: pieces(x) + 0.35 * jnp.sum(x**2))
    solve = lambda steps, start, state=None: run(
        problem,
        tb.StronglyConvexSubgradient(0.7, tol=0.0, max_steps=steps),
        start,
        state=state,
    )
    whole = solve(t, jnp.zeros(3))
    np.testing.assert_allclose(whole.value, weights @ points, atol=1e-12)
    half = solve(t // 2, jnp.zeros(3))
    np.testing.assert_allclose(solve(t // 2, half.value, half.state).value, whole.value, atol=1e-12)


H = A.T @ A / 6 + 0.1 * np.eye(3)
LOW, *_, HIGH = np.linalg.eigvalsh(H)


def square(x):
    return 0.5 * (x - POINT) @ H @ (x - POINT)


def test_acceleration_is_that_of_a_loop():
    y, x, root = np.zeros(3), np.zeros(3), np.sqrt(HIGH / LOW)
    for _ in range(12):
        new = x - H @ (x - POINT) / HIGH
        x, y = new + (root - 1) / (root + 1) * (new - y), new
    method = tb.StronglyConvexNesterov(HIGH, LOW, tol=0.0, max_steps=12)
    np.testing.assert_allclose(run(jxt.Smooth(square), method, jnp.zeros(3)).value, y, atol=1e-12)


def _bowl(x):
    """Not a quadratic."""
    y = x - POINT
    return 0.5 * y @ H @ y + jnp.sum(jnp.logaddexp(2 * y, -2 * y))


def check_ball(fun, solution, alpha, steps):
    method = tb.GeometricDescent(alpha, tol=0.0, max_steps=steps)
    trace = lambda p, x, s: (s.center, s.square, p.fun(x))
    found = run(jxt.Smooth(fun), method, jnp.zeros_like(solution), trace=trace).trace
    center, radius, value = map(np.asarray, found)
    gap = value - float(fun(solution))
    held = np.sum((center - solution) ** 2, axis=1) + 2 / alpha * gap
    rounding = 1e-13 * (1 + abs(float(fun(solution))) / alpha)
    assert np.all(held <= radius + rounding), (held - radius).max()
    assert radius[-1] < 1e-3 * radius[0]
    return gap


def test_the_ball_of_geometric_descent_holds_the_minimizer():
    # Logarithms of sums add at most 4 to the curvature: the Hessian's least value is a bound.
    assert check_ball(_bowl, jnp.asarray(POINT), LOW, 25)[-1] < 1e-9
    values, solution = np.logspace(-3, 0, 20), jnp.asarray(np.cos(np.arange(20)))
    check_ball(lambda x: 0.5 * jnp.sum(values * (x - solution) ** 2), solution, 1e-3, 150)


@pytest.mark.slow
def test_geometric_descent_on_an_ill_conditioned_square():
    values = np.logspace(-3, 0, 100)
    solution = jnp.asarray(np.random.default_rng(0).normal(size=100))
    fun = lambda x: 0.5 * jnp.sum(values * (x - solution) ** 2)
    assert check_ball(fun, solution, 1e-3, 300)[-1] < 1e-9


WEIGHTS = np.array([0.5, 0.2, 0.3])


def test_dual_averaging_and_mirror_descent_on_the_simplex_are_closed_forms():
    f = lambda x: jnp.max(A @ (x - WEIGHTS))
    slope = lambda x: A[np.argmax(A @ (x - WEIGHTS))]
    soft = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    problem, start = jxt.Constrained(f, prox.Simplex(1.0)), jnp.full(3, 1 / 3)
    for make, eta in ((tb.DualAveraging, (1 / 80) ** 0.5), (tb.FixedMirrorDescent, 0.05**0.5)):
        total, points = np.zeros(3), []
        for _ in range(40):
            points.append(soft(-eta / 2 * total))
            total = total + slope(points[-1])
        method = make(minimize.EntropicSimplex(), 1.0, 2.0, tol=0.0, max_steps=40)
        np.testing.assert_allclose(method.step_size, eta / 2, rtol=1e-6)
        found = run(problem, method, start).value
        np.testing.assert_allclose(found, np.mean(points, axis=0), atol=1e-6)


def test_mirror_prox_is_that_of_a_loop():
    soft = lambda x, v: x * np.exp(-v) / np.sum(x * np.exp(-v))
    x, points = np.full(3, 1 / 3), []
    for _ in range(20):
        y = soft(x, H @ (x - POINT) / 2)
        x = soft(x, H @ (y - POINT) / 2)
        points.append(y)
    method = tb.MirrorProx(minimize.EntropicSimplex(), 2.0, tol=0.0, max_steps=20)
    found = run(jxt.Constrained(square, prox.Simplex(1.0)), method, jnp.full(3, 1 / 3)).value
    np.testing.assert_allclose(found, np.mean(points, axis=0), atol=1e-12)


def test_a_composite_step_of_a_norm_is_least():
    p, lam, t = 1.5, 0.3, 0.7
    x, v = np.array([0.4, -1.0, 0.05]), np.array([0.3, 0.9, -0.2])
    u = cp.Variable(3)
    phi = lambda z: cp.square(cp.pnorm(z, p)) / (2 * (p - 1))
    norm = np.sum(np.abs(x) ** p) ** (1 / p)
    at_x = np.abs(x) ** (p - 1) * np.sign(x) / (p - 1) * norm ** (2 - p)
    objective = t * (v @ u) + t * lam * cp.norm1(u) + phi(u) - at_x @ u
    cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL)
    from jaxopt_ext.minimize.textbook.averaging import forward

    found = forward(minimize.PNorm(p), prox.L1(lam), jnp.asarray(x), jnp.asarray(v), t)
    np.testing.assert_allclose(found, u.value, atol=1e-4)
    with pytest.raises(TypeError, match="EntropicOrthant has no steps with L1"):
        forward(minimize.EntropicOrthant(), prox.L1(lam), jnp.asarray(x), jnp.asarray(v), t)


def test_regularized_dual_averaging_is_sparse():
    """The mean slope is less than the penalty in the last entry, so that it never moves."""
    slope = np.array([1.0, -0.8, 0.2])
    problem = jxt.Composite(lambda x: x @ slope + 0.5 * jnp.sum(x[:2] ** 2), prox.L1(0.3))
    method = tb.DualAveraging(tol=0.0, max_steps=300)
    value = run(problem, method, jnp.zeros(3)).value
    assert value[2] == 0
    np.testing.assert_allclose(value[:2], [-0.7, 0.5], atol=0.2)


def test_the_spectrahedron_and_its_entropy():
    root, slope = RNG.normal(size=(2, 4, 4))
    point = root @ root.T / np.sum(root**2)
    near = RNG.normal(size=(4, 4))
    ball, entropy = tb.Spectrahedron(1.0), tb.MatrixEntropy()

    @jax.jit
    def both(x, g, y):
        stepped = entropy.step(None, x, g, 0.3)
        projected = ball.project(y + 0 * stepped)
        best = ball.linear_minimizer(g + 0 * projected)
        return stepped, projected, entropy.divergence(x + 0 * best, stepped), best

    stepped, projected, divergence, best = both(point, slope, near)
    slope, near = 0.5 * (slope + slope.T), 0.5 * (near + near.T)
    wanted = scipy.linalg.expm(scipy.linalg.logm(point) - 0.3 * slope)
    wanted = wanted / np.trace(wanted)
    np.testing.assert_allclose(stepped, wanted, atol=1e-10)
    logs = scipy.linalg.logm(point) - scipy.linalg.logm(wanted)
    np.testing.assert_allclose(divergence, np.trace(point @ logs), atol=1e-9)
    X = cp.Variable((4, 4), symmetric=True)
    constraints = [X >> 0, cp.trace(X) == 1]
    cp.Problem(cp.Minimize(cp.sum_squares(X - near)), constraints).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(projected, X.value, atol=1e-4)
    np.testing.assert_allclose(np.vdot(best, slope), np.linalg.eigvalsh(slope)[0], atol=1e-10)
    with pytest.raises(ValueError, match="square matrices"):
        ball.project(jnp.ones(3))


GAME = RNG.uniform(-1, 1, size=(4, 3))


def test_saddle_methods_are_those_of_a_loop():
    soft = lambda x, v: x * np.exp(-v) / np.sum(x * np.exp(-v))
    problem, maps = tb.matrix_game(GAME), (minimize.EntropicSimplex(), minimize.EntropicSimplex())
    start = jxt.PrimalDual(jnp.full(4, 0.25), jnp.full(3, 1 / 3))
    radii, t = (1.2, 0.9), 25
    x, y, xs, ys = np.full(4, 0.25), np.full(3, 1 / 3), [], []
    for _ in range(t):
        xs.append(x)
        ys.append(y)
        eta = (2 / t) ** 0.5
        x, y = soft(x, eta * 1.2 / 0.8 * GAME @ y), soft(y, -eta * 0.9 / 0.7 * GAME.T @ x)
    method = tb.SaddleMirrorDescent(*maps, radii, (0.8, 0.7), tol=0.0, max_steps=t)
    found = run(problem, method, start).value
    np.testing.assert_allclose(found.primal, np.mean(xs, axis=0), atol=1e-7)
    np.testing.assert_allclose(found.dual, np.mean(ys, axis=0), atol=1e-7)

    x, y, xs, ys = np.full(4, 0.25), np.full(3, 1 / 3), [], []
    eta = 1 / (2 * 1.2 * 0.9)
    step = lambda x, y, u, v: (
        soft(x, eta * 1.2**2 * GAME @ v),
        soft(y, -eta * 0.9**2 * GAME.T @ u),
    )
    for _ in range(t):
        u, v = step(x, y, x, y)
        x, y = step(x, y, u, v)
        xs.append(u)
        ys.append(v)
    method = tb.SaddleMirrorProx(*maps, radii, (0.0, 0.0, 1.0), tol=0.0, max_steps=t)
    found = run(problem, method, start).value
    np.testing.assert_allclose(found.primal, np.mean(xs, axis=0), atol=1e-7)
    np.testing.assert_allclose(found.dual, np.mean(ys, axis=0), atol=1e-7)


@pytest.mark.slow
def test_rates_of_a_larger_game():
    """The gap of mirror prox falls as 1/t and is half of its bound, that of mirror descent, with
    the step of each horizon, as its root."""
    A = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(50, 40)))
    problem, maps = tb.matrix_game(A), (minimize.EntropicSimplex(), minimize.EntropicSimplex())
    radii, most = (np.log(50) ** 0.5, np.log(40) ** 0.5), float(jnp.max(jnp.abs(A)))
    start = jxt.PrimalDual(jnp.full(50, 1 / 50), jnp.full(40, 1 / 40))
    horizons = np.array([100, 200, 400, 800])

    def gaps(make):
        found = [jxt.solve(problem, make(t), start).value for t in horizons.tolist()]
        return np.array([float(jnp.max(z.primal @ A) - jnp.min(A @ z.dual)) for z in found])

    slope = lambda gaps: np.polyfit(np.log(horizons), np.log(gaps), 1)[0]
    coupled = (0.0, 0.0, most)
    prox = gaps(lambda t: tb.SaddleMirrorProx(*maps, radii, coupled, tol=0.0, max_steps=t))
    mirror = gaps(
        lambda t: tb.SaddleMirrorDescent(*maps, radii, (most, most), tol=0.0, max_steps=t)
    )
    assert prox[-1] < 4 * most * np.prod(radii) / 800 < 0.02
    assert 0.005 < prox[-1] < 0.015
    assert 0.03 < mirror[-1] < 0.1
    assert -1.2 < slope(prox) < -0.8
    assert -0.7 < slope(mirror) < -0.35


def test_draws_of_a_game_are_unbiased():
    game = tb.MatrixGame(GAME)
    x, y = np.array([0.1, 0.0, 0.6, 0.3]), np.array([0.5, 0.5, 0.0])
    draw = lambda key: game.sampled(jnp.asarray(x), jnp.asarray(y), key)
    first, second = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
    for found, wanted in ((first, GAME @ y), (second, GAME.T @ x)):
        deviation = np.std(found, axis=0) / 4000**0.5
        assert np.all(np.abs(np.mean(found, axis=0) - wanted) <= 4 * deviation + 1e-12)


def test_the_largest_margin():
    inputs = np.array([[2.0, 1.0], [1.5, 2.0], [-1.0, -2.0], [-2.0, -0.5]])
    labels = np.array([1.0, 1.0, -1.0, -1.0])
    x = cp.Variable(2)
    margin = cp.Problem(
        cp.Maximize(cp.min(cp.multiply(labels, inputs @ x))), [cp.norm(x) <= 1]
    ).solve(solver=cp.CLARABEL)
    problem = tb.linear_classification(inputs, labels)
    method = tb.SaddleMirrorProx(
        dual_map=minimize.EntropicSimplex(),
        radii=(0.5**0.5, np.log(4) ** 0.5),
        smoothness=(0.0, 0.0, 2.6),
        tol=0.0,
        max_steps=2000,
    )
    start = jxt.PrimalDual(jnp.zeros(2), jnp.full(4, 0.25))
    found = run(problem, method, start).value.primal
    assert margin - 2e-3 <= np.min(labels * (inputs @ found)) <= margin + 1e-9


def test_svrg_is_linear():
    rows, targets = RNG.normal(size=(20, 3)), RNG.normal(size=20)
    problem = jxt.FiniteSum(lambda x, s: 0.5 * (s[0] @ x - s[1]) ** 2, (rows, targets))
    beta = np.max(np.sum(rows**2, axis=1))
    solution = run(problem, tb.SVRG(beta, 400, tol=1e-10), jnp.zeros(3))
    assert solution.status == jxt.Status.converged
    assert solution.steps < 60
    np.testing.assert_allclose(
        solution.value, np.linalg.lstsq(rows, targets, rcond=None)[0], atol=1e-8
    )


def test_nothing_is_known_of_an_expectation_without_its_mean():
    problem = jxt.Expectation(
        lambda x, s: jnp.sum((x - s) ** 2), lambda key, b: jax.random.normal(key, (b, 3))
    )
    method = tb.SmoothStochasticMirrorDescent(radius=0.5, noise=4.0, smoothness=2.0, max_steps=200)
    solution = run(problem, method, jnp.ones(3), adjoint=jxt.UnrolledAdjoint())
    assert solution.residual == np.finfo(float).max
    assert solution.status == jxt.Status.step_limit
    np.testing.assert_allclose(solution.value, 0, atol=0.4)


def test_no_method_is_faster_on_the_hardest_functions():
    t, d = 8, 17
    nonsmooth, quadratic = tb.HardestNonsmooth(d, 1.0), tb.HardestQuadratic(d, 2.0)
    shifted = tb.HardestQuadratic(5, 2.0, 0.3)
    method = tb.ProjectedSubgradient(1.0, 2.0, tb.BestPoint(), tol=0.0, max_steps=d - 1)
    fista = minimize.FISTA(minimize.FixedStep(0.5), restart=False, tol=0.0, max_steps=t)

    @jax.jit
    def all_of_it():
        start, solution = jnp.zeros(d), quadratic.solution()
        low = nonsmooth(run(jxt.Smooth(nonsmooth), method, start).value)
        gap = quadratic(run(jxt.Smooth(quadratic), fista, start).value) - quadratic(solution)
        slope = jax.grad(shifted)(shifted.solution() + 0 * solution[0])
        bend = jax.hessian(shifted)(jnp.zeros(5))
        return low, nonsmooth(jnp.full(d, -1 / d)), solution, gap, slope, bend

    low, least, solution, gap, slope, bend = all_of_it()
    assert low >= 0
    np.testing.assert_allclose(least, nonsmooth.minimum())
    np.testing.assert_allclose(solution, 1 - np.arange(1, d + 1) / (d + 1), atol=1e-10)
    square = np.sum(solution**2)
    assert 3 * 2.0 * square / (32 * (t + 1) ** 2) <= gap <= 2 * 2.0 * square / (t + 1) ** 2
    np.testing.assert_allclose(slope, 0, atol=1e-10)
    bends = np.linalg.eigvalsh(bend)
    assert bends[0] >= 0.3
    assert bends[-1] <= 2.0


def test_guarantees_say_what_they_need():
    method = tb.ProjectedSubgradient(2.0, 3.0, max_steps=100)
    constants = tb.Constants(radius=2.0, lipschitz=3.0)
    np.testing.assert_allclose(tb.guarantee(method, 100, constants), 2 * 3 / 10, rtol=1e-6)
    with pytest.raises(ValueError, match="radius"):
        tb.guarantee(method, 100, tb.Constants(lipschitz=1.0))
    with pytest.raises(ValueError, match="other player"):
        tb.guarantee(tb.SaddleMirrorDescent(), 100, tb.Constants(radius=1.0, lipschitz=1.0))
    with pytest.raises(TypeError, match="Random"):
        tb.guarantee(minimize.BlockCoordinateDescent(), 1, tb.Constants())
    with pytest.raises(TypeError, match="ShortStep"):
        tb.guarantee(minimize.InteriorPoint(), 1, tb.Constants())
    with pytest.raises(TypeError, match="no theorem"):
        tb.guarantee(minimize.DampedNewton(), 1, tb.Constants())
    # Not those of a method with too long a step or too short an epoch.
    constants = tb.Constants(radius=1.0, smoothness=2.0, mirror_convexity=1.0)
    assert np.isinf(tb.guarantee(tb.MirrorProx(smoothness=1.0), 5, constants))
    constants = tb.Constants(spread=1.0, smoothness=1.0, strong_convexity=0.1)
    assert np.isinf(tb.guarantee(tb.SVRG(1.0, 100), 5, constants))
    entropic = minimize.MirrorDescent(minimize.EntropicSimplex(), step_size=0.1)
    constants = tb.Constants(radius=1.0, smoothness=2.0, mirror_convexity=1.0)
    np.testing.assert_allclose(tb.guarantee(entropic, 5, constants), 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (ValueError, lambda: tb.ProjectedSubgradient(radius=-1.0)),
        (TypeError, lambda: tb.ProjectedSubgradient(average=tb.LinearAverage())),
        (TypeError, lambda: tb.StronglyConvexSubgradient(average=tb.UniformAverage())),
        (ValueError, lambda: tb.StronglyConvexNesterov(1.0, 2.0)),
        (ValueError, lambda: tb.GeometricDescent(0.0)),
        (ValueError, lambda: tb.GeometricDescent(1.0, search_steps=0)),
        (TypeError, lambda: tb.FixedMirrorDescent("entropy")),
        (ValueError, lambda: tb.DualAveraging(mirror_convexity=0.0)),
        (ValueError, lambda: tb.MirrorProx(smoothness=float("nan"))),
        (ValueError, lambda: tb.SaddleMirrorDescent(radii=(1.0, 0.0))),
        (ValueError, lambda: tb.SaddleMirrorDescent(radii=(1.0, 1.0, 1.0))),
        (ValueError, lambda: tb.SaddleMirrorProx(smoothness=(0.0, 0.0, 0.0))),
        (ValueError, lambda: tb.SaddleMirrorProx(smoothness=(0.0, 1.0))),
        (ValueError, lambda: tb.StochasticMirrorDescent(batch=0)),
        (ValueError, lambda: tb.SmoothStochasticMirrorDescent(noise=0.0)),
        (ValueError, lambda: tb.SVRG(inner_steps=0)),
        (ValueError, lambda: tb.StochasticSaddleMirrorDescent(second_moments=(0.0, 1.0))),
        (ValueError, lambda: tb.StochasticSaddleMirrorProx(noise=(0.0, 1.0))),
        (ValueError, lambda: tb.Spectrahedron(0.0)),
        (ValueError, lambda: tb.matrix_game(jnp.ones(3))),
        (ValueError, lambda: tb.linear_classification(jnp.ones((3, 2)), jnp.ones(2))),
        (ValueError, lambda: tb.HardestNonsmooth(0)),
        (ValueError, lambda: tb.HardestQuadratic(3)(jnp.ones(4))),
    ],
)
def test_bad_input_raises(error, make):
    with pytest.raises(error):
        make()
